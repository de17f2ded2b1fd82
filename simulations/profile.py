"""A look at the data before training: `python -m simulations.profile --dataset table --data-dir shop.csv ...`."""

if __name__ == "__main__":  # before the imports, which take seconds
    from simulations.start import prepare

    prepare()

import shlex
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from fedrec.data import Dataset
from fedrec.errors import UserError, one_line
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import dataset
from fedrec.experiment.records import json_text
from fedrec.folders import writing
from fedrec.report.findings import plural
from fedrec.report.profile import Overlap, Profile, overlap, profile
from fedrec.report.profile_page import Sharing, page, rated, share, sharing, span
from fedrec.report.profile_suspicions import SAID, Suspicion, suspicions
from simulations.check import check
from simulations.cli import parse
from simulations.estimate import Estimate, estimate
from simulations.run import fitting
from simulations.start import ready, status_of

PAGE, NUMBERS = "profile.html", "profile.json"
WIDTH = 80
LINES = 34  # on the terminal, with the page and the command about 40
MOST = 5  # platforms on the terminal
NAME = 12  # characters of their names there
BRIEF = 6  # lines before a run
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
    with writing(command.out or Path("runs") / f"profile-{data.name}", numbered=command.out is None) as home:
        path = (command.out or Path("runs") / home.name) / PAGE
        record(home, seen, found, shared, takes, told)
    if not command.quiet:
        for line in screen(seen, found, shared, takes):
            console.print(line, soft_wrap=True)
    console.print(f"page: {path}", soft_wrap=True)
    console.print(f"next:\n{continued(told)}", soft_wrap=True)
    return 0


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
        return [*options, "--no-compare"], bare, f"{takes.refusal} (it fits with --no-compare)"
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
    facts = {
        "Read": "; ".join(note for note in seen.notes if not note.startswith(SAID))
        or "nothing was merged, dropped or guessed",
        "Next": shlex.join(told),
    }
    page(seen, found, shared, takes.part(), facts).write(home / PAGE)
    content = {**asdict(seen), "suspicions": [one._asdict() for one in found], "sharing": shared._asdict()}
    content |= {"estimate": {**asdict(takes), "memory": takes.memory, "time": takes.time}, "command": list(told)}
    (home / NUMBERS).write_text(json_text(content), encoding="utf-8")


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
    """Return what is said of a table before a run, in at most `BRIEF` lines of 80 characters."""
    if e.dataset in KNOWN:
        return []
    data = dataset(e)
    common, found = overlap(data), suspicions(data, time.time())
    first = f"data: {heading(data.name, len(data.interactions), common)}"
    shared = f"sharing: {sharing(common, by_platform(e, data)).words}"
    doubts = [f"suspicious: {one.text}" for one in found]
    lines = [*textwrap.wrap(first, WIDTH), *textwrap.wrap(shared, WIDTH)][: BRIEF - min(len(doubts), 2)]
    room = BRIEF - len(lines)
    if len(doubts) > room:
        rest = len(doubts) - room + 1
        doubts = [*doubts[: room - 1], f"{rest} more suspicions: python -m simulations.profile with these options"]
    return [cut(line) for line in (*lines, *doubts)]


def cut(line: str) -> str:
    """Return one line of at most 80 characters."""
    return shortened(one_line(line))


def heading(name: str, rows: int, o: Overlap) -> str:
    """Return the sizes of a dataset in words."""
    sizes = f"{plural(rows, 'interaction')} of {plural(o.all_users, 'user')} with {plural(o.all_items, 'item')}"
    return f"{name}, {sizes}, {plural(o.platforms, 'platform')}"


