import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from vlprompt.data.images import check_items, open_inside, open_rgb, to_rgb
from vlprompt.data.splits import DatasetSplits, Item
from vlprompt.errors import VlpromptError


def corner(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_transparency_lies_over_white():
    assert corner(to_rgb(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))) == (255, 255, 255)
    assert corner(to_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))) == (127, 127, 127)
    assert corner(to_rgb(Image.new("LA", (2, 2), (10, 0)))) == (255, 255, 255)


def test_palette_colours_and_their_transparency_are_kept(tmp_path: Path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert corner(open_rgb(tmp_path / "plain.png")) == (10, 20, 30)
    assert corner(open_rgb(tmp_path / "clear.png")) == (255, 255, 255)


def test_colour_key_of_an_rgb_png_is_transparency(tmp_path: Path):
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert corner(open_rgb(tmp_path / "key.png")) == (255, 255, 255)


def test_greyscale_and_cmyk_become_rgb(tmp_path: Path):
    assert corner(to_rgb(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert corner(to_rgb(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "ink.jpg", quality=100)
    red, green, blue = corner(open_rgb(tmp_path / "ink.jpg"))
    assert red > 240
    assert max(green, blue) < 15


def test_sixteen_bit_greyscale_is_scaled_and_not_clipped(tmp_path: Path):
    Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert corner(open_rgb(tmp_path / "deep.png")) == (128, 128, 128)


def test_exif_orientation_is_applied(tmp_path: Path):
    image = Image.new("RGB", (16, 8), "white")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_rgb(tmp_path / "turned.jpg").size == (8, 16)


def test_truncated_empty_and_foreign_files_are_named(tmp_path: Path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    for name, content in {
        "truncated.jpg": whole.read_bytes()[:1000],
        "empty.jpg": b"",
        "text.jpg": b"not an image",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VlpromptError, match=f"cannot read the image .*{name}.*replace or remove it") as error:
            open_rgb(tmp_path / name)
        assert ("it is empty" in str(error.value)) == (name == "empty.jpg")
    with pytest.raises(VlpromptError, match=r"absent\.jpg does not exist"):
        open_rgb(tmp_path / "absent.jpg")


def test_image_bomb_is_refused_unopened(tmp_path: Path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 15_000, 8, 2, 0, 0, 0)  # 300 megapixels in a few bytes
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    with pytest.raises(VlpromptError, match=r"cannot read the image .*bomb\.png .*300000000 pixels"):
        open_rgb(tmp_path / "bomb.png")


def test_path_that_leaves_the_image_folder_is_not_opened(tmp_path: Path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        with pytest.raises(VlpromptError, match="leads out of"):
            open_inside(tmp_path / "images", Item(path, 0, "secret"))


def test_missing_images_are_counted_and_the_first_is_named(tmp_path: Path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/0.jpg").touch()
    items = [Item("cat/0.jpg", 0, "cat"), Item("cat/1.jpg", 0, "cat"), Item("dog/0.jpg", 1, "dog")]
    splits = DatasetSplits("toy", ("cat", "dog"), items, [], items, open_rgb, image_dir=tmp_path)
    check_items(splits, items[:1])
    with pytest.raises(VlpromptError, match=r"2 of 3 images of toy are missing, the first is .*cat/1\.jpg"):
        check_items(splits, items)
