"""Ties by name: what a text says, what is refused, and what `solve` makes of them, by other solvers' answers."""

import math
import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedrec.errors import UserError
from fedrec.federation.coordination import Coupling
from fedrec.federation.coordination.binding import one_sided
from fedrec.federation.coordination.clauses import Clause, Variable, read_clause, read_clauses
from fedrec.federation.coordination.joint import Joint
from fedrec.federation.coordination.minimise import newton
from fedrec.federation.coordination.operators import Mean
from fedrec.federation.coordination.solve import Solution, solve
from fedrec.keyed import Carrier
from fedrec.params import Params
from simulations.studies.constraint_cases import CASES, CONTRADICTIONS
from simulations.studies.constraint_problems import NAMES, WIDTH, draw
from simulations.studies.constraint_solvers import contradicted, far, solved
from simulations.studies.constraints import OPTIONS, over_flower, plan, worst
from simulations.studies.constraints import experiment as regressions

OWN = "tests.test_ties:halved"


def halved(z: dict[str, Params]) -> Tensor:
    """Return what is 0 where shop's vector is half of films'."""
    return z["films"]["x"] - 2 * z["shop"]["x"]


def other(z: dict[str, Params], more: int) -> Tensor:
    """Return what no tie asks for."""
    return z["films"]["x"] * more


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("body: consensus", Clause("body: consensus", ("body",), "consensus")),
        ("a + b: ball(2)", Clause("a + b: ball(2)", ("a", "b"), "ball", ("2",))),
        (
            "t: films - 2*shop.bias = 0.1",
            Clause(
                "t: films - 2*shop.bias = 0.1",
                ("t",),
                variables=(Variable("films", "", 1.0), Variable("shop", "bias", -2.0)),
                constant=-0.1,
            ),
        ),
        (
            "losses: news >= shop + 0.02",
            Clause(
                "losses: news >= shop + 0.02",
                ("losses",),
                variables=(Variable("news", "", -1.0), Variable("shop", "", 1.0)),
                constant=0.02,
                inequality=True,
            ),
        ),
        (f"x: {OWN} <= 0", Clause(f"x: {OWN} <= 0", ("x",), own=OWN, inequality=True)),
        ('x: m:K{"a": 1}', Clause('x: m:K{"a": 1}', ("x",), own='m:K{"a": 1}')),
    ],
)
def test_what_a_text_says(text: str, expected: Clause) -> None:
    assert read_clause(text) == expected


def test_ties_are_joined_by_semicolons_but_not_those_in_fields() -> None:
    found = read_clauses('x: m:K{"a": "1;2"} <= 0; losses: parity(0.05)')
    assert [clause.text for clause in found] == ['x: m:K{"a": "1;2"} <= 0', "losses: parity(0.05)"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "must be BLOCK: FORM"),
        ("x: konsensus", "did you mean 'consensus'"),
        ("losses: ball(2)", "must be one of at-most, minimax, parity"),
        ("x: parity(1)", "must be one of ball"),
        ("x: ball(-1)", "must be above 0, found -1"),
        ("x: ball(nan)", "must have 1 finite number"),
        ("x: ball", "must have 1 finite number"),
        ("x: ball(1, 2)", "must have 1 argument, found 2"),
        ("x: clusters", "must name the clients of each cluster"),
        ("x: a = b = c", "must have one of =, <= and >="),
        ("x: a b <= 1", "terms must be joined"),
        ("x: 1 <= 2", "must have a client's name"),
        ("x: a + = 1", "must have a term after every sign"),
        ("x: a*2 = 1", "must be NUMBER, CLIENT or NUMBER"),
        ("losses+x: parity(1)", "must stand alone"),
        ("x: consensus; x: consensus", "found twice"),
    ],
)
def test_what_is_no_tie_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(UserError, match=r"^tie") as error:
        read_clauses(text)
    assert words in str(error.value)
    with pytest.raises(ValueError, match="tie"):
        Coupling(ties=text)


