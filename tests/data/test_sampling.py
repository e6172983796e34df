import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from golden_files import CORE
from PIL import Image

from datasets_registry.readers.packaged import packaged_split
from vlprompt.data.sampling import few_shot_indices, few_shot_split
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.errors import VlpromptError


def blank(item: Item) -> Image.Image:
    return Image.new("RGB", (8, 8))


def make_splits(train: dict[str, int], val: int = 6) -> DatasetSplits:
    names = tuple(train)
    items = [Item(f"{name}/{i}.jpg", label, name) for label, name in enumerate(names) for i in range(train[name])]
    validation = [Item(f"{name}/v{i}.jpg", label, name) for label, name in enumerate(names) for i in range(val)]
    return DatasetSplits("toy", names, items, validation, items, blank)


def test_draws_equal_the_published_eurosat_subsets_in_order():
    names, parts = packaged_split("eurosat")
    splits = DatasetSplits("eurosat", names, **parts, open_image=blank)
    golden = json.loads((CORE / "fewshot_EuroSAT.json").read_text())
    assert len(golden) == 15
    for key, expected in golden.items():
        shots, seed = (int(part.rpartition("_")[2]) for part in key.split("-"))
        drawn = few_shot_split(splits, shots, seed)
        assert {"train": [i.path for i in drawn.train], "val": [i.path for i in drawn.val]} == expected, key
        assert drawn.test is splits.test


def test_draw_uses_its_own_stream_and_leaves_the_global_one_alone():
    labels = [i % 3 for i in range(30)]
    state = random.getstate()
    first = few_shot_indices(labels, 4, seed=7)
    assert random.getstate() == state
    assert first == few_shot_indices(labels, 4, seed=7) != few_shot_indices(labels, 4, seed=8)
    random.seed(7)
    by_label = [[i for i in range(30) if labels[i] == label] for label in (0, 1, 2)]
    assert first == [i for positions in by_label for i in random.sample(positions, 4)]


def test_classes_come_in_order_of_first_appearance():
    labels = [2, 0, 2, 1, 0, 1]
    assert [labels[i] for i in few_shot_indices(labels, 2, seed=1)] == [2, 2, 0, 0, 1, 1]


@pytest.mark.parametrize("shots", ["all", None])
def test_all_shots_keep_everything_in_order(shots: str | None):
    splits = make_splits({"cat": 3, "dog": 5})
    drawn = few_shot_split(splits, shots, seed=1)
    assert (drawn.train, drawn.val) == (splits.train, splits.val)


def test_more_shots_than_images_name_the_class_and_the_largest_choice():
    splits = make_splits({"cat": 20, "red fox": 16, "dog": 18})
    with pytest.raises(VlpromptError, match="17 shots were asked for, but class 'red fox' has 16 training images") as e:
        few_shot_split(splits, 17, seed=1)
    assert "shots=16 or fewer" in str(e.value)
    assert len(few_shot_split(splits, 16, seed=1).train) == 48


def test_fewer_val_images_than_four_are_all_taken():
    assert len(few_shot_split(make_splits({"cat": 9, "dog": 9}, val=2), 8, seed=1).val) == 4
    assert len(few_shot_split(make_splits({"cat": 9, "dog": 9}, val=0), 8, seed=1).val) == 0


@pytest.mark.parametrize("shots", [0, -1, 1.5, "many"])
def test_shots_that_are_no_number_are_refused(shots: object):
    with pytest.raises(VlpromptError, match="shots must be a positive number or 'all'"):
        few_shot_indices([0, 1], shots, seed=1)


def test_base_half_is_part_of_the_draw_over_all_classes():
    splits = make_splits({"a": 9, "b": 9, "c": 9})
    drawn = few_shot_split(splits, 4, seed=1)
    assert [i.path for i in drawn.select("base").train] == [i.path for i in drawn.train if i.label < 2]
    with pytest.raises(VlpromptError, match="before selecting its base half"):
        few_shot_split(splits.select("base"), 4, seed=1)


def test_fingerprint_changes_with_the_draw_but_not_with_the_place():
    splits = make_splits({"cat": 9, "dog": 9})
    drawn = few_shot_split(splits, 4, seed=1)
    assert drawn.fingerprint() != few_shot_split(splits, 4, seed=2).fingerprint()
    assert drawn.fingerprint() == replace(drawn, root=Path("/elsewhere")).fingerprint()
