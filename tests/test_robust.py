"""Robust aggregation: known answers, what a permutation, a shift or a scale does, and how far f liars can move it."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrec.errors import UserError
from fedrec.federation.coordination import Coupling, Descent
from fedrec.federation.robust import Robust, aggregate, clip, krum_scores, trimmed_mean
from fedrec.params import norm
from fedrec.rng import generator
from simulations.check import check
from simulations.methods import METHODS
from tests.helpers import Change, alter, coordinated, experiment

RULES = [
    Robust(kind="median"),
    Robust(kind="trimmed-mean", beta=0.2),
    Robust(kind="krum", f=1),
    Robust(kind="multi-krum", f=1),
    Robust(kind="multi-krum", f=1, m=2),
    Robust(kind="clip"),
]
ROBUST = RULES[:5]  # those whose result lies among the honest
KINDS = [f"{rule.kind}-{rule.m}" for rule in RULES]


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(seed: int, k: int = 7, d: int = 5) -> Tensor:
    return torch.from_numpy(generator(seed, "robust").normal(size=(k, d)))


def even(k: int) -> Tensor:
    return torch.ones(k, dtype=torch.float64)


def test_median_and_trimmed_mean_by_hand() -> None:
    g = rows([1, 9], [2, 8], [3, 100], [10, -5])
    assert trimmed_mean(g, 0.5).tolist() == [2.5, 8.5]  # the mean of the middle two
    assert trimmed_mean(g[:3], 0.5).tolist() == [2, 9]
    assert trimmed_mean(g, 0.2).tolist() == [2.5, 8.5]  # ceil(.2 * 4) = 1 at either end
    assert trimmed_mean(g, 0.0).tolist() == [4, 28]
    assert trimmed_mean(rows([0], [1], [2], [3], [4], [5], [6], [7], [8], [90]), 0.2).tolist() == [4.5]  # 2 to 7
    assert trimmed_mean(g[:2], 0.45).tolist() == [1.5, 8.5]  # of two none can be cut off
    assert trimmed_mean(g[:1], 0.5).tolist() == [1, 9]


def test_only_those_that_carry_an_entry_count() -> None:
    g = rows([1, 7, 5], [2, 8, 5], [30, 9, 5])
    carries = torch.tensor([[True, True, False], [True, False, False], [True, True, False]])
    assert trimmed_mean(g, 0.5, carries).tolist() == [2, 8, 0]
    assert aggregate(g, even(3), Robust(kind="median"), carries).tolist() == [2, 8, 0]
    # Norms |(1, 7)|, 2 and |(30, 9)|: the median is sqrt(50).
    assert clip(g, None, carries)[1, 0] == 2
    assert float(clip(g, None, carries)[2, :2].norm()) == pytest.approx(math.sqrt(50))


def test_krum_picks_by_the_sum_of_the_distances_to_its_nearest() -> None:
    """On the line 0, 1, 2, 4, 50 with f = 1 the two nearest count: 1 + 4, 1 + 1, 1 + 4, 4 + 9, 46^2 + 48^2."""
    g = rows([0], [1], [2], [4], [50])
    assert krum_scores(g, 1).tolist() == [5, 2, 5, 13, 46**2 + 48**2]
    assert aggregate(g, even(5), Robust(kind="krum", f=1)).tolist() == [1]
    assert aggregate(g, even(5), Robust(kind="multi-krum", f=1)).tolist() == [7 / 4]
    assert aggregate(g, even(5), Robust(kind="multi-krum", f=1, m=3)).tolist() == [1]
    assert aggregate(g[:1], even(1), Robust(kind="krum", f=1)).tolist() == [0]


def test_krum_compares_what_both_carry_and_moves_what_the_chosen_carry() -> None:
    """The mean squares over common entries: the last client has none in common with anybody."""
    g = rows([0, 0, 7, 0], [1, 0, 0, 0], [2, 0, 0, 0], [9, 0, 0, 0], [0, 0, 0, 5])
    carries = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]]).bool()
    found = krum_scores(g, 1, carries)
    assert found[:3].tolist() == [0.5 + 2, 0.5 + 0.5, 0.5 + 2] and math.isinf(float(found[4]))
    assert aggregate(g, even(5), Robust(kind="krum", f=1), carries).tolist() == [1, 0, 0, 0]
    # Clients 1, 0, 2 are chosen: the third entry is client 0's alone, the last nobody's.
    assert aggregate(g, even(5), Robust(kind="multi-krum", f=1, m=3), carries).tolist() == pytest.approx([1, 0, 7, 0])


def test_clipping_by_hand() -> None:
    g = rows([3, 4], [0, 1], [0, 10])
    assert clip(g, 2.5).tolist() == [[1.5, 2], [0, 1], [0, 2.5]]
    assert clip(g).tolist() == [[3, 4], [0, 1], [0, 5]]
    found = aggregate(g, torch.tensor([1.0, 1.0, 2.0]).double(), Robust(kind="clip", norm=2.5))
    assert found.tolist() == [1.5 / 4, (2 + 1 + 5) / 4]
    assert aggregate(torch.zeros(3, 2), even(3), Robust(kind="clip")).tolist() == [0, 0]


@pytest.mark.parametrize("rule", RULES, ids=KINDS)
@settings(max_examples=25)
@given(st.permutations(range(7)), st.integers(0, 50))
def test_the_order_of_the_clients_does_not_matter(rule: Robust, order: list[int], seed: int) -> None:
    g, p = draw(seed), torch.arange(1, 8).double()
    assert torch.allclose(aggregate(g, p, rule), aggregate(g[order], p[order], rule), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=KINDS)
@settings(max_examples=25)
@given(st.floats(1e-3, 1e3), st.integers(0, 50))
def test_a_scale_scales_the_result(rule: Robust, scale: float, seed: int) -> None:
    g = draw(seed)
    assert torch.allclose(aggregate(scale * g, even(7), rule), scale * aggregate(g, even(7), rule), atol=1e-9 * scale)


@pytest.mark.parametrize("rule", ROBUST, ids=KINDS[:5])
@settings(max_examples=25)
@given(st.floats(-100, 100), st.integers(0, 50))
def test_a_shift_shifts_the_result(rule: Robust, shift: float, seed: int) -> None:
    """Clipping depends on where 0 is, and is left out."""
    g = draw(seed)
    assert torch.allclose(aggregate(g + shift, even(7), rule), aggregate(g, even(7), rule) + shift, atol=1e-9)


@pytest.mark.parametrize("rule", ROBUST, ids=KINDS[:5])
@settings(max_examples=25)
@given(st.lists(st.floats(-1e38, 1e38), min_size=5, max_size=5), st.integers(0, 50), st.integers(0, 6))
def test_one_liar_of_seven_cannot_leave_the_range_of_the_honest(
    rule: Robust, lie: list[float], seed: int, place: int
) -> None:
    """Krum takes the vector of one client: a lie that it takes lies as near to the honest as they to each other."""
    g = draw(seed)
    honest = torch.cat([g[:place], g[place + 1 :]])
    g[place] = torch.tensor(lie, dtype=torch.float64)
    found = aggregate(g, even(7), rule)
    low, high = honest.min(0).values, honest.max(0).values
    slack = 1e-9 if rule.kind in ("median", "trimmed-mean") else float(torch.cdist(honest, honest).max())
    assert bool((found >= low - slack).all() and (found <= high + slack).all())


@pytest.mark.parametrize("liars", [1, 2, 3])
def test_the_median_bears_any_minority(liars: int) -> None:
    g = draw(liars)
    g[:liars] = 1e30
    found, honest = aggregate(g, even(7), Robust(kind="median")), g[liars:]
    assert bool((found <= honest.max(0).values).all() and (found >= honest.min(0).values).all())
    assert float(aggregate(g, even(7), Robust(kind="trimmed-mean", beta=0.1)).abs().max()) > 1e20 or liars == 1


def test_a_clipped_liar_moves_the_result_by_its_share_of_the_norm() -> None:
    g = draw(0)
    before = aggregate(g, even(7), Robust(kind="clip", norm=1.0))
    for lie in (1e3, -1e30):
        g[0] = lie
        assert float((aggregate(g, even(7), Robust(kind="clip", norm=1.0)) - before).norm()) <= 2 / 7 + 1e-9


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"coupling": Coupling(rho=1.0, duals=True)}, r"^coupling.duals: .* found robust.kind median"),
        ({"coupling": Coupling(kind="graph", rho=1.0)}, r"^coupling.kind: graph .* found robust.kind median"),
        (
            {"descent": Descent(aggregator="mgda")},
            r"^descent.aggregator: mgda needs the inner products .* found robust.kind median",
        ),
        ({"drift": {"normalise": True}}, r"^drift.normalise: .*steps.* found robust.kind median"),
        ({"clients": 4, "robust": {"kind": "krum"}}, r"^robust.f: must be at most .* found 1 for 4"),
        ({"participation": 0.5, "robust": {"kind": "krum"}}, r"^robust.f: .* found 1 for 2"),
        ({"robust": {"kind": "multi-krum", "m": 5}}, r"^robust.m: must be at most 4, the clients but f, found 5"),
    ],
)
def test_a_robust_rule_that_makes_no_sense_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check(experiment("median", **{"clients": 5, **fields}))


def test_no_rule_is_no_rule() -> None:
    assert not Robust().active
    with pytest.raises(UserError, match="must be a rule"):
        aggregate(draw(0), even(7), Robust())


def garbage(value: Tensor) -> Tensor:
    """Return 100 times the size of what is shared, of random sign."""
    signs = torch.from_numpy(generator(0, "garbage").choice([-1.0, 1.0], size=tuple(value.shape)))
    return (100 * (1 + value.double().abs().max()) * signs).float()


def attacked(method: str, lies: bool, **fields: Any) -> tuple[float, float]:
    """Return the mean over two seeds of the honest four's validation after the last round, and of |z|."""
    both = [attacked_once(method, lies, seed=seed, **fields) for seed in (0, 1)]
    return sum(score for score, _ in both) / 2, sum(size for _, size in both) / 2


