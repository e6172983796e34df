"""What several test files share: the small CLIP, real data where it is present, and a quiet machine.

Nothing here imports torch before a test does: the process that shares the suite among others runs none of them.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vlprompt import FrozenCLIP

SHARED = Path(__file__).resolve().parents[2] / "shared"
WORKERS = 2  # processes that share the whole suite, where the machine has two cores
LONG = ("test_notebooks", "test_cli", "test_sweep", "test_site", "test_mutations", "test_saving")  # files of long tests


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share the whole suite among processes, unless the command line says how; single files stay in this one."""
    if hasattr(config, "workerinput") or "PYTEST_XDIST_WORKER" in os.environ:
        return  # one of those processes
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole and config.pluginmanager.hasplugin("xdist") and config.option.numprocesses is None:
        config.option.numprocesses = min(WORKERS, os.cpu_count() or 1)
        config.option.dist = "worksteal"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with long tests: a process that ends early takes from what another has left, and waits for nothing."""
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_collection_finish() -> None:
    """Take one thread, and spare later collections of garbage a look at what is there: modules and thousands of tests.

    Small tensors gain nothing from more threads, and lose much on a busy machine.
    """
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data, beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data: {SHARED} is absent")
    return SHARED


@pytest.fixture(autouse=True)
def caches_in_tmp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep feature banks of tests out of the user's cache."""
    monkeypatch.setenv("VLPROMPT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def golden_clip() -> FrozenCLIP:
    """The CLIP of the golden fixtures, fp32 on the CPU."""
    from golden_files import read_clip

    return read_clip()


@pytest.fixture(scope="session")
def vit_b_16() -> FrozenCLIP:
    """ViT-B/16 of zeros, which take less time than drawn weights: for what depends on its sizes alone."""
    import open_clip
    import torch

    from vlprompt import FrozenCLIP
    from vlprompt.clip.tiny import Undrawn

    with Undrawn(), torch.no_grad():
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"))
        for parameter in model.parameters():
            parameter.zero_()
    return FrozenCLIP(model, open_clip.SimpleTokenizer(), name="ViT-B-16", device="cpu")
