"""The methods, one short file each; importing this package registers them."""

from vlprompt.methods import (
    cocoop,
    coop,
    coprompt,
    ivlp,
    kgcoop,
    maple,
    mvlpt,
    pre,
    proda,
    prograd,
    promptsrc,
    restore,
    vpt,
    zero_shot,
)

__all__ = [
    "cocoop",
    "coop",
    "coprompt",
    "ivlp",
    "kgcoop",
    "maple",
    "mvlpt",
    "pre",
    "proda",
    "prograd",
    "promptsrc",
    "restore",
    "vpt",
    "zero_shot",
]
