"""Regions of images: masks that are found, that move with their images, and what mask prompts make of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from vlprompt import PromptClassifier, VlpromptError, create_learner, load_learner, load_split, run
from vlprompt.clip.edits import Edit
from vlprompt.data import ImageItems, check_items, epoch_batches, eval_transform, images_fingerprint, train_transform
from vlprompt.data.masks import RegionItems, RegionTransform, open_mask, to_region
from vlprompt.data.regions import BLANK, showing_regions
from vlprompt.data.splits import Item, mask_beside
from vlprompt.evaluation.prediction import predict_images
from vlprompt.evaluation.scoring import evaluate_learner, score
from vlprompt.learner.objectives import Outputs
from vlprompt.report import make_report
from vlprompt.saving.published import import_checkpoint
from vlprompt.testing import NAMES, close, make, small_clip, toy_batch


class WholeLast(Edit):
    """Changes nothing, but has the last block compute all tokens."""

    tower = "vision"
    needs_all_tokens = True


def framed(size: tuple[int, int], box: tuple[int, int, int, int]) -> tuple[Image.Image, Image.Image]:
    """A red box on blue, and the mask of the box."""
    image, mask = Image.new("RGB", size, (0, 0, 255)), Image.new("L", size)
    image.paste((255, 0, 0), box)
    mask.paste(1, box)  # what is not black is inside, however dark
    return image, mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of images with their masks beside them."""
    top = tmp_path_factory.mktemp("regions")
    for name in ("cat", "dog"):
        (top / name).mkdir()
        for i in range(6):
            image, mask = framed((40 + i, 50), (4 + i, 8, 30, 40))
            image.save(top / name / f"{i}.jpg", quality=95)
            mask.save(top / name / f"{i}_mask.png")
    return top


