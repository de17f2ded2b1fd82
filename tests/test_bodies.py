"""Multi-task bodies: the papers' formulas by hand, what is shared of them, and short runs with every method."""

import math
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clients.recommend import experiment_of, recommend
from fedrec.errors import UserError
from fedrec.experiment.holdings import clients_data, dataset
from fedrec.experiment.parts import stacking_refusal
from fedrec.models import Recommender
from fedrec.models.bodies import BODIES, attended, product, quotient
from fedrec.models.layers import mlp, ordered
from fedrec.params import Params, covers
from fedrec.sharing import MODULES, SHARINGS, Sharing
from fedrec.training.weighting import OF_TASKS
from simulations.check import check
from simulations.cli import parse
from simulations.options import parser
from simulations.run import main
from tests.helpers import experiment, fit

KINDS: list[str] = [
    *("shared-bottom", "mmoe", "ple", "cross-stitch", "mtan", "esmm"),
    *("aitm", "star", "task-embedding"),
]
OFFSETS = {"rank": 0.0, "click": -0.7, "buy": -2.0}
TASKS = ",".join(OFFSETS)
USER, ITEM = torch.tensor([0, 3, 3, 1]), torch.tensor([6, 0, 2, 2])


def noisy(model: Recommender, seed: int = 0, users: int = 4, items: int = 7, tasks: Iterable[str] = OFFSETS) -> Params:
    """Return parameters without a zero, so that no term of a score can go missing unseen."""
    params = model.init(seed, np.arange(users), np.arange(items), {task: OFFSETS.get(task, 0.2) for task in tasks})
    g = torch.Generator().manual_seed(seed)
    return {name: value + 0.3 * torch.randn(value.shape, generator=g) for name, value in params.items()}


def pairs(model: Recommender, params: Params, task: str, user: Tensor = USER, item: Tensor = ITEM) -> Tensor:
    return model.head(params, task, model.features(params, user, item))


def column(params: Params, user: int, item: int) -> np.ndarray:
    """Return x = [p_u, q_i] in float64."""
    parts = [params["user_table"][user], params["item_table"][item]]
    return np.concatenate([part.double().numpy() for part in parts])


def relu_layer(params: Params, path: str, x: np.ndarray) -> np.ndarray:
    weight, bias = (params[f"{path}.{part}"].double().numpy() for part in ("weight", "bias"))
    out: np.ndarray = np.maximum(weight @ x + bias, 0)
    return out


def topped(params: Params, task: str, h: np.ndarray) -> float:
    """Return the score of a task's tower of one layer, and its head."""
    h = relu_layer(params, f"towers.{task}.0", h)
    return float(params[f"heads.{task}.weight"].double().numpy() @ h) + float(params[f"heads.{task}.bias"])


def mixed(gate: np.ndarray, x: np.ndarray, outputs: list[np.ndarray]) -> np.ndarray:
    """Return the mean of the experts' outputs by a gate's weights, expert by expert."""
    logits = [float(row @ x) for row in gate]
    assert len(logits) == len(outputs)
    total = sum(math.exp(z) for z in logits)
    found: np.ndarray = np.stack([math.exp(z) / total * out for z, out in zip(logits, outputs, strict=True)]).sum(0)
    return found


def weight(params: Params, path: str) -> np.ndarray:
    found: np.ndarray = params[f"{path}.weight"].double().numpy()
    return found


@pytest.mark.parametrize("task", OFFSETS)
def test_mmoe_is_the_gated_mean_of_its_experts(task: str) -> None:
    model = Recommender("mmoe", 3, (6, 5, 4), experts=3)
    params = noisy(model)
    experts = [f"body.experts.{k}" for k in range(3)]
    for score, u, i in zip(pairs(model, params, task).tolist(), USER.tolist(), ITEM.tolist(), strict=True):
        x = column(params, u, i)
        outputs = [relu_layer(params, f"{path}.1", relu_layer(params, f"{path}.0", x)) for path in experts]
        h = mixed(weight(params, f"gates.{task}"), x, outputs)
        assert score == pytest.approx(topped(params, task, h), abs=1e-5)


