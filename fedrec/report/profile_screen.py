"""A profile on the terminal: a screen of it, and a few lines before a run."""

import textwrap
from collections.abc import Iterator, Sequence

from fedrec.data.assembly import WEIGHTS
from fedrec.data.types import Dataset
from fedrec.errors import one_line
from fedrec.report.profile import Profile, overlap
from fedrec.report.profile_suspicions import SAID, Suspicion, suspicions
from fedrec.report.profile_words import Sharing, heading, rated, share, sharing, span

WIDTH = 80
LINES = 34  # of a screen, with the page and the command about 40
MOST = 5  # platforms
NAME = 12  # characters of their names
BRIEF = 6  # lines before a run


def screen(p: Profile, found: Sequence[Suspicion], shared: Sharing, takes: str) -> list[str]:
    """Return the lines of the terminal, each of at most 80 characters, at most `LINES` of them."""
    sizes, ends = [*sums(p)], wrapped(f"a run takes {takes}")
    tables = ["", *aligned(platforms(p))]
    if len(p.platforms) > MOST:
        tables.append(f"... and {len(p.platforms) - MOST} more on the page")
    if 1 < len(p.overlap.names) <= MOST:
        tables += ["", *aligned(matrix(p))]
    middle = ["", *wrapped(f"sharing: {shared.words}")[:3]]
    doubts = [wrapped(f"{'refused' if one.kind == 'memory' else 'suspicious'}: {one.text}") for one in found]
    read = [wrapped(f"read: {note}") for note in p.notes if not note.startswith((SAID, WEIGHTS))]
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
    times = f"times {span(whole.times)}" if whole.times else "no times"
    ratings = f"ratings {rated(whole)}" if whole.ratings else "no ratings"
    yield from wrapped(f"{merged}{times}; {ratings}")
    yield from weights(p.notes)
    few, counts = ", ".join(map(str, whole.few)), ", ".join(f"{count:,}" for count in whole.few.values())
    yield cut(f"users under {few} rows: {counts}; the top 1% of items have {share(whole.top)} of rows")
    rates = {name: one.rate for name, one in whole.labels.items()}
    for word, shares in (("labels", rates), ("missing", p.missing)):
        if shares:
            yield from wrapped(f"{word}: {', '.join(f'{name} {share(x)}' for name, x in shares.items())}")[:2]
    if alike(p):
        yield from wrapped(f"each could train {', '.join(whole.tasks)}")[:2]


def weights(notes: Sequence[str]) -> Iterator[str]:
    """Yield what is said of the weights of interactions, in one line, if they have any."""
    yield from (cut(note) for note in notes if note.startswith(WEIGHTS))


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


def short(data: Dataset, by_platform: bool, now: float) -> list[str]:
    """Return what is said of a table before a run, in at most `BRIEF` lines of 80 characters."""
    common, found = overlap(data), suspicions(data, now)
    first = f"data: {heading(data.name, len(data.interactions), common)}"
    shared = f"sharing: {sharing(common, by_platform).words}"
    doubts = [f"suspicious: {one.text}" for one in found]
    lines = [*textwrap.wrap(first, WIDTH), *weights(data.notes), *textwrap.wrap(shared, WIDTH)]
    lines = lines[: BRIEF - min(len(doubts), 2)]
    room = BRIEF - len(lines)
    if len(doubts) > room:
        rest = len(doubts) - room + 1
        doubts = [*doubts[: room - 1], f"{rest} more suspicions: python -m simulations.profile with these options"]
    return [cut(line) for line in (*lines, *doubts)]


def cut(line: str) -> str:
    """Return one line of at most 80 characters."""
    return shortened(one_line(line))
