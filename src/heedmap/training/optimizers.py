"""Optimisers and schedules: Muon, which parameters decay, and which get a larger or smaller learning rate."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heedmap.config import TrainOptions
from heedmap.errors import OptionError
from heedmap.training.precision import computes_in_bf16

QUINTIC = (3.4445, -4.7750, 2.0315)  # steepest at zero: raises small singular values fast, to within 0.7 - 1.2
ITERATIONS = 3
KERNEL_MOMENTUM, MOMENTUM = 0.6, 0.85
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam, for other parameters
FOR_NORMALISED = (
    "optimizer = 'muon' is for networks whose kernels are each followed by a normalisation; "
    "give sgd or adamw, or --model compact or whitened."
)
TRAINED_SHARE = 0.1  # of the learning rate, for pretrained weights
WARM_UP = 0.2  # of one-cycle
SHORT_WARM_UP = 0.05  # of cosine: for fresh normalisations to settle
FLOOR = 1e-3  # of the highest rate, so that the last steps are not lost


def one_cycle(progress: float) -> float:
    """Return the factor in (0, 1] at a progress in [0, 1]: linearly up, then linearly down (Smith 2018)."""
    factor = progress / WARM_UP if progress < WARM_UP else (1 - progress) / (1 - WARM_UP)
    return max(factor, FLOOR)


def cosine(progress: float) -> float:
    """Return the factor in (0, 1] at a progress in [0, 1]: a short warm-up, then half a cosine down."""
    if progress < SHORT_WARM_UP:
        return max(progress / SHORT_WARM_UP, FLOOR)
    return max(0.5 * (1 + math.cos(math.pi * (progress - SHORT_WARM_UP) / (1 - SHORT_WARM_UP))), FLOOR)


SCHEDULES = {"one-cycle": one_cycle, "cosine": cosine}


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


def _shares(model: Any, options: TrainOptions) -> dict[int, float]:
    """Parameter's id -> its share of the learning rate, where that is not one."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        return {}
    if options.pretrained:
        return {id(parameter): TRAINED_SHARE for parameter in backbone.parameters()}
    fast, rates = backbone.fast_parameters(), SHARES.get(options.optimizer or "")
    if options.optimizer == "muon" and not fast:
        return dict.fromkeys(set(map(id, model.parameters())) - _kernels(backbone), ADAPTIVE_SHARE)
    if not fast or rates is None:
        return {}
    if options.optimizer == "muon":
        fast = [parameter for parameter in backbone.parameters() if parameter.ndim == 1]
    parts = (
        (fast, rates.fast),
        (model.attentions.parameters(), rates.attentions),
        (model.head.parameters(), rates.head),
    )
    return {id(parameter): share for parameters, share in parts for parameter in parameters}


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


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for kernels, Nesterov's momentum or AdamW for all else.

    Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), in the form of the
    CIFAR-10 speed runs: a kernel (O, I, H, W) is a matrix of O rows; its Nesterov momentum is replaced by about the
    nearest matrix with orthogonal rows or columns, so that every direction moves at the same pace; and before each step
    the kernel is brought back to the norm sqrt(O), which is why it needs no decay, and why a normalisation must follow
    it. ``torch.optim.Muon`` takes matrices only, and decays in place of keeping the norm.

    Of the parameter groups those with ``orthogonal`` hold kernels, those with ``adaptive`` are moved as by
    ``torch.optim.AdamW``; of all others ``weight_decay`` times the value is added to the gradients.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "orthogonal": False, "adaptive": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step along the gradients; a ``closure`` is called first, and what it returns is returned."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            other = self._adaptive_step if group["adaptive"] else self._step_of_other
            step = self._step_of_kernel if group["orthogonal"] else other
            for parameter in group["params"]:
                if parameter.grad is not None:
                    step(parameter, parameter.grad, group)
        return loss

    def _step_of_kernel(self, kernel: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        direction = self._nesterov(kernel, gradient, KERNEL_MOMENTUM)
        kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
        kernel.add_(orthogonal(direction.flatten(1)).view_as(direction), alpha=-group["lr"])

    def _step_of_other(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
        parameter.add_(self._nesterov(parameter, gradient, MOMENTUM), alpha=-group["lr"])

    def _adaptive_step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] += 1
        step, (first, second) = int(state["step"]), BETAS
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        spread = (state["exp_avg_sq"] / (1 - second**step)).sqrt_().add_(EPSILON)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["exp_avg"], spread, value=-group["lr"] / (1 - first**step))

    def _nesterov(self, parameter: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer: Tensor = state["momentum_buffer"]
        buffer.mul_(momentum).add_(gradient)
        return gradient.add(buffer, alpha=momentum)


def orthogonal(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Return a matrix (M, N) with singular values near one and the same singular vectors: roughly U V^T of U S V^T.

    Newton's and Schulz's iteration with the odd quintic of Jordan et al., computed in bfloat16, or in float32 where
    bfloat16 is emulated, which takes sixteen times as long there. A matrix of zeros stays one.
    """
    a, b, c = QUINTIC
    x = matrix.bfloat16() if computes_in_bf16(matrix.device) else matrix.float()
    x = x.T if len(matrix) > matrix.shape[1] else x
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if len(matrix) > matrix.shape[1] else x).to(matrix.dtype)
