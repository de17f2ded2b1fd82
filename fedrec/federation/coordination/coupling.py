"""A coupling as configuration: which operator ties the clients, how strongly, and whether duals are kept."""

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

import fedrec.federation.coordination.operators as operators
from fedrec.components import PartText, make, one_of, read
from fedrec.errors import UserError, choose
from fedrec.federation.coordination.clauses import EXPOSURE, Clause, read_clauses
from fedrec.federation.coordination.maps import server_maps
from fedrec.federation.coordination.operators import Mean, Operator

KINDS = ("mean", "clusters", "mean-regularised", "graph", "mixture", "sum", "linear")


class Coupling(BaseModel, frozen=True, extra="forbid"):
    """How the shared parameters of the clients are tied; `operator` gives the numerics."""

    kind: Annotated[PartText, one_of("coupling.kind")] = Field(
        "mean", description="the server operator: " + ", ".join(KINDS)
    )
    rho: float = Field(0.0, ge=0, allow_inf_nan=False, description="proximal weight of the tie, beside the mean loss")
    duals: bool = Field(False, description="keep scaled duals at the clients (ADMM)")
    balance: bool = Field(False, description="adapt rho to the residuals, finitely often")
    strength: float = Field(
        1e-4,
        ge=0,
        allow_inf_nan=False,
        description="mean-regularised, graph: lambda of the pull, without duals felt as rho lambda / (rho + lambda)",
    )
    groups: str = Field("", description="clusters: client names, 'films,books;shop,news'; others are alone")
    edges: str = Field(
        "", description="graph: 'films~shop,shop~news:2', of weight 1 or the one told; every pair without it"
    )
    mixing: str = Field("", description="mixture: a row of prototype weights for each client, '1,0;0.5,0.5;0,1'")
    maps: str = Field(
        "orthonormal", description="linear: identity, orthonormal, or a safetensors file with CLIENT/A, CLIENT/B"
    )
    width: int = Field(8, ge=1, description="linear: width of the space in which tables of unlike widths meet")
    total: float = Field(0.0, allow_inf_nan=False, description="sum: what the clients' parameters add up to")
    ties: str = Field(
        "",
        description="constraints of named blocks, joined by ';': 'item_table: clusters(films+books, shop+news)', "
        "'losses: parity(0.05)', 'body: films = 2*shop', 'body: MODULE:FUNCTION <= 0'",
    )
    step: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="ties of losses and of exposure: dual step of their multipliers"
    )
    judged: Literal["validation", "training"] = Field(
        "validation",
        description="ties of losses: a third of the validation rows drives the multipliers mu, one selects the round, "
        "one judges; or all on the training rows",
    )
    along: Literal["training", "held-out"] = Field(
        "held-out",
        description="ties of losses: the slope that a multiplier mu above 0 weighs, that of the third that drives it, "
        "which then is trained on too, or of the training rows",
    )
    tolerance: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="ties of losses, and promises: how much of a residual, which is of some rows, the choice overlooks",
    )
    shown: str = Field("", description="ties of exposure: a category of items; the less popular four fifths without it")
    radius: float | None = Field(None, gt=0, allow_inf_nan=False, description="bound of the norm of each z")
    bound: float | None = Field(None, gt=0, allow_inf_nan=False, description="bound of every coordinate of z")

    @field_validator("ties", mode="before")
    @classmethod
    def _join(cls, ties: Any) -> Any:
        return "; ".join(map(str, ties)) if isinstance(ties, list | tuple) else ties

    @field_validator("ties")
    @classmethod
    def _read(cls, ties: str) -> str:
        read_clauses(ties)
        return ties

    @cached_property
    def clauses(self) -> tuple[Clause, ...]:
        """The ties as they are read."""
        return tuple(read_clauses(self.ties))

    @property
    def priced(self) -> tuple[str, ...]:
        """The blocks that are measured, losses and exposure, which ties name."""
        return tuple(sorted({clause.blocks[0] for clause in self.clauses if clause.of_losses}))

    @property
    def losses(self) -> tuple[str, ...]:
        """Those of them that are losses, of rows that drive, select and judge."""
        return tuple(block for block in self.priced if block != EXPOSURE)

    @property
    def scale(self) -> float:
        """What a loss is multiplied by as it travels, so that its part of the proximal term has the weight `step`."""
        return math.sqrt(self.step / self.rho) if self.priced else 1.0

    @property
    def personal(self) -> bool:
        """Whether the clients' z_i may differ."""
        return self.kind != "mean" or bool(self.ties)

    @property
    def plain(self) -> bool:
        """Whether z is the mean of what was sent in this round, with nothing to remember."""
        return self.kind == "mean" and not self.ties and not self.duals and self.radius is None and self.bound is None

    def operator(self, clients: Sequence[str]) -> Operator:
        """Return the operator over the clients in their order; raises UserError where the fields do not fit."""
        if self.kind in ("mean-regularised", "graph", "linear") and not self.rho:
            raise UserError(f"coupling.rho: must be above 0 for {self.kind}, found 0")
        if (self.duals or self.balance) and not self.rho:
            raise UserError("coupling.rho: must be above 0 with duals or balance, found 0")
        return self.exact(clients)

    def exact(self, clients: Sequence[str]) -> Operator:
        """Return the operator where nothing is approached by rounds, so that no rho is needed; raises UserError."""
        inner: Operator = Mean()
        if self.kind == "clusters":
            inner = operators.Clusters(tuple(cluster_of(self.groups, clients)))
        elif self.kind == "mean-regularised":
            inner = operators.MeanRegularised(self.strength)
        elif self.kind == "graph":
            edges = edges_of(self.edges, clients)
            weights = tuple(weight for _, _, weight in edges) if ":" in self.edges else None
            inner = operators.Graph(len(clients), tuple((i, k) for i, k, _ in edges), self.strength, weights)
        elif self.kind == "mixture":
            inner = operators.Mixture(mixing_of(self.mixing, len(clients)))
        elif self.kind == "sum":
            inner = operators.SumTo(self.total)
        elif self.kind == "linear":
            inner = operators.LinearTie(server_maps(self.maps, self.width, clients))
        elif read(self.kind).own:
            inner = operators.Constraint(make("coupling.kind", self.kind), read(self.kind).use, tuple(clients))
        if self.radius is not None and self.bound is not None:
            raise UserError(f"coupling: may have a radius or a bound, found both {self.radius} and {self.bound}")
        if self.radius is not None:
            return operators.Within(inner, operators.Ball(self.radius))
        return inner if self.bound is None else operators.Within(inner, operators.Box(self.bound))


