"""A learner on images of any number: in order, as its logits say, a few batches in memory, and out in every format."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from vlprompt import FrozenCLIP, VlpromptError, create_learner, image_features, load_clip, load_learner
from vlprompt.cli.predict import main as predict
from vlprompt.data.streaming import AHEAD, stream_images
from vlprompt.evaluation.prediction import Prediction, find_images, image_logits, predict_images, write_predictions
from vlprompt.learner import PromptLearner
from vlprompt.testing import NAMES, make, small_clip

SIZE = 32  # of the small model's images: nothing is resized
CLASSES = ("cat", "red fox", "owl, eagle")


@pytest.fixture(scope="module")
def coop() -> PromptLearner:
    return make("coop", n_ctx=2).eval()


def pixels(size: int, seed: int = 0) -> np.ndarray:
    """A smooth image as bytes (size, size, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def pictures(number: int, size: int = SIZE) -> list[Image.Image]:
    return [Image.fromarray(pixels(size, seed)) for seed in range(number)]


def softmax_of(learner: PromptLearner, images: Sequence[Image.Image]) -> Tensor:
    """Probabilities (N, C) as a user of the learner alone would get them."""
    with torch.no_grad():
        return learner(torch.stack([learner.clip.preprocess(image) for image in images])).softmax(dim=1)


def by_name(predictions: Sequence[Prediction], names: Sequence[str]) -> Tensor:
    """Probabilities (N, C) in the order of ``names``."""
    rows = [dict(zip(p.classes, p.probabilities, strict=True)) for p in predictions]
    return torch.tensor([[row[name] for name in names] for row in rows])


class Pairs(Dataset):
    """(image, label) pairs without an end that Python could find."""

    def __init__(self, images: Sequence[Any]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index % len(self)], 0


class Stream(IterableDataset):
    """Samples of a source that knows no number."""

    def __init__(self, images: Sequence[Any]):
        self.images = images

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return ((image, 0) for image in self.images)


# What is predicted


@pytest.mark.parametrize("method", ["coop", "cocoop", "vpt"])
def test_probabilities_are_the_softmax_of_the_learners_logits(method: str) -> None:
    learner, images = make(method).eval(), pictures(7)
    expected = softmax_of(learner, images)
    for threads in (0, 2):
        found = list(predict_images(learner, images, top=len(NAMES), batch_size=3, threads=threads))
        assert [prediction.image for prediction in found] == images
        torch.testing.assert_close(by_name(found, NAMES), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(image_logits(learner, images, batch_size=3).softmax(dim=1), expected)
    assert image_logits(learner, []).shape == (0, len(NAMES))


def test_images_in_every_form_give_the_same(coop: PromptLearner, tmp_path: Path) -> None:
    images = pictures(4)
    arrays = [np.asarray(image) for image in images]
    paths = [str(tmp_path / f"{i}.png") for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    forms = {
        "paths": paths,
        "pathlib": [Path(path) for path in paths],
        "arrays": arrays,
        "one array": np.stack(arrays),
        "byte tensors": list(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)),
        "preprocessed": [coop.clip.preprocess(image) for image in images],
        "a dataset": Pairs(images),
        "a dataset to iterate over": Stream(images),
        "a generator of samples": ({"image": image, "label": 0} for image in images),
        "of several kinds": [paths[0], arrays[1], coop.clip.preprocess(images[2]), images[3]],
    }
    expected = softmax_of(coop, images)
    for form, given in forms.items():
        found = by_name(list(predict_images(coop, given, top=len(NAMES))), NAMES)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=form)


def test_other_sizes_and_modes_are_made_ready_as_open_clip_does(coop: PromptLearner) -> None:
    images = [image.resize(size) for image, size in zip(pictures(3), [(90, 60), (60, 90), (7, 7)], strict=True)]
    expected = softmax_of(coop, images)
    found = by_name(list(predict_images(coop, [images[0], images[1].convert("RGBA"), images[2]], top=5)), NAMES)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.01)  # Pillow's resize and torch's, see transforms


