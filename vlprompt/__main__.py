"""``python -m vlprompt COMMAND key=value …``, where the ``vlprompt`` command is not on the path."""

import sys

from vlprompt.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
