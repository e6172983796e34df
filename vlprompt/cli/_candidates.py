"""How a command line may be completed in a shell, read from source files so that TAB answers at once.

Keys and their values come from the usage of the commands, the settings of a run and the method that the line names.
Names are found in the files that register them, without importing these. Plugins are left out, since they would have to
be imported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

PLACE = Path(__file__).resolve().parents[2]
COMMANDS = Path(__file__).parent
FLAGS = ("--help", "--quiet")
USAGE = re.compile(r'^USAGE = (?:"""(.*?)"""|"(.*?)"$)', re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"(?<![\w.'\"])([a-z]\w*)=([^\s\[\]()]*)")
BOTH = ("true", "false")
PLAIN = re.compile(r"[a-z][\w.-]*")
# settings whose value is a registered part: the file and the registry that it is in
PARTS = {
    "after_step": ("learner/constraints", "CONSTRAINTS"),
    "aggregator": ("learner/aggregation", "AGGREGATORS"),
    "context": ("learner/contexts", "CONTEXTS"),
    "edits": ("learner/editing", "EDITS"),
    "ensemble": ("learner/ensembling", "ENSEMBLES"),
    "gradient_rule": ("learner/gradients", "GRADIENT_RULES"),
    "head": ("learner/fusion", "HEADS"),
    "labeler": ("learner/labelers", "LABELERS"),
    "logger": ("runs/loggers", "LOGGERS"),
    "objective": ("learner/objectives", "OBJECTIVES"),
    "optimizer": ("training/optimizers", "OPTIMIZERS"),
    "schedule": ("training/schedules", "SCHEDULES"),
}
FIXED = {
    "device": ("auto", "cpu", "cuda", "mps"),
    "precision": ("fp32", "bf16", "fp16"),
    "selection": ("fixed", "fewshot_val", "paper"),
    "shots": ("1", "2", "4", "8", "16", "all"),
    "split": ("published", "generated"),
}
Values = dict[str, tuple[str, ...]]  # what each key takes, if that is a list


def answer(line: Sequence[str]) -> int:
    """Print the completions of a command line's last word, one per line; none if it is the name of a file."""
    try:
        print("\n".join(candidates(line)))
    except Exception:  # no traceback in the middle of the line that is being typed
        return 1
    return 0


def candidates(line: Sequence[str]) -> list[str]:
    """Return the words that complete the last word of a command line.

    Args:
        line: the words after ``vlprompt``; the last is being typed, and may be empty.

    >>> candidates(["train", "method=kgc"])
    ['method=kgcoop']
    """
    *before, word = line or [""]
    if not before:
        words: Iterable[str] = (*command_names(), "--help", "--version")
    else:
        words = _of_command(before, word)
    return [each for each in words if each.startswith(word)]


def _of_command(before: Sequence[str], word: str) -> Iterable[str]:
    name, *rest = before
    synopses = _synopses(name)
    verbs = {verb for verbs, _ in synopses for verb in verbs}
    free = [each for each in rest if "=" not in each and not each.startswith("-")]
    verb = next((each for each in free if each in verbs), "")
    entries = [text for verbs, text in synopses if verb in verbs or (not verbs and not verb)] or [""]
    keys = _keys(name, entries, rest)
    key, joined, text = word.partition("=")
    if joined:
        return (f"{key}={value}" for value in _values(_plain(key), text, keys, rest))
    asked = _plain(before[-1]) if before[-1].startswith("--") and "=" not in before[-1] else ""
    if asked in keys and keys[asked] != BOTH:  # a flag needs no value
        return _values(asked, word, keys, rest)
    if word.startswith("-"):
        return (*FLAGS, *("--" + key.replace("_", "-") for key in sorted(keys)))
    given = {_plain(each.partition("=")[0]) for each in rest}
    words = [] if verb else sorted(verbs)
    return (*words, *_words(verb, entries), *(f"{key}=" for key in sorted(keys) if key not in given))


def _plain(key: str) -> str:
    return key.lstrip("-").replace("-", "_")


def command_names() -> list[str]:
    """Names of the commands: the modules of this package that do not start with an underscore, with dashes."""
    names = (path.stem for path in COMMANDS.glob("[!_]*.py"))
    return sorted(name.replace("_", "-") for name in names)


def _text(*place: str) -> str:
    return PLACE.joinpath(*place).read_text("utf-8")


def _synopses(command: str) -> list[tuple[tuple[str, ...], str]]:
    """The forms of a command in its usage: the words that distinguish each from the others, and its text."""
    file = COMMANDS / f"{command.replace('-', '_')}.py"
    usage = USAGE.search(file.read_text("utf-8")) if file.is_file() else None
    if usage is None:
        return []
    synopses = []
    synopsis = re.compile(rf"^(?:vlprompt {command}\b|(?=\w+=))(.*(?:\n +\S.*)*)", re.MULTILINE)
    for lines in synopsis.findall(usage[1] or usage[2]):
        first = lines.split()[0] if lines.split() else ""
        verbs = tuple(first.split("|")) if re.fullmatch(r"[a-z|]+", first) else ()
        synopses.append((verbs, lines))
    return synopses


