"""Protocols as data: which classes a run trains on, what it is tested on, and how the tests are averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from datasets_registry.listed import domains_of, list_collections, list_datasets, name_here
from vlprompt.base.registry import Registry
from vlprompt.clip.naming import same_names
from vlprompt.data.splits import NO_MASKS, DatasetSplits, Half, has_masks
from vlprompt.errors import VlpromptError, nearest
from vlprompt.learner.class_subset import find_subset
from vlprompt.learner.facts import Facts, Familiar
from vlprompt.learner.held_out import SEEN, Selection

Labelled = Literal["shots", "none"]
Pool = Literal["none", "rest", "all", "unseen"]
Images = Half | Literal["seen", "unseen"]


@dataclass(frozen=True)
class Part:
    """What is taken of a dataset.

    Attributes:
        dataset: its name.
        half: the classes: ``base`` and ``new`` are halves, each with a label space of its own.
        images: which classes' test images are scored, where ``half`` is all; of ``seen`` and ``unseen`` classes a draw
            of its own says which.
        held_out: the domain that is tested on and left out of training.
        joined: the datasets that ``dataset`` stands for, if several are learnt from at once.
    """

    dataset: str
    half: Half = "all"
    images: Images = "all"
    held_out: str | None = None
    joined: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What one run does.

    Attributes:
        train: what is learnt, from its few-shot draw.
        tests: what the one learner is scored on, by the name of the result's row.
        labelled, pool: what is labelled of the training images, and what is learnt from without labels.
        selection: the held-out images of ``train`` that are handed out to choose on, see ``held_out``.
    """

    train: Part
    tests: dict[str, Part]
    labelled: Labelled = "shots"
    pool: Pool = "none"
    selection: Selection = field(default_factory=Selection)

    def held_out(self, drawn: DatasetSplits, whole: DatasetSplits) -> DatasetSplits:
        """A few-shot draw with the validation images that may be chosen on: its own, or the whole split's.

        Where a dataset is tested on its validation images, as ImageNet is, the authors' whole validation split is the
        test images; ``seen`` says so.
        """
        if "whole_val" in self.selection.sources:
            return replace(drawn, val=whole.val or whole.test)
        return drawn

    def seen(self, data: Mapping[Part, DatasetSplits]) -> list[str]:
        """What was looked at besides training images: sources that were read; ``test`` if they hold test images."""
        saw, val = set(self.selection.saw), {item.path for item in data[self.train].val}
        if saw & {"val", "whole_val"} and any(
            item.path in val
            for part in self.tests.values()
            if part.dataset == self.train.dataset
            for item in data[part].test
        ):
            saw.add("test")
        return [source for source in SEEN if source in saw]

    def later_names(self, data: Mapping[Part, DatasetSplits]) -> tuple[str, ...]:
        """Names of the classes that are tested and not learnt from."""
        learnt = set(data[self.train].class_names)
        names = dict.fromkeys(name for part in self.tests.values() for name in data[part].class_names)
        return tuple(name for name in names if name not in learnt)


Targets = Sequence[str] | str | None
Planner = Callable[[str, Targets, str | None], Plan]


@dataclass(frozen=True)
class Protocol:
    """A protocol of the literature.

    Attributes:
        summary: what it measures, in a sentence.
        planner: from dataset, targets and held-out domain to what a run does.
        average: how a run's rows become one number: ``harmonic_mean`` of its two, ``mean_of_targets`` without the
            source, or None.
        averaging: the rule over datasets and seeds, in words.
        metric: of every row.
        labelled: what is labelled of the training images, the few-shot draw or ``none``.
        pool: what is learnt from without labels: ``none``, the ``rest`` of the training images, ``all`` of them, or
            those of ``unseen`` classes, of which no image is labelled.
        shots: labelled images a class, where neither the user nor a recipe says how many; None takes the usual number.
    """

    summary: str
    planner: Planner
    average: str | None
    averaging: str
    metric: str = "top-1 accuracy (%)"
    labelled: Labelled = "shots"
    pool: Pool = "none"
    shots: int | str | None = None

    def plan(self, dataset: str, targets: Targets = None, held_out: str | None = None) -> Plan:
        """Return what a run on ``dataset`` does."""
        return replace(self.planner(dataset, targets, held_out), labelled=self.labelled, pool=self.pool)