def test_a_mask_is_what_is_not_black() -> None:
    colours = np.zeros((2, 3, 3), np.uint8)
    colours[1, 2] = (0, 0, 7)
    see_through = np.dstack([colours, np.full((2, 3), 255, np.uint8)])
    deep = np.zeros((2, 3), np.uint16)
    deep[1, 2] = 300
    for image in map(Image.fromarray, (colours, see_through, deep, colours[..., 2])):
        assert np.asarray(to_region(image)).tolist() == [[0, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize("kind", [None, "rrc", "rrc_half", "center"])
def test_crops_move_image_and_mask_alike_and_leave_the_pixels_as_they_are(kind: str | None) -> None:
    clip = small_clip()
    image, mask = framed((90, 60), (20, 10, 70, 45))
    both = RegionTransform(clip, kind, mirror=True)
    alone = train_transform(clip, kind, mirror=True) if kind else eval_transform(clip)
    for seed in range(5):
        torch.manual_seed(seed)
        pixels, region = both(image, mask)
        torch.manual_seed(seed)
        assert region.shape == (1, clip.image_size, clip.image_size)
        assert type(pixels) is type(region) is torch.Tensor
        assert torch.equal(alone.transforms[-1](alone.transforms[-2](pixels)), alone(image)), "no pixel is another's"
        red = pixels[0].float() > pixels[2].float()
        assert (red == region[0].bool()).float().mean() > 0.95, "edges alone may differ, where pixels are mixed"


def test_a_crop_that_misses_the_region_is_drawn_again() -> None:
    image, mask = framed((200, 200), (98, 98, 103, 103))
    transform = RegionTransform(small_clip(), "rrc", mirror=False)
    for seed in range(20):
        torch.manual_seed(seed)
        assert transform(image, mask)[1].any()


def test_masks_beside_images_are_found_and_are_no_images(folder: Path) -> None:
    splits = load_split(f"folder:{folder}")
    items = [*splits.train, *splits.val, *splits.test]
    assert sorted(item.path for item in items) == sorted(f"{c}/{i}.jpg" for c in ("cat", "dog") for i in range(6))
    check_items(splits, items)
    sample = RegionItems(splits, splits.train, RegionTransform(small_clip()))[0]
    plain = ImageItems(splits, splits.train, eval_transform(small_clip()))[0]
    assert torch.equal(sample["image"], plain["image"])
    assert 0 < sample["mask"].mean() < 1
    one, two = (
        list(epoch_batches(RegionItems(splits, splits.train, RegionTransform(small_clip(), "rrc")), 4, seed=1, epoch=e))
        for e in (0, 0)
    )
    assert all(torch.equal(a[key], b[key]) for a, b in zip(one, two, strict=True) for key in ("image", "mask"))


def test_another_mask_makes_another_fingerprint(folder: Path, tmp_path: Path) -> None:
    splits = load_split(f"folder:{folder}")
    before = images_fingerprint(splits, splits.train)
    path = folder / splits.train[0].path
    mask = path.with_name(f"{path.stem}_mask.png")
    kept = mask.read_bytes()
    Image.new("L", Image.open(path).size, 1).save(mask)
    assert images_fingerprint(splits, splits.train) != before
    mask.write_bytes(kept)
    assert images_fingerprint(splits, splits.train) == before


def test_a_table_may_name_masks(folder: Path) -> None:
    lines = [f"{c}/{i}.jpg,{c},{c}/{i}_mask.png" for c in ("cat", "dog") for i in range(6)]
    lines[-1] = lines[-1].replace("5_mask", "4_mask")
    (folder / "t.csv").write_text("\n".join(["path,class,mask", *lines]))
    splits = load_split(f"csv:{folder / 't.csv'}")
    assert {item.mask for item in splits.train} <= {line.split(",")[2] for line in lines}
    assert np.asarray(open_mask(splits, splits.train[0])).max() == 255


def test_what_is_wrong_with_a_mask_is_one_sentence(folder: Path) -> None:
    splits = load_split(f"folder:{folder}")
    item, clip = splits.train[0], small_clip()
    stray = replace(splits, image_dir=None)
    with pytest.raises(VlpromptError, match=r"has no region mask: put \d_mask.png beside it"):
        open_mask(stray, Item("cat/7.jpg", 0, "cat"))
    other = replace(item, mask=next(i.path for i in splits.train if i.path[4] != item.path[4]))
    with pytest.raises(VlpromptError, match=r"its mask is of .* pixels, and the image of"):
        RegionItems(splits, [other], RegionTransform(clip))[0]
    with pytest.raises(VlpromptError, match="entirely black"):
        RegionTransform(clip)(Image.new("RGB", (9, 9)), Image.new("L", (9, 9)))
    with pytest.raises(VlpromptError, match="transform=randaugment has operations that cannot be applied to a mask"):
        RegionTransform(clip, "randaugment")
    batch = toy_batch()
    del batch["mask"]
    with pytest.raises(VlpromptError, match="a batch needs mask"):
        make("mask_prompt").loss(batch)
    for odd in (torch.ones(10, 1, 9, 9), torch.ones(10, 32, 32), None):
        with pytest.raises(VlpromptError, match=r"mask must be a tensor \(10, 1, 32, 32\), 1 in each image's region"):
            make("mask_prompt").predict(toy_batch() | {"mask": odd})
    with pytest.raises(VlpromptError, match="mask of a region beside each image: give paths instead of images"):
        PromptClassifier("mask_prompt", clip, options={"depth": 1}).fit([Image.new("RGB", (9, 9))] * 2, ["cat", "dog"])
    with pytest.raises(VlpromptError, match="digits has no masks of regions"):
        run(method="mask_prompt", dataset="digits", quiet=True)
    with pytest.raises(VlpromptError, match="image_anchor needs a second view of each image, and the mask"):
        make("mask_prompt", objective=["ce", "image_anchor(view='image_strong')"])


def test_masks_of_ones_are_plain_clip_on_the_fast_and_the_plain_path() -> None:
    learner = make("mask_prompt").eval()
    batch = toy_batch()
    ones = {**batch, "mask": torch.ones_like(batch["mask"])}
    assert torch.equal(learner.encode_images(ones), learner.clip.encode_image(batch["image"]))
    assert torch.equal(learner.encode_images(ones), learner.encode_images({"image": batch["image"]}))
    assert torch.equal(learner.predict(ones), create_learner("zero_shot", learner.clip, NAMES).predict(batch))
    learner.edits.append(WholeLast())
    plain = learner.encode_images(ones)
    assert close(plain, learner.clip.encode_image(batch["image"]))
    (gradient,) = torch.autograd.grad(plain.sum(), learner.tokens)
    assert not gradient.any(), "no token is seen"


def test_masked_images_are_exact_where_cls_alone_asks() -> None:
    learner = make("mask_prompt", depth=3)
    fast = learner.encode_images(toy_batch())
    learner.edits.append(WholeLast())
    plain = learner.encode_images(toy_batch())
    assert close(fast, plain)
    direction = torch.randn_like(plain)
    ours, theirs = (torch.autograd.grad((f * direction).sum(), learner.tokens)[0] for f in (fast, plain))
    assert theirs.flatten(1).any(dim=1).all(), "every block's tokens are learnt"
    assert close(ours, theirs)


def test_blank_hides_the_pixels_of_patches_that_are_seen_in_part() -> None:
    hidden, shown = make("mask_prompt"), make("mask_prompt", blank=False)
    batch = toy_batch()
    batch["mask"][:, :, :, ::2] = 0  # every patch of the region is seen in part
    other = {**batch, "image": torch.where(batch["mask"] > 0, batch["image"], -batch["image"])}
    assert torch.equal(hidden.encode_images(batch), hidden.encode_images(other))
    assert not close(shown.encode_images(batch), shown.encode_images(other), 1e-3)


def test_the_batch_contrastive_loss_is_clips_own() -> None:
    learner = make("mask_prompt", objective=["batch_contrastive"])
    batch = toy_batch(4)
    outputs: Outputs = learner(batch)
    texts = outputs.text_features[batch["label"]]
    logits = learner.clip.logit_scale * outputs.image_features @ texts.T
    places = torch.arange(4)
    expected = (F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)) / 2
    assert close(learner.loss(batch)["batch_contrastive"], expected)
    with pytest.raises(VlpromptError, match="batch_contrastive compares images with class features that all share"):
        make("cocoop", objective=["batch_contrastive"])


def test_files_are_predicted_with_the_masks_beside_them(folder: Path, tmp_path: Path) -> None:
    learner = make("mask_prompt", names=("cat", "dog"))
    splits = load_split(f"folder:{folder}")
    paths = [folder / item.path for item in splits.test]
    found = list(predict_images(learner, paths, top=2, threads=0))
    assert score(learner, splits).logits.softmax(dim=1).amax(dim=1).tolist() == pytest.approx(
        [each.probabilities[0] for each in found], abs=1e-5
    )
    with pytest.raises(VlpromptError, match="give paths instead of images"):
        list(predict_images(learner, [Image.open(paths[0])], threads=0))
    other = tmp_path / "other.jpg"
    Image.new("RGB", (9, 9)).save(other)
    Image.new("L", (9, 8), 1).save(tmp_path / "other_mask.png")
    with pytest.raises(VlpromptError, match=r"the image .*other.jpg cannot be used: its mask is of 9 x 8 pixels"):
        list(predict_images(learner, [other], threads=0))
    with pytest.raises(VlpromptError, match="mask_prompt looks at a region of each image, and digits has no masks"):
        score(learner, load_split("digits"), limit=2)
    with pytest.raises(VlpromptError, match=r"has no region mask: .*3_mask_mask.png does not exist"):
        list(predict_images(learner, [folder / "cat" / "3_mask.png"], threads=0))


def test_shapes_are_drawn_where_their_masks_say() -> None:
    splits = load_split("shapes")
    for item in splits.test[:: len(splits.test) // 12]:
        pixels, mask = np.asarray(splits.open_image(item)).astype(int), np.asarray(open_mask(splits, item)) > 0
        ink = pixels[mask]
        assert np.median(np.abs(ink - np.median(ink, axis=0))) < 20, "one ink, but for the edges of thin strokes"
        assert 0.01 < mask.mean() < 0.7
        assert (np.asarray(splits.open_image(item)) == pixels).all()


def test_a_region_is_shown_cut_out_or_with_nothing_around_it(folder: Path) -> None:
    whole = load_split(f"folder:{folder}")
    [item, *_] = whole.train
    image, mask = whole.open_image(item), open_mask(whole, item)
    left, upper, right, lower = mask.getbbox()
    for region, size in (("crop", (32, 32)), ("blank", image.size), ("crop_blank", (32, 32))):
        shown = showing_regions(whole, region)
        seen, cut = np.asarray(shown.open_image(item)), np.asarray(open_mask(shown, item))
        assert seen.shape[1::-1] == cut.shape[::-1] == size
        assert (cut > 0).sum() == (np.asarray(mask) > 0).sum(), "the whole region is there"
        outside = seen[cut == 0]
        assert (outside == BLANK).all() == ("blank" in region)
        inside = np.asarray(image)[upper:lower, left:right].reshape(-1, 3)
        assert (seen[cut > 0] == inside).all()
        assert images_fingerprint(shown, shown.train) != images_fingerprint(whole, whole.train)
    batch = RegionItems(shown, shown.train, RegionTransform(small_clip()))[0]
    assert batch["mask"].shape[1:] == batch["image"].shape[1:]
    with pytest.raises(VlpromptError, match="unknown region 'crops': did you mean crop"):
        showing_regions(whole, "crops")
    with pytest.raises(VlpromptError, match="region=crop needs images with masks, and those of emoji have none"):
        showing_regions(load_split("emoji"), "crop")


def test_methods_with_masks_and_without_are_told_together_on_what_they_were_shown(tmp_path: Path) -> None:
    how = {"dataset": "shapes", "protocol": "few_shot", "shots": 1, "limit": 24, "quiet": True, "output": tmp_path}
    whole, blank = (run(method="zero_shot", region=region, **how).rows[0] for region in (None, "blank"))
    assert whole.accuracy != blank.accuracy
    masked = run(method="mask_prompt", region="blank", epochs=1, **how).rows[0]
    assert masked.zero_shot == blank.accuracy
    tables = make_report([tmp_path]).tables
    told = [("region=blank" in table.caption, len(table.sections[0].lines)) for table in tables]
    assert sorted(told) == [(False, 1), (True, 2)]
    with pytest.raises(VlpromptError, match="has none: leave one out"):
        run(method="upl", region="crop", unlabelled="folder:x", protocol="unsupervised", dataset="shapes")


def test_a_run_on_regions_from_end_to_end(tmp_path: Path) -> None:
    how = {"shots": 1, "epochs": 1, "limit": 24, "output": str(tmp_path), "quiet": True}
    result = run(method="mask_prompt", backbone="vlprompt-tiny", **how)
    assert (result.dataset, result.protocol, result.views) == ("shapes", "base_to_new", "fresh")
    assert [row.n_images for row in result.rows] == [24, 24]


def test_regions_of_ones_own_that_cannot_be_used_are_left_out_or_stop_a_run(folder: Path, tmp_path: Path) -> None:
    top = tmp_path / "regions"
    shutil.copytree(folder, top)
    items = load_split(f"folder:{top}").test
    masks = [top / mask_beside(item.path) for item in items]
    masks[0].unlink()
    Image.new("L", Image.open(masks[1]).size).save(masks[1])
    Image.new("L", (9, 9), 1).save(masks[2])
    how = {"method": "mask_prompt", "dataset": f"folder:{top}", "protocol": "few_shot", "shots": 1, "epochs": 1}
    how |= {"depth": 1, "quiet": True, "output": str(tmp_path / "runs")}
    with pytest.warns(UserWarning, match=r"3 of .* images of .* and are left out: .* has no region mask"):
        result = run(**how)
    assert result.rows[0].n_images == len(items) - 3
    with pytest.raises(VlpromptError, match="on_unreadable=skip leaves them out"):
        run(on_unreadable="stop", **how)
    with pytest.raises(VlpromptError, match="transform=augmix has operations that cannot be applied to a mask"):
        run(transform="augmix", **how)
    learner = load_learner(next((tmp_path / "runs").glob("**/learner")))
    with pytest.warns(UserWarning, match="3 of .* images"):
        assert 100 * evaluate_learner(learner, f"folder:{top}") == pytest.approx(result.rows[0].accuracy)
    paths = [str(top / item.path) for item in items]
    with pytest.warns(UserWarning, match="3 of .* images"):
        PromptClassifier("mask_prompt", learner.clip, options={"depth": 1}, epochs=1).fit(
            paths + [str(top / item.path) for item in load_split(f"folder:{top}").train],
            [item.class_name for item in (*items, *load_split(f"folder:{top}").train)],
        )


def test_tokens_of_theirs_are_imported_for_as_many_blocks(tmp_path: Path) -> None:
    learner = make("mask_prompt", depth=2)
    save_file(learner.published_state(), tmp_path / "theirs.safetensors")
    made = import_checkpoint(tmp_path / "theirs.safetensors", "mask_prompt", learner.clip, NAMES)
    assert torch.equal(made.tokens, learner.tokens)
    with pytest.raises(VlpromptError, match=r"mmrl: the tensors lack (\S+, ){4}\S+ and \d+ more$"):
        import_checkpoint(tmp_path / "theirs.safetensors", "mmrl", learner.clip, NAMES)
