"""Compute a map: check the request, run the method, check the result."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heedmap.attribution.registry import METHODS, Method
from heedmap.attribution.request import Attribution, Explanation, Request, Target
from heedmap.errors import ModelError, OptionError, nearest
from heedmap.models.classifier import AttentionClassifier
from heedmap.modules import evaluation_mode, fitted, unwrapped


def explain(
    model: nn.Module,
    images: Tensor,
    method: str = "grad-cam",
    target: Target = None,
    layer: str | None = None,
    settings: Mapping[str, Any] = {},
) -> Explanation:
    """Compute a map for each image and each target class.

    The model may be frozen, in bfloat16, compiled, or wrapped in DataParallel, and the call may stand inside
    ``torch.no_grad`` or ``torch.inference_mode``. Afterwards the model, the images and the random state are as they
    were; also after an exception.

    Args:
        model: any classifier from images to logits (B, K), or to an object with such ``.logits``. One of ours takes
            RGB in [0, 1]; for others the images must be normalised as the model expects.
        images: (B, C, H, W), floating point; brought to the model's device and precision.
        method: key of :data:`METHODS`.
        target: None for the predicted class, one class, one an image (B,), several an image (B, T), or ``"all"``.
        layer: name of the module to read, as in ``model.named_modules()``, or of a tap for ``attention``; None takes
            the last spatial one.
        settings: options of the method, see ``METHODS[method].settings``.

    Returns:
        See :class:`Explanation`; ``values`` (B, T, h, w) are raw.

    Raises:
        OptionError: an unknown method, setting or class; images of another shape, type, or with NaN.
        ModelError: a layer that does not exist or does not suit, or a model that this method cannot explain.
    """
    chosen = _method(method, layer, settings)
    if not isinstance(model, nn.Module):
        raise ModelError(f"explain takes a torch module, not a {type(model).__name__}.")
    bare = unwrapped(model)
    with evaluation_mode(bare, gradients=True, frozen=True, as_written=True):
        request = Request(bare, _checked(bare, images), target, layer)
        try:
            attribution = chosen.function(request, **settings)
        except RuntimeError as reason:
            _explain_wrong_shape(bare, request.images, reason)
            raise
        return _explanation(attribution, method)


def _method(name: str, layer: str | None, settings: Mapping[str, Any]) -> Method:
    if name not in METHODS:
        raise OptionError(f"No map method {name!r}; it can be {', '.join(METHODS)}.{nearest(str(name), METHODS)}")
    method = METHODS[name]
    for word in settings:
        if word not in method.settings:
            known = ", ".join(method.settings) or "none"
            raise OptionError(f"{name} has no setting {word!r}; it has {known}.{nearest(word, method.settings)}")
    if layer is not None and not method.needs_layer:
        raise OptionError(f"{name} reads no layer, so {layer!r} would change nothing; leave it out.")
    return method


def _checked(model: nn.Module, images: Tensor) -> Tensor:
    if not isinstance(images, Tensor) or images.dim() != 4 or 0 in images.shape:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise OptionError(f"images must be a tensor (B, C, H, W) with at least one image, not {shape}.")
    if not images.is_floating_point():
        raise OptionError(f"images hold {images.dtype}; give floating point, such as images.float() / 255.")
    # NaN and infinity are among the extremes; isfinite makes three tensors of this size, up to 6 % of a forward pass.
    if not torch.stack(torch.aminmax(images.detach())).isfinite().all():
        raise OptionError("images hold NaN or infinity; mend them first.")
    if isinstance(model, AttentionClassifier):
        model.backbone.check_size(*images.shape[-2:])
    return fitted(model, images)


def _explain_wrong_shape(model: nn.Module, images: Tensor, reason: RuntimeError) -> None:
    """Raise a one-line error about the images' shape where torch names a shape and the plain model fails too."""
    message = str(reason).partition("\n")[0].rstrip(". ")
    if not any(word in message for word in ("channels", "shape", "size")):
        return
    try:
        with torch.no_grad():
            model(images[:1])
    except RuntimeError:
        is_last = images.shape[-1] in (1, 3)
        hint = " Channels seem to come last: take images.permute(0, 3, 1, 2)." if is_last else ""
        raise OptionError(f"The model does not take images of {tuple(images.shape)}: {message}.{hint}") from reason


def _explanation(attribution: Attribution, method: str) -> Explanation:
    values = attribution.values.detach().to(torch.float32)
    if not values.isfinite().all():
        raise ModelError(f"The {method} map holds NaN or infinity; look at the model's weights and precision.")
    logits = attribution.logits.detach().to(torch.float32)
    return Explanation(values, attribution.targets, logits, method, attribution.layer, attribution.signed)
