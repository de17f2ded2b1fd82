"""One training round of a crowd of clients: sums where the server needs no more, every client's own x_i elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from clients.budget import priced
from clients.crowd import NOTHING, Crowd, Kept
from clients.drift import counted, followed
from clients.private import open_loss
from fedrec.aggregation import Subtotal
from fedrec.coordination import Link, Own
from fedrec.experiment import Experiment
from fedrec.parameters import LARGEST, Params, finite, norm, subtract, to
from fedrec.proportion import large, too_far
from fedrec.sharing import TABLES, Broadcast, Contribution
from fedrec.training.changed import Block, Changed
from fedrec.training.recipe import Recipe
from fedrec.training.results import Sum, client, trained, write
from fedrec.training.stacks import Part, Stack, Terms
from fedrec.training.update import train
from fedrec.wire import Answers, Call


@dataclass
class Remembered:
    """What a loss budget looks up of a client of a crowd; see `clients.budget`."""

    crowd: Crowd
    place: int

    @property
    def private(self) -> Params:
        """The private parameters as the last training left them."""
        return to(client(self.crowd.cohort, self.crowd.private, self.place), "cpu")

    @property
    def mu(self) -> float:
        """The multiplier of the client's budget."""
        return self.crowd.now[self.place].mu

    @property
    def limits(self) -> list[float]:
        """The client's budget b_i for every round, once it is known."""
        return self.crowd.limits.get(self.place, [])

    @limits.setter
    def limits(self, values: list[float]) -> None:
        self.crowd.limits[self.place] = values


