from itertools import product

import numpy as np
import open_clip.transform
import pytest
import torch
from PIL import Image
from tiny_clip import TinyCLIP
from torchvision.transforms import InterpolationMode, v2

from vlprompt import load_split
from vlprompt.data import augmix
from vlprompt.data.augmix import OPERATIONS, AugMix
from vlprompt.data.transforms import DecodedCrop, TestViews, eval_transform, train_transform, transform_fingerprint
from vlprompt.errors import VlpromptError


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("mode", "interpolation"), list(product(["shortest", "squash", "longest"], ["bicubic", "bilinear"]))
)
def test_eval_transform_equals_open_clips(mode: str, interpolation: str):
    clip = TinyCLIP(image_size=32, resize_mode=mode, interpolation=interpolation)
    reference = open_clip.transform.image_transform(
        32, is_train=False, mean=clip.image_mean, std=clip.image_std, resize_mode=mode, interpolation=interpolation
    )

    def apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs() * torch.tensor(clip.image_std)[:, None, None] * 255  # in levels

    drawing = load_split("emoji")
    drawing = drawing.open_image(drawing.test[0])
    for size in [(64, 64), (50, 37), (37, 50), (20, 90), (8, 8), (32, 32)]:
        image = drawing.resize(size)
        ours = eval_transform(clip)(image)
        assert ours.shape == (3, 32, 32)
        assert ours.dtype == torch.float32
        if mode == "longest":
            assert apart(ours, reference(image)).max() <= 1e-3
            continue
        # torch's kernel on bytes and Pillow's round between rows and columns, each in its own way on each kind of CPU
        rows_first = image.resize((32, image.height), Image.Resampling[interpolation.upper()])
        same_order = apart(ours, reference(rows_first if mode == "squash" else image))
        assert same_order.max() <= 2.01
        assert same_order.mean() < 0.2
        # from version 13 Pillow resizes the columns first where an image is squashed from tall
        assert apart(ours, reference(image)).max() <= 4.01
        assert apart(ours, reference(image)).mean() < 0.2


def test_a_line_of_pixels_is_cut_to_its_middle_before_it_is_resized():
    clip = TinyCLIP(image_size=32)
    transform = eval_transform(clip)
    line = Image.new("RGB", (30_001, 2), "red")
    line.paste("blue", (14_990, 0, 15_011, 2))
    assert transform.transforms[0](line).size == (64, 2)
    seen = transform(line)
    assert seen.shape == (3, 32, 32)
    assert torch.equal(seen, transform(Image.new("RGB", (8, 8), "blue")))
    for size in [(64, 2), (2, 64), (40, 30)]:
        image = noise(*size)
        assert transform.transforms[0](image) is image


def test_train_transform_crops_as_published_and_mirrors_unless_told_not_to(tiny_clip: TinyCLIP):
    crop, flip = train_transform(tiny_clip).transforms[:2]
    assert (crop.size, crop.scale, crop.interpolation.value) == ((16, 16), (0.08, 1.0), "bicubic")
    assert isinstance(flip, v2.RandomHorizontalFlip)
    plain = train_transform(tiny_clip, mirror=False)
    assert not any(isinstance(step, v2.RandomHorizontalFlip) for step in plain.transforms)
    assert plain(noise(40, 30)).shape == (3, 16, 16)


def test_center_kind_is_the_eval_crop(tiny_clip: TinyCLIP):
    image = noise(40, 30)
    unaugmented = train_transform(tiny_clip, kind="center", mirror=False)
    assert torch.equal(unaugmented(image), eval_transform(tiny_clip)(image))
    with pytest.raises(VlpromptError, match=r"unknown train transform 'rcc': did you mean rrc\?"):
        train_transform(tiny_clip, kind="rcc")


def test_fingerprint_tells_transforms_apart_and_stays_the_same():
    clips = [TinyCLIP(), TinyCLIP(image_size=32), TinyCLIP(resize_mode="squash"), TinyCLIP(image_mean=(0, 0, 0))]
    transforms = [eval_transform(clip) for clip in clips] + [train_transform(clips[0], mirror=m) for m in (0, 1)]
    assert len({transform_fingerprint(t) for t in transforms}) == len(transforms)
    assert transform_fingerprint(eval_transform(TinyCLIP())) == transform_fingerprint(transforms[0])


def crops(transform, image: Image.Image, count: int = 20) -> np.ndarray:
    torch.manual_seed(0)
    return np.stack([v2.functional.to_image(transform(image)).numpy() for _ in range(count)]).astype(int)


