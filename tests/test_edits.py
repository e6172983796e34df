"""Edits inside the towers: exact wherever prefixes are shared, as long as they say where classes part."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.model import CLIP
from torch import Tensor, nn

from vlprompt import FrozenCLIP, VlpromptError, analysis, list_methods, method_info
from vlprompt.clip.edits import Edit, FullLength, Rows, Trimmed
from vlprompt.clip.text import encode_prompts, encode_prompts_plain
from vlprompt.clip.vision import encode_images
from vlprompt.learner.edits import LayerNorms
from vlprompt.learner.learning import groups_of
from vlprompt.learner.prompts import TextPrompt
from vlprompt.learner.recording import ImageRecorder, TextRecorder, extra_edits
from vlprompt.testing import NAMES, close, make, small_clip, toy_batch

ALIKE = ("boeing 737-200", "boeing 737-300", "boeing", "an owl", "an owl")
IMAGES = toy_batch()["image"][:3]
N_CTX, LAYERS, RANK, JOINS = 4, 3, 2, 1


class Learnt(Edit, nn.Module):
    """An edit with matrices of its own, far from zero."""

    def __init__(self, clip: FrozenCLIP, tower: str):
        super().__init__()
        self.tower, self.view = tower, clip.text if tower == "text" else clip.visual
        self.width = self.view.width
        self.build()

    def matrix(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)


class LowRank(Learnt):
    """As CLIP-LoRA: updates of q, k, v and o, and of the MLP."""

    def build(self) -> None:
        hidden = self.view.blocks[0].module.mlp.c_fc.out_features
        self.mlp_down = nn.ParameterDict(
            {"fc": self.matrix(LAYERS, self.width, RANK), "proj": self.matrix(LAYERS, hidden, RANK)}
        )
        self.mlp_up = nn.ParameterDict(
            {"fc": self.matrix(LAYERS, RANK, hidden), "proj": self.matrix(LAYERS, RANK, self.width)}
        )
        self.down = nn.ParameterDict({part: self.matrix(LAYERS, self.width, RANK) for part in "qkvo"})
        self.up = nn.ParameterDict({part: self.matrix(LAYERS, RANK, self.width) for part in "qkvo"})

    def project(self, layer: int, x: Tensor, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {part: t + x @ self.down[part][layer] @ self.up[part][layer] for part, t in parts.items()}

    def mlp(self, layer: int, part: str, x: Tensor, out: Tensor) -> Tensor:
        return out + x @ self.mlp_down[part][layer] @ self.mlp_up[part][layer]


class Norms(Learnt):
    """Norms that scale and shift on their own."""

    def build(self) -> None:
        self.scale, self.shift = self.matrix(LAYERS, self.width), self.matrix(LAYERS, self.width)

    def normed(self, layer: int, norm: str, x: Tensor, out: Tensor) -> Tensor:
        return out * (1 + self.scale[layer]) + self.shift[layer] * (2 if norm == "mlp" else 1)

    def tower_normed(self, norm: str, x: Tensor) -> Tensor:
        return x * (1 + self.scale[-1]) + self.shift[0] * (2 if norm == "pre" else 1)


class Approximated(Learnt):
    """As APT: many prompts as a term behind attention."""

    def build(self) -> None:
        self.prompt, self.gamma = self.matrix(8, self.width), nn.Parameter(torch.full((self.width,), 0.1))

    def attended(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        weights = F.relu(self.view.blocks[layer].normed(x) @ self.prompt.T)
        return (out + weights.amax(dim=-1, keepdim=True).detach() * (weights @ self.prompt)) * self.gamma.exp()


class Side(Learnt):
    """As MMA: a branch from the block's input to its output."""

    def build(self) -> None:
        self.down, self.up = self.matrix(self.width, RANK), self.matrix(RANK, self.width)

    def finished(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        return out + F.relu(self.view.blocks[layer].normed(x) @ self.down) @ self.up if layer else out


class ClassAware(Learnt):
    """As TCP: tokens of each class's own in the place of the context, from a block on."""

    shared_until = JOINS

    def build(self) -> None:
        self.own = self.matrix(1, len(NAMES), N_CTX, self.width)

    def tokens(self, layer: int, x: Tensor, rows: Rows) -> Tensor:
        if layer != JOINS:
            return x
        own = rows.take(self.own).expand(*x.shape[:2], -1, -1)
        return torch.cat([x[..., :1, :], own, x[..., 1 + N_CTX :, :]], dim=-2)


class OfEachPrompt(ClassAware):
    """Class-aware tokens that differ between groups, as those of an image would."""

    def build(self) -> None:
        self.own = self.matrix(3, len(NAMES), N_CTX, self.width)


class AtTheStart(ClassAware):
    """Class-aware tokens from the first block on: nothing is shared."""

    shared_until = 0


class Representation(Learnt):
    """As MMRL: tokens that lengthen the sequence in upper blocks, replaced block by block; behind the context."""

    def build(self) -> None:
        self.rep = self.matrix(LAYERS, 3, self.width)

    def tokens(self, layer: int, x: Tensor, rows: Rows) -> Tensor:
        if layer < JOINS:
            return x
        at = 1 + N_CTX if self.tower == "text" else x.shape[-2] - 3 * (layer > JOINS)
        rep = self.rep[layer].expand(*x.shape[:-2], -1, -1)
        return torch.cat([x[..., :at, :], rep, x[..., at + 3 * (layer > JOINS) :, :]], dim=-2)


class Masked(Learnt):
    """As OVSeg: patches that a mask hides are learnt ones."""

    def build(self) -> None:
        self.hidden = self.matrix(2, 16, self.width)
        self.mask = torch.rand(3, 16, 1) > 0.5

    def embedded(self, x: Tensor) -> Tensor:
        return self.blend(x, self.hidden[0] + self.view.positions[1:])

    def tokens(self, layer: int, x: Tensor, rows: Rows) -> Tensor:
        return self.blend(x, self.hidden[1]) if layer == 1 else x

    def blend(self, x: Tensor, hidden: Tensor) -> Tensor:
        patches = torch.where(self.mask, x[:, 1:17], hidden)
        return torch.cat([x[:, :1], patches, x[:, 17:]], dim=1)


class WholeLast(Edit):
    """Changes nothing, but has the last block compute all tokens."""

    tower = "vision"
    needs_all_tokens = True


TEXT = [LowRank, Norms, Approximated, Side, ClassAware, AtTheStart, Representation]
COMBINED = ((LowRank, Representation, Side, ClassAware), (OfEachPrompt, Approximated))


def made(kinds: Sequence[type[Learnt]], clip: FrozenCLIP, tower: str) -> nn.ModuleList:
    torch.manual_seed(1)
    return nn.ModuleList(kind(clip, tower) for kind in kinds)


def assert_same(ways: dict[str, Tensor], leaves: list[Tensor], tolerance: float = 2e-5) -> None:
    """All ways give the features and the gradients of the way called plain."""
    plain = ways.pop("plain")
    direction = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * direction).sum(), leaves, allow_unused=True)
    assert sum(g is not None and bool(g.any()) for g in expected) > len(leaves) / 2
    for way, features in ways.items():
        assert close(features, plain, tolerance), way
        got = torch.autograd.grad((features * direction).sum(), leaves, allow_unused=True)
        for ours, theirs in zip(got, expected, strict=True):
            assert (ours is None) == (theirs is None), way
            assert ours is None or close(ours, theirs, tolerance), way