def test_the_likeliest_classes_come_first(coop: PromptLearner) -> None:
    [image] = pictures(1)
    ranked = softmax_of(coop, [image])[0].sort(descending=True)
    for top in (1, 3, len(NAMES), 99):
        [found] = predict_images(coop, [image], top=top)
        kept = min(top, len(NAMES))
        assert found.classes == tuple(NAMES[i] for i in ranked.indices[:kept])
        assert found.probabilities == pytest.approx(ranked.values[:kept].tolist(), abs=1e-5)
    assert sum(found.probabilities) == pytest.approx(1, abs=1e-5)
    with pytest.raises(VlpromptError, match="top must be at least 1, not 0"):
        next(predict_images(coop, [image], top=0))


def test_features_are_the_frozen_towers_or_the_learners() -> None:
    learner, clip, images = make("vpt").eval(), small_clip(), pictures(5)
    batch = torch.stack([clip.preprocess(image) for image in images])
    frozen = image_features(clip, images, batch_size=2)
    assert np.array_equal(image_features(images, clip, batch_size=2), frozen), "the order of version 0.1"
    assert (frozen.shape, frozen.dtype) == ((5, clip.embed_dim), np.float32)
    np.testing.assert_allclose(frozen, clip.encode_image(batch).numpy(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        own = learner.image_features(batch).numpy()
    np.testing.assert_allclose(image_features(learner, images, batch_size=2), own, rtol=1e-4, atol=1e-5)
    assert np.abs(own - frozen / np.linalg.norm(frozen, axis=1, keepdims=True)).max() > 1e-3
    with pytest.raises(VlpromptError, match=r"nothing\.jpg does not exist"):
        image_features(clip, ["nothing.jpg"])


# How they stream


MANY = 400


@pytest.mark.parametrize("threads", [0, 2])
def test_hundreds_of_images_pass_with_a_few_batches_in_memory(coop: PromptLearner, threads: int) -> None:
    batch, read, alive, most_alive = 16, 0, 0, 0

    def forget() -> None:
        nonlocal alive
        alive -= 1

    def source() -> Iterator[np.ndarray]:
        nonlocal read, alive, most_alive
        for seed in range(MANY):
            image = pixels(SIZE, seed % 3).copy()
            weakref.finalize(image, forget)
            read, alive, most_alive = read + 1, alive + 1, max(most_alive, alive + 1)
            yield image

    done, bound = 0, ((AHEAD if threads else 0) + 1) * batch
    for done, _ in enumerate(predict_images(coop, source(), batch_size=batch, threads=threads), start=1):
        assert read - done < bound
    assert done == read == MANY > 5 * bound
    assert most_alive <= bound + batch + 1  # the batch that is told, and the image in hand


def test_a_stream_that_is_left_ends_its_threads(coop: PromptLearner) -> None:
    read = count()
    endless = (pixels(SIZE, seed=next(read) % 3) for _ in iter(int, 1))
    predictions = predict_images(coop, endless, batch_size=4, threads=2)
    assert len(list(islice(predictions, 5))) == 5
    predictions.close()
    assert next(read) == (AHEAD + 2) * 4
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_a_source_that_fails_is_not_silenced(coop: PromptLearner) -> None:
    def source() -> Iterator[Image.Image]:
        yield from pictures(3)
        raise RuntimeError("the camera is gone")

    with pytest.raises(RuntimeError, match="the camera is gone"):
        list(predict_images(coop, source(), threads=2))


def test_what_cannot_be_read_is_told_in_order_and_left_out(coop: PromptLearner, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    good, bad = pictures(2), [str(tmp_path / "text.jpg"), str(tmp_path / "absent.png"), torch.rand(3, SIZE, SIZE)]
    mixed = [bad[0], good[0], bad[1], torch.zeros(3, 8, 8), good[1], bad[2]]
    for threads, batch_size in ((0, 1), (2, 2), (2, 64)):  # a batch may have none that can be read
        told: list[str] = []
        found = predict_images(coop, mixed, batch_size=batch_size, threads=threads, on_unreadable=told.append)
        assert [prediction.image for prediction in found] == good
        said = [
            "cannot read the image",
            "does not exist",
            "a float tensor must be an image that",
            "numbers from 0 to 1",
        ]
        assert len(told) == 4
        assert all(part in sentence for part, sentence in zip(said, told, strict=True))
    with pytest.raises(VlpromptError, match=r"cannot read the image .*text\.jpg"):
        list(predict_images(coop, mixed))


def test_what_makes_no_stream_is_one_sentence(coop: PromptLearner) -> None:
    with pytest.raises(VlpromptError, match=r"one path was given: write \['cat.jpg'\]"):
        list(predict_images(coop, "cat.jpg"))
    with pytest.raises(VlpromptError, match="batch_size must be at least 1, not 0"):
        next(stream_images([], coop.clip, batch_size=0))


# Where images come from


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in folders, one of them with an equals sign in its name, and files that are none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "b" / "deep").mkdir(parents=True)
    for i, name in enumerate(["b/2.png", "b/deep/1.jpg", "a.png", "size=8.png", "c.PNG", "[x].png"]):
        pictures(i + 1, 48)[i].save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_files_folders_patterns_and_lines_come_in_the_order_of_the_arguments(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    below = ["[x].png", "a.png", "b/2.png", "b/deep/1.jpg", "c.PNG", "size=8.png"]
    assert list(find_images(["c.PNG", "b", "a.png"])) == ["c.PNG", "b/2.png", "b/deep/1.jpg", "a.png"]
    assert list(find_images(["."])) == [os.path.join(".", name) for name in below]
    assert list(find_images(["*.png"])) == ["[x].png", "a.png", "size=8.png"]
    assert list(find_images(["**/*.jpg", "[x].png", "b/*"])) == ["b/deep/1.jpg", "[x].png", "b/2.png"]
    assert list(find_images(["a.png", "-", "c.PNG"], ["x.png\r\n", "\n", " y z.png"])) == [
        "a.png",
        "x.png",
        " y z.png",
        "c.PNG",
    ]
    assert next(find_images(["-"], (f"{i}.png\n" for i in count()))) == "0.png", "lines are not read as they come"
    (photos / "empty").mkdir(exist_ok=True)
    for nothing in ("empty", "*.gif", "absent/*"):
        with pytest.raises(VlpromptError) as error:
            find_images(["a.png", nothing])
        assert str(error.value).startswith(f"no images in {nothing}: give images, folders, patterns")


# How they are written


def test_every_format_is_read_back() -> None:
    said = [
        Prediction("a b.png", ("owl, eagle", 'the "cat"'), (0.75, 0.25)),
        Prediction("ü\n.png", ("red fox", "owl, eagle"), (0.6666666, 0.3333334)),
    ]
    written = {}
    for form in ("table", "jsonl", "csv"):
        file = io.StringIO()
        assert write_predictions(iter(said), file, form, width=10) == 2
        written[form] = file.getvalue()
    assert [json.loads(line) for line in written["jsonl"].splitlines()] == [
        {"image": "a b.png", "classes": ["owl, eagle", 'the "cat"'], "probabilities": [0.75, 0.25]},
        {"image": "ü\n.png", "classes": ["red fox", "owl, eagle"], "probabilities": [0.666667, 0.333333]},
    ]
    assert list(csv.reader(io.StringIO(written["csv"]))) == [
        ["image", "class", "probability", "class_2", "probability_2"],
        ["a b.png", "owl, eagle", "0.75", 'the "cat"', "0.25"],
        ["ü\n.png", "red fox", "0.666667", "owl, eagle", "0.333333"],
    ]
    assert written["table"].splitlines()[0] == 'owl, eagle  75.0%  the "cat"   25.0%  a b.png'
    assert write_predictions([], io.StringIO(), "csv") == 0


def test_what_is_not_answered_is_told_in_every_format() -> None:
    said = [Prediction("a.png", ("cat", "dog"), (0.75, 0.25)), Prediction("b.png", ("dog",), (0.4,), sure=False)]
    written = {}
    for form in ("table", "jsonl", "csv"):
        file = io.StringIO()
        write_predictions(said, file, form, width=6, unsure="unsure")
        written[form] = file.getvalue().splitlines()
    assert written["table"] == ["cat     75.0%  dog     25.0%  a.png", "unsure  (dog     40.0%)  b.png"]
    assert [json.loads(line)["answer"] for line in written["jsonl"]] == ["cat", None]
    assert written["csv"][0].endswith(",answer")
    assert [line.rpartition(",")[2] for line in written["csv"][1:]] == ["cat", "unsure"]


# The command


@pytest.fixture(scope="module")
def tiny() -> FrozenCLIP:
    return load_clip("vlprompt-tiny", device="cpu")


@pytest.fixture(scope="module")
def run(tiny: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a learner on the embedded model."""
    folder = tmp_path_factory.mktemp("run")
    create_learner("coop", tiny, CLASSES, n_ctx=2).save_pretrained(folder / "learner")
    return folder


@pytest.fixture
def saved(run: Path, photos: Path, tiny: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The saved learner; the command is run among the photos, and the embedded model is loaded once."""
    monkeypatch.setattr("vlprompt.saving.folder.load_clip", lambda **_: tiny)
    monkeypatch.chdir(photos)
    return run / "learner"


def test_a_learner_and_a_run_predict_the_same(saved: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learner = load_learner(saved, device="cpu")
    files = ["c.PNG", "size=8.png", "b/2.png"]
    expected = list(predict_images(learner, files))
    for source in (f"learner={saved}", f"learner={run}", f"run={run}"):
        assert predict([source, *files]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.splitlines() == [
            f"{p.classes[0]:<10} {p.probabilities[0]:>6.1%}  {name}" for p, name in zip(expected, files, strict=True)
        ]


def test_output_is_a_file_in_the_format_that_its_name_tells(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = load_learner(saved, device="cpu").class_names
    arguments = [f"learner={saved}", ".", "top=3", "device=cpu", "batch_size=4"]
    jsonl, table = tmp_path / "new/found.jsonl", tmp_path / "found.csv"
    assert predict([*arguments, f"output={jsonl}"]) == 0
    assert capsys.readouterr().out == f"{jsonl}: 6 images\n"
    lines = [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()]
    assert [line["image"] for line in lines] == list(find_images(["."]))
    assert all(sorted(line["classes"]) == sorted(names) for line in lines)
    assert [sum(line["probabilities"]) for line in lines] == pytest.approx([1] * 6, abs=1e-5)
    assert predict([*arguments, f"output={table}", "threads=0", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    assert [row["class"] for row in rows] == [line["classes"][0] for line in lines]
    assert [float(row["probability_3"]) for row in rows] == pytest.approx(
        [line["probabilities"][2] for line in lines], abs=1e-5
    )
    assert predict([*arguments, f"output={table}", "format=table"]) == 0
    assert len(table.read_text(encoding="utf-8").splitlines()) == 6


def test_an_output_is_whole_or_as_it_was(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def half_way(*_: Any, **__: Any) -> Iterator[Prediction]:
        yield Prediction("a.png", ("cat",), (1.0,))
        raise VlpromptError("the power is gone")

    (tmp_path / "found.csv").write_text("before")
    monkeypatch.setattr("vlprompt.evaluation.prediction.predict_images", half_way)
    assert predict([f"learner={saved}", "a.png", f"output={tmp_path / 'found.csv'}"]) == 2
    assert capsys.readouterr().err == "error: the power is gone\n"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("found.csv", "before")]


def test_unreadable_files_are_counted_and_the_status_is_1(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"learner={saved}", "notes.txt", "a.png", "b/d=e.png", f"output={tmp_path / 'found.csv'}"]
    assert predict(arguments) == 1
    out, err = capsys.readouterr()
    told = err.splitlines()
    assert told[0].startswith("left out: cannot read the image notes.txt (")
    assert told[1:] == [
        "left out: the image b/d=e.png does not exist",
        "2 of 3 images could not be read",
    ]
    assert out.endswith("found.csv: 1 images\n")
    assert len((tmp_path / "found.csv").read_text().splitlines()) == 2


def test_paths_are_read_from_stdin_whatever_their_bytes(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = os.fsencode(tmp_path / "caf") + b"\xe9.png"
    try:
        Path(os.fsdecode(odd)).write_bytes(Path("a.png").read_bytes())
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no name that is not UTF-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"c.PNG\n" + odd + b"\n\nb/2.png\n"), "utf-8"))
    assert predict([f"learner={saved}", "a.png", "-", "size=8.png", "format=jsonl"]) == 0
    images = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
    assert images == ["a.png", "c.PNG", f"{tmp_path}/caf\ufffd.png", "b/2.png", "size=8.png"]


def test_other_classes_are_a_list_or_a_file(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("okapi\n tapir \nyes\n2024\n\n", encoding="utf-8")
    learner = load_learner(saved, device="cpu")
    learner.set_class_names(["okapi", "tapir", "yes", "2024"])
    [expected] = predict_images(learner, ["a.png"], top=4)
    for classes in ("[okapi,tapir,yes,2024]", tmp_path / "names.txt"):
        assert predict([f"learner={saved}", "a.png", f"classes={classes}", "top=4", "format=jsonl"]) == 0
        [line] = map(json.loads, capsys.readouterr().out.splitlines())
        assert tuple(line["classes"]) == expected.classes
        assert line["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a.png"], "say which learner and which images: vlprompt predict learner=DIR photos/ (- reads stdin)"),
        (["learner={}"], "say which learner and which images"),
        (["learner={}", "run={}", "a.png"], "say which learner and which images"),
        (["learner=a.png", "a.png"], "a.png is a file, not the folder of a saved learner"),
        (["learner=/nowhere", "a.png"], "no saved learner in /nowhere: there is no such folder"),
        (["learner={}", "a.png", "clases=[a,b]"], "unknown key 'clases': did you mean classes?"),
        (["learner={}", "a.png", "--tpo", "3"], "unknown key 'tpo': did you mean top?"),
        (["learner={}", "a.png", "coverage=0.9"], "coverage needs a learner that was calibrated on held-out images"),
        (["learner={}", "a.png", "min_probability=9"], "min_probability must be a number of at least 0 and at most 1"),
        (["learner={}", "a.png", "format=xml"], "unknown format 'xml': known: csv, jsonl, parquet, table"),
        (["learner={}", "a.png", "top=0"], "top must be a whole number of at least 1, not 0"),
        (["learner={}", "a.png", "top=2.5"], "top must be a whole number of at least 1, not 2.5"),
        (["learner={}", "a.png", "batch_size=true"], "batch_size must be a whole number of at least 1, not True"),
        (["learner={}", "a.png", "threads=-1"], "threads must be a whole number of at least 0, not -1"),
        (["learner={}", "a.png", "classes=[yes,[no]]"], "classes has ['no'], which is not a name"),
        (["learner={}", "a.png", "classes=[okapi]"], "a classifier needs at least two class names"),
        (
            ["learner={}", "a.png", "classes=okapi"],
            "classes=okapi is neither a list nor a readable file with one name per line",
        ),
        (["learner={}", "a.png", "*.gif"], "no images in *.gif: give images, folders, patterns, or -"),
        (["learner={}", "a.png", "output=b"], "output=b is a folder: give the name of a file"),
        (["learner={}", "a.png", "output=a.png/x.csv"], "cannot write a.png/x.csv: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(
    saved: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict([argument.format(saved) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {sentence}")
    assert err.count("\n") == 1


def test_a_learner_bound_to_its_classes_says_so(
    saved: Path, tiny: FrozenCLIP, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = create_learner("coop", tiny, CLASSES, n_ctx=2, class_specific=True)
    bound.save_pretrained(tmp_path)
    assert predict([f"learner={tmp_path}", "a.png"]) == 0
    assert predict([f"learner={tmp_path}", "a.png", "classes=[okapi,tapir]"]) == 2
    assert "cannot score new class names" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device here that is always full")
def test_a_reader_that_has_seen_enough_and_a_full_disk_leave_no_traceback(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", os.fdopen(write_end, "w"))  # buffered: what is written fails at its end only
        assert predict([f"learner={saved}", "."]) == 1
    assert capsys.readouterr().err == "1 file in . is left out because of its ending: 1 .txt\n"
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", open("/dev/full", "w"))  # noqa: SIM115
        assert predict([f"learner={saved}", "a.png"]) == 2
    assert capsys.readouterr().err == "error: the output: No space left on device\n"


def test_help_is_printed_without_a_learner(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(["--help"]) == 0
    assert capsys.readouterr().out.startswith("vlprompt predict learner=DIR IMAGE…")