def halves(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train on the base half; test on each half among its own classes."""
    _none_of(targets=targets, held_out=held_out)
    return Plan(Part(dataset, "base"), {half: Part(dataset, half) for half in ("base", "new")})


def halves_of_all(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Learn from all classes, whose images have no labels; test on each half among its own classes."""
    _none_of(targets=targets, held_out=held_out)
    return Plan(Part(dataset), {half: Part(dataset, half) for half in ("base", "new")})


def joint_halves(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train on the base half; test on each half's images among all classes."""
    _none_of(targets=targets, held_out=held_out)
    return Plan(Part(dataset, "base"), {half: Part(dataset, images=half) for half in ("base", "new")})


def whole(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train and test on all classes."""
    _none_of(targets=targets, held_out=held_out)
    return Plan(Part(dataset), {"all": Part(dataset)})


def seen_and_unseen(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train on all classes; test seen and unseen classes' images among all classes."""
    _none_of(targets=targets, held_out=held_out)
    return Plan(Part(dataset), {name: Part(dataset, images=name) for name in ("seen", "unseen")})


def together(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train on all classes of several datasets at once; test on each among its own classes."""
    _none_of(targets=targets, held_out=held_out)
    names = tuple(name.strip() for name in dataset.split("+"))
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise VlpromptError(f"protocol=multitask trains on several datasets: give dataset=A+B, not dataset={dataset}")
    return Plan(Part(dataset, joined=names), {name: Part(name) for name in names})


def to_others(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train on all classes of a source; test on it and on each target."""
    _none_of(held_out=held_out)
    return _source_and_targets(dataset, targets, {"imagenet": "cross_dataset10", "glyphs/symbols": "mini11"})


def to_domains(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Test on shifted versions of the source, or train on all domains but one and test on that one."""
    domains = domains_of(dataset)
    if held_out is not None:
        _none_of(targets=targets)
        part = Part(dataset, held_out=held_out)
        return Plan(part, {held_out: part})
    if domains and targets is None:
        raise VlpromptError(
            f"protocol=domain_generalization on {dataset} leaves one domain out: give held_out=DOMAIN, "
            f"of {', '.join(domains)}"
        )
    return _source_and_targets(dataset, targets, {"imagenet": "dg4", "glyphs/symbols": "mini_dg4"})


def _source_and_targets(dataset: str, targets: Targets, usual: dict[str, str]) -> Plan:
    """A plan that tests on the source and on targets: a list, a collection, or those usual for the source."""
    targets = targets or usual.get(dataset)
    if targets is None:
        raise VlpromptError(
            f"say what to test on after {dataset}: targets=[NAME,…] or a collection such as targets=mini11"
        )
    if isinstance(targets, str):
        collections = list_collections()
        # what has a colon is data of one's own
        if targets not in collections and ":" not in targets and targets not in list_datasets():
            here = name_here(targets)
            hint = f"its name here is {here}" if here else nearest(targets, collections)
            raise VlpromptError(f"targets={targets} is not a dataset or collection: {hint}")
        targets = collections.get(targets, (targets,))
    names = [name for name in targets if name != dataset]
    return Plan(Part(dataset), {"source": Part(dataset)} | {name: Part(name) for name in names})


def _none_of(**given: Any) -> None:
    """Refuse settings that a protocol has no use for."""
    for key, value in given.items():
        if value is not None:
            raise VlpromptError(f"{key}={value} is not used by this protocol: leave it out, or choose another protocol")


PROTOCOLS: Registry[Protocol] = Registry("protocol")

BASE_TO_NEW_RULE = (
    "base and new averaged over seeds, then datasets; harmonic mean of the averages (as published), and mean of the "
    "datasets' harmonic means"
)
MEAN_RULE = "accuracy averaged over seeds, then datasets"
for name, protocol in {
    "base_to_new": Protocol(
        "train on the first half of the classes; test on them, and on the other half by name alone",
        halves,
        "harmonic_mean",
        BASE_TO_NEW_RULE,
    ),
    "generalized": Protocol(
        "train on the first half of the classes; test on both halves' images in one label space",
        joint_halves,
        "harmonic_mean",
        BASE_TO_NEW_RULE,
    ),
    "base_to_new_unlabelled": Protocol(
        "train on all training images without their labels, by the names of both halves; test each half among its own",
        halves_of_all,
        "harmonic_mean",
        BASE_TO_NEW_RULE,
        labelled="none",
        pool="all",
    ),
    "multitask": Protocol(
        "train on several datasets at once (dataset=A+B); test on each among its own classes",
        together,
        "mean_of_targets",
        "each dataset averaged over seeds; mean over the datasets",
    ),
    "few_shot": Protocol("train and test on all classes", whole, None, MEAN_RULE),
    "semi_supervised": Protocol(
        "train on a few labelled images and, without labels, on the other training images; test on all classes",
        whole,
        None,
        MEAN_RULE,
        pool="rest",
        shots=2,
    ),
    "transductive_zero_shot": Protocol(
        "train on labelled images of 62% of the classes and, without labels, on those of the others; test both among "
        "all classes",
        seen_and_unseen,
        "harmonic_mean",
        "seen and unseen averaged over seeds, then datasets; harmonic mean of the averages, and mean of the datasets' "
        "harmonic means",
        pool="unseen",
        shots="all",
    ),
    "unsupervised": Protocol(
        "train on the training images without their labels; test on all classes",
        whole,
        None,
        MEAN_RULE,
        labelled="none",
        pool="all",
    ),
    "test_time": Protocol(
        "train on nothing; learn from the test images alone, without labels", whole, None, MEAN_RULE, labelled="none"
    ),
    "cross_dataset": Protocol(
        "train on all classes of a source; test on other datasets by the names of their classes",
        to_others,
        "mean_of_targets",
        "each target averaged over seeds; mean over the targets, the source not included",
    ),
    "domain_generalization": Protocol(
        "train on a source; test on the same classes in other domains",
        to_domains,
        "mean_of_targets",
        "each target averaged over seeds; mean over the targets or held-out domains, the source not included",
    ),
}.items():
    PROTOCOLS.register(name)(protocol)


def list_protocols(pattern: str = "*") -> list[str]:
    """Return the names of the protocols that match a shell-style pattern."""
    return PROTOCOLS.names(pattern)


def familiar(train: Part, test: Part, parts: Mapping[Part, DatasetSplits]) -> Familiar:
    """What the classes of a test are to a learner of another part: as a rule for two heads wants to know."""
    if not set(same_names(parts[test].class_names)) <= set(same_names(parts[train].class_names)):
        return "new"
    own = test.dataset in (train.dataset, *train.joined) and test.held_out is None
    return "trained" if own else "shifted"


def check_suits(protocol: str, plan: Plan, parts: Mapping[Part, DatasetSplits], method: str, facts: Facts) -> None:
    """Refuse in one sentence a protocol that has not what a learner needs, or tests classes that it cannot score.

    Args:
        protocol: its name.
        plan: what a run does.
        parts: the data of each part of the plan, whose class names tell whether they are the same classes.
        method: the learner's.
        facts: what the learner is, or would be.
    """
    if plan.labelled == "none" and facts.labels not in ("any", "none"):
        raise VlpromptError(f"{method} learns from labelled images, and protocol={protocol} has none: use few_shot")
    if plan.pool == "none" and facts.labels in ("some", "any"):
        raise VlpromptError(f"{method} also needs unlabelled images: use protocol=semi_supervised")
    if "mask" in facts.inputs:
        _check_masks(plan, parts, method)
    learnt = parts[plan.train].class_names
    tested = [parts[part] for part in plan.tests.values()]
    if facts.new_classes or all(find_subset(learnt, test.class_names, test.class_places) for test in tested):
        return
    hint = ", or settings that share the context" if "text" in facts.trains else ""
    raise VlpromptError(
        f"protocol={protocol} tests classes that were not trained on, and {method} with these settings is bound to its "
        f"training classes: use protocol=few_shot{hint}"
    )


def _check_masks(plan: Plan, parts: Mapping[Part, DatasetSplits], method: str) -> None:
    """Refuse datasets whose images have no masks of regions."""
    tested = [(parts[part], parts[part].test) for part in plan.tests.values()]
    for splits, items in [(parts[plan.train], parts[plan.train].train), *tested]:
        if not has_masks(splits, items):
            raise VlpromptError(f"{method} looks at a region of each image, and {splits.name} {NO_MASKS}")
