"""Protocols as data: which classes a run trains on, what it is tested on, and how the tests are averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from datasets_registry.listed import domains_of, list_collections, list_datasets, registered_name
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
    """A part of a dataset.

    Attributes:
        dataset: its name.
        half: the classes: ``all``, or the ``base`` or ``new`` half, with its own label space.
        images: the classes whose test images are scored, if ``half`` is ``all``; ``seen`` and ``unseen`` classes are
            drawn by ``class_split``.
        held_out: the domain that is tested on and left out of training.
        joined: the datasets that ``dataset`` joins, if it trains on several at once.
    """

    dataset: str
    half: Half = "all"
    images: Images = "all"
    held_out: str | None = None
    joined: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a run trains on and tests.

    Attributes:
        train: the part whose few-shot draw is trained on.
        tests: the parts that the learner is tested on, by target (the name of the row in the result).
        labelled, pool: which training images are labelled, and which are used without labels, see ``Protocol``.
        selection: what may be chosen on held-out images, and on which.
    """

    train: Part
    tests: dict[str, Part]
    labelled: Labelled = "shots"
    pool: Pool = "none"
    selection: Selection = field(default_factory=Selection)

    def held_out(self, drawn: DatasetSplits, whole: DatasetSplits) -> DatasetSplits:
        """Return a few-shot draw with the validation images that may be chosen on: its own, or the whole split's.

        If a dataset has no validation images, since it is tested on them, as ImageNet is, the whole validation split is
        the test images; ``seen`` then says so.
        """
        if "whole_val" in self.selection.sources:
            return replace(drawn, val=whole.val or whole.test)
        return drawn

    def seen(self, data: Mapping[Part, DatasetSplits]) -> list[str]:
        """The sources of held-out images that were chosen on, with ``test`` if they contain test images."""
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
        """Names of the classes that are tested and not trained on."""
        trained = set(data[self.train].class_names)
        names = dict.fromkeys(name for part in self.tests.values() for name in data[part].class_names)
        return tuple(name for name in names if name not in trained)


Targets = Sequence[str] | str | None
Planner = Callable[[str, Targets, str | None], Plan]


@dataclass(frozen=True)
class Protocol:
    """A protocol of the literature.

    Attributes:
        summary: what it measures, in a sentence.
        planner: from dataset, targets and held-out domain to a plan.
        average: how the tests of a run are averaged: ``harmonic_mean`` of its two, ``mean_of_targets`` without the
            source, or None.
        averaging: the rule over datasets and seeds, in words.
        metric: of every row.
        labelled: which training images are labelled: the few-shot draw (``shots``) or ``none``.
        pool: which images are trained on without labels: ``none``, the ``rest`` of the training images, ``all`` of
            them, or those of ``unseen`` classes.
        shots: default number of labelled images per class; None means that of ``configs/defaults.yaml``.
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
        """Return the plan of a run on ``dataset``."""
        return replace(self.planner(dataset, targets, held_out), labelled=self.labelled, pool=self.pool)


def halves(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train on the base half; test on each half among its own classes."""
    _refuse(targets=targets, held_out=held_out)
    return Plan(Part(dataset, "base"), {half: Part(dataset, half) for half in ("base", "new")})


