"""`vlprompt data check` tells all that is wrong at once, and where a dataset may be instead."""

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from datasets_registry.check import check_dataset
from vlprompt.cli.data import main
from vlprompt.data import load_split
from vlprompt.data.listing import similar_name
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.prediction import find_images


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("L", (4, 4)).save(folder / name, "PNG")
    return folder


def make_photos(root: Path) -> Path:
    """Two good classes, and one thing of each kind that is wrong."""
    for name in ("cat", "red_fox"):
        fill(root / name, *(f"{i}.png" for i in range(10)))
    fill(root / "single", "0.png")
    fill(root / "empty")
    (root / "AnnualCrop").mkdir()
    fill(root / "AnnualCrop", *(f"{i}.png" for i in range(4)))
    fill(root.parent / "elsewhere", "0.png", "1.png")
    (root / "linked").symlink_to(root.parent / "elsewhere")
    (root / "cat/gone.png").symlink_to("nowhere.png")
    os.mkfifo(root / "cat/pipe.jpg")
    (root / "cat/none.jpg").touch()
    (root / "cat/page.pdf").touch()
    fill(root, "loose.png")
    for junk in ("cat/Thumbs.db", "cat/.DS_Store", "cat/desktop.ini", "cat/._0.png"):
        (root / junk).touch()
    fill(root / "__MACOSX/cat", "._0.png", "0.png")
    return root


def test_all_defects_of_a_folder_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture):
    # case: folders train/ val/: check shows the first class names
    root = make_photos(tmp_path / "photos")
    report = check_dataset(f"folder:{root}")
    for text in (
        "refused the path 'linked': it is or lies behind a link",
        "the class folder .*empty holds no images",
        "the class folder .*single holds one image",
        "pipe.jpg is a pipe, a device or a folder, no file",
        "none.jpg is empty",
        "gone.png is a link to what is not there",
    ):
        assert any(re.search(text, line) for line in report.defects), text
    assert len(report.defects) == 6
    assert report.classes_of_own == {"AnnualCrop": 4, "cat": 13, "red fox": 10, "single": 1}
    assert [note[:30] for note in report.notes] == [
        "1 image is left out, not being in a class folder"[:30],
        "1 file in " + str(root)[:20],
        "1 of 4 class names is made of ",
        f"the classes of folder:{root}"[:30],
    ]
    assert main(["check", f"folder:{root}", "--quiet", "lines=1"]) == 1
    out = capsys.readouterr().out
    assert "  classes: AnnualCrop 4, cat 13, red fox 10, single 1\n" in out
    assert "  note: 1 image is left out, not being" in out
    assert out.endswith("  and 5 more (lines=N shows N)\n")


def test_a_split_of_ones_own_is_not_called_official(tmp_path: Path, capsys: pytest.CaptureFixture):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            fill(tmp_path / part / name, f"{part}0.png", f"{part}1.png")
    main(["check", f"folder:{tmp_path}", "--quiet"])
    assert "train 4, val 0, test 4, own split\n" in capsys.readouterr().out


def test_a_damaged_list_of_names_is_the_only_defect_that_is_told(tmp_path: Path):
    for name in ("cat", "dog"):
        fill(tmp_path / name, "0.png", "1.png")
    (tmp_path / "classnames.txt").write_text("cow\tCow\n")
    (defect,) = check_dataset(f"folder:{tmp_path}").defects
    assert "must be a class folder and its class name" in defect


def test_classes_that_read_the_same_are_told_with_everything_else(tmp_path: Path):
    for name in ("red_fox", "red fox", "dog"):
        fill(tmp_path / name, "0.png", "1.png")
    report = check_dataset(f"folder:{tmp_path}")
    assert report.counts == {"train": 3, "val": 0, "test": 3}
    assert "has the class name 'red fox' for the labels [1, 2]" in report.defects[0]
    fill(tmp_path / "empty")
    assert len(check_dataset(f"folder:{tmp_path}").defects) == 2
    fill(tmp_path / "alone/cat", "0.png", "1.png")
    (defect,) = check_dataset(f"folder:{tmp_path}/alone").defects
    assert "has one class ('cat')" in defect


def test_a_good_folder_shows_its_first_classes_and_the_smallest(tmp_path: Path, capsys: pytest.CaptureFixture):
    # case: folders train/ val/: check shows the first class names
    for i in range(30):
        fill(tmp_path / f"photos/kind{chr(97 + i % 26)}{'x' * (i // 26)}", *(f"{j}.png" for j in range(2 + (i != 7))))
    assert main(["check", f"folder:{tmp_path / 'photos'}", "--quiet"]) == 0
    said = capsys.readouterr().out.splitlines()[1]
    assert said.startswith("  classes: kinda 3, kindax 3, kindb 3")
    assert "and 10 more; the fewest have kindh 2" in said


