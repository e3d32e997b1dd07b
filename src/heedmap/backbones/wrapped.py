"""Any network as a backbone: a name from timm or torchvision, or a module of your own.

Forward hooks on the tapped submodules catch the features, or replace them where a gate sits inside. Tracing with
torch.fx bakes the train/eval branch and the control flow of one run into the graph and fails on networks with dynamic
control flow; rebuilding the network changes its state dict, so that its weights no longer load. The hooks are
registered once, stay in the network under DistributedDataParallel, ``copy.deepcopy`` and ``torch.export``, and do
nothing except during a forward pass of the backbone that owns them; what they caught is forgotten at its end, also when
it raises.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heedmap.backbones.base import IMAGENET, NOTHING, Backbone, Inside, Normalization, Trunk
from heedmap.backbones.inspection import choose_taps, survey
from heedmap.backbones.registry import find_model, load_weights, make_network, pretrained_settings
from heedmap.errors import ModelError, nearest
from heedmap.modules import dummy_image, evaluation_mode


class _Catch:
    """What one forward pass has to catch and to change, and has caught. All are empty outside of it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.requested: frozenset[str] = frozenset()
        self.inside: Inside = NOTHING
        self.caught: dict[str, Tensor] = {}


@dataclass(eq=False)
class _HookOutput:
    """The hook on one tapped module.

    An object and not a function: copy.deepcopy copies functions by reference, and the copy of the network (the
    averaged weights are one) would then write into the original's catch. An object is copied together with its
    catch, once for all who share it.
    """

    name: str
    catch: _Catch

    def __call__(self, _module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        changed = None
        if self.name in self.catch.inside and _is_spatial(output):
            output = changed = self.catch.inside[self.name](output)
        if self.name in self.catch.requested:
            self.catch.caught[self.name] = output
        return changed


class WrappedBackbone(Backbone):
    """A network as a backbone.

    ``net`` is the network itself, so the state dict has its keys behind the one prefix ``net.``. It is taken over,
    not copied: without ``keep_head`` its classifier is replaced by an identity; pass ``copy.deepcopy(net)`` to keep
    yours whole. Parameters that reach neither the taps, nor the query, nor a kept head are frozen, as
    DistributedDataParallel demands.

    A tap sees the tensor that the module returned, as the rest of the network sees it: where the next step works in
    place (an in-place ReLU after a tapped normalisation), after that step. The whole network always runs; layers behind
    the last tap are not skipped when no query is needed.

    Attributes:
        net, survey: the network, and what probing it has shown.
        dropped: names of the submodules that were removed (relative to ``net``).
        logit_channels: K of the kept head, or None without one.
        left_out: keys of the weights file that belonged to what was dropped; filled by :func:`build_wrapped`.
    """

    logit_channels: int | None = None
    left_out: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __init__(
        self,
        module: nn.Module,
        taps: Sequence[str] | None = None,
        *,
        keep_head: bool,
        normalization: Normalization = IMAGENET,
        name: str | None = None,
        probe_size: int | None = None,
        image_size: int | None = None,
    ) -> None:
        """Probe the network and register the hooks.

        Args:
            module: any network that takes (B, 3, H, W) and, with ``keep_head``, returns (B, K) logits or an object
                with such ``.logits``.
            taps: names of submodules to tap; None chooses by :func:`~heedmap.backbones.inspection.choose_taps`.
            keep_head: whether :attr:`Trunk.logits` is the network's own output.
            normalization, name: that the network was trained with; how messages call it, None by its class.
            probe_size, image_size: as in :func:`~heedmap.backbones.inspection.survey`; taps are chosen for the latter.

        Raises:
            ModelError: the network does not run, has nothing to tap or no logits to keep; a tap does not exist.
        """
        super().__init__()
        self.name = name or type(module).__name__
        self.normalization, self.net, self.keep_head = normalization, module, keep_head
        self.survey = survey(module, self.name, probe_size, image_size=image_size)
        self.fixed_size, self.least_size = self.survey.fixed_size, self.survey.least_size
        self.stages = tuple(module.stage for module in self.survey.modules)
        self.query_channels = self.stages[-1].channels
        if keep_head:
            with evaluation_mode(module):
                self.logit_channels = self._logits(module(dummy_image(module, self.survey.size))).shape[1]
        if taps is not None:
            self.check_taps(taps)
        elif self.survey.modules[-1].depth < 0.5:  # of a ViT or Swin only the patch embedding, blind to what is learned
            raise ModelError(
                f"After {self.stages[-1].name!r} {self.name} keeps its features as tokens or (B, H, W, C), "
                "which cannot be tapped; use a CNN, or name the taps to tap it there all the same."
            )
        self.default_taps = self.taps_for(image_size or self.survey.size) if taps is None else tuple(taps)
        self._catch = _Catch()
        self._hooked: frozenset[str] = frozenset()
        self._hook((*self.default_taps, self.stages[-1].name))
        self._drop_unneeded()

    def forward(self, images: Tensor, taps: tuple[str, ...], need_query: bool, inside: Inside = NOTHING) -> Trunk:
        """See :meth:`Backbone.forward`; a ModelError where a tapped or gated module did not return (B, C, H, W)."""
        last = self.stages[-1].name
        requested = (*taps, *inside, *([last] if need_query else []))
        if not self._hooked.issuperset(requested):
            self.check_taps(tuple(dict.fromkeys(requested)))  # the query's stage may be a tap as well
            self._hook(requested)
        try:
            self._catch.requested, self._catch.inside = frozenset(requested), inside
            output = self.net(images)
            caught = self._catch.caught
        finally:
            self._catch.clear()
        for name in requested:
            if not _is_spatial(caught.get(name)):
                what = "returned no (B, C, H, W)" if name in caught else "did not run in this pass"
                raise ModelError(f"Module {name!r} of {self.name} {what}; tap another one.")
        query = caught[last].mean(dim=(2, 3)) if need_query else None
        return Trunk({tap: caught[tap] for tap in taps}, query, self._logits(output) if self.keep_head else None)

    def is_read(self, stage: str, taps: tuple[str, ...]) -> bool:
        """See :meth:`Backbone.is_read`; a kept head reads all of the network."""
        return self.keep_head or super().is_read(stage, taps)

    def query_parameters(self) -> list[nn.Parameter]:
        """Parameters that the query needs and neither the default taps nor a kept head; found by a backward pass."""
        own = {id(weight) for weight in self._reached(self.default_taps, need_query=False)}
        return [weight for weight in self._reached((), need_query=True) if id(weight) not in own]

    def unread_parameters(self, taps: tuple[str, ...]) -> list[nn.Parameter]:
        """See :meth:`Backbone.unread_parameters`; found by a backward pass from the taps and a kept head."""
        own = {id(weight) for weight in self._reached(taps, need_query=False)}
        return [weight for weight in self.net.parameters() if id(weight) not in own]

    def taps_for(self, image_size: int) -> tuple[str, ...]:
        """Return taps by :func:`choose_taps` for such images; raise a ModelError where no grid has 4 x 4 positions."""
        if taps := choose_taps(self.survey, image_size):
            return taps
        raise ModelError(
            f"At {image_size} pixels no stage of {self.name} has 4 x 4 positions left; "
            "set a larger image size, or name the taps."
        )

    def grid_side(self, tap: str, image_size: int) -> int:
        """See :meth:`Backbone.grid_side`; found by a forward pass, since borders make it differ from the stride."""
        with evaluation_mode(self.net):
            return self(dummy_image(self.net, image_size), (tap,), need_query=False).features[tap].shape[2]

    def check_taps(self, taps: Sequence[str]) -> None:
        """As :meth:`Backbone.check_taps`; the message lists the outermost names, for there may be hundreds."""
        known = [stage.name for stage in self.stages]
        unknown = next((tap for tap in taps if tap not in known), None)
        if unknown is None:
            return super().check_taps(taps)
        outer = [name for name in known if name.count(".") <= min(1, min(n.count(".") for n in known) + 1)][-12:]
        more = f" and {len(known) - len(outer)} more inside or before them" if len(outer) < len(known) else ""
        names = f"{', '.join(outer)}{more}."
        if unknown not in dict(self.net.named_modules()):
            raise ModelError(f"No tap {unknown!r} in {self.name}; it has {names}{nearest(unknown, known)}")
        raise ModelError(f"Module {unknown!r} of {self.name} has no (B, C, H, W) output to tap; take one of {names}")

    def _hook(self, names: Sequence[str]) -> None:
        for name in set(names) - self._hooked:
            self.net.get_submodule(name).register_forward_hook(_HookOutput(name, self._catch))
        self._hooked = self._hooked.union(names)

    def _logits(self, output: object) -> Tensor:
        # In training torchvision's Inception and GoogLeNet return the logits beside those of their auxiliary heads.
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if isinstance(logits, Tensor) and logits.dim() == 2:
            return logits
        kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise ModelError(f"{self.name} returns {kind}, which are no logits to keep; wrap it to return logits (B, K).")

    def _reached(self, taps: tuple[str, ...], *, need_query: bool) -> list[nn.Parameter]:
        """The parameters that get a gradient from the taps, the query if requested, and the kept head's logits."""
        weights = [p for p in self.net.parameters() if p.is_floating_point()]
        flags = [p.requires_grad for p in weights]
        try:
            with evaluation_mode(self.net, gradients=True):
                for weight in weights:
                    weight.requires_grad_(True)  # whether frozen ones matter must be known too
                total = sum((out.float().sum() for out in self._outputs(taps, need_query)), torch.zeros(()))
                known = total.requires_grad
                gradients = torch.autograd.grad(total, weights, allow_unused=True) if known else [None] * len(weights)
        finally:
            for weight, flag in zip(weights, flags, strict=True):
                weight.requires_grad_(flag)
        return [weight for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None]

    def _drop_unneeded(self) -> None:
        """Replace modules on which nothing depends by identities, and freeze what cannot be removed so."""
        needed = {id(weight) for weight in self._reached(self.default_taps, need_query=True)}
        if not self.keep_head:
            # From the end backwards: a layer can only be an identity when the one after it no longer needs the width.
            outermost: list[str] = []  # without a needed parameter
            for name, part in self.net.named_modules():
                inside = {id(weight) for weight in part.parameters()}
                is_inner = name.startswith(tuple(f"{outer}." for outer in outermost))
                if name and inside and not is_inner and not needed & inside:
                    outermost.append(name)
            for name in reversed(outermost):
                self._drop(name)
            gone = tuple(f"{name}." for name in self.dropped)
            self.stages = tuple(stage for stage in self.stages if not f"{stage.name}.".startswith(gone))
        for weight in self.net.parameters():
            if id(weight) not in needed:
                weight.requires_grad_(False)

    def _drop(self, name: str) -> None:
        """Replace a module by an identity, unless the network then fails or its features change."""
        above, _, own = name.rpartition(".")
        parent, part = self.net.get_submodule(above), self.net.get_submodule(name)
        with evaluation_mode(self.net):
            before = self._outputs(self.default_taps, need_query=True)
        setattr(parent, own, nn.Identity())
        try:
            with evaluation_mode(self.net):
                pairs = zip(self._outputs(self.default_taps, need_query=True), before, strict=True)
            same = all(torch.equal(now.nan_to_num(), then.nan_to_num()) for now, then in pairs)
        except Exception:  # the network's own code, which may depend on the classifier
            same = False
        if not same:
            setattr(parent, own, part)
        self.dropped += (name,) if same else ()

    def _outputs(self, taps: tuple[str, ...], need_query: bool) -> list[Tensor]:
        """The features, and the query and logits where there are any, of the dummy image."""
        trunk = self(dummy_image(self.net, self.least_size), taps, need_query)
        return [output for output in (*trunk.features.values(), trunk.query, trunk.logits) if output is not None]


def _is_spatial(output: object) -> bool:
    return isinstance(output, Tensor) and output.dim() == 4


def build_wrapped(
    name: str,
    *,
    pretrained: str | None = None,
    taps: Sequence[str] | None = None,
    keep_head: bool = False,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> WrappedBackbone:
    """Build a network of timm or torchvision as a backbone.

    Args:
        name: see :func:`find_model`; the backbone's ``name`` has the library in front.
        pretrained: None for random weights; ``hub`` for the library's own; else a file, see :func:`load_weights`.
        taps, image_size: see :class:`WrappedBackbone`.
        keep_head: keep the network's own classifier. Its weights must then fit as well.
        num_classes: outputs of the kept head; None is the library's number. Without ``keep_head`` the classifier in a
            weights file may have any shape (its keys are in ``left_out``).

    Raises:
        ModelError: unknown name; a library is missing or broken; weights that cannot be loaded or do not fit.
    """
    library, model = find_model(name)
    full = f"{library}/{model}"
    net = make_network(library, model, hub=pretrained == "hub", num_classes=num_classes if keep_head else None)
    normalization, size = pretrained_settings(net)
    backbone = WrappedBackbone(
        net, taps, keep_head=keep_head, normalization=normalization, name=full, probe_size=size, image_size=image_size
    )
    if pretrained not in (None, "hub"):
        backbone.left_out = load_weights(backbone.net, pretrained, dropped=backbone.dropped)
    if keep_head and num_classes not in (None, backbone.logit_channels):
        raise ModelError(
            f"The head of {full} has {backbone.logit_channels} classes, not {num_classes}; "
            "take another head than 'residual', which keeps it, or give weights made for these classes."
        )
    return backbone
