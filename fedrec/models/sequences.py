"""Sequence encoders as values: p_u made of the items that a user liked last, so that no parameter is of a user.

A pure function of named parameters and of the q_i [B, L, d] of the history, latest last, padding in front. Paths:

sequence.start               p_u [d] of a user without history
sequence.input, .hidden      gru4rec: the GRU's two maps, its gates r, z, n below one another as in torch.nn.GRU
sequence.positions.weight    sasrec: one row for each place of the history
sequence.blocks.K.PART       sasrec: block K; norm, query, key, value, and forward.norm, forward.0, forward.1
sequence.norm                sasrec: the norm behind the last block
"""

from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional as F

from fedrec.data.types import Floats
from fedrec.params import Params
from fedrec.rng import generator

Encoder = Literal["none", "gru4rec", "sasrec"]


class UserSequence(BaseModel, frozen=True, extra="forbid"):
    """What users are read from: a table with a row for each (`none`), or their history by an encoder that is shared.

    gru4rec: one GRU layer (arXiv 1511.06939). sasrec: self-attention blocks (arXiv 1808.09781). Neither has dropout.
    """

    kind: Encoder = Field("none", description="what reads a user's history: none is a table with a row for each user")
    history: int = Field(20, ge=1, le=1000, description="items of the history that are read, the last ones")
    blocks: int = Field(2, ge=1, le=16, description="sasrec: blocks of attention")
    heads: int = Field(1, ge=1, le=64, description="sasrec: heads of attention, which divide dim among them")

    @property
    def active(self) -> bool:
        """Whether users are read from their history."""
        return self.kind != "none"

    def sizes(self, dim: int) -> dict[str, tuple[int, ...]]:
        """Return the sizes of the encoder's parameters for q_i of a width; nothing without an encoder."""
        if not self.active:
            return {}
        sizes: dict[str, tuple[int, ...]] = {"sequence.start": (dim,)}
        if self.kind == "gru4rec":
            for part in ("input", "hidden"):
                sizes |= {f"sequence.{part}.weight": (3 * dim, dim), f"sequence.{part}.bias": (3 * dim,)}
            return sizes
        sizes["sequence.positions.weight"] = (self.history, dim)
        blocks = [f"sequence.blocks.{block}" for block in range(self.blocks)]
        for norm in ("sequence", *blocks, *(f"{path}.forward" for path in blocks)):
            sizes |= {f"{norm}.norm.weight": (dim,), f"{norm}.norm.bias": (dim,)}
        for path in blocks:
            sizes |= {f"{path}.{part}.weight": (dim, dim) for part in ("query", "key", "value")}
            for layer in (0, 1):
                sizes |= {f"{path}.forward.{layer}.weight": (dim, dim), f"{path}.forward.{layer}.bias": (dim,)}
        return sizes

    def init(self, seed: int, dim: int) -> Params:
        """Return the encoder's initial parameters, each a function of (seed, its name, its size).

        The GRU's are U(-1/sqrt(d), 1/sqrt(d)), as torch.nn.GRU's; weights of attention N(0, 1/d), positions as small
        as an item that is scaled by sqrt(d) at the default init_std; norms are 1, biases and the start 0.
        """
        return {name: torch.from_numpy(self._initial(seed, name, size)) for name, size in self.sizes(dim).items()}

    def _initial(self, seed: int, name: str, size: tuple[int, ...]) -> Floats:
        dim, scope = size[-1], [int(part) if part.isdecimal() else part for part in name.split(".")]
        rng = generator(seed, "init", *scope)
        if name.startswith(("sequence.input", "sequence.hidden")):
            bound = (dim if name.endswith("weight") else dim / 3) ** -0.5
            return rng.uniform(-bound, bound, size).astype(np.float32)
        if name.endswith("norm.weight"):
            return np.ones(size, np.float32)
        if name.endswith("weight"):
            return rng.normal(0, dim**-0.5, size).astype(np.float32)
        return np.zeros(size, np.float32)

    def encode(self, params: Params, q: Tensor, known: Tensor) -> Tensor:
        """Return p [B, d] for the q_i [B, L, d] of histories; `known` [B, L] is false for the padding in front.

        Without history p is the learned `sequence.start`.
        """
        p = gru4rec(params, q, known) if self.kind == "gru4rec" else sasrec(params, q, known, self.blocks, self.heads)
        return torch.where(known[:, -1:], p, params["sequence.start"])


