"""Ties of clients by name over rounds: closed forms block by block, all else by projections on what they touch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import fedrec.federation.coordination.operators as operators
from fedrec.errors import UserError, choose
from fedrec.federation.coordination.binding import Bound, Layout, bind, check_blocks, only, touched
from fedrec.federation.coordination.clauses import MEASURED, MINIMAX, SETS, Clause
from fedrec.federation.coordination.coupling import edges_of
from fedrec.federation.coordination.halves import Hub, double, tie
from fedrec.federation.coordination.operators import Operator
from fedrec.federation.coordination.projection import Map, Projection, Rows, inverse_of, project
from fedrec.keyed import Carrier
from fedrec.params import Params

MET = 1e-6  # a residual up to it, on the scale of what makes it up, is none
UNJUDGED = "not judged"  # of a tie of losses that somebody has no rows for
FEW = 64  # multipliers that are told one by one


@dataclass(frozen=True)
class Verdict:
    """How a tie stands: its residual, the size of its multipliers, and what is said of it.

    `weights` [m] are the multipliers themselves where they are few; a closed form tells none.
    """

    tie: str
    residual: float = 0.0
    multiplier: float = math.nan
    verdict: str = "met"
    weights: tuple[float, ...] = ()

    def row(self) -> dict[str, Any]:
        """Return it as a row of the record, without what it does not tell."""
        known = {name: getattr(self, name) for name in ("residual", "multiplier")}
        told = {name: value for name, value in known.items() if not math.isnan(value)}
        return {"tie": self.tie, "verdict": self.verdict, **told} | (
            {"weights": list(self.weights)} if self.weights else {}
        )


@dataclass
class Group:
    """Ties that touch parameters in common, and are met together; `y` are the multipliers of the last projection."""

    layout: Layout
    bounds: list[Bound]
    metric: Tensor  # p of every entry
    entangled: bool  # whether a closed form ties any of them too
    y: Tensor | None = None
    inverse: tuple[float, Map] | None = None  # of a rho

    def project(self, values: Mapping[str, Params], rho: float, resolve: Map) -> Projection:
        """Return the point nearest to the clients' values that meets the ties."""
        rows = Rows(
            lambda flat: torch.cat([value_of(bound, flat) for bound in self.bounds]),
            torch.cat([torch.full((b.size,), b.unequal) for b in self.bounds]),
            torch.full((sum(b.size for b in self.bounds),), math.inf, dtype=torch.float64),
            all(b.straight for b in self.bounds),
        )
        flat, closed = self.layout.flat(values), resolve if self.entangled else None
        if self.inverse is None or self.inverse[0] != rho:
            self.inverse = rho, inverse_of(rho * self.metric, closed)
        for bound in self.bounds:
            if not bool(bound.g(flat).isfinite().all()):
                raise UserError(f"tie {bound.clause.text!r}: must be finite at what the clients sent, found others")
        found = project(flat, rho * self.metric, rows, closed, self.y, self.inverse[1])
        self.y = torch.zeros_like(found.y) if found.ray is not None else found.y
        return found

    def parts(self, vector: Tensor) -> Iterator[tuple[Bound, Tensor]]:
        """Yield every tie with its part of a vector [m]."""
        sizes = [bound.size for bound in self.bounds]
        yield from zip(self.bounds, torch.split(vector, sizes), strict=True)


