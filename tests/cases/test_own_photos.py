"""A user's own photos through whole runs: few of a class, unreadable ones, links."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlprompt
from vlprompt.cli.evaluate import main as evaluate
from vlprompt.data import load_split, splits_from_pairs
from vlprompt.data.readable import find_unreadable, leave_out_unreadable
from vlprompt.errors import VlpromptError
from vlprompt.runs.sweep import expand, sweep
from vlprompt.train import main as train

Make = Callable[..., Path]
QUICK = {"protocol": "few_shot", "method": "coop", "epochs": 1, "n_ctx": 1, "views": 1, "quiet": True}
ARGUMENTS = [f"{key}={value}" for key, value in QUICK.items()]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function that writes class folders of JPEGs, from a folder where runs may be left."""
    monkeypatch.chdir(tmp_path)

    def write(**sizes: int) -> Path:
        generator = np.random.default_rng(0)
        for name, size in sizes.items():
            (tmp_path / "photos" / name).mkdir(parents=True)
            for i in range(size):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / f"photos/{name}/{i:02d}.jpg")
        return tmp_path / "photos"

    return write


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def drawn(root: Path, part: str, shots: int = 4) -> list[Path]:
    """The images of a part, the training part after its draw."""
    splits = vlprompt.data.few_shot_split(load_split(f"folder:{root}"), shots, 1, allow_fewer=True)
    return [root / item.path for item in getattr(splits, part)]


# Few photos


def test_classes_with_fewer_photos_than_shots_are_taken_whole_if_asked(photos: Make, capsys: pytest.CaptureFixture):
    root = photos(cat=20, dog=4)
    assert train([f"dataset=folder:{root}", "shots=4", *ARGUMENTS]) == 2
    assert "allow_fewer=true to take all that such a class has" in capsys.readouterr().err
    assert train([f"dataset=folder:{root}", "shots=4", "allow_fewer=true", *ARGUMENTS]) == 0
    assert "training images; 'dog' has 2, and 6 are taken in all" in capsys.readouterr().err
    result = next(Path("runs").rglob("result.json"))
    assert evaluate([f"run={result.parent}", "--quiet"]) == 0
    assert "training images" not in capsys.readouterr().err, "the run told it"
    data = json.loads(result.read_text())["data"]
    assert (data["train_images"], data["fewest_a_class"], data["most_a_class"]) == (6, 2, 4)
    with pytest.warns(UserWarning, match="1 of 2 classes of .* fewer than 8 training images"):
        outcomes = sweep({"datasets": [f"folder:{root}"], "shots": [4, 8], "seeds": [1], "allow_fewer": True, **QUICK})
    assert [outcome.status for outcome in outcomes] == ["kept", "done"]


def test_allowing_fewer_shots_is_no_other_run():
    plain, allowed = (expand({"dataset": "emoji", "seed": 1, **more}).tasks[0] for more in ({}, {"allow_fewer": True}))
    assert plain.resolved.id == allowed.resolved.id


# Unreadable photos


@pytest.mark.filterwarnings("ignore:.*cannot be read and are left out")
def test_one_unreadable_photo_does_not_stop_a_run(photos: Make):
    root = photos(cat=10, dog=10)
    bad = [drawn(root, "train")[0], drawn(root, "test")[0]]
    for path in bad:
        cut(path)
    result = vlprompt.run(dataset=f"folder:{root}", shots=4, **QUICK)
    assert result.data["unreadable"] == sorted(path.relative_to(root).as_posix() for path in bad)
    assert (result.data["train_images"], result.rows[0].n_images) == (7, 5)
    assert any("2 of 14 images of folder:" in note for note in result.data["notes"])
    folder = next(Path("runs").rglob("result.json")).parent
    assert evaluate([f"run={folder}", "--quiet"]) == 0
    assert evaluate([f"learner={folder}", f"dataset=folder:{root}", "--quiet"]) == 0
    assert evaluate([f"learner={folder}", f"dataset=folder:{root}", "on_unreadable=stop", "--quiet"]) == 2


def test_asked_to_stop_a_run_does_before_any_training(photos: Make, capsys: pytest.CaptureFixture):
    root = photos(cat=10, dog=10)
    cut(drawn(root, "test")[0])
    assert train([f"dataset=folder:{root}", "shots=4", "on_unreadable=stop", *ARGUMENTS]) == 2
    assert "1 of 14 images of folder:" in capsys.readouterr().err
    assert not list(Path("runs").rglob("train.jsonl"))
    assert train([f"dataset=folder:{root}", "on_unreadable=skp", *ARGUMENTS]) == 2
    assert "unknown on_unreadable 'skp': did you mean skip?" in capsys.readouterr().err


