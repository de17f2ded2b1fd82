"""Low-rank adapters (LoRA) of the sentence encoder's last linear map, and what of them clients may average.

h = W x + (alpha / r) B A x with the frozen W (arXiv 2106.09685, eq. 3), and W + delta in its place for the form exact.
Parameters: `lora.A` [r, n_in], `lora.B` [n_out, r], and `lora.delta` [n_out, n_in] for the form exact.

The mean of A_i and that of B_i are no average of the clients' maps: mean(B_i) mean(A_i) is not mean(B_i A_i).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional as F

from fedrec.data.encoder import EPSILON, WIDTH
from fedrec.data.tokens import Tokens, centred
from fedrec.params import Params
from fedrec.rng import generator

A, B, DELTA = "lora.A", "lora.B", "lora.delta"
INNER = 4 * WIDTH


@dataclass(frozen=True)
class Form:
    """Which of the parameters travel, and which are not trained; what is neither is trained and private."""

    shared: tuple[str, ...]
    frozen: tuple[str, ...] = ()


FORMS = {
    # FedSA-LoRA (arXiv 2410.01463): A holds what clients have in common. No dW is averaged, and no claim is made.
    "share-a": Form((A,)),
    # FFA-LoRA (arXiv 2403.12313): A stays at the start that all have in common, and mean(B_i) A = mean(B_i A).
    "freeze-a": Form((B,), (A,)),
    # The mean of dW itself, as FedEx-LoRA (arXiv 2410.09432) and FLoRA (arXiv 2409.05976) reach it by residuals and by
    # stacking: after its training a client folds its B A into the delta that it sends.
    "exact": Form((DELTA,), (DELTA,)),
}


class Lora(BaseModel, frozen=True, extra="forbid"):
    """LoRA on the sentence encoder; the default is none."""

    rank: int = Field(0, ge=0, le=WIDTH, description="minilm: rank of the encoder's adapter; 0: the encoder is frozen")
    form: Literal["share-a", "freeze-a", "exact"] = Field(
        "freeze-a", description="what is shared of the encoder's adapter: A, B with A frozen, or dW itself"
    )
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False, description="the encoder's adapter counts alpha / rank times")

    @property
    def active(self) -> bool:
        """Whether the encoder is adapted."""
        return self.rank > 0

    @property
    def scale(self) -> float:
        """Return alpha / r."""
        return self.alpha / self.rank

    @property
    def shared(self) -> tuple[str, ...]:
        """What travels of the module `lora`; the module itself without an adapter."""
        return FORMS[self.form].shared if self.active else ("lora",)

    @property
    def rates(self) -> tuple[tuple[str, float], ...]:
        """The learning rate 0 of what is not trained, for `fedrec.training.optimisers`."""
        return tuple((name, 0.0) for name in FORMS[self.form].frozen) if self.active else ()

    def sizes(self, n_in: int = INNER, n_out: int = WIDTH) -> dict[str, tuple[int, ...]]:
        """Return the sizes of the parameters; none without an adapter."""
        if not self.active:
            return {}
        sizes: dict[str, tuple[int, ...]] = {A: (self.rank, n_in), B: (n_out, self.rank)}
        return {**sizes, DELTA: (n_out, n_in)} if self.form == "exact" else sizes

    def start(self, seed: int, n_in: int = INNER, n_out: int = WIDTH) -> Params:
        """Return the parameters' start, the same for all clients: A ~ N(0, 1 / n_in), the others 0, so that dW = 0."""
        params = {name: torch.zeros(size) for name, size in self.sizes(n_in, n_out).items()}
        if self.active:
            drawn = generator(seed, "init", "lora", "A").normal(0, n_in**-0.5, (self.rank, n_in))
            params[A] = torch.from_numpy(drawn.astype(np.float32))
        return params

    def change(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return dW = delta + (alpha / r) B A [n_out, n_in]."""
        product = self.scale * (params[B] @ params[A])
        return params[DELTA] + product if DELTA in params else product

    def folded(self, params: Params) -> Params:
        """Return the parameters of the same dW with B = 0, where the form is exact; else as they are.

        delta += (alpha / r) B A is rounded once, to float32. A stays: it goes on from what it has learnt.
        """
        if DELTA not in params:
            return params
        double = {name: params[name].double() for name in (A, B, DELTA)}
        delta = self.change(double).to(params[DELTA].dtype)
        return {**params, DELTA: delta, B: torch.zeros_like(params[B])}


def mapped(x: Tensor, w: Tensor, at: Tensor) -> Tensor:
    """Return the rows `at` of x W' [t, n_out], for x [T, n_in]: to copy most of x takes longer than to map it."""
    if 2 * len(at) > len(x):
        return F.linear(x, w).index_select(0, at)
    return F.linear(x.index_select(0, at), w)


@dataclass(frozen=True)
class Adapted:
    """The sentence encoder with an adapter, over the items of a client and the tokens of their texts."""

    lora: Lora
    tokens: Tokens

    def held(self, params: Params) -> "Adapted":
        """Return the same on the device of the parameters, with what follows from those that are not trained.

        That is delta h, and A h with a frozen A; `vectors` is the same with them, and takes less time.
        """
        with torch.no_grad():
            tokens = self._moved(params)
            if DELTA in params:
                tokens = replace(tokens, delta=params[DELTA])
            if self.lora.form == "freeze-a":
                tokens = replace(tokens, projected=F.linear(tokens.inputs, params[A]), a=params[A])
        return Adapted(self.lora, tokens)

    def vectors(self, params: Params, item: Tensor) -> Tensor:
        """Return c [B, 384] of norm 1 for local rows `item` [B]: unit(mean_t LN(s_t + dW h_t)), each text encoded once.

        Of u = s + D z with z = A h and D = (alpha / r) B less its columns' means, |u|^2 = |s|^2 + 2 s' D z + z' D' D z
        gives LN's deviation. The mean over tokens is of the s_t and z_t over their deviations, and no u is made.
        """
        tokens = self._moved(params)
        texts, place = torch.unique(tokens.text[item.to(params[A].device)], return_inverse=True)
        at, count = tokens.places(texts)
        d = self.lora.scale * (params[B] - params[B].mean(0))
        if tokens.projected is not None and tokens.a is not None and torch.equal(tokens.a, params[A]):
            z = tokens.projected.index_select(0, at)
        else:
            z = mapped(tokens.inputs, params[A], at)
        extra = ((2 * mapped(tokens.centred, d.T, at) + z @ (d.T @ d)) * z).sum(1) / len(d)
        scale = (tokens.square[at] + extra + EPSILON).rsqrt() / count.repeat_interleave(count)
        bags = count.cumsum(0) - count
        mean = F.embedding_bag(at, tokens.centred, bags, mode="sum", per_sample_weights=scale)
        rows = torch.arange(len(at), device=at.device)
        mean = mean + F.embedding_bag(rows, z * scale[:, None], bags, mode="sum") @ d.T
        return F.normalize(mean * tokens.weight + tokens.bias, dim=1).index_select(0, place)

    def _moved(self, params: Params) -> Tokens:
        """Return the tokens on the device of the parameters, with the delta h of these."""
        tokens = self.tokens.to(str(params[A].device))
        if DELTA in params:
            rest = params[DELTA] if tokens.delta is None else params[DELTA] - tokens.delta
            if bool(rest.any()):
                s, square = centred(tokens.centred + tokens.inputs @ rest.T)
                tokens = replace(tokens, centred=s, square=square)
        return tokens