@dataclass
class Joint(Hub):
    """The server half of a list of ties: it remembers V and makes of it the nearest Z that meets them all.

    A block is tied by `operator` unless a tie that is no set names it: then by these alone.
    """

    clauses: Sequence[Clause] = ()
    scale: float = 1.0  # of the losses, which travel times it
    verdicts: list[Verdict] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """See Hub."""
        check_blocks(self.clauses, self.carriers)
        clients, self.closed = list(self.carriers), []
        held = {c.text: touched(c, self.carriers) for c in self.clauses}
        everything = {name for who in self.carriers.values() for name in who.like}
        free = everything - {*MEASURED}.union(*(held[c.text] for c in self.clauses if c.form not in SETS))
        for operator, names in [
            (self.operator, free),
            *((operator_of(c, clients), held[c.text]) for c in self.clauses if c.closed),
        ]:
            members = {client: only(who, names) for client, who in self.carriers.items() if names & who.like.keys()}
            if members:
                self.closed.append((operator, members))
        tied = free.union(*(held[c.text] for c in self.clauses if c.closed))
        self.groups = [
            group_of(together, self.carriers, self.scale, tied)
            for together in apart([c for c in self.clauses if not c.closed and c.form != MINIMAX], held)
        ]
        self.worst = next((c for c in self.clauses if c.form == MINIMAX), None)
        super().__post_init__()

    @property
    def bounds(self) -> list[Bound]:
        """The ties that are no closed forms."""
        return [bound for group in self.groups for bound in group.bounds]

    def resolved(self, v: Mapping[str, Params]) -> dict[str, Params]:
        """Return what the closed forms make of V, of parameters that it has; entries that none of them ties stay."""
        found = {client: dict(values) for client, values in v.items()}
        for operator, members in self.closed:
            there = {client: who for client, who in members.items() if who.like.keys() <= v.get(client, {}).keys()}
            some = [{name: v[client][name] for name in who.like} for client, who in there.items()]
            if there:
                for client, z in zip(there, tie(operator, list(there.values()), some, self.rho), strict=True):
                    found[client] |= z
        return found

    def tie(self) -> dict[str, Params]:
        """See Hub."""
        z, verdicts = self.resolved(self.values), dict[str, Verdict]()
        zero = {client: {name: torch.zeros_like(x) for name, x in part.items()} for client, part in z.items()}
        for group in self.groups:

            def resolve(flat: Tensor, layout: Layout = group.layout) -> Tensor:
                """Return what the closed forms make of the touched entries."""
                part = layout.unflat(flat)
                return layout.flat(self.resolved({c: {**zero[c], **part.get(c, {})} for c in zero}))

            found = group.project(self.values, self.rho, resolve)
            for client, part in group.layout.unflat(found.z).items():
                z[client] |= part
            verdicts |= judge(group, found)
        if self.worst:
            verdicts[self.worst.text] = self.even(self.worst, z)
        self.verdicts = [verdicts.get(clause.text, Verdict(clause.text)) for clause in self.clauses]
        return z

    def even(self, clause: Clause, z: dict[str, Params]) -> Verdict:
        """Let the losses be those of min P max_i t_i - sum_i p_i t_i + rho/2 sum_i p_i (t_i - v_i)^2, P = sum_i p_i.

        t_i = min(v_i + 1/rho, t), with t such that the multipliers lambda_i = rho p_i (v_i + 1/rho - t)_+ add up to P.
        """
        (block,) = clause.blocks
        p = torch.tensor([who.weight for who in self.carriers.values()], dtype=torch.float64)
        rho = self.rho * self.scale**2
        raised = torch.cat([part[block].reshape(-1) for part in z.values()]) / self.scale + 1 / rho
        order = raised.argsort(descending=True)
        mass, weighed = p[order].cumsum(0), (p * raised)[order].cumsum(0)
        t = ((weighed - p.sum() / rho) / mass).max()  # of the levels if so many of the largest are above
        for part, level in zip(z.values(), torch.minimum(raised, t), strict=True):
            part[block] = (level * self.scale).reshape(part[block].shape)
        weights = rho * p * (raised - t).clamp(min=0.0)
        return Verdict(clause.text, 0.0, float(weights.norm()), "met", tuple(weights.tolist()))

    def at(self, values: Mapping[str, Params]) -> dict[str, Tensor]:
        """Return g of every tie that is no closed form, by its text, at some values of the clients."""
        wide = {client: double(part) for client, part in values.items()}
        return {b.clause.text: b.g(group.layout.flat(wide)).detach() for group in self.groups for b in group.bounds}

    @property
    def prices(self) -> dict[str, Tensor]:
        """The multipliers of the ties of losses, by their text."""
        return {
            bound.clause.text: y
            for group in self.groups
            if group.y is not None
            for bound, y in group.parts(group.y)
            if bound.clause.of_losses
        }

    def whole(self) -> Params:
        """See Held; losses are no parameters."""
        return {name: value for name, value in super().whole().items() if name not in MEASURED}

    def columns(self, broken: Mapping[str, float] = MappingProxyType({})) -> dict[str, float]:
        """See Untold."""
        found: dict[str, float] = {}
        for number, verdict in enumerate(self.verdicts, 1):
            residual = max(broken.get(verdict.tie, self.unjudged(verdict)), 0.0)
            found |= {f"tie{number}_residual": residual, f"tie{number}_multiplier": verdict.multiplier}
        return found

    def broken(self, losses: Mapping[tuple[str, str], float]) -> dict[str, float]:
        """See Untold; a tie of losses that somebody did not tell is left out."""
        values = {client: dict(part) for client, part in self.z.items()}
        for client, part in values.items():
            for block in part.keys() & {*MEASURED}:
                part[block] = torch.full_like(part[block], losses.get((client, block), math.nan) * self.scale)
        found, by_text = {}, {bound.clause.text: bound for bound in self.bounds}
        for text, g in self.at(values).items():
            worst = float((g if by_text[text].unequal else g.abs()).max())
            if not math.isnan(worst):
                found[text] = worst if worst > slack(by_text[text].clause) else min(worst, 0.0)
        return found

    def verdict_rows(self, broken: Mapping[str, float]) -> list[dict[str, Any]]:
        """See Untold."""
        rows = []
        for verdict in self.verdicts:
            residual = broken.get(verdict.tie, self.unjudged(verdict))
            word = (
                "violated" if residual > 0 and verdict.tie in broken and verdict.verdict == "met" else verdict.verdict
            )
            word = UNJUDGED if math.isnan(residual) else word
            rows.append(replace(verdict, residual=max(residual, 0.0), verdict=word).row())
        return rows

    def unjudged(self, verdict: Verdict) -> float:
        """Return the residual of a tie that no losses were told of: that of the projection, NaN of a tie of losses."""
        of_losses = {bound.clause.text for bound in self.bounds if bound.clause.of_losses}
        return math.nan if verdict.tie in of_losses else verdict.residual

    def state(self) -> Params:
        """See Held."""
        return super().state() | {f"y/{i}": group.y for i, group in enumerate(self.groups) if group.y is not None}

    def restore(self, state: Params) -> None:
        """See Held."""
        super().restore(state)
        for place, group in enumerate(self.groups):
            group.y = state.get(f"y/{place}")


