"""Server operators as proximal maps, and `tie`: an operator on every row of a table over the clients that carry it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrec.errors import UserError
from fedrec.federation.coordination import Coupling, halves
from fedrec.federation.coordination.balls import shrink
from fedrec.federation.coordination.halves import Hub, tie
from fedrec.federation.coordination.operators import (
    Ball,
    Box,
    Clusters,
    ConvexSet,
    Graph,
    Mean,
    MeanRegularised,
    Mixture,
    Operator,
    SumTo,
    Within,
)
from fedrec.keyed import Carrier
from fedrec.params import Params
from fedrec.rng import generator
from tests.quadratics import OPERATORS, Array, apart, claim, cp, minimise

PROJECTIONS = ("mean", "clusters", "mixture", "linear", "sum")
SETS: dict[str, ConvexSet] = {"ball": Ball(0.8), "box": Box(0.4)}
# Where the angle between the two sets cannot be arbitrarily small, so that their alternation ends in reasonable time.
BOUNDED = [(name, convex) for name in OPERATORS if name not in ("mixture", "linear") for convex in SETS]
problems = st.tuples(st.integers(0, 2**31), st.integers(3, 5), st.integers(1, 4), st.floats(0.01, 100.0))


def drawn(seed: int, n: int, d: int, kind: str = "v") -> list[Tensor]:
    g = generator(seed, kind)
    return [torch.from_numpy(g.normal(size=d)) for _ in range(n)]


def weights(seed: int, n: int) -> Tensor:
    return torch.from_numpy(generator(seed, "p").uniform(0.2, 3.0, n))


def inner(p: Tensor, a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return sum_i p_i <a_i, b_i>."""
    return float(sum(w * (x @ y) for w, x, y in zip(p, a, b, strict=True)))


def minus(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [x - y for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=15)
@given(problems)
def test_an_operator_is_the_proximal_map_it_claims(name: str, one: tuple[int, int, int, float]) -> None:
    seed, n, d, rho = one
    p, v = weights(seed, n), drawn(seed, n, d)
    told = claim(name, seed, p.tolist(), d)
    assert apart(told.operator(v, p, rho), told.prox(v, p.tolist(), rho)) < 1e-8


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=15)
@given(problems)
def test_on_some_clients_it_is_the_operator_of_the_sub_problem(name: str, one: tuple[int, int, int, float]) -> None:
    seed, n, d, rho = one
    members = generator(seed, "members").permutation(n)[: n - 1].tolist()
    p, v = weights(seed, n), drawn(seed, n - 1, d)
    part = claim(name, seed, p.tolist(), d, members)
    restricted = claim(name, seed, p.tolist(), d).operator.restrict(members)
    assert apart(restricted(v, p[members], rho), part.prox(v, p[members].tolist(), rho)) < 1e-8


@pytest.mark.parametrize(("name", "convex"), [*((name, None) for name in OPERATORS), *BOUNDED])
@settings(max_examples=8)
@given(problems)
def test_it_is_firmly_nonexpansive(name: str, convex: str | None, one: tuple[int, int, int, float]) -> None:
    """|Pv - Pw|^2 <= <Pv - Pw, v - w> in the metric of the weights, as every proximal map."""
    seed, n, d, rho = one
    rho = max(rho, 0.5)
    p, v, w = weights(seed, n), drawn(seed, n, d), drawn(seed, n, d, "w")
    operator = claim(name, seed, p.tolist(), d).operator
    # a total of 1.5 is out of reach of three boxes of 0.4
    operator = replace(operator, total=0.3) if isinstance(operator, SumTo) else operator
    operator = operator if convex is None else Within(operator, SETS[convex])
    moved = minus(operator(v, p, rho), operator(w, p, rho))
    assert inner(p, moved, moved) <= inner(p, moved, minus(v, w)) + 1e-9


