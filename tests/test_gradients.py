"""Collaborative gradients: closed forms, convex solvers, and what each direction promises, over ranks and scales.

Gradients are compared after division by the shortest one's length, so that 1e-6 means the same at every scale.
"""

import itertools
from collections.abc import Callable
from typing import Any, get_args

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchjd.aggregation import CAGradWeighting, IMTLGWeighting, MGDAWeighting, UPGradWeighting
from torchjd.linalg import QuadprogProjector

from fedrec.errors import UserError
from fedrec.federation.coordination import Descent
from fedrec.federation.coordination.descent import Stepped
from fedrec.keyed import Carrier
from fedrec.rng import generator
from fedrec.training.conflict import Method, ServerOptimiser, combine, weights_of

METHODS: tuple[Method, ...] = get_args(Method)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000), st.sampled_from([0, 1, 3, 6]))
TIGHT = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
Floats = np.ndarray[Any, np.dtype[np.float64]]
cp: Any = cvxpy  # partly typed


def gradients(shape: tuple[int, int, int, int]) -> Tensor:
    """Return [K, 12] gradients of a rank, of lengths spread over 10^-digits to 10^digits."""
    clients, rank, seed, digits = shape
    rng = generator(seed, "gradients")
    g = rng.standard_normal((clients, min(rank, clients))) @ rng.standard_normal((min(rank, clients), 12))
    return torch.from_numpy(g * 10 ** rng.uniform(-digits, digits, (clients, 1)))