def value_of(bound: Bound, flat: Tensor) -> Tensor:
    """Return g of a tie; raises UserError where it is another number of values than at the beginning."""
    value = bound.g(flat)
    if len(value) != bound.size:
        raise UserError(f"tie {bound.clause.text!r}: must be {bound.size} numbers whatever z is, found {len(value)}")
    return value


def slack(clause: Clause) -> float:
    """Return the residual of a tie up to which it is met."""
    return MET * (1 + abs(clause.constant))


def judge(group: Group, found: Projection) -> dict[str, Verdict]:
    """Return how the ties of a group stand after a projection."""
    verdicts = {}
    ray = torch.zeros_like(found.y) if found.ray is None else found.ray
    told = zip(group.parts(found.residual), group.parts(found.y), group.parts(ray), strict=True)
    for (bound, residual), (_, y), (_, blame) in told:
        worst = float(residual.max())
        word = "met" if worst <= slack(bound.clause) else "violated"
        word = "infeasible" if float(blame.abs().max()) > MET else word
        weights = tuple(y.tolist()) if bound.size <= FEW else ()
        verdicts[bound.clause.text] = Verdict(bound.clause.text, worst, float(y.norm()), word, weights)
    return verdicts


def apart(clauses: Sequence[Clause], held: Mapping[str, set[str]]) -> list[list[Clause]]:
    """Return the ties in groups that have no parameter in common."""
    groups: list[tuple[set[str], list[Clause]]] = []
    for clause in clauses:
        meeting = [group for group in groups if group[0] & held[clause.text]]
        groups = [group for group in groups if group not in meeting]
        names = held[clause.text].union(*(group[0] for group in meeting))
        groups.append((names, [*(one for group in meeting for one in group[1]), clause]))
    return [together for _, together in groups]


def group_of(clauses: Sequence[Clause], carriers: Mapping[str, Carrier], scale: float, tied: set[str]) -> Group:
    """Return ties that touch parameters in common as one group."""
    names = {
        client: sorted(set[str]().union(*(touched(c, {client: who}) for c in clauses)))
        for client, who in carriers.items()
    }
    layout = Layout.of(names, carriers)
    weights = [torch.full((end - start,), carriers[client].weight) for client, _, start, end in layout.spans()]
    entangled = any(name in tied for part in names.values() for name in part)
    metric = torch.cat(weights).double()
    return Group(layout, [bind(c, layout, carriers, scale) for c in clauses], metric, entangled)


def operator_of(clause: Clause, clients: Sequence[str]) -> Operator:
    """Return the operator of a closed form over the clients in their order; raises UserError."""
    if clause.form == "clusters":
        cluster: dict[str, int] = {}
        for number, group in enumerate(clause.arguments):
            for name in (part.strip() for part in group.split("+")):
                choose(f"tie {clause.text!r}", name, clients)
                if name in cluster:
                    raise UserError(f"tie {clause.text!r}: a client may be in one group, found {name!r} twice")
                cluster[name] = number
        return operators.Clusters(tuple(cluster.get(name, len(clients) + i) for i, name in enumerate(clients)))
    if clause.form == "mean-regularised":
        return operators.MeanRegularised(clause.numbers()[0])
    if clause.form == "graph":
        edges = edges_of(",".join(clause.arguments[1:]), clients)
        weights = tuple(weight for _, _, weight in edges)
        return operators.Graph(len(clients), tuple((i, k) for i, k, _ in edges), clause.numbers()[0], weights)
    if clause.form == "sum":
        return operators.SumTo(clause.numbers()[0])
    return operators.Mean()
