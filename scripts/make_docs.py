"""Write docs/methods/ from the registry, the methods' own docstrings, the recipes and the published figures, the
commands and the public surface in docs/reference/ from the package itself, and vlprompt/typed.pyi from all settings.

python scripts/make_docs.py [--check]
"""

from __future__ import annotations

import inspect
import json
import statistics
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import typed_settings
from omegaconf import OmegaConf

import vlprompt
from vlprompt import create_learner, list_methods, load_clip, method_info
from vlprompt.cli.__main__ import commands, module, usage
from vlprompt.clip import FrozenCLIP
from vlprompt.errors import VlpromptError
from vlprompt.learner import METHODS, PromptLearner
from vlprompt.learner.constraints import CONSTRAINTS
from vlprompt.learner.contexts import CONTEXTS
from vlprompt.learner.editing import EDITS
from vlprompt.learner.facts import FIDELITIES, NOTES, RECONSTRUCTION, Predicts, marked
from vlprompt.learner.gradients import GRADIENT_RULES
from vlprompt.runs.settings import describe_keys, documented, resolve
from vlprompt.training.recipes import load_recipe
from vlprompt.training.shipped_recipes import list_recipes

ROOT = Path(__file__).resolve().parents[1]
FIT = "vlprompt bench heads classes=100 output=docs/methods/fit_seconds.json"
LEARNS_FROM = {
    "needed": "labelled images",
    "some": "labelled images and a pool",
    "any": "a pool, and labelled images if any",
    "none": "no labels",
}
MADE = "<!-- made by scripts/make_docs.py: do not edit -->"
BY_HAND = "<!-- from here on by hand -->"  # in a method's page: what is below it is not generated
REFERENCE = ROOT / "docs" / "reference"
TRAIN_USAGE = "python -m vlprompt.train key=value … [--quiet] [--help] [--version]"
COMMANDS = """\
`vlprompt` is installed with the package; `python -m vlprompt.cli` is the same, and `python -m vlprompt.train` is
`vlprompt train`. Values are YAML: `shots=4`, `methods=[coop,maple]`, `'ctx_init=a photo of a'`.

For every command, `--shots 4` and `--shots=4` are the same as `shots=4`, and `--text-chunk` is `text_chunk`. A `--key`
without a value, such as `--resume`, means true. Write a value that starts with a dash without being a number, or that
itself looks like `key=value`, with an equals sign: `--name=-x`. Everything after `--` is taken as a plain argument, for
instance a file whose name starts with a dash.

If a run was interrupted, the same command does not touch what it left: add `resume=true` to continue, or `restart=true`
to discard it and start over.

Every command takes `--help`, `--quiet` and `plugin=MODULE` (see [your own method](../howto/own_method.md)). The exit
status is 0 on success, 1 if a check or a run failed or an input could not be used, 2 with a one-sentence message for
wrong usage, and 130 after an interruption. Progress is shown as a bar on a terminal, and as a few lines otherwise.

| variable | meaning |
| --- | --- |
| `VLPROMPT_CACHE` | folder of cached image features; default `~/.cache/vlprompt` |
| `VLPROMPT_PLUGINS` | modules and files to import first, as `plugin=` does, separated by colons |
| `HF_HUB_OFFLINE` | 1 prevents the Hugging Face Hub client from using the network |
"""
SURFACE = {
    "Models and learners": ["load_clip", "FrozenCLIP", "create_learner", "PromptLearner", "register"],
    "What is available": ["list_methods", "method_info", "list_datasets", "list_protocols", "list_backbones"],
    "Data": ["load_split", "load_folder", "few_shot_indices"],
    "Train and score": ["run", "evaluate_learner", "PromptClassifier", "predict_images", "image_features"],
    "Results": ["load_results"],
    "Load, export, import": ["load_learner", "export_learner", "import_checkpoint"],
    "Other": ["show_versions", "VlpromptError"],
}