def toy(ties: Any, **options: Any) -> Solution:
    """Solve two squares, |t - (1, 2)|^2 / 2 and |t - (3, 0)|^2 / 2, under ties."""
    centres = (torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 0.0]).double())
    losses = [lambda t, c=c: (t - c).square().sum() / 2 for c in centres]
    usual = {"rho": 1.0, "rounds": 500, "local_solver": newton(), "clients": ("films", "shop"), "tolerance": 1e-10}
    return solve(losses, [torch.zeros(2), torch.zeros(2)], ties, **{**usual, **options})


def test_an_equation_has_its_answer_and_its_multiplier() -> None:
    """t = 2 s: min |2 s - (1, 2)|^2 + |s - (3, 0)|^2 at s = (5, 4) / 5, and y = (1, 2) - t."""
    found = toy("x: films = 2*shop")
    torch.testing.assert_close(found.theta[1], torch.tensor([1.0, 0.8]).double(), atol=1e-7, rtol=0)
    torch.testing.assert_close(found.theta[0], 2 * found.theta[1], atol=1e-7, rtol=0)
    assert found.converged and [v.verdict for v in found.verdicts] == ["met"]
    assert np.allclose(found.verdicts[0].weights, [-1.0, 0.4], atol=1e-7)
    mine = toy(f"x: {OWN}")
    torch.testing.assert_close(mine.theta[0], found.theta[0], atol=1e-7, rtol=0)


def test_an_inequality_that_is_met_already_changes_nothing() -> None:
    found = toy(["x: films <= shop + 10"])
    torch.testing.assert_close(found.theta[0], torch.tensor([1.0, 2.0]).double(), atol=1e-8, rtol=0)
    assert found.verdicts[0].multiplier == 0.0


def test_a_solution_goes_on_to_the_bit() -> None:
    ties = ["x: films = 2*shop", "losses: films <= 1"]
    options = {"participation": 0.5, "seed": 3, "tolerance": 0.0}
    whole = toy(ties, rounds=30, **options)
    part = toy(ties, rounds=11, **options)
    again = toy(ties, rounds=19, state=part, **options)
    assert again.history == whole.history
    for a, b in zip(again.theta + again.duals, whole.theta + whole.duals, strict=True):
        assert torch.equal(a, b)