@pytest.mark.parametrize("task", OFFSETS)
def test_ple_of_one_level_gates_the_tasks_own_experts_and_the_shared_ones(task: str) -> None:
    model = Recommender("ple", 3, (6, 4), experts=2)
    params = noisy(model)
    experts = [f"experts.{task}.0", f"experts.{task}.1", "body.experts.0", "body.experts.1"]
    for score, u, i in zip(pairs(model, params, task).tolist(), USER.tolist(), ITEM.tolist(), strict=True):
        x = column(params, u, i)
        h = mixed(weight(params, f"gates.{task}"), x, [relu_layer(params, f"{path}.0", x) for path in experts])
        assert score == pytest.approx(topped(params, task, h), abs=1e-5)


@pytest.mark.parametrize("task", OFFSETS)
def test_ple_of_two_levels_hands_on_what_all_experts_say_and_what_each_tasks_do(task: str) -> None:
    """By hand, with the gate of the shared part over click's experts, buy's, rank's, and the shared ones at last."""
    model = Recommender("ple", 3, (6, 5, 4), experts=2)
    params = noisy(model)
    own = {t: [f"extraction.{t}.{k}" for k in range(2)] for t in sorted(OFFSETS)}
    shared = [f"body.experts.{k}" for k in range(2)]
    gate = np.concatenate([weight(params, f"body.gates.0.{t}") for t in own] + [weight(params, "body.gates.0")])
    for score, u, i in zip(pairs(model, params, task).tolist(), USER.tolist(), ITEM.tolist(), strict=True):
        x = column(params, u, i)
        out = {path: relu_layer(params, f"{path}.0", x) for path in [*shared, *(p for t in own for p in own[t])]}
        common = mixed(gate, x, [out[path] for path in [*(p for t in own for p in own[t]), *shared]])
        mine = mixed(weight(params, f"extraction.{task}.gate.0"), x, [out[path] for path in [*own[task], *shared]])
        top = [relu_layer(params, f"experts.{task}.{k}.0", mine) for k in range(2)]
        top += [relu_layer(params, f"{path}.1", common) for path in shared]
        h = mixed(weight(params, f"gates.{task}"), mine, top)
        assert score == pytest.approx(topped(params, task, h), abs=1e-5)


def test_another_tasks_experts_gate_and_tower_do_not_move_a_score() -> None:
    model = Recommender("ple", 3, (6, 4), experts=2)
    params = noisy(model)
    private = ("experts.click", "gates.click", "towers.click", "heads.click")
    other = {name: value + covers(private, name) for name, value in params.items()}
    for task in OFFSETS:
        assert torch.equal(pairs(model, params, task), pairs(model, other, task)) == (task != "click")


def test_a_shared_bottom_is_one_network_under_a_tower_for_each_task() -> None:
    model = Recommender("shared-bottom", 3, (6, 4))
    params = noisy(model)
    for task in OFFSETS:
        found = pairs(model, params, task)
        for score, u, i in zip(found.tolist(), USER.tolist(), ITEM.tolist(), strict=True):
            h = relu_layer(params, "body.0", column(params, u, i))
            assert score == pytest.approx(topped(params, task, h), abs=1e-5)


def test_cross_stitch_with_identity_units_is_separate_networks() -> None:
    model = Recommender("cross-stitch", 3, (6, 4))
    params = noisy(model)
    for name in params:
        if name.startswith("stitch."):
            _, _, to, origin, _ = name.split(".")
            params[name] = torch.tensor([float(to == origin)])
    for task in OFFSETS:
        alone = {
            name.replace(f".{task}.", "."): value
            for name, value in params.items()
            if name.split(".")[1:2] == [task] or name.endswith("_table")
        }
        alone |= {f"heads.{task}.{part}": params[f"heads.{task}.{part}"] for part in ("weight", "bias")}
        separate = pairs(Recommender("mlp", 3, (6, 4)), alone, task)
        assert torch.allclose(pairs(model, params, task), separate, atol=1e-6)


