"""A small model is run by one thread, unless somebody says otherwise; what computed is told."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlprompt import load_clip, run
from vlprompt.base import threads
from vlprompt.base.threads import TURNS, VARIABLES, WAITING, computing_with, threads_for, wait_briefly
from vlprompt.bench.threads import kept_busy, ways
from vlprompt.evaluation.results import Result
from vlprompt.testing import small_clip
from vlprompt.training.checkpoint import threads_of

SMALL = {
    "method": "coop",
    "dataset": "digits",
    "protocol": "few_shot",
    "shots": 1,
    "epochs": 2,
    "views": 1,
    "limit": 20,
}


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_size_of_a_model_says_how_many_unless_somebody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, large = load_clip("vlprompt-tiny", device="cpu").model, nn.Linear(5000, 5000)
    with computing_with(3):
        assert (threads_for(tiny), threads_for(large)) == (1, 3)
        assert threads_for(tiny, asked=2) == 2
        assert threads_for(nn.Linear(2, 2, device="meta")) == 3  # of another device
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert threads_for(tiny) == 3
        assert threads_for(tiny, asked=1) == 1


def test_the_number_is_as_before_when_all_is_done(tmp_path: Path) -> None:
    here = torch.get_num_threads()
    with threads_of(tmp_path, print, wanted=here + 1):
        assert torch.get_num_threads() == here + 1
    assert torch.get_num_threads() == here


def test_a_run_is_computed_by_as_many_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def done(**settings: object) -> Result:
        name = f"threads{settings.get('threads')}"
        return run(clip=small_clip(), output=tmp_path, name=name, quiet=True, **SMALL, **settings)

    with computing_with(2):
        alone, two = done(), done(threads=2)
    assert (alone.versions["threads"], two.versions["threads"]) == ("1", "2")
    assert alone.id == two.id  # it is the same run, rounded differently
    monkeypatch.setattr(threads, "SMALL", 0)
    with computing_with(2):
        assert threads_for(small_clip().model) == 2


def test_the_bench_compares_ways_to_wait_beside_busy_processes() -> None:
    assert [way["OMP_NUM_THREADS"] for way in ways(4).values()] == ["1", "4", "4", "4"]
    with kept_busy(2) as beside:
        assert [process.poll() for process in beside] == [None, None]
    assert all(process.poll() is not None for process in beside)


@pytest.mark.parametrize(
    ("said", "imported", "waits"),
    [
        ({}, {}, TURNS),
        ({}, {"torch": torch}, None),
        ({"GOMP_SPINCOUNT": "7"}, {}, "7"),
        ({WAITING[1]: "active"}, {}, None),
    ],
)
def test_threads_of_a_command_wait_briefly_unless_the_user_says_how(
    said: dict[str, str], imported: dict, waits: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "sys", SimpleNamespace(modules=imported))
    monkeypatch.setattr(os, "environ", said)
    wait_briefly()
    assert said.get("GOMP_SPINCOUNT") == waits
