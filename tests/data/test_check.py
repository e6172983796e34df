"""`vlprompt data check` on a damaged copy: each defect is a line, and nothing unsafe is opened."""

import json
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from miniatures import make_miniature
from PIL import Image

from datasets_registry.check import check_dataset, class_hash, datasets_below
from vlprompt.cli.data import main
from vlprompt.data import DatasetSplits, load_split
from vlprompt.data import check as check_module
from vlprompt.errors import VlpromptError, warn


def bomb() -> bytes:
    """A PNG of 300 megapixels in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 15_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def eurosat(tmp_path: Path) -> Path:
    """A miniature of EuroSAT whose images are files of their own, not links."""
    make_miniature("eurosat", tmp_path / "first")
    shutil.copytree(tmp_path / "first/eurosat", tmp_path / "data/eurosat")
    return tmp_path / "data"


def damage_split(root: Path, change: Callable[[dict], None]) -> None:
    path = root / "eurosat/split_zhou_EuroSAT.json"
    split = json.loads(path.read_text())
    change(split)
    path.write_text(json.dumps(split))


def defects(root: Path, *, deep: bool = False) -> list[str]:
    """Defects other than the miniature's small counts, and that its split is none that was published."""
    report = check_dataset("eurosat", root, deep=deep)
    assert not any("\n" in line for line in report.defects)
    lines = [line for line in report.defects if "is not the published split" not in line]
    return [line for line in lines if "the card says" not in line or "label" in line]


@pytest.mark.filterwarnings("ignore:.*is not the published split")
def test_whole_miniature_differs_in_its_counts_alone(eurosat: Path):
    report = check_dataset("eurosat", eurosat, deep=True)
    split, *counts = report.defects
    assert "split_zhou_EuroSAT.json is not the published split of EuroSAT" in split
    assert [line.split()[0] for line in counts] == ["train", "val", "test", "base", "new"]
    assert counts[0] == "train has 20 images, the card says 13,500"
    assert (report.found, report.classes, report.opened, report.source) == (True, 10, 40, "own file")
    assert report.class_hash == class_hash(load_split("eurosat", eurosat).class_names)
    assert datasets_below(eurosat) == ["eurosat"]


def test_missing_folders_are_told_with_what_to_do(eurosat: Path, tmp_path: Path):
    report = check_dataset("eurosat", tmp_path / "nowhere")
    assert not report.found
    assert report.defects[0].startswith(f"the folder {tmp_path}/nowhere/eurosat is missing: use download=true")
    shutil.rmtree(eurosat / "eurosat/2750/Forest")
    assert defects(eurosat) == [f"the folder {eurosat}/eurosat/2750/Forest with 4 images is missing"]
    (eurosat / "eurosat/split_zhou_EuroSAT.json").unlink()
    assert f"the folder {eurosat}/eurosat/2750/Forest with 3,000 images is missing" in defects(eurosat)
    shutil.rmtree(eurosat / "eurosat/2750")
    assert "the image folder" in defects(eurosat)[0]


def test_damaged_images_are_named_and_the_bomb_is_not_decoded(eurosat: Path):
    images = sorted((eurosat / "eurosat/2750").rglob("*.jpg"))
    images[0].write_bytes(images[0].read_bytes()[:200])
    images[1].write_bytes(b"")
    images[2].unlink()
    images[3].write_bytes(bomb())
    found = defects(eurosat, deep=True)
    assert len(found) == 4
    for path, text in zip(
        images, ("cannot read the image", "is empty", "is missing", "300000000 pixels"), strict=False
    ):
        assert any(str(path) in line and text in line for line in found)
    assert len(defects(eurosat)) == 2  # nothing is opened unless asked for


