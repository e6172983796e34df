"""`bench data` measures any dataset; no test looks at the times."""

import json
from pathlib import Path

import pytest
from miniatures import make_miniature

from datasets_registry.card import load_card
from vlprompt.bench.data import bench_data
from vlprompt.cli.__main__ import main
from vlprompt.errors import VlpromptError

FEW = {"images": 4, "repeats": 1, "batch_size": 4, "image_size": 32}


@pytest.mark.filterwarnings("ignore:.*is not the published split")
@pytest.mark.parametrize(
    "name",
    [
        "oxford_pets",
        "stanford_cars",
        "flowers102",
        "fgvc_aircraft",
        "ucf101",
        "pacs",
        "office_home",
        "cifar10",
        "digits",
    ],
)
def test_every_layout_is_measured(name: str, tmp_path: Path):
    if load_card(name).folder:
        make_miniature(name, tmp_path)
    rows = bench_data(name, tmp_path, **FEW)["rows"]
    assert [(row["images"], row["transform"]) for row in rows[:2]] == [(name, "train"), (name, "eval")]
    assert all(row["ratio"] > 0 for row in rows)


def test_no_split_file_is_needed_where_one_can_be_made(tmp_path: Path):
    card = make_miniature("food101", tmp_path)
    (tmp_path / card.folder / card.split_file).unlink()
    assert bench_data("food101", tmp_path, split="generated", **FEW)["rows"]
    file = tmp_path / "bench.json"
    argv = ["dataset=food101", f"data_root={tmp_path}", "split=generated", "images=4", "repeats=1", f"output={file}"]
    assert main(["bench", "data", *argv]) == 0
    assert json.loads(file.read_text())["rows"][0]["images"] == "food101"


def test_images_that_are_not_there_are_named(tmp_path: Path):
    card = load_card("eurosat")
    (tmp_path / card.folder / card.images).mkdir(parents=True)
    with pytest.raises(VlpromptError, match="eurosat"):
        bench_data("eurosat", tmp_path, **FEW)
