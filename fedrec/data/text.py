"""What is publicly known of an item as one vector: hashed words or encoded sentences, and vectors of a file."""

import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from fedrec.data.types import Dataset, Floats
from fedrec.data.vectors import joined, read_vectors, unit_rows


def item_vectors(dataset: Dataset, kind: Literal["hashed", "minilm"], dim: int = 256) -> Floats:
    """Return one vector per row of `dataset.items` [items, d], of norm 1; a pure function of what `texts_of` gives.

    `hashed`: the words of title, categories and description (`hashed`) joined with the categories as a multi-hot, which
    are two modalities of equal weight; d = `dim` + the number of distinct categories, at most 2 `dim`: more are hashed
    as the words are. An item without any word gets zeros. `minilm`: "title. category, category. description" by the
    encoder, d = 384.

    Items with equal texts have equal vectors, and the order of the items does not matter. Raises UserError where
    `minilm` lacks its packages.
    """
    return _vectors(kind, dim, *texts_of(dataset)).copy()


def texts_of(dataset: Dataset) -> tuple[tuple[str, ...], ...]:
    """Return the titles, categories and, where items have them, descriptions of all items."""
    columns = [column for column in ("title", "categories", "description") if column in dataset.items]
    return tuple(tuple(dataset.items[column].tolist()) for column in columns)


@functools.lru_cache(maxsize=4)
def _vectors(
    kind: str, dim: int, titles: tuple[str, ...], categories: tuple[str, ...], descriptions: tuple[str, ...] = ()
) -> Floats:
    if kind == "minilm":
        # torch is slow to import, and nothing else of the data needs it.
        from fedrec.data.encoder import sentence_vectors

        return sentence_vectors(sentences(titles, categories, descriptions))
    lists = [tuple(filter(None, names.split("|"))) for names in categories]
    more = descriptions or ("",) * len(titles)
    texts = [f"{title} {' '.join(names)} {text}" for title, names, text in zip(titles, lists, more, strict=True)]
    return joined(hashed(texts, dim), multi_hot(lists, dim))


def sentences(titles: Sequence[str], categories: Sequence[str], descriptions: Sequence[str] = ()) -> tuple[str, ...]:
    """Return what the encoder reads of each item, "title. category, category. description"."""
    lists = [", ".join(filter(None, names.split("|"))) for names in categories]
    each = zip(titles, lists, descriptions or ("",) * len(titles), strict=True)
    return tuple(". ".join([title, *filter(None, parts)]) for title, *parts in each)


def hashed(texts: Sequence[str], d: int) -> Floats:
    """Return the hashed bags of words of texts [n, d], of norm 1; a text without a word gets zeros.

    A token that occurs tf times in a text, and in df of the n texts, weighs tf (ln((1 + n) / (1 + df)) + 1): its
    inverse document frequency, smoothed so that no token weighs nothing.
    """
    bags = [Counter(tokens(text)) for text in texts]
    df = Counter(token for bag in bags for token in bag)
    idf = {token: math.log((1 + len(bags)) / (1 + count)) + 1 for token, count in df.items()}
    return unit_rows(folded([{token: tf * idf[token] for token, tf in bag.items()} for bag in bags], d))


def multi_hot(lists: Sequence[Sequence[str]], limit: int) -> Floats:
    """Return a column for each distinct name in alphabetical order [n, names], 1 where a list has it.

    More than `limit` names are hashed to `limit` dimensions.
    """
    column = {name: index for index, name in enumerate(sorted({name for names in lists for name in names}))}
    if len(column) > limit:
        return folded([dict.fromkeys(names, 1.0) for names in lists], limit).astype(np.float32)
    flags = np.zeros((len(lists), len(column)), dtype=np.float32)
    for row, names in enumerate(lists):
        flags[row, [column[name] for name in names]] = 1
    return flags


def tokens(text: str) -> list[str]:
    """Return the lower-cased words of a text."""
    return re.findall(r"\w+", text.lower())