@pytest.mark.parametrize(
    ("name", "convex"), [*((name, None) for name in PROJECTIONS), *(pair for pair in BOUNDED if pair[0] in PROJECTIONS)]
)
@settings(max_examples=8)
@given(problems)
def test_a_projection_is_idempotent(name: str, convex: str | None, one: tuple[int, int, int, float]) -> None:
    seed, n, d, rho = one
    p, v = weights(seed, n), drawn(seed, n, d)
    operator = claim(name, seed, p.tolist(), d).operator
    operator = replace(operator, total=0.3) if isinstance(operator, SumTo) else operator
    operator = operator if convex is None else Within(operator, SETS[convex])
    z = operator(v, p, rho)
    assert apart(operator(z, p, rho), z) < 1e-9


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=8)
@given(problems)
def test_the_order_of_the_clients_does_not_matter(name: str, one: tuple[int, int, int, float]) -> None:
    seed, n, d, rho = one
    order = generator(seed, "order").permutation(n).tolist()
    p, v = weights(seed, n), drawn(seed, n, d)
    operator = claim(name, seed, p.tolist(), d).operator
    z = operator(v, p, rho)
    assert apart(operator.restrict(order)([v[i] for i in order], p[order], rho), [z[i] for i in order]) < 1e-9


@pytest.mark.parametrize("convex", SETS)
@pytest.mark.parametrize("name", ["mean", "mean-regularised", "graph", "mixture"])
def test_within_a_set_it_is_the_proximal_map_of_the_sum(name: str, convex: str) -> None:
    """argmin h(Z) + rho/2 sum_i p_i |z_i - v_i|^2 over z_i in C, by a convex solver; a mere composition differs."""
    rho, p, v = 2.0, weights(7, 4), [3 * one for one in drawn(7, 4, 3)]
    told = claim(name, 7, p.tolist(), 3)
    z = cp.Variable(12)
    gap = z - np.concatenate([one.numpy() for one in v])
    objective = rho / 2 * cp.sum_squares(cp.multiply(np.repeat(p.sqrt().numpy(), 3), gap))
    objective += 0 if told.q is None else cp.quad_form(z, cp.psd_wrap(told.q)) / 2
    parts = [z[3 * i : 3 * i + 3] for i in range(4)]
    limits = [cp.norm(one) <= 0.8 if convex == "ball" else cp.norm(one, "inf") <= 0.4 for one in parts]
    limits += [] if told.e is None else [told.e[0] @ z == told.e[1]]
    minimise(objective, limits)
    found, reference = Within(told.operator, SETS[convex])(v, p, rho), np.split(np.asarray(z.value), 4)
    assert apart(found, reference) < 1e-5
    composed = [SETS[convex](one) for one in told.operator(v, p, rho)]
    assert (apart(composed, reference) > 1e-3) == (name != "mean")


def test_a_set_is_a_projection_with_known_answers() -> None:
    v = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert torch.allclose(Ball(1.0)(v), torch.tensor([0.6, -0.8], dtype=torch.float64))
    assert torch.equal(Ball(5.0)(v), v)
    assert Box(3.5)(v).tolist() == [3.0, -3.5]
    assert Ball(1.0)(torch.zeros(2)).tolist() == [0.0, 0.0]


def test_limits_of_the_regularised_operators() -> None:
    """No pull leaves V as it is; an endless pull is consensus: the weighted mean over each connected part."""
    p, v = weights(1, 4), drawn(1, 4, 3)
    pairs, mean = ((0, 1), (2, 3)), Mean()(v, p, 1.0)
    for weak in (MeanRegularised(0.0), Graph(4, pairs, 0.0), Graph(4, (), 5.0)):
        assert apart(weak(v, p, 1.0), v) < 1e-12
    assert apart(MeanRegularised(1e12)(v, p, 1.0), mean) < 1e-9
    assert apart(Graph(4, pairs, 1e9)(v, p, 1.0), Clusters((0, 0, 1, 1))(v, p, 1.0)) < 1e-6
    assert apart(Mixture(((1.0,), (1.0,), (1.0,), (1.0,)))(v, p, 1.0), mean) < 1e-12