@cache
def published(name: str) -> dict:
    """The published figures of a protocol."""
    return OmegaConf.to_container(OmegaConf.load(ROOT / "vlprompt" / "published" / f"{name}.yaml"))


def parameters(method: str, clip: FrozenCLIP) -> str:
    """The number of learnable values with the method's default settings."""
    learner = create_learner(method, clip, ["cat", "dog"])
    return f"{sum(p.numel() for p in learner.trainable_parameters()):,}"


def figures(method: str) -> list[str]:
    """A table with the published figures of a method, as lines."""
    lines = [*base_new_figures(method), *few_shot_figures(method), *target_figures(method)]
    if not lines:
        return ["None that could be verified."]
    return ["| protocol | figure (%) | source | conditions |", "| --- | --- | --- | --- |", *lines]


def base_new_figures(method: str) -> Iterator[str]:
    """One line per published row of base-to-new."""
    for row in published("base_to_new")["rows"]:
        if row["method"] == method:
            datasets = f"{row['datasets']} datasets" if "datasets" in row else None
            note = "; ".join(filter(None, [row.get("variant"), datasets, row.get("average")]))
            yield (
                f"| base-to-new | {row['base']:.2f} / {row['new']:.2f} / {row['harmonic_mean']:.2f} | "
                f"{row['source']} ({row['evidence']}) | {note} |"
            )


def few_shot_figures(method: str) -> Iterator[str]:
    """One line per published row of few-shot learning."""
    table = published("few_shot")
    for row in table["rows"]:
        if row["method"] == method:
            by_shots = zip(table["shots"], row["accuracy"], strict=True)
            each = ", ".join(f"{k} shot{'s' if k != 1 else ''} {v:.2f}" for k, v in by_shots if v is not None)
            note = "; ".join(filter(None, [table["conditions"]["backbone"], row.get("variant")]))
            yield f"| few-shot | {each} | {row['source']} ({row['evidence']}) | {note} |"


def target_figures(method: str) -> Iterator[str]:
    """One line per published row of cross-dataset transfer and domain generalization."""
    for protocol, title in (("cross_dataset", "cross-dataset"), ("domain_generalization", "domain generalization")):
        table = published(protocol)
        for row in table["rows"]:
            if row["method"] == method:
                each = ", ".join(f"{t} {v:.2f}" for t, v in zip(table["targets"], row.get("targets", ()), strict=False))
                average = row.get("average") or statistics.fmean(row["targets"])
                source = row.get("source", "authors' README")
                yield f"| {title} | average {average:.2f} | {source} ({row['evidence']}) | {each} |"


def recipe_table(method: str) -> list[str]:
    """What each shipped recipe sets."""
    lines = []
    for name in list_recipes():
        if name.startswith(f"{method}/"):
            recipe = load_recipe(*name.split("/"))
            settings = ", ".join(f"`{key}={value}`" for key, value in recipe.values.items())
            varies = "; by " + ", ".join(recipe.by) if recipe.by else ""
            lines += [f"| [{name}](../../configs/{name}.yaml) | {settings}{varies} | {recipe.source} |"]
    return ["| recipe | settings | source |", "| --- | --- | --- |", *lines]


def predicted(predicts: Predicts) -> str:
    """A sentence on predictions that depend on other test images; empty for other methods."""
    return f" Results are marked {NOTES[predicts]}." if NOTES[predicts] else ""


def held_to(fidelity: str) -> str:
    """A sentence on what a method was checked against."""
    return f"Fidelity: {RECONSTRUCTION if fidelity == 'reconstruction' else FIDELITIES[fidelity]}."


