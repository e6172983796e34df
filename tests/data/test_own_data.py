"""Data of your own: tables, split files, shards and pairs."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets_registry.check import check_dataset
from vlprompt.data import (
    DatasetSplits,
    Item,
    dataset_info,
    few_shot_split,
    leave_domain_out,
    load_split,
    read_subset,
    register_dataset,
    select_domains,
    splits_from_hf,
    splits_from_pairs,
    write_subset,
)
from vlprompt.data.templates import imagenet80, resolve_templates
from vlprompt.errors import VlpromptError
from vlprompt.report.names import display_dataset

# Tables and split files


@pytest.fixture
def table(make_images: Callable[..., Path]) -> Callable[[str], Path]:
    """Return a function that writes a table beside twenty images of two classes."""
    folder = make_images({"cat": 10, "dog": 10}).parent

    def write(text: str) -> Path:
        (folder / "table.csv").write_text(text)
        return folder / "table.csv"

    return write


def rows(form: str) -> str:
    kinds = ("cat", "dog")
    return "".join(
        form.format(
            path=f"images/{k}/{i:03d}.jpg", label=kinds.index(k), name=k, part="test" if i > 7 else "train", i=i % 2
        )
        for k in kinds
        for i in range(10)
    )


def test_table_of_paths_and_class_names_is_split(table: Callable[[str], Path]):
    splits = load_split(f"csv:{table('path,class' + chr(10) + rows('{path},{name}' + chr(10)))}")
    assert splits.class_names == ("cat", "dog")
    assert (len(splits.train), len(splits.val), len(splits.test), splits.source) == (10, 4, 6, "generated")
    assert splits.open_image(splits.test[0]).size == (32, 24)


def test_table_with_split_and_domain_columns_is_taken_as_it_is(table: Callable[[str], Path], tmp_path: Path):
    path = table("path,label,class,split,domain\n" + rows("{path},{label},my_{name},{part},d{i}\n"))
    splits = load_split(f"csv:{path}")
    assert splits.class_names == ("my cat", "my dog")
    assert (len(splits.train), len(splits.test), splits.source, splits.domains) == (16, 4, "official", ("d0", "d1"))
    assert {item.domain for item in leave_domain_out(splits, "d1").test} == {"d1"}
    elsewhere = tmp_path / "elsewhere.csv"
    path.rename(elsewhere)
    assert load_split(f"csv:{elsewhere}", tmp_path).fingerprint() == splits.fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has the columns \(none\): it needs path, and label or class"),
        ("place,label\na.jpg,0\n", "has values|has the columns place, label: it needs path"),
        ("path,label\na.jpg\nb.jpg,0\n", "line 2 of .* has no label"),
        ("path,label\na,b.jpg,0\n", "line 2 of .* has more values than there are columns"),
        ("path,label\na.jpg,cat\nb.jpg,0\n", "line 2 of .* has the label 'cat': labels are 0, 1, 2"),
        ("path,label\na.jpg,0\nb.jpg,2\n", "must run from 0 without gaps; missing: 1"),
        ("path,label,class\na.jpg,0,cat\nb.jpg,0,dog\n", "line 3 of .* calls label 0 'dog', others 'cat'"),
        ("path,class\n../a.jpg,cat\n", r"line 2 of .* leads out of the image folder: '\.\./a\.jpg'"),
        ("path,class,split\na.jpg,cat,dev\n", "line 2 of .* has the split 'dev', not train, val or test"),
    ],
)
def test_malformed_table_is_told_with_its_line(table: Callable[[str], Path], text: str, message: str):
    with pytest.raises(VlpromptError, match=message):
        load_split(f"csv:{table(text)}")


def test_split_file_of_your_own(make_images: Callable[..., Path]):
    root = make_images({"cat": 2, "dog": 2})
    split = {
        part: [[f"{k}/00{i}.jpg", n, k] for n, k in enumerate(("cat", "dog"))]
        for i, part in enumerate(("train", "test"))
    }
    (root / "mine.json").write_text(json.dumps({**split, "val": []}))
    splits = load_split(f"json:{root / 'mine.json'}")
    assert (splits.class_names, splits.open_image(splits.test[0]).mode) == (("cat", "dog"), "RGB")
    with pytest.raises(VlpromptError, match=r"the file .*absent\.json does not exist"):
        load_split(f"json:{root / 'absent.json'}")


# Shards


def jpeg(seed: int = 0) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(content, "JPEG")
    return content.getvalue()


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_shards_named_by_part_with_numbered_classes(tmp_path: Path):
    for shard in ("train-000", "train-001", "test-000"):
        write_shard(
            tmp_path / f"{shard}.tar",
            {f"{i}.{e}": c for i in range(4) for e, c in (("jpg", jpeg(i)), ("cls", str(i % 2).encode()))},
        )
    (tmp_path / "classnames.txt").write_text("cat\nred_fox\n")
    splits = load_split(f"wds:{tmp_path}/*.tar")
    assert (splits.class_names, len(splits.train), len(splits.val), len(splits.test)) == (("cat", "red fox"), 8, 0, 4)
    image = splits.open_image(splits.test[1])
    assert np.array_equal(image, Image.open(io.BytesIO(jpeg(1))))
    some = load_split(f"wds:{tmp_path}/t*-{{000..000}}.tar")
    assert len(some.train) == 4
    assert some.version != splits.version


def test_shards_without_parts_are_split_by_key(tmp_path: Path):
    members = {}
    for i in range(20):
        members[f"x/{i}.png"] = jpeg(i)
        members[f"x/{i}.json"] = json.dumps({"class": "cat" if i < 10 else "dog"}).encode()
    write_shard(tmp_path / "a.tar", members)
    splits = load_split(f"wds:{tmp_path}/a.tar")
    assert (len(splits.train), len(splits.val), len(splits.test), splits.source) == (10, 4, 6, "generated")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.jpg": b"", "1.jpg": b""}, "sample 0 in .* has no class"),
        ({"0.cls": b"1"}, "sample 0 in .* has no image"),
        ({"0.jpg": b"", "0.json": b"{"}, "the class of 0.json in .* cannot be read"),
        ({"0.jpg": b"", "0.cls": b"0"}, r"list of class names.* is expected at .*classnames\.txt"),
    ],
)
def test_malformed_shard_is_told_with_its_sample(tmp_path: Path, members: dict[str, bytes], message: str):
    write_shard(tmp_path / "a.tar", members)
    with pytest.raises(VlpromptError, match=message):
        load_split(f"wds:{tmp_path}/a.tar")
    (tmp_path / "b.tar").write_bytes(b"not a tar file")
    with pytest.raises(VlpromptError, match=r"b\.tar cannot be read as an uncompressed tar file"):
        load_split(f"wds:{tmp_path}/b.tar")
    with pytest.raises(VlpromptError, match="no shard matches"):
        load_split(f"wds:{tmp_path}/c*.tar")


# In memory


def pairs(count: int = 20, form: Callable[[int], object] = lambda i: Image.new("L", (8, 8), i)) -> list[tuple]:
    return [(form(i), i % 2) for i in range(count)]


def test_pairs_of_images_paths_and_arrays(tmp_path: Path):
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.png")
    for form in (
        lambda i: tmp_path / "a.png",
        lambda i: np.full((8, 8, 3), 9, np.uint8),
        lambda i: Image.new("L", (8, 8), 9),
    ):
        splits = splits_from_pairs(pairs(form=form), ["cat", "dog"])
        assert (len(splits.train), len(splits.val), len(splits.test)) == (10, 4, 6)
        assert splits.open_image(splits.test[0]).getpixel((0, 0)) == (9, 9, 9)
    given = splits_from_pairs(pairs(), ["cat", "dog"], test=pairs(4), name="mine")
    assert (len(given.train), len(given.test), given.source, given.name) == (20, 4, "official", "mine")
    assert splits_from_pairs(pairs(), ["cat", "dog"]).name != splits_from_pairs(pairs(), ["cat", "dog"]).name


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([(None, 2)], "label of train pair 0 must be 0 to 1, not 2"),
        ([(None, "cat")], "must be 0 to 1, not 'cat'"),
        ([None], r"expected \(image, label\) or \(image, label, domain\), not NoneType"),
    ],
)
def test_pairs_that_are_none(train: list, message: str):
    with pytest.raises(VlpromptError, match=message):
        splits_from_pairs(train, ["cat", "dog"])


class Table:
    """What the reader asks of a Hugging Face dataset."""

    def __init__(self, count: int, names: list[str] | None):
        self.features = {"img": None, "label": type("ClassLabel", (), {"names": names})()}
        self.count, self.decoded = count, 0

    def __getitem__(self, key: str | int):
        if key == "label":
            return [i % 2 for i in range(self.count)]
        self.decoded += 1
        return {"img": Image.new("RGB", (8, 8), (key, 0, 0)), "label": key % 2}


def test_hugging_face_datasets_are_read_without_decoding_images_for_their_labels():
    whole = {"train": Table(8, ["cat", "dog"]), "validation": Table(2, None), "test": Table(4, None)}
    splits = splits_from_hf(whole)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (8, 2, 4)
    assert splits.class_names == ("cat", "dog")
    assert not whole["train"].decoded
    assert splits.open_image(splits.test[3]).getpixel((0, 0)) == (3, 0, 0)
    assert len(splits_from_hf(whole["train"]).test) == 4
    with pytest.raises(VlpromptError, match="has no class names: give class_names"):
        splits_from_hf(Table(4, None))


def test_dataset_in_memory_is_found_by_its_name():
    splits = splits_from_pairs(pairs(), ["cat", "dog"], name="in_memory_test")
    assert register_dataset(splits) == register_dataset(splits) == "in_memory_test"  # as several runs on it do
    assert load_split("in_memory_test").class_names == ("cat", "dog")
    report = check_dataset("in_memory_test", deep=True)
    assert (report.found, report.opened, report.defects, report.source) == (True, 20, (), "generated")
    assert display_dataset("in_memory_test") == "in_memory_test"  # over a column of a table
    with pytest.raises(VlpromptError, match="'in_memory_test' is a dataset in memory, which has no card"):
        dataset_info("in_memory_test")
    for taken in ("emoji", "no/slash", "no:colon"):
        with pytest.raises(
            VlpromptError,
            match=f"the name '{taken}' is a registered dataset's, or contains a character that names may not contain",
        ):
            register_dataset(splits_from_pairs(pairs(), ["cat", "dog"], name=taken))


def test_a_cell_that_makes_its_dataset_again_may_be_run_again():
    def cell(images: list[tuple], names: list[str]) -> DatasetSplits:
        splits = splits_from_pairs(images, names, name="of-a-cell")
        register_dataset(splits)
        return splits

    first, second = cell(pairs(), ["cat", "dog"]), cell(pairs(), ["cat", "dog"])
    assert load_split("of-a-cell").open_image is second.open_image is not first.open_image
    for images, names in ((pairs(), ["cat", "horse"]), (pairs()[2:], ["cat", "dog"])):
        with pytest.raises(VlpromptError, match="another dataset of this process is called 'of-a-cell' and has other"):
            cell(images, names)
    assert load_split("of-a-cell").class_names == ("cat", "dog")


# Parts


def toy(images: int = 6) -> DatasetSplits:
    names = ("a", "b", "c", "d", "e")
    items = [Item(f"{d}/{k}/{i}.jpg", n, k, d) for d in ("x", "y") for n, k in enumerate(names) for i in range(images)]
    return DatasetSplits("toy", names, items, items[:5], items[5:9], lambda item: Image.new("RGB", (8, 8)))


def test_domains_are_selected_by_name():
    assert {item.domain for item in select_domains(toy(), ["y"]).train} == {"y"}
    with pytest.raises(VlpromptError, match="toy has no domain 'z': known: x, y"):
        select_domains(toy(), ["z"])
    with pytest.raises(VlpromptError, match="there is none left to learn on"):
        leave_domain_out(select_domains(toy(), ["x"]), "x")


def test_missing_shots_and_uneven_classes_are_said():
    splits = toy()
    splits = splits_of(splits, splits.train[10:])  # class a keeps 2 of 12, b 12 - 4
    with pytest.warns(UserWarning, match="of 5 classes of toy have fewer than 12 training images; 'a' has"):
        drawn = few_shot_split(splits, 12, seed=1, allow_fewer=True)
    assert len(drawn.train) < 60
    with pytest.warns(
        UserWarning, match="the classes of toy are uneven: 'b' has|the classes of toy are uneven: 'a' has"
    ):
        few_shot_split(splits, "all", seed=1)


def splits_of(splits: DatasetSplits, train: list[Item]) -> DatasetSplits:
    from dataclasses import replace

    return replace(splits, train=train)


def test_subset_is_written_and_read_in_order(tmp_path: Path):
    splits = toy()
    drawn = few_shot_split(splits, 4, seed=1)
    write_subset(drawn, tmp_path / "subset.json")
    assert read_subset(splits, tmp_path / "subset.json").fingerprint() == drawn.fingerprint()
    content = json.loads((tmp_path / "subset.json").read_text())
    assert content["train"][0] == [drawn.train[0].path, drawn.train[0].label, drawn.train[0].class_name]
    content["train"][0][1] = 4
    (tmp_path / "subset.json").write_text(json.dumps(content))
    with pytest.raises(VlpromptError, match="which is not a train item of toy"):
        read_subset(splits, tmp_path / "subset.json")


# Templates


def test_templates_by_set_text_and_file(tmp_path: Path):
    splits = toy()
    assert resolve_templates(None, splits) == resolve_templates("hand", splits) == ("a photo of a {}.",)
    seven = resolve_templates("imagenet7", splits)
    assert (len(seven), seven[0], seven[-1]) == (8, "itap of a {}.", "a photo of a {}.")
    assert resolve_templates("imagenet7", splits) == seven  # nothing adds up
    assert resolve_templates("imagenet80", splits) == imagenet80()
    assert (len(imagenet80()), imagenet80()[0]) == (80, "a bad photo of a {}.")
    assert resolve_templates("a drawing of a {}", splits) == ("a drawing of a {}",)
    (tmp_path / "mine.txt").write_text("one {}\n\ntwo {}\n")
    assert resolve_templates(str(tmp_path / "mine.txt"), splits) == ("one {}", "two {}")
    with pytest.raises(VlpromptError, match=r"'imagenet70' is not a template .*: did you mean imagenet7"):
        resolve_templates("imagenet70", splits)
    with pytest.raises(VlpromptError, match=r"must hold \{\} once"):
        resolve_templates(["a photo"], splits)
