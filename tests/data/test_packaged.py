"""Published splits that come with the package: what was published, byte for byte, and a file on disk before them."""

import hashlib
import json
from pathlib import Path

import pytest

from datasets_registry.card import Card, load_card
from datasets_registry.check import check_dataset
from datasets_registry.readers.packaged import (
    FOLDER,
    original_bytes,
    pack,
    packaged_content,
    packaged_names,
    packaged_sha256,
)
from vlprompt.base.files import sha256_file
from vlprompt.cli.data import main
from vlprompt.data import few_shot_split, load_split

# of the files that CoOp's DATASETS.md links
SHA256 = {
    "caltech101": "52ce83205ff8ff8a1a18119aad6376120ae35c36e783a984bc560cbf10e73fa5",
    "dtd": "f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38",
    "eurosat": "541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2",
    "flowers102": "2f50c42fc1a17ca13c271cb4269b1347bdb43d2be672e34f74a4e4cbfbcca794",
    "oxford_pets": "d7f3ffe65b3919f95132e51422894ae18686b83c331fd8c0adcdc3dc2de6301e",
    "stanford_cars": "40acee7aa65c8e4727a32d90e884b7c3f8960b523422317e163f7af65432959d",
    "ucf101": "d78cb834f7c5792ceaff2c5ee2d7c76a9e4086e48a3a6b01232989d29cbefdd8",
}


def with_images(name: str, root: Path) -> Card:
    """Make a dataset's empty image folder, which is all that is asked for before an image is opened."""
    card = load_card(name)
    (root / card.folder / card.images).mkdir(parents=True)
    return card


@pytest.mark.parametrize("name", SHA256)
def test_packaged_split_is_the_published_file_byte_for_byte(name: str):
    original = original_bytes(packaged_content(name))
    assert hashlib.sha256(original).hexdigest() == SHA256[name] == packaged_sha256(name)
    assert pack(load_card(name).split_file, original) == (FOLDER / f"{name}.tsv").read_text("utf-8")


def test_seven_splits_are_packaged_and_small():
    assert packaged_names() == sorted(SHA256)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_500_000


@pytest.mark.parametrize("name", SHA256)
def test_card_says_what_the_published_split_says(name: str, tmp_path: Path):
    card = with_images(name, tmp_path)
    splits = load_split(name, tmp_path)
    base, new = splits.select("base"), splits.select("new")
    counted = {"train": splits.train, "val": splits.val, "test": splits.test, "base": base.test, "new": new.test}
    assert {part: len(items) for part, items in counted.items()} == card.counts
    assert splits.class_names == tuple(card.class_names.values())
    assert len(splits.class_names) == card.classes
    assert (len(base.class_names), len(new.class_names)) == (-(-card.classes // 2), card.classes // 2)
    assert {item.label for item in new.train} == set(range(card.classes // 2))
    assert splits.source == "published"
    assert splits.templates == tuple(card.templates)


def test_flowers_59_is_the_pink_yellow_dahlia(tmp_path: Path):
    with_images("flowers102", tmp_path)
    assert load_split("flowers102", tmp_path).class_names[59] == "pink-yellow dahlia"
    assert load_card("flowers102").class_names["60"] == "pink-yellow dahlia"


def test_draws_from_the_packaged_split_are_the_published_ones(tmp_path: Path):
    with_images("eurosat", tmp_path)
    drawn = few_shot_split(load_split("eurosat", tmp_path), 1, seed=1)
    # indices/EuroSAT/shot_1-seed_1.json of cross_modal_adaptation
    published = [2365, 2046, 503, 125, 2006, 573, 1476, 1520, 882, 1624]
    assert [item.path.rpartition("_")[2] for item in drawn.train] == [f"{number}.jpg" for number in published]


def test_file_on_disk_wins_and_a_difference_is_said(tmp_path: Path, capsys: pytest.CaptureFixture):
    card = with_images("dtd", tmp_path)
    path = tmp_path / card.folder / card.split_file
    content = packaged_content("dtd")
    path.write_bytes(original_bytes(content))
    assert sha256_file(path) == SHA256["dtd"]
    published = load_split("dtd", tmp_path)
    path.write_text(json.dumps(content))  # another spelling of the same
    assert load_split("dtd", tmp_path) == published
    assert published.source == "published"

    content["val"][0], content["test"][0] = content["test"][0], content["val"][0]
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"is not the published split .*2 images, such as .*, of another part"):
        mine = load_split("dtd", tmp_path)
    assert mine.val[0].path == content["val"][0][0]
    assert mine.source == "own file"
    assert "is not the published split" in check_dataset("dtd", tmp_path).defects[0]
    assert main(["check", "dtd", f"data_root={tmp_path}", "--quiet"]) == 1
    assert "own file split" in capsys.readouterr().out

    content = packaged_content("dtd")
    content["train"].reverse()
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="its images stand in another order, so few-shot draws are others"):
        load_split("dtd", tmp_path)


def test_commands_say_that_the_split_is_included(tmp_path: Path, capsys: pytest.CaptureFixture):
    with_images("eurosat", tmp_path)
    assert main(["download", "eurosat", f"data_root={tmp_path}"]) == 0
    assert "the published split comes with the package" in capsys.readouterr().out
    (tmp_path / "tv/food-101/images").mkdir(parents=True)
    assert main(["prepare", "food101", f"from={tmp_path}/tv", f"data_root={tmp_path}"]) == 0
    assert "still missing: " in capsys.readouterr().out
    assert main(["info", "eurosat"]) == 0
    assert "published, included (a file eurosat/split_zhou_EuroSAT.json is used" in capsys.readouterr().out
    assert main(["list", "eurosat"]) == 0
    assert " included " in capsys.readouterr().out
