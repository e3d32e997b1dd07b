"""The registry of map methods, and :func:`explain`, which runs one: check the request, run, check the result."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from heedmap.attribution.attention import attention, attention_rollout, relevance
from heedmap.attribution.cam import cam, grad_cam, grad_cam_plus_plus, hires_cam, layer_cam
from heedmap.attribution.captum import deep_lift, gradient_shap, kernel_shap
from heedmap.attribution.gradients import guided_backprop, input_x_gradient, integrated_gradients, saliency, smoothgrad
from heedmap.attribution.perturbation import occlusion, rise, score_cam
from heedmap.attribution.request import Attribution, Explanation, Request, Target
from heedmap.errors import ModelError, OptionError, nearest
from heedmap.models.classifier import AttentionClassifier
from heedmap.modules import evaluation_mode, fitted, unwrapped


@dataclass(frozen=True)
class Method:
    """A map method.

    Attributes:
        function: takes a :class:`heedmap.attribution.request.Request` and the settings as keywords.
        sentence: what the map shows.
        source: where it was published.
        cost: in forward (F) and backward (B) passes for one batch and one target.
        needs_layer: whether it reads a layer, which then can be named.
        signed: whether negative values mean something, with the settings as they are by default.
        per_class: whether the map depends on the target class.
        has_offset: whether a map without information is far above zero; maps are drawn from their smallest value.
        is_peaked: whether a few pixels exceed all others by far; maps are drawn up to their 99th percentile.
        warning: what a reader of its maps has to know.
    """

    function: Callable[..., Attribution]
    sentence: str
    source: str
    cost: str = "1 F"
    needs_layer: bool = False
    signed: bool = False
    per_class: bool = True
    has_offset: bool = False
    is_peaked: bool = False
    warning: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Name -> default of the options that :func:`heedmap.attribution.explain` takes as ``settings``."""
        parameters = inspect.signature(self.function).parameters.values()
        return {option.name: option.default for option in parameters if option.kind is inspect.Parameter.KEYWORD_ONLY}


_pixel = partial(Method, cost="1 F + 1 B", is_peaked=True)
_layer = partial(
    Method,
    cost="1 F + 1 B behind the layer; 1 F where the head is a mean and a linear layer, all classes at once",
    needs_layer=True,
)

_SAME = "the same map for every class"

METHODS: dict[str, Method] = {
    "attention": _layer(
        attention,
        "the weights that the network learned and used; " + _SAME,
        "Jetley et al. 2018",
        cost="1 F",
        per_class=False,
    ),
    "saliency": _pixel(saliency, "how much the score reacts to a small change of each pixel", "Simonyan et al. 2014"),
    "smoothgrad": _pixel(
        smoothgrad,
        "saliency, averaged over noisy copies of the image",
        "Smilkov et al. 2017",
        cost="count x (1 F + 1 B)",
    ),
    "integrated-gradients": _pixel(
        integrated_gradients,
        "pixels times their gradient, averaged on the way from a uniform image; sums to the change of the score",
        "Sundararajan et al. 2017",
        cost="steps x (1 F + 1 B)",
        signed=True,
    ),
    "input-x-gradient": _pixel(input_x_gradient, "pixels times their gradient", "Shrikumar et al. 2016", signed=True),
    "guided-backprop": _pixel(
        guided_backprop,
        "saliency that lets only positive gradients pass each ReLU",
        "Springenberg et al. 2015",
        warning="guided-backprop draws the image's edges more than what the network learned: it hardly changes when "
        "the weights are randomized (Adebayo et al. 2018).",
    ),
    "cam": _layer(
        cam, "the last features weighted by the linear layer of the class", "Zhou et al. 2016", cost="1 F", signed=True
    ),
    "grad-cam": _layer(
        grad_cam, "a layer's features, each channel weighted by its mean gradient", "Selvaraju et al. 2017"
    ),
    "grad-cam++": _layer(
        grad_cam_plus_plus,
        "as grad-cam, with the positive gradients weighted by their share",
        "Chattopadhay et al. 2018",
    ),
    "hires-cam": _layer(hires_cam, "a layer's features times their gradient, place by place", "Draelos and Carin 2020"),
    "layer-cam": _layer(
        layer_cam, "a layer's features times their positive gradient, place by place", "Jiang et al. 2021"
    ),
    "score-cam": _layer(
        score_cam,
        "a layer's features, each channel weighted by the score of the image seen through it",
        "Wang et al. 2020",
        cost="1 F + 1 F a channel",
    ),
    "occlusion": Method(
        occlusion,
        "how far the score falls when a square around the pixel is covered",
        "Zeiler and Fergus 2014",
        cost="1 F + 1 F a square",
        signed=True,
    ),
    "rise": Method(
        rise,
        "the mean of random masks weighted by the score of the image under them",
        "Petsiuk et al. 2018",
        cost="count x 1 F",
        has_offset=True,
    ),
    "attention-rollout": Method(
        attention_rollout,
        "a ViT's attention, multiplied through its layers; " + _SAME,
        "Abnar and Zuidema 2020",
        per_class=False,
    ),
    "relevance": Method(
        relevance,
        "a ViT's attention weighted by its gradient, added up through its layers",
        "Chefer et al. 2021",
        cost="1 F + 1 B",
    ),
    "deep-lift": _pixel(
        deep_lift,
        "difference to a uniform image, propagated back layer by layer (captum)",
        "Shrikumar et al. 2017",
        cost="2 F + 1 B an image",
        signed=True,
    ),
    "gradient-shap": _pixel(
        gradient_shap,
        "gradients averaged over random points on the way from a uniform image (captum)",
        "Lundberg and Lee 2017",
        cost="count x (1 F + 1 B) an image",
        signed=True,
    ),
    "kernel-shap": Method(
        kernel_shap,
        "Shapley values of the cells of a grid, estimated from covered images (captum)",
        "Lundberg and Lee 2017",
        cost="count x 1 F an image",
        signed=True,
    ),
}


