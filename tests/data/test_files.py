import stat
import zipfile
from pathlib import Path

import pytest

from vlprompt.base.archives import extract
from vlprompt.base.files import atomic_write, inside, is_relative_inside, sha256_file
from vlprompt.errors import VlpromptError


def test_atomic_write_replaces_whole_files_or_nothing(tmp_path: Path):
    path = tmp_path / "new/result.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(VlpromptError, match="cannot write"), atomic_write(path) as temporary:
        temporary.with_name("absent").rename(temporary)
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["result.txt"]


def test_atomic_write_gives_the_permissions_of_a_new_file(tmp_path: Path):
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "atomic") as temporary:
        temporary.write_text("")
    assert stat.S_IMODE((tmp_path / "atomic").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_sha256_of_a_file(tmp_path: Path):
    (tmp_path / "abc").write_text("abc")
    assert sha256_file(tmp_path / "abc").startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize("name", ["a/b.jpg", "a..b/..c", "./a", "a b/ü.png"])
def test_paths_inside_are_joined(tmp_path: Path, name: str):
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "..\\a", "C:\\a", "\\\\host\\a", "", ".", "a\0b"])
def test_paths_outside_are_refused(tmp_path: Path, name: str):
    assert not is_relative_inside(name)
    with pytest.raises(VlpromptError, match="leads out of"):
        inside(tmp_path, name)


def test_symlink_out_is_refused_and_symlink_within_is_not(tmp_path: Path):
    root, outside = tmp_path / "root", tmp_path / "root-2"
    root.mkdir()
    outside.mkdir()
    (root / "kept").mkdir()
    (root / "within").symlink_to(root / "kept")
    (root / "out").symlink_to(outside)
    assert inside(root, "within/a.jpg") == root / "within/a.jpg"
    with pytest.raises(VlpromptError, match=r"'out/a\.jpg'"):
        inside(root, "out/a.jpg")


def test_safe_archive_is_unpacked(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/file.txt", "content")
    extract(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out/folder/file.txt").read_text() == "content"


def test_archive_with_an_unsafe_member_writes_nothing(tmp_path: Path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for number, member in enumerate(["../out.txt", "/out.txt", link]):
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("good.txt", "good")
            archive.writestr(member, "bad")
        with pytest.raises(VlpromptError, match=f"refused the archive .*{number}.zip"):
            extract(path, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_broken_archive_is_named(tmp_path: Path):
    (tmp_path / "broken.zip").write_bytes(b"PK not a zip")
    with pytest.raises(VlpromptError, match=r"broken\.zip is not a whole zip archive"):
        extract(tmp_path / "broken.zip", tmp_path)
