"""The names of all files in a run's folder and in a saved learner's."""

from __future__ import annotations

# a run's folder
SETTINGS = "config.yaml"
RESULT = "result.json"
PREDICTIONS = "predictions.safetensors"
LOG = "train.jsonl"
CHOICE = "choice.json"  # of method=auto: the table that the method was chosen from
SEARCH = "search.jsonl"  # every point of a grid that was tried
PSEUDO_LOG = "pseudo_labels.jsonl"  # a line for each labelling of a pool
PSEUDO_LABELS = "pseudo_labels.csv"  # the images of the last one
CHECKPOINT = "checkpoint.safetensors"
FAILED, TRACEBACK = "failed.json", "failed.log"  # of a run of a sweep
LEARNER = "learner"  # the saved learner's folder in it

# a saved learner's folder
CONFIG = "config.json"
LEARNABLES, LAST = "learner.safetensors", "last.safetensors"
CARD = "README.md"
TEXT = "text"  # sub-folder of the saved learner that it builds on

EXPORTS = (".onnx", ".pt2")  # the endings of exports that ``predict`` reads

DESCRIBED = f"{LEARNER}/{CONFIG}"
