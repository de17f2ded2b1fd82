"""A public data set as its owner publishes it: a value that says where it is to be had, and how its files are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedrec.data.reading import Raw, Reading
from fedrec.data.types import Dataset


@dataclass(frozen=True)
class Layout:
    """What is published of a data set: its files, their columns, its owner's page and terms.

    `files` are the names of the files of interactions, or patterns of them; `reading.items` and `reading.users` those
    of attributes. `columns` are as `--columns` has them. Nothing is fetched where there is no `url`.
    """

    about: str  # in a sentence
    files: str
    columns: str
    page: str  # of its owner
    fetch: str  # what is to be had there
    terms: str  # in a sentence
    reading: Reading
    url: str = ""  # of the archive, where nothing need be agreed to before
    md5: str = ""  # of the archive, as its owner publishes it
    load: Callable[[Path], Dataset] | None = None  # reads its folder, where no table says what its files mean
    raw: Callable[[Sequence[Path]], Raw] | None = None  # reads files whose rows are no interactions
    catalogue: bool = True  # whether its file of items has no others than those that are to be had
    parted: str = "|"  # what parts the categories of an item
    like: float | None = None  # the label `like`, and a positive, is a rating above it
    tried: bool = False  # on the whole data set, not on a few made-up lines of its layout alone
