"""Backbones from files and from models in hand: what belongs to the weights is taken, known or said."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import save_file
from torch import nn

from vlprompt import FrozenCLIP, VlpromptError, create_learner, load_clip, load_learner
from vlprompt.base.sealed import seal
from vlprompt.clip.backbone_files import from_checkpoint
from vlprompt.clip.backbone_tags import PREPROCESSING, common_facts, tag_facts
from vlprompt.testing import NAMES, close, make, small_clip, small_model, toy_batch

SIZES = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 64}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}


class OpenAI(CLIP):
    """OpenAI's layout as their archives hold it: three numbers are buffers, and the mask is a plain tensor."""

    def __init__(self) -> None:
        super().__init__(64, SIZES, TEXT, quick_gelu=True)
        for key, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
            if key in self.__dict__:
                del self.__dict__[key]
            self.register_buffer(key, torch.tensor(value))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.encode_image(image), self.encode_text(text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_an_archive_in_openais_layout_loads_and_equals_its_state_dict(dtype: torch.dtype, tmp_path: Path) -> None:
    # case: OpenAI's `ViT-B-32.pt`, a TorchScript archive, as `checkpoint=`
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OpenAI().eval()
    inputs = torch.randn(1, 3, 32, 32), torch.randint(1, 9, (1, 77))
    traced = torch.jit.trace(model, inputs, check_trace=False).to(dtype)
    torch.jit.save(traced, tmp_path / "ViT-B-32.pt")
    state = torch.jit.load(tmp_path / "ViT-B-32.pt").state_dict()
    assert {"input_resolution", "visual.conv1.weight", "transformer.resblocks.0.attn.in_proj_weight"} <= state.keys()
    with pytest.warns(UserWarning, match=r"other sizes than ViT-B-32 \(image_size is 32, not 224\)"):
        clip = load_clip("ViT-B-32", checkpoint=tmp_path / "ViT-B-32.pt", device="cpu")
    loaded = clip.model.state_dict()
    for key in ("input_resolution", "context_length", "vocab_size", "attn_mask"):
        state.pop(key, None)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value.float()) for key, value in state.items())
    assert (clip.activation(), clip.image_size, clip.image_mean) == ("QuickGELU", 32, open_clip.OPENAI_DATASET_MEAN)
    reference = model.to(dtype).float()
    assert close(clip.encode_image(inputs[0]), reference.encode_image(inputs[0]))
    learner = create_learner("maple", clip, NAMES, depth=2)
    assert learner.predict({"image": inputs[0]}).shape == (1, len(NAMES))


