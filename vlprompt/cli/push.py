"""Share a saved learner on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence

from vlprompt.base.reporter import make_console
from vlprompt.cli._shared import check_keys, command, flag_setting, parse
from vlprompt.errors import VlpromptError
from vlprompt.saving.hub import FILES

USAGE = """vlprompt push learner=DIR repo=USER/NAME [license=mit] [private=true] [dry_run=true] [--quiet]

Uploads what was learnt, its configuration and a model card. The card includes the run's results if `DIR` is the folder
of a run or lies inside one. Others then load it with vlprompt.load_learner("hf://USER/NAME"). `dry_run=true` checks
everything and uploads nothing. Log in once with: hf auth login"""
KEYS = ("learner", "repo", "license", "private", "dry_run")


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Push a saved learner and print its address."""
    arguments = parse(argv)
    settings = arguments.settings
    check_keys(settings, KEYS)
    for key, what in (("learner", "learner=DIR, a saved learner or a run"), ("repo", "repo=USER/NAME")):
        if key not in settings:
            raise VlpromptError(f"say which: vlprompt push needs {what}")
    from vlprompt.saving.push import push_folder

    private, dry_run = flag_setting(settings, "private"), flag_setting(settings, "dry_run")
    address = push_folder(
        str(settings["learner"]),
        str(settings["repo"]),
        private=private,
        license=None if settings.get("license") is None else str(settings["license"]),
        dry_run=dry_run,
    )
    if "--quiet" not in arguments.flags:
        done = "would be sent to" if dry_run else "sent to"
        make_console().print(f"{', '.join(FILES)}: {done} {address}", markup=False, soft_wrap=True)
    return 0
