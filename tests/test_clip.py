"""Loading, identity, precision and capabilities of the frozen model."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from vlprompt import FrozenCLIP, VlpromptError, create_learner, load_clip, load_learner
from vlprompt.clip.towers import TextTower, VisionTower
from vlprompt.testing import NAMES, close, small_clip, small_model, toy_batch


def test_every_architecture_is_read_and_not_typed() -> None:
    """Sizes and capabilities of real architectures, on the meta device, where they take no memory."""
    seen = set()
    for name in ("ViT-B-32", "RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP", "convnext_base", "EVA02-B-16", "MobileCLIP-B"):
        config = open_clip.get_model_config(name)
        with torch.device("meta"):
            custom = config.pop("custom_text", False)
            kind = "coca" if "multimodal_cfg" in config else "custom" if custom else "flat"
            builder = {"coca": open_clip.CoCa, "custom": open_clip.CustomTextCLIP, "flat": open_clip.CLIP}[kind]
            model = builder(**config)
        text, vision = TextTower(model), VisionTower(model)
        assert text.promptable
        assert text.width == config["text_cfg"]["width"]
        assert text.layers == config["text_cfg"].get("layers", 12)
        assert vision.promptable == (name in ("ViT-B-32", "coca_ViT-B-32"))
        assert vision.promptable == (vision.kind == "ViT")
        assert vision.image_size == config["vision_cfg"]["image_size"]
        seen.add((kind, text.shares_prefix, vision.promptable))
    assert len(seen) > 3


def word_tokenizer(texts: list[str], context_length: int = 64) -> torch.Tensor:
    """Like SigLIP's: no start-of-text, one end token that also pads."""
    rows = [[sum(map(ord, word)) % 1000 + 2 for word in text.split()][: context_length - 1] for text in texts]
    return torch.tensor([row + [1] * (context_length - len(row)) for row in rows])


@pytest.mark.parametrize(
    ("name", "shares_prefix", "tokenizer"),
    [("RN50", True, open_clip.SimpleTokenizer()), ("ViT-B-16-SigLIP", False, word_tokenizer)],
)
def test_text_methods_work_on_image_towers_that_take_no_prompts(name: str, shares_prefix: bool, tokenizer) -> None:
    config = open_clip.get_model_config(name)
    config["vision_cfg"] |= {"image_size": 64} if "layers" in config["vision_cfg"] else {}
    model = (open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP)(**config)
    clip = FrozenCLIP(model, tokenizer, device="cpu")
    assert (clip.text.shares_prefix, clip.visual.promptable) == (shares_prefix, False)
    texts = [f"a photo of a {n}." for n in ("cat", "spotted dog")]
    images = torch.randn(2, 3, clip.image_size, clip.image_size)
    with torch.no_grad():
        assert close(clip.encode_image(images), model.encode_image(images))
        assert close(clip.encode_text(texts), model.encode_text(tokenizer(texts)))
    learner = create_learner("coop", clip, ["cat", "spotted dog"], ctx_init="a photo of a")
    assert close(learner.classifier_matrix(), torch.nn.functional.normalize(clip.encode_text(texts), dim=-1))
    learner.backward(learner.loss({"image": images, "label": torch.arange(2)}))
    assert all(p.grad.norm() > 0 for p in learner.trainable_parameters())
    with pytest.raises(VlpromptError, match="takes no visual prompts; use a ViT of OpenCLIP or a text-only method"):
        create_learner("maple", clip, NAMES, depth=1)


