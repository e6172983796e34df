"""What analysis says is what the towers compute, for every method that it applies to."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlprompt import VlpromptError, analysis, create_learner, list_methods, load_clip, load_split, method_info
from vlprompt.learner import PromptLearner
from vlprompt.learner.recording import ImageRecorder, extra_edits
from vlprompt.testing import NAMES, close, fit, make, small_clip, toy_batch

IMAGES = toy_batch()["image"][:3]
# what is seen of whole images: a mask prompt's tokens stand where a mask hides something
TRAINS = {name: method_info(name)["trains"] for name in list_methods() if "mask" not in method_info(name)["inputs"]}
TEXT = [name for name, trains in TRAINS.items() if "text" in trains]
NO_TOKENS = ("clip_lora", "mma")  # what they learn in the image tower are no tokens of it
VISION = [name for name, trains in TRAINS.items() if "vision" in trains and name not in NO_TOKENS]


@pytest.fixture(autouse=True)
def _without_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")


def is_drawn(figure, tmp_path) -> bool:
    """Whether a figure can be saved, as PNG and PDF, and is not blank."""
    figure.savefig(tmp_path / "figure.pdf")
    figure.savefig(tmp_path / "figure.png")
    return np.asarray(Image.open(tmp_path / "figure.png").convert("L")).std() > 5


def as_if_trained(learner: PromptLearner) -> PromptLearner:
    """Learnables somewhere else than where they started."""
    with torch.no_grad():
        for parameter in learner.trainable_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return learner


# Words


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple", "promptsrc"])
def test_a_context_that_starts_from_words_is_nearest_to_them(method: str, tmp_path) -> None:
    learner = make(method, ctx_init="a photo of a", n_ctx=4)
    found = analysis.nearest_words(learner, top=3)
    assert [words[0] for words in found.words[0]] == ["a", "photo", "of", "a"]
    assert found.distances.shape == (1, 4, 3)
    assert found.distances[0, :, 0].max() < 1e-2 < found.distances[0, :, 1].min()
    assert found.distances[0, :, 1:].min() >= found.distances[0, :, :1].max()
    assert "photo (0.0" in str(found)
    assert is_drawn(analysis.plot_nearest_words(found), tmp_path)


def test_distances_are_euclidean_and_spacing_is_between_words() -> None:
    learner = as_if_trained(make("coop", n_ctx=2))
    found = analysis.nearest_words(learner, vocabulary=["cat", "dog", "owl"])
    clip = learner.clip
    words = {word: clip.word_embeddings(word)[0] for word in ("cat", "dog", "owl")}
    for vector, names, distances in zip(learner.prompt.ctx.detach(), found.words[0], found.distances[0], strict=True):
        expected = {word: float((vector - e).norm()) for word, e in words.items()}
        assert names == sorted(expected, key=expected.get)
        assert distances.tolist() == pytest.approx(sorted(expected.values()), abs=1e-3)
    apart = [min(float((words[a] - words[b]).norm()) for b in words if b != a) for a in words]
    assert found.spacing == pytest.approx(sorted(apart)[1], abs=1e-3)


def test_what_enters_the_tower_is_read_not_what_is_stored() -> None:
    learner = as_if_trained(make("pre", n_ctx=2, ctx_init=None))
    words = ["cat", "dog", "owl"]
    baked = analysis.nearest_words(learner.bake(), vocabulary=words)
    assert analysis.nearest_words(learner, vocabulary=words).distances == pytest.approx(baked.distances, abs=1e-4)
    assert learner.edits == []  # nothing is left behind


def test_each_class_and_each_prompt_has_its_words() -> None:
    specific = analysis.nearest_words(make("coop", n_ctx=2, class_specific=True), vocabulary=["cat", "dog"])
    assert specific.sets == NAMES
    assert specific.distances.shape == (len(NAMES), 2, 2)
    collection = analysis.nearest_words(make("proda", n_prompts=4, prompts_per_step=2, n_ctx=2), vocabulary=["cat"])
    assert collection.sets[-1] == "prompt 4"
    assert collection.distances.shape == (4, 2, 1)


def test_words_that_the_tiny_backbone_never_saw_are_left_out() -> None:
    clip = load_clip("vlprompt-tiny")
    found = analysis.nearest_words(create_learner("coop", clip, NAMES, n_ctx=8), top=20)
    assert len(np.unique(found.distances.numpy())) > 100  # thousands of tokens share one row, at one distance


@pytest.mark.parametrize("method", ["vpt", "zero_shot"])
def test_no_text_context_no_words(method: str) -> None:
    with pytest.raises(VlpromptError, match="learns no words"):
        analysis.nearest_words(make(method))


def test_a_word_of_several_tokens_is_refused() -> None:
    with pytest.raises(VlpromptError, match=r"'zygomorphic' is \d tokens"):
        analysis.nearest_words(make("coop"), vocabulary=["cat", "zygomorphic"])


# Attention


def weights_of_open_clip(learner: PromptLearner) -> list[Tensor]:
    """Attention weights (B, H, T, T) of each block by torch's own module, on the states that enter it."""
    tower, out = learner.clip.visual, []

    def keep(norm: torch.nn.Module, _, y: Tensor) -> None:
        block = next(block for block in tower.blocks if block.module.ln_1 is norm)
        out.append(block.attn(y, y, y, need_weights=True, average_attn_weights=False)[1])

    hooks = [block.module.ln_1.register_forward_hook(keep) for block in tower.blocks]
    with extra_edits(learner, ImageRecorder()):  # so that the last block asks for all tokens
        learner.encode_images({"image": IMAGES})
    for hook in hooks:
        hook.remove()
    return out