def test_an_edge_counts_by_its_weight() -> None:
    """A weight of 2 is the edge twice, of 0 none; a strength is a weight of all."""
    p, v, edges = weights(2, 4), drawn(2, 4, 3), ((0, 1), (1, 2), (3, 0))
    weighed = Graph(4, edges, 0.7, (2.0, 1.0, 0.0))
    assert apart(weighed(v, p, 1.3), Graph(4, ((0, 1), (0, 1), (1, 2)), 0.7)(v, p, 1.3)) < 1e-12
    assert apart(Graph(4, edges, 0.7, (3.0,) * 3)(v, p, 1.3), Graph(4, edges, 2.1)(v, p, 1.3)) < 1e-12
    part, some = weighed.restrict([1, 0, 2]), Graph(3, ((1, 0), (0, 2)), 0.7, (2.0, 1.0))
    assert part == some
    assert apart(part(v[:3], p[:3], 1.3), Graph(3, ((0, 1), (0, 1), (0, 2)), 0.7)(v[:3], p[:3], 1.3)) < 1e-12


def test_edges_are_told_with_their_weights() -> None:
    told = Coupling(kind="graph", rho=1.0, edges="a~b:2,b~c:d,c:d~a:0.5", strength=0.1)
    assert told.operator(["a", "b", "c:d"]) == Graph(3, ((0, 1), (1, 2), (2, 0)), 0.1, (2.0, 1.0, 0.5))
    plain = Coupling(kind="graph", rho=1.0, edges="a~b,b~c").operator(["a", "b", "c"])
    assert isinstance(plain, Graph) and plain.weights is None


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Graph(3, ((0, 3),), 1.0), r"^edges: must be pairs of two of the clients 0 to 2, found \(0, 3\)"),
        (lambda: Graph(3, ((-1, 1),), 1.0), r"^edges: .*found \(-1, 1\)"),
        (lambda: Graph(3, ((1, 1),), 1.0), r"^edges: .*found \(1, 1\)"),
        (lambda: Graph(3, ((0, 1),), -1.0), r"^strength: must be finite and >= 0, found -1.0"),
        (lambda: Graph(3, ((0, 1),), 1.0, (1.0, 2.0)), r"^weights: must be one for each of the 1 edges, found 2"),
        (lambda: Graph(3, ((0, 1),), 1.0, (NAN,)), r"^weights: must be finite and >= 0, found nan"),
        (lambda: Graph(3, (), 1.0)(drawn(0, 2, 2), weights(0, 2), 1.0), r"^clients: must be of the 2 .*found 3"),
        (lambda: MeanRegularised(NAN), r"^strength: must be finite and >= 0, found nan"),
        (lambda: MeanRegularised(INF), r"^strength: .*found inf"),
        (lambda: Mixture(((1.0,), (1.0, 2.0))), r"^mixing: must be rows of one length > 0, found lengths \[1, 2\]"),
        (lambda: Mixture(()), r"^mixing: must be rows of one length > 0"),
        (lambda: Mixture(((1.0,), (INF,))), r"^mixing: must be finite, found \(inf,\)"),
        (lambda: Mixture(((1.0,),))(drawn(0, 2, 2), weights(0, 2), 1.0), r"^mixing: must be of the 2 .*found 1"),
        (lambda: Clusters((0,))(drawn(0, 2, 2), weights(0, 2), 1.0), r"^groups: must be of the 2 .*found 1"),
        (lambda: SumTo(NAN), r"^total: must be finite, found nan"),
        (lambda: Ball(0.0), r"^radius: must be finite and > 0, found 0.0"),
        (lambda: Ball(NAN), r"^radius: .*found nan"),
        (lambda: Box(-1.0), r"^bound: must be finite and > 0, found -1.0"),
        (lambda: Box(INF), r"^bound: .*found inf"),
        *((lambda r=r: hub(r, 1.0), rf"^rho: must be finite and >= 0, found {r}") for r in (NAN, INF, -1.0)),
        *((lambda w=w: hub(1.0, w), rf"^weight of a: must be finite and > 0, found {w}") for w in (0.0, -1.0, NAN)),
    ],
)
def test_what_no_operator_can_mean_is_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        make()


