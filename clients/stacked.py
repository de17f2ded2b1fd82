"""One round of training of many clients with stacked tensors, between `clients.round.begin` and `finish`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from clients.client import Client
from clients.training import Made, Start
from fedrec.distinct import distinct
from fedrec.federation.proportion import large, size, too_far
from fedrec.keyed import TABLES, Subtotal
from fedrec.params import LARGEST, Params, finite, to
from fedrec.training.cohort import Cohort
from fedrec.training.moved import Moved
from fedrec.training.results import Piece, Sum, client_after, moved, spread, whole
from fedrec.training.stacks import Part, Stack, Terms
from fedrec.training.update import train


def received(cohort: Cohort, parts: Mapping[int, Params], device: str, personal: bool) -> Stack:
    """Return the z_i of some clients as one stack: the server's rows once, unless every client has its own z_i."""
    first, *others = parts.values()
    if personal:
        return Stack(to(spread(cohort, parts).values, device))
    server = {name: cohort.server[TABLES[name]] for name in first if name in TABLES}
    alike = all(other is first or all(other[n] is v for n, v in first.items()) for other in others)
    if alike and all(rows is None for rows in server.values()):
        return Stack(to(first, device), each=False)
    made: Params = {}
    for name, like in first.items():
        rows = server.get(name)
        if rows is None:
            made[name] = like
            continue
        starts = cohort.starts[TABLES[name]]
        made[name] = like.new_zeros((int(rows.max()) + 1, *like.shape[1:]))
        for place, part in parts.items():
            mine = torch.from_numpy(rows[starts[place] : starts[place + 1]])
            made[name].index_copy_(0, mine, part[name])
    return Stack(to(made, device), each=False)


