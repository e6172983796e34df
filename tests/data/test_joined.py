"""Several datasets as one: labels side by side, images opened by their own dataset, other tasks masked."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlprompt import VlpromptError, load_split
from vlprompt.data import few_shot_split, join_datasets, mask_other_tasks


def test_labels_stand_side_by_side_and_images_are_the_datasets_own() -> None:
    parts = [few_shot_split(load_split(name), 2, seed=1) for name in ("digits", "glyphs/chess")]
    joined = join_datasets(parts)
    assert joined.name == "digits+glyphs/chess"
    assert joined.class_names == parts[0].class_names + parts[1].class_names
    assert joined.tasks == (0,) * 10 + (1,) * 12
    assert len(joined.train) == len(parts[0].train) + len(parts[1].train)
    assert {item.label for item in joined.train} == set(range(22))
    for part, start, item in ((parts[0], 0, joined.train[3]), (parts[1], 10, joined.train[-1])):
        own = next(i for i in part.train if (i.path, i.label + start) == (item.path, item.label))
        assert joined.open_image(item).tobytes() == part.open_image(own).tobytes()
    assert not joined.mirror  # one of them may not be mirrored


def test_folders_on_disk_keep_files_of_the_same_name_apart(make_images: Callable[..., Path], tmp_path: Path) -> None:
    roots = [make_images({"cat": 4, "dog": 4}), tmp_path / "again"]
    roots[0].rename(tmp_path / "once")
    make_images({"cat": 4, "dog": 4}).rename(roots[1])
    joined = join_datasets([load_split(f"folder:{tmp_path / name}") for name in ("once", "again")])
    assert joined.class_names == ("cat", "dog", "cat", "dog")
    paths = [item.path for part in (joined.train, joined.val, joined.test) for item in part]
    assert len(set(paths)) == len(paths) == 16
    assert all((joined.image_dir / path).exists() for path in paths)
    assert joined.open_image(joined.test[-1]).mode == "RGB"


def test_one_dataset_cannot_be_joined() -> None:
    digits = load_split("digits")
    for parts in ([digits], [digits, digits]):
        with pytest.raises(VlpromptError, match="at least two different datasets"):
            join_datasets(parts)


def test_other_tasks_classes_are_masked() -> None:
    [batch] = mask_other_tasks([{"label": torch.tensor([0, 2, 1])}], tasks=(0, 0, 1))
    assert batch["class_mask"].tolist() == [[True, True, False], [False, False, True], [True, True, False]]
    masked = torch.zeros(3, 3).masked_fill(~batch["class_mask"], -math.inf)
    assert masked.softmax(dim=-1)[1].tolist() == [0, 0, 1]