def hub(rho: float, weight: float) -> Hub:
    x = {"x": torch.zeros(1)}
    return Hub(Mean(), rho, {"a": Carrier("a", x, {}, weight)}, {"a": x})


# Six server rows; row 5 has no carrier, row 0 one, rows 2 and 3 all.
CARRIED = ([0, 2, 3], [1, 2, 3, 4], [2, 3, 4], [1, 2, 3])


def catalogues(seed: int) -> tuple[list[Carrier], list[Params]]:
    """Return four clients with different catalogues, and random v_i: a table [rows, 2] and a tensor of all but one."""
    g, p = generator(seed, "catalogues"), weights(seed, 4)
    carriers, values = [], []
    for i, rows in enumerate(CARRIED):
        v = {"item_table": torch.from_numpy(g.normal(size=(len(rows), 2)))}
        if i != 3:
            v["body.0.weight"] = torch.from_numpy(g.normal(size=(2, 3)))
        carriers.append(Carrier(str(i), v, {"item_table": torch.tensor(rows)}, float(p[i])))
        values.append(v)
    return carriers, values


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "linear"])
@pytest.mark.parametrize("seed", range(3))
def test_tie_is_the_operator_row_by_row_over_the_carriers(name: str, seed: int) -> None:
    carriers, v = catalogues(seed)
    p = weights(seed, 4)
    z = tie(claim(name, seed, p.tolist(), 2).operator, carriers, v, 1.7)
    for row in range(5):
        members = [i for i, rows in enumerate(CARRIED) if row in rows]
        blocks = [v[i]["item_table"][CARRIED[i].index(row)] for i in members]
        expected = claim(name, seed, p.tolist(), 2, members).prox(blocks, p[members].tolist(), 1.7)
        assert apart([z[i]["item_table"][CARRIED[i].index(row)] for i in members], expected) < 1e-10
    blocks = [v[i]["body.0.weight"].reshape(-1) for i in range(3)]
    expected = claim(name, seed, p.tolist(), 6, [0, 1, 2]).prox(blocks, p[:3].tolist(), 1.7)
    assert apart([z[i]["body.0.weight"].reshape(-1) for i in range(3)], expected) < 1e-10
    assert [one.keys() for one in z] == [one.keys() for one in v]


@pytest.mark.parametrize(
    "operator", [Mean(), Clusters((0, 0, 1, 1)), MeanRegularised(3.0)], ids=lambda o: type(o).__name__
)
def test_a_ball_bounds_all_that_a_client_carries_together(operator: Operator) -> None:
    """With different catalogues: |z_i| <= r over every parameter, and firm nonexpansiveness stands for optimality."""
    (carriers, v), (_, w) = catalogues(0), catalogues(1)
    p = weights(0, 4)
    bound, free = Within(operator, Ball(0.9)), tie(operator, carriers, v, 1.0)

    def flat(params: Sequence[Params]) -> list[Tensor]:
        return [torch.cat([one[name].reshape(-1) for name in sorted(one)]) for one in params]

    z, y = flat(tie(bound, carriers, v, 1.0)), flat(tie(bound, carriers, w, 1.0))
    assert max(float(one.norm()) for one in flat(free)) > 0.9 + 1e-3
    assert max(float(one.norm()) for one in z) <= 0.9 + 1e-9
    moved = minus(z, y)
    assert inner(p, moved, moved) <= inner(p, moved, minus(flat(v), flat(w))) + 1e-9
    again = tie(operator, carriers, tie(bound, carriers, v, 1.0), 1.0)
    if not isinstance(operator, MeanRegularised):
        assert apart(flat(again), z) < 1e-9, "consensus row by row holds inside the ball"


