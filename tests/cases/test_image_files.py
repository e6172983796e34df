"""Image files as people have them: every format and mode is read as it was meant, or refused with the reason."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlprompt.data import load_split
from vlprompt.data.formats import FORMATS, describe_left_out, image_suffixes
from vlprompt.data.images import as_rgb, open_rgb
from vlprompt.data.modes import MAX_PIXELS, MAX_SIDE
from vlprompt.errors import VlpromptError

RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)  # every brightness from black to white
SUFFIXES = [
    "gif",
    "avif",
    "jfif",
    "webp",
    "jp2",
    "tif",
    "bmp",
    "ppm",
    "ico",
    "tga",
    "pcx",
    "qoi",
    "dds",
    "JPE",
    "mpo",
    "apng",
]
COLOURS = np.stack([RAMP, RAMP.T, RAMP], axis=-1)


def photo() -> Image.Image:
    return Image.fromarray((COLOURS * 255).astype(np.uint8))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def deep_png(values: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits a sample: colour 0 is grey, 2 RGB, 4 grey with alpha."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, colour, rows)


def brightness(image: Image.Image) -> float:
    assert image.mode == "RGB"
    return float(np.asarray(image).mean())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_raster_formats_are_read_and_their_names_are_known(tmp_path: Path, suffix: str):
    # case: still.gif, photo.avif, photo.jfif, a .heic, a .pdf
    name = f"a.{suffix}"
    forms = {".jfif": "JPEG", ".JPE": "JPEG", ".apng": "PNG"}
    form = forms.get(Path(name).suffix) or Image.registered_extensions().get(f".{suffix}")
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow writes no .{suffix}")
    photo().save(tmp_path / name, form)
    assert brightness(open_rgb(tmp_path / name)) == pytest.approx(127, abs=4)
    assert name.lower().endswith(image_suffixes())


def test_photos_of_iphones_are_read_where_the_plugin_is_installed(tmp_path: Path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(photo()).save(tmp_path / "a.heic")
    assert brightness(open_rgb(tmp_path / "a.heic")) == pytest.approx(127, abs=4)


def test_what_is_left_out_is_counted_by_ending():
    assert describe_left_out({}, "photos") == ""
    assert describe_left_out({".pdf": 1}, "photos") == ("1 file in photos is left out because of its ending: 1 .pdf")
    # case: the lowest versions that setup.cfg allows
    assert describe_left_out({".avif": 2}, "photos").endswith("2 .avif (pip install 'pillow>=11.3')")


@pytest.mark.parametrize(
    "make",
    [
        lambda: deep_png(RAMP * 65535, 0),
        lambda: deep_png(RAMP * 4095, 0),
        lambda: deep_png(RAMP * 1023, 0),
        lambda: deep_png(COLOURS * 65535, 2),
        lambda: deep_png(np.stack([RAMP, np.ones_like(RAMP)], -1) * 65535, 4),
        lambda: tiff(RAMP.astype(np.float32)),
        lambda: tiff((RAMP * 255).astype(np.float32)),
        lambda: tiff((RAMP * 4095).astype(np.uint16)),
        lambda: tiff((RAMP * (2**31 - 1)).astype(np.int32)),
    ],
    ids=["grey16", "grey12", "grey10", "rgb16", "alpha16", "float1", "float255", "tiff12", "tiff32"],
)
def test_deep_images_are_as_bright_as_they_were_meant(make: Callable[[], bytes]):
    # case: twelve_bits.png, float_0_to_1.tif
    image = open_rgb(io.BytesIO(make()))
    assert brightness(image) == pytest.approx(127, abs=2)
    assert np.asarray(image).max() == 255


def tiff(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, "TIFF")
    return content.getvalue()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: deep_png(COLOURS * 4095, 2), "16-bit colours reach 16/256 of their range"),
        (lambda: tiff((RAMP * 3).astype(np.float32)), "range from 0 to 3, and neither from 0 to 1 nor from 0 to 255"),
        (lambda: tiff((RAMP - 0.5).astype(np.float32)), "range from -0.5 to 0.5"),
        (lambda: tiff(np.full((4, 4), np.nan, np.float32)), "range from nan to nan"),
        (lambda: tiff((RAMP * 400 - 100).astype(np.int32)), "range from -100 to 300, so it is unclear which is black"),
    ],
)
def test_numbers_of_unknown_range_are_refused_with_it(make: Callable[[], bytes], reason: str):
    with pytest.raises(VlpromptError, match=f"cannot read the image x .*{reason}"):
        open_rgb(io.BytesIO(make()), name="x")


def test_deep_arrays_and_pil_images_are_scaled_too():
    assert brightness(as_rgb((RAMP * 4095).astype(np.uint16))) == pytest.approx(127, abs=2)
    assert brightness(as_rgb(Image.fromarray(RAMP.astype(np.float32)))) == pytest.approx(127, abs=2)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "RGBa"])
def test_every_other_mode_keeps_its_brightness(mode: str):
    image = photo().convert("RGBA").convert(mode) if mode == "RGBa" else photo().convert(mode)
    assert brightness(as_rgb(image)) == pytest.approx(127, abs=3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_cost_the_pixels(form: str):
    # case: broken_exif.png
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    for _ in range(8):
        damaged = bytearray(whole)
        for place in generator.integers(6, len(whole), 4):
            damaged[place] = generator.integers(256)
        content = io.BytesIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            photo().save(content, form, exif=bytes(damaged))
            assert brightness(open_rgb(content)) == pytest.approx(127, abs=4)


def test_exif_that_is_no_hexadecimal_text_is_ignored():
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n      12\nnot hexadecimal at all\n")
    rows = b"".join(b"\0" + bytes([i * 8] * 96) for i in range(32))
    assert open_rgb(io.BytesIO(png(32, 32, 8, 2, rows, chunk(b"zTXt", text)))).size == (32, 32)


@pytest.mark.parametrize(
    ("width", "height"), [(1, 170_000_000), (170_000_000, 1), (13_300, 13_300), (1, MAX_SIDE + 1), (40_000, 40_000)]
)
def test_more_pixels_than_the_budget_are_refused_undecoded(width: int, height: int):
    # case: one_pixel_wide.png (330 kB, 170 Mpx; also 13,300 x 13,300)
    content = io.BytesIO(png(width, height, 8, 0, b""))
    with pytest.raises(VlpromptError, match=r"cannot read the image x .* pixels.*120,000,000"):
        open_rgb(content, name="x")


def test_large_photos_are_within_the_budget():
    assert 12_000 * 9_000 < MAX_PIXELS < 13_300 * 13_300
    with pytest.raises(VlpromptError, match="pixels"):
        as_rgb(Image.open(io.BytesIO(png(13_300, 13_300, 8, 0, b""))))


def test_drawings_are_not_opened_whatever_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # case: postscript.jpg
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    for name in ("a.jpg", "a.eps"):
        (tmp_path / name).write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"
        )
        with pytest.raises(VlpromptError, match="not an image in a supported format, such as JPEG"):
            open_rgb(tmp_path / name)
    with pytest.raises(VlpromptError, match="it is a drawing"):
        as_rgb(Image.open(tmp_path / "a.eps"))
    photo().save(tmp_path / "page.pdf")
    with pytest.raises(VlpromptError, match="not an image in a supported format"):
        open_rgb(tmp_path / "page.pdf")
    assert not {"EPS", "PDF", "WMF"} & FORMATS.keys()


def test_pipes_devices_and_sockets_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # case: a FIFO for an image
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.chdir(tmp_path)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        for path in (tmp_path / "pipe.jpg", "socket.jpg", "/dev/zero", "/dev/null"):
            with pytest.raises(VlpromptError, match="it is a pipe, a device or a socket, not a file"):
                open_rgb(path)
    with pytest.raises(VlpromptError, match="it is a folder"):
        open_rgb(tmp_path)
    os.mkfifo(tmp_path / "shard.tar")
    with pytest.raises(VlpromptError, match=r"the shard .*shard\.tar is no file"):
        load_split(f"wds:{tmp_path}/shard.tar")
