"""What a map costs over the plain forward pass: heedmap beside captum, torch-cam and pytorch-grad-cam.

ResNet-18 with random weights, eight images of 224 px, one target each, the last features. Every contender does its
own forward pass; libraries that are not installed are left out. pytorch-grad-cam also enlarges its maps and divides
them by their maximum, which cannot be switched off. On a machine that others use too, run one thread
(``OMP_NUM_THREADS=1``) and take ``clock="processor"``: the seconds that this process got.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import alternate, ceiling, keep, spread
from heedmap.attribution import explain

BATCH, SIDE = 8, 224


def main(rounds: int = 9, device: str = "cpu", clock: str = "wall", only: Sequence[str] = ()) -> dict[str, Any]:
    """Measure, keep and return the figures; the ratios are taken round by round.

    Args:
        rounds: how often each contender is timed; they take turns.
        device: where.
        clock: ``wall``, or ``processor`` for the seconds that this process got on the CPU.
        only: contenders whose name starts with one of these words; none takes all.
    """
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None).eval().to(device)
    images = torch.rand(BATCH, 3, SIDE, SIDE, device=device)
    targets = torch.arange(BATCH, device=device)
    contenders = _contenders(net, images, targets)
    timed = {
        name: work for name, work in contenders.items() if name.startswith(("plain forward", *(only or contenders)))
    }
    seconds = alternate(timed, rounds, device) if clock == "wall" else _on_processor(timed, rounds)
    plain = seconds["plain forward"]
    ratios = {
        name: spread([value / base for value, base in zip(values, plain, strict=True)])
        for name, values in seconds.items()
    }
    record = {
        "clock": clock,
        "ceiling": ceiling(device),
        "plain forward, seconds": statistics.median(plain),
        "times the plain forward": ratios,
        "largest difference of Grad-CAM": _differences(contenders),
    }
    keep("map-methods", record)
    return record


def _on_processor(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """As :func:`benchmarks.measuring.alternate`, by the processor's clock."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            began = time.process_time()
            work()
            if number:  # the first round is not counted
                seconds[name].append(time.process_time() - began)
    return seconds


def _contenders(net: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Callable[[], Any]]:
    def forward() -> None:
        with torch.no_grad():
            net(images)

    contenders: dict[str, Callable[[], Any]] = {
        "plain forward": forward,
        "plain forward again": forward,
        "heedmap grad-cam": lambda: explain(net, images, "grad-cam", targets).values[:, 0],
        "heedmap grad-cam, all 1000 classes": lambda: explain(net, images, "grad-cam", "all").values,
        "heedmap grad-cam++": lambda: explain(net, images, "grad-cam++", targets).values,
        "heedmap layer-cam": lambda: explain(net, images, "layer-cam", targets).values,
        "heedmap saliency": lambda: explain(net, images, "saliency", targets).values,
    }
    for add in (_captum, _torchcam, _pytorch_grad_cam):
        with contextlib.suppress(ImportError):
            contenders |= add(net, images, targets)
    return contenders


def _captum(net: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Callable[[], Any]]:
    from captum.attr import LayerGradCam, Saliency

    def saliency() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Tensor = Saliency(net).attribute(images.clone(), targets)
        return found.amax(1)

    return {
        "captum grad-cam": lambda: LayerGradCam(net, net.layer4).attribute(images, targets)[:, 0].relu().detach(),
        "captum saliency": saliency,
    }


def _torchcam(net: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Callable[[], Any]]:
    from torchcam.methods import GradCAM

    def grad_cam() -> Tensor:
        with GradCAM(net, "layer4") as extractor:
            logits = net(images)
            found: Tensor = extractor(targets.tolist(), logits, normalized=False)[0]
        return found.detach()

    return {"torch-cam grad-cam": grad_cam}


def _pytorch_grad_cam(net: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Callable[[], Any]]:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    asked = [ClassifierOutputTarget(target) for target in targets.tolist()]

    def grad_cam() -> Any:
        with GradCAM(model=net, target_layers=[net.layer4]) as extractor:
            return extractor(input_tensor=images, targets=asked)

    return {"pytorch-grad-cam grad-cam": grad_cam}


def _differences(contenders: dict[str, Callable[[], Any]]) -> dict[str, float]:
    ours = contenders["heedmap grad-cam"]()
    others = [name for name in ("captum grad-cam", "torch-cam grad-cam") if name in contenders]
    return {name: float((contenders[name]() - ours).abs().max()) for name in others}
