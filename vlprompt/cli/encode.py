"""Compute the image features of a dataset in advance, in shards, here or on a Ray cluster; resumable."""

from __future__ import annotations

from collections.abc import Sequence

from vlprompt.base.reporter import Reporter
from vlprompt.cli._executors import PARTS, check_executor, make_workers
from vlprompt.cli._shared import command, number_setting, parse
from vlprompt.errors import VlpromptError

USAGE = """vlprompt encode dataset=NAME [images=[train,test]] [views=1] [backbone=…] [KEY=VALUE …] [shard=10000]
                [batch_size=100] [executor=local|ray] [--quiet]

Computes the image features that runs with the same settings will use: of all training and test images, or of those
that protocol=, shots=, seed= and similar settings select; `images` may also include val or pool. KEY=VALUE is a setting
of `python -m vlprompt.train` that determines images or backbone (data_root, split, pretrained, precision, …).
More than `shard` images are written as a bank of several shards. If interrupted, the same command continues at the
first missing shard; a damaged shard is computed again.

executor=ray [address=auto] [cpus=1] [gpus=0] [actors=N]   a Ray cluster; cpus and gpus are per actor"""
OWN = ("images", "shard", "batch_size")


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Encode, and print where the features are."""
    arguments = parse(argv)
    settings = dict(arguments.settings)
    check_executor(settings, PARTS)
    if "dataset" not in settings:
        raise VlpromptError("say which dataset: vlprompt encode dataset=NAME")
    shard, batch_size = number_setting(settings, "shard", most=10**9), number_setting(settings, "batch_size")
    sources = settings.get("images", ["train", "test"])
    sources = sources if isinstance(sources, list) else [sources]
    from vlprompt.runs.encode import encode

    reporter, workers = Reporter("--quiet" in arguments.flags), make_workers(settings)
    for key in OWN:
        settings.pop(key, None)
    banks = encode(
        settings, sources=sources, shard=shard, batch_size=batch_size or 100, workers=workers, reporter=reporter
    )
    for name, bank in banks.items():
        reporter.say(
            f"{name}: {bank.views} × {len(bank):,} images, {bank.features.shape[2]} numbers each, in {bank.path}"
        )
    return 0