@pytest.mark.parametrize("method", VISION)
def test_attention_maps_equal_those_of_torchs_own_module(method: str) -> None:
    learner = as_if_trained(make(method))
    maps = analysis.attention_maps(learner, IMAGES)
    expected = torch.stack(weights_of_open_clip(learner), dim=1).detach()  # (B, L, H, T, T)
    own = 1 + 4 * 4
    n = expected.shape[-1] - own
    assert maps.cls.shape == (3, 3, 2, 4, 4)
    assert maps.prompts.shape == (3, 3, 2, n, 4, 4)
    assert n > 0
    assert close(maps.cls.flatten(-2), expected[..., 0, 1:own])
    assert close(maps.prompts.flatten(-2), expected[..., own:, 1:own])
    assert close(maps.shares[..., 0, 2], expected[..., 0, own:].sum(dim=-1))
    assert torch.allclose(maps.shares.sum(dim=-1), torch.ones(()), atol=1e-5)


def test_watching_changes_no_feature_and_ends() -> None:
    learner = as_if_trained(make("maple"))
    tower, before = learner.clip.visual, learner.encode_images({"image": IMAGES})
    recorder = ImageRecorder()
    with extra_edits(learner, recorder):
        assert close(learner.encode_images({"image": IMAGES}), before)
    assert sorted(recorder.states) == [0, 1, 2]
    assert close(tower.project(recorder.states[2][0][:, :17]), before)
    analysis.attention_maps(learner, IMAGES)
    assert learner.edits == []
    assert torch.equal(learner.encode_images({"image": IMAGES}), before)


def test_a_tower_that_is_left_alone_has_maps_of_cls_only(tmp_path) -> None:
    frozen, text_only = analysis.attention_maps(small_clip(), IMAGES), analysis.attention_maps(make("coop"), IMAGES)
    assert torch.equal(frozen.cls, text_only.cls)
    assert frozen.prompts.shape[3] == 0
    assert (frozen.shares[..., 2] == 0).all()
    learner = make("vpt", n_ctx=2)
    maps = analysis.attention_maps(learner, IMAGES)
    assert is_drawn(analysis.plot_attention(maps, frozen=frozen), tmp_path)
    assert is_drawn(analysis.plot_attention(maps, layer=0, head=1), tmp_path)
    assert is_drawn(analysis.plot_attention_heads(maps, image=1, token=2), tmp_path)


def test_a_resnet_has_no_attention_maps() -> None:
    with pytest.raises(VlpromptError, match="need a ViT of OpenCLIP, and its image tower is ResNet"):
        analysis.attention_maps(make("coop", small_clip(resnet=True)), IMAGES)


# Feature shift


def plain_shift(changed: Tensor, original: Tensor) -> Tensor:
    return (changed - original).norm(dim=-1) / original.norm(dim=-1)