def test_random_weights_are_said_and_are_the_same_every_time() -> None:
    with pytest.warns(UserWarning, match="random weights"):
        clip = load_clip("ViT-S-32-alt", pretrained="random", device="cpu")
    assert clip.identity() == load_clip("ViT-S-32-alt", pretrained="random", device="cpu").identity()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_checkpoints_on_disk_load_without_pickle(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = load_clip("ViT-S-32-alt", pretrained="random", device="cpu")
    file = tmp_path / f"weights{suffix}"
    state = {k: v.contiguous() for k, v in source.model.state_dict().items()}
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    clip = load_clip("ViT-S-32-alt", checkpoint=file, device="cpu")
    assert clip.identity()["weights"] == source.identity()["weights"]
    with pytest.raises(VlpromptError, match="does not fit the architecture ViT-B-32"):
        load_clip("ViT-B-32", checkpoint=file, device="cpu")


def test_openai_state_dicts_bring_their_activation(tmp_path: Path) -> None:
    model = small_model()
    state = {k: v.half() for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "openai.safetensors")
    clip = load_clip("ViT-B-32", checkpoint=tmp_path / "openai.safetensors", device="cpu")
    assert clip.activation() == "QuickGELU"
    assert clip.image_size == 32
    assert close(clip.encode_image(toy_batch()["image"]), model.encode_image(toy_batch()["image"]), 0.01)


def test_a_pickle_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": model_object()}, tmp_path / "evil.pt")
    with pytest.raises(VlpromptError, match="holds no state dict"):
        load_clip("ViT-B-32", checkpoint=tmp_path / "evil.pt", device="cpu")


def model_object() -> object:
    return Path  # any object that is no tensor


def test_local_folder(tmp_path: Path) -> None:
    config = open_clip.get_model_config("ViT-S-32-alt")
    clip = load_clip("ViT-S-32-alt", pretrained="random", device="cpu")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}})
    )
    save_file({k: v.contiguous() for k, v in clip.model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    local = load_clip(f"local-dir:{tmp_path}", device="cpu")
    assert local.identity()["weights"] == clip.identity()["weights"]
    assert local.image_mean == (0.5, 0.5, 0.5)
    learner = create_learner("coop", local, NAMES, n_ctx=2)
    learner.save_pretrained(tmp_path / "learner")
    assert load_learner(tmp_path / "learner", device="cpu").class_names == NAMES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "ViT-B-61"}, r"unknown backbone 'ViT-B-61': did you mean ViT-B-16"),
        ({"name": "ViT-B-16"}, r"ViT-B-16 needs weights: pretrained=TAG \(openai, "),
        (
            {"name": "ViT-B-16", "pretrained": "openia"},
            r"unknown pretrained tag 'openia' for ViT-B-16: did you mean openai",
        ),
        ({"name": "ViT-B-16", "checkpoint": "/no/file.pt"}, r"no checkpoint at /no/file.pt"),
        ({"name": "ViT-B-16", "checkpoint": "x.pt", "pretrained": "openai"}, r"no checkpoint at x.pt"),
        ({"name": "ViT-B-16", "checkpoint": "x.pt", "pretrained": "openay"}, r"unknown pretrained tag 'openay'"),
        ({"name": "ViT-B-16", "checkpoint": "x.pt", "pretrained": "random"}, r"not both"),
        ({"name": "local-dir:/nowhere", "checkpoint": "x.pt"}, r"local-dir:/nowhere has its own weights"),
        ({"name": __file__}, r"test_clip.py is a file: name its architecture"),
        ({"name": ("model", None, None)}, r"a backbone is a name or a model, not tuple"),
        ({"name": "local-dir:/nowhere"}, r"local-dir:/nowhere: no usable OpenCLIP model there"),
        ({"name": "vlprompt-tiny", "pretrained": "openai"}, r"vlprompt-tiny has its own weights"),
        ({"name": "vlprompt-tiny", "precision": "fp8"}, r"unknown precision 'fp8': use fp32, bf16, fp16"),
        ({"name": "vlprompt-tiny", "precision": "fp16"}, r"precision=fp16 needs a CUDA device"),
        ({"name": "vlprompt-tiny", "device": "tpu9"}, r"device 'tpu9' is not available here"),
    ],
)
def test_bad_requests_are_answered_in_one_sentence(arguments: dict, message: str) -> None:
    with pytest.raises(VlpromptError, match=message) as error:
        load_clip(**({"device": "cpu"} | arguments))
    assert "\n" not in str(error.value)


def test_weights_that_cannot_be_fetched_name_cache_and_offline_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        VlpromptError, match=r"could not fetch the weights 'openai' of ViT-B-16 .*cache folder is .*offline: "
    ):
        load_clip("ViT-B-16", pretrained="openai", device="cpu")


