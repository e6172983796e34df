"""The commands of ``vlprompt``, one thin module each with ``main(argv) -> exit status``."""