def test_unreadable_test_image_of_another_dataset_is_found_before_training(photos: Make, monkeypatch):
    root = photos(cat=4, dog=4)
    splits = load_split(f"folder:{root}")
    cut(root / splits.test[0].path)
    monkeypatch.setattr("vlprompt.runs.images.is_own", lambda name: False)  # as a published dataset is
    with pytest.raises(VlpromptError, match="cannot read the image"):
        vlprompt.run(dataset=f"folder:{root}", shots=1, **QUICK)
    assert not list(Path("runs").rglob("train.jsonl"))


def test_class_or_part_without_readable_images_is_an_error(photos: Make):
    root = photos(cat=4, dog=4)
    splits = load_split(f"folder:{root}")
    for item in splits.train:
        if item.label == 1:
            (root / item.path).write_bytes(b"")
    with pytest.raises(VlpromptError, match=r"2 of 4 images .* and none of the train images of 'dog' can"):
        leave_out_unreadable(splits, ["train"])
    with pytest.warns(UserWarning, match="2 of 8 images of .* cannot be read and are left out"):
        assert len(leave_out_unreadable(replaced(splits), ["train", "test"]).train) == 2


def replaced(splits: vlprompt.data.DatasetSplits) -> vlprompt.data.DatasetSplits:
    """The same with training images of one class alone, so that none is empty."""
    from dataclasses import replace

    return replace(splits, train=[replace(item, label=0) for item in splits.train])


def test_every_kind_of_unreadable_image_is_found(photos: Make):
    root = photos(cat=8, dog=2)
    whole = (root / "dog/00.jpg").read_bytes()
    for i, content in enumerate((b"", b"no image", whole[:-60], whole[:200], b"%!PS-Adobe-3.0 EPSF-3.0\n")):
        (root / f"cat/{i:02d}.jpg").write_bytes(content)
    (root / "cat/05.jpg").unlink()
    (root / "cat/05.jpg").symlink_to(root / "nothing.jpg")
    splits = load_split(f"folder:{root}")
    found = find_unreadable(splits, [*splits.train, *splits.val, *splits.test])
    assert sorted(found) == [f"cat/{i:02d}.jpg" for i in range(6)]


def test_pairs_in_memory_are_looked_at_too():
    images = [(Image.new("L", (8, 8), i), i % 2) for i in range(8)] + [("nowhere.jpg", 0)]
    splits = splits_from_pairs(images, ["cat", "dog"])
    items = [*splits.train, *splits.val, *splits.test]
    assert list(find_unreadable(splits, items)) == ["train/8"]


def test_the_classifier_leaves_out_unreadable_files(photos: Make):
    root = photos(cat=4, dog=4)
    paths, names = vlprompt.load_folder(root)
    cut(Path(paths[0]))
    quick = {"method": "coop", "epochs": 1, "views": 1, "options": {"n_ctx": 1}}
    with pytest.warns(UserWarning, match=r"1 of 8 images of X cannot be read .*00\.jpg"):
        classifier = vlprompt.PromptClassifier(**quick).fit(paths, names)
    assert len(classifier.predict(paths[1:])) == 7
    with pytest.raises(VlpromptError, match=r"00\.jpg .*1 of 8 images of X cannot be read"):
        vlprompt.PromptClassifier(**quick, on_unreadable="stop").fit(paths, names)
    with pytest.raises(VlpromptError, match=r"cannot read the image .*00\.jpg"):
        classifier.predict(paths)


# Links


def test_a_run_follows_links_if_asked(photos: Make, tmp_path: Path, capsys: pytest.CaptureFixture):
    root = photos(cat=8, dog=8)
    (tmp_path / "elsewhere").mkdir()
    for path in (root / "dog").iterdir():
        path.rename(tmp_path / "elsewhere" / path.name)
    (root / "dog").rmdir()
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    assert train([f"dataset=folder:{root}", "shots=2", *ARGUMENTS]) == 2
    assert "link that leads out of" in (said := capsys.readouterr().err)
    assert "follow_links=true" in said
    assert train([f"dataset=folder:{root}", "shots=2", "follow_links=true", *ARGUMENTS]) == 0