def test_quick_gelu_follows_the_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setattr(
        "vlprompt.clip.loading.open_clip.create_model", lambda name, **kwargs: asked.update(kwargs) or small_model()
    )
    load_clip("ViT-B-32", pretrained="openai", device="cpu")
    assert asked["force_quick_gelu"]
    load_clip("ViT-B-32", pretrained="laion2b_s34b_b79k", device="cpu")
    assert not asked["force_quick_gelu"]


def test_identity_does_not_depend_on_precision_but_on_weights() -> None:
    assert small_clip().identity() == small_clip("bf16").identity()
    other = small_model()
    with torch.no_grad():
        other.ln_final.weight[0] += 1
    changed = FrozenCLIP(other, open_clip.SimpleTokenizer(), device="cpu").identity()
    assert changed["weights"] != small_clip().identity()["weights"]


def test_bf16_towers_hold_their_matrices_in_bf16() -> None:
    clip = small_clip("bf16")
    block = clip.model.transformer.resblocks[0]
    assert block.mlp.c_fc.weight.dtype == torch.bfloat16
    assert block.ln_1.weight.dtype == torch.float32
    assert clip.encode_text(NAMES).dtype == torch.float32
    assert close(clip.encode_text(NAMES), small_clip().encode_text(NAMES), 0.03)


def test_class_prompts_are_tokenised_once_for_all_learners_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, names = FrozenCLIP(small_model(), open_clip.SimpleTokenizer(), device="cpu"), ["cat", "white dog", "owl"]
    first = create_learner("coop", clip, names, n_ctx=4)
    asked: list[int] = []
    tokenize = clip.tokenizer

    def asking(texts: list[str], **options: int) -> torch.Tensor:
        asked.append(len(texts))
        return tokenize(texts, **options)

    monkeypatch.setattr(clip, "tokenizer", asking)
    second = create_learner("kgcoop", clip, names, n_ctx=4, ctx_init=None)
    assert second.tokens is first.tokens
    second.set_class_names(["okapi", "tapir"])
    again = len(asked)
    second.set_class_names(names)
    second.set_class_names(["okapi", "tapir"])
    assert len(asked) == again > 0
    assert torch.equal(second.tokens.ids, clip._class_tokens(["okapi", "tapir"], "", 4, ".").ids)
    monkeypatch.setattr("vlprompt.clip.prompt_inputs.LISTS_KEPT", 1)
    clip.class_tokens(names, inserted=5)
    assert clip.class_tokens(names, inserted=4) is not first.tokens


@pytest.mark.parametrize("change", [{"dtype": torch.float16}, {"dtype": torch.float64}, {"device": "meta"}])
def test_a_model_that_was_moved_behind_its_learners_is_told(change: dict[str, object]) -> None:
    clip = FrozenCLIP(small_model(), open_clip.SimpleTokenizer(), device="cpu")
    learner, images = create_learner("vpt", clip, NAMES, depth=2), toy_batch()["image"]
    clip.model.to(**change)
    for use in (lambda: learner(images), lambda: clip.encode_image(images), lambda: clip.encode_text(["a cat"])):
        with pytest.raises(VlpromptError, match=r"the model inside custom was moved to .* make another"):
            use()


@pytest.mark.parametrize("change", [{"dtype": torch.float16}, {"dtype": torch.float64}, {"device": "meta"}])
def test_a_learner_stays_with_its_model(change: dict[str, object]) -> None:
    learner = create_learner("coop", small_clip(), NAMES, n_ctx=2)
    with pytest.raises(VlpromptError, match="a learner stays in fp32 on cpu, where its frozen model is"):
        learner.to(**change)
    assert learner.prompt.ctx.dtype == torch.float32
    assert learner.to("cpu").float() is learner


def test_a_pooling_whose_features_no_text_fits_is_refused() -> None:
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "attentional_pool": "parallel"}
    text = {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    model = open_clip.CLIP(64, vision | {"attn_pooler_heads": 2}, text)
    with pytest.raises(VlpromptError, match=r"attentional_pool=parallel or cascade gives features \(B, 1, D\)"):
        FrozenCLIP(model, open_clip.SimpleTokenizer(), device="cpu")
