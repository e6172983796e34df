"""``vlprompt meta-train``: from image–text pairs to a start and a regulator, in a folder that ``init_from`` takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets_registry.catalog import load_split
from vlprompt.base.environment import versions
from vlprompt.base.files import atomic_write, remove_leftovers
from vlprompt.base.layout import LEARNER, SETTINGS
from vlprompt.base.reporter import Reporter
from vlprompt.base.sealed import read_tensors, seal, unseal, write_tensors
from vlprompt.base.settings import TrainOptions
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data import DatasetSplits, FeatureBank, ImageItems, eval_transform, images_fingerprint
from vlprompt.data.captions import read_captions
from vlprompt.errors import VlpromptError, first_line, warn
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.creation import create_learner
from vlprompt.learner.names import check_keys
from vlprompt.learner.registration import make_config
from vlprompt.learner.regulation import Regulator
from vlprompt.runs.folder import lock_run, refuse_if_in_use, refuse_undecided
from vlprompt.runs.preflight import check_place
from vlprompt.training.checkpoint import checkpoints
from vlprompt.training.meta import MetaLearner, Tasks, clustered, unit
from vlprompt.training.recipes import fitting_depths
from vlprompt.training.trainer import train

REGULATOR, CLUSTERS, META = "regulator.safetensors", "clusters.safetensors", "meta.json"
LONGEST = 40  # tokens of a caption, which must leave room for a context
OF_RUNS = ("gradient_rule", "aggregator", "ensemble")  # settings of a run that have no effect on a start
INCIDENTAL = (
    "output",
    "data_root",
    "checkpoint_seconds",
    "resume",
    "restart",
    "quiet",
)  # no effect on the result


@dataclass(kw_only=True)
class MetaConfig:
    """Settings of meta-training.

    Attributes:
        pairs: a dataset, whose class names are the texts of its training images; ``captions:FOLDER``, images with
            ``NAME.txt`` beside them; or ``csv:FILE`` with columns path and caption.
        method: its start is learnt; it must be able to score new classes.
        epochs: number of epochs of ``tasks`` tasks each.
        tasks: number of tasks per epoch.
        task_size: number of pairs in a task's support set, and in its query set.
        topics, styles: number of clusters of texts, and of images within each.
        inner_lr: learning rate of the step on a task's support set.
        lr: learning rate of Adam, for the start and the regulator.
        rank: the rank of the regulator's matrices.
        seed: of all randomness.
        output: the folder.
        checkpoint_seconds: least time between two checkpoints.
        resume, restart: continue an interrupted meta-training, or discard it; with neither it is an error.
        settings: the method's settings.
    """

    pairs: str = "emoji"
    method: str = "coop"
    epochs: int = 20
    tasks: int = 25
    task_size: int = 16
    topics: int = 8
    styles: int = 3
    inner_lr: float = 0.02
    lr: float = 1e-3
    rank: int = 8
    seed: int = 1
    output: str = "meta"
    data_root: str | None = None
    checkpoint_seconds: float = 5.0
    resume: bool = False
    restart: bool = False
    quiet: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def meta_train(clip: FrozenCLIP, config: MetaConfig) -> Path:
    """Learn a start and a regulator, and return their folder: ``learner/``, ``regulator.safetensors``, ``meta.json``.

    If it is killed at any moment and resumed, the result is bit-identical on a CPU.

    Args:
        clip: the frozen model.
        config: the settings.

    Raises:
        VlpromptError: a setting or the pairs are invalid, the method learns nothing or cannot score new classes, or the
            folder has an interrupted meta-training and neither ``resume`` nor ``restart`` is set.
    """
    folder, reporter = Path(config.output).expanduser(), Reporter(config.quiet)
    refuse_if_in_use(folder)
    refuse_undecided(folder, config.resume, config.restart)
    if _is_finished(folder, config):
        reporter.say(f"finished already, nothing to resume: {folder / META}")
        _drop_checkpoints(folder)
        return folder
    check_place(folder)
    _check_settings(config)
    pairs = _fitting(clip, read_pairs(config), reporter)
    learner = _untrained(clip, config, pairs)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_run(folder):
        remove_leftovers(folder)
        (folder / META).unlink(missing_ok=True)  # of an earlier start, which is replaced
        regulator, history = _train(learner, clip, config, pairs, folder, reporter)
        _save(folder, learner, regulator, config, pairs, history)
    return folder


def _untrained(clip: FrozenCLIP, config: MetaConfig, pairs: DatasetSplits) -> PromptLearner:
    """The learner whose start is learnt; two classes are enough for it until a task sets its own."""
    full = asdict(make_config(config.method, config.settings))
    settings = config.settings | fitting_depths(config.method, full, config.settings, clip)
    names = pairs.class_names[:2]
    learner = create_learner(config.method, clip, names, templates=pairs.templates, seed=config.seed, **settings)
    _check_learner(learner, config)
    if isinstance(learner.config.names, Mapping):
        check_keys(learner.config.names, pairs.class_names)
    return learner


def _train(
    learner: PromptLearner,
    clip: FrozenCLIP,
    config: MetaConfig,
    pairs: DatasetSplits,
    folder: Path,
    reporter: Reporter,
) -> tuple[Regulator, list[dict[str, Any]]]:
    """Meta-train the learner, and return the regulator and one record per epoch."""
    identity = _identity(clip, pairs, config)
    features = _bank(clip, pairs, reporter)
    clusters = _clusters(folder, identity, clip, pairs, features, config)
    labels = torch.tensor([item.label for item in pairs.train])
    images = features if learner.takes_features and not learner.learns_from_images else _images(clip, pairs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        regulator = Regulator([p.shape[-1] for p in learner.trainable_parameters() if p.dim()], config.rank)
    module = MetaLearner(
        learner, regulator.to(clip.device), images.to(clip.device), labels, pairs.class_names, config.inner_lr
    )
    options = TrainOptions(
        epochs=config.epochs,
        lr=config.lr,
        optimizer="adam",
        weight_decay=0,
        schedule="constant",
        clip_grad=1.0,
        checkpoint_seconds=config.checkpoint_seconds,
    )
    tasks = Tasks(clusters, labels, config.task_size, config.tasks, config.seed)
    with reporter.bar("epoch", lines=5) as update:
        history = train(
            module,
            tasks,
            options,
            seed=config.seed,
            folder=folder,
            resume=config.resume,
            identity=identity,
            on_epoch=lambda record: update(record["epoch"] + 1, config.epochs, f"loss {record['loss']:.3f}"),
        )
    return regulator, history


def reconstructs(pairs: str) -> str:
    """The name of what is done: GRAM, from image–text pairs; ``meta_init``, from a dataset's class names as texts."""
    return "GRAM" if pairs.startswith(("captions:", "csv:")) else "meta_init"


