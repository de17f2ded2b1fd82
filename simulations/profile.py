"""A look at the data before training: `python -m simulations.profile --dataset table --data-dir shop.csv ...`."""

if __name__ == "__main__":  # before the imports, which take seconds
    from simulations.start import prepare

    prepare()

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from fedrec.data import Dataset
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import dataset
from fedrec.experiment.naming import slug
from fedrec.experiment.records import json_text
from fedrec.folders import writing
from fedrec.report.findings import size
from fedrec.report.profile import Profile, profile
from fedrec.report.profile_screen import WIDTH, screen, short
from fedrec.report.profile_suspicions import SAID, Suspicion, suspicions
from fedrec.report.profile_words import Sharing, sharing
from simulations.check import check
from simulations.cli import parse
from simulations.estimate import WITHOUT, Estimate, estimate, lasting
from simulations.run import fitting
from simulations.start import ready, status_of

PAGE, NUMBERS = "profile.html", "profile.json"
RUNNING = ("--resume", "--checkpoint-every", "--estimate")
KNOWN = ("synthetic", "ml-100k")  # whose data need no look before each run
USAGE = """\
usage: fedrec profile [--OPTION VALUE ...]  (python -m simulations.profile ...)

Look at data before anything is trained: sizes, tails, times, labels, ratings,
who has what in common with whom, what each platform could train, what sharing
could do, what looks like a slip, what a run would take, and the command to run.

The options are those of a run (fedrec run --help), but those of running alone.
  --out DIR   folder of profile.html and profile.json, new or empty
              [runs/profile-NAME]
  --quiet     print the folder and the command alone"""


def main(argv: Sequence[str] | None = None) -> int:
    """Look at the data that the command line names; return the status, see `status_of`, or leave after --help."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given in (["--help"], ["-h"]):
        print(USAGE)
        raise SystemExit(0)
    return status_of(lambda: look(given, Console(markup=False, emoji=False, highlight=False)))


def look(argv: Sequence[str], console: Console) -> int:
    """Look at the data of a command line, write the page and the numbers, and print a screen; raises UserError."""
    for name in (token.partition("=")[0] for token in argv):
        if name in RUNNING:
            raise UserError(f"option {name}: acts only with a run, and a profile runs nothing")
    command = parse(argv)
    data = dataset(command.experiment)
    seen, found = profile(data), suspicions(data, time.time())
    shared = sharing(seen.overlap, by_platform(command.experiment, data))
    options, takes, refused = following(argv, shared)
    found = [*[Suspicion("memory", refused)] * bool(refused), *found]
    told = ["python", "-m", "simulations.run", *options]
    called = Path("runs") / f"profile-{slug(title(command.experiment))}"
    with writing(command.out or called, numbered=command.out is None) as home:
        path = (command.out or Path("runs") / home.name) / PAGE
        record(home, seen, found, shared, takes, told)
    if not command.quiet:
        for line in screen(seen, found, shared, takes.words()):
            console.print(line, soft_wrap=True)
    console.print(f"page: {path}", soft_wrap=True)
    console.print(f"next:\n{continued(told)}", soft_wrap=True)
    return 0


def title(e: Experiment) -> str:
    """Return what the folder is called after: the data by name, or the platforms, folder or file of a table."""
    path = e.data_dir
    if e.dataset != "table" or path is None:
        return e.dataset
    names = [part.partition("=")[0].strip() for part in str(path).split(";") if "=" in part]
    named = path.parent if set(path.name) & set("*?[") else path
    return "-".join(names) or named.name.partition(".")[0] or e.dataset


def by_platform(e: Experiment, data: Dataset) -> bool:
    """Return whether the clients are the platforms of the data."""
    return e.partition == "platform" or (e.partition == "auto" and len(data.platforms) > 1)


def following(argv: Sequence[str], shared: Sharing) -> tuple[list[str], Estimate, str]:
    """Return the options of the run to follow, those given and what makes sharing do what it can, and what it takes.

    The text says why a run with the options given would be refused for its memory; where it fits without its baselines
    it is without them. Raises UserError for anything else that a run refuses.
    """
    options, tokens = [], iter(argv)
    for token in tokens:
        if token == "--out":
            next(tokens, None)
        elif token != "--quiet" and not token.startswith("--out="):
            options.append(token)
    chosen = {token.partition("=")[0] for token in options} & {"--share", "--method", "--model", "--config", "--from"}
    takes = outlook(options)
    if shared.options and not chosen:
        with suppress(UserError):
            takes = outlook([*options, *shared.options])
            options += shared.options
    if takes.fits:
        return options, takes, ""
    bare = outlook([*options, "--no-compare"])
    if bare.fits:
        return [*options, "--no-compare"], bare, f"{takes.refusal} ({WITHOUT})"
    return options, takes, takes.refusal


def outlook(options: Sequence[str]) -> Estimate:
    """Return what a run with some options would take; raises UserError for what it refuses, but for its memory."""
    command = fitting(parse(options))
    takes = estimate(command.experiment, command.compare)
    if takes.fits:
        check(command.experiment)
    return takes


def record(
    home: Path, seen: Profile, found: Sequence[Suspicion], shared: Sharing, takes: Estimate, told: Sequence[str]
) -> None:
    """Write the page, and the numbers for programs."""
    from fedrec.report.profile_page import page  # and with it what draws, which a run needs last

    read = "; ".join(note for note in seen.notes if not note.startswith(SAID))
    facts = {"Read": read or "nothing was merged, dropped or guessed", "Next": shlex.join(told)}
    page(seen, found, shared, taken(takes), facts).write(home / PAGE)
    content = {**asdict(seen), "suspicions": [one._asdict() for one in found], "sharing": shared._asdict()}
    content |= {"estimate": {**asdict(takes), "memory": takes.memory, "time": takes.time}, "command": list(told)}
    (home / NUMBERS).write_text(json_text(content), encoding="utf-8")


def taken(takes: Estimate) -> list[dict[str, str]]:
    """Return an estimate as it is printed, by what takes memory and time."""
    rows = [{"what": name, "memory": size(n), "time": ""} for name, n in takes.bytes.items()]
    rows += [{"what": name, "memory": "", "time": lasting(s)} for name, s in takes.seconds.items() if s]
    return [*rows, {"what": "together", "memory": size(takes.memory), "time": lasting(takes.time)}]


def continued(told: Sequence[str]) -> str:
    """Return a command on lines of at most 80 characters, if its words allow it, that a shell takes for one."""
    lines = [""]
    for words in pairs(told):
        if lines[-1] and len(lines[-1]) + 1 + len(words) > WIDTH - 2:
            lines.append("   ")
        lines[-1] += " " * bool(lines[-1]) + words
    return " \\\n".join(lines)


def pairs(told: Sequence[str]) -> Iterator[str]:
    """Yield the words of a command as a shell reads them, an option with the value that follows it."""
    words = [shlex.quote(word) for word in told]
    place = 0
    while place < len(words):
        both = words[place].startswith("--") and place + 1 < len(words) and not words[place + 1].startswith("--")
        yield " ".join(words[place : place + 1 + both])
        place += 1 + both


def brief(e: Experiment) -> list[str]:
    """Return what is said of a table before a run, in at most six lines."""
    if e.dataset in KNOWN:
        return []
    data = dataset(e)
    return short(data, by_platform(e, data), time.time())


if __name__ == "__main__":
    ready()
    sys.exit(main())
