import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_clip import TinyCLIP

from vlprompt.data import (
    DatasetSplits,
    FeatureBank,
    ImageItems,
    epoch_batches,
    eval_transform,
    load_split,
    train_transform,
)
from vlprompt.errors import VlpromptError


@pytest.fixture
def splits(make_images: Callable[..., Path]) -> DatasetSplits:
    return load_split(f"folder:{make_images({'cat': 14, 'dog': 14})}")


def build(clip: TinyCLIP, splits: DatasetSplits, cache: Path, views: int = 1, seed: int = 1, **kw) -> FeatureBank:
    transform = eval_transform(clip) if views == 1 else train_transform(clip, mirror=splits.mirror)
    return FeatureBank.open_or_build(
        clip, splits, splits.train, transform=transform, views=views, seed=seed, cache=cache, **kw
    )


def test_bank_holds_the_encoders_raw_features(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path):
    bank = build(tiny_clip, splits, tmp_path / "cache", batch_size=5)
    images = torch.stack([eval_transform(tiny_clip)(splits.open_image(item)) for item in splits.train])
    assert bank.features.shape == (1, 14, 8)
    assert torch.allclose(bank.features[0], tiny_clip.encode_image(images), atol=1e-6)
    assert bank.labels.tolist() == [item.label for item in splits.train]


def test_second_opening_reads_the_file(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path):
    first = build(tiny_clip, splits, tmp_path)
    again = build(tiny_clip, splits, tmp_path)
    assert tiny_clip.encoded == len(splits.train)
    assert torch.equal(first.features, again.features)
    assert first.path == again.path


def test_default_folder_is_the_cache(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("VLPROMPT_CACHE", str(tmp_path / "c"))
    assert build(tiny_clip, splits, None).path.parent == tmp_path / "c/banks"


def test_view_equals_the_fresh_images_of_its_epoch(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path):
    bank = build(tiny_clip, splits, tmp_path, views=3, seed=5)
    assert (bank.views, len(bank)) == (3, 14)
    fresh = ImageItems(splits, splits.train, train_transform(tiny_clip))
    for epoch in (0, 1, 2):
        batches = epoch_batches(fresh, 4, seed=5, epoch=epoch)
        for cached, batch in zip(bank.epoch_batches(4, seed=5, epoch=epoch), batches, strict=True):
            assert torch.equal(cached["index"], batch["index"])
            assert torch.equal(cached["label"], batch["label"])
            assert torch.allclose(cached["image_features"], tiny_clip.encode_image(batch["image"]), atol=1e-6)


def test_views_are_cycled_through(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path):
    bank = build(tiny_clip, splits, tmp_path, views=2)
    assert not torch.equal(bank.features[0], bank.features[1])
    batch = next(bank.epoch_batches(4, seed=1, epoch=3))
    assert torch.equal(batch["image_features"], bank.features[1, batch["index"]])


def test_eval_batches_are_the_first_view_in_order(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path):
    bank = build(tiny_clip, splits, tmp_path)
    assert torch.equal(torch.cat([b["image_features"] for b in bank.eval_batches(5)]), bank.features[0])


def test_bank_depends_on_what_its_features_depend_on(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path):
    keys = [
        build(tiny_clip, splits, tmp_path).key,
        build(TinyCLIP(image_size=32), splits, tmp_path).key,
        build(TinyCLIP(precision="bf16"), splits, tmp_path).key,
        build(TinyCLIP(resize_mode="squash"), splits, tmp_path).key,
        build(tiny_clip, splits, tmp_path, views=2, seed=1).key,
        build(tiny_clip, splits, tmp_path, views=2, seed=2).key,
        build(tiny_clip, splits.select("base"), tmp_path).key,
    ]
    assert len(set(keys)) == len(keys)
    assert build(tiny_clip, splits, tmp_path, seed=2).key == keys[0]  # the evaluation crop draws no random numbers


def test_changed_image_is_noticed(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path):
    old = build(tiny_clip, splits, tmp_path)
    image, other = (splits.image_dir / splits.train[i].path for i in (0, 1))
    image.write_bytes(other.read_bytes())
    os.utime(image, ns=(1, 1))
    new = build(tiny_clip, splits, tmp_path)
    assert new.key != old.key
    assert torch.equal(new.features[0, 0], new.features[0, 1])


@pytest.mark.parametrize("place", [3, -5])  # the header's length, and the last features
def test_damaged_bank_is_named_and_not_rebuilt(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path, place: int):
    path = build(tiny_clip, splits, tmp_path).path
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(VlpromptError, match=r"the feature bank .*\.safetensors is damaged .*: delete it and run again"):
        build(tiny_clip, splits, tmp_path)
    assert path.read_bytes() == content


def test_truncated_bank_and_one_under_a_foreign_name_are_damaged_too(
    tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path
):
    one, two = build(tiny_clip, splits, tmp_path), build(tiny_clip, splits, tmp_path, views=2)
    two.path.write_bytes(one.path.read_bytes())
    with pytest.raises(VlpromptError, match="its key belongs to other features"):
        build(tiny_clip, splits, tmp_path, views=2)
    one.path.write_bytes(one.path.read_bytes()[:100])
    with pytest.raises(VlpromptError, match="is damaged"):
        build(tiny_clip, splits, tmp_path)


def test_non_finite_features_are_refused(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path):
    tiny_clip.weight[0] = float("nan")
    with pytest.raises(VlpromptError, match=r"non-finite feature for .*\.jpg"):
        build(tiny_clip, splits, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_progress_counts_images(tiny_clip: TinyCLIP, splits: DatasetSplits, tmp_path: Path):
    seen = []
    build(tiny_clip, splits, tmp_path, views=2, batch_size=10, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(10, 28), (14, 28), (24, 28), (28, 28)]


def _build_in_process(folder: str, cache: Path, barrier, encoded) -> None:
    barrier.wait()
    clip = TinyCLIP()
    build(clip, load_split(f"folder:{folder}"), cache)
    encoded.put(clip.encoded)


def test_of_two_processes_one_builds_the_bank_of_both(splits: DatasetSplits, tiny_clip: TinyCLIP, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    barrier, encoded, cache = context.Barrier(2), context.Queue(), tmp_path / "cache"
    arguments = str(splits.image_dir), cache, barrier, encoded
    processes = [context.Process(target=_build_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(encoded.get(timeout=10) for _ in processes) == [0, len(splits.train)]
    assert len(list(cache.glob("*.safetensors"))) == 1
    build(tiny_clip, splits, cache)
    assert tiny_clip.encoded == 0
