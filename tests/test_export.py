"""An exported file predicts as the model does, records how closely, and is not written where it does not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from heedmap.attribution import explain
from heedmap.cli.main import main
from heedmap.data.decoding import square
from heedmap.errors import DataError, HeedmapError, ModelError, OptionError
from heedmap.exporters import INCLUDES, ExportOptions, export
from heedmap.exporters import formats as onnx_file
from heedmap.exporters.gradients import avg_pool_backward, with_gradients
from heedmap.exporters.parity import compare_outputs
from heedmap.exporters.wrapper import NamedOutputs, Squared
from heedmap.inference.onnx import OnnxClassifier
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier, combined_map
from heedmap.models.factory import attach, build_classifier

pytest.importorskip("onnxruntime")

CLASSES = ("ant", "bee", "cow")


def stirred(classifier: AttentionClassifier, seed: int = 0, scale: float = 0.1) -> AttentionClassifier:
    """The classifier with random numbers in every weight: fresh ones have uniform maps, which prove nothing."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
        for name, values in classifier.named_buffers():
            if name.endswith("running_mean"):
                values.normal_(0, 0.1)
            elif name.endswith("running_var"):
                values.uniform_(0.5, 1.5)
    return classifier.eval()


def compact(attention: str = "parametrised") -> AttentionClassifier:
    return stirred(build_classifier(Architecture("compact", attention, None, "concat", None, 32, CLASSES)))


def noise(*sizes: tuple[int, int], seed: int = 0) -> list[Image.Image]:
    """RGB images of these (width, height), with structure at several scales."""
    rng = np.random.default_rng(seed)
    made = []
    for width, height in sizes:
        grid = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        fine = rng.integers(-40, 40, (height, width, 3))
        base = np.asarray(Image.fromarray(grid).resize((width, height))).astype(int)
        made.append(Image.fromarray((base + fine).clip(0, 255).astype(np.uint8)))
    return made


SIZES = [(32, 32), (40, 32), (33, 71), (90, 61), (20, 27)]


@pytest.fixture(scope="module")
def classifier() -> AttentionClassifier:
    return compact()


