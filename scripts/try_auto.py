"""What method=auto chooses on three small sets of real photos, and what each candidate reaches on images it never saw.

python scripts/try_auto.py [data_root=DATA] [shots=16] [test=500] [budget=2min] [seed=1] [sets=[eurosat,pacs,digits]]

Of each set so many training images a class are drawn, and so many test images in all; of PACS photos alone. The choice
sees training images only. Each candidate that it compared is then fitted to all of them and tested.
Prints a table in Markdown a set; the exit status is 1 if a choice is below zero-shot by more than its interval.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlprompt import PromptClassifier, load_split
from vlprompt.base.settings_text import show
from vlprompt.choosing.choice import Outcome, mean_of
from vlprompt.cli._shared import check_keys, command, number_setting, parse
from vlprompt.data import DatasetSplits, few_shot_split
from vlprompt.errors import VlpromptError

SETS = {"eurosat": None, "pacs": "photo", "digits": None}  # and the domain, of a set of several
KEYS = ("data_root", "shots", "test", "budget", "seed", "sets")


@command(__doc__)
def main(argv: Sequence[str]) -> int:
    """Choose and test on each set."""
    settings = parse(argv).settings
    check_keys(settings, KEYS)
    shots, count = number_setting(settings, "shots") or 16, number_setting(settings, "test") or 500
    names, seed = settings.get("sets", list(SETS)), number_setting(settings, "seed") or 1
    if not isinstance(names, list) or not set(names) <= SETS.keys():
        raise VlpromptError(f"sets must be some of {', '.join(SETS)}, not {show(names)}")
    budget = str(settings.get("budget", "2min"))
    below = [_try(_drawn(name, settings, shots, count, seed), budget, seed) for name in names]
    return int(any(below))


def _drawn(name: str, settings: dict[str, Any], shots: int, count: int, seed: int) -> DatasetSplits:
    """A set's few-shot draw, with so many of its test images."""
    whole, domain = load_split(name, settings.get("data_root")), SETS[name]
    train, test = ([i for i in part if domain in (None, i.domain)] for part in (whole.train, whole.test))
    drawn = few_shot_split(replace(whole, train=train, val=(), test=test), shots, seed, allow_fewer=True)
    return replace(drawn, test=random.Random(seed).sample(list(drawn.test), min(count, len(drawn.test))))


def _try(data: DatasetSplits, budget: str, seed: int) -> bool:
    """Print a set's table, and tell whether the choice is worse than zero-shot by more than its interval."""
    images, labels = ([data.open_image(item) for item in data.train], [item.label for item in data.train])
    tested = [data.open_image(item) for item in data.test]
    truth = np.array([item.label for item in data.test])
    known = {"class_names": list(data.class_names), "templates": list(data.templates), "mirror": data.mirror}
    begun = time.perf_counter()
    auto = PromptClassifier("auto", budget=budget, random_state=seed, **known).fit(images, labels)
    spent = time.perf_counter() - begun
    choice, reached = auto.choice_, {}
    for each in choice.outcomes:
        if each.accuracy is None:
            continue
        own = {key: value for key, value in each.settings.items() if key != "views"}
        views = each.settings.get("views")
        alone = PromptClassifier(each.method, options=own, views=views, random_state=seed, **known)
        fitted = auto if each.candidate == choice.chosen else alone.fit(images, labels)
        reached[each.candidate] = mean_of((fitted.predict(tested) == truth).astype(float), None)
        print(f"{data.name}: {each.candidate} {reached[each.candidate][0]:.1f}", file=sys.stderr)
    print(f"\n**{data.name}**: {len(data.class_names)} classes, {len(images)} training and {len(tested)} test images. ")
    print(f"Budget {budget}; {choice.seconds:.0f} s for choosing, {spent:.0f} s with learning. {choice.why}\n")
    print("| candidate | cross-validation | test | a fit (s) | |\n| --- | ---: | ---: | ---: | --- |")
    for each in choice.outcomes:
        print(_row(each, reached.get(each.candidate), each.candidate == choice.chosen), flush=True)
    chosen, zero_shot = reached[choice.chosen], reached["zero_shot"]
    return chosen[2] < zero_shot[0]


def _row(each: Outcome, test: tuple[float, float, float] | None, chosen: bool) -> str:
    fold = "" if each.accuracy is None else f"{each.accuracy:.1f} [{each.low:.1f}, {each.high:.1f}]"
    fit = "" if each.fit_seconds is None else f"{each.fit_seconds:.2f}"
    said = "chosen" if chosen else each.reason or ""
    name = f"**{each.candidate}**" if chosen else each.candidate
    reached = "" if test is None else f"{test[0]:.1f} [{test[1]:.1f}, {test[2]:.1f}]"
    return f"| {name} | {fold} | {reached} | {fit} | {said} |"


if __name__ == "__main__":
    sys.exit(main())
