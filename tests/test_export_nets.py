"""Networks of every kind answer from their file as they do in torch, whatever the batch."""

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from heedmap.classifier import Architecture, AttentionClassifier, attach, build_classifier, combined_map
from heedmap.errors import ModelError
from heedmap.export import export
from heedmap.export.wrapped import Answering
from heedmap.maps import explain
from heedmap.onnx_classifier import OnnxClassifier
from test_export import CLASSES, noise, stirred

pytest.importorskip("onnxruntime")

SIZES = [(70, 64), (64, 90), (64, 64), (50, 50)]


def attached() -> AttentionClassifier:
    torch.manual_seed(0)
    return attach(timm.create_model("resnet18", num_classes=3), classes=CLASSES, image_size=64)


def built(model: str, attention: str, size: int, taps: tuple[str, ...] | None = None) -> AttentionClassifier:
    torch.manual_seed(0)
    return build_classifier(Architecture(model, attention, None, "concat", taps, size, CLASSES))


NETS = {
    "compact default": (lambda: stirred(built("compact", "parametrised", 64)), ()),
    "VGG-att3": (lambda: stirred(built("paper-vgg", "parametrised", 32), scale=0.01), ()),
    "attached ResNet-18": (lambda: stirred(attached(), scale=0.02), ("grad_cam", "saliency")),
    "soft feature attention": (lambda: stirred(built("compact", "feature", 64)), ()),
}


@pytest.fixture(scope="module", params=list(NETS))
def pair(request, tmp_path_factory) -> tuple[AttentionClassifier, Path, str]:
    make, include = NETS[request.param]
    classifier = make()
    target = tmp_path_factory.mktemp("net") / "model.onnx"
    return classifier, export(classifier, target, include=include, pictures=noise(*SIZES)).path, request.param


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_logits_and_maps_of_the_file_are_those_of_the_network(pair, batch):
    classifier, file, name = pair
    size = classifier.image_size
    pictures = np.stack([np.asarray(picture) for picture in noise(*[(size, size)] * batch, seed=batch)])
    found = OnnxClassifier(file)(pictures)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        output = classifier(images)
    assert output.logits.std() > 0.01  # worth comparing
    assert np.abs(found["logits"] - output.logits.numpy()).max() < 1e-5 * max(1.0, float(output.logits.abs().max()))
    expected = {
        **output.attention,
        **({"combined": combined_map(output.attention)} if len(classifier.taps) > 1 else {}),
    }
    if name == "VGG-att3":
        assert len(classifier.taps) == 3
    for tap, values in expected.items():
        assert values.amax() - values.amin() > 1e-3 * values.mean()  # no two places alike
        assert np.abs(found["maps"][tap] - values.numpy()).max() < 1e-5
    assert sorted(found["features"]) == sorted(output.features)
    assert bool(output.features) == (name == "soft feature attention")
    for when, values in output.features.items():
        assert np.abs(found["features"][when] - values.numpy()).max() < 1e-5 * max(1.0, float(values.abs().max()))
    for inside, method in {"grad_cam": "grad-cam", "saliency": "saliency"}.items():
        if inside in found["maps"]:
            wanted = explain(classifier, images, method).values.numpy()
            assert wanted.max() > 1e-3
            differences = np.abs(found["maps"][inside] - wanted) / max(1.0, float(wanted.max()))
            # Rounding may switch a ReLU here and there, and the gradient of its few pixels jumps; never that of a cam.
            assert (differences.max() if inside == "grad_cam" else np.quantile(differences, 0.99)) < 1e-5


def test_gradient_maps_that_are_broken_are_not_written(tmp_path, monkeypatch):
    classifier, home = stirred(built("compact", "parametrised", 32)), sys.modules["heedmap.export"]
    honest = home.with_gradients

    def broken(answering: Answering, size: int, include: tuple[str, ...]):
        module, layer = honest(answering, size, include)

        class Scaled(torch.nn.Module):
            def forward(self, images: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
                found = self.module(images, target)
                return {**found, "map_grad_cam": found["map_grad_cam"] * 1.02}

        scaled = Scaled()
        scaled.module = module
        return scaled, layer

    monkeypatch.setattr(home, "with_gradients", broken)
    with pytest.raises(ModelError, match=r"map_grad_cam differs by .*Nothing was written"):
        export(classifier, tmp_path / "model.onnx", include=("grad_cam",), pictures=noise(*SIZES))
    assert list(tmp_path.iterdir()) == []
