"""Dropout that draws two bytes a value: as many dropped, the same mean, and no value tied to another."""

import pytest
import torch
from torch import nn

from heedmap.backbones.paper import QuickDropout


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.5, 0.999999])
def test_as_many_values_are_dropped_as_set_and_the_rest_makes_up_for_them(share: float) -> None:
    made = QuickDropout(share)(torch.ones(1_000_000))
    deviation = (share * (1 - share) / 1e6) ** 0.5
    assert (made == 0).double().mean().item() == pytest.approx(share, abs=5 * deviation + 1 / 65536)
    if share < 0.9:
        assert made.double().mean().item() == pytest.approx(1, abs=5 * deviation / (1 - share))
    assert len(made.unique()) <= 2


def test_the_four_values_of_one_draw_have_nothing_in_common() -> None:
    kept = (QuickDropout(0.4)(torch.ones(400_000)) != 0).double().view(-1, 4)
    alike = torch.corrcoef(kept.T).fill_diagonal_(0).abs().max()
    assert alike < 5 / len(kept) ** 0.5
    assert (kept.mean(0) - 0.6).abs().max() < 5 * (0.24 / len(kept)) ** 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_features_keep_layout_and_type_and_the_gradient_goes_where_values_stayed(dtype: torch.dtype) -> None:
    features = torch.rand(3, 5, 7, 3, dtype=dtype).add_(1).to(memory_format=torch.channels_last).requires_grad_()
    made = QuickDropout(0.5)(features)
    assert (made.dtype, made.stride()) == (dtype, features.stride())
    made.sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, (made != 0).to(dtype) * 2)
    assert torch.equal(made, features * features.grad)


def test_the_same_seed_drops_the_same_values() -> None:
    torch.manual_seed(0)
    one = QuickDropout(0.4)(torch.ones(1001))
    torch.manual_seed(0)
    assert torch.equal(one, QuickDropout(0.4)(torch.ones(1001)))
    assert not torch.equal(one, QuickDropout(0.4)(torch.ones(1001)))


def test_eval_mode_drops_nothing() -> None:
    values = torch.rand(100)
    assert QuickDropout(0.4).eval()(values) is values
    assert torch.equal(QuickDropout(0.0)(values), values)
    assert torch.equal(QuickDropout(1.0)(values), torch.zeros(100))
    assert isinstance(QuickDropout(0.4), nn.Dropout)  # what looks for dropout finds it
