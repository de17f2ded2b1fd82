"""Loss weighting: how the tasks of one client share its parameters. Private to the client, it never travels.

The losses L_t are those of the tasks times their fixed weights; weights w_t made here sum to T, the number of tasks, so
that the penalties beside the losses keep their weight, and a client with one task trains as if there were none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from fedrec.components import PartText, make, one_of, read
from fedrec.errors import UserError
from fedrec.params import Params, clone, covers
from fedrec.training.conflict import combine, weights_of
from fedrec.training.optimisers import Optimiser, State

KINDS = ("fixed", "uncertainty", "dwa", "rlw", "gls", "gradnorm", "aggregator")
# What is of one task each, whoever shares it.
OF_TASKS = ("experts", "gates", "attention", "tasks", "towers", "heads", "attributes")
TEMPERATURE = 2.0  # DWA's and GradNorm's numbers are those of their papers
ALPHA = 1.5
RATE = 0.01  # GradNorm's step on the logarithms of its weights
TINY = 1e-12  # a loss below it counts as this much where a logarithm or a quotient is taken


@dataclass(frozen=True)
class Tasks:
    """What a weighting of the user's own may ask of a step beside the losses [T].

    Which tasks the batch has rows of, `seen` [T]; what to draw with; and the gradients [T, P] of the losses in what the
    tasks share, float64, 0 where a task is not seen.
    """

    seen: Tensor
    rng: np.random.Generator
    gradients: Callable[[], Tensor]


class TaskWeights(Protocol):
    """A weighting of the user's own."""

    def init(self, tasks: int) -> Params:
        """Return what a client of so many tasks remembers at first."""

    def weights(self, losses: Tensor, state: Params, ctx: Tasks) -> tuple[Tensor, Params]:
        """Return the weights [T] of the losses [T] of a step, float64, and what the client remembers of it."""


class Weighting(BaseModel, frozen=True, extra="forbid"):
    """How a client weighs the losses of its tasks; the default are the fixed weights of the task text.

    uncertainty: arXiv 1705.07115; dwa: arXiv 1803.10704, eq. 7; rlw: arXiv 2111.10603; gls: arXiv 1904.08492;
    gradnorm: arXiv 1711.02257; aggregator: one direction of the tasks' gradients (`fedrec.training.conflict`).
    """

    kind: Annotated[PartText, one_of("weighting.kind")] = Field(
        "fixed", description="what weighs the tasks of a client as it trains, or your own: " + ", ".join(KINDS)
    )
    aggregator: Literal["pcgrad", "mgda", "cagrad", "upgrad", "imtlg"] = Field(
        "pcgrad", description="aggregator: what makes one gradient of the tasks', where tasks share parameters"
    )

    @property
    def active(self) -> bool:
        """Whether the weights are made of the data or drawn."""
        return self.kind != "fixed"

    @property
    def part(self) -> TaskWeights | None:
        """The weighting of the user's own, if it is one."""
        part: TaskWeights | None = make("weighting.kind", self.kind) if read(self.kind).own else None
        return part

    def start(self, tasks: int) -> Params:
        """Return what the client of so many tasks remembers from round to round, [T] each; empty if that is nothing.

        A loss of 0 stands for one that has not been met.
        """
        if self.part:
            return self.part.init(tasks)
        names = {"uncertainty": ("log_variances",), "dwa": ("older", "newer"), "gradnorm": ("weights", "initial")}
        state = {name: torch.zeros(tasks, dtype=torch.float64) for name in names.get(self.kind, ())}
        return {name: value + 1 if name == "weights" else value for name, value in state.items()}


def dynamic(older: Tensor, newer: Tensor) -> Tensor:
    """Return DWA's weights w_t = T exp(r_t / 2) / sum_s exp(r_s / 2) with r_t = L_t(e-1) / L_t(e-2), each [T].

    The r_t of a task is 1 until two epochs have met it.
    """
    rate = torch.where(older > 0, newer / older, 1.0)
    return len(rate) * torch.softmax(rate / TEMPERATURE, 0)


