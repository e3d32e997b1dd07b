"""The registry of map methods."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from heedmap.attribution import attention as learned
from heedmap.attribution import cam as cams
from heedmap.attribution import captum as bridge
from heedmap.attribution import gradients as pixels
from heedmap.attribution import perturbation
from heedmap.attribution import transformer as transformers
from heedmap.attribution.request import Attribution
from heedmap.errors import OptionError, nearest


@dataclass(frozen=True)
class Method:
    """A map method.

    Attributes:
        function: takes a :class:`heedmap.attribution.request.Request` and the settings as keywords.
        sentence: what the map shows.
        source: where it was published.
        needs_layer: whether it reads a layer, which then can be named.
        signed: whether negative values mean something, with the settings as they are by default.
        per_class: whether the map depends on the target class.
        has_offset: whether a map without information is far above zero; maps are drawn from their smallest value.
        is_peaked: whether a few pixels exceed all others by far; maps are drawn up to their 99th percentile.
        cost: in forward (F) and backward (B) passes for one batch and one target.
        warning: what a reader of its maps has to know.
    """

    function: Callable[..., Attribution]
    sentence: str
    source: str
    needs_layer: bool = False
    signed: bool = False
    per_class: bool = True
    has_offset: bool = False
    is_peaked: bool = False
    cost: str = "1 F"
    warning: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Name -> default of the options that :func:`heedmap.attribution.explain` takes as ``settings``."""
        parameters = inspect.signature(self.function).parameters.values()
        return {one.name: one.default for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


_HEAD = "1 F + 1 B behind the layer; 1 F where the head is a mean and a linear layer, all classes at once"

METHODS: dict[str, Method] = {
    "attention": Method(
        learned.attention,
        "the weights that the network learned and used; the same map for every class",
        "Jetley et al. 2018",
        needs_layer=True,
        per_class=False,
    ),
    "saliency": Method(
        pixels.saliency,
        "how much the score reacts to a small change of each pixel",
        "Simonyan et al. 2014",
        is_peaked=True,
        cost="1 F + 1 B",
    ),
    "smoothgrad": Method(
        pixels.smoothgrad,
        "saliency, averaged over noisy copies of the image",
        "Smilkov et al. 2017",
        is_peaked=True,
        cost="count x (1 F + 1 B)",
    ),
    "integrated-gradients": Method(
        pixels.integrated_gradients,
        "pixels times their gradient, averaged on the way from an even image; sums to the change of the score",
        "Sundararajan et al. 2017",
        signed=True,
        is_peaked=True,
        cost="steps x (1 F + 1 B)",
    ),
    "input-x-gradient": Method(
        pixels.input_x_gradient,
        "pixels times their gradient",
        "Shrikumar et al. 2016",
        signed=True,
        is_peaked=True,
        cost="1 F + 1 B",
    ),
    "guided-backprop": Method(
        pixels.guided_backprop,
        "saliency that lets only positive gradients pass each ReLU",
        "Springenberg et al. 2015",
        is_peaked=True,
        cost="1 F + 1 B",
        warning="guided-backprop draws the image's edges more than what the network learned: it hardly changes when "
        "the weights are randomized (Adebayo et al. 2018).",
    ),
    "cam": Method(
        cams.cam,
        "the last features, weighed by the linear layer of the class",
        "Zhou et al. 2016",
        needs_layer=True,
        signed=True,
    ),
    "grad-cam": Method(
        cams.grad_cam,
        "a layer's features, each channel weighed by its mean gradient",
        "Selvaraju et al. 2017",
        needs_layer=True,
        cost=_HEAD,
    ),
    "grad-cam++": Method(
        cams.grad_cam_plus_plus,
        "as grad-cam, with the positive gradients weighed by their share",
        "Chattopadhay et al. 2018",
        needs_layer=True,
        cost=_HEAD,
    ),
    "hires-cam": Method(
        cams.hires_cam,
        "a layer's features times their gradient, place by place",
        "Draelos and Carin 2020",
        needs_layer=True,
        cost=_HEAD,
    ),
    "layer-cam": Method(
        cams.layer_cam,
        "a layer's features times their positive gradient, place by place",
        "Jiang et al. 2021",
        needs_layer=True,
        cost=_HEAD,
    ),
    "score-cam": Method(
        perturbation.score_cam,
        "a layer's features, each channel weighed by the score of the image seen through it",
        "Wang et al. 2020",
        needs_layer=True,
        cost="1 F + 1 F a channel",
    ),
    "occlusion": Method(
        perturbation.occlusion,
        "how far the score falls when a square around the pixel is covered",
        "Zeiler and Fergus 2014",
        signed=True,
        cost="1 F + 1 F a square",
    ),
    "rise": Method(
        perturbation.rise,
        "the mean of random masks, weighed by the score of the image under them",
        "Petsiuk et al. 2018",
        has_offset=True,
        cost="count x 1 F",
    ),
    "attention-rollout": Method(
        transformers.attention_rollout,
        "a ViT's attention, multiplied through its layers; the same map for every class",
        "Abnar and Zuidema 2020",
        per_class=False,
    ),
    "relevance": Method(
        transformers.relevance,
        "a ViT's attention weighed by its gradient, added up through its layers",
        "Chefer et al. 2021",
        cost="1 F + 1 B",
    ),
    "deep-lift": Method(
        bridge.deep_lift,
        "difference to an even image, handed back layer by layer (captum)",
        "Shrikumar et al. 2017",
        signed=True,
        is_peaked=True,
        cost="2 F + 1 B an image",
    ),
    "gradient-shap": Method(
        bridge.gradient_shap,
        "gradients averaged over random points on the way from an even image (captum)",
        "Lundberg and Lee 2017",
        signed=True,
        is_peaked=True,
        cost="count x (1 F + 1 B) an image",
    ),
    "kernel-shap": Method(
        bridge.kernel_shap,
        "Shapley values of the cells of a grid, estimated from covered images (captum)",
        "Lundberg and Lee 2017",
        signed=True,
        cost="count x 1 F an image",
    ),
}


def method_of(words: str) -> tuple[str, dict[str, Any]]:
    """Read a method and its settings from one word, as on the command line.

    Args:
        words: a key of :data:`METHODS`, and perhaps settings: ``rise:count=500+cells=5``.

    Returns:
        The key, and what :func:`heedmap.attribution.explain` takes as ``settings``.

    Raises:
        OptionError: no such method or setting, or a value of another kind than the setting's.
    """
    name, colon, pairs = words.partition(":")
    if name not in METHODS:
        if "=" in name:
            raise OptionError(f"{name!r} is no map method; settings of one are joined by +: rise:count=500+cells=5.")
        raise OptionError(f"No map method {name!r}; it can be {', '.join(METHODS)}.{nearest(name, METHODS)}")
    defaults, settings = METHODS[name].settings, dict[str, Any]()
    for pair in pairs.split("+") if colon else ():
        key, sign, text = pair.partition("=")
        if key in settings:
            raise OptionError(f"{words} gives {key} twice; leave one of them out.")
        if key not in defaults:
            known = ", ".join(defaults) or "none"
            raise OptionError(f"{name} has no setting {key!r}; it has {known}.{nearest(key, defaults)}")
        if defaults[key] is None and text == "auto":
            continue
        kind = int if defaults[key] is None else type(defaults[key])
        value = yaml.safe_load(text) if sign else None
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise OptionError(f"{name}:{pair} cannot be read: {key} is like {key}={_shown(defaults[key])}.")
        settings[key] = value
    return name, settings


def _shown(default: Any) -> str:
    return "8" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