def screen(p: Profile, found: Sequence[Suspicion], shared: Sharing, takes: Estimate) -> list[str]:
    """Return the lines of the terminal, each of at most 80 characters, at most `LINES` of them."""
    sizes, ends = [*sums(p)], wrapped(f"a run takes {takes.words()}")
    tables = ["", *aligned(platforms(p))]
    if len(p.platforms) > MOST:
        tables.append(f"... and {len(p.platforms) - MOST} more on the page")
    if 1 < len(p.overlap.names) <= MOST:
        tables += ["", *aligned(matrix(p))]
    middle = ["", *wrapped(f"sharing: {shared.words}")[:3]]
    doubts = [wrapped(f"suspicious: {one.text}") for one in found]
    read = [wrapped(f"read: {note}") for note in p.notes if not note.startswith(SAID)]
    room = LINES - sum(map(len, (sizes, tables, middle, ends)))
    shown = fill(doubts, room, "suspicions")
    return [*sizes, *fill(read, room - len(shown), "things said"), *tables, *middle, *shown, *ends]


def fill(texts: Sequence[list[str]], room: int, what: str) -> list[str]:
    """Return the lines of as many texts as there is room for, and how many are left out; each has two at most."""
    lines: list[str] = []
    for place, text in enumerate(texts):
        last = place + 1 == len(texts)
        if len(lines) + len(text[:2]) + (not last) > room:
            return [*lines, f"... and {len(texts) - place} more {what} on the page"] if room > 0 else []
        lines += text[:2]
    return lines


def wrapped(text: str) -> list[str]:
    """Return a text as lines of at most 80 characters."""
    return textwrap.wrap(one_line(text), WIDTH, subsequent_indent="  ")


def sums(p: Profile) -> Iterator[str]:
    """Yield what the interactions are as a whole."""
    whole = p.whole
    yield from wrapped(f"{heading(p.name, whole.rows, p.overlap)}; density {share(whole.density)}")
    merged = f"{p.read:,} rows read, repeats merged; " * (p.read > whole.rows)
    yield from wrapped(
        f"{merged}times {span(whole.times)}; {f'ratings {rated(whole)}' if whole.ratings else 'no ratings'}"
    )
    few, counts = ", ".join(map(str, whole.few)), ", ".join(f"{count:,}" for count in whole.few.values())
    yield cut(f"users under {few} rows: {counts}; the top 1% of items have {share(whole.top)} of rows")
    rates = {name: one.rate for name, one in whole.labels.items()}
    for word, shares in (("labels", rates), ("missing", p.missing)):
        if shares:
            yield from wrapped(f"{word}: {', '.join(f'{name} {share(x)}' for name, x in shares.items())}")[:2]
    if alike(p):
        yield from wrapped(f"each could train {', '.join(whole.tasks)}")[:2]


def alike(p: Profile) -> bool:
    """Return whether every platform could train the same tasks."""
    return all(group.tasks.keys() == p.whole.tasks.keys() for group in p.platforms)


def platforms(p: Profile) -> list[list[str]]:
    """Return the cells of the platforms' table: the largest, with what each could train where that differs."""
    rows = [["platform", "rows", "users", "items", "density", "under 3", *["could train"] * (not alike(p))]]
    for g in sorted(p.platforms, key=lambda group: -group.rows)[:MOST]:
        sizes = [f"{g.rows:,}", f"{g.users:,}", f"{g.items:,}", share(g.density), f"{g.few[3]:,}"]
        rows.append([g.name, *sizes, *[", ".join(g.tasks)] * (not alike(p))])
    return rows


def matrix(p: Profile) -> list[list[str]]:
    """Return the cells of the users and items that platforms have in common."""
    names = p.overlap.names
    both = zip(names, p.overlap.users, p.overlap.items, strict=True)
    cells = [[name, *(f"{u:,}/{i:,}" for u, i in zip(us, items, strict=True))] for name, us, items in both]
    return [["users/items", *names], *cells]


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows of a table, the first its heading, in columns of at most 80 characters: numbers to the right."""
    shown = [
        [cell if n and row is not rows[0] else one_line(cell)[:NAME] for n, cell in enumerate(row)] for row in rows
    ]
    columns = list(zip(*shown, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numbers = [all(cell[:1].isdigit() for cell in column[1:]) for column in columns]
    for row in shown:
        cells = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numbers, strict=True))
        yield shortened("  ".join(cells).rstrip())


def shortened(line: str) -> str:
    """Return a line of at most 80 characters, with its blanks."""
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 4]} ..."


if __name__ == "__main__":
    ready()
    sys.exit(main())