@pytest.mark.parametrize(
    ("made", "name", "root", "hint"),
    [
        ("DTD/images/banded", "dtd", "", "DTD is there: rename it to dtd"),
        ("dtd/Images/banded", "dtd", "", "Images is there: rename it to images"),
        ("more/dtd/images/banded", "dtd", "", "more/dtd is there: data_root=.*more"),
        ("eurosat/new/2750/Forest", "eurosat", "", "new/2750 is there: move what is in .*new up by one"),
        ("eurosat/2750/Forest", "eurosat", "eurosat", "is the dataset's own folder, .*: data_root="),
        ("here/2750/Forest", "eurosat", "here", "its image folder .*2750 is there: put it into .*eurosat"),
        (
            "oxford-iiit-pet/images",
            "oxford_pets",
            "",
            "torchvision's layout .*vlprompt data prepare oxford_pets",
        ),
        ("caltech101/101_ObjectCategories/ant", "caltech101", "", "vlprompt data prepare caltech101 from="),
    ],
)
def test_a_dataset_that_is_near_is_pointed_at(tmp_path: Path, made: str, name: str, root: str, hint: str):
    fill(tmp_path / "data" / made, "0.jpg")
    place = tmp_path / "data" / root
    (defect,) = check_dataset(name, place).defects
    assert re.search(hint, defect), defect
    with pytest.raises(VlpromptError, match=hint):
        load_split(name, place)


def test_a_dataset_that_is_nowhere_is_still_to_be_got(tmp_path: Path):
    (defect,) = check_dataset("eurosat", tmp_path).defects
    assert "use download=true" in defect


def test_a_folder_without_datasets_may_hold_photos(tmp_path: Path, capsys: pytest.CaptureFixture):
    fill(tmp_path / "photos/cat", "0.png")
    assert main(["check", str(tmp_path / "photos"), "--quiet"]) == 2
    assert "are checked by vlprompt data check folder:" in capsys.readouterr().err
    fill(tmp_path / "data/DTD/images/banded", "0.png")
    assert main(["check", str(tmp_path / "data"), "--quiet"]) == 2
    assert "dtd? " in capsys.readouterr().err


def test_names_that_differ_in_case_or_ending_alone():
    assert similar_name("x.jpg", ["y.jpg", "x.JPG"]) == "x.JPG"
    assert similar_name("x.jpg", ["x.jpeg"]) == "x.jpeg"
    assert similar_name("Forest", ["forest"]) == "forest"
    assert similar_name("x.jpg", ["x.jpg"]) is None
    assert similar_name("images", ["image"]) is None


def test_missing_images_with_another_ending_are_said(tmp_path: Path):
    fill(tmp_path / "x/cat", "0.JPG", "1.JPG")
    fill(tmp_path / "x/dog", "0.jpg", "1.jpg")
    rows = "".join(f"{kind}/{i}.jpg,{kind},{'test' if i else 'train'}\n" for kind in ("cat", "dog") for i in range(2))
    (tmp_path / "x/t.csv").write_text("path,class,split\n" + rows)
    found = check_dataset(f"csv:{tmp_path}/x/t.csv").defects
    assert [line.rpartition("/")[2] for line in found] == [
        "0.jpg is missing, though 0.JPG is there: rename it",
        "1.jpg is missing, though 1.JPG is there: rename it",
    ]


def test_predict_counts_what_it_leaves_out_of_a_folder(tmp_path: Path):
    # case: still.gif, photo.avif, photo.jfif, a .heic, a .pdf
    fill(tmp_path / "new", "a.png", "b.gif", "c.JPG", "page.pdf", "notes.txt", "Thumbs.db", ".hidden.png")
    (tmp_path / "new/more").symlink_to(fill(tmp_path / "more", "d.png"))
    said: list[str] = []
    found = [os.path.basename(path) for path in find_images([str(tmp_path / "new")], on_left_out=said.append)]
    assert found == ["a.png", "b.gif", "c.JPG"]
    assert "2 files in" in said[0]
    assert said[0].endswith("1 .pdf, 1 .txt")
    assert said[1] == f"the linked folder {tmp_path}/new/more is not followed: give it too if you want its images"