def softened(coupling: Coupling) -> list[str]:
    """Return a note where rounds end at a weaker pull than the one that is told: without duals.

    x_i = argmin p_i f_i + rho p_i/2 |x_i - z_i|^2 with Z = prox_{h/rho}(X) minimises sum_i p_i f_i + h_rho(X) with h's
    Moreau envelope h_rho, in which an eigenvalue l of lambda P^-1 Lap is rho l / (rho + l). No other lambda makes it l
    where l >= rho.
    """
    if coupling.kind not in ("mean-regularised", "graph") or coupling.duals or not coupling.strength:
        return []
    rho, told = coupling.rho, coupling.strength
    text = f"coupling.strength: without duals {coupling.kind} pulls by less than the {told:g} that is told"
    if coupling.kind == "mean-regularised":
        text += f", by rho lambda / (rho + lambda) = {rho * told / (rho + told):g}"
    else:
        text += ": an eigenvalue l of the graph's pull counts rho l / (rho + l)"
    return [f"{text}; --coupling.duals solves what is told"]


def cluster_of(groups: str, clients: Sequence[str]) -> list[int]:
    """Return the cluster of every client; one that is not named is alone."""
    cluster: dict[str, int] = {}
    for number, group in enumerate(part for part in groups.split(";") if part):
        for name in group.split(","):
            choose("coupling.groups", name, clients)
            if name in cluster:
                raise UserError(f"coupling.groups: a client may be in one group, found {name!r} twice")
            cluster[name] = number
    return [cluster.get(name, len(clients) + i) for i, name in enumerate(clients)]


def edges_of(edges: str, clients: Sequence[str]) -> list[tuple[int, int, float]]:
    """Return the edges of 'films~shop:2,shop~news' as pairs of positions with their weights, 1 where none is told.

    Every pair without a text.
    """
    if not edges:
        return [(i, k, 1.0) for i, k in combinations(range(len(clients)), 2)]
    found = []
    for edge in edges.split(","):
        first, tilde, second = edge.partition("~")
        second, weight = (second, 1.0) if second in clients else weight_of(second)
        if not tilde or "~" in second or first == second:
            raise UserError(f"coupling.edges: must be pairs such as films~shop, found {edge!r}")
        if not 0 <= weight < math.inf:
            raise UserError(f"coupling.edges: must have finite weights >= 0 such as films~shop:2, found {edge!r}")
        found.append((place(first, clients), place(second, clients), weight))
    return found


def weight_of(end: str) -> tuple[str, float]:
    """Return the name and the weight of 'shop:2'; what is no number is of the name."""
    name, colon, text = end.rpartition(":")
    try:
        return (name, float(text)) if colon else (end, 1.0)
    except ValueError:
        return end, 1.0


def place(name: str, clients: Sequence[str]) -> int:
    """Return the position of a client."""
    return list(clients).index(choose("coupling.edges", name, clients))


def mixing_of(text: str, clients: int) -> tuple[tuple[float, ...], ...]:
    """Return the rows of the mixing matrix."""
    try:
        rows = tuple(tuple(float(value) for value in row.split(",")) for row in text.split(";"))
    except ValueError:
        raise UserError(f"coupling.mixing: must be rows of numbers such as '1,0;0,1', found {text!r}") from None
    if len(rows) != clients or len({len(row) for row in rows}) != 1:
        raise UserError(f"coupling.mixing: must have {clients} rows of one length, found {text!r}")
    return rows