def preferences(clients: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(generator(seed, "preference").uniform(0.5, 2.0, clients))


def direction(g: Tensor, method: Method, preference: Tensor | None = None, **options: Any) -> Tensor:
    p = torch.ones(len(g)) if preference is None else preference
    return combine(g, weights_of(g @ g.T, method, p, order=generator(0, "order"), **options))


def solve(objective: Any, constraints: list[Any]) -> float:
    """Return the optimum of a convex programme, to the last digits that the solver can give."""
    problem = cp.Problem(objective, constraints)
    problem.solve(solver=cp.CLARABEL, **TIGHT)
    return float(problem.value)


# Mean and two clients


@given(SHAPES)
def test_the_mean_is_the_preference(shape: tuple[int, int, int, int]) -> None:
    g, p = gradients(shape), preferences(shape[0])
    assert torch.allclose(direction(g, "mean", p), (p / p.sum()) @ g, rtol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_pcgrad_of_two_clients_is_its_closed_form(seed: int) -> None:
    g1, g2 = gradients((2, 2, seed, 1))
    product = g1 @ g2
    both = g1 + g2
    if product < 0:
        both = both - product / (g2 @ g2) * g2 - product / (g1 @ g1) * g1
    assert torch.allclose(direction(torch.stack([g1, g2]), "pcgrad"), both / 2, rtol=1e-12)


def all_orders(gram: Tensor) -> Tensor:
    """Return pcgrad's expected weights over every order: the orders of the clients are independent."""
    k = len(gram)
    total = torch.zeros(k, dtype=torch.float64)
    for i in range(k):
        orders = list(itertools.permutations([j for j in range(k) if j != i]))
        for one in orders:
            w = torch.eye(k, dtype=torch.float64)[i]
            for j in one:
                w[j] -= min(float(gram[j] @ w), 0.0) / float(gram[j, j])
            total += w / len(orders) / k
    return total


def test_pcgrad_draws_its_orders_and_is_symmetric_in_expectation() -> None:
    """The mean of 4000 draws lies within five standard errors of the expectation, which permutes with the clients."""
    g = gradients((4, 2, 3, 0))
    gram, p = g @ g.T, torch.ones(4)
    draws = torch.stack([weights_of(gram, "pcgrad", p, order=generator(s, "order")) for s in range(4000)])
    expected, error = all_orders(gram), draws.std(0) / 4000**0.5
    assert bool((draws.std(0) > 0.01).any()), "the order matters here"
    assert bool(((draws.mean(0) - expected).abs() <= 5 * error + 1e-12).all())
    swap = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(all_orders(gram[swap][:, swap]), expected[swap])
    assert torch.equal(draws[0], weights_of(gram, "pcgrad", p, order=generator(0, "order")))


# MGDA and FedMGDA+


def least_norm(g: Floats, lower: Floats, upper: Floats) -> float:
    """Return min |sum_i w_i g_i| over the simplex and the box, solved for a_i = w_i |g_i| / min |g|."""
    d = np.linalg.norm(g, axis=1)
    row = d.min() / d
    a = cp.Variable(len(g))
    box = [row @ a == 1, cp.multiply(row, a) >= lower, cp.multiply(row, a) <= upper]
    return solve(cp.Minimize(cp.norm((g / d[:, None]).T @ a)), box) * float(d.min())


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate:UserWarning")  # tolerances beyond what it can promise
@pytest.mark.parametrize("digits", [0, 1, 3])
@pytest.mark.parametrize(("clients", "rank"), [(1, 1), (2, 1), (2, 2), (4, 4), (8, 2), (8, 8), (30, 3), (12, 12)])
def test_mgda_is_the_point_of_least_norm(clients: int, rank: int, digits: int) -> None:
    for seed in range(3):
        g = gradients((clients, rank, seed, digits))
        w, shortest = weights_of(g @ g.T, "mgda", torch.ones(clients)), float(g.norm(dim=1).min())
        assert float(w.min()) >= 0 and float(w.sum()) == pytest.approx(1, abs=1e-12)
        best = least_norm(g.numpy(), np.zeros(clients), np.ones(clients))
        assert abs(float((w @ g).norm()) - best) <= 1e-6 * shortest


@given(SHAPES)
@example((5, 2, 0, 6))
def test_mgda_conflicts_with_no_gradient(shape: tuple[int, int, int, int]) -> None:
    """<g_i, d> >= |d|^2 is the optimality condition of the least norm: the proof at scales no solver can reach."""
    g = gradients(shape)
    d, lengths = direction(g, "mgda"), g.norm(dim=1)
    assert bool((g @ d >= d @ d - 1e-9 * lengths * lengths.min()).all())


def test_mgda_is_closer_than_torchjds_default() -> None:
    """Frank-Wolfe with 100 steps stops some per cent above the least norm; ours must not."""
    worst = 0.0
    for seed in range(30):
        g = gradients((8, 8, seed, 1))
        ours, theirs = direction(g, "mgda").norm(), (MGDAWeighting()(g @ g.T) @ g).norm()
        assert ours <= theirs * (1 + 1e-9)
        worst = max(worst, float(theirs / ours))
    assert worst > 1.01


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate:UserWarning")
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize(("clients", "rank"), [(2, 2), (5, 5), (9, 3), (20, 20)])
def test_fedmgda_is_the_point_of_least_norm_in_its_box(clients: int, rank: int, eps: float) -> None:
    for digits in (0, 6):
        g, p = gradients((clients, rank, clients, digits)), preferences(clients)
        lengths, centre = g.norm(dim=1), p / p.sum()
        shares = weights_of(g @ g.T, "fedmgda", p, eps=eps) * lengths
        assert float((shares - centre).abs().max()) <= eps + 1e-12
        assert float(shares.min()) >= 0 and float(shares.sum()) == pytest.approx(1, abs=1e-9)
        unit = g / lengths[:, None]
        lower, upper = np.maximum(centre.numpy() - eps, 0), np.minimum(centre.numpy() + eps, 1)
        assert float((shares @ unit).norm()) == pytest.approx(least_norm(unit.numpy(), lower, upper), abs=1e-6)
        if eps == 0:
            assert torch.allclose(shares, centre, atol=1e-12)
        if eps == 1:
            assert torch.allclose(shares @ unit, direction(unit, "mgda"), atol=1e-9)


# CAGrad, IMTL-G, UPGrad


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate:UserWarning")
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9, 1.5])
@pytest.mark.parametrize(("clients", "rank"), [(1, 1), (2, 2), (3, 3), (6, 2), (8, 8), (20, 6)])
def test_cagrad_raises_the_worst_inner_product_as_far_as_its_ball_allows(clients: int, rank: int, c: float) -> None:
    """max min_i <g_i, d> over |d - g_0| <= c |g_0|: the paper's primal, solved for d / |g_0|."""
    for digits in (0, 1):
        g, p = gradients((clients, rank, 7 * clients, digits)), preferences(clients)
        centre = direction(g, "mean", p)
        d, length = direction(g, "cagrad", p, c=c), float(centre.norm())
        assert float((d - centre).norm()) <= c * length * (1 + 1e-9)
        x, t = cp.Variable(g.shape[1]), cp.Variable()
        scale = float(g.norm(dim=1).min())
        ball = cp.norm(x - centre.numpy() / length) <= c
        best = solve(cp.Maximize(t), [g.numpy() / scale @ x >= t, ball])
        assert float((g @ d).min()) / scale / length == pytest.approx(best, abs=1e-7, rel=1e-7)


