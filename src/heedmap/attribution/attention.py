"""The attention that the network learned and used: not computed afterwards, and free."""

from __future__ import annotations

import torch

from heedmap.attribution.request import Attribution, Request
from heedmap.errors import ModelError, nearest
from heedmap.models.classifier import AttentionClassifier, combined_map


def attention(request: Request) -> Attribution:
    """The weights of one tap, named by ``layer``, or of all taps combined where none is named and there are several.

    The map belongs to no class: it is the same for every target.
    """
    model = request.model
    if not isinstance(model, AttentionClassifier):
        raise ModelError(
            f"{type(model).__name__} has no attention that it learned; take another method, or put attention into it "
            "with heedmap.attach and train."
        )
    known = (*model.taps, "combined") if len(model.taps) > 1 else model.taps
    tap = request.layer or known[-1]
    if tap not in known:
        raise ModelError(f"No attention at {tap!r}; this classifier has it at {', '.join(known)}.{nearest(tap, known)}")
    with torch.no_grad():
        output = model(request.images)
    used = combined_map(output.attention, output.shares) if tap == "combined" else output.attention[tap]
    targets = request.targets(output.logits)
    return Attribution(used.expand(-1, targets.shape[1], -1, -1), targets, output.logits, tap)
