"""Feature banks in shards: the same bits, mapped; made again where damaged, gone on with where work stopped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_clip import TinyCLIP

from vlprompt.base.environment import process_peak
from vlprompt.data import DatasetSplits, FeatureBank, eval_transform, load_split, train_transform
from vlprompt.data.shards import Shard, ShardedFile, _intact
from vlprompt.errors import VlpromptError


@pytest.fixture
def splits(make_images: Callable[..., Path]) -> DatasetSplits:
    return load_split(f"folder:{make_images({'cat': 14, 'dog': 14})}")


def build(clip: TinyCLIP, splits: DatasetSplits, cache: Path, views: int = 2, **options: Any) -> FeatureBank:
    """A bank of 14 images; its shards of 4 are two batches."""
    transform = eval_transform(clip) if views == 1 else train_transform(clip)
    return FeatureBank.open_or_build(
        clip, splits, splits.train, transform=transform, views=views, seed=1, cache=cache, batch_size=2, **options
    )


def test_shards_hold_the_bits_of_one_file_and_are_plain_safetensors(
    tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path
) -> None:
    whole, seen = build(tiny_clip, splits, tmp_path / "whole"), []
    bank = build(tiny_clip, splits, tmp_path / "sharded", shard=3, progress=lambda *counts: seen.append(counts))
    assert (bank.key, bank.views, len(bank)) == (whole.key, 2, 14)
    assert torch.equal(bank.features, whole.features)
    assert torch.equal(load_file(bank.path)["features"], whole.features)
    assert seen[-1] == (28, 28)
    for ours, theirs in zip(
        bank.epoch_batches(5, seed=2, epoch=1), whole.epoch_batches(5, seed=2, epoch=1), strict=True
    ):
        assert torch.equal(ours["image_features"], theirs["image_features"])
    bank.features.zero_()  # stays in this process
    assert torch.equal(build(tiny_clip, splits, tmp_path / "sharded").features, whole.features)


def test_a_bank_that_is_one_file_is_opened_whatever_is_asked_for(
    tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path
) -> None:
    before = build(tiny_clip, splits, tmp_path)
    assert build(tiny_clip, splits, tmp_path, shard=4).path == before.path
    assert tiny_clip.encoded == 28


def test_work_goes_on_at_the_first_missing_shard(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path) -> None:
    image = splits.image_dir / splits.train[9].path
    content = image.read_bytes()
    image.write_bytes(b"\0" * len(content))
    state = image.stat()
    with pytest.raises(VlpromptError, match="cannot read the image"):
        build(tiny_clip, splits, tmp_path, shard=4)  # in its third shard
    assert tiny_clip.encoded == 8
    image.write_bytes(content)
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))
    bank = build(tiny_clip, splits, tmp_path, shard=6)  # those that are there say how large they are
    assert tiny_clip.encoded == 28
    assert torch.equal(bank.features, build(tiny_clip, splits, tmp_path / "whole").features)


def test_a_damaged_shard_is_found_and_made_again(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path) -> None:
    bank = build(tiny_clip, splits, tmp_path, shard=4)
    features, content = bank.features.clone(), bytearray(bank.path.read_bytes())
    content[-5] ^= 1
    bank.path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"1 of 8 shards of the feature bank .* are damaged, the first is 7"):
        again = build(tiny_clip, splits, tmp_path)
    assert tiny_clip.encoded == 28 + 2
    assert torch.equal(again.features, features)
    bank.path.write_bytes(content[:1000])
    with pytest.warns(UserWarning, match="are damaged"):
        assert torch.equal(build(tiny_clip, splits, tmp_path).features, features)
    record = bank.path.with_suffix(".json")
    record.write_text(record.read_text().replace('"0"', '"1"', 1))
    assert torch.equal(build(tiny_clip, splits, tmp_path).features, features)
    assert tiny_clip.encoded > 2 * 28, "a record that was changed says nothing"


def test_shards_may_come_from_elsewhere_in_any_order(
    tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path
) -> None:
    whole = build(tiny_clip, splits, tmp_path / "whole").features

    def backwards(shards: Sequence[Shard]) -> Iterator[tuple[Shard, torch.Tensor]]:
        for shard in reversed(shards):
            yield shard, whole[shard.view, shard.start : shard.stop]

    assert torch.equal(build(tiny_clip, splits, tmp_path / "other", shard=4, encode=backwards).features, whole)
    with pytest.raises(VlpromptError, match="is not complete"):
        build(tiny_clip, splits, tmp_path / "none", shard=4, encode=lambda shards: [])


@pytest.mark.nightly
def test_ten_million_features_are_open_in_less_than_a_gigabyte(tmp_path: Path) -> None:
    """Of 512 numbers each: 20 GB, which take no room on this disk, since all are zero."""
    images, width, rows = 10_000_000, 512, 10_000
    file = ShardedFile(tmp_path / "big.shards.safetensors", "key", (1, images), rows)
    file.width = width
    file._create()
    zero = hashlib.sha256(bytes(rows * width * 4)).hexdigest()
    file.sums = dict.fromkeys(range(len(file.shards)), zero)
    file._write_record()
    Path("/proc/self/clear_refs").write_text("5")
    before = process_peak()
    features = ShardedFile(file.path, "key", (1, images), rows).complete(lambda shards: [])
    assert features.shape == (1, images, width)
    bank = FeatureBank(features, None)
    batch = next(bank.epoch_batches(256, seed=1, epoch=0))
    assert batch["image_features"].shape == (256, width)
    assert process_peak() - before < 1000
    assert file.path in _intact
