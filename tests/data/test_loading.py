import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_clip import TinyCLIP

from vlprompt.bench.data import bench_data
from vlprompt.data import ImageItems, epoch_batches, eval_batches, eval_transform, load_split, train_transform
from vlprompt.data.loading import batch_order
from vlprompt.errors import VlpromptError


@pytest.fixture
def dataset(make_images: Callable[..., Path], tiny_clip: TinyCLIP) -> ImageItems:
    splits = load_split(f"folder:{make_images({'cat': 14, 'dog': 14})}")
    return ImageItems(splits, splits.train, train_transform(tiny_clip))


def by_index(batches: list[dict[str, torch.Tensor]]) -> dict[int, torch.Tensor]:
    return {int(i): image for batch in batches for i, image in zip(batch["index"], batch["image"], strict=True)}


def test_batch_has_images_labels_and_positions(dataset: ImageItems):
    batches = list(epoch_batches(dataset, 4, seed=1, epoch=0))
    assert [len(batch["label"]) for batch in batches] == [4, 4, 4]
    for batch in batches:
        assert batch["image"].shape == (4, 3, 16, 16)
        assert (batch["image"].dtype, batch["label"].dtype, batch["index"].dtype) == (
            torch.float32,
            torch.int64,
            torch.int64,
        )
        assert batch["label"].tolist() == [dataset.items[i].label for i in batch["index"]]


def test_workers_do_not_change_a_bit(dataset: ImageItems):
    runs = [list(epoch_batches(dataset, 4, seed=1, epoch=2, workers=workers)) for workers in (0, 1, 2)]
    for run in runs[1:]:
        for batch, expected in zip(run, runs[0], strict=True):
            assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_randomness_of_a_sample_is_that_of_seed_epoch_and_position(dataset: ImageItems):
    def load(batch_size: int = 4, seed: int = 1, epoch: int = 0) -> dict[int, torch.Tensor]:
        return by_index(list(epoch_batches(dataset, batch_size, seed=seed, epoch=epoch, drop_last=False)))

    first = load()
    assert all(torch.equal(first[i], other) for i, other in load(batch_size=7).items())
    assert not any(torch.equal(first[i], other) for i, other in load(epoch=1).items())
    assert not any(torch.equal(first[i], other) for i, other in load(seed=2).items())


def test_global_random_numbers_are_left_alone(dataset: ImageItems):
    states = torch.get_rng_state(), random.getstate()
    list(epoch_batches(dataset, 4, seed=1, epoch=0))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_order_is_a_new_permutation_each_epoch():
    orders = [batch_order(10, 10, seed, epoch)[0] for seed, epoch in [(1, 0), (1, 1), (2, 0)]]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize(
    ("size", "drop_last", "expected"),
    [(10, True, [4, 4]), (10, False, [4, 4, 2]), (8, True, [4, 4]), (3, True, [3]), (4, True, [4])],
)
def test_short_batch_is_dropped_only_beside_a_whole_one(size: int, drop_last: bool, expected: list[int]):
    assert [len(batch) for batch in batch_order(size, 4, 1, 0, drop_last)] == expected


def test_eval_batches_keep_order_and_everything(dataset: ImageItems, tiny_clip: TinyCLIP):
    batches = list(eval_batches(ImageItems(dataset.splits, dataset.items, eval_transform(tiny_clip)), 5))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(14))
    assert not list(eval_batches(ImageItems(dataset.splits, [], dataset.transform)))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", ["truncated", "empty"])
def test_unreadable_image_stops_training_and_evaluation_with_its_name(dataset: ImageItems, workers: int, content: str):
    path = dataset.splits.image_dir / dataset.items[3].path
    path.write_bytes(path.read_bytes()[:300] if content == "truncated" else b"")
    for batches in (
        epoch_batches(dataset, 4, seed=1, epoch=0, drop_last=False, workers=workers),
        eval_batches(dataset, 4, workers=workers),
    ):
        with pytest.raises(VlpromptError, match=r"^cannot read the image .*\.jpg .*: replace or remove it$") as error:
            list(batches)
        assert str(path) in str(error.value)


def test_images_from_disk_and_from_memory_are_cropped_alike(dataset: ImageItems):
    splits = dataset.splits
    in_memory = replace(splits, open_image=lambda item: splits.open_image(item))
    for disk, memory in zip(
        epoch_batches(dataset, 4, seed=1, epoch=0),
        epoch_batches(ImageItems(in_memory, dataset.items, dataset.transform), 4, seed=1, epoch=0),
        strict=True,
    ):
        assert torch.equal(disk["image"], memory["image"])


def test_batches_equal_the_transform_image_by_image(dataset: ImageItems, tiny_clip: TinyCLIP):
    transform = eval_transform(tiny_clip)
    images = torch.cat([b["image"] for b in eval_batches(ImageItems(dataset.splits, dataset.items, transform), 5)])
    assert torch.equal(images, torch.stack([transform(dataset.splits.open_image(item)) for item in dataset.items]))


def test_throughput_is_compared_in_one_run():
    lines = []
    result = bench_data(images=8, repeats=1, image_size=32, batch_size=4, say=lines.append)
    assert [row["transform"] for row in result["rows"]] == ["train", "eval"] == [line.split()[1][:-1] for line in lines]
    assert all(row["ratio"] > 0 for row in result["rows"])
