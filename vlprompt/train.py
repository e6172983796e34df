"""Train a learner and test it: ``python -m vlprompt.train key=value …``."""

import sys

from vlprompt.cli.train import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
