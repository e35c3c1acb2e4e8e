"""The command line: one verb, one function, one command.

Every command imports what it needs inside its body, so that ``--help`` does not wait for torch. One module per group of
verbs; importing it registers them, in the order of the help page.
"""

from duskfuse.cli import machine, offline, training, evaluation, edge, bench  # isort: skip
from duskfuse.cli.application import app

__all__ = ["app", "bench", "edge", "evaluation", "machine", "main", "offline", "training"]


def main() -> None:
    """Entry point of the ``duskfuse`` command."""
    app()