class Training:
    """One round of training of a cohort: sums where the server needs no more, every client's own x_i elsewhere.

    `starts` and `weights`, of those that are summed, are by position; `private` is what all have before the round.
    """

    def __init__(
        self,
        cohort: Cohort,
        clients: Sequence[Client],
        private: Stack,
        starts: Mapping[int, Start],
        weights: Mapping[int, float],
    ) -> None:
        self.cohort, self.clients, self.starts, self.experiment = cohort, clients, starts, clients[0].experiment
        self.weight = np.zeros(len(cohort))
        self.weight[list(weights)] = list(weights.values())
        parts = {place: start.z for place, start in starts.items()}
        self.z = received(cohort, parts, clients[0].device, self.experiment.coupling.personal)
        self.total = Sum.zero(self.z.values) if self.weight.any() else None
        drift = self.experiment.drift
        self.keeps = drift.correction != "none" or drift.personal == "tuned"  # whether every x_i is asked for
        self.before = private
        self.private = private.copy()
        self.losses = np.full(len(self.cohort), np.nan)
        self.x: dict[int, Mapping[str, Tensor]] = {}
        self.v: dict[int, Params] = {}  # personal models

    def run(self, failed: dict[int, str]) -> None:
        """Train the clients; note who fails."""
        cohort, (terms, rho) = self.cohort, self.terms()
        weight = torch.from_numpy(self.weight)
        if self.total:
            chosen = np.array(list(self.starts), dtype=np.int64)
            self.total.start(cohort, self.z, chosen, weight[torch.from_numpy(chosen)])
        for part in self.parts(self.before, rho, terms):
            failed |= self.diverged(part) | self.disproportionate(part)
            if self.total:
                self.leave_out(failed)
                self.total.add(cohort, self.z, part, weight[torch.from_numpy(part.clients)])
            self.private.write(part)
            self.losses[part.clients] = part.loss.cpu().numpy()
            self.take_apart(part, terms.personal)
        self.private = self.private.settled()

    def take_apart(self, part: Part, personal: Stack | None) -> None:
        """Keep what is asked for of every client of a part by itself."""
        asked = np.ones(len(part.clients), np.bool_) if self.keeps else self.weight[part.clients] == 0
        tuned = self.experiment.drift.personal == "tuned"
        for j in np.flatnonzero(asked | (personal is not None)).tolist():
            place = int(part.clients[j])
            if personal:
                after = client_after(self.cohort, personal, replace(part, values=part.personal), j)
                self.v[place] = to(after, "cpu")
            if not asked[j]:
                continue
            if tuned and self.clients[place].device == "cpu":
                self.x[place] = moved(self.cohort, self.starts[place].z, part, j)
            else:
                self.x[place] = to(client_after(self.cohort, self.z, part, j), "cpu")

    def made(self, place: int) -> Made:
        """Return what training made of a client."""
        start, tuned = self.starts[place], self.experiment.drift.personal == "tuned"
        own = replace(start.own, personal=self.v.get(place, start.own.personal)) if self.v else start.own
        asked, still = self.keeps or not self.weight[place], Moved.start(start.z) if tuned else start.z
        x = self.x.get(place, still) if asked else None
        return Made(float(self.losses[place]), Piece(self.cohort, self.private, place), own, x)

    def parts(self, private: Stack, mu: float, terms: Terms) -> Iterator[Part]:
        """Train clients, chunk by chunk."""
        e = self.experiment
        scopes = [(self.clients[place].data.name, start.sent.round) for place, start in self.starts.items()]
        return train(
            self.cohort,
            self.z,
            private,
            replace(self.clients[0].recipe, mu=mu),
            e.sharing(),
            seed=e.seed,
            chosen=np.array(list(self.starts), dtype=np.int64),
            scopes=scopes,
            terms=terms,
        )

    def terms(self) -> tuple[Terms, float]:
        """Return what the clients minimise beside their loss, and the rho of its proximal term."""
        e, starts = self.experiment, self.starts
        first = next(iter(starts.values()))
        anchor, shift, weight, personal = self.z if first.rho else None, None, None, None
        if first.link:
            anchor = self.spread({place: start.anchor for place, start in starts.items()})
        if first.shift:
            shift = self.spread({place: start.shift for place, start in starts.items() if start.shift})
        if e.budget.active or e.coupling.losses:
            weight = torch.tensor([1.0 + start.mu for start in starts.values()])
        if e.drift.second:
            personal = self.spread({p: start.own.personal for p, start in starts.items() if start.own.personal})
        share = e.drift.shares(personal.values if personal else ())
        return Terms(
            anchor, shift, weight, personal, share, e.drift.pull, self.z, paced=bool(e.coupling.losses)
        ), first.rho

    def spread(self, parts: Mapping[int, Mapping[str, Tensor]]) -> Stack:
        """Return a stack of tensors of some clients where they train."""
        return Stack(to(spread(self.cohort, parts).values, self.clients[0].device))

    def diverged(self, part: Part) -> dict[int, str]:
        """Return the clients of a part whose parameters are not finite, and why they fail."""
        made = [*part.values.items(), *part.personal.items()]
        if all(finite(value) for _, value in made):
            return {}
        good = np.ones(len(part.clients), dtype=np.bool_)
        for name, value in made:
            sound = (value.abs() <= LARGEST).reshape(len(value), -1).all(1).cpu().numpy()
            np.logical_and.at(good, part.touched[TABLES[name]].owner if name in TABLES else np.arange(len(good)), sound)
        rule = f"lr: must be small enough for finite parameters, found {self.experiment.lr} in round"
        return {place: f"{rule} {self.starts[place].sent.round}" for place in part.clients[~good].tolist()}

    def disproportionate(self, part: Part) -> dict[int, str]:
        """Return the clients of a part that would be summed, and whose change is out of all proportion."""
        shared = {name: part.values[name] for name in self.total.total} if self.total else {}
        if not large(shared, {}, increments=True):
            return {}
        squares = torch.zeros(len(part.clients), dtype=torch.float64)
        for name, value in shared.items():
            if name in TABLES:
                owner = torch.from_numpy(part.touched[TABLES[name]].owner)
                change = value - self.z.take(name, self.cohort, part.clients, part.touched)
                squares.index_add_(0, owner, change.double().square().sum(1).cpu())
            else:
                change = value - self.z.at(name, self.cohort, part.clients, part.clients)
                squares += change.double().square().reshape(len(value), -1).sum(1).cpu()
        sizes = zip(part.clients.tolist(), squares.sqrt().tolist(), strict=True)
        changes = {place: size for place, size in sizes if self.weight[place]}
        return too_far(changes, {place: size(self.starts[place].z) for place in changes})

    def leave_out(self, failed: Collection[int]) -> None:
        """Take clients that failed out of the sum that they were to be in."""
        for place in failed:
            if self.total and self.weight[place]:
                self.total.start(self.cohort, self.z, np.array([place]), torch.tensor([-self.weight[place]]))
            self.weight[place] = 0.0

    def subtotals(self, order: Sequence[tuple[int, str]]) -> list[Subtotal]:
        """Return the sum over clients, on the rows that they carry; nothing if there are none.

        `order` is that of the clients in it: positions and names, among others.
        """
        inside = np.flatnonzero(self.weight)
        summed = set(inside.tolist())
        if not (self.total and len(inside)):
            return []
        values = {}
        for name, value in self.total.total.items():
            server = self.cohort.server[TABLES[name]] if name in TABLES else None
            if server is not None:
                flat, _ = whole(self.cohort, TABLES[name], inside)
                value = value.index_select(0, torch.from_numpy(distinct(server[flat])).to(value.device))
            values[name] = value.cpu()
        names = tuple(name for place, name in order if place in summed)
        return [Subtotal(names, values, float(self.total.gap))]
