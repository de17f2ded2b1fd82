"""Parts of a user's own, as docs/extending.md has them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedrec.data.types import Interactions
from fedrec.models import Meta, Module
from fedrec.params import Params
from fedrec.privacy.attacks.targets import Records
from fedrec.privacy.transcript import Transcript
from fedrec.training.recipe import Batch, Reference
from fedrec.training.transforms import Context, State
from fedrec.training.weighting import Tasks


class Towers(nn.Module):
    """h(u, i) = ReLU(W [p_u, q_i] + b)."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, width), nn.Embedding(items, width)
        self.mix = nn.Linear(2 * width, width)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Return h [B, width]."""
        h: Tensor = self.mix(torch.cat([self.user(user), self.item(item)], 1))
        return h.relu()


@dataclass(frozen=True)
class TwoTower(Module):
    """A recommender."""

    tables = {"user.weight": "user", "item.weight": "item"}  # noqa: RUF012
    width: int = 8

    def network(self, meta: Meta) -> nn.Module:
        """See Module."""
        return Towers(meta.users, meta.items, self.width)


class Product(nn.Module):
    """h(u, i) = [p_u * q_i, b_u, b_i], which is mf's."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.p, self.q = nn.Embedding(users, width), nn.Embedding(items, width)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Return h [B, width]."""
        h: Tensor = self.p(user) * self.q(item)
        return h


@dataclass(frozen=True)
class Factors(Module):
    """Matrix factorisation without biases."""

    tables = {"p.weight": "user", "q.weight": "item"}  # noqa: RUF012
    width: int = 4

    def network(self, meta: Meta) -> nn.Module:
        """See Module."""
        return Product(meta.users, meta.items, self.width)


@dataclass(frozen=True)
class Grid:
    """A data source: `users` x `items` on two platforms, every third pair is an interaction."""

    users: int = 12
    items: int = 20

    def load(self) -> pd.DataFrame:
        """Return a row for each interaction."""
        pairs = [(u, i) for u in range(self.users) for i in range(self.items) if (u * 7 + i * 5) % 3 == 0]
        frame = pd.DataFrame(pairs, columns=["user", "item"])
        return frame.assign(platform=np.where(frame.user % 2, "odd", "even"), time=range(len(frame)))


@dataclass(frozen=True)
class Precision:
    """A metric: the share of relevant items among the first k."""

    k: int = 5

    def value(self, ranks: np.ndarray) -> float:
        """Return the value for the ranks of a user's relevant items."""
        return float((ranks <= self.k).sum()) / self.k


@dataclass(frozen=True)
class Powered:
    """An aggregator: weights p_i^power, so that 1 is the mean of all rows that are carried by all."""

    power: float = 1.0

    def combine(self, g: Tensor, p: Tensor, carries: Tensor | None) -> Tensor:
        """Return d [P] of the pseudo-gradients G [K, P]."""
        w = p.pow(self.power)[:, None].expand_as(g)
        w = w if carries is None else w * carries
        return (w * g).sum(0) / w.sum(0).clamp(min=1e-300)


@dataclass(frozen=True)
class Shrunk:
    """A constraint: every z_i is the mean of the v_i, in the ball of a radius."""

    radius: float = 1e9

    def project(self, v: list[Tensor], p: Tensor, rho: float, clients: tuple[str, ...]) -> list[Tensor]:
        """Return the z_i."""
        z = (p[:, None] * torch.stack(v)).sum(0) / p.sum()
        return [z * min(1.0, self.radius / max(float(z.norm()), 1e-300))] * len(v)


def even(z: Mapping[str, Params]) -> Tensor:
    """A constraint of two blocks: films and shop have as much in their items' factors and biases as each other."""
    films, shop = (torch.cat([part["item_table"], part["item_bias"]], 1) for part in (z["films"], z["shop"]))
    return films.square().sum() - shop.square().sum()


