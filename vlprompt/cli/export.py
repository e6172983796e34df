"""Export a saved learner as a classifier matrix, a torch.export program, ONNX or an OpenCLIP folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlprompt.base.reporter import make_console
from vlprompt.cli._shared import check_keys, command, load_named_learner, names_setting, parse
from vlprompt.errors import VlpromptError

USAGE = """vlprompt export learner=DIR to=matrix|torch|onnx|openclip [output=PATH] [classes=[cat,dog,…]|FILE]
         [backbone=NAME [pretrained=TAG] [checkpoint=FILE]] [--quiet]

  matrix     class features and class names as safetensors: a zero-shot head for any user of the backbone
  torch      images to logits as a torch.export program (.pt2), visual prompts included
  onnx       the same for onnxruntime; needs pip install "vlprompt[export]"
  openclip   a model folder for open_clip and a template, for a context in front of the class name

`learner` is a saved learner, the folder of a run, or hf://user/name. Its backbone is loaded by the name it was saved
with unless you give another. Every export is run once and compared with the learner."""
KEYS = ("learner", "to", "output", "classes", "backbone", "pretrained", "checkpoint")


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Export a saved learner and print where it was written."""
    arguments = parse(argv, texts=["classes"])
    settings = arguments.settings
    check_keys(settings, KEYS)
    from vlprompt.saving.export import FORMATS, SUFFIXES, check_form, export_learner, left_out
    from vlprompt.saving.folder import find_saved
    from vlprompt.saving.hub import PREFIX

    for key, what in (("learner", "learner=DIR"), ("to", f"to={'|'.join(FORMATS)}")):
        if key not in settings:
            raise VlpromptError(f"say which: vlprompt export needs {what}")
    source, to = str(settings["learner"]), str(settings["to"])
    check_form(to)
    names = names_setting(settings["classes"], "classes") if "classes" in settings else None
    learner = load_named_learner(settings, device="cpu")
    if names is not None:
        learner.set_class_names(names)
    default = Path("." if source.startswith(PREFIX) else find_saved(source)) / f"exported{SUFFIXES[to]}"
    path = export_learner(learner, to, Path(str(settings.get("output", default))).expanduser())
    if "--quiet" not in arguments.flags:
        console = make_console()
        console.print(f"{path}: {len(learner.class_names)} classes", markup=False, soft_wrap=True)
        for what in left_out(learner, to):
            console.print(f"left out: {what}", markup=False, soft_wrap=True)
    return 0