@pytest.fixture(scope="module")
def file(classifier: AttentionClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(classifier, tmp_path_factory.mktemp("exported") / "model.onnx", images=noise(*SIZES)).path


# ---- the square view as arithmetic


@pytest.mark.parametrize(
    "size", [(32, 32), (64, 64), (40, 32), (33, 71), (90, 61), (20, 27), (7, 5), (150, 128), (1, 9)]
)
def test_squaring_in_the_graph_is_that_of_pillow(size):
    (image,) = noise(size)
    expected = np.asarray(square(image, 32)).astype(int)
    found = Squared(32)(torch.from_numpy(np.array(image))[None])[0].permute(1, 2, 0).mul(255).round().int().numpy()
    off = found - expected
    # Where the exact value lies at half a level, rounding decides; and for some sizes Pillow goes down before across.
    assert np.abs(off).max() <= 2
    assert (off != 0).mean() < 0.35
    assert np.abs(off.mean()) < 0.05


def test_a_square_of_the_right_size_passes_bit_for_bit():
    (image,) = noise((32, 32))
    whole = torch.from_numpy(np.array(image))[None]
    assert torch.equal(Squared(32)(whole), whole.permute(0, 3, 1, 2).float() / 255)


# ---- the file


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_the_file_predicts_as_the_classifier_does(file, classifier, batch):
    images = np.stack([np.asarray(image) for image in noise(*[(32, 32)] * batch, seed=5)])
    found = OnnxClassifier(file)(images)
    with torch.no_grad():
        output = classifier(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    expected = {**output.attention, "combined": combined_map(output.attention)}
    assert np.abs(found["logits"] - output.logits.numpy()).max() < 1e-5
    assert np.abs(found["probabilities"] - output.probabilities.numpy()).max() < 1e-6
    assert list(found["maps"]) == list(expected)
    assert found["features"] == {}
    for name, values in expected.items():
        assert found["maps"][name].shape == values.shape
        assert np.abs(found["maps"][name] - values.numpy()).max() < 1e-6
        assert values.amax() > 1.2 * values.mean()  # a map worth comparing


def test_the_file_takes_an_image_of_any_size(file, classifier):
    read = OnnxClassifier(file)
    for image in noise(*SIZES, seed=2):
        found = read(np.asarray(image)[None])
        with torch.no_grad():
            view = torch.from_numpy(np.array(square(image, 32)))[None]
            output = classifier(view.permute(0, 3, 1, 2).float() / 255)
        assert np.abs(found["probabilities"] - output.probabilities.numpy()).max() < 5e-3


def test_the_file_describes_itself(file, classifier):
    read = OnnxClassifier(file)
    assert read.classes == CLASSES
    assert read.image_size == 32
    assert read.taps == classifier.taps
    assert read.maps == (*classifier.taps, "combined")
    assert (read.attention_name, read.attention_weights) == ("parametrised", "softmax")
    parity = read.metadata["parity"]
    assert parity["images"] == len(SIZES)
    assert parity["batches"] == [1, 3, 16]
    assert max(parity["differences"].values()) < 1e-5
    assert [axis for each in read.session.get_inputs() for axis in each.shape] == ["batch", "height", "width", 3]
    assert read.session.get_outputs()[0].shape == ["batch", 3]


def test_the_file_holds_no_path_of_the_machine_that_made_it(file):
    content = file.read_bytes()
    for word in (b".py", str(Path.home()).encode(), str(Path(torch.__file__).parent).encode()):
        assert word not in content


def test_the_file_runs_where_there_is_no_torch(file, tmp_path):
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # importing it is an ImportError now
        "import numpy as np\n"
        "from heedmap.inference.onnx import OnnxClassifier\n"
        f"answers = OnnxClassifier({str(file)!r})(np.zeros((2, 40, 50, 3), np.uint8))\n"
        "print(answers['logits'].shape, sorted(answers['maps']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 3) ['combined', 'stage2', 'stage3']\n"
    assert done.stderr == ""


def test_the_classifier_is_left_as_it_was(classifier, file):
    modes = [module.training for module in classifier.modules()]
    assert not any(modes)
    classifier.backbone.train()
    with pytest.raises(DataError):
        export(classifier, "model.onnx", images=[])
    assert classifier.backbone.training
    classifier.eval()


# ---- what is refused


def test_a_file_that_predicts_otherwise_is_not_written(classifier, tmp_path, monkeypatch):
    honest, home = NamedOutputs.forward, sys.modules["heedmap.exporters"]

    def broken(module: NamedOutputs, images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = honest(module, images)
        return {**found, "map_stage2": found["map_stage2"] * 1.01}

    def to_onnx(*arguments):
        monkeypatch.setattr(NamedOutputs, "forward", honest)  # from here on the model answers honestly again
        return onnx_file.to_onnx(*arguments)

    monkeypatch.setattr(NamedOutputs, "forward", broken)
    monkeypatch.setattr(home, "to_onnx", to_onnx)
    with pytest.raises(ModelError, match="map_stage2"):
        export(classifier, tmp_path / "model.onnx", images=noise(*SIZES))
    assert list(tmp_path.iterdir()) == []


def jumping(values: np.ndarray, places: int) -> np.ndarray:
    """The map with some of the 1024 places of each image changed."""
    changed = values.copy().reshape(len(values), -1)
    changed[:, :places] += 0.1
    return changed.reshape(values.shape)


@pytest.mark.parametrize(
    ("failing", "broken"),
    [
        ((), lambda found: found),
        ((), lambda found: {**found, "logits": found["logits"] + 0.9e-5}),
        (("logits",), lambda found: {**found, "logits": found["logits"] + 1.1e-5}),
        (("map_stage2",), lambda found: {**found, "map_stage2": found["map_stage2"] * 1.01}),  # below 1e-5 in itself
        (("map_stage2",), lambda found: {**found, "map_stage2": found["map_stage2"] * np.nan}),
        (("logits", "map_stage2", "map_saliency"), lambda found: {name: each[::-1] for name, each in found.items()}),
        ((), lambda found: {**found, "map_saliency": jumping(found["map_saliency"], 8)}),
        (("map_saliency",), lambda found: {**found, "map_saliency": jumping(found["map_saliency"], 16)}),
        (("map_saliency",), lambda found: {**found, "map_saliency": found["map_saliency"] * 1.01}),
    ],
    ids=[
        *("the same", "rounding", "logits moved", "a higher map", "a map of NaN", "rows turned round"),
        *("a gradient that jumps here and there", "one that jumps too often", "a higher gradient"),
    ],
)
def test_the_comparison_finds_what_is_broken(failing, broken):
    def model(images):
        bright = images.astype(np.float32).mean((1, 2)) / 255
        gradient = images.mean(3, dtype=np.float32)[:, None] / 255
        return {"logits": bright, "map_stage2": bright[:, None, None, :1] * 1e-4, "map_saliency": gradient}

    squares = noise(*[(32, 32)] * 5)
    parity = compare_outputs(lambda images: broken(model(images)), model, squares, 32, limit=1e-5)
    assert parity.failures == failing


@pytest.mark.parametrize("bad", [np.zeros((1, 3, 32, 32), np.float32), np.zeros((32, 32, 3), np.uint8)])
def test_an_array_of_another_form_is_named(file, bad):
    with pytest.raises(ModelError, match=r"uint8 RGB of the shape \(B, H, W, 3\), not"):
        OnnxClassifier(file)(bad)


def test_a_target_is_refused_by_a_file_without_maps_of_a_target(file):
    with pytest.raises(ModelError, match="no maps of a target"):
        OnnxClassifier(file)(np.zeros((1, 32, 32, 3), np.uint8), target=0)


def test_files_that_are_no_exports_are_named(file, tmp_path):
    with pytest.raises(ModelError, match="There is no file"):
        OnnxClassifier(tmp_path / "none.onnx")
    content = file.read_bytes()
    for name, some in (("text", b"hello"), ("empty", b""), ("cut", content[: len(content) // 2])):
        (tmp_path / f"{name}.onnx").write_bytes(some)
        with pytest.raises(ModelError, match=rf"{name}\.onnx is damaged or no ONNX file; copy or export it again\.$"):
            OnnxClassifier(tmp_path / f"{name}.onnx")
    (tmp_path / "model.pt2").write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"model\.pt2 is a program for torch\.export\.load"):
        OnnxClassifier(tmp_path / "model.pt2")
    import onnx

    model = onnx.load(file)
    metadata = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps({**metadata, "schema": 99, "heedmap": "7.0"})
    onnx.save(model, tmp_path / "newer.onnx")
    with pytest.raises(ModelError, match=r"heedmap 7\.0, a newer one"):
        OnnxClassifier(tmp_path / "newer.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"was not written by `heedmap export`"):
        OnnxClassifier(tmp_path / "other.onnx")


# ---- maps of a target, other formats


@pytest.fixture(scope="module")
def explained(classifier: AttentionClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("explained") / "model.onnx"
    return export(classifier, target, ExportOptions(include=("grad_cam", "saliency")), images=noise(*SIZES)).path


@pytest.mark.slow
@pytest.mark.parametrize("target", [None, 1, [2, 0, 1]])
def test_grad_cam_and_saliency_in_the_file_are_those_of_explain(explained, classifier, target):
    read = OnnxClassifier(explained)
    pixels = np.stack([np.asarray(image) for image in noise(*[(32, 32)] * 3, seed=7)])
    found = read(pixels, target)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    for name, method in INCLUDES.items():
        classes = torch.tensor(target) if isinstance(target, list) else target
        expected = explain(classifier, images, method, target=classes).values.numpy()
        assert expected.max() > 1e-3
        assert np.abs(found["maps"][name] - expected).max() < 1e-5 * max(1, expected.max())
    assert read.maps[-2:] == ("grad_cam", "saliency")
    with pytest.raises(ModelError, match="target 3 is no class; they are numbered 0 to 2"):
        read(pixels, 3)


def test_grad_cam_of_a_layer_that_attention_reads_too_goes_both_ways():
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    classifier = stirred(attach(own, classes=CLASSES, image_size=32, taps="1"))
    traced, layer = with_gradients(NamedOutputs(classifier), 32, ("grad_cam",))
    assert layer.endswith("net.1")
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        found = traced(images, torch.tensor([-1, -1, -1]))["map_grad_cam"]
    expected = explain(classifier, images, "grad-cam").values
    assert expected.max() > 1e-3
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil", "padded"),
    [(2, 2, 0, True, False), (3, 2, 1, False, True), (3, 2, 1, True, False), (2, 3, 0, False, True)],
)
@pytest.mark.parametrize("side", [7, 8, 9, 10])
def test_the_gradient_of_average_pooling_is_that_of_autograd(kernel, stride, padding, ceil, padded, side):
    given = torch.rand(2, 3, side, side + 1, dtype=torch.double, requires_grad=True)
    pooled = F.avg_pool2d(given, kernel, stride, padding, ceil, padded)
    gradient = torch.rand_like(pooled)
    (expected,) = torch.autograd.grad(pooled, given, gradient)
    sizes = [kernel] * 2, [stride] * 2, [padding] * 2
    assert torch.allclose(avg_pool_backward(gradient, given, *sizes, ceil, padded, None), expected)


@pytest.mark.slow
def test_a_program_of_torch_predicts_alike_and_describes_itself(classifier, tmp_path):
    made = export(classifier, tmp_path / "model.pt2", ExportOptions(to="torch-export"), images=noise(*SIZES))
    extra = {"heedmap.json": ""}
    program = torch.export.load(made.path, extra_files=extra)
    (image,) = noise((40, 33))
    found = program.module()(torch.from_numpy(np.array(image))[None])
    assert list(found) == json.loads(extra["heedmap.json"])["outputs"]
    assert max(json.loads(extra["heedmap.json"])["parity"]["differences"].values()) < 1e-5


@pytest.mark.slow
def test_eight_bits_are_smaller_and_name_the_same_classes(classifier, file, tmp_path):
    made = export(classifier, tmp_path / "small.onnx", ExportOptions(int8=True), images=noise(*SIZES))
    assert made.path.stat().st_size < 0.4 * file.stat().st_size
    assert made.parity.agreement >= 0.85
    assert made.parity.differences["logits"] > 1e-5
    assert OnnxClassifier(made.path).metadata["int8"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"to": "onx"}, "to = 'onx'.*Did you mean 'onnx'"),
        ({"include": ("gradcam",)}, "include = 'gradcam'.*Did you mean 'grad_cam'"),
        ({"to": "torch-export", "int8": True}, "int8"),
    ],
)
def test_wrong_options_are_refused(words, message, classifier, tmp_path):
    with pytest.raises(OptionError, match=message):
        export(classifier, tmp_path / "model", ExportOptions(**words), images=noise((32, 32)))


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("folder", "onnx", r"folder/model\.onnx"),
        ("there.onnx", "onnx", r"there\.onnx.*--overwrite"),
        ("m.txt", "onnx", r"onnx ends in \.onnx; name \S+m\.onnx\.$"),
        ("m.onnx", "torch-export", r"torch-export ends in \.pt2; name \S+m\.pt2\.$"),
    ],
)
def test_a_wrong_target_file_is_refused_before_the_work(name, to, message, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["heedmap.exporters"], "_verified", lambda *_: pytest.fail("the work was begun"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.onnx").write_bytes(b"precious")
    with pytest.raises(HeedmapError, match=message):
        export(classifier, tmp_path / name, ExportOptions(to=to), images=noise((32, 32)))
    assert (tmp_path / "there.onnx").read_bytes() == b"precious"


# ---- the command


def test_the_command_writes_into_the_run_and_prints_the_parity(copied_run, capsys):
    main(["export", str(copied_run)])
    said = capsys.readouterr()
    assert "16 images in batches of 1, 3, 16: the same class for 100%;" in said.out
    assert "map_combined" in said.out
    stages = ("Reading the images", "Tracing", "Writing it as ONNX", "Comparing the file")
    assert [line.startswith(stage) for line, stage in zip(said.out.splitlines(), stages, strict=False)] == [True] * 4
    assert said.out.splitlines()[-1].startswith("Next: heedmap serve")
    assert said.err == ""
    assert OnnxClassifier(copied_run / "model.onnx").metadata["parity"]["agreement"] == 1.0
