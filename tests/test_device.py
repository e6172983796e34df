"""On a GPU every method computes what it computes on the CPU; without one, a made device tells what was left behind."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from made_device import made_device
from open_clip import SimpleTokenizer

from vlprompt import FrozenCLIP, list_methods, run
from vlprompt.base import devices
from vlprompt.learner.contexts import CONTEXTS
from vlprompt.testing import loss_of, make, small_model

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


# of each kind: the checks that a GPU is asked for, on a device that refuses what was left on the CPU
@pytest.mark.parametrize(
    "method",
    ["cocoop", "maple", "mmrlpp", "promptkd", "spg", "tip_adapter_f", "lp_plus_plus", "gda", "transclip", "tpt"],
)
def test_no_tensor_of_a_method_is_left_on_the_cpu(script: ModuleType, method: str) -> None:
    with made_device() as device:
        row = script.check_method(method, device)
    assert row.good, row


@pytest.mark.nightly
@pytest.mark.parametrize("method", list_methods())
def test_no_tensor_of_any_method_is_left_on_the_cpu(script: ModuleType, method: str) -> None:
    test_no_tensor_of_a_method_is_left_on_the_cpu(script, method)


@pytest.mark.parametrize("context", CONTEXTS.names())
def test_no_tensor_of_a_context_is_left_on_the_cpu(context: str) -> None:
    with made_device() as device:
        learner = make("ivlp", FrozenCLIP(small_model(), SimpleTokenizer(), device=device), context=context)
        learner.backward(loss_of(learner.train()))
    assert all(p.grad is not None for p in learner.trainable_parameters())


@pytest.mark.parametrize("method", ["coop", pytest.param("grip", marks=pytest.mark.nightly)])
def test_a_run_on_a_made_device_is_the_one_on_the_cpu(method: str, tmp_path: Path) -> None:
    settings = {"dataset": "digits", "limit": 40, "epochs": 2, "views": 1, "quiet": True, "threads": 1}
    settings |= {"shots": 2} if method == "coop" else {"rounds": 2, "protocol": "unsupervised"}
    with made_device() as device:
        there = run(method=method, device=str(device), output=str(tmp_path / "there"), **settings)
    here = run(method=method, device="cpu", output=str(tmp_path / "here"), **settings)
    assert [row.accuracy for row in there.rows] == [row.accuracy for row in here.rows]


def test_what_is_left_on_the_cpu_is_refused_on_a_made_device() -> None:
    with made_device() as device:
        there = torch.ones(3).to(device)
        assert (there.device, (2 * there).cpu().tolist()) == (device, [2, 2, 2])
        for mixed in (
            lambda: there + torch.ones(3),
            lambda: torch.ones(3)[there.long()],
            lambda: torch.stack([there, there.cpu()]),
        ):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                mixed()
        with pytest.raises(RuntimeError):
            there.numpy()
        with pytest.raises(TypeError, match="no float64"):
            there.double()


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