@dataclass
class Round:
    """One training round of a crowd: what its clients were sent, and what becomes of them."""

    crowd: Crowd
    experiment: Experiment
    call: Call
    sent: dict[int, Broadcast]  # by position, ascending
    failed: dict[int, str]

    def __post_init__(self) -> None:
        e, crowd = self.experiment, self.crowd
        self.places = list(self.sent)
        self.z = crowd.received({p: b.values for p, b in self.sent.items()}, e.coupling.personal)
        self.links = {p: self.link(p) for p in self.places} if e.coupling.duals else {}
        self.prices = {p: priced(crowd.clients[p], Remembered(crowd, p), b) for p, b in self.sent.items()}
        self.private = Stack({name: value.clone() for name, value in crowd.private.values.items()})
        self.losses = dict.fromkeys(self.places, float("nan"))
        self.x: dict[int, Params] = {}
        self.v: dict[int, Params] = {}  # APFL's personal halves
        if e.drift.personal == "apfl":
            owns = {p: crowd.now[p].own.personal for p in self.places}
            self.v = {p: own for p, own in owns.items() if own is not None}
        self.weight = np.zeros(len(crowd.cohort))
        for name, (_, weight) in self.call.chunks.items():
            if name in crowd.places and crowd.places[name] in self.sent:
                self.weight[crowd.places[name]] = weight
        self.blocks: list[Block] = []
        # Not only who is not summed: SCAFFOLD needs every client's own x, and so do tuned copies of a personal z.
        keeps = e.drift.correction != "none" or (e.drift.personal == "tuned" and crowd.tuned is None)
        self.needed = {p for p in self.places if keeps or not self.weight[p]}
        self.total = Sum.zero(self.z.values) if self.weight.any() else None

    def link(self, place: int) -> Link:
        """Return a client's tie under the rho of this round."""
        coupling, link = self.experiment.coupling, self.crowd.now[place].link
        assert link is not None
        return link.rescaled(self.sent[place].rho if coupling.balance else coupling.rho)

    def terms(self) -> tuple[Recipe, Terms]:
        """Return what the clients minimise beside their loss."""
        e, crowd = self.experiment, self.crowd
        mu = next(iter(self.links.values())).rho if self.links else e.coupling.rho
        anchor, shift, weight = self.z if mu else None, None, None
        if self.links:
            anchor = crowd.spread({p: link.anchor(self.sent[p].values) for p, link in self.links.items()})
        if e.drift.correction == "scaffold":
            shifts = {p: crowd.now[p].own.shift(b.control) for p, b in self.sent.items()}
            shift = crowd.spread({p: one for p, one in shifts.items() if one is not None})
        if e.budget.active:
            weight = torch.tensor([1.0 + self.prices[p][0] for p in self.places])
        v = crowd.spread(self.v) if self.v else None
        return replace(e.recipe(), mu=mu), Terms(anchor, shift, weight, v, e.drift.weight)

    def train(self) -> None:
        """Train all clients; gather sums, single x_i where they are needed, losses and private parameters."""
        e, crowd, chosen = self.experiment, self.crowd, np.array(self.places, dtype=np.int64)
        recipe, terms = self.terms()
        scopes = [(crowd.clients[p].data.name, self.sent[p].round) for p in self.places]
        weight = torch.from_numpy(self.weight)
        if self.total:
            self.total.start(crowd.cohort, self.z, chosen, weight[torch.from_numpy(chosen)])
        for part in train(
            crowd.cohort,
            self.z,
            crowd.private,
            recipe,
            e.sharing(),
            seed=e.seed,
            chosen=chosen,
            scopes=scopes,
            terms=terms,
        ):
            self.diverged(part)
            self.disproportionate(part)
            if self.total:
                self.total.add(crowd.cohort, self.z, part, weight[torch.from_numpy(part.clients)])
            write(self.private, part)
            if crowd.tuned:
                self.blocks.append(Block.of(self.z, part))
            for j, (place, loss) in enumerate(zip(part.clients.tolist(), part.loss.tolist(), strict=True)):
                self.losses[place] = loss
                if terms.personal:
                    mine = trained(crowd.cohort, terms.personal, replace(part, values=part.personal), j)
                    self.v[place] = to(mine, "cpu")
                if place in self.needed:
                    self.x[place] = to(trained(crowd.cohort, self.z, part, j), "cpu")
        for place in self.needed - self.x.keys():  # nothing to train on
            self.x[place] = self.sent[place].values

    def diverged(self, part: Part) -> None:
        """Take out the clients of a part whose parameters are not finite."""
        made = [*part.values.items(), *part.personal.items()]
        if all(finite(value) for _, value in made):
            return
        good = np.ones(len(part.clients), dtype=np.bool_)
        for name, value in made:
            sound = (value.abs() <= LARGEST).reshape(len(value), -1).all(1).cpu().numpy()
            np.logical_and.at(good, part.touched[TABLES[name]].owner if name in TABLES else np.arange(len(good)), sound)
        lr = self.experiment.lr
        for place in part.clients[~good].tolist():
            found = f"lr: must be small enough for finite parameters, found {lr} in round {self.sent[place].round}"
            self.leave_out(place, found)

    def disproportionate(self, part: Part) -> None:
        """Take out the clients of a part that would be summed, and whose change is out of all proportion."""
        shared = {name: part.values[name] for name in self.total.total} if self.total else {}
        if not large(shared, {}, increments=True):
            return
        crowd, squares = self.crowd, torch.zeros(len(part.clients), dtype=torch.float64)
        for name, value in shared.items():
            if name in TABLES:
                owner = torch.from_numpy(part.touched[TABLES[name]].owner)
                moved = value - self.z.take(name, crowd.cohort, part.clients, part.touched)
                squares.index_add_(0, owner, moved.double().square().sum(1).cpu())
            else:
                moved = value - self.z.at(name, crowd.cohort, part.clients, part.clients)
                squares += moved.double().square().reshape(len(value), -1).sum(1).cpu()
        changes = {p: s for p, s in zip(part.clients.tolist(), squares.sqrt().tolist(), strict=True) if self.weight[p]}
        for place, text in too_far(changes, {p: norm(self.sent[p].values) for p in changes}).items():
            self.leave_out(place, text)

    def leave_out(self, place: int, text: str) -> None:
        """Let a client fail, and take it out of the sum that it was to be in."""
        self.failed[place] = text
        if self.total and self.weight[place]:
            self.total.start(self.crowd.cohort, self.z, np.array([place]), torch.tensor([-self.weight[place]]))
        self.weight[place] = 0.0

    def finish(self) -> Answers:
        """Remember what the clients have become, and return what they answer."""
        e, crowd, made, found = self.experiment, self.crowd, {}, Answers([])
        plain = Kept(next(iter(self.sent.values())).round)
        for place, broadcast in self.sent.items():
            if place in self.failed:
                continue
            one, (mu, told), x, link = crowd.clients[place], self.prices[place], self.x.get(place), None
            metrics, values = (
                {**open_loss(one, self.losses[place]), **(counted(one) if e.drift.counted else {})},
                {} if self.weight[place] else x or {},
            )
            own = crowd.now[place].own if x is None else followed(one, broadcast, x, crowd.now[place].own)
            if self.links and x is not None:
                metrics |= {"gap": norm(subtract(x, broadcast.values)) ** 2, **told}
                values, link = self.links[place].answer(x, broadcast.values)
            own = replace(own, personal=self.v[place]) if self.v else own
            made[place] = Kept(broadcast.round, link, own, mu) if link or own is not NOTHING or mu else plain
            found.contributions.append(Contribution(one.data.name, values, metrics, one.device))
        if e.drift.personal == "ditto":
            made = {
                place: replace(kept, own=own) for (place, kept), own in zip(made.items(), self.ditto(made), strict=True)
            }
        bad = [place for place in self.places if place in self.failed]
        private = crowd.mixed(self.private, crowd.private, bad) if bad else self.private
        crowd.trained(private, made, self.tuned(list(made)) if crowd.tuned else None)
        summed = [place for place in self.places if self.weight[place]]
        if summed and self.total:
            found.subtotals.append(self.subtotal(summed, self.total))
        return found

    def tuned(self, places: Sequence[int]) -> Changed | None:
        """Return every client's own x_i after the round."""
        good = np.array(sorted(places), dtype=np.int64)
        blocks = [block.only(good) for block in self.blocks]
        return self.crowd.tuned and self.crowd.tuned.trained(self.crowd.cohort, self.z, blocks, good)

    def ditto(self, made: Mapping[int, Kept]) -> list[Own]:
        """Return what clients remember after their personal models have trained on f_i + lambda/2 |v - z|^2."""
        e, crowd = self.experiment, self.crowd
        personal = {p: kept.own.personal for p, kept in made.items() if kept.own.personal is not None}
        split = {p: e.sharing().split(v) for p, v in personal.items()}
        shared, private = (crowd.spread({p: both[k] for p, both in split.items()}) for k in (0, 1))
        z = crowd.spread({p: self.sent[p].values for p in personal})
        scopes = [(crowd.clients[p].data.name, self.sent[p].round) for p in personal]
        recipe, chosen = replace(e.recipe(), mu=e.drift.weight), np.array(list(personal), dtype=np.int64)
        for part in train(
            crowd.cohort,
            shared,
            private,
            recipe,
            e.sharing(),
            seed=e.seed,
            chosen=chosen,
            scopes=scopes,
            terms=Terms(z),
        ):
            before = Stack({**shared.values, **private.values})
            for j, place in enumerate(part.clients.tolist()):
                personal[place] = to(trained(crowd.cohort, before, part, j), "cpu")
        return [replace(kept.own, personal=personal[p]) for p, kept in made.items()]

    def subtotal(self, summed: Sequence[int], total: Sum) -> Subtotal:
        """Return the sum over clients, on the rows that they carry."""
        crowd, values = self.crowd, {}
        for name, value in total.total.items():
            server = crowd.cohort.server[TABLES[name]] if name in TABLES else None
            if server is not None:
                rows = np.unique(server[crowd.rows(TABLES[name], np.array(summed))])
                value = value.index_select(0, torch.from_numpy(rows).to(value.device))
            values[name] = value.cpu()
        inside = set(summed)
        order = [name for name in self.call.broadcasts if crowd.places.get(name) in inside]
        return Subtotal(tuple(order), values, float(total.gap))
