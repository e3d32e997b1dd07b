"""The attention that the network learned and used, as a map method."""

import torch

from heedmap.attribution.request import Attribution, Request
from heedmap.errors import ModelError, nearest
from heedmap.models.classifier import AttentionClassifier, combined_map


def attention(request: Request) -> Attribution:
    """Return the weights of the tap named by ``layer``, else of all taps combined; the same for every class."""
    model = request.model
    if not isinstance(model, AttentionClassifier):
        raise ModelError(
            f"{type(model).__name__} has no learned attention; take another method, or put attention into it "
            "with heedmap.attach and train."
        )
    taps = (*model.taps, "combined") if len(model.taps) > 1 else model.taps
    tap = request.layer or taps[-1]
    if tap not in taps:
        raise ModelError(f"No attention at {tap!r}; this classifier has it at {', '.join(taps)}.{nearest(tap, taps)}")
    with torch.no_grad():
        output = model(request.images)
    values = combined_map(output.attention, output.shares) if tap == "combined" else output.attention[tap]
    targets = request.targets(output.logits)
    return Attribution(values.expand(-1, targets.shape[1], -1, -1), targets, output.logits, tap)