def drawn(tasks: int, rng: np.random.Generator) -> Tensor:
    """Return random weights [T]: T times the softmax of standard normals."""
    return tasks * torch.softmax(torch.from_numpy(rng.standard_normal(tasks)), 0)


def geometric(losses: Tensor) -> Tensor:
    """Return (prod_t L_t)^(1/T) of the losses [T]."""
    return losses.clamp(min=TINY).log().mean().exp()


def variances_gradient(log_variances: Tensor, losses: Tensor) -> Tensor:
    """Return the gradient [T] of sum_t exp(-s_t) L_t + s_t in s_t = log sigma_t^2: zero where sigma_t^2 = L_t.

    The sum is twice Kendall's (eq. 7 for a Gaussian likelihood, of every task here), so that weights start at 1.
    """
    return 1 - torch.exp(-log_variances) * losses


def balanced(weights: Tensor, norms: Tensor, losses: Tensor, initial: Tensor, alpha: float = ALPHA) -> Tensor:
    """Return GradNorm's next weights [T], from the norms of the tasks' unweighted gradients, each [T].

    With G_t = w_t |g_t|, their mean G and r_t = (L_t / L_t(0)) / mean_s (L_s / L_s(0)), a step goes along the gradient
    in log w of sum_t |G_t - G r_t^alpha| / G, targets held constant (eq. 2), and w is scaled to its sum before. Where
    the r_t^alpha do not sum to T, not all targets can be met, and it comes to rest with one that is. The paper steps
    along w itself, which turns negative where the scales of the losses differ much.
    """
    g = weights * norms
    mean = g.mean()
    if not mean > 0:
        return weights
    ratio = losses.clamp(min=TINY) / initial.clamp(min=TINY)
    sign = torch.sign(g - mean * (ratio / ratio.mean()) ** alpha)
    moved = weights * torch.exp(-RATE * sign * g / mean)
    return moved * (weights.sum() / moved.sum())


def direction(rows: Tensor, method: str, order: np.random.Generator | None) -> Tensor:
    """Return T times the direction [P] that an aggregator makes of the gradients [T, P]: without conflict their sum."""
    g, tasks = rows.detach().cpu().double(), len(rows)
    preference = torch.ones(tasks, dtype=torch.float64)
    weights = weights_of(g @ g.T, method, preference, order=order)  # type: ignore[arg-type]
    return tasks * combine(g, weights)