def folded(bags: Sequence[Mapping[str, float]], d: int, seed: int = 0) -> NDArray[np.float64]:
    """Return the signed feature hashing of weighted tokens [n, d] (Weinberger et al., arXiv 0902.2206).

    phi_i(x) = sum of xi(t) x_t over the tokens t with h(t) = i, where h and the sign xi are halves of one blake2b
    digest salted by `seed`. Over seeds <phi(x), phi(y)> has the mean <x, y> (lemma 2).
    """
    slots = {token: slot(token, d, seed) for bag in bags for token in bag}
    cell, weight = [], []
    for row, bag in enumerate(bags):
        # Sums are taken in the order of the tokens, so equal bags have equal vectors to the last bit.
        for token in sorted(bag):
            index, sign = slots[token]
            cell.append(row * d + index)
            weight.append(sign * bag[token])
    flat = np.bincount(np.asarray(cell, dtype=np.int64), np.asarray(weight, dtype=np.float64), len(bags) * d)
    return flat.astype(np.float64).reshape(len(bags), d)


def slot(token: str, d: int, seed: int = 0) -> tuple[int, int]:
    """Return a token's dimension h in 0 ... d - 1 and its sign xi, -1 or 1."""
    digest = hashlib.blake2b(
        token.encode("utf-8", "surrogatepass"), digest_size=16, salt=seed.to_bytes(16, "little")
    ).digest()
    return int.from_bytes(digest[:8], "little") % d, 1 if digest[8] & 1 else -1


PUBLIC = ("categories", "texts")  # what is public of items without a file


def public_vectors(dataset: Dataset, what: str) -> tuple[Floats, tuple[str, ...]]:
    """Return one vector per row of `dataset.items` [items, d], and notes that count what is missing.

    `categories`: a column for each, 1 where an item has it; `texts`: hashed words of titles and categories; else the
    file of this path. Raises UserError as `read_vectors` does, and where items have no categories.
    """
    if what == "texts":
        return item_vectors(dataset, "hashed"), ()
    if what != "categories":
        return read_vectors(Path(what), dataset.items["key"].tolist())
    lists = [tuple(filter(None, names.split("|"))) for names in dataset.items["categories"]]
    flags = multi_hot(lists, len(lists))
    bare = int((~flags.any(1)).sum())
    return flags, (f"{bare} of {len(lists)} items have no category and get zeros",) if bare else ()


class Content(BaseModel, frozen=True, extra="forbid"):
    """What describes an item beside its id, and how often its id is hidden in training."""

    kind: Literal["none", "hashed", "minilm"] = Field(
        "none", description="the text of items (title, categories): none, hashed words, or a pretrained encoder"
    )
    dim: int = Field(256, ge=1, le=65_536, description="hashed: dimensions of the words; categories come on top")
    vectors: Path | None = Field(
        None, description="file of vectors of items, of images or else, a column 'key' and numbers; joined to the text"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="probability that the id of an item of a training row is hidden, its content shown"
    )

    @property
    def active(self) -> bool:
        """Whether items have content."""
        return self.kind != "none" or self.vectors is not None


def content_vectors(dataset: Dataset, content: Content) -> tuple[Floats, tuple[str, ...]]:
    """Return one vector of norm 1 per row of `dataset.items` [items, d], and notes that count what the file lacks.

    The text (`item_vectors`) and the vectors of the file are modalities of equal weight (`joined`); an item that one of
    them lacks is described by the other, and gets zeros without both. Raises UserError as `read_vectors` and
    `item_vectors` do.
    """
    modalities, notes = [], tuple[str, ...]()
    if content.kind != "none":
        modalities.append(item_vectors(dataset, content.kind, content.dim))
    if content.vectors is not None:
        vectors, notes = read_vectors(content.vectors, dataset.items["key"].tolist())
        modalities.append(vectors)
    return joined(*modalities), notes
