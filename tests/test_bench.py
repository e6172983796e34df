"""The benchmark measures what it says; no test looks at the times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from here import python_here
from torch.utils.flop_counter import FlopCounterMode

from vlprompt import load_clip
from vlprompt.bench import Case, measure, pairs
from vlprompt.bench.cases import INSIDE, class_names
from vlprompt.bench.heads import Case as HeadCase
from vlprompt.bench.heads import list_heads
from vlprompt.bench.heads import measure as measure_head
from vlprompt.bench.measuring import Work, describe, in_process, work
from vlprompt.cli.__main__ import main


def test_full_length_does_more_work_than_prefix_sharing() -> None:
    shared, full = (measure(Case(classes=6, text=text, what="text"), "vlprompt-tiny", 1) for text in ("shared", "full"))
    assert full["gflop"] > 3 * shared["gflop"]
    assert shared["seconds"] > 0


def test_no_step_is_spared_what_an_earlier_one_did() -> None:
    clip = load_clip("vlprompt-tiny", device="cpu")
    case = next(pair.fast for pair in pairs([4], ["promptsrc"], layers=2) if pair.fast.what == "step")
    measured = work(case, clip)
    first = measured.fresh()
    measured.run(first)  # encodes the frozen class features, which a training does once
    again, new, newer = (flops(measured, given) for given in (first, measured.fresh(), measured.fresh()))
    assert again < new == newer  # the teacher remembers the images of a batch, for its other objectives


def flops(measured: Work, given: object) -> int:
    with FlopCounterMode(display=False) as counter:
        measured.run(given)
    return counter.get_total_flops()


def test_careful_code_does_less_than_published_code_and_more_than_ours() -> None:
    [pair] = [pair for pair in pairs([6], ["coop"], layers=4) if "text forward" in pair.title]
    assert pair.careful is not None
    ours, careful, plain = (measure(case, "vlprompt-tiny", 1) for case in (pair.fast, pair.careful, pair.plain))
    assert ours["gflop"] < careful["gflop"] < plain["gflop"] / 2


@pytest.mark.parametrize("method", INSIDE)
def test_what_stands_inside_the_text_tower_leaves_prefixes_shared(method: str) -> None:
    text, step = pairs([5], [method], layers=4)
    shared, full = measure(text.fast, "vlprompt-tiny", 1), measure(text.plain, "vlprompt-tiny", 1)
    assert full["gflop"] > 3 * shared["gflop"]
    assert measure(step.fast, "vlprompt-tiny", 1)["gflop"] > shared["gflop"]


def test_a_test_image_is_tuned_on_by_the_same_work_with_fewer_tokens() -> None:
    text, whole = (replace(pair.fast, batch=4) for pair in pairs([6], ["tpt"], layers=4))
    shared, full, all_of_it = (measure(case, "vlprompt-tiny", 1) for case in (text, replace(text, text="full"), whole))
    assert full["gflop"] > 3 * shared["gflop"]
    assert all_of_it["gflop"] > shared["gflop"]


def test_there_are_names_for_as_many_classes_as_imagenet21k() -> None:
    names = class_names(21_000)
    assert len(set(names)) == 21_000 - 2  # of ImageNet's thousand two pairs have one name
    assert names[:1000] == class_names(1000)


def test_every_comparison_differs_in_what_its_title_says() -> None:
    for pair in pairs([10], ["images", "coop", "maple", "cocoop", "promptsrc", "proda", *INSIDE, "tpt"], layers=4):
        assert pair.fast != pair.plain, pair.title
        assert ("full length" in pair.title) == (pair.plain.text == "full" and "bf16" not in pair.title), pair.title


def test_a_measurement_in_a_process_of_its_own_is_the_one_here() -> None:
    case = Case(what="images", batch=2)
    alone, here = in_process(case, "vlprompt-tiny", 1), measure(case, "vlprompt-tiny", 1)
    assert alone.keys() == here.keys()
    assert alone["gflop"] == here["gflop"]


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", python_here)
    file = tmp_path / "bench.json"
    assert main(["bench", "backbone=vlprompt-tiny", "methods=images", "repeats=1", f"output={file}"]) == 0
    assert "bf16 / fp32" in capsys.readouterr().out
    row = json.loads(file.read_text())["rows"][0]
    assert row["times_faster"] > 0
    assert main(["bench", "clases=3"]) == 2
    assert "did you mean classes?" in capsys.readouterr().err
    assert main(["bench", "classes=[10,2000000]"]) == 2
    assert "classes=2000000 is more than there are names" in capsys.readouterr().err


def test_a_sweep_is_measured_against_the_same_runs_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", python_here)
    file = tmp_path / "bench.json"
    assert main(["bench", "sweep", "dataset=digits", "shots=1", "seeds=1", "epochs=1", f"output={file}"]) == 0
    measured = json.loads(file.read_text())
    assert measured["runs"] == 1
    assert measured["ratio"] == pytest.approx(measured["sweep_s"] / measured["separate_s"])


def test_heads_are_fitted_to_made_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", python_here)
    file = tmp_path / "bench.json"
    small = ["classes=4", "width=16", "shots=2", "views=2", "methods=[gda,tfup]", f"output={file}"]
    assert main(["bench", "heads", *small]) == 0
    assert "passes over all class scores" in capsys.readouterr().out
    measured = json.loads(file.read_text())
    assert (measured["classes"], list(measured["heads"])) == (4, ["gda", "tfup"])
    assert measured["heads"]["tfup"]["seconds"] > 0  # which is fitted to a part of a pool
    assert measured["heads"]["gda"]["whole_s"] == measured["heads"]["gda"]["seconds"] > 0
    assert main(["bench", "heads", "methods=[coop]"]) == 2
    assert "'coop' is no head" in capsys.readouterr().err


def test_an_epoch_of_a_trained_head_tells_of_the_others() -> None:
    row = measure_head(HeadCase("taskres", classes=4, width=16, shots=2, views=2, epochs=1))
    assert row["whole_s"] > 10 * row["seconds"]
    assert {"gda", "linear_probe", "lp_plus_plus", "taskres"} <= set(list_heads())


def test_a_device_is_measured_by_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    facts = describe(torch.device("cpu"))
    assert set(facts["gflops"]) == {"fp32", "bf16"}
    assert min(facts["gflops"].values()) > 0
    assert main(["bench", "device=abacus"]) == 2
    assert "device 'abacus' is not available here" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_on_itself() -> None:
    assert {"fp32", "tf32", "bf16", "fp16"} <= set(describe(torch.device("cuda"))["gflops"])
    row = measure(Case(classes=6), "vlprompt-tiny", 1, "cuda")
    assert row["seconds"] > 0
    assert 0 < row["memory_mb"] < 1000
