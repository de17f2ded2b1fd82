"""What the command lines of studies have in common."""

import argparse
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from fedrec.errors import UserError

WORDS = {
    "auditing": "canaries: does a run keep the epsilon that it promises?",
    "cold": "items that nobody has met: what content is worth",
    "distillation": "small students of the clients' models: cost and accuracy",
    "methods": "methods side by side, against training alone",
    "newcomer": "a platform that joins late",
    "privacy": "utility, attacks and audits against the budget",
    "promise": "what a promise of privacy costs: batches, clipping, noise",
    "published": "PFedRec under its authors' protocol, and under ours",
    "ratings": "RMSE of ratings under user-level privacy",
    "scale": "seconds a round with more and more clients",
    "sequences": "users that are read from their last items",
    "speed": "seconds a round of every engine",
    "tasks": "several tasks in one model, against each alone",
}
REST = "Every option of a run may be given too, see python -m simulations.run --help."
FIXED = ("speed",)  # whose experiments are fixed


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message.replace("argument --", "option --", 1))


def parser_of(name: str, more: str = "") -> argparse.ArgumentParser:
    """Return the parser of a study's command line; `more` is said below its options."""
    return _Parser(
        prog=f"python -m simulations.studies {name}",
        description=WORDS[name],
        epilog=" ".join(filter(None, [more, "" if name in FIXED else REST])),
        formatter_class=_Help,
        allow_abbrev=False,
    )


class _Help(argparse.HelpFormatter):
    """Says the default of every option that has one, where its help does not."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, "", argparse.SUPPRESS, False) or text.endswith("]"):
            return text
        return f"{text} [%(default)s]"


def overview() -> str:
    """Return the text of --help without a study."""
    lines = [f"  {name:<13} {text}" for name, text in WORDS.items()]
    usage = "usage: python -m simulations.studies STUDY [OPTION ...]"
    end = "python -m simulations.studies STUDY --help lists the options. Results are in runs/study-STUDY, or in --out."
    return "\n".join([usage, "", *lines, "", *textwrap.wrap(end, 79)])


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return a study's own options, among them `seeds` and `workers`, and the options of a run that are left.

    Raises UserError for numbers of seeds or workers below 1.
    """
    options, flags = parser.parse_known_args(argv)
    if options.seeds < 1 or options.workers < 1:
        raise UserError(f"seeds, workers: must be at least 1, found {options.seeds}, {options.workers}")
    return options, flags