def by_hand(path: Path) -> str:
    """What is written below the mark on a page, such as figures of our own runs; empty if there is nothing."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return "".join(text.partition(BY_HAND)[1:])


def page(method: str, count: str) -> str:
    """A method's page."""
    cls, info = METHODS.get(method), method_info(method)
    about = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    able = {True: "yes", False: "no"}
    return "\n".join(
        [
            MADE,
            f"# {method}",
            "",
            about,
            "",
            f"Paper: {info['paper']}. Trained parameters on ViT-B/16 with default settings: {count}. Can score new "
            f"class names: {able[info['new_classes']]}. Image features can be cached: {able[info['cacheable_images']]}."
            f"{predicted(info['predicts'])} {held_to(info['fidelity'])}",
            "",
            "```bash",
            f"python -m vlprompt.train method={method}",
            "```",
            "",
            "## Settings",
            "",
            "Besides the [settings of every method](README.md#settings-of-every-method):",
            "",
            *method_settings(method),
            "",
            "## Recipes",
            "",
            *recipe_table(method),
            "",
            "## Published figures",
            "",
            *figures(method),
            "",
        ]
    )


def meanings(config: type) -> dict[str, str]:
    """What each setting of a ``Config`` means, from its docstring and those of the classes it extends."""
    described = {}
    for cls in reversed(config.__mro__):
        described |= documented(cls)
    return described


def settings_table(values: dict[str, object], meaning: dict[str, str]) -> list[str]:
    """A table of settings."""
    lines = [f"| `{key}` | `{value}` | {meaning[key]} |" for key, value in values.items()]
    return ["| key | default | meaning |", "| --- | --- | --- |", *lines]


def method_settings(method: str) -> list[str]:
    """The settings that a method adds to those of every method, or has with another default."""
    shared, own = asdict(PromptLearner.Config()), method_info(method)["config"]
    differing = {key: value for key, value in own.items() if key not in shared or value != shared[key]}
    return settings_table(differing, meanings(METHODS.get(method).Config)) if differing else ["None."]


def overview(counts: dict[str, str]) -> str:
    """The table of all methods."""
    best = {row["method"]: row for row in reversed(published("base_to_new")["rows"])}
    lines, file = [], ROOT / "docs" / "methods" / "fit_seconds.json"
    seconds = json.loads(file.read_text(encoding="utf-8"))["heads"] if file.exists() else {}
    for method, count in counts.items():
        info = method_info(method)
        row = best.get(method)
        figure = f"{row['base']:.2f} / {row['new']:.2f} / {row['harmonic_mean']:.2f}" if row else ""
        trains = " + ".join(info["trains"]) or "nothing"
        learns = LEARNS_FROM[info["labels"]]
        scores = "any classes" if info["new_classes"] else "its training classes"
        measured = seconds.get(method, {})
        cost = f"{measured['whole_cpu_s']:.1f}" if "whole_cpu_s" in measured else ""
        link = marked(f"[{method}]({method}.md)", info["predicts"])
        about = f"{info['summary']} | {learns} | {trains} | {scores}"
        held = FIDELITIES[info["fidelity"]]
        lines.append(f"| {link} | {about} | {count} | {cost} | {held} | {figure} |")
    titles = ["method", "", "learns from", "trains", "can score", "learnt numbers", "fit (s)", "fidelity"]
    head = f"| {' | '.join(titles)} | published base / new / H (%) |"
    rule = "| --- | --- | --- | --- | --- | ---: | ---: | --- | --- |"
    note = (
        "With default settings; a protocol's recipe may change them (gda scores new classes in base-to-new). Learnt "
        "numbers: trained parameters on ViT-B/16. Fit: CPU seconds, summed over threads, to fit a head on features of "
        f"ViT-B/16's width, 100 classes, 16 shots (`{FIT}`). Fidelity, what the implementation was verified against: "
        "numbers computed by the authors' code, for the whole method or the part that is specific to it; invariants "
        "only; or, for a reconstruction, the paper of a method whose code is not public. The conditions of published "
        "figures are on each method's page."
    )
    shared = settings_table(asdict(PromptLearner.Config()), meanings(PromptLearner.Config))
    every = ["## Settings of every method", "", "Modules named here are in `vlprompt.learner`.", "", *shared]
    return "\n".join([MADE, "# Methods", "", head, rule, *lines, "", note, "", *parts_table(), "", *every, ""])