@pytest.mark.parametrize("layout", [{}, {"custom_text": True}], ids=["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    "kinds", [*((kind,) for kind in TEXT), *COMBINED], ids=lambda k: "+".join(c.__name__ for c in k)
)
def test_edited_text_is_exact_where_prefixes_are_shared(kinds, groups: int, layout: dict) -> None:
    clip = small_clip(**layout)
    if OfEachPrompt in kinds and groups == 1:
        pytest.skip("its tokens are those of three groups")
    edits = made(kinds, clip, "text")
    prompt = TextPrompt(clip, N_CTX, depth=2)
    ctx = torch.randn(groups, N_CTX, clip.text.width, requires_grad=True)
    names = NAMES if groups == 3 else ALIKE
    prompts = prompt.assemble(clip, prompt.tokenize(clip, names), ctx)
    ways = {
        "plain": encode_prompts_plain(clip.text, prompts, edits),
        "shared": encode_prompts(clip.text, prompts, edits=edits),
        "chunked": clip.encode_prompts(prompts, 2, edits),
        "full length": clip.encode_prompts(prompts, 3, [*edits, FullLength()]),
        "trimmed": clip.encode_prompts(prompts, None, [*edits, Trimmed()]),
    }
    assert not close(ways["plain"], encode_prompts(clip.text, prompts), 1e-3)
    assert_same(ways, [ctx, *prompt.deep, *edits.parameters()])


@pytest.mark.parametrize("position", ["middle", "front"])
def test_edits_apply_where_the_context_stands_behind_the_name(position: str) -> None:
    clip = small_clip()
    edits = made([LowRank, Approximated, Norms], clip, "text")
    prompt = TextPrompt(clip, N_CTX, position=position)
    prompts = prompt.assemble(clip, prompt.tokenize(clip, NAMES), torch.randn(2, N_CTX, clip.text.width))
    ways = {"plain": encode_prompts_plain(clip.text, prompts, edits), "shared": clip.encode_prompts(prompts, 2, edits)}
    assert_same(ways, list(edits.parameters()))


def test_an_edit_that_parts_classes_unsaid_is_refused() -> None:
    class Unsaid(Learnt):
        def build(self) -> None:
            self.own = self.matrix(1, len(NAMES), 1, self.width)

        def tokens(self, layer: int, x: Tensor, rows: Rows) -> Tensor:
            return x + rows.take(self.own) if layer == JOINS else x

    clip = small_clip()
    prompt, edits = TextPrompt(clip, N_CTX), made([Unsaid], clip, "text")
    with pytest.raises(VlpromptError) as error:
        prompt.encode(clip, prompt.tokenize(clip, NAMES), edits=edits)
    assert str(error.value) == "Unsaid gives each class tokens of its own in block 1: set its shared_until to 1"


@pytest.mark.parametrize(
    "kinds",
    [(LowRank,), (Norms,), (Approximated,), (Side,), (Representation,), (Masked,), (Masked, LowRank, Representation)],
    ids=lambda k: "+".join(c.__name__ for c in k),
)
def test_edited_images_are_exact_where_cls_alone_asks(kinds) -> None:
    clip = small_clip()
    edits = made(kinds, clip, "vision")
    visual = {i: torch.randn(2 + i, clip.visual.width, requires_grad=True) for i in range(2)}  # of growing number
    ways = {
        "plain": clip.prompted_image_features(IMAGES, visual, edits=[*edits, WholeLast()]),
        "short": clip.prompted_image_features(IMAGES, visual, edits=edits),
    }
    assert not close(ways["short"], clip.prompted_image_features(IMAGES, visual), 1e-3)
    assert_same(ways, [*visual.values(), *edits.parameters()])


def test_low_rank_updates_are_those_of_the_weights() -> None:
    """Against OpenCLIP's own forward pass with the products added to its matrices."""
    model_of = lambda: small_clip.__wrapped__()  # noqa: E731
    clip, merged = model_of(), model_of()
    for tower in ("text", "vision"):
        (edit,) = made([LowRank], clip, tower)
        for block in (merged.text if tower == "text" else merged.visual).blocks:
            change = {part: (edit.down[part][block.layer] @ edit.up[part][block.layer]).T for part in "qkvo"}
            block.attn.in_proj_weight.data += torch.cat([change[part] for part in "qkv"])
            block.attn.out_proj.weight.data += change["o"]
            for part, layer in (("fc", block.module.mlp.c_fc), ("proj", block.module.mlp.c_proj)):
                layer.weight.data += (edit.mlp_down[part][block.layer] @ edit.mlp_up[part][block.layer]).T
        if tower == "text":
            assert close(clip.encode_text(NAMES, edits=[edit]), merged.model.encode_text(clip.tokenizer(NAMES)))
        else:
            expected = merged.model.encode_image(IMAGES)
            assert close(clip.prompted_image_features(IMAGES, {}, edits=[edit]), expected)


def test_norms_are_those_of_the_model_with_other_scales_and_shifts() -> None:
    """Against OpenCLIP's own forward pass, every norm of both towers changed."""
    model_of = lambda: small_clip.__wrapped__()  # noqa: E731
    clip, changed = model_of(), model_of()

    def change(norm: nn.LayerNorm, scale: Tensor, shift: Tensor) -> None:
        norm.weight.data *= 1 + scale
        norm.bias.data = norm.bias * (1 + scale) + shift

    text, image = (made([Norms], clip, tower)[0] for tower in ("text", "vision"))
    for edit, view in ((text, changed.text), (image, changed.visual)):
        for block in view.blocks:
            change(block.module.ln_1, edit.scale[block.layer], edit.shift[block.layer])
            change(block.module.ln_2, edit.scale[block.layer], 2 * edit.shift[block.layer])
    change(changed.model.ln_final, text.scale[-1], text.shift[0])
    change(changed.model.visual.ln_pre, image.scale[-1], 2 * image.shift[0])
    change(changed.model.visual.ln_post, image.scale[-1], image.shift[0])
    assert close(clip.encode_text(NAMES, edits=[text]), changed.model.encode_text(clip.tokenizer(NAMES)))
    assert close(clip.prompted_image_features(IMAGES, {}, edits=[image]), changed.model.encode_image(IMAGES))


def test_learnt_norms_stand_in_place_of_the_frozen_ones() -> None:
    """They start as these, to the bit; changed, and their gradients, they are OpenCLIP's own norms."""
    changed = small_clip.__wrapped__()
    clip, text, image = small_clip(), LayerNorms(changed, "text"), LayerNorms(changed, "vision", lr_scale=0.1)
    prompts = TextPrompt(clip, N_CTX, depth=2)
    tokens, visual = prompts.tokenize(clip, NAMES), {0: torch.randn(2, clip.visual.width)}
    assert torch.equal(prompts.encode(clip, tokens, edits=[text]), prompts.encode(clip, tokens))
    edited = clip.prompted_image_features(IMAGES, visual, edits=[image])
    assert torch.equal(edited, clip.prompted_image_features(IMAGES, visual))
    for edit, view in ((text, changed.text), (image, changed.visual)):
        for block in view.blocks:
            for norm, module in block.norms.items():
                for ours, theirs in ((edit.weight[norm], module.weight), (edit.bias[norm], module.bias)):
                    theirs.requires_grad_().data += torch.randn_like(theirs) / 2
                    ours.data[block.layer] = theirs.data
    expected = (changed.model.encode_text(clip.tokenizer(NAMES)), changed.model.encode_image(IMAGES))
    found = clip.encode_text(NAMES, edits=[text]), clip.prompted_image_features(IMAGES, {}, edits=[image])
    assert all(map(close, found, expected))
    (expected[1].pow(3).sum()).backward()
    (found[1].pow(3).sum()).backward()
    for block in changed.visual.blocks:
        for norm, module in block.norms.items():
            assert close(image.weight[norm].grad[block.layer], module.weight.grad, 1e-4)
            assert close(image.bias[norm].grad[block.layer], module.bias.grad, 1e-4)
    assert [(g.lr_scale, len(g.parameters)) for g in groups_of(nn.ModuleList([text, image]))] == [(1.0, 4), (0.1, 4)]


def test_a_mask_that_hides_nothing_changes_nothing() -> None:
    clip = small_clip()
    (edit,) = made([Masked], clip, "vision")
    edit.mask = torch.ones(3, 16, 1, dtype=torch.bool)
    assert torch.equal(clip.prompted_image_features(IMAGES, {}, edits=[edit]), clip.encode_image(IMAGES))


def test_extra_tokens_follow_the_published_computation() -> None:
    """MMRL: representation tokens behind start-of-text, at full length through OpenCLIP's own modules."""
    clip, r = small_clip(), torch.randn(3, 64)

    class BehindStart(Edit):
        tower = "text"

        def tokens(self, layer: int, x: Tensor, rows: Rows) -> Tensor:
            if layer < 1:
                return x
            rest = x[..., 1 if layer == 1 else 4 :, :]
            return torch.cat([x[..., :1, :], r.expand(*x.shape[:-2], -1, -1), rest], dim=-2)

    model, ids = clip.model, clip.tokenizer(NAMES)
    x = model.token_embedding(ids) + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        if i:
            x = torch.cat([x[:, :1], r.expand(len(x), -1, -1), x[:, 1 if i == 1 else 4 :]], dim=1)
        x = block(x, attn_mask=torch.full((x.shape[1],) * 2, float("-inf")).triu(1))
    expected = model.ln_final(x)[range(len(ids)), ids.argmax(dim=1) + 3] @ model.text_projection
    assert close(clip.encode_text(NAMES, edits=[BehindStart()]), expected)
    assert close(clip.encode_text(NAMES, edits=[BehindStart(), FullLength()]), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_edit_that_does_nothing_changes_no_bit(precision: str) -> None:
    clip = small_clip(precision)
    text, image = Edit(), Edit()
    text.tower, image.tower = "text", "vision"
    prompt = TextPrompt(clip, N_CTX, depth=2)
    tokens, visual = prompt.tokenize(clip, NAMES), {0: torch.randn(2, clip.visual.width)}
    alone = prompt.encode(clip, tokens), clip.prompted_image_features(IMAGES, visual)
    edited = (
        prompt.encode(clip, tokens, edits=[text, image]),
        clip.prompted_image_features(IMAGES, visual, edits=[text, image]),
    )
    assert all(map(torch.equal, alone, edited))


def test_edits_work_on_bf16_towers() -> None:
    half, full = small_clip("bf16"), small_clip()
    text, image = made([LowRank, Side, Representation], full, "text"), made([LowRank, Side], full, "vision")
    prompt = TextPrompt(full, N_CTX)
    tokens = prompt.tokenize(full, NAMES)
    features, exact = (prompt.encode(clip, tokens, edits=text) for clip in (half, full))
    assert close(features, exact, 0.05)
    features.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in text.parameters())
    visual, exact = (clip.prompted_image_features(IMAGES, {}, edits=image) for clip in (half, full))
    assert close(visual, exact, 0.05)


class FinalNorm(Learnt):
    """A learnable norm in front of the projection."""

    def build(self) -> None:
        self.scale = self.matrix(self.width)

    def tower_normed(self, norm: str, x: Tensor) -> Tensor:
        return x * (1 + self.scale) if norm == "final" else x


def pooling_clip(**vision: object) -> FrozenCLIP:
    vision = {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8, "head_width": 64} | vision
    torch.manual_seed(3)
    model = CLIP(64, vision, {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1})
    return FrozenCLIP(model, SimpleTokenizer(), device="cpu")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_final_norm_is_edited_before_or_after_tokens_are_averaged(after: bool) -> None:
    clip, changed = (pooling_clip(pool_type="avg", final_ln_after_pool=after) for _ in range(2))
    (edit,) = made([FinalNorm], clip, "vision")
    norm = changed.model.visual.ln_post
    norm.weight.data *= 1 + edit.scale
    norm.bias.data *= 1 + edit.scale
    assert close(clip.prompted_image_features(IMAGES, {}, edits=[edit]), changed.model.encode_image(IMAGES))


def test_a_final_norm_inside_attentional_pooling_is_not_passed_over() -> None:
    clip = pooling_clip(attentional_pool=True)
    with pytest.raises(VlpromptError, match="FinalNorm edits the image tower's final norm, and this one pools by"):
        clip.prompted_image_features(IMAGES, {}, edits=made([FinalNorm], clip, "vision"))
    assert clip.prompted_image_features(IMAGES, {}, edits=made([Side], clip, "vision")).isfinite().all()


def test_a_tower_that_is_not_open_clips_own_takes_no_edits() -> None:
    clip = small_clip(resnet=True)
    with pytest.raises(VlpromptError, match="WholeLast edits the vision tower, and this one is not OpenCLIP's own"):
        encode_images(clip.visual, IMAGES, edits=[WholeLast()])


@pytest.mark.parametrize("method", list_methods())
def test_every_method_hands_its_edits_to_the_towers(method: str) -> None:
    learner, trains = make(method).eval(), method_info(method)["trains"]
    text, image = TextRecorder(), ImageRecorder()
    before, own = learner.state_dict().keys(), list(learner.edits)
    with torch.no_grad(), extra_edits(learner, text, image):
        learner(toy_batch()["image"][:2])
    assert bool(text.calls) == ("text" in trains)
    assert sorted(image.states) == [0, 1, 2]
    assert learner.edits == own
    assert learner.state_dict().keys() == before


def test_recorded_text_states_do_not_depend_on_chunks_or_sharing() -> None:
    clip = small_clip()
    prompt = TextPrompt(clip, N_CTX, depth=2)
    prompts = prompt.assemble(clip, prompt.tokenize(clip, NAMES), torch.randn(3, N_CTX, clip.text.width))
    recorders = [TextRecorder() for _ in range(3)]
    clip.encode_prompts(prompts, edits=recorders[:1])
    clip.encode_prompts(prompts, 2, recorders[1:2])
    clip.encode_prompts(prompts, 2, [recorders[2], FullLength()])
    for layer, (whole,) in recorders[0].states.items():
        assert whole.shape == (3, len(NAMES), clip.text.width)
        assert all(close(other.states[layer][0], whole) for other in recorders[1:])


def test_analysis_sees_a_learners_edits() -> None:
    learner = make("coop")
    learner.edits = [*made([Side], learner.clip, "text"), *made([LowRank], learner.clip, "vision")]
    frozen = analysis.attention_maps(learner.clip, IMAGES)
    assert not close(analysis.attention_maps(learner, IMAGES).cls, frozen.cls, 1e-3)
    plain = analysis.feature_shift(make("coop"), IMAGES)
    assert not close(analysis.feature_shift(learner, IMAGES).text, plain.text, 1e-3)
