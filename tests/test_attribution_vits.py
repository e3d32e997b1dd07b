"""Rollout and relevance on vision transformers: rows sum to one, fused equals written out, and slow definitions."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heedmap.attribution import explain
from heedmap.attribution.attention import rollout
from heedmap.errors import ModelError

HEIGHT, WIDTH = 32, 48


def timm_vit(**settings: object) -> nn.Module:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=(HEIGHT, WIDTH), patch_size=8, depth=3, num_classes=4, **settings
        )
        for block in model.blocks:  # at the start attention is all but even
            nn.init.normal_(block.attn.qkv.weight, std=0.2)
    return model.eval()


def torchvision_vit() -> nn.Module:
    models = pytest.importorskip("torchvision.models.vision_transformer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=4)
        nn.init.normal_(model.heads.head.weight)
        for block in model.encoder.layers:
            nn.init.normal_(block.self_attention.in_proj_weight, std=0.5)
    return model.eval()


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=generator)


def unfused(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and attention matrices of a timm ViT, caught the classic way: fusing off, a hook on each dropout."""
    caught: list[Tensor] = []
    handles = []
    for block in model.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(lambda _part, given, _out: caught.append(given[0])))
    logits = model(images)
    for handle in handles:
        handle.remove()
    for block in model.blocks:
        block.attn.fused_attn = True
    return logits, caught


def test_rollout_s_rows_sum_to_one_and_it_equals_the_numpy_original(generator: torch.Generator) -> None:
    matrices = [torch.rand(2, 9, 9, generator=generator, dtype=torch.float64) for _ in range(4)]
    matrices = [matrix / matrix.sum(2, keepdim=True) for matrix in matrices]

    found = rollout(matrices)

    torch.testing.assert_close(found.sum(2), torch.ones(2, 9).double(), rtol=0, atol=1e-12)
    for row in range(2):
        total = np.eye(9)
        for matrix in matrices:
            augmented = matrix[row].numpy() + np.eye(9)
            total = augmented / augmented.sum(-1, keepdims=True) @ total
        np.testing.assert_allclose(found[row].numpy(), total, atol=1e-12)


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
def test_rollout_of_a_fused_network_equals_that_of_its_caught_matrices(images: Tensor, heads: str) -> None:
    model = timm_vit()
    found = explain(model, images, "attention-rollout", settings={"heads": heads}).values[:, 0]

    _, matrices = unfused(model, images)
    joined = [getattr(m, {"mean": "mean", "max": "amax", "min": "amin"}[heads])(1) for m in matrices]
    wanted = rollout(joined)[:, 0, 1:].view(2, HEIGHT // 8, WIDTH // 8)
    torch.testing.assert_close(found, wanted)


def test_relevance_equals_its_definition_on_caught_matrices(images: Tensor) -> None:
    model = timm_vit()
    found = explain(model, images, "relevance", "all").values

    for target in range(4):
        logits, matrices = unfused(model, images)
        gradients = torch.autograd.grad(logits[:, target].sum(), matrices)
        for row in range(2):
            total = torch.eye(25)
            for matrix, gradient in zip(matrices, gradients, strict=True):
                total = total + (gradient[row] * matrix[row]).clamp_min(0).mean(0) @ total
            wanted = total[0, 1:].view(HEIGHT // 8, WIDTH // 8)
            torch.testing.assert_close(found[row, target], wanted.detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["attention-rollout", "relevance"])
def test_a_fused_network_and_the_same_one_unfused_have_the_same_maps(images: Tensor, method: str) -> None:
    model = timm_vit()
    fused = explain(model, images, method, 1)
    for block in model.blocks:
        block.attn.fused_attn = False
    written = explain(model, images, method, 1)

    torch.testing.assert_close(fused.values, written.values, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(fused.logits, model(images).detach(), rtol=1e-4, atol=1e-5)


def test_torchvision_s_attention_is_written_out_exactly(generator: torch.Generator) -> None:
    model, images = torchvision_vit(), torch.rand(2, 3, 32, 32, generator=generator)
    matrices: list[Tensor] = []
    tokens: dict[int, Tensor] = {}
    for number, block in enumerate(model.encoder.layers):
        block.ln_1.register_forward_hook(lambda _part, _given, out, number=number: tokens.update({number: out}))
    with torch.no_grad():
        logits = model(images)
        for number, block in enumerate(model.encoder.layers):
            x = tokens[number]
            matrices.append(block.self_attention(x, x, x, need_weights=True)[1])  # mean over heads

    found = explain(model, images, "attention-rollout")

    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.values[:, 0], rollout(matrices)[:, 0, 1:].view(2, 4, 4), rtol=1e-4, atol=1e-6)
    assert explain(model, images, "relevance", "all").values.shape == (2, 4, 4, 4)


def test_registers_and_a_mean_over_places_are_read_as_the_head_reads_them(images: Tensor) -> None:
    registers = timm_vit(reg_tokens=2)
    assert explain(registers, images, "relevance").values.shape == (2, 1, 4, 6)
    averaged = timm_vit(class_token=False, global_pool="avg")
    found = explain(averaged, images, "attention-rollout").values[:, 0]

    _, matrices = unfused(averaged, images)
    wanted = rollout([matrix.mean(1) for matrix in matrices]).mean(1).view(2, 4, 6)
    torch.testing.assert_close(found, wanted.detach())


@pytest.mark.parametrize("method", ["attention-rollout", "relevance"])
def test_a_distilled_network_is_read_at_both_tokens(images: Tensor, method: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(
            "deit_tiny_distilled_patch16_224", img_size=(HEIGHT, WIDTH), patch_size=8, depth=3, num_classes=4
        ).eval()
        for block in model.blocks:
            nn.init.normal_(block.attn.qkv.weight, std=0.2)
        nn.init.normal_(model.head.weight)
        nn.init.normal_(model.head_dist.weight)
    found = explain(model, images, method, 1).values[:, 0]

    logits, matrices = unfused(model, images)
    if method == "attention-rollout":
        total = rollout([matrix.mean(1) for matrix in matrices])
    else:
        gradients = torch.autograd.grad(logits[:, 1].sum(), matrices)
        total = torch.eye(26).expand(2, -1, -1)
        for matrix, gradient in zip(matrices, gradients, strict=True):
            total = total + (gradient * matrix).clamp_min(0).mean(1) @ total
    wanted = ((total[:, 0] + total[:, 1]) / 2)[:, 2:].view(2, HEIGHT // 8, WIDTH // 8).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


def test_grad_cam_reads_tokens_where_a_layer_is_named(images: Tensor) -> None:
    model = timm_vit()
    found = explain(model, images, "grad-cam", 2, "blocks.2.norm1", {"relu": False})

    tokens: list[Tensor] = []
    handle = model.blocks[2].norm1.register_forward_hook(lambda _part, _given, out: tokens.append(out))
    logits = model(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), tokens[0])
    weights = gradient[:, 1:].mean(1, keepdim=True)
    wanted = (weights * tokens[0][:, 1:]).sum(2).view(2, 4, 6)
    torch.testing.assert_close(found.values[:, 0], wanted.detach(), rtol=1e-3, atol=1e-6)


def test_windowed_attention_is_refused(generator: torch.Generator) -> None:
    timm = pytest.importorskip("timm")
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1), num_heads=(2, 2), num_classes=3
    )
    with pytest.raises(ModelError, match="ViT"):
        explain(swin, torch.rand(1, 3, 56, 56, generator=generator), "relevance")
    assert explain(swin, torch.rand(1, 3, 56, 56, generator=generator)).values.shape == (1, 1, 7, 7)
