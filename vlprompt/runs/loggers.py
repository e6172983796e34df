"""``logger=``: a run's numbers in TensorBoard, Weights & Biases, or a logger of your own.

With or without one, a run's folder has its epochs as JSON lines, ``train.jsonl``, and its tests, ``result.json``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlprompt.base.registry import Entry, Registry
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.results import Result
from vlprompt.learner.facts import marked

NONE = "none"
TABLE = ("tested on", "classes", "images", "zero-shot", "accuracy")
MEASURES = ("accuracy", "macro_accuracy", "top5", "ece", "zero_shot")  # of each test, in percent


@dataclass(frozen=True)
class LoggedRun:
    """The run that a logger is created for.

    Attributes:
        folder: the run's folder.
        settings: all of them, including the method's own.
    """

    folder: Path
    settings: Mapping[str, Any]


class Logger(Protocol):
    """Receives a run's numbers; created with a ``LoggedRun``, and registered with ``LOGGERS.register(name)``."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Receive an epoch's record, see ``vlprompt.training.train``; a resumed run first repeats its earlier ones."""

    def result(self, result: Result) -> None:
        """Receive the result of a run that finished."""

    def close(self, finished: bool) -> None:
        """Called last, whether the run finished or failed."""


MakeLogger = Callable[[LoggedRun], Logger]
LOGGERS: Registry[MakeLogger] = Registry("logger")


def parse_loggers(setting: Any) -> list[Entry[MakeLogger]]:
    """Return the loggers that ``logger=`` names: one, a list, or ``none``.

    Raises:
        VlpromptError: a name is unknown, with the nearest ones.
    """
    names = setting if isinstance(setting, (list, tuple)) else [setting]
    chosen = dict.fromkeys(str(name) for name in names if name not in (NONE, None))
    return [LOGGERS.info(name) for name in chosen]


def check_installed(setting: Any) -> None:
    """Raise a ``VlpromptError`` if a logger's package is not installed."""
    for entry in parse_loggers(setting):
        package = entry.facts.get("package")
        if package and importlib.util.find_spec(package) is None:
            raise VlpromptError(f'logger={entry.name} needs {package}: pip install "vlprompt[{entry.name}]"')


class Loggers:
    """Several loggers as one."""

    def __init__(self, loggers: list[Logger]):
        self.loggers = loggers

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Pass an epoch's record to all."""
        for logger in self.loggers:
            logger.epoch(record)

    def result(self, result: Result) -> None:
        """Pass the result to all."""
        for logger in self.loggers:
            logger.result(result)


@contextlib.contextmanager
def open_loggers(setting: Any, run: LoggedRun) -> Iterator[Loggers]:
    """Yield the loggers that ``logger=`` names, and close them also after an error.

    Raises:
        VlpromptError: a name is unknown, a package is not installed, or a service cannot be reached.
    """
    check_installed(setting)
    with contextlib.ExitStack() as stack:
        yield Loggers([stack.enter_context(_closing(entry.value(run))) for entry in parse_loggers(setting)])


@contextlib.contextmanager
def _closing(logger: Logger) -> Iterator[Logger]:
    finished = False
    try:
        yield logger
        finished = True
    finally:
        logger.close(finished)


def trained_values(record: Mapping[str, Any]) -> dict[str, float]:
    """An epoch's numbers under the names that loggers use: ``train/loss``, ``train/lr`` and so on."""
    return {f"train/{name}": value for name, value in record.items() if name != "epoch"}


def tested_values(result: Result) -> dict[str, float]:
    """A result's numbers: ``test/TARGET/accuracy`` … in percent, and averages such as ``test/harmonic_mean``."""
    values = {f"test/{row.target}/{name}": getattr(row, name) for row in result.rows for name in MEASURES}
    values |= {f"test/{name}": value for name, value in result.averages.items()}
    return {name: value for name, value in values.items() if value is not None}


def table_rows(result: Result) -> list[list[Any]]:
    """The rows of the final table, whose columns are ``TABLE``: one per test, then the averages."""
    rows: list[list[Any]] = [
        [marked(row.target, row.predicts), row.n_classes, row.n_images, row.zero_shot, row.accuracy]
        for row in result.rows
    ]
    for name, value in result.averages.items():
        if not name.startswith("zero_shot_"):
            rows.append([name.replace("_", " "), None, None, result.averages[f"zero_shot_{name}"], value])
    return rows


@LOGGERS.register("tensorboard", package="tensorboard")
class TensorBoardLogger:
    """Event files in the run's folder ``tensorboard``; ``tensorboard --logdir runs`` shows all runs."""

    def __init__(self, run: LoggedRun):
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)  # a resumed run logs all its epochs again
        self.writer = SummaryWriter(folder)
        settings = "\n".join(f"    {key}: {value}" for key, value in run.settings.items())  # indented: shown as is
        self.writer.add_text("settings", settings)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write an epoch's scalars; steps count epochs from 1."""
        for name, value in trained_values(record).items():
            self.writer.add_scalar(name, value, record["epoch"] + 1)

    def result(self, result: Result) -> None:
        """Write the tests as scalars, and the table as text."""
        for name, value in tested_values(result).items():
            self.writer.add_scalar(name, value)
        lines = [TABLE, ["---"] * len(TABLE), *table_rows(result)]
        cells = [["" if x is None else f"{x:.2f}" if isinstance(x, float) else str(x) for x in line] for line in lines]
        self.writer.add_text("result", "\n".join(f"| {' | '.join(line)} |" for line in cells))

    def close(self, finished: bool) -> None:
        """Flush and close the event file."""
        self.writer.close()


@LOGGERS.register("wandb", package="wandb")
class WandbLogger:
    """A run in the W&B project that ``WANDB_PROJECT`` names, by default ``vlprompt``; a resumed run is a new one."""

    def __init__(self, run: LoggedRun):
        import wandb

        settings = dict(run.settings)
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "vlprompt"),
                name=f"{settings['method']}-{run.folder.name}",
                group=f"{settings['dataset']}/{settings['protocol']}",
                dir=run.folder,
                config=settings,
                settings=wandb.Settings(silent=bool(settings.get("quiet"))),
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise VlpromptError(
                f"logger=wandb: {reason}; log in with `wandb login`, or set WANDB_MODE=offline"
            ) from None
        self.make_table = wandb.Table

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Send an epoch's numbers; steps count epochs from 1."""
        self.run.log(trained_values(record), step=record["epoch"] + 1)

    def result(self, result: Result) -> None:
        """Send the tests as the run's summary, and the table."""
        self.run.log({"result": self.make_table(columns=list(TABLE), data=table_rows(result))})
        self.run.summary.update(tested_values(result))

    def close(self, finished: bool) -> None:
        """Finish the W&B run, as failed if the run did not finish."""
        self.run.finish(exit_code=0 if finished else 1)