def test_every_published_tag_brings_its_preprocessing_and_activation() -> None:
    # case: `backbone=MobileCLIP-S1 checkpoint=FILE` (58 published tags differ from the defaults like this)
    unlike = 0
    for name, tag in open_clip.list_pretrained():
        published, facts = get_pretrained_cfg(name, tag), tag_facts(name, tag)
        assert facts.preprocessing == {key: published[key] for key in PREPROCESSING}
        built = open_clip.get_model_config(name).get("quick_gelu", False)
        assert facts.quick_gelu == (bool(published.get("quick_gelu")) or built)
        common = common_facts(name)
        for key in PREPROCESSING:
            told = any(key in doubt for doubt in common.doubts)
            assert told or common.preprocessing[key] == facts.preprocessing[key], (name, tag, key)
        assert any("GELU" in doubt for doubt in common.doubts) or common.quick_gelu == facts.quick_gelu, (name, tag)
        unlike += facts.preprocessing != common_facts("ViT-B-32").preprocessing
    assert unlike >= 50


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a small architecture that bears whatever name is asked for."""
    model = small_model(quick_gelu=False)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "weights.safetensors")

    def create(_: str, *, force_quick_gelu: bool, force_preprocess_cfg: dict, **__: object) -> CLIP:
        made = small_model(quick_gelu=force_quick_gelu)
        open_clip.model.set_model_preprocess_cfg(made, {"size": 32, "mode": "RGB", **force_preprocess_cfg})
        return made

    monkeypatch.setattr("vlprompt.clip.loading.open_clip.create_model", create)
    return tmp_path / "weights.safetensors"


def facts_of(clip: FrozenCLIP) -> tuple:
    return clip.image_mean, clip.image_std, clip.interpolation, clip.resize_mode, clip.activation()


def test_a_file_of_an_architecture_whose_tags_agree_is_prepared_like_them(weights: Path) -> None:
    # case: `backbone=MobileCLIP-S1 checkpoint=FILE`
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load_clip("MobileCLIP-S1", checkpoint=weights, device="cpu")
        assert facts_of(clip) == ((0.0,) * 3, (1.0,) * 3, "bilinear", "shortest", "GELU")
        squashed = load_clip("ViT-B-16-SigLIP", checkpoint=weights, device="cpu", tokenizer=clip.tokenizer)
        assert squashed.resize_mode == "squash"
    pixels = torch.full((3, 32, 32), 0.5)
    assert torch.equal(clip.preprocess.transforms[-1](pixels), pixels)


def test_where_tags_differ_the_tag_says_or_a_warning_does(weights: Path) -> None:
    # case: `backbone=MobileCLIP-S1 checkpoint=FILE`
    with pytest.warns(UserWarning, match="weights.safetensors does not say how ViT-L-14 was trained") as said:
        load_clip("ViT-L-14", checkpoint=weights, device="cpu")
    text = str(said[0].message)
    assert "mean (0.5, 0.5, 0.5) for laion2b_s32b_b82k" in text
    assert "QuickGELU for openai" in text
    assert "give pretrained=TAG" in text
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        laion = load_clip("ViT-L-14", "laion2b_s32b_b82k", weights, device="cpu")
        assert facts_of(laion)[::4] == ((0.5,) * 3, "GELU")
        openai = load_clip("ViT-L-14", "openai", weights, device="cpu")
        assert facts_of(openai)[::4] == (open_clip.OPENAI_DATASET_MEAN, "QuickGELU")
    assert laion.identity()["weights"] == openai.identity()["weights"]
    assert laion.identity()["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert laion.source == {"name": "ViT-L-14", "pretrained": "laion2b_s32b_b82k", "checkpoint": str(weights)}


def test_a_learner_refuses_another_preprocessing(weights: Path, tmp_path: Path) -> None:
    trained = load_clip("ViT-L-14", "laion2b_s32b_b82k", weights, device="cpu")
    folder = make("coop", trained, n_ctx=2).save_pretrained(tmp_path / "learner")
    assert load_learner(folder, device="cpu").clip.image_mean == (0.5, 0.5, 0.5)
    with pytest.raises(VlpromptError, match="preprocessing differs"):
        load_learner(folder, clip=load_clip("ViT-L-14", "datacomp_xl_s13b_b90k", weights, device="cpu"))
    description = json.loads((folder / "config.json").read_text())
    del description["backbone"]["preprocessing"]  # as earlier versions wrote it
    (folder / "config.json").write_text(json.dumps(seal(description)))
    load_learner(folder, clip=load_clip("ViT-L-14", "datacomp_xl_s13b_b90k", weights, device="cpu"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_wrapped_state_dicts_fit(prefix: str, tmp_path: Path) -> None:
    state = {f"{prefix}{key}": value for key, value in small_model().state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w.pt")
    model = from_checkpoint("ViT-S-32-alt", None, tmp_path / "w.pt", lambda name, **_: small_model())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in small_model().state_dict().items())


@pytest.mark.parametrize(
    "name", ["roberta-ViT-B-32", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2", "xlm-roberta-base-ViT-B-32", "nllb-clip-base"]
)
@pytest.mark.parametrize("weights", [{"pretrained": "random"}, {"checkpoint": __file__}], ids=["random", "file"])
def test_a_missing_package_is_named(name: str, weights: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    # case: `roberta-ViT-B-32` without `transformers`
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("open_clip.hf_model.transformers", None)
    with pytest.raises(VlpromptError, match="needs another package: pip install transformers") as error:
        load_clip(name, device="cpu", **weights)
    assert "network" not in str(error.value)
    if "SigLIP" not in name:  # whose text tower needs no package, but for its tokenizer
        with pytest.raises(VlpromptError, match="pip install transformers"):
            load_clip(name, device="cpu", tokenizer=small_clip().tokenizer, pretrained="random")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), r"could not load the weights 'openai' of RN50: .*No space left"),
        (RuntimeError("SHA256 checksum does not match"), "SHA256 checksum does not match"),
        (ConnectionError("refused"), r"no network\?"),
        (ModuleNotFoundError("No module named 'sentencepiece'", name="sentencepiece"), "pip install sentencepiece"),
    ],
)
def test_no_network_is_said_only_where_it_is_that(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # case: `roberta-ViT-B-32` without `transformers`
    def create(*_: object, **__: object) -> None:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError(f"Failed to download weights: {inner}") from inner

    monkeypatch.setattr("vlprompt.clip.loading.open_clip.create_model", create)
    with pytest.raises(VlpromptError, match=message) as said:
        load_clip("RN50", "openai", device="cpu")
    assert ("network" in str(said.value)) == isinstance(error, ConnectionError)


# Models in hand


def test_wrapped_models_are_taken_for_what_they_wrap() -> None:
    # case: scripted or wrapped models
    known = small_clip().identity()
    compiled = small_model()
    compiled.visual = torch.compile(compiled.visual)
    for model in (
        nn.DataParallel(small_model()),
        torch.compile(small_model()),
        nn.DataParallel(torch.compile(small_model())),
        compiled,
    ):
        clip = load_clip(model, device="cpu")
        assert clip.identity() == known
        assert (clip.text.shares_prefix, clip.visual.promptable) == (True, True)


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (lambda: torch.jit.script(small_model()), "a scripted model"),
        (lambda: nn.DataParallel(torch.jit.script(small_model())), "a scripted model"),
        (lambda: nn.Linear(2, 2), "Linear is not an OpenCLIP model"),
        (lambda: nn.Sequential(small_model()), "Sequential is not an OpenCLIP model"),
        (lambda: small_model().visual, "VisionTransformer is not an OpenCLIP model"),
        (lambda: small_model().to("meta"), "has quantised weights or none"),
        (lambda: small_model(vocab_size=100), "the tokenizer gives ids up to 49407, and the model knows 100"),
        (lambda: small_model().state_dict(), "a backbone is a name or a model, not OrderedDict"),
    ],
    ids=["scripted", "wrapped", "linear", "sequential", "tower", "meta", "vocabulary", "state dict"],
)
def test_what_is_no_openclip_model_is_told_in_one_sentence(make_model, message: str) -> None:
    # case: scripted or wrapped models
    with pytest.raises(VlpromptError, match=message) as error:
        load_clip(make_model(), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tokenizer", [lambda texts: texts, lambda texts, context_length=77: texts, "ViT-B-32"])
def test_a_tokenizer_that_gives_no_ids_is_told_in_one_sentence(tokenizer) -> None:
    with pytest.raises(VlpromptError, match="the tokenizer does not give ids"):
        load_clip(small_model(), device="cpu", tokenizer=tokenizer)


def test_a_model_in_hand_keeps_its_weights() -> None:
    # case: scripted or wrapped models
    model = small_model().train()
    rounded = load_clip(model, precision="bf16", device="cpu")
    assert rounded.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters())
    whole = load_clip(model, device="cpu")
    assert whole.identity() == rounded.identity() == small_clip().identity()
    assert not model.training
    for refused in ({"pretrained": "openai"}, {"checkpoint": "file.pt"}):
        with pytest.raises(VlpromptError, match="a model object has its own weights"):
            load_clip(model, device="cpu", **refused)


# What a learner remembers


@pytest.mark.parametrize("method", ["coop", "maple", "restore", "proda", "vpt", "mvlpt"])
def test_any_write_to_a_learnable_or_a_buffer_changes_the_next_logits(method: str) -> None:
    # case: `p.data.copy_(…)` on a learnable, then logits in evaluation
    learner, images = make(method).eval(), toy_batch()["image"]
    with torch.no_grad():
        for name, tensor in [*learner.named_parameters(), *learner.named_buffers()]:
            if "norms" in name:
                continue  # of training alone
            before = learner.predict({"image": images})
            assert torch.equal(learner.predict({"image": images}), before)
            tensor.data.copy_(tensor.data * 1.5 + torch.linspace(0.5, 1, tensor.numel()).view(tensor.shape))
            fresh = make(method).eval()
            fresh.load_state_dict(learner.state_dict())
            after = learner.predict({"image": images})
            assert torch.equal(after, fresh.predict({"image": images})), name


def test_class_features_are_still_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, images, calls = make("coop").eval(), toy_batch()["image"], []
    encode = learner.encode_text
    monkeypatch.setattr(learner, "encode_text", lambda v=None: calls.append(1) or encode(v))
    with torch.inference_mode():
        first = [learner.predict({"image": images}) for _ in range(3)]
    assert len(calls) == 1
    assert torch.equal(first[0], first[2])
    learner.float()
    with torch.no_grad():
        learner.predict({"image": images})
    assert len(calls) == 1


def test_a_batch_that_is_filled_anew_has_new_teacher_features() -> None:
    clip, images = small_clip(), toy_batch()["image"]
    teacher = make("promptsrc").teacher
    first = teacher.image_features({"image": images})
    assert teacher.image_features({"image": images}) is first
    images.copy_(images.flip(0))
    assert close(teacher.image_features({"image": images}), first.flip(0))
    assert clip is small_clip()
