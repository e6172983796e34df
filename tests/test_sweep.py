"""Sweeps: the matrix, what is kept and what is done again, several processes, and sudden deaths."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import new_processes
import pytest
from filelock import FileLock
from made_results import find_cell, make_result

import vlprompt.runs.sweep
from vlprompt import VlpromptError, run
from vlprompt.cli.__main__ import main
from vlprompt.cli._closing import closing_table
from vlprompt.data import load_split, register_dataset
from vlprompt.evaluation.results import find_results, harmonic_mean
from vlprompt.evaluation.statistics import ONE_SEED, SPREAD
from vlprompt.report import make_report
from vlprompt.runs.executors import in_processes
from vlprompt.runs.sweep import expand, perform, sweep

SMALL = {"dataset": "digits", "shots": 1, "epochs": 1, "views": 1, "limit": 10, "device": "cpu"}


def small(folder: Path, **changes: object) -> dict:
    return SMALL | {"output": str(folder), "methods": ["coop", "zero_shot"], "seeds": [1, 2]} | changes


def statuses(outcomes: list) -> list[str]:
    return sorted(outcome.status for outcome in outcomes)


def test_a_matrix_has_every_combination_once_and_neighbours_share_their_data() -> None:
    matrix = expand({"methods": ["coop", "maple"], "datasets": ["emoji", "digits"], "shots": [1, 2, 1]})
    runs = [(t.resolved.config.dataset, t.resolved.config.shots, t.resolved.config.seed) for t in matrix.tasks]
    assert len(runs) == len({t.resolved.id for t in matrix.tasks}) == 2 * 2 * 2 * 3
    assert runs == sorted(runs, key=lambda r: (["emoji", "digits"].index(r[0]), r[1], r[2]))
    mini = expand({"methods": "coop", "datasets": "mini11", "seeds": 1})
    assert len(mini.tasks) == 11


def test_what_makes_no_sense_is_refused_before_anything_runs() -> None:
    matrix = expand(
        {"method": "coop", "datasets": ["glyphs/symbols", "digits"], "protocol": "cross_dataset", "seed": 1}
    )
    assert [t.resolved.config.dataset for t in matrix.tasks] == ["glyphs/symbols"]
    [(label, sentence)] = matrix.refused
    assert "digits" in label
    assert "say what to test on after digits" in sentence


def test_some_of_the_runs_have_settings_of_their_own() -> None:
    by = {"method": {"maple": {"epochs": 2}}, "shots": {1: {"lr": 0.1}}}
    matrix = expand({"methods": ["coop", "maple"], "datasets": "digits", "shots": [1, 2], "seeds": 1, "by": by})
    found = {(t.resolved.config.method, t.resolved.config.shots): t.resolved.config for t in matrix.tasks}
    assert {key for key, config in found.items() if config.epochs == 2} == {("maple", 1), ("maple", 2)}
    assert {key for key, config in found.items() if config.lr == 0.1} == {("coop", 1), ("maple", 1)}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"by": {"methods": {"coop": {"lr": 0.1}}}}, "unknown key 'methods' below by: did you mean method"),
        ({"by": {"method": {"coop": {"shots": 1}}}}, "by sets shots, which the sweep already varies"),
        ({"by": {"method": {"coop": 1}}}, "by must have the form"),
        ({"methods": ["coop", "mapel"]}, "unknown method 'mapel': did you mean maple"),
        ({"methods": []}, "methods is empty"),
        ({"methods": ["coop"], "datasets": ["digits", "emojy"]}, "unknown dataset 'emojy': did you mean emoji"),
        ({"methods": ["coop"], "method": "maple"}, r"say methods=\[…\] or method=…, not both"),
        ({"methods": ["coop"], "name": "x"}, "leave name out"),
        ({"methods": ["coop"], "lr": -1}, "lr must be above 0"),
    ],
)
def test_a_mistake_in_a_sweep_is_one_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(VlpromptError, match=sentence):
        expand(settings)


def test_datasets_in_hand_and_joined_ones_can_be_swept() -> None:
    mine = register_dataset(replace(load_split("digits"), name="of-my-own"))
    assert len(expand({"method": "coop", "datasets": [mine, "folder:somewhere"], "seed": 1}).tasks) == 2
    assert len(expand({"method": "coop", "datasets": "digits+emoji", "protocol": "multitask", "seed": 1}).tasks) == 1


def test_results_are_those_of_single_runs_and_are_kept(tmp_path: Path) -> None:
    outcomes = sweep(small(tmp_path / "sweep"))
    assert statuses(outcomes) == ["done"] * 4
    found = {(r.method, r.seed): r for _, r in find_results([tmp_path / "sweep"])}
    for method, seed in found:
        alone = run(**SMALL, method=method, seed=seed, output=str(tmp_path / "alone"), quiet=True)
        assert (alone.rows, alone.id) == (found[method, seed].rows, found[method, seed].id)
    before = {path: path.stat().st_mtime_ns for path, _ in find_results([tmp_path / "sweep"])}
    again = sweep(small(tmp_path / "sweep", seeds=[1, 2, 3]))
    assert statuses(again) == ["done"] * 2 + ["kept"] * 4
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_failures_are_kept_listed_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = vlprompt.runs.sweep.execute

    def broken(resolved: object, **options: object) -> object:
        if resolved.config.method == "coop":
            raise ValueError("out of luck")
        return original(resolved, **options)

    monkeypatch.setattr(vlprompt.runs.sweep, "execute", broken)
    argv = ["sweep", *(f"{key}={value}" for key, value in SMALL.items()), f"output={tmp_path}", "seed=1"]
    argv += ["methods=[coop,zero_shot]"]
    assert main(argv) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "1 done, 1 failed" in text
    assert "failed coop · digits · base_to_new · 1 shot · seed 1: ValueError: out of luck (see" in text
    [failed] = tmp_path.rglob("failed.json")
    assert json.loads(failed.read_text())["error"] == "ValueError: out of luck"
    assert "Traceback" in failed.with_name("failed.log").read_text()
    monkeypatch.undo()
    assert main(argv) == 0
    assert not list(tmp_path.rglob("failed.*"))


def test_the_closing_table_has_the_reports_rules(tmp_path: Path) -> None:
    matrix = expand(small(tmp_path, seeds=[1, 2, 3]))
    for task in matrix.tasks:
        seed, method = task.settings["seed"], task.settings["method"]
        if (method, seed) != ("coop", 3):
            learnt = {"base": 90.0 - 40 * (seed - 1), "new": 20.0 + 50 * (seed - 1)}
            made = make_result(learnt if method == "coop" else {"base": 40.0, "new": 60.0}, method=method, seed=seed)
            replace(made, id=task.resolved.id).write(task.resolved.folder / "result.json")
    table = closing_table(matrix)
    [section], [column] = table.sections, table.columns
    coop, zero_shot = (line.cells[0] for line in section.lines)
    assert [line.label for line in section.lines] == ["coop, vlprompt-tiny", "zero_shot, vlprompt-tiny"]
    assert coop.value == harmonic_mean(70, 45)  # of the averages, and not the mean of the seeds' own
    assert coop.value == find_cell(make_report([tmp_path]).tables[0], "coop", "harmonic mean").value
    assert 0 < coop.interval[0] < coop.value < coop.interval[1] < 100
    assert coop.missing.endswith("base: no seed 3; digits 1-shot base_to_new, new: no seed 3")
    assert (zero_shot.value, zero_shot.std, zero_shot.seeds) == (48.0, None, ())
    assert "base_to_new: harmonic mean of the two tests, each averaged over seeds first" in table.caption
    assert SPREAD in table.caption
    assert column.heading == "digits 1-shot base_to_new"


def test_the_closing_table_says_what_a_start_has_seen(tmp_path: Path) -> None:
    [task] = (matrix := expand(small(tmp_path, methods="coop", seeds=1))).tasks
    made = make_result({"base": 90.0, "new": 20.0}, method="coop", seed=1)
    start = {"datasets": ["emoji"], "sha256": ""}
    replace(made, id=task.resolved.id, start=start).write(task.resolved.folder / "result.json")
    [line] = closing_table(matrix).sections[0].lines
    assert line.label == "coop (start saw emoji), vlprompt-tiny"


def test_of_one_target_the_closing_table_leaves_the_source_out(tmp_path: Path) -> None:
    settings = {"method": "coop", "dataset": "glyphs/symbols", "protocol": "cross_dataset", "targets": ["digits"]}
    matrix = expand(settings | {"seed": 1, "output": str(tmp_path)})
    [task] = matrix.tasks
    made = make_result({"source": 90.0, "digits": 30.0}, protocol="cross_dataset", dataset="glyphs/symbols")
    replace(made, id=task.resolved.id).write(task.resolved.folder / "result.json")
    table = closing_table(matrix)
    cell = table.sections[0].lines[0].cells[0]
    assert (cell.value, cell.std, cell.interval) == (30.0, None, None)
    assert table.caption.endswith(ONE_SEED)


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    [task] = expand(small(tmp_path, methods="coop", seeds=1)).tasks
    folder = task.resolved.folder
    folder.parent.mkdir(parents=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        assert perform(task).status == "elsewhere"
    assert perform(task).status == "done"


def test_the_plan_shows_runs_and_does_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "sweep.yaml"
    (tmp_path / "planned.py").write_text("import os\nos.environ['PLANNED'] = 'yes'\n")
    monkeypatch.setenv("PLANNED", "no")
    monkeypatch.setenv("VLPROMPT_PLUGINS", "")
    plugin = f"plugin: {tmp_path / 'planned.py'}\n"
    spec.write_text("methods: [coop, maple]\ndatasets: [digits]\nseeds: [1, 2]\n" + plugin)
    assert main(["sweep", f"spec={spec}", f"output={tmp_path / 'runs'}", "plan=true"]) == 0
    assert capsys.readouterr().out.count("│ open") == 4
    assert os.environ["PLANNED"] == "yes"  # the plugin that the file names is imported
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["executor=slurm"], "unknown executor 'slurm'"),
        (["executor=processes"], "say how many: executor=processes processes=2"),
        (["processes=2"], "processes is a setting of executor=processes, and the executor is local"),
        (["spec=nowhere.yaml"], "no such file: nowhere.yaml"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "methods=[coop]", *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.nightly  # the next test has two processes as well, and what they leave
def test_two_processes_share_the_runs(tmp_path: Path) -> None:
    outcomes = sweep(small(tmp_path), in_processes(2))
    assert statuses(outcomes) == ["done"] * 4
    assert len(find_results([tmp_path])) == 4


def in_a_group(argv: list[str]) -> int:
    """Do a command whose processes can be told from others."""
    os.setsid()
    return main(argv)


def test_a_sweep_that_is_killed_again_and_again_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(tmp_path / "runs", epochs=3, checkpoint_seconds=0)
    argv = ["sweep", *(_word(k, v) for k, v in settings.items())]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done: dict[Path, int] = {}

    def found() -> set[Path]:
        return {*(tmp_path / "runs").rglob("result.json")}

    def look() -> None:
        for path in found():
            assert done.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns

    def begun() -> bool:
        return any((tmp_path / "runs").rglob("train.jsonl"))

    for processes, reached in ((1, begun), (2, lambda: found() - done.keys())):
        command, told = [*argv, "executor=processes", f"processes={processes}"], tmp_path / "told.txt"
        process = new_processes.start(in_a_group, [command], Path(os.devnull), told)
        deadline = time.monotonic() + 600  # of a machine that is busy with other tests
        while not reached() and time.monotonic() < deadline:
            assert process.is_alive(), f"the sweep ended before it could be killed: {told.read_text()}"
            time.sleep(0.01)
        process.kill()
        process.join()
        assert gone(process.pid), "workers outlive the sweep"
        look()
    assert {outcome.status for outcome in sweep(settings, in_processes(1))} == {"done", "kept"}
    look()
    results = [result for _, result in find_results([tmp_path / "runs"])]
    assert sorted((r.method, r.seed) for r in results) == [(m, s) for m in ("coop", "zero_shot") for s in (1, 2)]
    alone = run(**SMALL | {"epochs": 3}, method="coop", seed=1, output=str(tmp_path / "alone"), quiet=True)
    assert alone.rows == next(r.rows for r in results if (r.method, r.seed) == ("coop", 1))


def gone(group: int, seconds: float = 60) -> bool:
    """Whether the last process of a group ends in time."""
    for _ in range(int(seconds * 10)):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def _word(key: str, value: object) -> str:
    return f"{key}=[{','.join(map(str, value))}]" if isinstance(value, list) else f"{key}={value}"
