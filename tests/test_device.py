"""On a GPU every method computes what it computes on the CPU; without one, the script that checks it works at least."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vlprompt import list_methods
from vlprompt.base import devices

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "check_device.py"
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_device", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@gpu
@pytest.mark.parametrize("method", list_methods())
def test_a_method_computes_on_a_gpu_what_it_computes_on_the_cpu(script: ModuleType, method: str) -> None:
    row = script.check_method(method, torch.device("cuda"))
    assert row.good, row


@gpu
def test_a_killed_run_on_a_gpu_goes_on(script: ModuleType, tmp_path: Path) -> None:
    assert script.check_resumed_run("cuda", tmp_path) <= script.TOLERANCE


# of each kind: both towers, a head that is fitted, test time with views, online, masked images
@pytest.mark.parametrize("method", ["maple", "gda", "tpt", "tda", "mask_prompt"])
def test_the_checks_pass_on_the_cpu(script: ModuleType, method: str) -> None:
    row = script.check_method(method, torch.device("cpu"))
    assert row.good, row
    assert (row.logits, row.bf16, row.fp16) == (0, "finite", "needs CUDA")


def test_what_is_off_is_told(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "check_resumed_run", lambda device, folder: 0.0)
    monkeypatch.setattr(script, "parity", lambda method, device: (2e-3, None))
    file = tmp_path / "table.json"
    assert script.main(["device=cpu", "methods=coop", f"output={file}"]) == 1
    assert "2.0e-03" in capsys.readouterr().out
    assert json.loads(file.read_text())["rows"][0]["logits"] == 2e-3
    assert not script.Row("coop", bf16="not finite: logits").good
    assert script.main(["device=tpu"]) == 2
    assert "device 'tpu' is not available here" in capsys.readouterr().err
    assert script.main(["device=cpu", "methods=mapel"]) == 2
    assert "did you mean maple?" in capsys.readouterr().err


def test_bf16_that_is_slower_than_fp32_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "bf16_rate", lambda: 0.5)
    with pytest.warns(UserWarning, match=r"saves memory but no time here: this processor .* at 0.5 times its speed"):
        devices.tell_slow_bf16(torch.device("cpu"))
    monkeypatch.setattr(devices, "bf16_rate", lambda: 1.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        devices.tell_slow_bf16(torch.device("cpu"))
    monkeypatch.undo()
    assert devices.bf16_rate() > 0