def halves_of_all(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train on the unlabelled images of all classes; test on each half among its own classes."""
    _refuse(targets=targets, held_out=held_out)
    return Plan(Part(dataset), {half: Part(dataset, half) for half in ("base", "new")})


def joint_halves(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train on the base half; test on each half's images among all classes."""
    _refuse(targets=targets, held_out=held_out)
    return Plan(Part(dataset, "base"), {half: Part(dataset, images=half) for half in ("base", "new")})


def whole(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train and test on all classes."""
    _refuse(targets=targets, held_out=held_out)
    return Plan(Part(dataset), {"all": Part(dataset)})


def seen_and_unseen(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train on all classes; test seen and unseen classes' images among all classes."""
    _refuse(targets=targets, held_out=held_out)
    return Plan(Part(dataset), {name: Part(dataset, images=name) for name in ("seen", "unseen")})


def together(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train on all classes of several datasets at once; test on each among its own classes."""
    _refuse(targets=targets, held_out=held_out)
    names = tuple(name.strip() for name in dataset.split("+"))
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise VlpromptError(f"protocol=multitask trains on several datasets: give dataset=A+B, not dataset={dataset}")
    return Plan(Part(dataset, joined=names), {name: Part(name) for name in names})


def to_others(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Train on all classes of a source; test on it and on each target."""
    _refuse(held_out=held_out)
    return _source_and_targets(dataset, targets, {"imagenet": "cross_dataset10", "glyphs/symbols": "mini11"})


def to_domains(dataset: str, targets: Targets, held_out: str | None) -> Plan:
    """Test on shifted versions of the source, or train on all domains but one and test on that one."""
    domains = domains_of(dataset)
    if held_out is not None:
        _refuse(targets=targets)
        part = Part(dataset, held_out=held_out)
        return Plan(part, {held_out: part})
    if domains and targets is None:
        raise VlpromptError(
            f"protocol=domain_generalization on {dataset} leaves one domain out: give held_out=DOMAIN, "
            f"of {', '.join(domains)}"
        )
    return _source_and_targets(dataset, targets, {"imagenet": "dg4", "glyphs/symbols": "mini_dg4"})


def _source_and_targets(dataset: str, targets: Targets, usual: dict[str, str]) -> Plan:
    """A plan that tests on the source and on targets, which are a list, a collection, or the usual ones."""
    targets = targets or usual.get(dataset)
    if targets is None:
        raise VlpromptError(
            f"say what to test on after {dataset}: targets=[NAME,…] or a collection such as targets=mini11"
        )
    if isinstance(targets, str):
        collections = list_collections()
        # a name with a colon means the user's own data
        if targets not in collections and ":" not in targets and targets not in list_datasets():
            known_as = registered_name(targets)
            hint = f"its name here is {known_as}" if known_as else nearest(targets, collections)
            raise VlpromptError(f"targets={targets} is not a dataset or collection: {hint}")
        targets = collections.get(targets, (targets,))
    names = [name for name in targets if name != dataset]
    return Plan(Part(dataset), {"source": Part(dataset)} | {name: Part(name) for name in names})


def _refuse(**settings: Any) -> None:
    """Raise a ``VlpromptError`` if one of these settings, which the protocol does not use, is given."""
    for key, value in settings.items():
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
    """Whether the classes of a test are ``new``, ``trained``, or trained on another domain (``shifted``).

    Methods with two heads score them differently.
    """
    if not set(same_names(parts[test].class_names)) <= set(same_names(parts[train].class_names)):
        return "new"
    own = test.dataset in (train.dataset, *train.joined) and test.held_out is None
    return "trained" if own else "shifted"


def check_suits(protocol: str, plan: Plan, parts: Mapping[Part, DatasetSplits], method: str, facts: Facts) -> None:
    """Check that a protocol has the images that a learner needs, and tests only classes that it can score.

    Args:
        protocol: its name.
        plan: the run's plan.
        parts: the data of each part of the plan; classes are compared by name.
        method: its name.
        facts: the learner's facts.

    Raises:
        VlpromptError: labelled images, a pool or masks are missing, or the learner is bound to its classes.
    """
    if plan.labelled == "none" and facts.labels not in ("any", "none"):
        raise VlpromptError(f"{method} learns from labelled images, and protocol={protocol} has none: use few_shot")
    if plan.pool == "none" and facts.labels in ("some", "any"):
        raise VlpromptError(f"{method} also needs unlabelled images: use protocol=semi_supervised")
    if "mask" in facts.inputs:
        _check_masks(plan, parts, method)
    trained = parts[plan.train].class_names
    tested = [parts[part] for part in plan.tests.values()]
    if facts.new_classes or all(find_subset(trained, test.class_names, test.class_places) for test in tested):
        return
    hint = ", or settings that share the context" if "text" in facts.trains else ""
    raise VlpromptError(
        f"protocol={protocol} tests classes that were not trained on, and {method} with these settings is bound to its "
        f"training classes: use protocol=few_shot{hint}"
    )


def _check_masks(plan: Plan, parts: Mapping[Part, DatasetSplits], method: str) -> None:
    """Raise a ``VlpromptError`` if the images of a dataset have no region masks."""
    tested = [(parts[part], parts[part].test) for part in plan.tests.values()]
    for splits, items in [(parts[plan.train], parts[plan.train].train), *tested]:
        if not has_masks(splits, items):
            raise VlpromptError(f"{method} looks at a region of each image, and {splits.name} {NO_MASKS}")
