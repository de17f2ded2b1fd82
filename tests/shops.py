"""Three shops' exports as shops have them, each in a form of its own, with a row in a hundred that is broken.

Nord has a CSV of ratings in Latin-1 with semicolons, decimal commas and written dates; Web has JSON lines of events;
Books has a folder of Parquet parts of another schema, with its items and its readers in files of their own.
"""

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

DAY = date(2021, 3, 1)
ACTIONS = ("view", "view", "cart", "purchase", "order")
BOTH = ["0007", "Åsa Öst", *(f"kunde {k}" for k in range(10))]  # users of Nord and of Web
SHELF = [f"{k:06d}" for k in range(100, 130)]  # items of Nord and of Books
NORD = [*BOTH, *(f"n{k}" for k in range(15))]
WEB = [*BOTH, "日本 花子", *(f"w{k}" for k in range(15))]
READERS = [f"R{k:04d}" for k in range(25)]
COLUMNS = (
    "nord:user=Kunde,item=Artikelnr,title=Bezeichnung,category=Warengruppe,price=Preis,rating=Bewertung,time=Datum;"
    "web:user=visitor,item=sku,event=action,time=ts;books:user=reader,item=isbn,rating=stars,time=read_at"
)


@dataclass(frozen=True)
class Shops:
    """The options that read the exports; by platform pairs of a user and an item, and items; by file its bad rows."""

    options: list[str]
    pairs: dict[str, set[tuple[str, str]]]
    items: dict[str, set[str]]  # catalogues
    bad: dict[str, int]


def pairs_of(users: list[str], items: list[str], each: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Return so many items of every user, in an order of their own."""
    found = [(user, item) for user in users for item in rng.permutation(items)[:each].tolist()]
    return [found[k] for k in rng.permutation(len(found))]


def write_shops(home: Path) -> Shops:
    """Write the exports of the three shops into a folder."""
    rng = np.random.default_rng(16)
    nord, catalogue = write_nord(home / "nord.csv", rng), [f"{k:06d}" for k in range(100, 140)]
    web = write_web(home / "web.jsonl", rng)
    books = write_books(home / "books", rng)
    options = ["--dataset", "table", "--columns", COLUMNS, "--rows", "drop"]
    options += ["--data-dir", f"nord={home / 'nord.csv'};web={home / 'web.jsonl'};books={home / 'books' / 'loans'}"]
    options += ["--events", "click=view,cart;buy=purchase,order", "--reading.scale", "1..5;books=0..10"]
    options += ["--reading.items", f"books={home / 'books' / 'items.parquet'}"]
    options += ["--reading.users", f"books={home / 'books' / 'readers.parquet'}"]
    options += ["--reading.user-columns", "key=reader,age=age,region=region"]
    items = {name: {item for _, item in pairs} for name, pairs in (("nord", nord), ("web", web))}
    bad = {"nord.csv": 3, "web.jsonl": 3, "part-0.parquet": 2, "part-1.parquet": 1}
    return Shops(options, {"nord": nord, "web": web, "books": books}, {**items, "books": {*catalogue}}, bad)


def write_nord(path: Path, rng: np.random.Generator) -> set[tuple[str, str]]:
    """Write ratings, of which some are missing, with titles that hold the delimiter; return the pairs."""
    pairs = pairs_of(NORD, SHELF, 10, rng)
    lines = ["Kunde;Artikelnr;Bezeichnung;Warengruppe;Preis;Bewertung;Datum"]
    for n, (user, item) in enumerate(pairs):
        stars = "" if n % 20 == 3 else f"{rng.integers(2, 11) / 2:.1f}".replace(".", ",")
        day = (DAY + timedelta(days=int(rng.integers(0, 300)))).strftime("%d.%m.%Y")
        price, group = f"{int(item) / 7:.2f}".replace(".", ","), "Bücher" if int(item) % 2 else "Spiele"
        lines.append(f'{user};{item};"Größe {int(item)}; gebraucht";{group};{price};{stars};{day}')
    good = lines[1].split(";")
    broken = [["", *good[1:]], [*good[:-2], "vier", good[-1]], [*good[:-1], "41.13.2021"]]
    for place, cells in zip((20, 90, 200), broken, strict=True):
        lines.insert(place, ";".join(cells))
    path.write_text("\n".join(lines) + "\n", encoding="latin-1")
    return set(pairs)


def write_web(path: Path, rng: np.random.Generator) -> set[tuple[str, str]]:
    """Write events, several of a pair, at times in milliseconds; return the pairs."""
    pairs = pairs_of(WEB, [f"W-{k}" for k in range(40)], 8, rng)
    start = int(datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC).timestamp())
    lines = []
    for n, (user, item) in enumerate([*pairs, *pairs[:60]]):
        event: dict[str, Any] = {"visitor": user, "sku": item, "action": str(rng.choice(ACTIONS))}
        event["ts"] = 1000 * (start + int(rng.integers(0, 300 * 86_400)))
        event["agent"] = {"os": "x", "n": n}  # which nobody asks for
        lines.append(json.dumps(event, ensure_ascii=False))
    good = json.loads(lines[0])
    broken = [{**good, "visitor": None}, {**good, "action": "???"}, {**good, "sku": ""}]
    for place, event in zip((15, 100, 180), broken, strict=True):
        lines.insert(place, json.dumps(event))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return set(pairs)


def write_books(home: Path, rng: np.random.Generator) -> set[tuple[str, str]]:
    """Write loans in two parts, items with titles and genres, and readers; return the pairs."""
    (home / "loans").mkdir(parents=True)
    catalogue = [f"{k:06d}" for k in range(100, 140)]
    pairs = pairs_of(READERS, catalogue, 10, rng)
    times = pd.Timestamp(DAY) + pd.to_timedelta(rng.integers(0, 300 * 86_400, len(pairs)), unit="s")
    frame = pd.DataFrame(pairs, columns=["reader", "isbn"]).assign(stars=rng.integers(0, 21, len(pairs)) / 2)
    frame = frame.assign(read_at=times, branch=1).astype({"stars": "float32"})
    half = len(frame) // 2
    first, second = frame[:half].reset_index(drop=True), frame[half:].reset_index(drop=True)
    lost = first.iloc[[3, 50]].assign(isbn=None)
    beyond = second.iloc[[7]].assign(stars=np.float32(5000))
    pd.concat([first, lost], ignore_index=True).to_parquet(home / "loans" / "part-0.parquet", index=False)
    pd.concat([second, beyond], ignore_index=True).to_parquet(home / "loans" / "part-1.parquet", index=False)
    genres = np.array(["novel", "poem", "essay", None], object)
    items = pd.DataFrame({"isbn": catalogue, "title": [f"Book {int(k)}" for k in catalogue]})
    items.assign(genre=genres[np.arange(len(catalogue)) % 4], price=9.5).to_parquet(home / "items.parquet")
    people = pd.DataFrame({"reader": READERS, "age": rng.integers(9, 90, len(READERS)), "region": "north"})
    people.to_parquet(home / "readers.parquet")
    return set(pairs)
