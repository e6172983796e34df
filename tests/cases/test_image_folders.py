"""Folders of a user's own as they come: splits, junk, links and things a folder too deep or too high."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vlprompt.data import load_folder, load_split
from vlprompt.data.formats import image_suffixes
from vlprompt.data.listing import list_images
from vlprompt.data.name_hints import hint_names
from vlprompt.errors import VlpromptError

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes files at paths; a number behind a folder is so many images in it."""

    def write(*paths: str) -> Path:
        for path in paths:
            folder, _, count = path.partition("*")
            names = [f"{folder}/{i}.png" for i in range(int(count))] if count else [path]
            for name in names:
                place = tmp_path / "photos" / name
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 4)).save(place, "PNG")
        return tmp_path / "photos"

    return write


def counts(root: Path) -> tuple[tuple[str, ...], int, int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = load_split(f"folder:{root}")
    return splits.class_names, len(splits.train), len(splits.val), len(splits.test)


PETS = ("cat", "dog")


# What is read


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("cat*4 dog*4", (PETS, 4, 0, 4)),
        ("train/cat*3 train/dog*2 test/cat*1 test/dog*1", (PETS, 5, 0, 2)),
        ("train/cat*3 train/dog*2 val/cat*1 val/dog*1 test/cat*2 test/dog*2", (PETS, 5, 2, 4)),
        ("train/cat*3 train/dog*2 valid/cat*1 valid/dog*1 test/cat*2 test/dog*2", (PETS, 5, 2, 4)),
        ("TRAIN/cat*3 TRAIN/dog*2 Validation/cat*1 Validation/dog*1 Test/cat*2 Test/dog*2", (PETS, 5, 2, 4)),
        ("train/cat*3 train/dog*2 val/cat*1 val/dog*1", (PETS, 5, 0, 2)),
        ("Training/cat*3 Training/dog*2 Testing/cat*1 Testing/dog*1", (PETS, 5, 0, 2)),
        ("train/cat*3 train/dog*2 test/cat*1 test/dog*1 __MACOSX/train*1 .git/x*1", (PETS, 5, 0, 2)),
        ("bus*4 car*4 train*4", (("bus", "car", "train"), 6, 0, 6)),
        ("cat/a*2 cat/b*2 dog*4", (PETS, 4, 0, 4)),
        ("train/cat*2 train/dog*2 test/cat*2", (PETS, 4, 0, 2)),
    ],
)
def test_layouts_that_are_read(make: Make, paths: str, expected: tuple):
    # case: folders train/ val/, train/ valid/ test/, train/ test/ junk/ under folder:PATH
    assert counts(make(*paths.split())) == expected


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("train/cat*2 train/dog*2 test/cat*2 test/dog*2 junk/a*1", "holds test, train, which name splits, and junk"),
        ("train/cat*2 test/cat*2 cat*2 dog*2", "which name splits, and cat, dog, which do not"),
        ("cat*4 dog*4 test*3", "holds test, which names a split, and cat, dog, which do not"),
        ("cat*4 dog*4 train/x*3", "holds train, which names a split"),
        ("train*4 test*4", "test holds 4 images and no class folders, and its name says that it is a split"),
        ("train/cat*2 train/dog*2 test*4", "test holds 4 images and no class folders"),
        ("train/cat*2 train/dog*2 val/cat*2 valid/dog*2", "holds val and valid, both for val: put them together"),
        (
            "train/cat*2 train/dog*2",
            "holds train and nothing to test on: .* give .*train, which is then",
        ),
        ("val/cat*2 test/dog*2", "holds test, val and no train"),
        ("photos/cat*4 photos/dog*4", "holds one folder, photos, with folders in it: give .*photos/photos"),
        ("data/train/cat*4 data/test/cat*4", "holds one folder, data, with folders in it"),
        ("cat/train*4 cat/test*4 dog/train*4", r"2 folders in .* hold splits, such as cat/test: put the splits above"),
        ("images/train/a*4 labels/train/a*4", "hold splits, such as images/train"),
        (
            "train/cat*2 train/dog*2 test/cat*2 test/cow*2",
            "has a class folder 'cow' that the training images lack",
        ),
        ("1.png 2.png", r"no class folders with images were found in the folder .*photos \(2 directly in it\)"),
    ],
)
def test_layouts_that_are_refused(make: Make, paths: str, message: str):
    # case: folders train/ val/, train/ valid/ test/, train/ test/ junk/ under folder:PATH
    with pytest.raises(VlpromptError, match=message):
        counts(make(*paths.split()))


@pytest.mark.parametrize(
    "paths", ["train/cat*2 val/cat*2", "train/a*1 valid/a*1 test/a*1", "train/a*1 test/a*1 junk*1"]
)
def test_load_folder_takes_no_splits_for_classes(make: Make, paths: str):
    # case: folders train/ val/, train/ valid/ test/, train/ test/ junk/ under load_folder
    with pytest.raises(VlpromptError, match=r"give one of them, such as .*train|remove what is not a split"):
        load_folder(make(*paths.split()))


