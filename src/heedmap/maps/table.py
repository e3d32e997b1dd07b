"""The table of map methods: one line each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from heedmap.maps import cams, learned, pixels
from heedmap.maps.question import Found


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        function: takes a :class:`heedmap.maps.question.Question` and the settings as keywords.
        sentence: what the map shows.
        source: where it was published.
        needs_layer: whether it reads a layer, which then can be named.
        signed: whether negative values mean something, with the settings as they are by default.
        cost: in forward (F) and backward (B) passes for one batch and one target.
        warning: what a reader of its maps has to know.
    """

    function: Callable[..., Found]
    sentence: str
    source: str
    needs_layer: bool = False
    signed: bool = False
    cost: str = "1 F"
    warning: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Name -> default of what :func:`heedmap.maps.explain` takes as ``settings``."""
        parameters = inspect.signature(self.function).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}


_HEAD = "1 F + 1 B behind the layer; 1 F where the head is a mean and a linear layer, all classes at once"

METHODS: dict[str, Method] = {
    "attention": Method(
        learned.attention,
        "the weights that the network learned and used; the same map for every class",
        "Jetley et al. 2018",
        needs_layer=True,
    ),
    "saliency": Method(
        pixels.saliency,
        "how much the score reacts to a small change of each pixel",
        "Simonyan et al. 2014",
        cost="1 F + 1 B",
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
}