def attacked_once(method: str, lies: bool, **fields: Any) -> tuple[float, float]:
    """Return what `attacked` does, of one seed."""
    e = experiment(method, clients=5, rounds=6, dim=16, partition="users", weights="uniform", **fields)
    names = [f"silo-{i}" for i in range(1, 6)]
    faults: dict[tuple[str, str, int], Change] = {(names[4], "train", n): alter(garbage) for n in range(1, 7)}
    made, grid = coordinated(e, faults if lies else {})
    assert len(grid.injected) == (6 if lies else 0) and not made.record.faults
    scores = [
        float(row["value"])
        for row in made.record.clients
        if row["split"] == "validation"
        and row["round"] == 6
        and row["client"] in names[:4]
        and row["metric"] == "ndcg@10"
    ]
    return sum(scores) / 4, norm(made.z)


def test_one_liar_of_five_destroys_the_mean_and_no_robust_rule() -> None:
    honest, size = attacked("fedper", False)
    mean, far = attacked("fedper", True)
    assert far > 30 * size and mean < 0.6 * honest
    for method in ("median", "trimmed-mean", "krum", "multi-krum", "clipped"):
        without, _ = attacked(method, False)
        score, moved = attacked(method, True)
        assert moved < 3 * size and score > 0.8 * min(without, honest), (method, score, without, honest, mean)


def test_a_robust_rule_goes_with_a_server_optimiser() -> None:
    """The first step of momentum is that of sgd; the second is longer by .9 of the first."""
    plain, momentum = (coordinated(experiment("median", clients=5, rounds=1, descent=d), {})[0] for d in ({}, MOMENTUM))
    assert all(torch.equal(plain.z[name], momentum.z[name]) for name in plain.z)
    assert set(METHODS) >= {"median", "trimmed-mean", "krum", "multi-krum", "clipped"}


MOMENTUM = {"optimiser": "momentum"}
