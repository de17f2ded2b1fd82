"""What the last layer of the sentence encoder reads of every token, computed once: all below it is frozen."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.data import encoder
from fedrec.data.encoder import LAYERS, WIDTH, Encoder, load_encoder
from fedrec.data.text import sentences, texts_of
from fedrec.data.types import Dataset, Floats, Ints

NORMS = f"encoder.layer.{LAYERS - 1}.attention.output.LayerNorm", f"encoder.layer.{LAYERS - 1}.output.LayerNorm"
CHUNK = 1024  # tokens that are computed at a time


@dataclass(frozen=True)
class Tokens:
    """The frozen part of the vectors of texts, whose last linear map W may move: c = unit(mean_t LN(s_t + dW h_t)).

    `inputs` [T, n_in] are the h_t, `centred` [T, 384] the s_t less their means, of the tokens of distinct texts one
    after the other; `square` [T] is the mean square of a row of `centred`. Text k of the n distinct ones has the tokens
    `start[k]` to `start[k + 1]`; `text` [items] is the text of every item. `weight`, `bias` [384] are LN's.

    For the time that parameters stand still, what follows from them may be held: `centred` has dW = `delta` in it, and
    `projected` [T, r] is A h for `a`.
    """

    inputs: Tensor
    centred: Tensor
    square: Tensor
    start: Tensor
    text: Tensor
    weight: Tensor
    bias: Tensor
    delta: Tensor | None = None
    a: Tensor | None = None
    projected: Tensor | None = None

    def of(self, items: Ints) -> "Tokens":
        """Return the same for some of the items, in this order; nothing large is copied."""
        return replace(self, text=self.text[torch.from_numpy(items)])

    def to(self, device: str) -> "Tokens":
        """Return the same on a device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})

    def places(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of the tokens of texts [n], one text after the other, and how many each has [n]."""
        count = self.start[texts + 1] - self.start[texts]
        first = (self.start[texts] - (count.cumsum(0) - count)).repeat_interleave(count)
        return first + torch.arange(len(first), device=first.device), count


def centred(s: Tensor) -> tuple[Tensor, Tensor]:
    """Return (s - mean, mean square of that) over the last dimension, of which LN makes (s - mean) / sqrt(. + eps)."""
    s = s - s.mean(-1, keepdim=True)
    return s, s.square().mean(-1)


def item_tokens(dataset: Dataset) -> Tokens:
    """Return the tokens of what `item_vectors` encodes of every item of a dataset, kept for the process."""
    return _kept(sentences(*texts_of(dataset)))


def sentence_tokens(texts: Sequence[str]) -> Tokens:
    """Return the tokens of texts, one item for each, by all-MiniLM-L6-v2.

    Kept in the user's cache as `sentence_vectors` are, as the y [T, 384] of `Encoder.last` in float32: a fifth of h and
    s together, which take a second to be made of it. For the 1,682 titles and genres of ML-100K that is 33 MB on disk
    and 165 MB in memory, 98 kB for an item. Raises UserError as `sentence_vectors` does.
    """
    distinct = sorted(set(texts))
    model, path = load_encoder(), encoder.cache_of(distinct, "-tokens")
    pair = _sound(encoder.read_cache(path), len(distinct), model)
    if pair is None:
        pair = _attended(model, distinct)
        encoder.store(path, {"attended": pair[0], "length": pair[1]})
    y, length = pair
    place = {text: row for row, text in enumerate(distinct)}
    text = torch.tensor([place[text] for text in texts], dtype=torch.int64)
    start = torch.from_numpy(np.concatenate([[0], np.cumsum(length)]).astype(np.int64))
    parts = []
    with torch.no_grad(), encoder.one_thread():
        for part in torch.split(torch.from_numpy(y), CHUNK):
            h, s = model.last(part)
            parts.append((h, *centred(s)))
    weight, bias = (model.weights[f"{NORMS[1]}.{kind}"] for kind in ("weight", "bias"))
    if not distinct:
        return Tokens(torch.zeros(0, 4 * WIDTH), torch.zeros(0, WIDTH), torch.zeros(0), start, text, weight, bias)
    h, s, square = (torch.cat(column) for column in zip(*parts, strict=True))
    return Tokens(h, s, square, start, text, weight, bias)


_kept = functools.lru_cache(maxsize=2)(sentence_tokens)


def _attended(model: Encoder, texts: Sequence[str]) -> tuple[Floats, Ints]:
    """Return y [T, 384] of all tokens of the texts, one text after the other, and how many each has [n]."""
    parts: list[Floats] = [np.zeros((0, WIDTH), dtype=np.float32)] * len(texts)
    with torch.no_grad(), encoder.one_thread():
        for rows in encoder.by_length(texts):
            ids, mask = model.tokens([texts[row] for row in rows])
            for row, y, here in zip(rows, model.attended(ids, mask), mask, strict=True):
                parts[row] = y[here].numpy()
    y = np.concatenate([np.zeros((0, WIDTH), dtype=np.float32), *parts])
    return y, np.array([len(part) for part in parts], dtype=np.int64)


def _sound(arrays: Mapping[str, NDArray[np.generic]], count: int, model: Encoder) -> tuple[Floats, Ints] | None:
    """Return (y, length) of a cached file, or None if they are not what was written: y is what a LayerNorm returns."""
    if not {"attended", "length"} <= arrays.keys():
        return None
    y, length = arrays["attended"].astype(np.float32, copy=False), arrays["length"].astype(np.int64, copy=False)
    if length.shape != (count,) or (length < 1).any() or y.shape != (length.sum(), WIDTH):
        return None
    weight, bias = (model.weights[f"{NORMS[0]}.{kind}"].numpy() for kind in ("weight", "bias"))
    x = (y - bias) / weight
    sound = np.allclose(x.mean(1), 0, atol=1e-2) and np.allclose(x.var(1), 1, atol=1e-2)
    return (y, length) if sound else None