def read_pairs(config: MetaConfig) -> DatasetSplits:
    """Return image–text pairs as training images whose class names are their texts."""
    if config.pairs.startswith("captions:"):
        return read_captions(config.pairs.removeprefix("captions:"))
    splits = load_split(config.pairs, config.data_root)
    if config.pairs.startswith("csv:"):  # pairs of a user's own have no test images
        return splits.with_parts({"train": [*splits.train, *splits.val, *splits.test], "val": (), "test": ()})
    return splits


def _fitting(clip: FrozenCLIP, pairs: DatasetSplits, reporter: Reporter) -> DatasetSplits:
    """Leave out pairs whose captions are too long to leave room for a context.

    Raises:
        VlpromptError: fewer than four different captions remain.
    """
    lengths = clip.count_tokens(pairs.class_names)
    short = {label for label, n in enumerate(lengths.tolist()) if n <= LONGEST}
    kept = [item for item in pairs.train if item.label in short]
    if len({item.label for item in kept}) < 4:
        raise VlpromptError(f"{pairs.name} has captions of fewer than four kinds that are short enough to learn from")
    if len(kept) < len(pairs.train):
        warn(f"{len(pairs.train) - len(kept)} pairs have captions of more than {LONGEST} tokens and are left out")
    return pairs.with_parts({"train": kept, "val": (), "test": ()})


def _is_finished(folder: Path, config: MetaConfig) -> bool:
    """Whether a meta-training that is to be resumed has finished already.

    Raises:
        VlpromptError: the folder contains a run, or a start that was learnt with other settings.
    """
    if (folder / SETTINGS).exists():
        raise VlpromptError(f"{folder} holds a run, whose learner would be replaced: choose another output")
    if config.restart or not (folder / META).exists():
        return False
    stored, current = _read_meta(folder / META).get("settings", {}), asdict(config)
    comparable = [key for key in current if key in stored and key not in INCIDENTAL]
    key = next((key for key in comparable if stored[key] != current[key]), None)
    if key:
        raise VlpromptError(
            f"{folder} holds a start that was learnt with other settings ({key}={stored[key]} there, {current[key]} "
            "here): choose another output, or say restart=true to replace it"
        )
    return config.resume


def _read_meta(path: Path) -> dict[str, Any]:
    """Read ``meta.json``, which describes a start."""
    try:
        content = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise VlpromptError(f"{path} cannot be read ({first_line(error)}): restart=true replaces it") from error
    return unseal(content, path)


