"""Muon: orthogonal steps for kernels, Nesterov's momentum or AdamW for all else."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from heedmap.config import TrainOptions
from heedmap.errors import OptionError
from heedmap.models.architecture import Architecture
from heedmap.models.factory import build_classifier
from heedmap.training import optimizers
from heedmap.training.optimizers import ADAPTIVE_SHARE, KERNEL_MOMENTUM, MOMENTUM, Muon, make_optimizer, orthogonal


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 90), (90, 24), (40, 40)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = drawn(*shape)
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = orthogonal(matrix, iterations=6).double()
    values = u.T @ found @ v.T
    rest = values - values.diag().diag()
    assert 0.5 < float(values.diag().min()) < float(values.diag().max()) < 1.4
    assert float(rest.abs().max()) < 0.05  # of bfloat16
    assert found.shape == matrix.shape


def test_one_iteration_is_the_quintic_of_the_singular_values() -> None:
    values = torch.tensor([0.6, 0.48, 0.64])  # of norm one, so that nothing is rescaled
    expected = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonal(values.diag(), iterations=1).diag(), expected, atol=0.01, rtol=0.01)


def test_where_bfloat16_is_emulated_it_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "computes_in_bf16", lambda device: False)
    values = torch.tensor([0.6, 0.48, 0.64])
    expected = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonal(values.diag(), iterations=1).diag(), expected, atol=1e-5, rtol=1e-5)


def test_the_length_of_a_gradient_does_not_matter_and_zeros_stay_zeros() -> None:
    torch.testing.assert_close(orthogonal(drawn(8, 20)), orthogonal(drawn(8, 20) * 1024))
    assert not orthogonal(torch.zeros(8, 20)).any()


def test_a_kernel_keeps_its_norm_and_moves_along_its_orthogonalised_momentum() -> None:
    kernel = nn.Parameter(drawn(6, 3, 3, 3) * 5)
    optimizer = Muon([{"params": [kernel], "orthogonal": True, "weight_decay": 0.5}], lr=0.1)
    value, velocity = kernel.detach().clone(), torch.zeros(6, 27)
    for step in range(3):
        gradient = drawn(6, 3, 3, 3, seed=step + 1)
        kernel.grad = gradient.clone()
        optimizer.step()
        velocity = KERNEL_MOMENTUM * velocity + gradient.flatten(1)
        turned = orthogonal(gradient.flatten(1) + KERNEL_MOMENTUM * velocity)
        value = value * 6**0.5 / value.norm() - 0.1 * turned.view_as(value)  # no decay
        torch.testing.assert_close(kernel.detach(), value, atol=1e-5, rtol=1e-5)


def test_memory_order_changes_nothing() -> None:
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        kernel = nn.Parameter(drawn(6, 4, 3, 3).contiguous(memory_format=order))
        kernel.grad = drawn(6, 4, 3, 3, seed=1).contiguous(memory_format=order)
        Muon([{"params": [kernel], "orthogonal": True}], lr=0.1).step()
        found.append(kernel.detach().contiguous())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("adaptive", "make"),
    [
        (False, functools.partial(torch.optim.SGD, momentum=MOMENTUM, nesterov=True)),
        (True, torch.optim.AdamW),
    ],
)
def test_all_else_moves_as_under_sgd_of_nesterov_or_as_under_adamw(adaptive: bool, make: Any) -> None:
    ours, theirs = (nn.Parameter(drawn(5, 4)) for _ in range(2))
    ours_too = Muon([{"params": [ours], "weight_decay": 0.1, "adaptive": adaptive}], lr=0.05)
    reference = make([theirs], lr=0.05, weight_decay=0.1)
    for step in range(4):
        for parameter, optimizer in ((ours, ours_too), (theirs, reference)):
            parameter.grad = drawn(5, 4, seed=step + 1)
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_what_has_no_gradient_stays_and_a_closure_is_called() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = Muon([{"params": [parameter]}], lr=0.1)
    assert optimizer.step(lambda: 4.0) == 4.0
    assert parameter.tolist() == [1, 1, 1]


def test_beside_the_kernels_of_the_compact_net_adamw_moves_the_rest() -> None:
    classifier = build_classifier(Architecture("compact", "parametrised", None, "concat", None, 32, ("a", "b")))
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    options = TrainOptions(optimizer="muon", learning_rate=0.04, weight_decay=0.05)
    groups = make_optimizer(classifier, options, fused=False).param_groups
    turned = {names[id(p)] for group in groups if group["orthogonal"] for p in group["params"]}
    assert turned == {name for name, p in classifier.backbone.named_parameters("backbone") if p.ndim == 4}
    assert len(turned) == 10  # stem, two in each of three blocks, three shortcuts
    rest = {names[id(p)] for group in groups if group["adaptive"] for p in group["params"]}
    assert turned | rest == {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert not turned & rest
    for group in groups:
        assert group["share"] == (1.0 if group["orthogonal"] else ADAPTIVE_SHARE)
        assert (group["weight_decay"] > 0) == all(p.ndim > 1 for p in group["params"])


def test_networks_without_normalised_kernels_are_refused() -> None:
    classifier = build_classifier(Architecture("paper-vgg", "parametrised", None, "concat", None, 32, ("a", "b")))
    with pytest.raises(OptionError, match="muon' is for networks whose kernels are each followed by a normalisation"):
        make_optimizer(classifier, TrainOptions(optimizer="muon", learning_rate=0.1, weight_decay=0.0), fused=False)
