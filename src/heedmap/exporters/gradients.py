"""Grad-CAM and saliency as forward operations, so that a runtime that knows no gradients can compute them.

The backward pass is traced once, by ``torch.func.vjp`` under ``make_fx``, into the same graph as the forward pass; the
few backward operations that ONNX lacks are replaced by forward ones. ``make_fx`` and its table are half private parts
of torch: the comparison at the end of each export guards them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from heedmap.attribution.layers import last_spatial, named_layer
from heedmap.exporters.formats import quiet
from heedmap.exporters.wrapper import NamedOutputs
from heedmap.inference.onnx import MAP

aten = torch.ops.aten
INCLUDES = {"grad_cam": "grad-cam", "saliency": "saliency"}
"""What can be included, and what :func:`heedmap.attribution.explain` calls it."""


def with_gradients(module: NamedOutputs, size: int, include: tuple[str, ...]) -> tuple[torch.fx.GraphModule, str]:
    """Trace the classifier (on the CPU, in eval mode) together with the maps ``include`` of a target class.

    Return a module from images (B, 3, S, S) and targets (B,), -1 for the predicted class, to the named outputs of
    ``module`` with ``map_grad_cam`` (B, 1, h, w) and ``map_saliency`` (B, 1, S, S); and the layer of the former.
    ModelError where the network has no layer that Grad-CAM can read.
    """
    example = torch.rand(2, 3, size, size), torch.tensor([-1, 0])
    layer = last_spatial(module.classifier, example[0])
    _, part = named_layer(module.classifier, layer)
    shapes: list[tuple[int, ...]] = []
    handle = part.register_forward_hook(lambda _part, _given, output: shapes.append(tuple(output.shape[1:])))
    try:
        with torch.no_grad():
            module(example[0])
    finally:
        handle.remove()

    def predict(images: Tensor, target: Tensor) -> dict[str, Tensor]:
        caught: list[Tensor] = []

        def forward(shift: Tensor, at_pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            def shifted(_part: nn.Module, _given: Any, output: Tensor) -> Tensor:
                caught.append(output)
                return output + shift

            # First of all hooks: where the layer is a tap too, the attention must read the shifted output.
            handle = part.register_forward_hook(shifted, prepend=True)
            try:
                outputs = module(at_pixels)
            finally:
                handle.remove()
            return outputs["logits"], {**outputs, "layer": caught[-1]}

        # The gradient with respect to a shift of the layer's output is that with respect to the output itself.
        shift = images.new_zeros(images.shape[0], *shapes[-1])
        logits, pull, outputs = torch.func.vjp(forward, shift, images, has_aux=True)  # type: ignore[misc]  # three with aux
        classes = torch.where(target < 0, logits.argmax(1), target)
        hot = (torch.arange(logits.shape[1]) == classes[:, None]).to(logits.dtype)
        at_layer, at_pixels = pull(hot)
        features = outputs.pop("layer")
        cam = (features * at_layer.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
        maps = {"grad_cam": cam, "saliency": at_pixels.abs().amax(1, keepdim=True)}
        return {**outputs, **{f"{MAP}{name}": maps[name] for name in include}}

    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with quiet():
            trace = make_fx(predict, _table(), tracing_mode="symbolic", _allow_non_fake_inputs=True)
            return trace(*example), layer
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _table() -> dict[Any, Callable[..., Any]]:
    """Return replacements of the backward operations that ONNX lacks."""
    known = [
        *(aten.native_batch_norm_backward, aten._native_batch_norm_legit_no_training, aten.native_layer_norm_backward),
        *(aten.threshold_backward, aten.sigmoid_backward, aten.tanh_backward, aten._softmax_backward_data),
        *(aten.gelu_backward, aten.silu_backward, aten.hardswish_backward, aten.hardsigmoid_backward),
    ]
    return {
        **get_decompositions(known),
        aten.convolution_backward.default: _convolution_backward,
        aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
        aten.avg_pool2d_backward.default: avg_pool_backward,
    }


def _convolution_backward(
    gradient: Tensor, given: Tensor, weight: Tensor, *settings: Any
) -> tuple[Tensor | None, None, None]:
    """Return the gradient of the input alone, a transposed convolution; parameters are constants here."""
    _bias, stride, padding, dilation, transposed, _output_padding, groups, _mask = settings
    if transposed:
        return aten.convolution(gradient, weight, None, stride, padding, dilation, False, [0, 0], groups), None, None
    rest = [
        given.shape[2 + axis]
        - ((gradient.shape[2 + axis] - 1) * stride[axis] - 2 * padding[axis] + dilation[axis] * (kernel - 1) + 1)
        for axis, kernel in enumerate(weight.shape[2:])
    ]
    return aten.convolution(gradient, weight, None, stride, padding, dilation, True, rest, groups), None, None


def _max_pool_backward(gradient: Tensor, given: Tensor, *more: Any) -> Tensor:
    """Return each gradient at the position that the maximum came from."""
    batch, channels, height, width = given.shape
    flat = gradient.new_zeros(batch, channels, height * width)
    return flat.scatter_add(2, more[-1].flatten(2), gradient.flatten(2)).view(batch, channels, height, width)


def avg_pool_backward(gradient: Tensor, given: Tensor, *settings: Any) -> Tensor:
    """Return each gradient divided evenly among its window: a transposed convolution with ones.

    The settings are kernel, stride, padding, ceil_mode, count_include_pad and divisor, as aten passes them.
    """
    kernel, stride, padding, _ceil_mode, count_include_pad, divisor = settings
    shared, channels = gradient, given.shape[1]
    for axis in (0, 1):
        side, edge = given.shape[2 + axis], padding[axis]
        first = torch.arange(gradient.shape[2 + axis]) * stride[axis] - edge
        last = (first + kernel[axis]).clamp_max(side + edge)
        count = last - first if count_include_pad else last.clamp_max(side) - first.clamp_min(0)
        if divisor is None:
            counts = count.to(gradient.dtype)
            shared = shared / (counts if axis else counts[:, None])
    if divisor is not None:
        shared = shared / divisor
    ones = gradient.new_ones(channels, 1, *kernel)
    spread = aten.convolution(shared, ones, None, stride, [0, 0], [1, 1], True, [0, 0], channels)
    short = [max(0, padding[axis] + given.shape[2 + axis] - spread.shape[2 + axis]) for axis in (0, 1)]
    spread = torch.nn.functional.pad(spread, (0, short[1], 0, short[0]))  # positions that no window reaches
    for axis in (2, 3):
        spread = spread.narrow(axis, padding[axis - 2], given.shape[axis])
    return spread
