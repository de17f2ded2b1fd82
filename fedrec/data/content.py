"""What is publicly known of every item before anybody has met it, as one vector: its text, and tables of vectors."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from fedrec.data.text import TextFeatures, item_vectors
from fedrec.data.types import Dataset, Floats
from fedrec.data.vectors import joined, read_vectors


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
        modalities.append(item_vectors(dataset, TextFeatures(kind=content.kind, dim=content.dim)))
    if content.vectors is not None:
        vectors, notes = read_vectors(content.vectors, dataset.items["key"].tolist())
        modalities.append(vectors)
    return joined(*modalities), notes
