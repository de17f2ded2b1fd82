"""What the command lines of studies have in common."""

import argparse
from collections.abc import Sequence

from fedrec.errors import UserError


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return a study's own options, among them `seeds` and `workers`, and the options of a run that are left.

    Raises UserError for numbers of seeds or workers below 1.
    """
    options, flags = parser.parse_known_args(argv)
    if options.seeds < 1 or options.workers < 1:
        raise UserError(f"seeds, workers: must be at least 1, found {options.seeds}, {options.workers}")
    return options, flags