def test_the_duals_of_a_solution_are_those_of_its_rho() -> None:
    """rho p_i u_i = -p_i grad f_i, whatever rho has become."""
    found = toy("x: consensus", rho=1e-3, balance=True, rounds=300, tolerance=0.0)
    assert found.rho != 1e-3
    torch.testing.assert_close(found.rho * found.duals[0], torch.tensor([-1.0, 1.0]).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"participation": 0.0}, "participation: must be above 0 and at most 1, found 0"),
        ({"participation": 2.0}, "participation: must be above 0 and at most 1, found 2"),
        ({"rho": math.inf}, "rho: must be a finite number from 0, found inf"),
        ({"rho": math.nan}, "rho: must be a finite number from 0, found nan"),
        ({"budgets": [math.nan, None]}, "budgets: must be numbers, found nan"),
        ({"budget_step": 0.0}, "budget_step: must be above 0, found 0"),
        ({"tolerance": 2.0}, "tolerance: must be from 0 and below 1, found 2"),
        ({"weights": [1.0, math.inf]}, "weights: must be above 0 and finite, found inf"),
        ({"rounds": -1}, "rounds: must be at least 0, found -1"),
        ({"duals": False}, "duals: must be kept for ties by name, found none"),
        ({"clients": ("films", "films")}, "each with a name of its own"),
    ],
)
def test_arguments_that_are_none_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        toy("x: consensus", **options)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("ties", "words"),
    [
        ("y: consensus", "must name what is shared, found 'y' of x"),
        ("x: films = music", "did you mean|must be one of films, shop"),
        (["x: consensus", "x: sum(1)"], "may be tied by one closed form"),
        (["losses: minimax", "losses: at-most(2)"], "minimax must be the only tie of losses"),
        ("harm: at-most(0)", "alone: must be given"),
        ("x: tests.test_ties:other", "must be a component, or a function of z alone"),
        ("x: os:getcwd", "must be a component"),
        ("x: tests.test_ties:nothing", "tests.test_ties must have"),
    ],
)
def test_ties_that_fit_nobody_are_refused(ties: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        toy(ties)
    assert any(word in str(error.value) for word in words.split("|")), error.value


def test_ties_of_unlike_catalogues_are_of_the_rows_in_common() -> None:
    like = {"item_table": torch.zeros(3, 2), "body": torch.zeros(2)}
    rows = {"films": [0, 1, 2], "shop": [1, 2, 3]}
    carriers = {name: Carrier(name, like, {"item_table": torch.tensor(ids)}, 1.0) for name, ids in rows.items()}
    g = torch.Generator().manual_seed(0)
    values = {name: {n: torch.randn(v.shape, generator=g) for n, v in like.items()} for name in rows}
    hub = Joint(Mean(), 1.0, carriers, values, clauses=read_clauses("item_table: films = shop"))
    films, shop = hub.z["films"], hub.z["shop"]
    torch.testing.assert_close(films["item_table"][1:], shop["item_table"][:2])
    torch.testing.assert_close(films["item_table"][0], values["films"]["item_table"][0].double())
    torch.testing.assert_close(shop["item_table"][2], values["shop"]["item_table"][2].double())
    torch.testing.assert_close(films["body"], shop["body"])  # which no tie names


def test_maps_of_a_file_tie_what_they_say(tmp_path: Path) -> None:
    """G t + H s = c of the two squares: the least distance to both centres under two equations."""
    g = torch.Generator().manual_seed(3)
    maps = {f"{name}/G": torch.randn(2, 2, generator=g).double() for name in ("films", "shop")}
    maps["c"] = torch.randn(2, generator=g).double()
    save_file(maps, tmp_path / "maps.safetensors")
    found = toy(f"x: linear({tmp_path / 'maps.safetensors'})")
    both = torch.cat([maps["films/G"], maps["shop/G"]], 1)
    centre = torch.tensor([1.0, 2.0, 3.0, 0.0]).double()
    y = torch.linalg.solve(both @ both.T, both @ centre - maps["c"])
    torch.testing.assert_close(torch.cat(found.theta), centre - both.T @ y, atol=1e-7, rtol=0)
    assert np.allclose(found.verdicts[0].weights, y.numpy(), atol=1e-7)
    save_file({"films/G": torch.ones(2, 3)}, tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=r"films/G must be \[m, 2\], found \[2, 3\]"):
        toy(f"x: linear({tmp_path / 'wide.safetensors'})")
    with pytest.raises(UserError, match="must be a safetensors file"):
        toy(f"x: linear({tmp_path / 'none.safetensors'})")


def test_a_loss_that_is_only_to_be_small_has_no_gap_where_it_is_less() -> None:
    clauses = read_clauses("losses: films <= 1; losses: shop <= news + 1")
    assert [one_sided(clauses, name, "losses") for name in ("films", "shop", "news")] == [True, True, False]
    assert not one_sided(read_clauses("losses: parity(1)"), "films", "losses")


SAMPLE = ["graph", "equation", "trust region", "budgets", "equal norms"]
SLOW = ["ball", "several", "minimax", "parity", "between", "two blocks"]  # seconds each


@pytest.mark.soak
@pytest.mark.parametrize("name", [*SAMPLE, *SLOW])
def test_a_random_problem_has_the_answer_of_another_solver(name: str, tries: Callable[[int, int], int]) -> None:
    """A sample of `studies constraints`, which judges all forms on twenty seeds."""
    tries(int(name in SAMPLE), 1)
    case = next(case for case in CASES if case.name == name)
    p = draw(101)
    found = solved(case, p, 1.0, 2000, 101)
    theta = np.stack([t.numpy() for t in found.theta])
    primal, multiplier, _ = far(case, p, theta, {v.tie: np.array(v.weights) for v in found.verdicts if v.weights})
    assert primal < 1e-5 and multiplier < 1e-5
    assert {v.verdict for v in found.verdicts} == {"met"}


@pytest.mark.parametrize("case", CONTRADICTIONS[:3], ids=lambda case: case.name)
def test_ties_that_contradict_each_other_are_called_infeasible(case: Any) -> None:
    assert "infeasible" in {v.verdict for v in contradicted(case, 101, 1.0, 60).verdicts}


def test_every_problem_of_the_study_reaches_a_worker_process() -> None:
    options = {name: default for name, (default, _) in OPTIONS.items()} | {"seeds": 1, "runs": 1, "flags": []}
    runs = plan(Namespace(**options))
    assert [run.labels for run in pickle.loads(pickle.dumps(runs))] == [run.labels for run in runs]
    assert {run.labels["form"] for run in runs} == {case.name for case in (*CASES, *CONTRADICTIONS)}


NEAR = {"primal": 1e-7, "multiplier": 0.0, "verdicts": "met", "beyond": False}
BEYOND = {**NEAR, "beyond": True, "primal": 1.0, "verdicts": "met violated"}


@pytest.mark.parametrize(
    ("problems", "expected"),
    [
        ([NEAR, NEAR], "right"),
        ([NEAR, {**NEAR, "primal": 1.0}], "wrong"),
        ([NEAR, {**NEAR, "multiplier": math.nan}], "wrong"),
        ([NEAR, {**NEAR, "verdicts": "met violated"}], "wrong"),
        ([NEAR, BEYOND], "right"),
        ([BEYOND], "beyond"),
        ([NEAR, {**BEYOND, "verdicts": "infeasible"}], "wrong"),
    ],
)
def test_the_study_lets_no_wrong_answer_pass(problems: list[dict[str, Any]], expected: str) -> None:
    about = {"form": "parity", "participation": 1.0, "by": "inline", "convex": False, "rounds": 5}
    assert worst(pd.DataFrame([{**about, **problem} for problem in problems]))["verdict"] == expected


def test_the_same_over_flower(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "several")
    e = regressions(101, 1.0, "inline", 150)
    theta, told, p = over_flower(case, e, tmp_path / "run")
    primal, multiplier, _ = far(case, p, theta, {tie: np.array(y) for tie, _, y in told if len(y)})
    assert theta.shape == (len(NAMES), WIDTH)
    assert primal < 1e-4 and multiplier < 1e-4


def test_a_set_alone_leaves_a_block_as_it_is_tied() -> None:
    """Consensus of two squares is at (2, 1); in a ball of radius 1 along the ray."""
    like = {"a": torch.zeros(2), "b": torch.zeros(2)}
    carriers = {name: Carrier(name, like, {}, 1.0) for name in ("films", "shop")}
    values = {
        "films": {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0, 2.0])},
        "shop": {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([3.0, 0.0])},
    }
    hub = Joint(Mean(), 1.0, carriers, values, clauses=read_clauses("a: ball(1); b: films <= shop"))
    expected = torch.tensor([2.0, 1.0]).double() / 5**0.5
    for z in hub.z.values():
        torch.testing.assert_close(z["a"], expected, atol=1e-8, rtol=0)
    torch.testing.assert_close(hub.z["films"]["b"], torch.tensor([1.0, 1.0]).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close(hub.z["shop"]["b"], torch.tensor([3.0, 1.0]).double(), atol=1e-8, rtol=0)


def test_a_tie_between_losses_may_give_one_a_weight_below_0() -> None:
    """min x^2/2 + (x - 1)^2/2 with (x - 1)^2/2 <= x^2/2 - 1: x = 3/2, and (1 - l) x + (1 + l) (x - 1) = 0 for l = 2."""
    losses = [lambda t: t.square().sum() / 2, lambda t: (t - 1).square().sum() / 2]
    ties = ["x: consensus", "losses: b <= a - 1"]
    start = [torch.zeros(1, dtype=torch.float64)] * 2
    found = solve(losses, start, ties, rho=10, rounds=800, local_solver=newton(), clients=("a", "b"), tolerance=1e-9)
    assert found.converged and [v.verdict for v in found.verdicts] == ["met", "met"]
    assert [float(t) for t in found.theta] == pytest.approx([1.5, 1.5], abs=1e-6)
    assert found.verdicts[1].weights == pytest.approx([2.0], abs=1e-6)


def test_newton_goes_down_where_an_objective_is_not_convex() -> None:
    """(x^2 - 1)^2 / 4 has its least at 1 and -1, and a slope whose Hessian at .1 is below 0."""
    found = newton()(lambda t: (t.square() - 1).square().sum() / 4, torch.tensor([0.1, -0.2], dtype=torch.float64))
    assert found.tolist() == pytest.approx([1.0, -1.0], abs=1e-9)
