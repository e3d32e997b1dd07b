"""The optimiser: which parameters decay, and which get a larger or smaller learning rate."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heedmap.config import TrainOptions
from heedmap.errors import OptionError
from heedmap.training.muon import FOR_NORMALISED, Muon

TRAINED_SHARE = 0.1  # of the learning rate, for pretrained weights


class Shares(NamedTuple):
    """Shares of the kernels' learning rate, where a backbone names fast parameters.

    At the kernels' rate maps narrow too early, and the head oscillates. Muon's rate is the length of a kernel's step
    and not a factor of its gradient, hence the other numbers.
    """

    fast: float
    attentions: float
    head: float


SHARES = {"sgd": Shares(64.0, 0.1, 0.03), "muon": Shares(264.0, 0.4, 0.12)}
ADAPTIVE_SHARE = 0.24  # of Muon's rate, for what AdamW moves (experiments/LOG.md); 0.08 would be AdamW's own


def make_optimizer(model: nn.Module, options: TrainOptions, *, fused: bool) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, Muon, or AdamW; weight matrices and kernels decay, biases and scales do not.

    A pretrained backbone learns at a tenth of the rate, at which attention and head, which start from scratch, would
    hardly move. Where a backbone names fast parameters, SGD and Muon move these at many times the rate, attention and
    head at a part of it; Muon moves all biases of the backbone so. Where it names none, AdamW moves beside Muon what is
    no kernel.

    Raises:
        OptionError: Muon, and a backbone whose kernels are not each followed by a normalisation.
    """
    backbone: Any = getattr(model, "backbone", None)
    if options.optimizer == "muon" and (backbone is None or not backbone.normalises):
        raise OptionError(FOR_NORMALISED)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    shares = _shares(model, options)
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in learned if (p.ndim > 1) == is_matrix and shares.get(id(p), 1.0) == share],
            "weight_decay": options.weight_decay if is_matrix else 0.0,
            "share": share,
        }
        for share in sorted({1.0, *shares.values()}, reverse=True)
        for is_matrix in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "muon":
        kernels = _kernels(backbone)
        for group in groups:
            group["orthogonal"] = kernels.issuperset(map(id, group["params"]))
            group["adaptive"] = not group["orthogonal"] and not backbone.fast_parameters()
        return Muon(groups, lr=options.learning_rate or 0)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.learning_rate or 0, fused=fused)
    return torch.optim.SGD(groups, lr=options.learning_rate or 0, momentum=0.9, nesterov=True, fused=fused)


def _shares(model: nn.Module, options: TrainOptions) -> dict[int, float]:
    """Parameter's id -> its share of the learning rate, where that is not one."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        return {}
    if options.pretrained:
        return {id(parameter): TRAINED_SHARE for parameter in backbone.parameters()}
    fast, rates = backbone.fast_parameters(), SHARES.get(options.optimizer or "")
    if options.optimizer == "muon" and not fast:
        kernels = _kernels(backbone)
        return {id(p): ADAPTIVE_SHARE for p in model.parameters() if id(p) not in kernels}
    if not fast or rates is None:
        return {}
    if options.optimizer == "muon":
        fast = [parameter for parameter in backbone.parameters() if parameter.ndim == 1]
    parts = {"attentions": rates.attentions, "head": rates.head}
    return {id(p): rates.fast for p in fast} | {
        id(p): share for name, share in parts.items() for p in getattr(model, name).parameters()
    }


def _kernels(backbone: nn.Module) -> set[int]:
    """Ids of the parameters that Muon makes orthogonal."""
    return {id(parameter) for parameter in backbone.parameters() if parameter.ndim == 4}


def optimizer_state(optimizer: torch.optim.Optimizer, slots: dict[str, Tensor]) -> dict[str, Any]:
    """Return a state dict from slots named ``INDEX.SLOT``, each in its parameter's memory format."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in slots.items():
        index, _, slot = name.partition(".")
        like = parameters[int(index)]
        fits = value.shape == like.shape
        state.setdefault(int(index), {})[slot] = torch.empty_like(like).copy_(value) if fits else value
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