@dataclass(frozen=True)
class Near:
    """A constraint: the second client's blocks are within a distance of the first's."""

    radius: float = 1.0

    def value(self, z: Mapping[str, Params]) -> Tensor:
        """Return (|z_1 - z_2|^2 - r^2) / 2r, which is to be at most 0."""
        one, two = (z[name] for name in sorted(z)[:2])
        gap = torch.stack([(one[name] - two[name]).square().sum() for name in one]).sum()
        return (gap - self.radius**2) / (2 * self.radius)


@dataclass(frozen=True)
class Lapsing:
    """No constraint: what it returns is another thing once films' items are spread out, or has no slope."""

    how: str = "nan"
    spread: float = 0.2

    def value(self, z: Mapping[str, Params]) -> Tensor:
        """Return |films|^2 - 1, for a while."""
        films = z["films"]["item_table"]
        found = films.square().sum().reshape(1) - 1
        if self.how == "flat":
            return found.detach()
        if self.how == "moves":
            films += 1
        if float(films.detach().std()) > self.spread:
            return {"nan": found * torch.nan, "longer": found.repeat(2)}.get(self.how, found)
        return found


@dataclass(frozen=True)
class EightBit:
    """A codec: levels from -127 to 127 of the largest entry of a tensor, with error feedback."""

    levels: int = 127

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """Return the payload and what it lacks."""
        owed = {name: value + memory.get(name, torch.zeros(())) for name, value in change.items()}
        payload: Params = {}
        for name, value in owed.items():
            scale = value.abs().max().clamp(min=1e-12) / self.levels
            payload |= {name: (value / scale).round().char(), f"scale.{name}": scale}
        found = self.decode(payload, owed)
        return payload, {name: value - found[name] for name, value in owed.items()}

    def decode(self, payload: Params, like: Params) -> Params:
        """Return the change."""
        return {name: payload[name] * payload[f"scale.{name}"] for name in like}