def checked_method(name: str, settings: Mapping[str, Any] = {}) -> Method:
    """Return the method of that name; raise an :class:`OptionError` where it, or one of the settings, is unknown."""
    if name not in METHODS:
        raise OptionError(f"No map method {name!r}; it can be {', '.join(METHODS)}.{nearest(str(name), METHODS)}")
    known = METHODS[name].settings
    for word in settings.keys() - known.keys():
        names = ", ".join(known) or "none"
        raise OptionError(f"{name} has no setting {word!r}; it has {names}.{nearest(word, known)}")
    return METHODS[name]


def method_of(words: str) -> tuple[str, dict[str, Any]]:
    """Read a key of :data:`METHODS` and its settings from one word, such as ``rise:count=500+cells=5``.

    Raises:
        OptionError: no such method or setting, or a value of another kind than the setting's.
    """
    name, colon, pairs = words.partition(":")
    if name not in METHODS and "=" in name:
        raise OptionError(f"{name!r} is no map method; settings of one are joined by +: rise:count=500+cells=5.")
    defaults, settings = checked_method(name).settings, dict[str, Any]()
    for pair in pairs.split("+") if colon else ():
        key, sign, text = pair.partition("=")
        if key in settings:
            raise OptionError(f"{words} gives {key} twice; leave one of them out.")
        checked_method(name, {key: text})
        default = defaults[key]
        if default is None and text == "auto":
            continue
        kind = int if default is None else type(default)
        value = yaml.safe_load(text) if sign else None
        value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind:
            example = 8 if default is None else str(default).lower() if kind is bool else default
            raise OptionError(f"{name}:{pair} cannot be read: {key} is like {key}={example}.")
        settings[key] = value
    return name, settings


def explain(
    model: nn.Module,
    images: Tensor,
    method: str = "grad-cam",
    target: Target = None,
    layer: str | None = None,
    settings: Mapping[str, Any] = {},
) -> Explanation:
    """Compute maps (B, T, h, w) for each image and each target class, raw; see :class:`Explanation`.

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

    Raises:
        OptionError: an unknown method, setting or class; images of another shape, type, or with NaN.
        ModelError: a layer that does not exist or does not suit, or a model that this method cannot explain.
    """
    chosen = checked_method(method, settings)
    if layer is not None and not chosen.needs_layer:
        raise OptionError(f"{method} reads no layer, so {layer!r} would change nothing; leave it out.")
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
    values = attribution.values.detach().to(torch.float32)
    if not values.isfinite().all():
        raise ModelError(f"The {method} map holds NaN or infinity; look at the model's weights and precision.")
    logits = attribution.logits.detach().to(torch.float32)
    return Explanation(values, attribution.targets, logits, method, attribution.layer, attribution.signed)


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