@dataclass
class Weigher:
    """The weighting of one client in a round: its rule, and what changes as it trains.

    `state` is what the client remembers; no tensor that was in it is changed. The optimiser of the log-variances starts
    afresh with every phase, as that of the parameters does.
    """

    rule: Weighting
    optimiser: Optimiser
    state: Params
    moments: State = field(default_factory=dict)
    rng: np.random.Generator | None = None
    met: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def epoch(self, rng: np.random.Generator, first: bool) -> None:
        """Begin an epoch, maybe the first of a phase; what it draws comes from `rng`."""
        self.rng, self.met = rng, []
        if first:
            self.moments = self.optimiser.start({k: v for k, v in self.state.items() if k == "log_variances"})

    def ended(self) -> None:
        """End an epoch: DWA remembers the mean loss of every task over the batches that had rows of it."""
        if self.rule.kind != "dwa" or not self.met:
            return
        losses, seen = (torch.stack(column) for column in zip(*self.met, strict=True))
        count = seen.sum(0)
        mean = torch.where(seen, losses, 0.0).sum(0) / count.clamp(min=1)
        self.state = {
            "older": torch.where(count > 0, self.state["newer"], self.state["older"]),
            "newer": torch.where(count > 0, mean, self.state["newer"]),
        }

    def loss(
        self, parts: Sequence[Tensor], seen: Sequence[bool], params: Params, names: Sequence[str], t: int
    ) -> Tensor:
        """Return the scalar whose gradient in `names` is that of step `t`, and go on to the next state.

        `parts` are the losses [T] with their graphs, `seen` tells which tasks have rows in the batch: the others have
        no loss to weigh. Not a loss to report: an aggregator's is sum <d, x> with its direction d held constant.
        """
        kind, mask = self.rule.kind, torch.tensor(seen)
        losses = torch.stack(list(parts))
        values = losses.detach().cpu().double()
        if kind == "gls":
            return geometric(losses[mask.to(losses.device)])
        if kind == "aggregator":
            return self._aggregated([part for part, here in zip(parts, seen, strict=True) if here], params, names)
        if kind == "uncertainty":
            weights = self._certain(values, mask, t)
        elif kind == "dwa":
            self.met.append((values, mask))
            weights = dynamic(self.state["older"], self.state["newer"])
        elif kind == "gradnorm":
            weights = self._balanced(parts, values, mask, params, names)
        elif part := self.rule.part:
            assert self.rng is not None
            ctx = Tasks(mask, self.rng, partial(gradients, parts, mask, params, shared(names)))
            weights, self.state = part.weights(values, clone(self.state), ctx)
            if weights.shape != values.shape:
                who, shape = type(part).__qualname__, list(weights.shape)
                raise UserError(
                    f"weighting.kind: {who} must return a weight of every loss [{len(values)}], found {shape}"
                )
        else:
            assert self.rng is not None
            weights = drawn(len(values), self.rng)
        return (weights.to(losses) * losses).sum()

    def _certain(self, values: Tensor, mask: Tensor, t: int) -> Tensor:
        s = {"log_variances": self.state["log_variances"].clone()}
        weights = torch.exp(-s["log_variances"])
        slope = torch.where(mask, variances_gradient(s["log_variances"], values), 0.0)
        self.optimiser.step(s, {"log_variances": slope}, self.moments, t)
        self.state = s
        return weights

    def _balanced(
        self, parts: Sequence[Tensor], values: Tensor, mask: Tensor, params: Params, names: Sequence[str]
    ) -> Tensor:
        weights, initial = self.state["weights"], self.state["initial"]
        initial = torch.where((initial == 0) & mask, values, initial)
        common = shared(names)
        body = [name for name in common if covers(("body",), name)]
        if not body or any(covers(("attributes",), name) for name in params):  # a task about items has no body
            body = common
        after = weights.clone()
        if body and int(mask.sum()) > 1:
            here = mask.nonzero().flatten().tolist()
            norms = torch.stack([gradient(parts[k], params, body).norm() for k in here]).cpu().double()
            after[mask] = balanced(weights[mask], norms, values[mask], initial[mask])
        self.state = {"weights": after, "initial": initial}
        return weights

    def _aggregated(self, parts: Sequence[Tensor], params: Params, names: Sequence[str]) -> Tensor:
        common = shared(names)
        heads = [name for name in names if name not in common]
        rows = torch.stack([gradient(part, params, [*common, *heads]) for part in parts])
        width = sum(params[name].numel() for name in common)
        d = rows.sum(0)  # a head sees the gradient of its own task alone
        if common:
            agreed = direction(rows[:, :width], self.rule.aggregator, self.rng)
            d = torch.cat([agreed.to(d), d[width:]])
        return torch.cat([params[name].reshape(-1) for name in [*common, *heads]]) @ d


def shared(names: Sequence[str]) -> list[str]:
    """Return the names of what is of no one task."""
    return [name for name in names if not covers(OF_TASKS, name)]


def gradient(part: Tensor, params: Params, names: Sequence[str]) -> Tensor:
    """Return the gradient [P] of a loss in `names`, end to end, zero where it does not depend on them."""
    values = [params[name] for name in names]
    grads = torch.autograd.grad(part, values, retain_graph=True, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in grads])


def gradients(parts: Sequence[Tensor], seen: Tensor, params: Params, names: Sequence[str]) -> Tensor:
    """Return the gradients [T, P] in `names` of the losses that are seen, float64; those of others are 0."""
    grads = torch.zeros(len(parts), sum(params[name].numel() for name in names), dtype=torch.float64)
    for row in seen.nonzero().flatten().tolist() if names else ():
        grads[row] = gradient(parts[row], params, names)
    return grads