def test_cross_stitch_by_hand() -> None:
    # x = [2, 3]; a: relu(2 + 3) = 5, b: relu(3 - 1) = 2; h_a = 0.5 * 5 + 10 * 2 = 22.5, h_b = -1 * 5 + 4 * 2 = 3.
    params = {
        "user_table": torch.tensor([[2.0]]),
        "item_table": torch.tensor([[3.0]]),
        "body.a.0.weight": torch.tensor([[1.0, 1.0]]),
        "body.a.0.bias": torch.tensor([0.0]),
        "body.b.0.weight": torch.tensor([[0.0, 1.0]]),
        "body.b.0.bias": torch.tensor([-1.0]),
        "stitch.0.a.a.weight": torch.tensor([0.5]),
        "stitch.0.a.b.weight": torch.tensor([10.0]),
        "stitch.0.b.a.weight": torch.tensor([-1.0]),
        "stitch.0.b.b.weight": torch.tensor([4.0]),
    }
    params |= {f"heads.{t}.weight": torch.tensor([2.0]) for t in "ab"}
    params |= {f"heads.{t}.bias": torch.tensor([1.0]) for t in "ab"}
    model, zero = Recommender("cross-stitch", 1, (1,)), torch.tensor([0])
    assert pairs(model, params, "a", zero, zero).item() == pytest.approx(2 * 22.5 + 1)
    assert pairs(model, params, "b", zero, zero).item() == pytest.approx(2 * 3 + 1)


def test_cross_stitch_units_start_as_convex_rows_that_are_mostly_a_tasks_own() -> None:
    params = Recommender("cross-stitch", 3, (6, 4)).init(0, np.arange(2), np.arange(2), OFFSETS)
    for to in OFFSETS:
        row = {origin: float(params[f"stitch.1.{to}.{origin}.weight"]) for origin in OFFSETS}
        assert row.pop(to) == pytest.approx(0.9)
        assert list(row.values()) == pytest.approx([0.05, 0.05])


def test_mtan_by_hand_and_its_masks_between_0_and_1() -> None:
    model = Recommender("mtan", 3, (6, 5, 4))
    params = noisy(model)
    for task in OFFSETS:
        found = pairs(model, params, task)
        for score, u, i in zip(found.tolist(), USER.tolist(), ITEM.tolist(), strict=True):
            x = column(params, u, i)
            p, seen = x, x
            for layer in range(2):
                path = f"attention.{task}.{layer}"
                inner = relu_layer(params, f"{path}.0", seen)
                logits = params[f"{path}.1.weight"].double().numpy() @ inner + params[f"{path}.1.bias"].double().numpy()
                p = relu_layer(params, f"body.{layer}", p)
                read = p / (1 + np.exp(-logits))
                seen = np.concatenate([p, read])
            assert score == pytest.approx(topped(params, task, read), abs=1e-5)
    inputs = torch.cat([params["user_table"][USER], params["item_table"][ITEM]], 1)
    level = mlp({name: params[name] for name in ("body.0.weight", "body.0.bias")}, "body", inputs)
    masks, _ = attended(params, "click", inputs, [level, mlp(params, "body", inputs)])
    assert [mask.shape for mask in masks] == [(4, 6), (4, 5)]
    assert all(bool((mask > 0).all() and (mask < 1).all()) for mask in masks)
    assert all(float(mask.std()) > 0 for mask in masks)


def test_the_purchases_of_esmm_are_clicks_times_conversions() -> None:
    model = Recommender("esmm", 3, (6, 4))
    params = {name: value.double() for name, value in noisy(model).items()}
    x = torch.cat([params["user_table"][USER], params["item_table"][ITEM]], 1)
    conversion = mlp(params, "towers.buy", x) @ params["heads.buy.weight"] + params["heads.buy.bias"]
    click = pairs(model, params, "click")
    expected = click.sigmoid() * conversion.sigmoid()
    assert torch.allclose(pairs(model, params, "buy").sigmoid(), expected, rtol=1e-12, atol=0)
    assert bool((pairs(model, params, "buy") < click).all())