def test_val_that_is_tested_is_said(make: Make):
    with pytest.warns(UserWarning, match="has no test folder: the images of its validation folder are the test images"):
        load_split(f"folder:{make('train/cat*2', 'train/dog*2', 'val/cat*1', 'val/dog*1')}")


# What is left out


def test_files_that_are_left_out_are_counted_everywhere(make: Make):
    # case: still.gif, photo.avif, photo.jfif, a .heic, a .pdf
    second = "cat/b.avif" if ".avif" in image_suffixes() else "cat/b.webp"  # AVIF came with Pillow 11.3
    root = make("cat*3", "dog*3", "cat/a.gif", second, "dog/c.jfif", "cat/page.pdf", "cat/notes.txt", "dog/bare")
    for name in ("cat/.DS_Store", "cat/Thumbs.db", "dog/desktop.ini", "dog/._a.png", "__MACOSX/cat/._0.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    said = "3 files in .*photos are left out because of their endings: 1 .pdf, 1 .txt, 1 without ending"
    with pytest.warns(UserWarning, match=said):
        paths, names = load_folder(root)
    assert (len(paths), names.count("cat")) == (9, 5)
    with pytest.warns(UserWarning, match=said):
        splits = load_split(f"folder:{root}")
    assert len(splits.train) + len(splits.val) + len(splits.test) == 9


def test_loose_images_and_folders_in_classes_are_said(make: Make):
    root = make("cat/a*2", "cat/b*2", "dog*4", "loose.png")
    with pytest.warns(UserWarning, match="1 image is left out"):
        splits = load_split(f"folder:{root}")
    assert "1 image is left out, not being in a class folder" in splits.notes[0]
    assert "1 of 2 class folders contain images only in sub-folders, such as cat/a" in splits.notes[1]


# Links


def test_links_are_refused_as_links_and_read_if_allowed(make: Make, tmp_path: Path):
    root = make("cat*4", "dog*4")
    (tmp_path / "more").mkdir()
    for i in range(4):
        Image.new("L", (4, 4)).save(tmp_path / f"more/{i}.png")
    (root / "fox").symlink_to(tmp_path / "more")
    with pytest.raises(VlpromptError, match=r"refused the path 'fox': it is or lies behind a link .*follow_links=true"):
        load_split(f"folder:{root}")
    assert counts_of(load_split(f"folder:{root}", follow_links=True)) == (("cat", "dog", "fox"), 6, 6)
    assert load_folder(root, follow_links=True)[1].count("fox") == 4
    (root / "fox").unlink()
    (root / "dog/sub").symlink_to(tmp_path / "more")
    with pytest.raises(VlpromptError, match="dog/sub is a link to a folder: follow_links=true"):
        load_folder(root)
    assert len(load_folder(root, follow_links=True)[0]) == 12
    (root / "dog/sub").unlink()
    (root / "dog/9.png").symlink_to(tmp_path / "more/0.png")
    splits = load_split(f"folder:{root}")
    linked = next(i for part in (splits.train, splits.val, splits.test) for i in part if i.path == "dog/9.png")
    with pytest.raises(VlpromptError, match=r"refused the path 'dog/9.png': it is or lies behind a link"):
        splits.open_image(linked)
    assert load_split(f"folder:{root}", follow_links=True).open_image(linked).size == (4, 4)


def counts_of(splits: object) -> tuple[tuple[str, ...], int, int]:
    return splits.class_names, len(splits.train), len(splits.test)


def test_links_in_a_circle_end(make: Make):
    root = make("cat*2")
    (root / "cat/again").symlink_to(root)
    found = list_images(root, "cat", follow_links=True)
    assert found.images == ["cat/0.png", "cat/1.png"]
    assert list_images(root, "cat").links == ["cat/again"]


# Names


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["0", "1"], "2 of 2 class names are made of numbers or codes, .* such as 'a photo of a 0.'"),
        (["cat", "n02124075"], "1 of 2 class names is made of numbers or codes"),
        (["AnnualCrop", "Forest"], "1 of 2 class names is made of words without spaces, .*'a photo of a AnnualCrop.'"),
        (["redFox", "GreyWolf"], "2 of 2 class names are made of words without spaces"),
    ],
)
def test_names_that_make_poor_prompts_get_a_hint(make: Make, names: list[str], said: str):
    with pytest.warns(UserWarning, match=said):
        load_split(f"folder:{make(*(f'{name}*4' for name in names))}")


def test_ordinary_names_get_no_hint():
    assert hint_names(["cat", "red fox", "Boeing 737-200", "Mercedes", "BMW X5", "T-shirt", "étoile", "猫"]) == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_folder_that_may_not_be_read_is_named(make: Make):
    root = make("cat*2", "dog*2")
    (root / "cat").chmod(0)
    with pytest.raises(VlpromptError, match=r"the folder .*cat cannot be read"):
        load_folder(root)