def test_text_shift_equals_the_plain_computation() -> None:
    """Full-length sequences through OpenCLIP's own blocks, read at end-of-text behind each."""
    learner = as_if_trained(make("maple"))
    clip, model = learner.clip, learner.clip.model
    ids = clip.tokenizer([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    ends = ids.argmax(dim=1)

    def states(deep: list[Tensor]) -> list[Tensor]:
        x, out = model.token_embedding(ids), []
        if deep:
            x[:, 1:3] = deep[0]
        x = x + model.positional_embedding
        for i, block in enumerate(model.transformer.resblocks):
            if 0 < i < len(deep):
                x = torch.cat([x[:, :1], deep[i].expand(len(x), -1, -1), x[:, 3:]], dim=1)
            x = block(x, attn_mask=model.attn_mask)
            out.append(x[range(len(ids)), ends])
        return out

    with torch.no_grad():
        pairs = zip(states([learner.prompt.ctx, *learner.prompt.deep]), states([]), strict=True)
        expected = torch.stack([plain_shift(a, b) for a, b in pairs])
    assert close(analysis.feature_shift(learner, IMAGES).text, expected, 1e-4)


def test_image_shift_is_read_at_cls_behind_each_block() -> None:
    learner = as_if_trained(make("vpt"))
    shift = analysis.feature_shift(learner, IMAGES)
    module = learner.clip.visual.module
    kept: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _, __, out: kept.append(out[:, 0])) for b in module.transformer.resblocks]
    module(IMAGES)
    for hook in hooks:
        hook.remove()
    recorder = ImageRecorder()
    with extra_edits(learner, recorder), torch.no_grad():
        learner.encode_images({"image": IMAGES})
    expected = torch.stack([plain_shift(recorder.states[i][0][:, 0], kept[i]) for i in range(3)])
    assert close(shift.image, expected, 1e-4)
    without = F.normalize(learner.clip.encode_image(IMAGES), dim=-1)
    assert close(shift.image_feature, plain_shift(learner.image_features(IMAGES), without).detach(), 1e-4)


@pytest.mark.parametrize("method", TRAINS)
def test_only_what_is_prompted_shifts(method: str) -> None:
    learner = as_if_trained(make(method))
    chunked = as_if_trained(make(method, text_chunk=2))
    shift = analysis.feature_shift(learner, IMAGES)
    assert torch.isfinite(torch.cat([shift.text.flatten(), shift.image.flatten()])).all()
    assert (len(shift.text), len(shift.image), len(shift.discrepancy)) == (3, 3, 3)
    assert bool((shift.text[1:] > 0).all()) == ("text" in TRAINS[method])
    assert bool((shift.image[1:] > 0).all()) == ("vision" in TRAINS[method])  # some leave the first block alone
    assert bool((shift.text_feature > 0).all()) == ("text" in TRAINS[method])
    assert bool((shift.image_feature > 0).all()) == (not learner.facts.cacheable_images)
    assert close(analysis.feature_shift(chunked, IMAGES).text, shift.text, 1e-3)  # of shifts of a thousandth


def test_a_prompt_that_says_the_template_shifts_nothing(tmp_path) -> None:
    shift = analysis.feature_shift(make("coop", ctx_init="a photo of a"), IMAGES)
    assert shift.text.max() < 1e-5
    assert shift.text_feature.max() < 1e-5
    moved = analysis.feature_shift(as_if_trained(make("maple")), IMAGES)
    assert close(moved.discrepancy, (moved.text.mean(dim=1) - moved.image.mean(dim=1)).abs())
    assert is_drawn(analysis.plot_feature_shift(moved), tmp_path)


def test_variants_that_leave_the_text_alone_do_not_shift_it() -> None:
    assert analysis.feature_shift(as_if_trained(make("mvlpt", variant="mvpt")), IMAGES).text.max() == 0
    assert analysis.feature_shift(as_if_trained(make("ivlp", vision_depth=0)), IMAGES).image.max() == 0


def test_text_shift_on_a_resnet() -> None:
    shift = analysis.feature_shift(make("coop", small_clip(resnet=True)), IMAGES)
    assert shift.text.shape == (3, len(NAMES))
    assert shift.image.shape == (0, 3)


# Projection