def gru4rec(params: Params, q: Tensor, known: Tensor) -> Tensor:
    """Return the state h_n [B, d] of a GRU behind the last of n <= L items (arXiv 1511.06939, eq. 1 to 4).

    z_t = sigmoid(W_z q_t + U_z h_(t-1)), r_t likewise, n_t = tanh(W q_t + r_t * U h_(t-1)),
    h_t = (1 - z_t) n_t + z_t h_(t-1), h_0 = 0, all with biases: torch.nn.GRU, whose z is the paper's 1 - z. The padding
    is moved behind the items, where no earlier state sees it.
    """
    length = known.shape[1]
    count = known.sum(1)
    place = (torch.arange(length, device=q.device) - count[:, None]) % length  # the first item's is L - n
    rows = q.gather(1, place[:, :, None].expand_as(q))
    weights = [params[f"sequence.{part}"] for part in ("input.weight", "hidden.weight", "input.bias", "hidden.bias")]
    start = q.new_zeros(1, len(q), q.shape[2])
    states, _ = torch.gru(rows, start, weights, True, 1, 0.0, False, False, True)
    last = (count - 1).clamp(min=0)[:, None, None].expand(-1, 1, q.shape[2])
    return states.gather(1, last)[:, 0]


def sasrec(params: Params, q: Tensor, known: Tensor, blocks: int, heads: int) -> Tensor:
    """Return F_n [B, d], the state of the last place of a stack of causal self-attention blocks (arXiv 1808.09781).

    x = sqrt(d) q + positions, then in every block x = x + attention(norm(x)) and x = x + forward(norm(x)), with
    forward(x) = W_1 relu(W_0 x + b_0) + b_1, and a norm behind the last (sec. 3.2; the scale, and where the last norm
    stands, are those of the authors' code). A place sees itself and the items before it, never padding. Of the last
    block only the last place is computed: nothing reads the others.
    """
    x = q * q.shape[2] ** 0.5 + params["sequence.positions.weight"]
    length = x.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    eye = torch.eye(length, dtype=torch.bool, device=q.device)  # so that padding, which nothing reads, has a softmax
    sees = (causal & known[:, None, :]) | eye
    for block in range(blocks):
        path, n = f"sequence.blocks.{block}", 1 if block == blocks - 1 else length
        h = normed(params, path, x)
        x = x[:, -n:] + attention(params, path, h[:, -n:], h, sees[:, -n:], heads)
        x = x + forward(params, f"{path}.forward", normed(params, f"{path}.forward", x))
    return normed(params, "sequence", x)[:, 0]


def attention(params: Params, path: str, asking: Tensor, asked: Tensor, sees: Tensor, heads: int) -> Tensor:
    """Return softmax(Q K^T / sqrt(d / heads)) V [B, n, d] of every head, side by side (arXiv 1808.09781, eq. 2 and 3).

    `asking` [B, n, d], `asked` [B, L, d]; `sees` [B, n, L] is true where a place may look.
    """

    def parts(x: Tensor, part: str) -> Tensor:
        return F.linear(x, params[f"{path}.{part}.weight"]).view(*x.shape[:2], heads, -1).transpose(1, 2)

    query, key, value = parts(asking, "query"), parts(asked, "key"), parts(asked, "value")
    logits = (query @ key.mT) / query.shape[-1] ** 0.5
    read: Tensor = logits.masked_fill(~sees[:, None], -torch.inf).softmax(-1) @ value
    return read.transpose(1, 2).flatten(2)


def forward(params: Params, path: str, x: Tensor) -> Tensor:
    """Return W_1 relu(W_0 x + b_0) + b_1, place by place (arXiv 1808.09781, eq. 4)."""
    h = F.relu(F.linear(x, params[f"{path}.0.weight"], params[f"{path}.0.bias"]))
    return F.linear(h, params[f"{path}.1.weight"], params[f"{path}.1.bias"])


def normed(params: Params, path: str, x: Tensor) -> Tensor:
    """Return the layer norm at a path of every place."""
    return F.layer_norm(x, x.shape[-1:], params[f"{path}.norm.weight"], params[f"{path}.norm.bias"])
