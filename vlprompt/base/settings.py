"""The settings of a run, as dataclasses: how to optimise, and everything else but the settings of its method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

AtLeast0 = Annotated[float, Field(ge=0)]


@dataclass
class TrainOptions:
    """How to optimise; the defaults are those that the recipes of CoOp and its successors share.

    Attributes:
        epochs: passes over the training images.
        steps: total number of optimizer steps, instead of epochs.
        lr: learning rate at the start of the schedule.
        batch_size: images per step; an incomplete last batch is dropped unless it is the only one.
        optimizer: sgd, adam or adamw, with arguments as in adamw(eps=1e-4).
        momentum: of SGD, without Nesterov.
        weight_decay: applied to every learnable. The published code takes it from Dassl's defaults; no recipe names it.
        schedule: of the learning rate, dassl (the published recipes'), cosine(warmup=1, floor=1e-5, per=step),
            constant or inverse(gamma=0.001, power=0.75).
        warmup_epochs: number of first epochs that the dassl schedule trains at the constant rate warmup_lr; its cosine
            starts after them, from its beginning.
        warmup_lr: learning rate during that warm-up.
        clip_grad: maximum norm of the gradient over all parameters; null does not clip.
        checkpoint_seconds: minimum time between two checkpoints, in seconds; the last epoch always leaves one.
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
    """How a method learns from images, in a run or in the estimator.

    Attributes:
        method: one of `vlprompt list methods`.
        shots: training images per class, or all; none where a protocol uses no labels.
        seed: of the few-shot draw, the initial weights, the batches and the augmentation.
        views: augmented views of each training image, for methods that leave the image tower alone. fresh augments and
            encodes the images anew in every epoch, as published; a number draws that many views beforehand and cycles
            through them; 1 is the centre crop.
        transform: of training images, rrc (random resized crop, as published) or another kind of `train_transform`.
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
    """All settings of a run but those of its method.

    Attributes:
        dataset: one of `vlprompt list datasets`, or folder:PATH with one sub-folder per class.
        data_root: folder that contains the datasets' folders; embedded datasets do not need it.
        download: download a dataset's missing images, where its card names a source.
        split: published, or generated if you do not have the dataset's published split file; results say which.
        templates: instead of the dataset's own, a template with {}, a list of them, imagenet7, imagenet80 or a file.
        protocol: one of `vlprompt list protocols`.
        unlabelled: unlabelled images to learn from, folder:PATH (searched recursively), instead of the pool that the
            protocol provides; the dataset's other training images are then not used.
        region: how images with region masks are shown, crop, blank or crop_blank; by default the whole image. A method
            that takes masks has them cut the same way.
        pool_classes: class names that images of the pool may belong to, a list or all. The default is the protocol's
            choice, unseen classes in transductive_zero_shot and otherwise all; set it if your own pool differs.
        class_split: seed for drawing the seen classes (transductive_zero_shot); the published seeds are 500, 0 and 200.
        allow_fewer: if a class has fewer images than shots, use all it has and report the total; false makes that an
            error.
        backbone: vlprompt-tiny, an OpenCLIP architecture, hf-hub:ORG/REPO or local-dir:FOLDER.
        pretrained: tag of the pretrained weights (openai, laion2b_s34b_b88k, ...), or random.
        checkpoint: load the weights from a file, .safetensors or .pt; pretrained then names the tag whose preprocessing
            they use.
        precision: of the frozen towers, fp32, bf16 or (CUDA only) fp16; learnables are always fp32.
        device: auto, cpu, cuda, cuda:1, mps.
        threads: CPU threads to compute with. null uses one for a small model (vlprompt-tiny), which more would slow
            down, and otherwise PyTorch's default; OMP_NUM_THREADS takes precedence over null.
        on_unreadable: what to do with images of your own that cannot be read. skip leaves them out and reports which
            and how many; stop raises an error before any work. Published datasets always stop.
        follow_links: follow symbolic links that lead out of your own folder.
        targets: datasets to test on after training on this one, or a collection (cross_dataset, domain_generalization).
        held_out: domain to test on and leave out of training (domain_generalization on a dataset with several domains).
        selection: what hyper-parameters and the tested weights are chosen on. fixed (or last) chooses nothing: settings
            as given, weights of the last epoch. fewshot_val takes the best point of the method's grid and the best
            epoch (the later one of a tie) on up to 4 validation images per class. paper chooses on what the method's
            authors used, the whole validation split or test images; results record what was seen.
        calibrate: none, or temperature, which fits one number that makes the probabilities match the accuracy, on the
            few-shot validation images or, without any, by cross-fitting on the training images (two more trainings).
        coverage: share of images to answer, as in 0.9. The probability below which an image is left unanswered is
            chosen on the same images as calibrate uses, and saved with the learner.
        format_spread: templates (as in templates=) to score zero-shot with one at a time, to see how much the wording
            matters.
        limit: maximum number of test images per test, for a quick look; null uses all.
        logger: where to log a run's numbers besides its own files, none, tensorboard, wandb or a list.
        output: folder that contains all runs.
        name: name of this run's folder; by default made of dataset, method, protocol, shots and seed.
        config: a YAML file with settings, instead of the recipe; a run's own config.yaml repeats that run.
        auto: the time budget with which method=auto chose this run's method (choice.json has the candidates); null if
            the method was given. Written by runs, not set by users.
        resume: continue an interrupted run, or show a finished one. If there is an interrupted run and neither resume
            nor restart is set, that is an error.
        restart: delete what an interrupted run left, and start over.
        quiet: print only the result.
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


AUTO = "auto"  # instead of a method's name: choose one


NO_ROW = (
    f"method={AUTO} may choose another method for each dataset and seed, so its runs cannot be one row of a sweep: "
    f"sweep its candidates, as in methods=[zero_shot,gda,coop], or run method={AUTO} alone"
)


@dataclass(kw_only=True)
class ChoiceOptions:
    """The settings of method=auto besides those of a run.

    Attributes:
        budget: time for choosing and training together, as in 90s, 2min or 1h30min; a plain number means seconds.
        candidates: methods to choose among, each with settings of its own if needed, as in gda(alpha=0.1). The first
            wins a tie, so list the simplest first.
        folds: number of parts that the training images are split into, each held out once; fewer if a class has fewer
            images.
        repeats: maximum number of such splits, each drawn anew.
        alone: the method to use if no class has two images, so that nothing can be held out.
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
    for key in sorted(one, key=lambda key: key not in ("method", "dataset")):  # from which other differences follow
        if key not in INCIDENTAL and key in other and _plain(one[key]) != _plain(other[key]):
            return key
    return None


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