@given(st.floats(-700, 700), st.floats(-700, 700))
def test_the_logit_of_a_product_is_finite_and_right(a: float, b: float) -> None:
    one, two = torch.tensor([a, b], dtype=torch.float64)
    logit = product(one, two)
    assert torch.isfinite(logit)
    # log P = log sigmoid(a) + log sigmoid(b), relative to a logarithm that rounds near 0
    expected = torch.nn.functional.logsigmoid(one) + torch.nn.functional.logsigmoid(two)
    assert float(torch.nn.functional.logsigmoid(logit)) == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_the_conversion_that_a_client_starts_with_gives_the_rate_of_purchases(click: float, buy: float) -> None:
    if buy < click - 1e-3:
        start = torch.tensor(quotient(buy, click), dtype=torch.float64)
        assert float(product(torch.tensor(click, dtype=torch.float64), start)) == pytest.approx(buy, abs=1e-6)
    elif buy >= click:
        assert quotient(buy, click) == 0


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 4),
    st.lists(st.integers(1, 5), min_size=2, max_size=3),
    st.lists(st.integers(0, 3), max_size=6),
    st.sampled_from(sorted(OFFSETS)),
)
def test_scoring_the_catalogue_agrees_with_scoring_pair_by_pair(
    kind: str, dim: int, hidden: list[int], asked: list[int], task: str
) -> None:
    model = Recommender(kind, dim, tuple(hidden), experts=2)
    params, user = noisy(model), torch.tensor(asked, dtype=torch.int64)
    everything = model.score_all(params, task, user)
    assert everything.shape == (len(asked), 7)
    expected = pairs(model, params, task, user.repeat_interleave(7), torch.arange(7).repeat(len(asked)))
    assert torch.allclose(everything.reshape(-1), expected, atol=1e-5)


def test_a_catalogue_that_takes_several_parts_is_scored_like_one_that_takes_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Recommender("mmoe", 3, (6, 4))
    params, user = noisy(model), torch.tensor([0, 1, 2, 3, 1])
    whole = model.score_all(params, "rank", user)
    monkeypatch.setattr("fedrec.models.recommender.PAIRS", 15)  # two users at a time
    assert torch.allclose(model.score_all(params, "rank", user), whole, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_those_of_an_init_and_every_parameter_is_of_a_module(kind: str) -> None:
    model = Recommender(kind, 3, (6, 5, 4), experts=2)
    params, like = model.init(1, np.arange(4), np.arange(7), OFFSETS), model.shapes(4, 7, OFFSETS)
    assert list(params) == list(like)
    assert all(params[name].shape == like[name].shape and params[name].dtype == like[name].dtype for name in like)
    assert all(covers(MODULES, name) for name in params)
    assert ordered(params) == sorted(OFFSETS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained_by_some_task(kind: str) -> None:
    model = Recommender(kind, 3, (6, 5, 4), experts=2)
    params = {name: value.requires_grad_() for name, value in noisy(model).items()}
    user, item = torch.arange(4).repeat_interleave(7), torch.arange(7).repeat(4)
    total = torch.stack([pairs(model, params, task, user, item) for task in OFFSETS]).square().sum()
    grads = dict(zip(params, torch.autograd.grad(total, list(params.values())), strict=True))
    assert [name for name, grad in grads.items() if not grad.any()] == []


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"cross-stitch", "esmm"}))
def test_a_task_starts_the_same_beside_whatever_other_tasks(kind: str) -> None:
    model = Recommender(kind, 3, (6, 4))
    one = model.init(3, np.arange(2), np.arange(5), {"rank": 0.5})
    many = model.init(3, np.arange(2), np.arange(5), OFFSETS | {"rank": 0.5})
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_experts_start_apart() -> None:
    params = Recommender("ple", 3, (6, 4)).init(0, np.arange(2), np.arange(2), OFFSETS)
    starts = [value for name, value in params.items() if "experts" in name and name.endswith("0.weight")]
    assert len({tuple(value.flatten().tolist()) for value in starts}) == len(starts) == 4 + 4 * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHARINGS)
