"""A secret of one's own, from which the noise of every round is derived.

The noise is a function of the secret and of everything that it protects, as in deterministic signatures (RFC 6979): a
round that is repeated after a crash on the same inputs gives the same output, which tells nothing new, while other
inputs, other data included, get independent noise.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from fedrec.data.types import Interactions
from fedrec.errors import UserError
from fedrec.folders import make_private, once, store, sync_folder
from fedrec.privacy.noise import Source

SIZE = 32  # bytes of a secret and of a digest
Part = Mapping[str, Tensor] | Interactions | str | int


@dataclass(frozen=True)
class Secret:
    """A key that never leaves its file, which only its owner may read."""

    path: Path

    @property
    def marker(self) -> Path:
        """The file that says for good that the key was removed."""
        return self.path.with_suffix(".forgotten")

    def key(self) -> bytes:
        """Return the key; the first call makes it. Raises UserError for a file that is not one, or a forgotten key."""
        if self.marker.exists():
            raise UserError(
                "privacy: a run must not go on after its final test, when its secret is removed for good, found "
                f"{self.marker.name}; start a new run"
            )
        make_private(self.path.parent)
        key = once(self.path, os.urandom(SIZE))
        if len(key) != SIZE:
            raise UserError(f"privacy: the secret {self.path} must have {SIZE} bytes, found {len(key)}")
        return key

    def forget(self) -> None:
        """Remove the key for good, which is on the disk before it is gone: what was made with it is never made again.

        A key made anew would be other noise for what was answered already.
        """
        self.marker.parent.mkdir(parents=True, exist_ok=True)
        store(self.marker, b"")
        sync_folder(self.marker.parent)
        self.path.unlink(missing_ok=True)


def stream(key: bytes, inputs: bytes) -> tuple[str, Source]:
    """Return the random numbers that go with a key and a `digest` of the inputs, and the name of the two in a ledger.

    Other keys, like other inputs, give other numbers and another name; the name tells neither.
    """
    name, noise = (
        hashlib.blake2b(inputs, key=key, digest_size=SIZE, person=person).digest()
        for person in (b"fedrec entry", b"fedrec noise")
    )
    return name.hex(), Source(noise, True)


def digest(*parts: Part) -> bytes:
    """Return a hash of named tensors, interactions, texts and numbers; equal only for equal parts in equal order."""
    state = hashlib.blake2b(digest_size=SIZE)
    for part in parts:
        chunks = list(encode(part))
        state.update(len(chunks).to_bytes(8, "big"))
        for chunk in chunks:
            state.update(len(chunk).to_bytes(8, "big") + chunk)
    return state.digest()


def encode(part: Part) -> list[bytes]:
    """Return a part as byte strings."""
    if isinstance(part, str | int):
        return [f"{type(part).__name__} {part}".encode()]
    if isinstance(part, Interactions):
        labels = [column for name, column in sorted(part.labels.items())]
        columns: list[NDArray[Any]] = [part.user, part.item, part.time, part.rating, part.positive, *labels]
        weight = [] if part.weight is None else [part.weight]
        names = ["interactions", *sorted(part.labels), *["weight"] * len(weight)]
        return [" ".join(names).encode(), *(column.tobytes() for column in (*columns, *weight))]
    return [
        piece
        for name, value in sorted(part.items())
        for piece in (f"{name} {value.dtype} {list(value.shape)}".encode(), value.detach().cpu().numpy().tobytes())
    ]