def test_cagrad_agrees_with_torchjd_and_is_the_mean_at_zero() -> None:
    g = gradients((6, 6, 1, 0))
    theirs = CAGradWeighting(c=0.5)(g @ g.T) @ g
    assert torch.allclose(direction(g, "cagrad", c=0.5), theirs, atol=1e-4)  # their solver stops at 1e-8 in the norm
    assert torch.equal(direction(g, "cagrad", c=0.0), direction(g, "mean"))


def test_cagrad_where_no_common_descent_is_left() -> None:
    """g = (1, 1), (-1, 1), (0, -1): only 0 is above zero for all, and g_0 = (0, 1/3) is within c >= 1 of it."""
    g = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    assert torch.allclose(direction(g, "cagrad", c=1.5), torch.zeros(2, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("exponents", [(-12, -7), (-7, -4), (-4, 0)], ids=str)
def test_cagrad_stays_in_its_ball_where_updates_are_nearly_opposite(exponents: tuple[int, int]) -> None:
    """The Gramian alone does not tell how short a sum of opposite updates is; |d - g_0| <= c |g_0| in any case."""
    for seed in range(250):
        rng = generator(seed, "opposite", *map(str, exponents))
        clients, width = int(rng.integers(2, 6)), int(rng.integers(1, 6))
        lengths = 10.0 ** rng.uniform(-3, 3, clients) if seed % 2 else np.ones(clients)
        noise = 10.0 ** rng.uniform(*exponents) * rng.normal(size=(clients, width))
        g = torch.from_numpy((lengths * (-1.0) ** np.arange(clients))[:, None] * rng.normal(size=width) + noise)
        p, c = preferences(clients) if seed % 3 else torch.ones(clients), float(rng.choice([0.1, 0.5, 1.5, 5.0]))
        centre, d = direction(g, "mean", p), direction(g, "cagrad", p, c=c)
        assert float((d - centre).norm()) <= c * float(centre.norm()) * (1 + 1e-9) + 1e-15 * float(g.norm()), seed


@given(SHAPES)
def test_imtlg_has_equal_projections_on_independent_gradients(shape: tuple[int, int, int, int]) -> None:
    clients, _, seed, digits = shape
    g = gradients((clients, clients, seed, digits))
    w = weights_of(g @ g.T, "imtlg", torch.ones(clients))
    unit = g / g.norm(dim=1, keepdim=True)
    projections = unit @ (w @ g)
    assume(np.linalg.cond(unit.numpy()) < 1e4 and float(w.abs().sum()) < 1e4)
    assert abs(float(w.sum())) == pytest.approx(1, abs=1e-9)
    # Where gradients nearly cancel, what is projected is small beside what is added up.
    size = float((w.abs() * g.norm(dim=1)).sum())
    assert float(projections.max() - projections.min()) <= 1e-6 * float(projections.max()) + 1e-11 * size
    assert float(projections.min()) > 0


def test_imtlg_agrees_with_torchjd_but_for_a_climbing_sign() -> None:
    signs = []
    for seed in range(20):
        g = gradients((4, 4, seed, 1))
        ours, theirs = weights_of(g @ g.T, "imtlg", torch.ones(4)), IMTLGWeighting()(g @ g.T)
        signs.append(1.0 if float((g @ (theirs @ g)).min()) > 0 else -1.0)
        assert torch.allclose(ours, signs[-1] * theirs, rtol=1e-6)
    assert set(signs) == {1.0, -1.0}


@settings(max_examples=50)
@given(SHAPES)
def test_upgrad_conflicts_with_no_gradient(shape: tuple[int, int, int, int]) -> None:
    g = gradients(shape)
    d, lengths = direction(g, "upgrad", preferences(shape[0])), g.norm(dim=1)
    assert bool((g @ d >= -1e-6 * lengths * lengths.max()).all())


@pytest.mark.parametrize("seed", range(5))
def test_upgrad_agrees_with_torchjd(seed: int) -> None:
    g, p = gradients((6, 6, seed, 0)), preferences(6)
    theirs = UPGradWeighting(p / p.sum(), QuadprogProjector(norm_eps=0.0, reg_eps=1e-12))(g @ g.T)
    assert torch.allclose(direction(g, "upgrad", p), theirs @ g, atol=1e-6)


@given(st.integers(0, 100))
def test_without_conflict_pcgrad_and_upgrad_are_the_mean(seed: int) -> None:
    g = gradients((5, 5, seed, 1)).abs()
    methods: tuple[Method, ...] = ("pcgrad", "upgrad")
    for method in methods:
        assert torch.allclose(direction(g, method, preferences(5)), direction(g, "mean", preferences(5)), rtol=1e-9)


# Symmetry, scale, and awkward input


@settings(max_examples=60)
@given(SHAPES, st.sampled_from([m for m in METHODS if m != "pcgrad"]))
def test_the_direction_does_not_depend_on_the_order_of_the_clients(
    shape: tuple[int, int, int, int], method: Method
) -> None:
    """Dependent gradients may have other weights for the same direction; imtlg and cagrad divide by what may vanish."""
    g, p = gradients(shape), preferences(shape[0])
    shuffled = torch.from_numpy(generator(shape[2], "shuffle").permutation(shape[0]))
    w = weights_of(g @ g.T, method, p)
    d, again = combine(g, w), direction(g[shuffled], method, p[shuffled])
    lengths = (w[:, None] * g).norm(dim=1).sum()
    assert float((d - again).norm()) <= 1e-6 * float(lengths)


@settings(max_examples=60)
@given(SHAPES, st.sampled_from(METHODS), st.floats(-6, 6))
@example((4, 1, 1, 0), "imtlg", 3.0)
def test_a_common_scale(shape: tuple[int, int, int, int], method: Method, power: float) -> None:
    g, s = gradients(shape), 10**power
    w = weights_of(g @ g.T, method, torch.ones(len(g)), order=generator(0, "order"))
    d, scaled = combine(g, w), direction(s * g, method)
    lengths = float((w[:, None] * g).norm(dim=1).sum())
    expected = d if method == "fedmgda" else s * d
    assert float((scaled - expected).norm()) <= 1e-6 * lengths * (1 if method == "fedmgda" else s)


@given(st.integers(0, 1000))
def test_a_scale_for_each_client(seed: int) -> None:
    """fedmgda does not see it, imtlg keeps its direction, upgrad is linear in it."""
    g = gradients((4, 4, seed, 0))
    s, t = (torch.from_numpy(10 ** generator(seed, name).uniform(-3, 3, (4, 1))) for name in "st")
    assert torch.allclose(direction(s * g, "fedmgda"), direction(g, "fedmgda"), atol=1e-6)
    before, after = direction(g, "imtlg"), direction(s * g, "imtlg")
    assert torch.allclose(after / after.norm(), before / before.norm(), atol=1e-6)
    linear = direction(s * g, "upgrad") + direction(t * g, "upgrad")
    assert torch.allclose(direction((s + t) * g, "upgrad"), linear, rtol=1e-9, atol=1e-9 * float(linear.abs().max()))


AWKWARD: dict[str, Callable[[], Tensor]] = {
    "one client": lambda: gradients((1, 1, 0, 0)),
    "all zero": lambda: torch.zeros(3, 12, dtype=torch.float64),
    "one zero": lambda: torch.cat([gradients((3, 3, 0, 0)), torch.zeros(1, 12, dtype=torch.float64)]),
    "duplicates": lambda: gradients((2, 2, 0, 0)).repeat(3, 1),
    "opposites": lambda: torch.cat([gradients((2, 2, 0, 0)), -gradients((2, 2, 0, 0))]),
    "24 orders of magnitude": lambda: gradients((4, 4, 5, 0)) * torch.tensor([[1e-12], [1e-4], [1.0], [1e12]]).double(),
    "200 clients": lambda: gradients((200, 12, 0, 2)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", AWKWARD)
def test_awkward_gradients(case: str, method: Method) -> None:
    g = AWKWARD[case]()
    w = weights_of(g @ g.T, method, torch.ones(len(g)), order=generator(0, "order"))
    assert w.shape == (len(g),) and w.dtype == torch.float64 and bool(torch.isfinite(w).all())
    d, lengths = combine(g, w), g.norm(dim=1)
    if case == "one client":
        assert torch.allclose(d, g[0] * {"fedmgda": 1 / lengths[0], "cagrad": 1.5}.get(method, 1.0), rtol=1e-12)
    elif case == "all zero":
        assert not d.any()
    elif method == "mgda" and case in ("one zero", "opposites"):
        assert float(d.norm()) <= 1e-6
    elif case == "one zero" and method not in ("mgda", "fedmgda"):
        mine = direction(g[:3], method)
        ratio = 1.0 if method == "imtlg" else 0.75  # elsewhere the preference of the fourth client counts
        assert method == "pcgrad" or torch.allclose(d, ratio * mine, atol=1e-9)
    if method == "mgda":
        assert bool((g @ d >= d @ d - 1e-9 * lengths * lengths.min()).all())


@pytest.mark.parametrize(
    ("gram", "preference", "options", "message"),
    [
        (torch.eye(2), torch.ones(2), {"method": "mgdaa"}, r"^gradients: must be one of .*did you mean 'mgda'"),
        (torch.eye(3), torch.ones(2), {}, r"^gram: must be \[K, K\] for the K = 2 > 0 preferences, found \[3, 3\]"),
        (torch.full((2, 2), torch.nan), torch.ones(2), {}, r"^gram: must be finite"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.ones(2), {}, r"^gram: must be positive semi-definite"),
        (torch.eye(2), torch.tensor([1.0, -1.0]), {}, r"^preference: must be finite, >= 0"),
        (torch.eye(2), torch.ones(2), {"eps": 1.5}, r"^eps: must be in \[0, 1\], found 1.5"),
        (torch.eye(2), torch.ones(2), {"c": -1.0}, r"^c: must be in \[0, 1e\+06\], found -1.0"),
        (torch.eye(3), torch.ones(3), {"method": "pcgrad"}, r"^order: pcgrad needs a generator"),
    ],
)
def test_bad_input_is_refused(gram: Tensor, preference: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        weights_of(gram, **{"method": "mgda", "preference": preference, **options})


# Rows that only some carry


def test_a_row_that_few_carry_is_not_diluted() -> None:
    """Weights 1/2, 1/4, 1/4: alone, the third client's row counts in full; two carriers share by their weights."""
    g = torch.tensor([[4.0, 4.0, 9.0], [8.0, 8.0, 9.0], [0.0, 0.0, 6.0]], dtype=torch.float64)
    carries = torch.tensor([[True, True, False], [True, True, False], [True, False, True]])
    d = combine(g, torch.tensor([0.5, 0.25, 0.25]), carries)
    assert torch.allclose(d, torch.tensor([4.0, (0.5 * 4 + 0.25 * 8) / 0.75, 6.0], dtype=torch.float64))


@given(SHAPES)
def test_a_mask_bounds_the_step_and_a_full_one_changes_nothing(shape: tuple[int, int, int, int]) -> None:
    g, rng = gradients(shape), generator(shape[2], "mask")
    w = torch.from_numpy(rng.standard_normal(len(g)))
    assert torch.allclose(combine(g, w, torch.ones_like(g, dtype=torch.bool)), combine(g, w))
    carries = torch.from_numpy(rng.random(g.shape) < 0.5)
    d = combine(g, w, carries)
    assert bool((d.abs() <= w.abs().sum() * torch.where(carries, g, 0.0).abs().amax(0) * (1 + 1e-12)).all())
    assert not d[~carries.any(0)].any()


def test_weights_that_are_zero_on_all_carriers_leave_the_row() -> None:
    carries = torch.tensor([[True], [False]])
    assert not combine(torch.ones(2, 1), torch.tensor([0.0, 1.0]), carries).any()


# The server's step


def test_sgd_with_the_mean_is_fedavg() -> None:
    """z - sum_i p_i (z - x_i) is sum_i p_i x_i."""
    rng = generator(0, "fedavg")
    z, x, p = (torch.from_numpy(rng.random(shape)) for shape in ((7,), (3, 7), (3,)))
    optimiser = ServerOptimiser("sgd")
    after, state = optimiser.step(z, direction(z - x, "mean", p), optimiser.start(z))
    assert torch.allclose(after, (p / p.sum()) @ x, atol=1e-15) and state == ()


STEPS: dict[str, Callable[[], tuple[float, float]]] = {
    # d = 1 then -2, lr 0.1, beta1 0.5, beta2 0.75, tau 0.1, z_0 = 0
    "sgd": lambda: (-0.1, 0.1),
    "momentum": lambda: (-0.1, -0.1 - 0.1 * (0.5 - 2)),
    # m: 0.5 then -0.75
    "adagrad": lambda: (z1 := -0.05 / (1.01**0.5 + 0.1), z1 + 0.075 / (5.01**0.5 + 0.1)),
    # v: 0.75 * 0.01 + 0.25 = 0.2575, then 0.75 * 0.2575 + 0.25 * 4 = 1.193125
    "adam": lambda: (z1 := -0.05 / (0.2575**0.5 + 0.1), z1 + 0.075 / (1.193125**0.5 + 0.1)),
    # v: 0.01 + 0.25 = 0.26, then 0.26 + 0.25 * 4 = 1.26, since d^2 is above v
    "yogi": lambda: (z1 := -0.05 / (0.26**0.5 + 0.1), z1 + 0.075 / (1.26**0.5 + 0.1)),
}


@pytest.mark.parametrize("kind", STEPS)
def test_steps_are_those_computed_by_hand(kind: str) -> None:
    optimiser = ServerOptimiser(kind, lr=0.1, beta1=0.5, beta2=0.75, tau=0.1)  # type: ignore[arg-type]
    z0 = torch.zeros(1)
    start = optimiser.start(z0)
    before = [value.clone() for value in start]
    z1, state = optimiser.step(z0, torch.tensor([1.0]), start)
    z2, _ = optimiser.step(z1, torch.tensor([-2.0]), state)
    assert (float(z1), float(z2)) == pytest.approx(STEPS[kind](), abs=1e-12)
    assert not z0.any() and all(torch.equal(a, b) for a, b in zip(start, before, strict=True))
    assert z1.dtype == torch.float64


@pytest.mark.parametrize("kind", STEPS)
def test_the_fields_of_a_descent_are_those_of_its_optimiser(kind: str) -> None:
    """The same steps by hand, of an experiment's fields."""
    fields: dict[str, Any] = {"optimiser": kind, "lr": 0.1, "beta1": 0.5, "beta2": 0.75, "tau": 0.1}
    z = {"x": torch.zeros(1)}
    tie = Stepped(0.0, {"a": Carrier("a", z, {}, 1.0)}, z, Descent(**fields), 0)
    for d, expected in zip((1.0, -2.0), STEPS[kind](), strict=True):
        tie.update({"a": {"x": tie.part("a")["x"] - d}}, {})
        assert float(tie.z["x"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("field", ["beta1=1", "beta2=-0.1", "tau=0", "tau=inf", "beta1=nan"])
def test_a_descent_refuses_what_no_optimiser_takes(field: str) -> None:
    name, _, value = field.partition("=")
    with pytest.raises(ValueError, match=rf"(?s){name}.*should be (greater|less|a finite)"):
        Descent.model_validate({name: float(value)})


def test_yogi_shrinks_v_by_the_square_where_adam_forgets_by_a_factor() -> None:
    """v = 4, d = 1, beta2 0.75: yogi 4 - 0.25, adam 0.75 * 4 + 0.25."""
    for kind, expected in (("yogi", 3.75), ("adam", 3.25)):
        optimiser = ServerOptimiser(kind, beta2=0.75)  # type: ignore[arg-type]
        state = (torch.zeros(1).double(), torch.full((1,), 4.0).double())
        assert float(optimiser.step(torch.zeros(1), torch.ones(1), state)[1][1]) == expected


@pytest.mark.parametrize(
    "optimiser",
    [
        ServerOptimiser("sgd", lr=0.5),
        ServerOptimiser("momentum", lr=0.1),
        ServerOptimiser("adam", lr=0.01, tau=0.1),
        ServerOptimiser("yogi", lr=0.01, tau=0.1),
        ServerOptimiser("adagrad", lr=1.0),
    ],
    ids=lambda o: o.kind,
)
def test_every_optimiser_converges_on_a_quadratic(optimiser: ServerOptimiser) -> None:
    curvature, target = torch.tensor([0.3, 1.0, 2.0]).double(), torch.tensor([1.0, -2.0, 3.0]).double()
    z = torch.zeros(3)
    state = optimiser.start(z)
    for _ in range(3000):
        z, state = optimiser.step(z, curvature * (z - target), state)
    assert torch.allclose(z, target, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "adamm"}, r"^server optimiser: must be one of .*did you mean 'adam'"),
        ({"lr": 0.0}, r"^lr: must be finite and > 0, found 0.0"),
        ({"beta1": 1.0}, r"^beta1: must be in \[0, 1\), found 1.0"),
        ({"beta2": -0.1}, r"^beta2: must be in \[0, 1\), found -0.1"),
        ({"tau": float("nan")}, r"^tau: must be finite and > 0, found nan"),
    ],
)
def test_a_bad_optimiser_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ServerOptimiser(**fields)
