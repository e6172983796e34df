"""What runs leave behind may be damaged: no command then gives another answer, or a traceback."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import new_processes
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mutations import Workshop

EACH = 72  # mutations of each file, 1,008 of the fourteen


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLPROMPT_CACHE", "of the workshop's own")
        root = tmp_path_factory.mktemp("mutations") / "work"
        root.mkdir()
        yield Workshop(root, patch)


def test_a_damaged_file_never_gives_another_answer_in_part(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    # case: one bit of `learner.safetensors` or `predictions.safetensors` flipped; weights x 1e30
    monkeypatch.setenv("VLPROMPT_CACHE", str(workshop.root / "cache"))
    rng = random.Random(1)
    for file in workshop.files():
        command = rng.choice(workshop.commands(file))
        for name, content in workshop.mutations(file, 1, rng):
            assert workshop.faults(file, content, [command]) == [], f"{file} {name}"


@pytest.mark.nightly
def test_a_damaged_file_never_gives_another_answer(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLPROMPT_CACHE", str(workshop.root / "cache"))
    rng, found, count = random.Random(11), [], 0
    for file in workshop.files():
        for name, content in workshop.mutations(file, EACH, rng):
            count += 1
            found += [f"{file} {name}: {fault}" for fault in workshop.faults(file, content)]
    assert found == []
    assert count >= 1000


def kill(*arguments: object) -> None:
    import kill_points  # which has no use in this process

    kill_points.main(*arguments)


def killed(folder: Path, count: int, *how: str) -> list[dict[str, int]]:
    """What ``kill_points`` found in a process of its own, which never trained and so can fork ones that do."""
    out = new_processes.finish(kill, [folder, count, *how], folder / "told.txt")
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def test_a_run_that_is_killed_at_a_write_ends_with_the_same_bits_in_part(tmp_path: Path) -> None:
    told = killed(tmp_path, 1, "coop,spg,meta_train")
    assert [each["killed"] for each in told] == [1, 1, 1]
    assert all(each["after_a_checkpoint"] for each in told), "halfway through there is one"


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["coop", "spg", "meta_train"])
def test_a_run_that_is_killed_at_any_write_ends_with_the_same_bits(method: str, tmp_path: Path) -> None:
    [told] = killed(tmp_path, 0, method)
    assert told["killed"] == told["points"] > 30
    assert told["after_a_checkpoint"] > told["killed"] / 2


def test_a_run_of_several_rounds_that_is_killed_from_outside_ends_with_the_same_bits_in_part(tmp_path: Path) -> None:
    [told] = killed(tmp_path, 1, "grip", "outside")
    assert told | {"points": 0} == {"points": 0, "killed": 1, "after_a_checkpoint": 1}


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["grip", "tfup_t"])
def test_a_run_that_is_killed_from_outside_ends_with_the_same_bits(method: str, tmp_path: Path) -> None:
    [told] = killed(tmp_path, 12, method, "outside")
    assert told["killed"] == 12
    assert told["after_a_checkpoint"] >= 6