@dataclass(frozen=True)
class Halves:
    """A codec that sends the first half of a tensor and forgets the rest."""

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """Return the payload."""
        return {name: value.reshape(-1)[: value.numel() // 2] for name, value in change.items()}, {}

    def decode(self, payload: Params, like: Params) -> Params:
        """Return the change."""
        return {n: torch.cat([payload[n], v.reshape(-1)[len(payload[n]) :]]).reshape(v.shape) for n, v in like.items()}


@dataclass(frozen=True)
class Telling:
    """A codec whose payload has as many entries as the change has that are not 0, which would tell."""

    def encode(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """Return the payload."""
        return {name: value[value != 0] for name, value in change.items()}, {}

    def decode(self, payload: Params, like: Params) -> Params:
        """Return zeros."""
        return like


@dataclass
class Thawed:
    """No component: its values may change."""

    def load(self) -> None:
        """Load nothing."""


@dataclass(frozen=True)
class Huber:
    """A task: ratings by the Huber loss, which is half the squared error for a large `delta`."""

    delta: float = 1.0

    def target(self, data: Interactions) -> np.ndarray:
        """Return the ratings [n], NaN where there is none."""
        return data.rating

    def loss(self, score: Tensor, target: Tensor) -> Tensor:
        """Return the loss [B]."""
        return functional.huber_loss(score, target, reduction="none", delta=self.delta)

    def metrics(self, score: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
        """Return the absolute error [n]."""
        return {"mae": np.abs(score - target)}


@dataclass(frozen=True)
class Dwell:
    """A task: counts, of which the score is the logarithm of the mean (Poisson regression)."""

    def target(self, data: Interactions) -> np.ndarray:
        """Return the ratings [n] as counts."""
        return data.rating

    def loss(self, score: Tensor, target: Tensor) -> Tensor:
        """Return the loss [B]."""
        return score.exp() - target * score

    def baseline(self, mean: np.ndarray) -> np.ndarray:
        """Return the score of a mean."""
        return np.asarray(np.log(mean))


@dataclass(frozen=True)
class Summed(Huber):
    """No task: its loss is of all rows together."""

    def loss(self, score: Tensor, target: Tensor) -> Tensor:
        """Return one number."""
        return super().loss(score, target).sum()


@dataclass(frozen=True)
class Events:
    """A source of what users did, some of it several times, and how much of it."""

    def load(self) -> pd.DataFrame:
        """Return a row for each time."""
        rng = np.random.default_rng(0)
        users, items, much = (rng.integers(low, high, 600) for low, high in ((0, 12), (0, 30), (1, 6)))
        shop = np.where(users % 3, "north", "south")
        return pd.DataFrame({"user": users, "item": items, "platform": shop, "much": much, "time": np.arange(600)})


@dataclass(frozen=True)
class Lines:
    """A tracker: a line for everything that it is told; it fails in a round, or at the `start`."""

    path: str
    fails: str = ""

    def start(self, experiment: dict[str, Any]) -> None:
        """Write what is run."""
        self.write("start", experiment)

    def round(self, row: dict[str, Any]) -> None:
        """Write a round."""
        self.write(str(row["round"]), row)

    def end(self, summary: list[dict[str, Any]]) -> None:
        """Write the results."""
        self.write("end", summary)

    def write(self, event: str, value: Any) -> None:
        """Add a line."""
        if event == self.fails:
            raise OSError("the disk is full")
        with Path(self.path).open("a") as file:
            file.write(json.dumps([event, value]) + "\n")


@dataclass(frozen=True)
class Movement:
    """An attack: the row of an item that was trained on moves further."""

    power: float = 1.0

    def scores(self, transcript: Transcript, records: Records, experiment: Any) -> np.ndarray:
        """Return how far the row of every record's item moved in its client's first round."""
        found = np.zeros(len(records))
        for number, client in enumerate(records.client):
            mine, ids = records.of == number, transcript.ids(client, "item_table")
            moved = next(transcript.of(client)).update()["item_table"].norm(dim=1).numpy()
            found[mine] = moved[np.searchsorted(ids, records.item[mine])] ** self.power
        return found


@dataclass(frozen=True)
class Regulars:
    """An attack on users: a client that moves the items of a profile has the user."""

    unit = "user"

    def scores(self, transcript: Transcript, records: Records, experiment: Any) -> np.ndarray:
        """Return the mean of `Movement` over every profile."""
        each, (_, group) = Movement().scores(transcript, records, experiment), records.profiles()
        return np.bincount(group, each) / np.bincount(group)


@dataclass(frozen=True)
class Short(Movement):
    """No attack: one score for all."""

    def scores(self, transcript: Transcript, records: Records, experiment: Any) -> np.ndarray:
        """Return one number."""
        return np.zeros(1)


@dataclass(frozen=True)
class Blind(Movement):
    """No attack: it reads nothing, and scores by place."""

    def scores(self, transcript: Transcript, records: Records, experiment: Any) -> np.ndarray:
        """Return the places."""
        return np.arange(len(records)).astype(np.float64)


@dataclass(frozen=True)
class Curv:
    """A transform: weight / 2 sum_j F_j (x - z)_j^2 beside the loss, F the mean of the squared gradients so far."""

    weight: float = 1.0

    def init(self, params: Params) -> State:
        """Return z and the sum of squares."""
        return {"z": params, "f": {name: torch.zeros_like(value) for name, value in params.items()}}

    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        """Return g + weight F (x - z)."""
        z, f = state["z"], {name: state["f"][name] + g.square() for name, g in grads.items()}
        tied = {name: g + self.weight * f[name] / ctx.t * (params[name] - z[name]) for name, g in grads.items()}
        return tied, {"z": z, "f": f}


@dataclass(frozen=True)
class Decay:
    """A transform without a state that moves every row: g + weight x."""

    weight: float = 0.1

    def init(self, params: Params) -> State:
        """Return nothing."""
        return {}

    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        """Return g + weight x."""
        return {name: g + self.weight * params[name] for name, g in grads.items()}, state


@dataclass(frozen=True)
class Clip(Decay):
    """A transform that scales the gradients of the tables of a client to a norm of at most `most`."""

    most: float = 0.01

    def update(self, grads: Params, state: State, params: Params, ctx: Context) -> tuple[Params, State]:
        """Return g min(1, most / |g|)."""
        made = dict(grads)
        for name in ctx.owner.keys() & grads.keys():
            who = ctx.owner[name]
            square = torch.zeros(int(who.max()) + 1).index_add_(0, who, grads[name].square().sum(1))
            made[name] = grads[name] * (self.most / square.sqrt().clamp(min=1e-30)).clamp(max=1.0)[who, None]
        return made, state


@dataclass(frozen=True)
class Remembered:
    """A term: the squared distance of what is said to what was said at the start of the round."""

    weight: float = 1.0

    def value(self, params: Params, batch: Batch, ctx: Reference) -> Tensor:
        """Return weight sum_t mean (s_t - s_t(start))^2."""
        now, then = ctx.scores(params, batch), ctx.scores(ctx.start, batch)
        return self.weight * torch.stack([(now[task] - then[task]).square().mean() for task in now]).sum()


@dataclass(frozen=True)
class Ridge:
    """A term: the proximal one to a fixed start, weight / 2 |x - start|^2 over the modules it names."""

    weight: float = 0.5
    modules: tuple[str, ...] = ("item_table",)

    def value(self, params: Params, batch: Batch, ctx: Reference) -> Tensor:
        """Return it."""
        gaps = [(params[name] - ctx.start[name]).square().sum() for name in self.modules]
        return self.weight / 2 * torch.stack(gaps).sum()


@dataclass(frozen=True)
class Idle:
    """No term: a constant, or a tensor that is no number."""

    shape: tuple[int, ...] = ()

    def value(self, params: Params, batch: Batch, ctx: Reference) -> Tensor:
        """Return zeros."""
        return torch.zeros(self.shape).requires_grad_() + 0 * params["item_table"].sum()


@dataclass(frozen=True)
class Worst:
    """A weighting: w_t ~ w_t exp(rate L_t), which sum to T."""

    rate: float = 0.1

    def init(self, tasks: int) -> Params:
        """Return equal weights."""
        return {"w": torch.ones(tasks, dtype=torch.float64)}

    def weights(self, losses: Tensor, state: Params, ctx: Tasks) -> tuple[Tensor, Params]:
        """Return the next weights."""
        w = state["w"] * torch.exp(self.rate * losses * ctx.seen)
        w = w * len(w) / w.sum()
        return w, {"w": w}


@dataclass(frozen=True)
class Levelled:
    """A weighting without a state: in what the tasks share, all gradients get one length."""

    def init(self, tasks: int) -> Params:
        """Return nothing."""
        return {}

    def weights(self, losses: Tensor, state: Params, ctx: Tasks) -> tuple[Tensor, Params]:
        """Return T / |g_t| over their sum."""
        inverse = 1 / ctx.gradients().norm(dim=1).clamp(min=1e-12) * ctx.seen
        return inverse * len(losses) / inverse.sum(), {}


@dataclass(frozen=True)
class Upwards(Levelled):
    """No weighting: it drives losses up, in place of what it is given, or returns too few."""

    few: bool = False

    def weights(self, losses: Tensor, state: Params, ctx: Tasks) -> tuple[Tensor, Params]:
        """Return -L."""
        return losses.neg_()[: 1 if self.few else None], {}


@dataclass(frozen=True)
class Partly:
    """A companion: some of what is of items, all of what stands behind."""

    items: float = 0.5

    def share(self, name: str) -> float:
        """Return the share of a parameter."""
        return self.items if name.startswith("item_") else 1.0
