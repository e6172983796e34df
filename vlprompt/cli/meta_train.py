"""Meta-learn an initial prompt and a gradient-regulating function from image–text pairs, for use in later runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlprompt.base.reporter import make_console
from vlprompt.cli._shared import backbone_settings, check_keys, command, flag_setting, number_setting, parse
from vlprompt.errors import VlpromptError

USAGE = """vlprompt meta-train [pairs=NAME|captions:FOLDER|csv:FILE] [method=coop] [output=meta]
         [backbone=vlprompt-tiny] [pretrained=TAG] [checkpoint=FILE] [device=auto] [data_root=DIR]
         [epochs=20] [tasks=25] [task_size=16] [topics=8] [styles=3] [inner_lr=0.02] [lr=0.001] [rank=8]
         [seed=1] [resume=true | restart=true] [KEY=VALUE …] [--quiet]

Learns an initial prompt, and how to modify its gradients, over tasks clustered from pairs of an image and a text: a
dataset's training images with their class names, a folder of images with a NAME.txt next to each, or a table with the
columns path and caption. No labels are needed. `KEY=VALUE` are settings of the method, such as n_ctx=4. This is a
reconstruction of GRAM, whose code is not public; results of runs that start from it are marked as such. Afterwards:

  python -m vlprompt.train method=coop n_ctx=4 init_from=meta \\
      "gradient_rule=regulated(file='meta/regulator.safetensors')"
"""
BACKBONE = ("backbone", "pretrained", "checkpoint", "device")
COUNTS = ("epochs", "tasks", "task_size", "topics", "styles", "rank")
TEXTS = ("pairs", "method", "output", "data_root")


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Meta-train, and say where the start and the regulator are."""
    arguments = parse(argv)
    settings = {"backbone": "vlprompt-tiny", **arguments.settings}
    from vlprompt.clip.loading import load_clip
    from vlprompt.learner.registration import method_info
    from vlprompt.runs.meta_train import REGULATOR, MetaConfig, meta_train

    method = str(settings.get("method", "coop"))
    own = method_info(method)["config"]
    known = (*BACKBONE, *COUNTS, *TEXTS, "inner_lr", "lr", "seed", "resume", "restart")
    check_keys(settings, [*known, *own])
    options: dict[str, Any] = {key: number_setting(settings, key) for key in COUNTS if key in settings}
    options |= {key: str(settings[key]) for key in TEXTS if key in settings}
    options |= {key: _rate(settings, key) for key in ("inner_lr", "lr") if key in settings}
    if "seed" in settings:
        options["seed"] = number_setting(settings, "seed", least=0, most=2**32 - 1)
    others = {key: value for key, value in settings.items() if key not in known}
    quiet = "--quiet" in arguments.flags
    going: dict[str, Any] = {key: flag_setting(settings, key) for key in ("resume", "restart")}
    if all(going.values()):
        raise VlpromptError("resume continues what is there, and restart starts over: give one of them")
    config = MetaConfig(**options, **going, quiet=quiet, settings=others)
    clip = load_clip(*backbone_settings(settings), device=str(settings.get("device", "auto")))
    folder = meta_train(clip, config)
    if not quiet:
        message = f"{folder}: a start for method={method} (init_from={folder}) and {folder / REGULATOR}"
        make_console().print(message, markup=False, soft_wrap=True)
    return 0


def _rate(settings: dict[str, Any], key: str) -> float:
    """A learning rate."""
    value = settings[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise VlpromptError(f"{key} must be a number above 0, not {value!r:.60}")
    return float(value)
