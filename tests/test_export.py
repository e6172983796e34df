"""What others get of a learner computes what the learner computes."""

from __future__ import annotations

import ast
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import vlprompt
from vlprompt import (
    FrozenCLIP,
    PromptLearner,
    VlpromptError,
    create_learner,
    list_methods,
    load_clip,
    method_info,
    predict_images,
)
from vlprompt.cli.export import main as export
from vlprompt.cli.predict import main as predict
from vlprompt.data import as_rgb, eval_transform
from vlprompt.learner.calibration import Calibration, Curve
from vlprompt.saving import run_onnx
from vlprompt.saving.export import ONNX_TORCH, export_learner
from vlprompt.saving.exported import ExportFacts, load_exported
from vlprompt.testing import fit, make, make_ready, small_clip

NAMES = ("cat", "annual_crop land", "an owl", "dog")
# a context of words in front of the class name, or words alone, in whose towers what was learnt is
WORDS_HOLD_IT = {"clip_lora", "coop", "kgcoop", "panda", "pouf", "pre", "prograd", "upl"}


@pytest.fixture(scope="module")
def tiny() -> FrozenCLIP:
    return load_clip("vlprompt-tiny", device="cpu")


def images_for(clip: FrozenCLIP, count: int) -> Tensor:
    return torch.randn(count, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(4))


def onnx_session(path: Path) -> Any:
    import onnxruntime  # an extra that not every environment has

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def logits_of_onnx(path: Path, images: Tensor) -> Tensor:
    return torch.from_numpy(onnx_session(path).run(["logits"], {"images": images.numpy()})[0])


def logits_of_torch(path: Path, images: Tensor) -> Tensor:
    return torch.export.load(path).module()(images)