@pytest.mark.parametrize("method", ["coop", "cocoop", "vpt", "proda", "zero_shot"])
def test_projection_keeps_both_before_and_after_in_one_plane(method: str, tmp_path) -> None:
    learner = make(method)
    if TRAINS[method]:
        fit(learner, 2, lr=0.05)
    batch = toy_batch()
    projection = analysis.project_features(learner, batch["image"], batch["label"])
    assert projection.image_before.shape == projection.image_after.shape == (10, 2)
    assert projection.text_before.shape == projection.text_after.shape == (len(NAMES), 2)
    moved = np.abs(projection.image_after - projection.image_before).max() > 1e-4
    assert moved == ("vision" in TRAINS[method])
    assert 0 < sum(projection.explained) <= 1
    assert is_drawn(analysis.plot_projection(projection), tmp_path)


def test_the_plane_is_that_of_the_principal_components() -> None:
    learner, batch = as_if_trained(make("maple")), toy_batch()
    p = analysis.project_features(learner, batch["image"], batch["label"], close_gap=False)
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    with torch.no_grad():
        features = torch.cat(
            [
                F.normalize(learner.clip.encode_image(batch["image"]), dim=-1),
                learner.image_features(batch["image"]),
                F.normalize(learner.clip.encode_text(texts), dim=-1),
                learner.text_features(),
            ]
        )
    centred = features - features.mean(dim=0)
    expected = centred @ torch.linalg.svd(centred).Vh[:2].T
    points = np.concatenate([p.image_before, p.image_after, p.text_before, p.text_after])
    assert np.allclose(np.abs(points), expected.abs().numpy(), atol=1e-4)
    gap = analysis.project_features(learner, batch["image"], batch["label"])
    assert np.allclose(gap.image_before.mean(axis=0), gap.text_before.mean(axis=0), atol=1e-5)


def test_tsne_is_the_same_every_time_and_wrong_input_is_refused(tmp_path) -> None:
    learner, batch = make("coop"), toy_batch()
    a, b = (analysis.project_features(learner, batch["image"], batch["label"], "tsne", seed=1) for _ in range(2))
    assert np.array_equal(a.text_after, b.text_after)
    assert a.explained is None
    assert is_drawn(analysis.plot_projection(a), tmp_path)
    with pytest.raises(VlpromptError, match="use pca or tsne"):
        analysis.project_features(learner, batch["image"], batch["label"], "umap")
    with pytest.raises(VlpromptError, match=r"labels must be whole numbers \(9,\)"):
        analysis.project_features(learner, batch["image"][:9], batch["label"])


# Template spread, samples, imports


def test_template_spread_is_over_single_templates(tmp_path) -> None:
    clip, splits = load_clip("vlprompt-tiny"), load_split("digits")
    learner = create_learner("zero_shot", clip, splits.class_names)
    templates = ["a photo of the number {}.", "{}", "art of a {}."]
    found = analysis.template_spread(learner, splits, templates, limit=50)
    assert list(found.by_template) == templates
    values = found.by_template.values()
    assert found.spread == max(values) - min(values)
    assert found.n_images == 50
    single = create_learner("zero_shot", clip, splits.class_names, templates=templates[:1])
    assert analysis.template_spread(single, splits, templates, limit=50).by_template == found.by_template
    assert is_drawn(analysis.plot_template_spread(found), tmp_path)
    many = analysis.TemplateSpread({f"{i} {{}}": float(i) for i in range(40)}, 20, 30, "coop", 9)
    labels = [t.get_text() for t in analysis.plot_template_spread(many).axes[0].get_yticklabels()]
    assert labels[0] == "0 {}"
    assert labels[10] == "… 20 more …"
    with pytest.raises(VlpromptError, match="two templates or more"):
        analysis.template_spread(learner, splits, ["{}"])


def test_samples_are_of_each_class() -> None:
    clip = load_clip("vlprompt-tiny")
    samples = analysis.sample_images(clip, "digits", per_class=2)
    assert samples.images.shape == (20, 3, clip.image_size, clip.image_size)
    assert samples.labels.tolist() == [i // 2 for i in range(20)]


def test_matplotlib_waits_for_the_first_figure() -> None:
    for path in Path(analysis.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
            assert not any((name or "").startswith("matplotlib") for name in names), f"{path.name} imports it on top"
