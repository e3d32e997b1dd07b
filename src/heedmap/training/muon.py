"""Muon: the steps of convolution kernels are made orthogonal."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from heedmap.training.precision import computes_in_bf16

QUINTIC = (3.4445, -4.7750, 2.0315)  # steepest at zero: raises small singular values fast, to within 0.7 - 1.2
ITERATIONS = 3
KERNEL_MOMENTUM, MOMENTUM = 0.6, 0.85
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam, for other parameters
FOR_NORMALISED = (
    "optimizer = 'muon' is for networks whose kernels are each followed by a normalisation; "
    "give sgd or adamw, or --model compact or whitened."
)


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