GRAPH_LOGITS = {"onnx": logits_of_onnx, "torch": logits_of_torch}
needs_onnx_exporter = pytest.mark.skipif(torch.__version__ < ONNX_TORCH, reason="this torch exports no such ONNX")
GRAPHS = [pytest.param("onnx", marks=needs_onnx_exporter), "torch"]


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", list_methods())
def test_the_matrix_scores_as_the_learner(method: str, tmp_path: Path) -> None:
    learner = make(method).eval()
    reasons = {
        "cocoop": "class features depend on each image",
        "mocoop": "class features depend on each image",
        "spg": "class features depend on each image",
        "ctp_tft": "class features depend on each image",
        "tpt": "predicts from views",
        "difftpt": "predicts from views",
        "mask_prompt": "predicts from image and mask",
    }
    if learner.facts.predicts != "alone":
        reasons[method] = "needs other test images"
    elif learner.facts.head and learner.linear_head(learner.text_features()) is None:
        reasons.setdefault(method, "no \\(C, D\\) classifier matrix")
    if method in reasons:
        with pytest.raises(VlpromptError, match=reasons[method]):
            export_learner(learner, "matrix", tmp_path / "head.safetensors")
        return
    export_learner(learner, "matrix", tmp_path / "head.safetensors")
    head = load_file(tmp_path / "head.safetensors")
    images = images_for(learner.clip, 3)
    with torch.no_grad():
        features = learner.image_features(images)
        logits = head["logit_scale"] * features @ head["weight"].T + head["logit_bias"]
        assert same(logits, learner(images))
    facts = json.loads((tmp_path / "head.json").read_text())
    assert facts["class_names"] == list(learner.class_names)
    assert facts["image_tower"] == ("frozen" if learner.facts.cacheable_images else "prompted")
    with safe_open(tmp_path / "head.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["class_names"]) == list(learner.class_names)


def test_the_matrix_is_a_head_for_open_clip_alone(tiny: FrozenCLIP, tmp_path: Path) -> None:
    learner = create_learner("coop", tiny, NAMES, n_ctx=4)
    export_learner(learner, "matrix", tmp_path / "head.safetensors")
    images, head = images_for(tiny, 3), load_file(tmp_path / "head.safetensors")
    with torch.no_grad():
        features = F.normalize(tiny.model.encode_image(images), dim=-1)  # OpenCLIP's own forward pass
        assert same(head["logit_scale"] * features @ head["weight"].T, learner(images))


@pytest.mark.parametrize("to", GRAPHS)
def test_onnx_and_torch_give_the_learners_logits_at_any_batch_size(to: str, tmp_path: Path) -> None:
    learner = make("restore")  # prompts in both towers, a coupling and changes behind the towers
    fit(learner, 1)
    learner.eval()
    path = export_learner(learner, to, tmp_path / f"learner.{to}")
    assert json.loads((tmp_path / "learner.json").read_text())["image_tower"] == "prompted"
    for count in (1, 2, 7):
        images = images_for(learner.clip, count)
        with torch.no_grad():
            assert same(GRAPH_LOGITS[to](path, images), learner(images))


@pytest.mark.parametrize(
    ("method", "beneath", "to"),
    [
        pytest.param("gda", None, "onnx", marks=needs_onnx_exporter),
        pytest.param("tip_adapter", None, "onnx", marks=needs_onnx_exporter),
        ("clip_adapter", None, "torch"),
        ("tip_adapter_f", "vpt", "torch"),
        ("tfup", None, "torch"),  # its cache is empty
        *(
            pytest.param(method, beneath, to, marks=[pytest.mark.nightly, needs_onnx_exporter])
            for method, beneath, to in (
                ("gda", None, "torch"),
                ("tip_adapter", None, "torch"),
                ("clip_adapter", None, "onnx"),
                ("tip_adapter_f", "vpt", "onnx"),
                ("zs_lp", None, "torch"),
                ("zs_lp", None, "onnx"),
            )
        ),
    ],
)
def test_heads_of_each_kind_give_their_logits_from_images(
    method: str, beneath: str | None, to: str, tmp_path: Path
) -> None:
    place = make(beneath).save_pretrained(tmp_path / "beneath") if beneath else None
    head = make_ready(method, text=place and str(place)).eval()
    path = export_learner(head, to, tmp_path / f"head.{to}")
    facts = json.loads((tmp_path / "head.json").read_text())
    assert facts["image_tower"] == ("prompted" if beneath else "frozen")
    for count in (1, 5):
        images = images_for(head.clip, count)
        with torch.no_grad():
            assert same(GRAPH_LOGITS[to](path, images), head(images))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[PromptLearner, Path]:
    """A calibrated learner and its ONNX file."""
    learner = make("vpt").eval()
    kept = Curve(threshold=[0.25], coverage=[1.0], accuracy=[0.5])
    learner.calibration = Calibration("val", 20, kept, 9.0, 3.0, 0.7, 0.5, 0.25)
    return learner, export_learner(learner, "onnx", tmp_path_factory.mktemp("onnx") / "learner.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Smooth pictures of several shapes, a grey one and one that lies on its side among them."""
    random, paths = np.random.default_rng(0), []
    for i, shape in enumerate([(32, 32), (90, 50), (41, 127), (20, 24), (64, 63)]):
        coarse = Image.fromarray(random.integers(0, 256, (5, 4, 3), dtype=np.uint8))
        picture = coarse.resize(shape, Image.Resampling.BICUBIC).convert("L" if i == 2 else "RGB")
        exif = picture.getexif()
        exif[0x0112] = 6 if i == 1 else 1
        paths.append(str(tmp_path / f"{i}.png"))
        picture.save(paths[-1], exif=exif)
    return paths


@needs_onnx_exporter
def test_an_onnx_file_says_how_it_is_used(exported: tuple[PromptLearner, Path]) -> None:
    learner, path = exported
    session = onnx_session(path)
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    facts = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["class_names"] == list(learner.class_names)
    assert facts["mean"] == pytest.approx(learner.clip.image_mean)
    assert (facts["interpolation"], facts["resize_mode"], facts["crop"]) == ("bicubic", "shortest", "center")
    assert (facts["temperature"], facts["min_probability"], facts["vlprompt"]) == (0.7, 0.25, vlprompt.__version__)


@needs_onnx_exporter
def test_the_script_beside_an_onnx_file_gives_the_learners_answers_without_torch(
    exported: tuple[PromptLearner, Path], photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    learner, path = exported
    script = path.with_name("run_onnx.py").read_text(encoding="utf-8")
    imported = {node for node in ast.walk(ast.parse(script)) if isinstance(node, (ast.Import, ast.ImportFrom))}
    names = {getattr(node, "module", None) or node.names[0].name for node in imported}
    assert names == {"json", "sys", "typing", "numpy", "PIL", "onnxruntime"}
    exec(script, code := {"__name__": "script"})
    code["main"](str(path), *photos)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    expected = list(predict_images(learner, photos))
    assert {prediction.sure for prediction in expected} == {True, False}
    assert [line[2] for line in lines] == photos
    assert [line[0] for line in lines] == [prediction.answer or "unsure" for prediction in expected]
    assert [float(line[1]) for line in lines] == pytest.approx([p.probabilities[0] for p in expected], abs=2e-3)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_scripts_pixels_are_the_transforms_to_a_level_of_255(
    mode: str, interpolation: str, photos: list[str]
) -> None:
    facts = {
        "class_names": ["a", "b"],
        "image_size": 32,
        "batch": "any",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
    }
    facts |= {"resize_mode": mode, "interpolation": interpolation}
    transform = eval_transform(ExportFacts(**facts))
    for photo in photos:
        image = as_rgb(photo)
        ours = torch.from_numpy(run_onnx.prepare(image, facts))[0]
        assert ours.dtype == torch.float32
        levels = (ours - transform(image)) * torch.tensor(facts["std"]).view(3, 1, 1) * 255
        assert float(levels.abs().max()) < 1.01
        assert float(levels.abs().mean()) < 0.5  # releases of torchvision round in other places


@needs_onnx_exporter
def test_predict_takes_what_was_exported(
    exported: tuple[PromptLearner, Path], photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner, path = exported
    expected = list(predict_images(learner, photos, top=3))
    program = export_learner(learner, "torch", tmp_path / "learner.pt2")
    for model, more in ((path, []), (program, ["trust=true"])):
        assert predict([f"model={model}", *photos, "top=3", "format=jsonl", "batch_size=2", *more]) == 0
        for line, each in zip(map(json.loads, capsys.readouterr().out.splitlines()), expected, strict=True):
            assert (line["image"], line["answer"], line["classes"]) == (each.image, each.answer, list(each.classes))
            assert line["probabilities"] == pytest.approx(each.probabilities, abs=1e-4)
    assert predict([f"model={path}", photos[0], "min_probability=0", "format=csv"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "image,class,probability"
    for arguments, sentence in (
        ([f"model={program}"], "can run code of whoever wrote it: give trust=true"),
        ([f"model={path}", "classes=[okapi,tapir]"], "classes is for learner=DIR"),
        ([f"model={path}", "coverage=0.5"], "coverage is for learner=DIR"),
        ([f"model={path}", "min_probability=2"], "min_probability must be a number"),
        (["model=absent.onnx"], "there is no file absent.onnx"),
        ([f"model={photos[0]}"], "is not an exported learner: give a file that ends in .onnx or .pt2"),
        ([f"model={path}", f"unsure={learner.class_names[0]}"], "give another word for unanswered images"),
        ([f"model={path}", f"learner={tmp_path}"], "say which learner and which images"),
        ([f"learner={tmp_path}", "trust=true"], "trust is for model=FILE"),
    ):
        assert predict([*arguments, photos[0]]) == 2
        assert sentence in capsys.readouterr().err


@needs_onnx_exporter
@pytest.mark.parametrize(
    ("key", "text", "sentence"),
    [
        ("class_names", None, "has no class names"),
        ("class_names", '["a", "b"]', "its graph does not fit its metadata"),
        ("class_names", "[", "has metadata that are not JSON"),
        ("class_names", "[" * 100_000, "has metadata that are not JSON"),
        ("image_size", "64", "its graph does not fit its metadata"),
        ("image_size", "1000000000", "field 'image_size' is not right"),
        ("std", "[0.0, 1.0, 1.0]", "'std'|std"),
        ("mean", "[NaN, 1.0, 1.0]", "mean"),
        ("resize_mode", '"as you like"', "field 'resize_mode' is not right"),
        ("temperature", "-1", "field 'temperature' is not right"),
        ("batch", None, "it lacks field 'batch'"),
    ],
    ids=str,
)
def test_a_strangers_metadata_are_held_to_their_kind(
    key: str, text: str | None, sentence: str, exported: tuple[PromptLearner, Path], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx", reason="no export extra")
    model = onnx.load(exported[1])
    [entry] = [each for each in model.metadata_props if each.key == key]
    if text is None:
        model.metadata_props.remove(entry)
    else:
        entry.value = text
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(VlpromptError, match=sentence):
        load_exported(tmp_path / "odd.onnx")


def test_what_is_no_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("odd.onnx", "odd.pt2"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(VlpromptError, match=r"odd\.pt2 cannot be read by torch\.export"):
        load_exported(tmp_path / "odd.pt2", trust=True)
    if find_spec("onnxruntime"):
        with pytest.raises(VlpromptError, match=r"odd\.onnx cannot be read by onnxruntime"):
            load_exported(tmp_path / "odd.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(VlpromptError, match=r'odd\.onnx needs onnxruntime: pip install "vlprompt\[export\]"'):
        load_exported(tmp_path / "odd.onnx")


@pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))), reason="no export extra")
def test_what_torch_cannot_trace_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("this operator\nhas no\nmeaning")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(VlpromptError, match=r"cannot trace coop: this operator$"):
        export_learner(make("coop").eval(), "torch", tmp_path / "coop.pt2")


def test_a_torch_that_is_too_old_for_onnx_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # case: the lowest versions that setup.cfg allows
    monkeypatch.setattr("vlprompt.saving.export.ONNX_TORCH", "99.0")
    with pytest.raises(VlpromptError, match=r"^torch .* cannot write .*\(torch to 99\.0 or later\), or export"):
        export_learner(make("vpt"), "onnx", tmp_path / "learner.onnx")


# torch's exporter is beneath the other, too, and is asked for one image more often nightly
@pytest.mark.parametrize("to", [GRAPHS[0], pytest.param("torch", marks=pytest.mark.nightly)])
def test_a_classifier_of_each_image_exports_for_one_image_at_a_time(to: str, tmp_path: Path) -> None:
    learner = make("cocoop").eval()
    images = images_for(learner.clip, 2)
    with torch.no_grad():
        expected = learner(images)
    path = export_learner(learner, to, tmp_path / f"learner.{to}")
    assert json.loads(path.with_suffix(".json").read_text())["batch"] == 1
    for i in range(2):
        assert same(GRAPH_LOGITS[to](path, images[i : i + 1]), expected[i : i + 1])
    assert learner.edits == []


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("vpt", {"names_by": "best", "names": {"cat": ["kitty", "a green cat"]}, "depth": 2}),
        pytest.param(
            *("cocoop", {"edits": ["surgery(tower=vision)"], "ensemble": "logits(weight=0.3)", "head": "dept"}),
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_classifiers_of_each_image_go_with_ensembles_and_names(method: str, settings: dict, tmp_path: Path) -> None:
    learner = create_learner(method, small_clip(), NAMES, **settings)
    path = export_learner(learner, "torch", tmp_path / "each.pt2")
    images = images_for(learner.clip, 1)
    with torch.no_grad():
        assert same(logits_of_torch(path, images), learner(images))


@pytest.mark.parametrize("method", list_methods())
def test_open_clip_gets_a_model_or_a_reason(method: str, tiny: FrozenCLIP, tmp_path: Path) -> None:
    depths = {key: 2 for key in ("depth", "vision_depth") if key in method_info(method)["config"]}
    learner = create_learner(method, tiny, NAMES, **depths)
    if method not in WORDS_HOLD_IT:
        with pytest.raises(VlpromptError) as error:
            export_learner(learner, "openclip", tmp_path / "model")
        assert str(error.value).startswith(f"{method} with these settings")
        return
    export_learner(learner, "openclip", tmp_path / "model")
    use = json.loads((tmp_path / "model/classifier.json").read_text())
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")
    other = ["a tapir", "vending machine"]  # classes that the learner was not made for
    learner.set_class_names(other)
    images = images_for(tiny, 3)
    with torch.no_grad():
        text = F.normalize(model.eval().encode_text(tokenizer([use["template"].format(name) for name in other])), dim=1)
        image = F.normalize(model.encode_image(images), dim=1)
        assert same(model.logit_scale.exp() * image @ text.T, learner(images))


@pytest.mark.parametrize(
    ("method", "settings", "reason"),
    [
        ("coop", {"class_token_position": "middle", "n_ctx": 4}, "context not only before the class name"),
        ("coop", {"class_token_position": "front", "n_ctx": 4}, "context not only before the class name"),
        ("coop", {"class_specific": True, "n_ctx": 2}, "context not only before the class name"),
        ("ivlp", {"vision_depth": 0, "depth": 2}, "vectors of deeper blocks"),
        ("mvlpt", {"variant": "mvpt"}, "has no learnt tokens"),
        ("proda", {"n_prompts": 4}, "a mean over prompts"),
        ("zero_shot", {}, "learns nothing"),
    ],
    ids=str,
)
def test_reasons_are_of_the_settings(method: str, settings: dict, reason: str, tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match=reason):
        export_learner(make(method, **settings), "openclip", tmp_path)


def test_fixed_words_behind_the_context_are_kept(tiny: FrozenCLIP, tmp_path: Path) -> None:
    learner = create_learner("ivlp", tiny, NAMES, n_ctx=2, depth=1, vision_depth=0)
    export_learner(learner, "openclip", tmp_path)
    assert len(json.loads((tmp_path / "classifier.json").read_text())["replaced"]) == 4


def test_a_model_object_has_no_open_clip_configuration(tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match="OpenCLIP's configuration of custom is unknown"):
        export_learner(make("coop", n_ctx=2), "openclip", tmp_path)


def test_bad_input_is_answered_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VlpromptError, match="unknown form 'onx': did you mean onnx"):
        export_learner(make("coop"), "onx", tmp_path / "x")
    with pytest.raises(VlpromptError, match="load it with precision=fp32"):
        export_learner(make("coop", small_clip("bf16")), "matrix", tmp_path / "x")

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("vlprompt.saving.export.ONNX_TORCH", "2.0")  # whatever torch is here
    monkeypatch.setattr("vlprompt.saving.export.importlib.import_module", absent)
    with pytest.raises(VlpromptError, match=r'needs onnxruntime: pip install "vlprompt\[export\]"'):
        export_learner(make("coop"), "onnx", tmp_path / "x")


def test_the_command_exports_a_saved_learner(tiny: FrozenCLIP, tmp_path: Path, capsys) -> None:
    folder = create_learner("vpt", tiny, NAMES, depth=1).save_pretrained(tmp_path / "learner")
    output = tmp_path / "head.safetensors"
    assert (
        export(
            [f"learner={folder}", "to=matrix", f"output={output}", "classes=[tapir,okapi]", "backbone=vlprompt-tiny"]
        )
        == 0
    )
    assert json.loads(output.with_suffix(".json").read_text())["class_names"] == ["tapir", "okapi"]
    said = capsys.readouterr().out
    assert "2 classes" in said
    assert "left out: the image tower, which is prompted: to=torch and to=onnx have it" in said
    assert "left out: the text tower: other class names need another export" in said
    for arguments, message in (
        (["to=onnx"], "needs learner=DIR"),
        ([f"learner={folder}"], "needs to=matrix|torch|onnx|openclip"),
        ([f"learner={folder}", "to=onx"], "did you mean onnx"),
        (["learner=/nowhere", "to=onnx"], "no saved learner in /nowhere"),
        ([f"learner={folder}", "to=openclip"], "has no learnt tokens"),
    ):
        assert export(arguments) == 2
        assert message in capsys.readouterr().err


def test_a_diverged_learner_is_not_exported(tmp_path: Path) -> None:
    learner = make("coop").eval()
    with torch.no_grad():
        learner.prompt.ctx.mul_(1e30)
    with pytest.raises(VlpromptError, match=r"coop on .* gives NaN or infinity"):
        export_learner(learner, "matrix", tmp_path / "head.safetensors")
    assert not list(tmp_path.iterdir())