def _check_settings(config: MetaConfig) -> None:
    """Raise a ``VlpromptError`` for settings that would have no effect, and for tasks of a single pair."""
    for key in OF_RUNS:
        if config.settings.get(key) is not None:
            raise VlpromptError(f"{key} is a setting of runs and has no effect on a start: leave it out")
    if config.task_size < 2:
        raise VlpromptError(f"task_size={config.task_size} leaves no second pair to tell it from: use at least 2")


def _check_learner(learner: PromptLearner, config: MetaConfig) -> None:
    """Raise a ``VlpromptError`` for methods that learn nothing, are bound to their classes, or need other inputs."""
    if learner.second_head is not None:
        raise VlpromptError(
            f"head={config.settings['head']} belongs to the classes of a run, and a start has none: leave it out"
        )
    if not learner.trainable_parameters() or not learner.facts.new_classes:
        raise VlpromptError(
            f"{config.method} with these settings has no start that other tasks could use: use a prompt that scores "
            "new classes, such as coop, vpt or ivlp"
        )
    if learner.facts.inputs != ("image",):
        raise VlpromptError(
            f"{config.method} needs {' and '.join(learner.facts.inputs)} for each image, and pairs have the image only"
        )
    if learner.image_keys != ("image",):
        raise VlpromptError("an objective needs a second view of each image, and pairs have one: choose another")


def _identity(clip: FrozenCLIP, pairs: DatasetSplits, config: MetaConfig) -> dict[str, str]:
    """What a checkpoint must have in common with a meta-training that continues it."""
    settings = {k: v for k, v in asdict(config).items() if k not in INCIDENTAL}
    content = json.dumps([settings, list(pairs.class_names)], sort_keys=True).encode()
    return {
        "settings": hashlib.sha256(content).hexdigest(),
        "backbone": clip.identity()["weights"],
        "data": images_fingerprint(pairs, pairs.train),
    }


def _bank(clip: FrozenCLIP, pairs: DatasetSplits, reporter: Reporter) -> Tensor:
    """Features (N, D) of the pairs' images."""
    with reporter.bar("encoding images", lines=1) as update:
        bank = FeatureBank.open_or_build(clip, pairs, pairs.train, transform=eval_transform(clip), progress=update)
    return bank.features[0]


def _images(clip: FrozenCLIP, pairs: DatasetSplits) -> Tensor:
    """The pairs' images (N, 3, H, W), for methods that prompt the image tower."""
    items = ImageItems(pairs, pairs.train, eval_transform(clip))
    return torch.stack([items[i]["image"] for i in range(len(items))])


def _clusters(
    folder: Path,
    identity: dict[str, str],
    clip: FrozenCLIP,
    pairs: DatasetSplits,
    features: Tensor,
    config: MetaConfig,
) -> Tensor:
    """The clusters (N, 2) of the pairs, saved since another number of threads may round differently."""
    path, key = folder / CLUSTERS, json.dumps(identity, sort_keys=True)
    if config.resume and path.is_file():
        tensors, facts = read_tensors(path, "the clusters", "delete the folder and begin again")
        if facts.get("identity") == key:
            return tensors["clusters"]
    labels = torch.tensor([item.label for item in pairs.train])
    text = unit(clip.encode_text([f"a photo of a {name}." for name in pairs.class_names], cut=True))[labels]
    clusters = clustered(text, unit(features), config.topics, config.styles, config.seed)
    write_tensors(path, {"clusters": clusters}, {"identity": key})
    return clusters


def _save(
    folder: Path,
    learner: PromptLearner,
    regulator: Regulator,
    config: MetaConfig,
    pairs: DatasetSplits,
    history: Sequence[dict[str, Any]],
) -> None:
    """Write the learner, the regulator and ``meta.json``, then remove the checkpoints."""
    learner.class_names = learner.trained_names
    learner.prepare_classes()
    name = reconstructs(config.pairs)
    trained_on = {"dataset": pairs.name, "protocol": "meta-train", "seed": config.seed, "reconstructs": name}
    learner.save_pretrained(folder / LEARNER, extra=trained_on)
    regulator_hash = regulator.save(folder / REGULATOR)
    content = {
        "reconstructs": name,
        "settings": asdict(config) | {"resume": False, "restart": False},
        "pairs": len(pairs.train),
        "captions": len({item.label for item in pairs.train}),
        "regulator": regulator_hash,
        "loss": [record["loss"] for record in history],
        "versions": versions(),
    }
    with atomic_write(folder / META) as temporary:
        temporary.write_text(json.dumps(seal(content), indent=1) + "\n", encoding="utf-8")
    _drop_checkpoints(folder)


def _drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished meta-training."""
    for checkpoint in checkpoints(folder):
        checkpoint.unlink(missing_ok=True)
