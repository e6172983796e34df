"""Downloads that are resumed, checked and unpacked safely; layouts of torchvision's put in place."""

import gzip
import hashlib
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from made_archives import tarred, zipped
from PIL import Image

from datasets_registry import video
from datasets_registry.acquire import download_dataset, fetch, prepare_dataset
from datasets_registry.card import Archive, Card, card_names, load_card
from vlprompt.base.archives import extract
from vlprompt.cli.data import main
from vlprompt.data import load_split
from vlprompt.errors import VlpromptError


@dataclass
class Server:
    """Files by path, and the ranges that were asked for."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: list[str | None] = field(default_factory=list)
    stop_after: int | None = None


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content, asked = state.files.get(self.path), self.headers.get("Range")
            state.ranges.append(asked)
            if content is None:
                return self.send_error(404)
            start = int(asked[6:-1]) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : state.stop_after])

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.address = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield state
        http.shutdown()


def toy(server: Server, content: bytes, name: str = "toy.zip", md5: str | None = None, member: str = "") -> Card:
    server.files[f"/{name}"] = content
    digest = hashlib.md5(content).hexdigest() if md5 is None else md5
    archive = Archive(f"{server.address}/{name}", digest, "toy", member)
    return Card("toy", "Toy", "folder", folder="toy", images="images", archives=[archive], homepage="https://toy")


def test_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path):
    server.files["/a.bin"] = content = bytes(range(256)) * 100
    server.stop_after = 1000
    with pytest.raises(VlpromptError, match=r"a\.bin"):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin.part").stat().st_size == 1000
    server.stop_after = None
    seen = []
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin", hashlib.md5(content).hexdigest(), lambda *n: seen.append(n))
    assert (tmp_path / "a.bin").read_bytes() == content
    assert server.ranges == [None, "bytes=1000-"]
    assert seen[-1] == (25600, 25600)


def test_wrong_checksum_and_answers_of_the_server_are_told(server: Server, tmp_path: Path):
    card = toy(server, zipped(**{"images/cat/0.jpg": b"x"}), md5="0" * 32)
    with pytest.raises(
        VlpromptError, match=r"download of Toy failed .*the expected checksum.*: try again, or get it from https://toy"
    ):
        download_dataset(card, tmp_path)
    assert not list((tmp_path / "toy").iterdir())
    with pytest.raises(VlpromptError, match="answers 404"):
        fetch(f"{server.address}/absent.zip", tmp_path / "absent.zip")
    with pytest.raises(VlpromptError, match="is not an address on the web"):
        fetch("file:///etc/passwd", tmp_path / "x")
    with pytest.raises(VlpromptError, match="StanfordCars has no automatic download"):
        download_dataset(load_card("stanford_cars"), tmp_path)


def test_archive_is_unpacked_beside_what_is_there(server: Server, tmp_path: Path):
    (tmp_path / "toy/images/cat").mkdir(parents=True)
    (tmp_path / "toy/images/cat/0.jpg").write_text("mine")
    download_dataset(toy(server, zipped(**{"images/cat/0.jpg": b"theirs", "images/cat/1.jpg": b"theirs"})), tmp_path)
    assert (tmp_path / "toy/images/cat/0.jpg").read_text() == "mine"
    assert (tmp_path / "toy/images/cat/1.jpg").read_text() == "theirs"
    assert sorted(p.name for p in (tmp_path / "toy").iterdir()) == ["images"]


def test_wanted_member_is_a_folder_or_an_archive_inside(server: Server, tmp_path: Path):
    inner = gzip.compress(tarred(**{"images/cat/0.jpg": b"x"}))
    download_dataset(toy(server, zipped(**{"top/inner.tar.gz": inner}), member="top/inner.tar.gz"), tmp_path / "a")
    assert (tmp_path / "a/toy/images/cat/0.jpg").exists()
    download_dataset(
        toy(server, gzip.compress(tarred(**{"top/data/images/cat/0.jpg": b"x"})), "b.tar.gz", member="top/data"),
        tmp_path / "b",
    )
    assert (tmp_path / "b/toy/images/cat/0.jpg").exists()
    with pytest.raises(VlpromptError, match="has no top/data"):
        download_dataset(toy(server, zipped(**{"x": b""}), "c.zip", member="top/data"), tmp_path / "c")


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt"])
def test_unsafe_tar_writes_nothing(tmp_path: Path, name: str):
    (tmp_path / "bad.tar.gz").write_bytes(gzip.compress(tarred(**{"good.txt": b"", name: b""})))
    with pytest.raises(VlpromptError, match="refused the archive"):
        extract(tmp_path / "bad.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_in_a_tar_and_broken_ones_are_refused(tmp_path: Path):
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    with pytest.raises(VlpromptError, match="its member 'link' is no plain file"):
        extract(tmp_path / "link.tar", tmp_path / "out")
    (tmp_path / "half.tar.gz").write_bytes(gzip.compress(tarred(**{"a": bytes(9999)}))[:50])
    with pytest.raises(VlpromptError, match="is not a whole tar archive"):
        extract(tmp_path / "half.tar.gz", tmp_path / "out")


def test_load_split_downloads_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets_registry.catalog as catalog

    def download(card: Card, root: Path) -> None:
        for key in card.class_names:
            (root / "eurosat/2750" / key).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (4, 4)).save(root / "eurosat/2750" / key / f"{i}.jpg")

    monkeypatch.setattr(catalog, "download_dataset", download)
    assert len(load_split("eurosat", tmp_path, download=True, split="generated").train) == 20


def test_archives_of_the_cards_are_checked_or_say_why_not():
    unchecked = {name for name in card_names() for archive in load_card(name).archives if not archive.md5}
    assert unchecked == {"fgvc_aircraft"}  # neither its authors nor torchvision state one


# Layouts


@pytest.mark.parametrize("mode", ["link", "move"])
def test_torchvisions_layout_is_put_in_place_once(tmp_path: Path, mode: str):
    theirs = tmp_path / "tv/dtd/dtd/images/banded"
    theirs.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(theirs / "0.jpg")
    first = prepare_dataset(load_card("dtd"), tmp_path / "tv", tmp_path / "data", mode)
    assert (tmp_path / "data/dtd/images/banded/0.jpg").exists()
    assert (tmp_path / "data/dtd/images").is_symlink() == (mode == "link") == theirs.exists()
    assert ("is a link to" if mode == "link" else "moved from") in first[0]
    if mode == "link":
        again = prepare_dataset(load_card("dtd"), tmp_path / "tv", tmp_path / "data", mode)
        assert again == [f"{tmp_path}/data/dtd/images is there already"]


def test_what_cannot_be_prepared_is_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    for card, source, message in (
        ("dtd", "absent", "absent does not exist"),
        ("dtd", ".", "contains nothing of DescribableTextures"),
        ("pacs", ".", "PACS has no layout to start from"),
        ("ucf101", ".", "no videos are in"),
    ):
        with pytest.raises(VlpromptError, match=message):
            prepare_dataset(load_card(card), tmp_path / source, tmp_path / "data")
    assert main(["prepare", "dtd", f"from={tmp_path}", f"data_root={tmp_path}", "mode=copy"]) == 2
    assert "mode must be link or move, not 'copy'" in capsys.readouterr().err


def test_middle_frames_are_written_under_the_published_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clip = tmp_path / "UCF-101/HandstandPushups/v_HandStandPushups_g24_c02.avi"
    clip.parent.mkdir(parents=True)
    clip.touch()
    monkeypatch.setattr(video, "middle_frame", lambda path: Image.new("RGB", (32, 24)))
    lines = prepare_dataset(load_card("ucf101"), tmp_path / "UCF-101", tmp_path / "data")
    frame = tmp_path / "data/ucf101/UCF-101-midframes/Handstand_Pushups/v_HandStandPushups_g24_c02.jpg"
    assert Image.open(frame).size == (32, 24)
    assert "1 middle frames written" in lines[0]
    lines = prepare_dataset(load_card("ucf101"), tmp_path / "UCF-101", tmp_path / "data")
    assert "0 middle frames written" in lines[0]


def test_middle_frame_is_the_middle_one(tmp_path: Path):
    av = pytest.importorskip("av", reason="PyAV, which reads videos, is not installed")
    import numpy as np

    with av.open(str(tmp_path / "a.avi"), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(9):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 25 * i, np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    assert abs(video.middle_frame(tmp_path / "a.avi").getpixel((16, 16))[0] - 100) < 6


def test_absent_pyav_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VlpromptError, match="pip install av"):
        video.middle_frame(tmp_path / "a.avi")