def _keys(command: str, entries: Sequence[str], given: Sequence[str]) -> Values:
    """The keys in a command's usage and, if it takes them, those of a run and of the method that the line names."""
    keys: Values = dict.fromkeys(re.findall(r"\[--(\w+)\]", " ".join(entries)), BOTH)
    keys.pop("quiet", None)
    for key, value in SETTING.findall(" ".join(entries)):
        keys.setdefault(key, tuple(each for each in value.split("|") if PLAIN.fullmatch(each)))
    whole = command in ("train", "sweep")
    if whole:
        from vlprompt.base.static_inspection import fields_in

        keys |= fields_in("vlprompt.base.settings", "RunConfig") or {}
    if whole or "KEY=VALUE" in " ".join(entries):
        keys |= _of_method(given)
    return keys


def _of_method(given: Sequence[str]) -> Values:
    """The settings of the methods that the line names, or of the default method."""
    from vlprompt.base.static_inspection import fields_of, registered
    from vlprompt.training.shipped_recipes import CONFIGS

    named = re.findall(r"(?:^|\s)(?:--)?methods?[= ]\[?([\w,]+)", " ".join(given))
    defaults = (CONFIGS / "defaults.yaml").read_text("utf-8")
    names = named[-1].split(",") if named else re.findall(r"^method: (\w+)", defaults, re.MULTILINE)
    shipped = registered("vlprompt.methods")
    return {key: value for name in names if name in shipped for key, value in (fields_of(shipped[name]) or {}).items()}


def _values(key: str, text: str, keys: Values, given: Sequence[str]) -> list[str]:
    """The values of a key; in a list, behind the part of it that is already typed."""
    source = SOURCES.get(key) or SOURCES.get(key.removesuffix("s"))
    values = list(FIXED.get(key) or keys.get(key, ()))
    if source:
        values = source()
    elif key == "pretrained":
        values = _tags(given)
    elif key in PARTS:
        values = _parts(*PARTS[key])
    begun = max(text.rfind("["), text.rfind(",")) + 1
    return [text[:begun] + value for value in values]


def _words(verb: str, entries: Sequence[str]) -> list[str]:
    """Names that may be given without a key, by the word for them in the usage."""
    listed = {"methods": _methods, "datasets": _datasets, "protocols": _protocols, "backbones": _backbones}
    listed["recipes"] = _recipes
    if verb in listed:
        return listed[verb]()
    return _datasets() if re.match(r"\w+ \[?(?:NAME|PATTERN)", entries[0].strip()) else []


def _methods() -> list[str]:
    from vlprompt.base.static_inspection import registered

    return list(registered("vlprompt.methods"))


def _datasets() -> list[str]:
    names = []
    for path in sorted(PLACE.joinpath("datasets_registry", "cards").glob("*.yaml")):
        variants = re.search(r"^variants:\n((?:  - .*\n)+)", path.read_text("utf-8"), re.MULTILINE)
        names += [f"{path.stem}/{v}" for v in re.findall(r"- (\S+)", variants[1])] if variants else [path.stem]
    return [*names, *re.findall(r"^(\w+):", _text("datasets_registry", "collections.yaml"), re.MULTILINE)]


def _protocols() -> list[str]:
    return re.findall(r'^    "(\w+)": Protocol\(', _text("vlprompt", "evaluation", "protocols.py"), re.MULTILINE)


def _backbones() -> list[str]:
    from vlprompt.clip.catalog import TINY, list_architectures

    return [TINY, *list_architectures()]


def _tags(given: Sequence[str]) -> list[str]:
    from vlprompt.clip.catalog import tags_by_backbone

    named = re.findall(r"(?:^|\s)(?:--)?backbone[= ](\S+)", " ".join(given))
    return [*tags_by_backbone().get(named[-1] if named else "", ()), "random"]


def _recipes() -> list[str]:
    from vlprompt.training.shipped_recipes import list_recipes

    return list_recipes()


def _parts(file: str, registry: str) -> list[str]:
    """Names in a registry, from its own file and from the learners and methods that add to it."""
    package = PLACE / "vlprompt"
    files = {package / f"{file}.py", *(package / "learner").glob("*.py"), *(package / "methods").rglob("*.py")}
    pattern = re.compile(rf'^@{registry}\.register\("(\w+)"', re.MULTILINE)
    return sorted({name for path in files for name in pattern.findall(path.read_text("utf-8"))})


SOURCES: dict[str, Callable[[], list[str]]] = {
    "backbone": _backbones,
    "data": _datasets,
    "dataset": _datasets,
    "gain": _methods,
    "method": _methods,
    "pair": _methods,
    "pairs": _datasets,
    "protocol": _protocols,
    "significance": _methods,
    "targets": _datasets,
}

if __name__ == "__main__":
    sys.exit(answer(sys.argv[1:]))
