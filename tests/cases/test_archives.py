"""Archives and downloads of anyone's: whole or not at all, in their folder, and of a size."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import socketserver
import stat
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from made_archives import tarred, zipped

import vlprompt.base.archives
from datasets_registry.acquire import download_dataset, fetch, unpack
from datasets_registry.card import Archive, Card, read_card
from datasets_registry.readers.own import expand_shards
from vlprompt import VlpromptError, load_split
from vlprompt.base.archives import extract

CARD = "name: toy\ntitle: Toy\nreader: folder\nfolder: toy\nimages: images\n"


def refusal(action: Any, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(VlpromptError) as error:
        action(*arguments, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("place", ["/etc", "..", "a/../../b", "C:/x", "C:x", "\\\\host\\x", "..\\x", "/"])
@pytest.mark.parametrize("field", ["member", "into", "folder", "images", "split_file", "torchvision", "torchvision's"])
def test_no_path_on_a_card_leads_out_of_its_folder(field: str, place: str, tmp_path: Path) -> None:
    # case: a card's `member: /etc` or `..`
    lines = {
        "member": f"archives: [{{url: 'https://a/b.zip', member: '{place}'}}]",
        "into": f"archives: [{{url: 'https://a/b.zip', into: '{place}'}}]",
        "torchvision": f"torchvision: {{'{place}': a}}",
        "torchvision's": f"torchvision: {{a: '{place}'}}",
    }.get(field, f"{field}: '{place}'")
    content = "\n".join(line for line in CARD.splitlines() if not line.startswith(f"{field}:"))
    (tmp_path / "toy.yaml").write_text(f"{content}\n{lines}\n")
    assert "which leads out of its folder" in refusal(read_card, tmp_path / "toy.yaml")


@pytest.mark.parametrize("member", ["/etc", "..", "../../etc", "C:/x"])
def test_a_card_made_in_python_moves_nothing_from_elsewhere(member: str, tmp_path: Path) -> None:
    # case: a card's `member: /etc` or `..`
    (tmp_path / "a.zip").write_bytes(zipped(x=b""))
    (tmp_path / "out").mkdir()
    assert "refused the path" in refusal(
        unpack, tmp_path / "a.zip", Archive("https://a/a.zip", member=member), tmp_path / "out"
    )
    assert not list((tmp_path / "out").iterdir())
    card = Card(name="toy", title="Toy", reader="folder", archives=[Archive("https://a/a.zip", into=member)])
    assert "refused the path" in refusal(download_dataset, card, tmp_path)
    card = Card(name="toy", title="Toy", reader="folder", archives=[Archive("https://a/..")])
    assert "does not end with the name of a file" in refusal(download_dataset, card, tmp_path)


GIGABYTES = 300 * 2**20  # more than any archive of a few hundred kilobytes may hold


def zeros(pack: Callable[[bytes], bytes]) -> bytes:
    info = tarfile.TarInfo("zeros")
    info.size = GIGABYTES
    return pack(info.tobuf() + bytes(2**20))  # the header's word is enough


@pytest.fixture
def small_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlprompt.base.archives, "ALLOWANCE", 2**20)


@pytest.mark.parametrize(
    "content",
    [
        zipped(zeros=bytes(8 * 2**20)),
        zipped(**{f"{i}": bytes(2**20) for i in range(3)}),
        *(pack(tarred(zeros=bytes(8 * 2**20))) for pack in (gzip.compress, bz2.compress, lzma.compress)),
        gzip.compress(tarred(**{f"{i}": bytes(2**20) for i in range(3)})),
    ],
    ids=["zip", "zip of several", "gz", "bz2", "xz", "gz of several"],
)
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(
    content: bytes, tmp_path: Path, small_allowance: None
) -> None:
    # case: a 3 MB archive that unpacks to 3 GB
    (tmp_path / "bomb.zip").write_bytes(content)
    said = refusal(extract, tmp_path / "bomb.zip", tmp_path / "out")
    assert "refused the archive" in said
    assert "it unpacks to more than" in said
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.zip"]


def test_headers_alone_cannot_ask_for_memory_or_disk(tmp_path: Path) -> None:
    # case: a 3 MB archive that unpacks to 3 GB
    (tmp_path / "a.tar.gz").write_bytes(zeros(gzip.compress))
    assert "it unpacks to more than" in refusal(extract, tmp_path / "a.tar.gz", tmp_path / "out")
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2**40
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(name.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
    assert "it unpacks to more than" in refusal(extract, tmp_path / "b.tar.gz", tmp_path / "out")


def test_an_archive_in_an_archive_has_the_budget_of_the_outer_one(tmp_path: Path, small_allowance: None) -> None:
    # case: a 3 MB archive that unpacks to 3 GB
    inner = zipped(zeros=bytes(2**20 + 1))
    (tmp_path / "a.zip").write_bytes(zipped(**{"inner.zip": inner}))
    archive = Archive("https://a/a.zip", member="inner.zip")
    (tmp_path / "out").mkdir()
    assert "it unpacks to more than" in refusal(unpack, tmp_path / "a.zip", archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_archives_of_usual_ratios_are_unpacked_beside_what_is_there(tmp_path: Path, small_allowance: None) -> None:
    (tmp_path / "out/a").mkdir(parents=True)
    (tmp_path / "out/a/mine").write_text("mine")
    content = os.urandom(2**16) * 24
    for name, data in (
        ("a.zip", zipped(**{"a/x": content})),
        ("a.tar", tarred(**{"a/x": content})),
        ("b.zip", lzma.compress(tarred(**{"a/x": content}))),  # its content tells what it is
    ):
        (tmp_path / name).write_bytes(data)
        extract(tmp_path / name, tmp_path / "out")
        assert (tmp_path / "out/a/x").read_bytes() == content
        (tmp_path / "out/a/x").unlink()
    assert (tmp_path / "out/a/mine").read_text() == "mine"


def unix(name: str, kind: int) -> bytes:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(info, "/etc")
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(tarred(special("x", kind, "/etc/passwd"), good=b"") for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)),
        *(tarred(special("x", kind), good=b"") for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)),
        *(unix("x", kind) for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK)),
        *(make(**{name: b""}) for make in (zipped, tarred) for name in ("../x", "/x", "C:/x", "a/../../x", "..\\x")),
    ],
    ids=range(19),
)
def test_links_devices_and_paths_out_write_nothing(content: bytes, tmp_path: Path) -> None:
    # case: a card's `member: /etc` or `..`
    (tmp_path / "a").write_bytes(content)
    assert "refused the archive" in refusal(extract, tmp_path / "a", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def encrypted() -> bytes:
    content = bytearray(zipped(x=b"secret"))
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(magic) + place
        content[at : at + 2] = struct.pack("<H", 1)
    return bytes(content)


def with_method(number: int) -> bytes:
    content = bytearray(zipped(x=b"text"))
    for magic, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.index(magic) + place
        content[at : at + 2] = struct.pack("<H", number)
    return bytes(content)


WHOLE = zipped(x=os.urandom(5000))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (encrypted(), "is encrypted: unpack it by hand, with its password"),
        (with_method(97), "is not a whole zip archive"),
        (b"Rar!\x1a\x07\x01\x00", "is a RAR and neither a zip nor a tar archive"),
        (b"7z\xbc\xaf\x27\x1c\x00", "is a 7z and neither a zip nor a tar archive"),
        (b"<!DOCTYPE html><html>log in</html>", "is a web page and neither a zip nor a tar archive"),
        (WHOLE[:-30], "is not a whole zip archive"),
        (WHOLE[:2000] + bytes(8) + WHOLE[2008:], "is not a whole zip archive"),
        (b"PK\x03\x04", "is not a whole zip archive"),
        (b"", "is not a whole zip archive"),
        (b"anything", "is not a whole zip archive"),
        (gzip.compress(tarred(x=os.urandom(5000)))[:3000], "is not a whole tar archive"),
        (tarred(x=bytes(5000))[:3000], "is not a whole"),
        (gzip.compress(b""), "is not a whole tar archive"),
        (b"\x1f\x8bnonsense", "is not a whole tar archive"),
        (b"\xfd7zXZ\x00nonsense", "is not a whole tar archive"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_is_no_whole_archive_is_named_and_leaves_nothing(content: bytes, sentence: str, tmp_path: Path) -> None:
    # case: seed of 5,000 digits, …, encrypted zip, …
    (tmp_path / "a.zip").write_bytes(content)
    assert sentence in refusal(extract, tmp_path / "a.zip", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes, repeat: int = 1) -> Iterator[str]:
    """A server that answers everything alike, whether it makes sense or not."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for _ in range(repeat):
                    self.wfile.write(body)
            except OSError:  # the reader has had enough
                pass

        def log_message(self, *_: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/a.zip"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "headers", "sentence"),
    [
        (200, {"Content-Length": "abc"}, "answers with the length 'abc', which is not a number of bytes"),
        (200, {"Content-Length": "-5"}, "answers with the length '-5'"),
        (200, {"Content-Length": "9" * 5000}, "answers with the length '99999"),
        (200, {"Content-Length": "9" * 15}, "and"),
        (200, {"Content-Length": "99999"}, "ended after 5 of 99999 bytes"),
        (302, {"Location": "file:///etc/passwd"}, "302"),
        (500, {}, "answers 500"),
    ],
)
def test_answers_that_make_no_sense_are_told(status: int, headers: dict, sentence: str, tmp_path: Path) -> None:
    # case: seed of 5,000 digits, …, `Content-Length: abc`, …
    with answering(status, headers, b"12345") as url:
        assert sentence in refusal(fetch, url, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_a_body_without_an_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # case: seed of 5,000 digits, …, `Content-Length: abc`, …
    monkeypatch.setattr("datasets_registry.acquire.MAX_DOWNLOAD", 2**20)
    with answering(200, {}, bytes(2**16), repeat=10**6) as url:
        assert "does not end after 1,048,576 bytes" in refusal(fetch, url, tmp_path / "a.zip")


def test_the_rest_of_another_file_is_not_put_behind_a_part(tmp_path: Path) -> None:
    part = tmp_path / "a.zip.part"
    part.write_bytes(b"abc")
    with answering(206, {"Content-Range": "bytes 0-4/5", "Content-Length": "5"}, b"12345") as url:
        assert "answers with other bytes than were asked for" in refusal(fetch, url, tmp_path / "a.zip")
    part.write_bytes(b"abcdefg")
    with answering(416, {"Content-Range": "bytes */5"}, b"") as url:
        assert "answers 416" in refusal(fetch, url, tmp_path / "a.zip")
    assert not part.exists()


def test_addresses_that_are_none_are_told(tmp_path: Path) -> None:
    for url in ("http://", "http://[", "http://a b/c", "http://\n", "http://127.0.0.1:99999/x", "http://é/x"):
        refusal(fetch, url, tmp_path / "x")


@pytest.mark.parametrize(
    "pattern",
    [
        "{0..999999999}",
        "{000..999}/{000..999}",
        "{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}",
        "{9..1}",
        "{0.." + "9" * 5000 + "}",
    ],
    ids=lambda value: value[:20],
)
def test_a_pattern_of_more_shards_than_anybody_has_is_refused_at_once(pattern: str) -> None:
    # case: seed of 5,000 digits, …, shards `{0..999999999}`
    assert "does not stand for 1 to" in refusal(load_split, f"wds:nowhere/{pattern}.tar")


def test_patterns_of_usual_shards_stand_for_what_they_did() -> None:
    assert len(expand_shards("a/{00..99}/{0..9}.tar")) == 1000
    assert [str(path) for path in expand_shards("{8..10}.tar")] == ["8.tar", "9.tar", "10.tar"]