def parts_table() -> list[str]:
    """Lines on what the literature has and any design can take, by setting."""
    lines = []
    of = {"context": CONTEXTS, "after_step": CONSTRAINTS, "edits": EDITS, "gradient_rule": GRADIENT_RULES}
    for setting, registry in of.items():
        for name in registry.order():
            entry = registry.info(name)
            if "fidelity" in entry.facts:
                paper, held = entry.facts["paper"], FIDELITIES[entry.facts["fidelity"]]
                about = entry.summary.partition("; see")[0].rstrip(".") + "."
                lines.append(f"| `{setting}={name}` | {about} | {paper} | {held} |")
    several = "More names of classes, averaged or the best of them."
    lines.append(f"| `names` | {several} | after SciPrompt, arXiv:2410.01946 | {FIDELITIES['invariants']} |")
    head = "| setting |  | from | fidelity |"
    about = "Settings that work with every prompt design that has what they change ([combine](../howto/combine.md))."
    return ["## Parts of methods", "", about, "", head, "| --- | --- | --- | --- |", *lines]


def command_page() -> str:
    """The page of the commands: what ``--help`` prints, and the settings of a run."""
    parts = [MADE, "# Commands", "", "```text", usage(), "```", "", COMMANDS]
    for name in commands():
        about = (module(name).__doc__ or "").strip().splitlines()[0]
        shown = TRAIN_USAGE if name == "train" else module(name).USAGE
        parts += [f"## vlprompt {name}", "", about, "", "```text", shown, "```", ""]
        parts += [*setting_table(), ""] if name == "train" else []
    return "\n".join(parts)


def setting_table() -> list[str]:
    """Lines of a table with every setting of a run but its method's own."""
    resolved = resolve()
    own = resolved.method_settings
    lines = []
    for key, default, meaning in describe_keys(resolved):
        if key not in own:
            shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
            lines.append(f"| `{key}` | `{shown}` | {meaning} |")
    note = [
        f"Defaults are those of `{resolved.recipe.name}`, the default recipe. A method's own settings are on",
        "[its page](../methods/README.md); `--help method=NAME protocol=NAME` prints all of them.",
    ]
    return ["| key | default | meaning |", "| --- | --- | --- |", *lines, "", *note]


def surface_page() -> str:
    """The page of the names in ``vlprompt`` itself, each with the first sentence of its docstring."""
    parts = [MADE, "# Public surface", "", "The names in `vlprompt` itself; `vlprompt.__version__` is the version.", ""]
    for heading, names in SURFACE.items():
        lines = []
        for name in names:
            about = inspect.getdoc(getattr(vlprompt, name)).split("\n\n")[0].replace("\n", " ").replace("``", "`")
            lines.append(f"| [`{name}`][vlprompt.{name}] | {about} |")
        parts += [f"## {heading}", "", "| name | |", "| --- | --- |", *lines, ""]
    return "\n".join(parts)


def pages() -> dict[Path, str]:
    """The path and text of every page and of the stub."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip = load_clip("ViT-B-16", pretrained="random", device="cpu")
    counts = {}
    for method in list_methods():
        try:
            counts[method] = parameters(method, clip)
        except VlpromptError as error:
            counts[method] = str(error)
    folder = ROOT / "docs" / "methods"
    methods = {folder / f"{m}.md": page(m, c) for m, c in counts.items()}
    methods = {folder / "README.md": overview(counts)} | {p: text + by_hand(p) for p, text in methods.items()}
    made = {REFERENCE / "commands.md": command_page(), REFERENCE / "start.md": surface_page()}
    return methods | made | {ROOT / "vlprompt" / "typed.pyi": typed_settings.stub()}


def main() -> int:
    """Write the pages; with --check, print those that are out of date instead."""
    stale = [p for p, text in pages().items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"out of date: {path.relative_to(ROOT)}; run python scripts/make_docs.py", file=sys.stderr)
        return bool(stale)
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