def test_link_out_of_the_folder_is_told_and_never_opened(
    eurosat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.jpg")
    image = next((eurosat / "eurosat/2750/River").glob("*.jpg"))
    image.unlink()
    image.symlink_to(tmp_path / "secret.jpg")
    outside = tmp_path / "outside"
    (eurosat / "eurosat/2750/Forest").rename(outside)
    (eurosat / "eurosat/2750/Forest").symlink_to(outside)
    opened = []
    real = check_module.open_inside
    monkeypatch.setattr(
        check_module, "open_inside", lambda folder, item: opened.append(item.path) or real(folder, item)
    )
    found = defects(eurosat, deep=True)
    assert f"refused the path 'River/{image.name}'" in found[1]
    assert "refused the path 'Forest'" in found[0]
    assert "(4 images)" in found[0]


def test_each_bad_entry_of_the_split_file_is_a_line(eurosat: Path):
    def change(split: dict) -> None:
        split["train"] += [["../../etc/passwd", 0, "x"], ["/etc/passwd", 0, "x"], ["Forest/f.jpg", "1", "Forest"], 7]
        split["train"].append(split["train"][0])
        split["test"].append(split["val"][0])
        split["test"][0][2] = "Woods"

    damage_split(eurosat, change)
    found = defects(eurosat)
    for text in (
        "leads out of the image folder: '../../etc/passwd'",
        "folder: '/etc/passwd'",
        "must be [path, label, class name]",
    ):
        assert any(text in line for line in found)
    assert any("calls label 0 'Woods', others 'Annual Crop Land'" in line for line in found)
    assert any("AnnualCrop_1.jpg stands 2 times in train" in line for line in found)
    assert any("AnnualCrop_21.jpg is in val and in test" in line for line in found)
    assert len(found) == 7
    with pytest.raises(VlpromptError, match="leads out of the image folder"):
        load_split("eurosat", eurosat)


def test_swapped_class_names_and_misplaced_images_are_told(eurosat: Path):
    swap = {"Forest": "River", "River": "Forest"}

    def change(split: dict) -> None:
        for part in split.values():
            for entry in part:
                entry[2] = swap.get(entry[2], entry[2])

    damage_split(eurosat, change)
    assert defects(eurosat) == [
        "label 1 is called 'River', the card says 'Forest'",
        "label 8 is called 'Forest', the card says 'River'",
    ]


def test_image_in_another_classs_folder_is_told(tmp_path: Path):
    (tmp_path / "x").mkdir()
    entries = [[f"cat/{i}.jpg", 0, "cat"] for i in range(20)] + [["cat/x.jpg", 1, "dog"], ["dog/0.jpg", 1, "dog"]]
    (tmp_path / "x/s.json").write_text(json.dumps({"train": entries, "val": [], "test": entries[-1:] + entries[:1]}))
    found = check_dataset(f"json:{tmp_path}/x/s.json").defects
    assert "cat/x.jpg is labelled 'dog', the others in cat 'cat'" in found


def test_labels_with_gaps_are_told(eurosat: Path):
    def change(split: dict) -> None:
        for part in split:
            split[part] = [entry for entry in split[part] if entry[1] != 4]

    damage_split(eurosat, change)
    assert any("must run from 0 without gaps; missing: 4" in line for line in defects(eurosat))


def test_published_test_part_that_equals_val_is_no_duplicate(tmp_path: Path):
    make_miniature("pacs", tmp_path)
    report = check_dataset("pacs", tmp_path, deep=True)
    assert all("the card says" in line for line in report.defects)


def test_command_prints_a_line_a_defect_and_its_status_tells(eurosat: Path, capsys: pytest.CaptureFixture):
    assert main(["check", "eurosat", f"data_root={eurosat}", "--deep", "--quiet"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("eurosat: 6 defects; 10 classes (hash ")
    assert len(out) == 7
    assert main(["check", str(eurosat), "--quiet", "lines=1"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "  and 5 more (lines=N shows N)"
    assert main(["check", "digits", "--quiet"]) == 0
    assert main(["check", str(eurosat / "eurosat")]) == 2
    assert "no folder of a registered dataset" in capsys.readouterr().err


def test_commands_list_and_info(capsys: pytest.CaptureFixture):
    assert main(["list", "coop11"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
    assert main(["info", "eurosat"]) == 0
    out = capsys.readouterr().out
    assert "licence      MIT" in out
    assert "eurosat/2750/{AnnualCrop" in out
    for argv, message in (
        ([], "say what to do with data: list, info"),
        (["lst"], "did you mean list?"),
        (["info"], "say which dataset"),
        (["info", "eurosta"], "did you mean eurosat?"),
        (["list", "x*"], "no dataset matches 'x*'"),
        (["check", "eurosat", "depe=true"], "unknown key 'depe': did you mean deep?"),
        (["download", "eurosat"], "data_root=DIR"),
        (["download", "digits", "data_root=x"], "is embedded"),
        (["prepare", "eurosat", "data_root=x"], "say where the files are: from=DIR"),
    ):
        assert main(argv) == 2
        assert message in capsys.readouterr().err


def test_what_is_not_there_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name, state in (
        ("folder:photoz", "not found"),
        ("csv:table.csv", "not found"),
        ("wds:no/*.tar", "not found"),
        ("folder:empty", "found, but cannot be loaded"),
    ):
        assert main(["check", name]) == 1
        assert f"{name}: 1 defect; {state}\n" in capsys.readouterr().out


def test_uneven_classes_of_a_table_are_noted(tmp_path: Path):
    lines = ["path,class"]
    for name, count in (("cat", 40), ("dog", 4)):
        for i in range(count):
            Image.new("RGB", (4, 4)).save(tmp_path / f"{name}{i}.png")
            lines.append(f"{name}{i}.png,{name}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    notes = check_dataset(f"csv:{tmp_path / 'table.csv'}").notes
    assert any("are uneven: 'dog' has 2 training images, 'cat' 20" in note for note in notes)


def test_what_is_warned_of_elsewhere_is_no_defect(monkeypatch: pytest.MonkeyPatch):
    def with_a_socket(*given: Any, **settings: Any) -> DatasetSplits:
        warnings.warn("unclosed <socket.socket>", ResourceWarning, stacklevel=1)
        warn("3 images are far away")
        return load_split(*given, **settings)

    monkeypatch.setattr("datasets_registry.check.load_split", with_a_socket)
    assert check_dataset("digits").defects == ("3 images are far away",)
