"""What the command lines of studies have in common."""

import math
import textwrap
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrec.errors import Parser, UserError

Options = Mapping[str, tuple[Any, str]]  # by name: the default, or the type of one that has none, and what it is
WORDS = {
    "async": "rounds that wait, and rounds of the first answers",
    "auditing": "canaries: does a run keep the epsilon that it promises?",
    "cold": "items that nobody has met: what content is worth",
    "compression": "quality against bytes: codecs of what clients send",
    "constraints": "every form of a tie against other solvers",
    "distillation": "small students of the clients' models: cost and accuracy",
    "fairness": "ties of losses at the test, and what they cost",
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
    "triples": "triples a second of matrix factorisation",
}
MODULES = {"async": "asynchrony"}  # of studies whose name is a keyword, and no module's
SEEDS = "paired seeds: 0, 1, ... share data, start and order"
REST = "Every option of a run may be given too, see python -m simulations.run --help."
FIXED = ("speed",)  # whose experiments are fixed
COUNTS = (("seeds", "workers"), ("repeats",), ("canaries",))  # checked together


def budget(text: str) -> str:
    """Return a budget as it is written; raises UserError for one that is no number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise UserError(f"epsilon: must be numbers above 0, or inf, joined by commas, found {text!r}")
    return text.strip()


def overview() -> str:
    """Return the text of --help without a study."""
    lines = [f"  {name:<13} {text}" for name, text in WORDS.items()]
    usage = "usage: python -m simulations.studies STUDY [OPTION ...]"
    end = "python -m simulations.studies STUDY --help lists the options. Results are in runs/study-STUDY, or in --out."
    return "\n".join([usage, "", *lines, "", *textwrap.wrap(end, 79)])


def parse_options(name: str, fields: Options, argv: Sequence[str], epilog: str = "") -> Namespace:
    """Return the options of a study, `out` among them, and as `flags` what is left: those of a run.

    `epilog` is said below them in --help. Raises UserError for a wrong value and for a count below 1.
    """
    parser = Parser(
        prog=f"python -m simulations.studies {name}",
        description=WORDS[name],
        epilog=" ".join(filter(None, [epilog, "" if name in FIXED else REST])),
        allow_abbrev=False,
    )
    out = (Path(f"runs/study-{name}"), "a new folder for the results")
    for option, (default, words) in {**fields, "out": out}.items():
        if default is False:
            parser.add_argument(f"--{option}", action="store_true", help=words)
        elif isinstance(default, type):
            parser.add_argument(f"--{option}", type=default, help=words)
        else:
            text = words if default in ("", 0) or words.endswith("]") else f"{words} [%(default)s]"
            parser.add_argument(f"--{option}", type=type(default), default=default, help=text)
    options, flags = parser.parse_known_args(argv)
    for counts in COUNTS:
        numbers = {count: getattr(options, count) for count in counts if count in options}
        if min(numbers.values(), default=1) < 1:
            values = ", ".join(map(str, numbers.values()))
            raise UserError(f"{', '.join(numbers)}: must be at least 1, found {values}")
    return Namespace(**vars(options), flags=flags)