def test_what_a_named_sharing_splits_it_joins_and_nothing_is_of_users_or_one_platform(kind: str, name: str) -> None:
    params = noisy(Recommender(kind, 3, (6, 4), experts=2))
    sharing = Sharing(SHARINGS[name])
    shared, private = sharing.split(params)
    joined = sharing.join(shared, private)
    assert list(joined) == list(params)
    assert all(torch.equal(joined[key], params[key]) for key in params)
    of_platform = {key for key in params if covers(("user_table", "domain"), key)}
    assert "user_table" in private and of_platform <= private.keys()
    own = {"embeddings": len(shared) == 1, "all-but-users": private.keys() == of_platform}
    assert own.get(name, all(key.startswith("heads.") is False for key in shared))


def test_sharings_grow_and_may_be_mixed_with_modules() -> None:
    sizes = [set(modules) for modules in SHARINGS.values()]
    assert all(a < b for a, b in pairwise(sizes))
    assert not set(SHARINGS) & set(MODULES)
    made = parse(["--share", "shared-body,gates.rank,body"]).experiment
    assert made.share == (
        "item_table",
        "item_bias",
        "adapter",
        "lora",
        "sums",
        "item_sums",
        "body",
        "sequence",
        "gates.rank",
    )
    assert all(f"  {name} " in parser().format_help() for name in SHARINGS)


METHODS = ("fedper", "fedavg", "fedrep", "admm", "local", "pooled")
# Every body with three of the methods, with two or three tasks; every method comes as often as any other, within one.
GRID = [(kind, METHODS[(n + shift) % 6], shift) for n, kind in enumerate(KINDS) for shift in (0, 2, 5)]


@pytest.mark.parametrize(("kind", "method", "shift"), GRID)
def test_every_body_trains_and_is_measured(kind: str, method: str, shift: int) -> None:
    task = TASKS if kind in ("esmm", "aitm") or shift == 0 else "rank,rating"
    e = experiment(method, model=kind, task=task, rounds=2, hidden=(6, 4), experts=2, local_epochs=1, lr=0.02)
    record, _ = fit(e)
    losses = [float(row["train_loss"]) for row in record.rounds if "train_loss" in row]
    assert losses[-1] < losses[0]
    assert {row["task"] for row in record.clients} - {"all"} == set(task.split(","))
    assert all(math.isfinite(float(row["value"])) for row in record.clients)


@pytest.mark.parametrize("share", ["shared-body", "all-but-towers"])
def test_a_private_gate_never_travels_and_a_shared_one_does(share: str) -> None:
    e = experiment(model="ple", task="rank,rating", share=share, experts=2, rounds=1, local_epochs=1)
    _, grid = fit(e)
    names = set()
    for message in [*grid.sent, *grid.received]:
        if message.has_content():
            for record in message.content.array_records.values():
                names |= set(record)
    tops = {name.split(".")[0] for name in names}
    assert {"item_table", "body"} <= tops
    assert bool({"gates", "experts"} & tops) == (share == "all-but-towers")
    assert not {"user_table", "towers", "heads"} & tops


def test_clients_with_other_tasks_meet_in_the_experts_and_in_the_tasks_that_both_have() -> None:
    e = experiment("fedavg", model="cross-stitch", task="rank,rating;shop=rank", rounds=1, local_epochs=1)
    record, _ = fit(e)
    assert {"stitch.0.rank.rating.weight", "stitch.0.rank.rank.weight", "body.rating.0.weight"} <= set(record.shared)


# A body for every client.
EACH = "shared-bottom;films=mmoe;books=ple;music=cross-stitch;news=mtan;shop=esmm"
EACH += ";platform-7=aitm;platform-8=star;platform-9=task-embedding"