def test_crops_are_torchvisions_to_a_level_of_255():
    image = noise(300, 200).resize((90, 60), Image.Resampling.BOX)
    for size in (32, 224):
        ours = crops(DecodedCrop(size), image)
        theirs = crops(v2.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC), image)
        assert abs(ours - theirs).max() <= 2
        assert abs(ours - theirs).mean() < 0.05


def test_large_jpegs_are_decoded_no_larger_than_a_crop_needs(tmp_path):
    noise(8, 6).resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=95)

    def decoded(reduce_from: float) -> tuple[np.ndarray, set[tuple[int, int]]]:
        crop, sizes, results = DecodedCrop(64, reduce_from=reduce_from), set(), []
        torch.manual_seed(0)
        for _ in range(10):
            with Image.open(tmp_path / "large.jpg") as image:
                results.append(crop(image).numpy().astype(int))
                sizes.add(image.size)
        return np.stack(results), sizes

    reduced, sizes = decoded(1.5)
    whole, whole_sizes = decoded(float("inf"))
    assert whole_sizes == {(1600, 1200)}
    assert max(sizes)[0] < 1600
    assert abs(reduced - whole).mean() < 1.5  # levels of 255
    assert transform_fingerprint(DecodedCrop(64)) != transform_fingerprint(DecodedCrop(64, reduce_from=2))


def test_turned_and_indexed_images_are_cropped_as_a_viewer_shows_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 8), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("P", (16, 16), 0).save(tmp_path / "indexed.png")
    Image.new("L", (16, 16), 200).save(tmp_path / "grey.jpg")
    for name in ("turned.jpg", "indexed.png", "grey.jpg"):
        with Image.open(tmp_path / name) as image:
            assert DecodedCrop(8)(image).shape == (3, 8, 8)


def test_augmix_is_a_mixture_of_an_image_and_chains_on_it(monkeypatch: pytest.MonkeyPatch):
    pixels = v2.functional.pil_to_tensor(noise(32, 24))
    monkeypatch.setattr(augmix, "OPERATIONS", {"none": lambda image, share: image})
    torch.testing.assert_close(AugMix()(pixels), pixels / 255)  # the weights sum to one
    monkeypatch.setattr(augmix, "OPERATIONS", {"black": lambda image, share: image.point(lambda level: 0)})
    mixed = AugMix()(pixels)
    m = float(mixed.sum() / (pixels / 255).sum())
    assert 0 < m < 1
    torch.testing.assert_close(mixed, m * pixels / 255)
    shares = []
    monkeypatch.setattr(augmix, "OPERATIONS", {"told": lambda image, share: shares.append(share) or image})
    for _ in range(40):
        AugMix(severity=1)(pixels)
    assert 40 * 3 < len(shares) < 40 * 9, "three chains of one to three operations"
    assert 0.01 <= min(shares) < max(shares) <= 0.1


def test_augmixs_operations_are_as_strong_as_their_share():
    drawing = noise(60, 30)
    assert len(OPERATIONS) == 9
    for name, operation in OPERATIONS.items():
        assert operation(drawing, 1.0).size == drawing.size, name
        weakest, strongest = (np.asarray(operation(drawing, share)) for share in (0.0, 1.0))
        unlevelled = name in ("autocontrast", "equalize")
        assert (weakest == strongest).all() == unlevelled, name
        # at no strength sixteen levels are left of a colour, and otherwise the image is as it was
        assert unlevelled or name == "posterize" or (weakest == np.asarray(drawing)).all(), name
    moved = np.asarray(OPERATIONS["translate_x"](drawing, 0.5))  # by half of a third of its width
    pixels = np.asarray(drawing)
    assert (moved[:, 10:] == pixels[:, :-10]).all() or (moved[:, :-10] == pixels[:, 10:]).all()
    assert (np.asarray(OPERATIONS["solarize"](drawing, 0.5)) == np.where(pixels < 128, pixels, 255 - pixels)).all()


def test_views_that_are_mixed_follow_from_the_image_alone():
    clip, image = TinyCLIP(image_size=32), noise(50, 40)
    views = TestViews(clip, 4, augmix=True)
    found = views(image)
    assert torch.equal(views(image), found)
    assert torch.equal(found[0], eval_transform(clip)(image))
    plain = TestViews(clip, 4)(image)
    assert torch.equal(found[0], plain[0])
    assert not torch.equal(found[1:], plain[1:])
    with pytest.raises(VlpromptError, match="severity must be from"):
        AugMix(severity=11)
