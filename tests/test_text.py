"""Text encoding: the shared prefix gives what full-length sequences give, gradients included."""

from __future__ import annotations

from dataclasses import replace

import open_clip
import pytest
import torch
from torch import Tensor

from vlprompt import FrozenCLIP, VlpromptError
from vlprompt.clip.text import encode_prompts, encode_prompts_plain
from vlprompt.clip.towers import TextTower
from vlprompt.learner.prompts import TextPrompt
from vlprompt.testing import NAMES, close, small_clip, small_model

LAYOUTS = {
    "CLIP": {},
    "CustomTextCLIP": {"custom_text": True},
    "GELU": {"quick_gelu": False},
    "eos-pooled": {"custom_text": True, "pool_type": "eos", "eos_id": 49407},
    "custom-blocks": {
        "custom_text": True,
        "block_type": "custom",
        "qk_norm": True,
        "scale_heads": True,
        "scale_attn": True,
        "scale_attn_inner": True,
        "scale_fc": True,
        "ls_init_value": 0.5,
    },
    "non-causal": {"custom_text": True, "no_causal_mask": True},
    "last-pooled": {"custom_text": True, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "first-pooled": {"custom_text": True, "no_causal_mask": True, "pool_type": "first"},
    "padding-mask": {"custom_text": True, "no_causal_mask": True, "use_pad_mask": True},
    "coca": {"custom_text": True, "embed_cls": True},
}


def clip_of(layout: str) -> FrozenCLIP:
    options = dict(LAYOUTS[layout])
    if options.get("custom_text") and len(options) > 1:
        options.pop("custom_text")
        use_pad_mask = options.pop("use_pad_mask", False)
        with torch.random.fork_rng():
            torch.manual_seed(4)
            model = open_clip.model.CustomTextCLIP(
                64,
                {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 64},
                {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3} | options,
            )
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1 and "bias" not in name:  # so that norms and scales differ from identity
                    torch.nn.init.uniform_(parameter, 0.5, 1.5)
            model.text.use_pad_mask = use_pad_mask
        return FrozenCLIP(model, open_clip.SimpleTokenizer(context_length=24), device="cpu")
    return small_clip(**options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_encode_text_equals_open_clip(layout: str) -> None:
    clip = clip_of(layout)
    texts = [f"a photo of a {name}." for name in NAMES]
    expected = clip.model.encode_text(clip.tokenizer(texts))
    assert close(clip.encode_text(texts), expected)
    assert close(clip.encode_text(texts, chunk=2), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_causal_towers_share_the_prefix(layout: str) -> None:
    causal = layout in ("CLIP", "CustomTextCLIP", "GELU", "eos-pooled", "custom-blocks")
    assert clip_of(layout).text.shares_prefix == causal


def published_way(tower: TextTower, prefix: Tensor, suffix: Tensor, lengths: Tensor, deep: dict[int, Tensor]) -> Tensor:
    """The computation of the published repositories: every class at full length through OpenCLIP's own modules."""
    size, model = tower.context_length, tower.module
    out = []
    for row, length in zip(suffix, lengths, strict=True):
        x = torch.cat([prefix, row[:length]])
        x = torch.nn.functional.pad(x, (0, 0, 0, size - len(x)))[None] + model.positional_embedding
        for i, block in enumerate(model.transformer.resblocks):
            if i in deep:
                x = torch.cat([x[:, :1], deep[i][None], x[:, 1 + len(deep[i]) :]], dim=1)
            x = block(x, attn_mask=model.attn_mask)
        out.append(model.ln_final(x)[0, len(prefix) + length - 1] @ model.text_projection)
    return torch.stack(out)


ALIKE = ("boeing 737-200", "boeing 737-300", "boeing 747-300", "an owl", "boeing", "an owl")


@pytest.mark.parametrize("layout", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("names", [NAMES, ALIKE], ids=["different", "alike"])
def test_prefix_sharing_equals_full_length(layout: str, depth: int, names: tuple[str, ...]) -> None:
    clip = clip_of(layout)
    prompt = TextPrompt(clip, 4, depth=depth)
    tokens = prompt.tokenize(clip, names)
    leaves = list(prompt.parameters())
    prompts = prompt.assemble(clip, tokens, prompt.ctx)
    ways = {
        "shared": encode_prompts(clip.text, prompts)[0],
        "without shared names": encode_prompts(clip.text, replace(prompts, beginnings=None))[0],
        "chunked": encode_prompts(clip.text, prompts, chunk=2)[0],
        "plain": encode_prompts_plain(clip.text, prompts)[0],
    }
    expected = published_way(clip.text, prompts.prefix[0], prompts.suffix, prompts.lengths, prompts.deep)
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * direction).sum(), leaves, retain_graph=True)
    for way, features in ways.items():
        assert close(features, expected), way
        for ours, theirs in zip(
            torch.autograd.grad((features * direction).sum(), leaves, retain_graph=True), gradients, strict=True
        ):
            assert close(ours, theirs), way


def test_each_beginning_of_names_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = small_clip()
    prompt = TextPrompt(clip, 4)
    prompts = prompt.assemble(clip, prompt.tokenize(clip, ALIKE), prompt.ctx)
    seen: list[int] = []
    first = type(clip.text.blocks[0])
    project = first.project
    monkeypatch.setattr(
        first, "project", lambda block, x, *of, **by: seen.append(x.shape[1]) or project(block, x, *of, **by)
    )
    encode_prompts(clip.text, prompts)
    ids = prompt.tokenize(clip, ALIKE).ids.tolist()
    beginnings = {tuple(row[: i + 1]) for row, n in zip(ids, prompts.lengths, strict=True) for i in range(int(n))}
    layers = clip.text.layers
    assert seen[layers : 2 * layers - 1] == [len(beginnings)] * (layers - 1)
    assert len(beginnings) < int(prompts.lengths.sum())


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("names", [NAMES, ALIKE], ids=["different", "alike"])
def test_groups_of_prompts_equal_one_at_a_time(position: str, names: tuple[str, ...]) -> None:
    clip = small_clip()
    prompt = TextPrompt(clip, 4, position=position)
    tokens = prompt.tokenize(clip, names)
    contexts = torch.randn(3, 4, clip.text.width, requires_grad=True)
    together = prompt.encode(clip, tokens, contexts)
    alone = torch.cat([prompt.encode(clip, tokens, ctx) for ctx in contexts])
    assert together.shape == (3, len(names), 64)
    assert close(together, alone)
    assert close(prompt.encode(clip, tokens, contexts, chunk=2), alone)
    direction = torch.randn_like(alone)
    ours, theirs = (
        torch.autograd.grad((f * direction).sum(), contexts, retain_graph=True)[0] for f in (together, alone)
    )
    assert close(ours, theirs)
    assert close(encode_prompts_plain(clip.text, prompt.assemble(clip, tokens, contexts)), alone)


@pytest.mark.parametrize("layout", ["non-causal", "last-pooled", "padding-mask", "coca"])
def test_prompts_work_on_towers_that_cannot_share(layout: str) -> None:
    clip = clip_of(layout)
    prompt = TextPrompt(clip, 3, "a photo of")
    features = prompt.encode(clip, prompt.tokenize(clip, NAMES))[0]
    assert close(features, clip.encode_text([f"a photo of {n.replace('_', ' ')}." for n in NAMES]))


def test_a_text_that_does_not_fit_is_named() -> None:
    clip = small_clip()
    with pytest.raises(VlpromptError, match=r"'a very very .* takes 85 tokens .* reads 77: shorten"):
        clip.encode_text(["a cat", "a " + "very " * 81 + "long"])
    clip.encode_text(["a " + "very " * 73 + "long"])  # 77 tokens fit
    with pytest.raises(VlpromptError, match="takes 78 tokens with its context"):
        clip.tokenize(["a " + "very " * 73 + "long"], inserted=1)
    assert TextPrompt(clip, 1).tokenize(clip, NAMES).ids.shape[1] < 12  # nothing after end-of-text is kept


def test_word_embeddings_are_the_models_own() -> None:
    clip = FrozenCLIP(small_model(), open_clip.SimpleTokenizer(), device="cpu")
    ids = clip.tokenizer(["a photo of a"])[0, 1:5]
    assert torch.equal(clip.word_embeddings("a photo of a"), clip.model.token_embedding(ids))


@pytest.mark.parametrize(
    "texts",
    [
        ["a photo of an owl.", "a photo of a boeing 737-200.", "a photo of an owl."],
        ["a photo of", "a photo of an owl."],
        ["a photo of an owl."] * 2,
        ["an owl"],
        ["an owl", "a photo of an owl."],
    ],
    ids=len,
)
def test_texts_that_begin_alike_are_encoded_as_by_themselves(texts: list[str]) -> None:
    clip = small_clip()
    plain = clip.model.encode_text(clip.tokenizer(texts))
    assert close(clip.encode_text(texts), plain)
    assert close(clip.encode_text(texts, chunk=1), plain)
