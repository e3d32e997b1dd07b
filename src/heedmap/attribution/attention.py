"""Attention as a map: what a classifier learned at its taps, and the attention matrices of a vision transformer.

Fused attention never makes the matrix, so it is made here: during one forward pass scaled dot-product attention is
written out, a softmax over square matrices is recorded (timm without fused attention, and most hand-written blocks),
and ``nn.MultiheadAttention`` (torchvision) is replaced by the same sum written out. The logits are the model's own up
to rounding. Matrices A are (B, heads, N, N), rows are queries, and each row sums to one.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heedmap.attribution.layers import token_grid
from heedmap.attribution.request import Attribution, Request, check_choice, precise, scores_of, target_gradients
from heedmap.errors import ModelError, nearest
from heedmap.models.classifier import AttentionClassifier, combined_map
from heedmap.modules import hooked


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


def attention_rollout(request: Request, *, heads: str = "mean") -> Attribution:
    """Compute attention rollout (Abnar and Zuidema 2020, eq. 1): how attention accumulates from layer to layer.

    The map is the same for every class. Rows sum to one by construction, also where the heads are joined by ``max`` or
    ``min`` instead of their ``mean``.
    """
    check_choice("heads", heads, ("mean", "max", "min"))
    with torch.no_grad():
        logits, matrices = _matrices(request, graph=False)
    joined = [matrix.mean(1) if heads == "mean" else getattr(matrix, f"a{heads}")(1) for matrix in matrices]
    targets = request.targets(logits)
    values = _read(request, rollout(joined))
    return Attribution(values[:, None].expand(-1, targets.shape[1], -1, -1), targets, logits)


def rollout(matrices: list[Tensor]) -> Tensor:
    """Return the (B, N, N) product of the layers' (A + 1) / 2, the last layer leftmost; each row sums to one.

    The matrices A (B, N, N), from the first layer to the last, are not negative; their rows are normalised to sum one.
    """
    total = torch.eye(matrices[0].shape[-1], dtype=matrices[0].dtype, device=matrices[0].device)
    for matrix in matrices:
        rows = matrix / matrix.sum(2, keepdim=True)
        total = (rows @ total + total) / 2
    return total.expand_as(matrices[0])


def relevance(request: Request, *, score: str = "logit") -> Attribution:
    """Compute gradient-weighted relevance (Chefer et al. 2021, "Generic attention-model explainability", eq. 5 and 6).

    R starts as the identity; each layer adds mean over heads of (gradient times attention)^+ times R.
    """
    logits, matrices = _matrices(request, graph=True)
    targets, scores = request.targets(logits), scores_of(logits, score)
    values = []
    for gradients in target_gradients(scores, targets, matrices):
        total = torch.eye(matrices[0].shape[-1], device=logits.device)
        for matrix, gradient in zip(matrices, gradients, strict=True):
            if gradient is None:
                raise ModelError(f"The logits of {type(request.model).__name__} do not depend on all its attention.")
            step = (gradient * matrix.detach()).to(precise(matrix.dtype)).relu().mean(1)
            total = total + step @ total.to(step.dtype)
        values.append(_read(request, total))
    return Attribution(torch.stack(values, 1), targets, logits)


def _matrices(request: Request, *, graph: bool) -> tuple[Tensor, list[Tensor]]:
    """Return logits and the attention matrices (B, heads, N, N) of one forward pass, first layer first."""
    name = type(request.model).__name__
    recorder = _Recorder(len(request.images), graph)
    parts: dict[nn.Module, Any] = {
        part: recorder.attend_module for part in request.model.modules() if isinstance(part, nn.MultiheadAttention)
    }
    with hooked(parts, with_kwargs=True), recorder:
        logits = request.logits()
    sizes = {matrix.shape[-1] for matrix in recorder.matrices}
    if recorder.is_in_windows or not sizes:
        raise ModelError(f"No attention over the tokens of a whole image was found in {name}; this takes a ViT.")
    if len(sizes) > 1:
        raise ModelError(f"{name} changes its number of tokens on the way ({sorted(sizes)}); this takes a plain ViT.")
    return logits, recorder.matrices if graph else [matrix.to(precise(matrix.dtype)) for matrix in recorder.matrices]


class _Recorder(TorchFunctionMode):
    """Writes attention out, and records its matrices."""

    def __init__(self, batch: int, graph: bool) -> None:
        super().__init__()
        self.batch, self.graph = batch, graph
        self.matrices: list[Tensor] = []
        self.is_in_module = self.is_in_windows = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **kwargs)
        done = func(*args, **kwargs)
        is_softmax = func in (F.softmax, torch.softmax, Tensor.softmax)
        return self.record(done) if is_softmax and not self.is_in_module and self.is_attention(done) else done

    def is_attention(self, tensor: Tensor) -> bool:
        if tensor.dim() != 4 or not 1 < tensor.shape[2] == tensor.shape[3]:
            return False
        self.is_in_windows |= len(tensor) != self.batch
        return not self.is_in_windows

    def record(self, matrix: Tensor) -> Tensor:
        if self.graph and not matrix.requires_grad:
            matrix = matrix.detach().requires_grad_()
        self.matrices.append(matrix)
        return matrix

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        scale = options.pop("scale", None)
        if is_causal or dropout_p or any(options.values()):  # such as enable_gqa
            raise ModelError("Causal or grouped attention, or dropout in eval mode, is not supported: no ViT has it.")
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            is_bool = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if is_bool else scores + attn_mask
        matrix = scores.softmax(-1)
        return (self.record(matrix) if self.is_attention(matrix) else matrix) @ value

    def attend_module(
        self, part: nn.MultiheadAttention, given: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Return what ``nn.MultiheadAttention`` returns, with its matrix recorded."""
        tokens = given[0] if given else kwargs["query"]
        others = [*given[1:3], *(kwargs[name] for name in ("key", "value") if name in kwargs)]
        masked = kwargs.get("attn_mask") is not None or kwargs.get("key_padding_mask") is not None or len(given) > 3
        odd = part.in_proj_weight is None or part.bias_k is not None or part.add_zero_attn
        if masked or odd or any(other is not tokens for other in others):
            raise ModelError("nn.MultiheadAttention is used with masks, other keys, or added tokens; not supported.")
        ordered = tokens if part.batch_first else tokens.transpose(0, 1)
        mixed = F.linear(ordered, part.in_proj_weight, part.in_proj_bias)
        query, key, value = mixed.unflatten(2, (3, part.num_heads, -1)).permute(2, 0, 3, 1, 4)
        self.is_in_module = True  # hooks run inside this mode, which would record the softmax a second time
        attended = self.attend(query, key, value).transpose(1, 2).flatten(2)
        self.is_in_module = False
        done: Tensor = F.linear(attended, part.out_proj.weight, part.out_proj.bias)
        return (done if part.batch_first else done.transpose(0, 1)), output[1]


def _read(request: Request, matrix: Tensor) -> Tensor:
    """Return (B, h, w): what the token that the head reads got from each grid position, from (B, N, N).

    Where the head reads the mean of the positions instead of a class token, so does this; where two heads read a token
    each and the logits are their mean, as in distilled DeiT, it is the mean over the two tokens.
    """
    model, count = request.model, matrix.shape[-1]
    height, width = request.images.shape[-2:]
    grid = token_grid(count, height, width, getattr(model, "num_prefix_tokens", None))
    if grid is None:
        raise ModelError(f"The {count} tokens of {type(model).__name__} are no grid over {height} x {width} pixels.")
    before, rows, columns = grid
    by_class = before > 0 and getattr(model, "global_pool", "token") in ("token", "", None)
    # DeiT's distilled head is the mean of two, one on the class token and one on the token beside it.
    heads = 2 if getattr(model, "head_dist", None) is not None and before > 1 else 1
    row = (matrix[:, :heads] if by_class else matrix[:, before:]).mean(1)
    return row[:, before:].unflatten(1, (rows, columns))