@pytest.mark.parametrize("radius", [1.6, 0.9, 0.1])
@pytest.mark.parametrize("seed", range(2))
def test_the_consensus_ball_with_different_catalogues_is_the_solvers(seed: int, radius: float) -> None:
    """With one client at its bound, with some, and with all."""
    carriers, v = catalogues(seed)
    p, table, body = weights(seed, 4).numpy(), cp.Variable((6, 2)), cp.Variable((2, 3))
    objective, limits = 0, [table[5] == 0]
    for i, rows in enumerate(CARRIED):
        objective += p[i] * cp.sum_squares(table[rows] - v[i]["item_table"].numpy())
        mine = [cp.vec(table[rows], order="C")]
        if i != 3:
            objective += p[i] * cp.sum_squares(body - v[i]["body.0.weight"].numpy())
            mine.append(cp.vec(body, order="C"))
        limits.append(cp.norm(cp.hstack(mine)) <= radius)
    minimise(objective, limits)
    z = tie(Within(Mean(), Ball(radius)), carriers, v, 1.0)
    reference: Array = np.asarray(table.value)
    assert apart([one["item_table"] for one in z], [reference[rows] for rows in CARRIED]) < 1e-5
    assert apart([one["body.0.weight"] for one in z[:3]], [np.asarray(body.value)] * 3) < 1e-5


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 12), st.floats(-6, 0.1))
def test_multipliers_of_balls_meet_the_conditions_of_the_best(seed: int, n: int, patterns: int, digits: float) -> None:
    """min sum_S a_S e_S (1 - c_S)^2 with sum_{S of i} e_S c_S^2 <= r^2: no feasible c lies along its descent."""
    g = generator(seed, "balls")
    member = g.random((patterns, n)) < 0.6
    member[np.arange(patterns), g.integers(0, n, patterns)] = True  # nobody's rows do not exist
    carried, p, e = torch.from_numpy(member.astype(float)), g.uniform(0.2, 3, n), g.exponential(size=patterns)
    mass, square = torch.from_numpy(member @ p), torch.from_numpy(e)
    longest = float((square @ carried).max()) ** 0.5
    radius = 10.0**digits * longest
    c = shrink(square, mass, carried, radius)
    within = ((square * c.square()) @ carried).sqrt() / radius
    assert float(within.max()) <= 1 + 1e-12 and float(c.min()) >= 0 and float(c.max()) <= 1
    if digits > 1e-9:
        assert bool((c == 1).all())
    uphill = mass * square * (1 - c)
    for _ in range(50):
        other = torch.from_numpy(g.uniform(0, 1, patterns))
        other = other * min(1.0, radius / float(((square * other.square()) @ carried).max()) ** 0.5)
        assert float(uphill @ (other - c)) <= 1e-9 * float(uphill @ c) + 1e-15


def test_balls_with_known_answers() -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert shrink(9 * one, 2 * one, torch.ones(1, 3).double(), 1.0).tolist() == pytest.approx([1 / 3], rel=1e-12)
    # Client 0 carries all and is alone at its bound: each row yields by its mass, 1/(1 + t) and 2/(2 + t) at t = 2.
    square, mass = torch.tensor([9.0, 4.0]).double(), torch.tensor([1.0, 2.0]).double()
    found = shrink(square, mass, torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double(), 2.0**0.5)
    assert found.tolist() == pytest.approx([1 / 3, 1 / 2], rel=1e-12)


def test_sets_around_consensus_of_unlike_catalogues_take_no_alternation(monkeypatch: pytest.MonkeyPatch) -> None:
    carriers, v = catalogues(0)
    monkeypatch.setattr(halves, "proximal_point", None)
    for inner in (Mean(), Clusters((0, 0, 1, 1))):
        free = tie(inner, carriers, v, 1.0)
        boxed = tie(Within(inner, Box(0.3)), carriers, v, 1.0)
        assert all(
            torch.equal(z[name], y[name].clamp(-0.3, 0.3)) for z, y in zip(boxed, free, strict=True) for name in z
        )
        tie(Within(inner, Ball(0.3)), carriers, v, 1.0)
