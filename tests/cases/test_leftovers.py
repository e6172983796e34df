"""Sentences that tell a wrong start and sizes that nothing could hold, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlprompt import VlpromptError
from vlprompt.testing import make


def test_a_checkpoint_of_torchs_to_start_from_is_told_what_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "prompt_learner/model.pth.tar-50"
    file.parent.mkdir()
    torch.save({"state_dict": {"ctx": torch.zeros(4, 64)}}, file)
    for place in (file, file.parent, tmp_path):
        with pytest.raises(VlpromptError, match=r"model\.pth\.tar-50 is a torch checkpoint .* import-checkpoint"):
            make("coop", init_from=str(place))
    with pytest.raises(VlpromptError, match="no learnables at"):
        make("coop", init_from=str(tmp_path / "none"))


def test_numbers_of_tokens_are_refused_before_memory_is_asked_for() -> None:
    for count in (80, 10**9, 10**15):
        with pytest.raises(VlpromptError, match=f"^{count} learnt vectors leave no room for class names"):
            make("coop", n_ctx=count)
    with pytest.raises(VlpromptError, match=r"^1000000000 visual tokens per layer were asked for, and at most 10000"):
        make("vpt", n_ctx=10**9, depth=1)
