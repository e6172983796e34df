"""Image encoding with learnt tokens beside the patches."""

from __future__ import annotations

import pytest
import torch
from open_clip.model import CLIP

from vlprompt import FrozenCLIP
from vlprompt.learner.prompts import VisualPrompt
from vlprompt.testing import close, small_clip, toy_batch

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}
VISION = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 32}
TOWERS = {
    "plain": {},
    "no-ln-pre": {"no_ln_pre": True},
    "average-pooled": {"pool_type": "avg", "final_ln_after_pool": True},
    "attention-pooled": {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "layer-scale": {"ls_init_value": 0.3},
    "custom-blocks": {"block_type": "custom", "qk_norm": True, "scale_heads": True, "scale_fc": True},
}


def clip_of(tower: str, precision: str = "fp32") -> FrozenCLIP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(32, VISION | TOWERS[tower], TEXT)
    return FrozenCLIP(
        model,
        lambda texts, context_length=77: torch.arange(len(texts) * 77).view(-1, 77) % 100,
        device="cpu",
        precision=precision,
    )


@pytest.mark.parametrize("tower", TOWERS)
def test_unprompted_features_equal_open_clip(tower: str) -> None:
    clip = clip_of(tower)
    images = toy_batch()["image"]
    expected = clip.model.visual(images)
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert close(clip.encode_image(images), expected)
    assert close(clip.prompted_image_features(images, {}), expected)
    assert close(clip_of(tower, "bf16").encode_image(images), expected, 0.03)


def published_way(clip: FrozenCLIP, images: torch.Tensor, tokens: list[torch.Tensor], after_cls: bool) -> torch.Tensor:
    """The published computation through OpenCLIP's own modules, tokens at the end or right after CLS."""
    visual, n = clip.model.visual, len(tokens[0])

    def join(x: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        prompt = prompt.expand(len(x), -1, -1)
        return torch.cat([x[:, :1], prompt, x[:, 1:]] if after_cls else [x, prompt], dim=1)

    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(join(x, tokens[0]))
    for i, block in enumerate(visual.transformer.resblocks):
        if 0 < i < len(tokens):
            x = join(torch.cat([x[:, :1], x[:, 1 + n :]], dim=1) if after_cls else x[:, :-n], tokens[i])
        x = block(x)
    return visual.ln_post(x[:, 0]) @ visual.proj


@pytest.mark.parametrize("after_cls", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prompted_features_and_gradients_equal_the_published_way(depth: int, after_cls: bool) -> None:
    clip, images = small_clip(), toy_batch()["image"]
    prompt = VisualPrompt(clip, 4, depth)
    torch.nn.init.normal_(prompt.tokens[0])
    ours, theirs = prompt.encode(clip, images), published_way(clip, images, list(prompt.tokens), after_cls)
    assert close(ours, theirs)
    direction = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * direction).sum(), prompt.tokens),
        torch.autograd.grad((theirs * direction).sum(), prompt.tokens),
        strict=True,
    ):
        assert close(a, b)


def test_the_place_of_the_first_tokens_matters() -> None:
    clip, images = small_clip(), toy_batch()["image"]
    before, after = VisualPrompt(clip, 4, 1, "pre_ln"), VisualPrompt(clip, 4, 1, "post_ln")
    after.load_state_dict(before.state_dict())
    assert not close(before.encode(clip, images), after.encode(clip, images), 1e-3)


def test_no_depth_leaves_the_tower_alone() -> None:
    clip, images = small_clip(), toy_batch()["image"]
    assert close(VisualPrompt(clip, 4, 0).encode(clip, images), clip.model.visual(images))
