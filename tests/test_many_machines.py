"""Encoding and predicting in parts: here and on a Ray cluster of two nodes that loses one, with the same outcome."""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

import vlprompt.data.encoding
from vlprompt import VlpromptError, create_learner, load_clip, load_learner, predict_images, run
from vlprompt.cli.__main__ import main
from vlprompt.data import FeatureBank, load_split
from vlprompt.data.remote import unpacked
from vlprompt.evaluation.prediction import find_images
from vlprompt.evaluation.results import find_results
from vlprompt.runs.encode import encode
from vlprompt.runs.executors import on_ray
from vlprompt.runs.predict import Predicting, predict_in_shards
from vlprompt.runs.sweep import sweep
from vlprompt.runs.workers import Done, Workers, work_on_ray

DIGITS = {"dataset": "digits", "protocol": "few_shot", "shots": 4, "seed": 1, "limit": 40, "device": "cpu"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images, one of which cannot be read."""
    folder, splits = tmp_path_factory.mktemp("photos"), load_split("digits")
    for i, item in enumerate(splits.test[:30]):
        splits.open_image(item).save(folder / f"{i:02d}.png")
    (folder / "17.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved learner on the embedded model."""
    folder = tmp_path_factory.mktemp("learner")
    clip = load_clip("vlprompt-tiny", device="cpu")
    return create_learner("coop", clip, load_split("digits").class_names, n_ctx=2).save_pretrained(folder)


def tar_of(files: list[Path], place: Path) -> Path:
    """A shard in webdataset's form: an image and its class, one after the other."""
    with tarfile.open(place, "w") as tar:
        for path in files:
            tar.add(path, path.name)
            label = tarfile.TarInfo(f"{path.stem}.cls")
            label.size = 1
            tar.addfile(label, io.BytesIO(b"3"))
    return place


def in_order(folder: Path) -> list[list[str]]:
    """Rows of all files of predictions, without their heads."""
    return [row for path in sorted(folder.glob("*.csv")) for row in list(csv.reader(path.open(encoding="utf-8")))[1:]]


# Encoding


def test_a_run_opens_what_was_encoded_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLPROMPT_CACHE", str(tmp_path / "cache"))
    banks = encode(DIGITS | {"views": 2}, shard=16, batch_size=8)
    assert {name: tuple(bank.features.shape[:2]) for name, bank in banks.items()} == {
        "train": (2, 40),
        "test all": (1, 40),
    }
    assert all(bank.path.name.endswith(".shards.safetensors") for bank in banks.values())

    def refuse(*_: object) -> None:
        raise AssertionError("something is encoded again")

    monkeypatch.setattr(vlprompt.data.encoding.Encoding, "_batches", refuse)
    settings = DIGITS | {"method": "coop", "epochs": 2, "views": 2, "output": str(tmp_path), "quiet": True}
    assert run(**settings).rows[0].n_images == 40


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["views=2"], "say which dataset: vlprompt encode dataset=NAME"),
        (["dataset=digits", "images=[tests]"], "unknown images 'tests': did you mean test"),
        (["dataset=digits", "lr=1"], "unknown key 'lr'"),
        (["dataset=digits", "views=fresh"], "views=fresh are encoded anew in each epoch: give a number to keep"),
        (["dataset=digits", "executor=processes"], "unknown executor 'processes': known: local, ray"),
        (["dataset=digits", "cpus=2"], "cpus is a setting of executor=ray, and the executor is local"),
        (["dataset=digits", "images=pool"], "digits has no images of pool here"),
    ],
)
def test_a_mistake_in_encode_is_one_line(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", *words]) == 2
    assert sentence in capsys.readouterr().err


# Where images come from


def test_addresses_and_tar_shards_are_read_as_files_are(photos: Path, learner: Path, tmp_path: Path) -> None:
    files = sorted(photos.glob("*.png"))[:5]
    memory = fsspec.filesystem("memory")
    for path in files:
        memory.pipe(f"/photos/deep/{path.name}", path.read_bytes())
    memory.pipe("/photos/notes.txt", b"none")
    memory.pipe("/shards/0.tar", tar_of(files, tmp_path / "0.tar").read_bytes())
    read = load_learner(learner, device="cpu")
    expected = [each.probabilities for each in predict_images(read, files, top=10)]
    for place in (
        "memory://photos",
        "memory://photos/deep/*.png",
        "memory://shards",
        str(tmp_path),
        f"file://{photos}/0[0-4].png",
    ):
        found = list(find_images([place]))
        said = list(predict_images(read, unpacked(found), top=10))
        assert [each.probabilities for each in said] == expected, place
    assert [str(path) for path in find_images(["memory://photos"])][:1] == ["memory:///photos/deep/00.png"]
    assert [Path(each.image).name for each in said] == [path.name for path in files]


def test_what_is_not_at_an_address_is_one_sentence(photos: Path, learner: Path, tmp_path: Path) -> None:
    read, files, told = load_learner(learner, device="cpu"), sorted(photos.glob("*.png"))[:3], []
    shard = tar_of(files, tmp_path / "cut.tar")
    with tarfile.open(shard) as tar:
        second = tar.getmember(files[1].name).offset_data
    shard.write_bytes(shard.read_bytes()[: second + 9])
    places = ["memory://absent/x.png", str(shard), str(tmp_path / "absent.tar"), str(files[0])]
    said = list(predict_images(read, unpacked(places), on_unreadable=told.append))
    assert [os.fspath(each.image) for each in said] == [f"{shard}/{files[0].name}", str(files[0])]
    assert told[0] == "there is nothing at memory://absent/x.png"
    assert told[1].startswith(f"cannot read the shard {shard} (")
    assert told[2] == f"the shard {tmp_path / 'absent.tar'} does not exist"
    for place, sentence in {
        "nosuch://x/y.png": "is not an address that can be read",
        "memory://absent/": "no images in memory://absent/",
    }.items():
        with pytest.raises(VlpromptError, match=sentence):
            list(predict_images(read, unpacked(find_images([place]))))


# Predicting into a folder


def test_files_of_predictions_are_whole_in_order_and_kept(photos: Path, learner: Path, tmp_path: Path) -> None:
    shard = tar_of(sorted(photos.glob("0*.png")), tmp_path / "a.tar")
    sources = [*find_images([str(photos)]), str(shard)]
    how = Predicting({"learner": str(learner), "device": "cpu"}, batch_size=4)
    said = predict_in_shards(how, sources, tmp_path / "found", shard=10)
    assert (said.files, said.images, said.failed) == (4, 39, [])
    assert [sentence.split(" (")[0] for sentence in said.left_out] == [f"cannot read the image {photos}/17.png"]
    rows = in_order(tmp_path / "found")
    assert [row[0] for row in rows] == [p for p in sources[:-1] if "17" not in p] + [
        f"{shard}/{i:02d}.png" for i in range(10)
    ]
    read = load_learner(learner, device="cpu")
    alone = predict_images(read, sources[:16], batch_size=4)
    assert [row[1:] for row in rows[:16]] == [[p.classes[0], str(round(p.probabilities[0], 6))] for p in alone]
    (tmp_path / "found/00001.csv").unlink()
    again = predict_in_shards(how, sources, tmp_path / "found", shard=10)
    assert (again.images, len(again.left_out)) == (11, 1)
    assert in_order(tmp_path / "found") == rows
    with pytest.raises(VlpromptError, match=r"holds other predictions \(top differs\): choose another output"):
        predict_in_shards(Predicting(how.learner, top=2, batch_size=4), sources, tmp_path / "found", shard=10)


def test_the_command_writes_parquet_into_a_file_or_a_folder(
    photos: Path, learner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    arguments = ["predict", f"learner={learner}", str(photos), "top=2", "device=cpu"]
    assert main([*arguments, f"output={tmp_path / 'found.parquet'}"]) == 1
    assert main([*arguments, "format=parquet", f"output={tmp_path}/folder/"]) == 1
    told = capsys.readouterr()
    assert "29 images now, 1 of 1 files are there" in told.out
    assert told.err.count("left out: cannot read the image") == 2
    whole = parquet.read_table(tmp_path / "found.parquet")
    assert whole.column_names == ["image", "class", "probability", "class_2", "probability_2"]
    assert whole.equals(parquet.read_table(tmp_path / "folder/00000.parquet"))
    for words, sentence in (
        (["executor=ray"], "executor=ray writes a folder of files: give output=FOLDER/"),
        (["format=parquet"], "format=parquet is not text: give output=FILE.parquet"),
        (["format=table", f"output={tmp_path}/x/"], "format=table is for reading on a terminal"),
    ):
        assert main([*arguments, *words]) == 2
        assert sentence in capsys.readouterr().err


# On a cluster


def started(start: Callable[..., Any], **options: Any) -> Any:
    """What Ray starts, which waits half a minute for its own processes."""
    try:
        return start(**options)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("this machine is too busy for Ray to start on it")


class Cluster:
    """A Ray cluster of two nodes on this machine, of which the second can be lost."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Nodes

        node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 10**8}
        self.node = node
        self.nodes = started(Nodes, initialize_head=True, head_node_args=node | {"include_dashboard": False})
        self.second: Any = None

    def complete(self) -> str:
        """Add the second node where it is lost; return the address."""
        if self.second is None:
            self.second = started(self.nodes.add_node, **self.node)
            self.nodes.wait_for_nodes()
        return str(self.nodes.address)

    def lose(self) -> None:
        """Kill the second node."""
        if self.second is not None:
            self.nodes.remove_node(self.second, allow_graceful=False)
            self.second = None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("pandas", reason="Ray Data needs pandas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLPROMPT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # nodes on the loopback address
        patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
        nodes = Cluster()
        try:
            yield nodes
        finally:
            ray.shutdown()
            nodes.nodes.shutdown()


def losing(cluster: Cluster) -> Workers:
    """Work on both nodes, of which the second is killed when the first part is done."""
    working = work_on_ray(cluster.complete())

    def run(make: Any, parts: Any) -> Iterator[Done]:
        for done in working(make, parts):
            cluster.lose()
            yield done

    return run


def encoded(cache: Path, monkeypatch: pytest.MonkeyPatch, workers: Workers | None = None) -> dict[str, FeatureBank]:
    """Banks in shards of eight, in a cache of their own."""
    monkeypatch.setenv("VLPROMPT_CACHE", str(cache))
    return encode(DIGITS | {"threads": 1}, shard=8, batch_size=4, workers=workers)


def assert_same(one: dict[str, FeatureBank], other: dict[str, FeatureBank]) -> None:
    assert one.keys() == other.keys() == {"train", "test all"}
    for name, bank in one.items():
        assert (bank.key, bank.path.name) == (other[name].key, other[name].path.name)
        assert torch.equal(bank.features, other[name].features), name


@pytest.mark.nightly  # which waits for Ray's processes; .ci/run does it as well
def test_two_nodes_say_what_one_process_says_and_one_may_be_lost(
    cluster: Cluster, photos: Path, learner: Path, tmp_path: Path
) -> None:
    how = Predicting({"learner": str(learner), "device": "cpu"}, batch_size=4, threads=0)
    sources = list(find_images([f"file://{photos}"]))
    said = predict_in_shards(how, sources, tmp_path / "here", shard=4)
    there = predict_in_shards(how, sources, tmp_path / "there", shard=4, workers=losing(cluster))
    assert (there.images, there.failed) == (said.images, []) == (29, [])
    assert in_order(tmp_path / "there") == in_order(tmp_path / "here")


@pytest.mark.nightly
def test_a_cluster_that_loses_a_node_encodes_the_bits_of_one_process(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = encoded(tmp_path / "here", monkeypatch)
    assert_same(encoded(tmp_path / "there", monkeypatch, losing(cluster)), here)


@pytest.mark.nightly
def test_a_cluster_that_loses_a_node_loses_no_run(cluster: Cluster, tmp_path: Path) -> None:
    settings = {"dataset": "digits", "shots": 1, "epochs": 3, "views": 1, "limit": 10, "device": "cpu"}
    settings |= {"output": str(tmp_path), "methods": ["coop", "zero_shot"], "seeds": [1, 2, 3]}
    outcomes = sweep(settings, on_ray(cluster.complete()), lambda outcome: cluster.lose())
    assert all(outcome.status in ("done", "kept") for outcome in outcomes), outcomes
    results = [result for _, result in find_results([tmp_path])]
    assert sorted((r.method, r.seed) for r in results) == [(m, s) for m in ("coop", "zero_shot") for s in (1, 2, 3)]