@pytest.mark.parametrize(("model", "clients", "method"), [(EACH, 9, "admm"), ("ple", 2, "pooled")])
def test_worker_processes_give_the_result_of_one_process_to_the_bit(
    model: str, clients: int, method: str, tmp_path: Path
) -> None:
    words = f"--model {model} --method {method} --task {TASKS} --clients {clients} --rounds 1 --local-epochs 1"
    more = "--dim 4 --hidden 6,4 --experts 2 --device cpu --no-compare --quiet"
    for engine in ("inline", "process"):
        workers = ["--workers", "2"] if engine == "process" and method != "pooled" else []
        assert main([*words.split(), *more.split(), *workers, "--engine", engine, "--out", str(tmp_path / engine)]) == 0
    for name in ("clients.csv", "ledger.csv"):
        assert (tmp_path / "inline" / name).read_text() == (tmp_path / "process" / name).read_text()
    e = experiment_of(tmp_path / "process")
    part = clients_data(e)[0]
    held = part.members[0] if part.members else part
    key = str(dataset(e).users["key"].to_numpy()[held.users[0]])
    made = recommend(tmp_path / "process", held.name, key, 3)
    assert made.task is not None and made.task.name == "rank"
    assert len(made.items) == 3 and np.isfinite(made.scores).all()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"model": "mmoe", "hidden": "8"},
            "model: mmoe needs two widths or more, the last for the towers.*, found hidden 8",
        ),
        ({"model": "esmm"}, "model: esmm needs the tasks click and buy, .*, found task rank"),
        (
            {"model": "esmm", "task": "click,buy;shop=click"},
            "model: esmm needs the tasks click and buy, .*, found task click of shop",
        ),
        (
            {"model": "aitm", "task": "rank,rating,buy"},
            "model: aitm needs two or more of the tasks view, click, .*, found task rank,rating,buy",
        ),
        (
            {"model": "mf;shop=aitm", "task": "click,buy;shop=rank"},
            "model: aitm needs two or more of the tasks .*, found task rank of shop",
        ),
        ({"model": "aitm", "task": "click,buy", "calibration": -1}, "calibration: .* greater than or equal to 0"),
        ({"model": "star", "hidden": "8"}, "model: star needs two widths or more"),
        ({"share": "domains"}, "share: must be one of .*domain.*, found 'domains'; did you mean 'domain'"),
        ({"model": "moe"}, "model: must be one of .*mmoe.*, found 'moe'; did you mean 'mmoe'"),
        ({"model": "mmoe", "experts": 0}, "experts: .* greater than or equal to 1"),
        ({"share": "gate"}, "share: must be one of .*gates.*, found 'gate'; did you mean 'gates'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check(experiment(**fields))


def test_every_body_is_stacked() -> None:
    assert stacking_refusal(experiment(model="mf;shop=ple")) == ""
    assert set(BODIES) == set(KINDS)


# What some of the tasks read: a row of the last unit, the chain up to a behaviour, a gate of a level.
PARTLY: dict[str, tuple[str, ...]] = {
    "cross-stitch": ("stitch",),
    "aitm": ("body", "transfer"),
    "ple": ("extraction",),
}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"esmm"}))
def test_what_is_of_one_task_is_moved_by_no_other(kind: str) -> None:
    model = Recommender(kind, 3, (6, 5, 4), experts=2)
    params = {name: value.requires_grad_() for name, value in noisy(model).items()}
    user, item = torch.arange(4).repeat_interleave(7), torch.arange(7).repeat(4)
    moved: dict[str, set[str]] = {name: set() for name in params}
    for task in OFFSETS:
        loss = pairs(model, params, task, user, item).square().sum()
        for name, grad in zip(params, torch.autograd.grad(loss, list(params.values()), allow_unused=True), strict=True):
            moved[name] |= set() if grad is None or not grad.any() else {task}
    for name, tasks in moved.items():
        if covers(OF_TASKS, name):
            assert tasks == {name.split(".")[1]}, name
        elif not covers(PARTLY.get(kind, ()), name):
            assert tasks == set(OFFSETS), name
