"""Turn a checkpoint of a method's published repository into a saved learner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets_registry.catalog import load_split
from vlprompt.base.reporter import make_console
from vlprompt.base.static_inspection import fields_of, registered
from vlprompt.cli._shared import backbone_settings, check_keys, command, names_setting, parse
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.errors import VlpromptError

USAGE = """vlprompt import-checkpoint FILE method=NAME backbone=NAME output=DIR
         (classes=[cat,dog,…]|FILE | dataset=NAME [data_root=DIR] [half=all|base|new])
         [pretrained=TAG] [checkpoint=FILE] [device=auto] [license=…] [KEY=VALUE …] [--quiet]

Reads a checkpoint saved by a method's published repository, such as prompt_learner/model.pth.tar-50, and saves it as a
learner. The file may also contain an optimizer, a scheduler and the like; no code in it is executed. The numbers of
tokens and layers, and a second head, are read from the file. `KEY=VALUE` gives settings of the method that the file
does not contain, such as class_token_position=middle or attributes=[color,shape]. Most published checkpoints need
backbone=ViT-B-16 pretrained=openai."""
KEYS = (
    "method",
    "backbone",
    "pretrained",
    "checkpoint",
    "classes",
    "dataset",
    "data_root",
    "half",
    "output",
    "license",
    "device",
)


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Import a checkpoint and save the learner."""
    arguments = parse(argv, words=1, texts=["classes"])
    if not arguments.words:
        raise VlpromptError("say which file: vlprompt import-checkpoint FILE method=… backbone=… output=DIR")
    settings = dict(arguments.settings)
    for key in ("method", "backbone", "output"):
        if key not in settings:
            raise VlpromptError(f"{key}= is missing: vlprompt import-checkpoint FILE method=… backbone=… output=DIR")
    method = str(settings["method"])
    shipped = registered("vlprompt.methods").get(method)
    known = fields_of(shipped) if shipped else None
    if known is not None:
        check_keys(settings, [*KEYS, *known])
    from vlprompt.clip.loading import load_clip
    from vlprompt.learner.registration import method_info
    from vlprompt.saving.published import import_checkpoint

    check_keys(settings, [*KEYS, *method_info(method)["config"]])
    names, templates = _classes(settings)
    clip = load_clip(*backbone_settings(settings), device=str(settings.get("device", "auto")))
    own = {key: value for key, value in settings.items() if key not in KEYS}
    file = Path(arguments.words[0]).expanduser()
    learner = import_checkpoint(file, method, clip, names, templates=templates, **own)
    facts = {key: settings[key] for key in ("dataset", "license") if key in settings}
    folder = learner.save_pretrained(Path(str(settings["output"])).expanduser(), extra=facts | {"source": file.name})
    if "--quiet" not in arguments.flags:
        count = sum(p.numel() for p in learner.parameters())
        message = f"{folder}: {method} on {clip.name}, {count:,} learnt numbers, {len(names)} classes"
        make_console().print(message, markup=False, soft_wrap=True)
    return 0


def _classes(settings: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    """Class names and templates: as given, or a dataset's."""
    if ("classes" in settings) == ("dataset" in settings):
        raise VlpromptError("say which classes to score: either classes=[cat,dog] or dataset=NAME")
    if "dataset" in settings:
        half = settings.get("half", "all")
        if half not in ("all", "base", "new"):
            raise VlpromptError(f"half must be all, base or new, not '{half}'")
        splits = load_split(str(settings["dataset"]), settings.get("data_root")).select(half)
        return splits.class_names, splits.templates
    return names_setting(settings["classes"], "classes"), (DEFAULT_TEMPLATE,)
