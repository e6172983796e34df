"""What a run can be told, as data: how to optimise, and everything else besides the settings of a method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

AtLeast0 = Annotated[float, Field(ge=0)]


@dataclass
class TrainOptions:
    """How to optimise; the defaults are what the recipes of the CoOp lineage share.

    Attributes:
        epochs: passes over the training images.
        steps: steps in all, in place of epochs.
        lr: learning rate at the start of the schedule.
        batch_size: images a step; a short last batch is dropped unless it is the only one.
        optimizer: sgd, adam or adamw, with settings as in adamw(eps=1e-4).
        momentum: of SGD, without Nesterov.
        weight_decay: applied to every learnable. The published code takes it from Dassl's defaults; no recipe names it.
        schedule: of the learning rate, dassl (the published recipes'), cosine(warmup=1, floor=1e-5, per=step),
            constant or inverse(gamma=0.001, power=0.75).
        warmup_epochs: first epochs of dassl, at the constant rate warmup_lr; the cosine starts counting after them.
        warmup_lr: learning rate of that warm-up.
        clip_grad: largest norm of the whole gradient; null clips nothing.
        checkpoint_seconds: least time between two checkpoints; the last epoch always leaves one.
    """

    epochs: Annotated[int, Field(ge=1, le=10**6)] = 50
    steps: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(gt=0)] = 2e-3
    batch_size: Annotated[int, Field(ge=1, le=10**6)] = 32
    optimizer: str = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: AtLeast0 = 5e-4
    schedule: str = "dassl"
    warmup_epochs: Annotated[int, Field(ge=0, le=10**6)] = 1
    warmup_lr: AtLeast0 = 1e-5
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    checkpoint_seconds: AtLeast0 = 5.0


@dataclass(kw_only=True)
class LearnOptions(TrainOptions):
    """How a method learns from images, whoever brings them.

    Attributes:
        method: one of `vlprompt list methods`.
        shots: training images a class, or all; none where a protocol takes no labels.
        seed: of the few-shot draw, the initial weights, the batches and the augmentation.
        views: of each training image, for methods that leave the image tower alone: fresh augments and encodes anew
            each epoch, as published; a number pre-draws so many views and cycles through them; 1 is the centre crop.
        transform: of training images, rrc (random crop, as published) or another kind of `train_transform`.
        workers: processes that load images; the result does not depend on it.
    """

    method: str
    shots: int | str
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]  # what NumPy and scikit-learn take
    views: int | str
    transform: str = "rrc"
    workers: Annotated[int, Field(ge=0, le=1024)] = 0


@dataclass(kw_only=True)
class RunConfig(LearnOptions):
    """Everything that a run can be told, besides the settings of its method.

    Attributes:
        dataset: one of `vlprompt list datasets`, or folder:PATH with one sub-folder a class.
        data_root: folder that holds the datasets' folders; embedded datasets need none.
        download: fetch a dataset's missing images, where its card names a downloader.
        split: published, or generated for who lacks a dataset's published split file; results say which.
        templates: in place of the dataset's own, a template with {}, a list, imagenet7, imagenet80 or a file.
        protocol: one of `vlprompt list protocols`.
        unlabelled: images to learn from without labels, folder:PATH with anything below it, in place of the protocol's
            own pool; the dataset's other training images are then left out.
        region: what is shown of images with region masks, crop, blank or crop_blank, in place of whole images; a method
            that takes masks has them cut alike.
        pool_classes: class names that the pool's images may be of, a list or all, where a pool of your own holds others
            than the protocol takes it to: unseen classes in transductive_zero_shot, else all.
        class_split: seed of the draw of seen classes (transductive_zero_shot); published are 500, 0 and 200.
        allow_fewer: of a class that has fewer than shots take all, and say how many in all; else that is an error.
        backbone: vlprompt-tiny, an OpenCLIP architecture, hf-hub:ORG/REPO or local-dir:FOLDER.
        pretrained: the weights' tag (openai, laion2b_s34b_b88k, ...), or random.
        checkpoint: weights from a file, .safetensors or .pt; pretrained then says whose preprocessing they have.
        precision: of the frozen towers, fp32, bf16 or (CUDA) fp16; learnables are always fp32.
        device: auto, cpu, cuda, cuda:1, mps.
        threads: that compute on a CPU; null takes one for a small model (vlprompt-tiny), which several only hinder, and
            else what torch takes; OMP_NUM_THREADS says more than null.
        on_unreadable: skip images of your own that cannot be read, and say which and how many, or stop at them before
            any work; published datasets always stop.
        follow_links: read linked files and folders that lead out of a folder of your own.
        targets: datasets to test on after training on this one, or a collection (cross_dataset, domain_generalization).
        held_out: domain to test on and to leave out of training (domain_generalization on a set of several domains).
        selection: what hyper-parameters and the tested weights are chosen on. fixed (or last) chooses nothing: settings
            as they are, the last epoch's weights. fewshot_val takes the point of the method's grid, and the epoch, that
            are best on up to 4 validation images a class, of epochs the later of equals. paper chooses on what the
            method's authors chose on, the whole validation split or test images; rows say what was seen.
        calibrate: temperature fits one number that makes probabilities mean what they say, on the few-shot validation
            images or, where there are none, by cross-fitting on the training images (two trainings more); none.
        coverage: share of images to answer, the surest, as in 0.9; the least probability for it is chosen on the same
            images and kept with the learner, whose predictions below it are unsure.
        format_spread: templates (as in templates=) to score zero-shot with one by one: how much the wording matters.
        limit: test images at most in each test, for a quick look; null takes all.
        logger: where a run's numbers also go besides its own files, none, tensorboard, wandb or a list.
        output: folder of all runs.
        name: folder of this run in it; by default it tells dataset, method, protocol, shots and seed.
        config: a YAML file with settings, in place of the recipe; a run's own config.yaml repeats it.
        auto: how long method=auto had to choose this run's method, and choice.json has what it chose from; null where
            the method was said. Runs write it, and nobody sets it.
        resume: go on with an interrupted run, or show a finished one; without it, and without restart, what an
            interrupted one has left is an error.
        restart: drop what an interrupted run has left, and begin anew.
        quiet: print the result only.
    """

    dataset: str
    data_root: str | None = None
    download: bool = False
    split: str = "published"
    templates: Any = None
    protocol: str
    unlabelled: str | None = None
    region: str | None = None
    pool_classes: Any = None
    class_split: int = 500
    allow_fewer: bool = False
    backbone: str
    pretrained: str | None = None
    checkpoint: str | None = None
    precision: str = "fp32"
    device: str = "auto"
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    on_unreadable: str = "skip"
    follow_links: bool = False
    targets: Any = None
    held_out: str | None = None
    selection: str = "last"
    calibrate: str = "none"
    coverage: Annotated[float, Field(gt=0, le=1)] | None = None
    format_spread: Any = None
    limit: Annotated[int, Field(ge=1)] | None = None
    logger: Any = "none"
    output: str = "runs"
    name: str | None = None
    config: str | None = None
    auto: str | None = None
    resume: bool = False
    restart: bool = False
    quiet: bool = False


AUTO = "auto"  # in the place of a method's name: choose one


NO_ROW = (
    f"method={AUTO} chooses a method for each dataset and seed in the time that there is, so that its runs are of "
    "several methods and no row of a sweep: sweep its candidates, as in methods=[zero_shot,gda,coop], or run "
    f"method={AUTO} alone"
)


@dataclass(kw_only=True)
class ChoiceOptions:
    """What method=auto can be told besides the settings of a run.

    Attributes:
        budget: time for choosing and learning together, as in 90s, 2min or 1h30min; a number is of seconds.
        candidates: methods to choose among, each with settings of its own if need be, as in gda(alpha=0.1); of equal
            ones the first is taken, so the simplest stands first.
        folds: parts that the training images are divided into, of which each is held out once; fewer where a class has
            fewer images.
        repeats: divisions at most, each a draw of its own.
        alone: what is taken where no class has two images, so that nothing can be held out.
    """

    budget: float | str
    candidates: list[str]
    folds: Annotated[int, Field(ge=2, le=100)]
    repeats: Annotated[int, Field(ge=1, le=100)]
    alone: str


# settings that change where and how a run works, or whether it goes on, but not what comes out
INCIDENTAL = (
    "allow_fewer",
    "checkpoint_seconds",
    "config",
    "data_root",
    "device",
    "download",
    "follow_links",
    "logger",
    "name",
    "on_unreadable",
    "output",
    "quiet",
    "restart",
    "resume",
    "threads",
    "workers",
)

GRID = "grid"  # of a method, which bears on a result only where there is something to choose on

# settings that vlprompt 0.1.0 did not have, with the values at which a run is what it was: its hash is then the same
LATER: dict[str, Any] = {
    "after_step": None,
    "augmix": False,
    "auto": None,
    "attributes": [],
    "calibrate": "none",
    "class_split": 500,
    "clip_grad": None,
    "conditional": False,
    "context": "full",
    "coverage": None,
    "descriptions": None,
    "edits": [],
    "ensemble": None,
    "head": None,
    "init_length": "same",
    "n_att": None,
    "names": None,
    "names_by": "mean",
    "pool_classes": None,
    "published_slicing": False,
    "region": None,
    "schedule": "dassl",
    "steps": None,
    "teacher": None,
    "text": None,
    "unlabelled": None,
}


def differing_setting(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return the first setting, of those that bear on a result, whose value differs; None if the runs are the same.

    A setting that one side lacks does not count: an older vlprompt did not have it.
    """
    for key in one:
        if key not in INCIDENTAL and key in other and _plain(one[key]) != _plain(other[key]):
            return key
    return None


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
