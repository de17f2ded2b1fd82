"""Distillation inside a client: what a teacher's word is, and what a student of it becomes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from clients.recommend import main as ask
from fedrec.data import ClientData
from fedrec.distillation import Distillation, learn, lesson, recommendations, soft_loss
from fedrec.errors import UserError
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, dataset
from fedrec.experiment.records import load_params
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.rng import generator
from fedrec.sharing import Sharing
from fedrec.tasks import Task, parse_task
from fedrec.training.local import local_update
from fedrec.training.losses import penalties
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Batch, Recipe
from simulations import distil
from simulations.apps import apps_for
from simulations.studies import harness
from simulations.studies.__main__ import main as studies
from tests.builders import batches, client, interactions
from tests.helpers import Here, experiment, run_inline

BPR, BCE = Task("rank", "rank", "bpr"), Task("rank", "rank", "bce")
LIKE, RATING = Task("like", "binary", "bce", 0.5), Task("rating", "rating", "mse", 2.0)
RECIPE = Recipe(2, 16, Optimiser("adam", 0.01), num_negatives=3, l2=0.01)


def small(users: int = 6, items: int = 20) -> ClientData:
    """Return a client whose users have four training rows each, one of them no positive, and one held out."""
    rng = generator(0, "small")
    chosen = [rng.permutation(items)[:6] for _ in range(users)]
    pairs = [(u, int(i)) for u in range(users) for i in chosen[u][:4]]
    rating, positive = [float(1 + i % 5) for _, i in pairs], [bool(i % 4) for _, i in pairs]
    train = interactions(pairs, rating, positive, like=[i % 2 == 0 for _, i in pairs])
    held = [
        interactions([(u, int(chosen[u][n])) for u in range(users)], [3.0] * users, like=[True] * users) for n in (4, 5)
    ]
    return client(train, *held, users=users, items=items)


DATA = small()


def model_of(dim: int, seed: int, tasks: tuple[Task, ...]) -> ModelScorer:
    """Return a matrix factorisation with tables of the standard deviation 1."""
    model = Recommender("mf", dim, std=1.0)
    return ModelScorer(model, model.init(seed, DATA.users, DATA.items, {task.name: 0.1 for task in tasks}))


def first_batch(tasks: tuple[Task, ...]) -> Batch:
    return next(batches(DATA, tasks, RECIPE, generator(0, "batch")))


def gradient(z: Tensor, v: Tensor, task: Task, temperature: float) -> Tensor:
    """Return d mean `soft_loss` / d z."""
    z = z.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(soft_loss(task, z, v, temperature).sum(), z)
    return found


@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 3.0]))
def test_soft_labels_are_the_cross_entropy_with_the_teacher(seed: int, temperature: float) -> None:
    """KL is the cross entropy minus the teacher's own entropy: torch's, scaled by T^2; never negative."""
    rng = generator(seed, "logits")
    z, v = (torch.from_numpy(rng.normal(size=(4, 5))) for _ in range(2))
    expected = F.kl_div(F.log_softmax(z / temperature, 1), F.softmax(v / temperature, 1), reduction="none").sum(1)
    found = soft_loss(BPR, z, v, temperature)
    assert torch.allclose(found, temperature**2 * expected) and bool((found >= -1e-12).all())
    shifted = soft_loss(BPR, z + 7, v - 3, temperature)  # what is the same for all items of a user says nothing
    assert torch.allclose(shifted, found)


@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 3.0]))
def test_two_classes_are_a_sigmoid(seed: int, temperature: float) -> None:
    """With p = sigmoid(z / T), q = sigmoid(v / T): T^2 (q log(q/p) + (1 - q) log((1 - q)/(1 - p)))."""
    rng = generator(seed, "logits")
    z, v = (torch.from_numpy(rng.normal(size=6)) for _ in range(2))
    p, q = torch.sigmoid(z / temperature), torch.sigmoid(v / temperature)
    expected = temperature**2 * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log())
    assert torch.allclose(soft_loss(LIKE, z, v, temperature), expected)


@pytest.mark.parametrize("task", [BPR, LIKE])
def test_a_high_temperature_matches_logits(task: Task) -> None:
    """T^2 dKL/dz_i = T (p_i - q_i) -> (z_i - v_i)/N for zero-mean logits as T grows (arXiv 1503.02531, eq. 4).

    exp(x) = 1 + x + O(x^2): p_i = (1 + z_i/T) / (N + sum_j z_j/T) + O(1/T^2). Two classes have the logits (z, 0), which
    centred are (z/2, -z/2): the gradient with respect to z is (z - v)/4.
    """
    rng = generator(0, "logits")
    z, v = (torch.from_numpy(rng.normal(size=(8, 5) if task is BPR else 8)) for _ in range(2))
    centred = [x - x.mean(1, keepdim=True) for x in (z, v)] if task is BPR else [z, v]
    expected = (centred[0] - centred[1]) / (5 if task is BPR else 4)
    assert torch.allclose(gradient(z, v, task, 1e5), expected, atol=1e-4)
    assert not torch.allclose(gradient(z, v, task, 1.0), expected, atol=1e-2)  # it is the temperature that does it


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("task", [BPR, BCE, LIKE, RATING])
def test_a_student_that_is_its_teacher_learns_nothing(task: Task, temperature: float) -> None:
    z = torch.from_numpy(generator(0, "logits").normal(size=(8, 5) if task.kind == "rank" else 8))
    assert float(soft_loss(task, z, z, temperature).abs().max()) < 1e-12
    assert float(gradient(z, z, task, temperature).abs().max()) < 1e-12


@pytest.mark.parametrize("task", [RATING, parse_task("tests.own_parts:Huber")])
def test_a_number_is_taught_by_its_square_also_of_a_task_of_ones_own(task: Task) -> None:
    z, v = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1.5, 2.0, 3.0])
    assert soft_loss(task, z, v, 2.0).tolist() == [0.25, 16.0, 0.0]


def test_a_teacher_that_is_the_student_leaves_the_penalty_alone() -> None:
    """The whole lesson then has the gradient of alpha times the penalty."""
    tasks = (BPR, LIKE, RATING)
    same = model_of(3, 1, tasks)
    params = {name: value.clone().requires_grad_(True) for name, value in same.params.items()}
    rule, batch, names = Distillation(weight=0.3), first_batch(tasks), ["item_table", "user_table"]
    value = lesson(rule, same, same.model, DATA, tasks, 0.1)(params, batch)
    found = torch.autograd.grad(value, [params[name] for name in names])
    alone = sum(penalties(same.model, params, batch, 0.1), torch.zeros(()))
    expected = torch.autograd.grad(0.3 * alone, [params[name] for name in names])
    assert all(
        torch.allclose(f, e, atol=1e-6) and float(e.abs().max()) > 1e-4 for f, e in zip(found, expected, strict=True)
    )


@given(st.integers(0, 2**31))
def test_attributes_are_softened_by_their_loss(seed: int) -> None:
    """Brands are the classes of one softmax, every category has two classes of its own, a price is a number."""
    rng = generator(seed, "attributes")
    z, v = (torch.from_numpy(rng.normal(size=(4, 3))) for _ in range(2))
    brand, category, price = (parse_task(name) for name in ("brand", "category", "price"))
    assert torch.equal(soft_loss(brand, z, v, 2.0), soft_loss(BPR, z, v, 2.0))
    each = torch.stack([soft_loss(LIKE, z[:, c], v[:, c], 2.0) for c in range(3)], dim=1)
    assert torch.allclose(soft_loss(category, z, v, 2.0), each.mean(1))
    assert torch.allclose(soft_loss(price, z[:, :1], v[:, :1], 2.0), (z[:, 0] - v[:, 0]).square())


def test_recommendations_are_the_teachers_best_unlabelled_items_weighed_by_position() -> None:
    """Every training row is labelled, a positive or not; w_r = exp(-r / lambda) / sum_j exp(-j / lambda)."""
    teacher = model_of(3, 1, (BPR,))
    found = recommendations(teacher, "rank", DATA, 5, 2.0)
    expected = np.exp(-np.arange(1, 6) / 2.0)
    for user in DATA.users:
        labelled = set(DATA.train.item[DATA.train.user == user].tolist())
        score = teacher.score_all("rank", np.array([user]))[0].numpy()
        best = [item for item in np.argsort(-score) if item not in labelled][:5]
        assert len(labelled) == 4 and found.item[user].tolist() == best
        assert found.weight[user].numpy() == pytest.approx(expected / expected.sum())


def test_a_user_with_few_unlabelled_items_has_few_recommendations() -> None:
    """Of 20 items 4 are labelled: 16 places have a weight, whatever is asked for, and a user of all has none."""
    teacher = model_of(3, 1, (BPR,))
    found = recommendations(teacher, "rank", DATA, 100, 5.0)
    assert found.item.shape == (6, 20) and (found.weight > 0).sum(1).tolist() == [16] * 6
    assert torch.allclose(found.weight.sum(1), torch.ones(6))
    rows = interactions([(0, i) for i in range(20)])
    full = recommendations(teacher, "rank", replace(DATA, train=rows), 3, 5.0)
    assert full.weight[0].tolist() == [0.0] * 3 and full.weight[1].tolist() != [0.0] * 3


def test_what_is_held_out_is_not_known() -> None:
    """Neither the lesson nor the student depends on validation or test rows."""
    tasks, teacher, student = (BPR, LIKE), model_of(8, 1, (BPR, LIKE)), model_of(2, 2, (BPR, LIKE))
    blank = DATA.train.take(np.zeros(0, np.int64))
    for kind in ("soft", "ranking"):
        results = [
            learn(
                student.model, student.params, data, tasks, RECIPE, rounds=2, seed=0,
                score=lambda _: 0.0, teacher=teacher, rule=Distillation(kind),
            ).params
            for data in (DATA, replace(DATA, validation=blank, test=blank))
        ]  # fmt: skip
        assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("task", [BPR, BCE])
def test_ranking_distillation_by_hand(task: Task) -> None:
    """alpha sum_r w_r (-log sigmoid(s(pi_r))) for bce; under bpr every pi_r is compared with the sampled items."""
    teacher, student, alpha = model_of(8, 1, (task,)), model_of(2, 2, (task,)), 0.7
    rule = Distillation("ranking", alpha, top=4, decay=3.0)
    batch = first_batch((task,))
    value = lesson(rule, teacher, student.model, DATA, (task,), 0.0)(student.params, batch)
    best = recommendations(teacher, "rank", DATA, 4, 3.0)
    s = student.score_all("rank", DATA.users).double().numpy()
    assert batch.negative is not None
    rows = []
    for u, mask, negative in zip(batch.user, batch.labels["rank"][0], batch.negative, strict=True):
        for item, w in zip(best.item[u], best.weight[u], strict=True):
            against = s[u, negative] if task is BPR else np.zeros(1)
            rows.append(float(mask) * float(w) * np.logaddexp(0, against - s[u, item]).mean())
    assert float(value) == pytest.approx(alpha * sum(rows) / float(batch.labels["rank"][0].sum()), rel=1e-5)


def updated(rule: Distillation | None, tasks: tuple[Task, ...]) -> Params:
    """Return a student after two rounds."""
    teacher, student = model_of(8, 1, tasks), model_of(2, 2, tasks)
    options: dict[str, Any] = {"rounds": 2, "seed": 3, "score": lambda _: float("nan")}
    return learn(student.model, student.params, DATA, tasks, RECIPE, **options, teacher=teacher, rule=rule).params


@pytest.mark.parametrize("kind", ["soft", "ranking"])
def test_alpha_0_is_training_alone_to_the_bit(kind: Any) -> None:
    tasks = (BPR, LIKE, RATING)
    params = model_of(2, 2, tasks).params
    for number in (1, 2):
        scope = (DATA.name, number)
        params, _ = local_update(
            Recommender("mf", 2, std=1.0), params, DATA, tasks, RECIPE, Sharing(()), seed=3, scope=scope
        )
    alone, silent, heard = (updated(rule, tasks) for rule in (None, Distillation(kind, 0.0), Distillation(kind, 0.5)))
    assert all(torch.equal(params[name], alone[name]) and torch.equal(params[name], silent[name]) for name in params)
    assert not torch.equal(heard["item_table"], params["item_table"])


def test_a_student_of_alpha_1_scores_as_its_teacher_does() -> None:
    """Of the labels it knows nothing; wide enough and without a penalty it takes over ratings and probabilities."""
    tasks = (LIKE, RATING)
    teacher = model_of(1, 1, tasks)
    student = model_of(6, 2, tasks)
    recipe = replace(RECIPE, epochs=400, l2=0.0, optimiser=Optimiser("adam", 0.03))
    learned = learn(
        student.model, student.params, DATA, tasks, recipe, rounds=1, seed=0, score=lambda _: 0.0, teacher=teacher,
        rule=Distillation("soft", 1.0),
    )  # fmt: skip
    for task in ("like", "rating"):
        ask_both = [
            scorer.score(task, DATA.train.user, DATA.train.item)
            for scorer in (teacher, ModelScorer(student.model, learned.params))
        ]
        np.testing.assert_allclose(ask_both[0], ask_both[1], atol=0.1)


def test_the_round_is_chosen_by_the_score() -> None:
    student, seen = model_of(2, 2, (BPR,)), list[Params]()
    scores = [0.1, float("nan"), 0.3, 0.3, 0.2]

    def score(params: Params) -> float:
        seen.append(params)
        return scores[len(seen) - 1]

    found = learn(student.model, student.params, DATA, (BPR,), RECIPE, rounds=5, seed=0, score=score)
    assert (found.round, found.score, len(seen)) == (3, 0.3, 5) and found.params is seen[2]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"weight": 1.1}, "weight: must be from 0 to 1, found 1.1"),
        ({"weight": float("nan")}, "weight: must be from 0 to 1, found nan"),
        ({"temperature": 0.0}, "temperature: must be positive and finite, found 0.0"),
        ({"decay": float("inf")}, "decay: must be positive and finite, found inf"),
        ({"top": 0}, "top: must be at least 1, found 0"),
    ],
)
def test_a_wrong_rule_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        Distillation(**fields)
    assert str(error.value) == says


FIELDS: dict[str, Any] = {"clients": 2, "dim": 12, "task": "rank,click", "market": {"users": 60, "items": 50}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    """Return an experiment and the folder of its finished run."""
    home, e = tmp_path_factory.mktemp("runs") / "run", experiment("fedper", **FIELDS)
    home.mkdir()
    run_inline(*apps_for(e, home), 2)
    return e, home


def test_the_command_measures_teacher_student_and_the_student_alone(
    run: tuple[Experiment, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    e, home = run
    before = sorted(path for path in home.rglob("*"))
    assert distil.main([str(home), "--dim", "1", "--rounds", "2", "--out", str(tmp_path / "out")]) == 0
    assert sorted(path for path in home.rglob("*")) == before
    printed = capsys.readouterr().out
    costs, metrics = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("costs", "metrics"))
    for data in clients_data(e):
        own: Any = costs[costs["client"] == data.name].set_index("model")
        users, items = len(data.users), len(data.items)
        for name, dim in (("teacher", 12), ("student", 1), ("student alone", 1)):  # two heads of dim + 3 numbers
            assert own.loc[name, "parameters"] == (users + items) * (dim + 1) + 2 * (dim + 3)
            assert own.loc[name, "one_ms"] > 0 and own.loc[name, "batch_ms"] > 0
        assert f"{own.loc['student', 'parameters']:,}" in printed
        told = pd.read_csv(home / "clients.csv").query(f"split == 'test' and client == '{data.name}'")
        tested: Any = metrics[metrics["client"] == data.name].set_index(["task", "metric"])
        for row in told.to_dict("records"):  # the teacher is the run's own model
            assert tested.loc[(row["task"], row["metric"]), "teacher"] == pytest.approx(row["value"])
        ndcg = tested.loc[("rank", "ndcg@10")]
        assert ndcg["minus_teacher"] == pytest.approx(ndcg["student"] - ndcg["teacher"])
        assert ndcg["minus_alone_low"] <= ndcg["student"] - ndcg["alone"] <= ndcg["minus_alone_high"]


def test_the_student_alone_is_the_client_that_trains_alone(run: tuple[Experiment, Path], tmp_path: Path) -> None:
    """The honest baseline is no weaker than a run of `local` with the student's model: they are equal to the bit."""
    e, home = run
    assert distil.main([str(home), "--dim", "3", "--rounds", "1", "--out", str(tmp_path / "out"), "--weight", "0"]) == 0
    alone = experiment("local", **{**FIELDS, "dim": 3, "rounds": 1})
    (tmp_path / "local").mkdir()
    run_inline(*apps_for(alone, tmp_path / "local"), 2)
    for data in clients_data(e):
        name = f"client-{data.name}.safetensors"
        same, silent, local = (
            load_params(path / "model" / file)
            for path, file in (
                (tmp_path / "out", f"alone-{data.name}.safetensors"),
                (tmp_path / "out", name),
                (tmp_path / "local", name),
            )
        )
        assert all(torch.equal(local[key], same[key]) and torch.equal(local[key], silent[key]) for key in local)


@pytest.mark.parametrize("pool", [False, True])
def test_a_client_recommends_by_its_student(
    run: tuple[Experiment, Path], tmp_path: Path, pool: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    e, home = run
    if pool:
        e, home = experiment("pooled", **FIELDS), tmp_path / "pooled"
        home.mkdir()
        run_inline(*apps_for(e, home), 1)
    command = [str(home), "--kind", "ranking", "--task", "rank", "--rounds", "1", "--out", str(tmp_path / "out")]
    assert distil.main(command) == 0
    about = json.loads((tmp_path / "out" / "experiment.json").read_text())
    assert about["distillation"]["kind"] == "ranking" and about["experiment"]["task"] == "rank"
    member = (clients_data(e)[0].members or clients_data(e))[0]
    user = str(dataset(e).users["key"][int(member.users[0])])
    capsys.readouterr()
    assert ask([str(tmp_path / "out"), "--client", member.name, "--user", user, "-k", "3"]) == 0
    assert f"{member.name} recommends to user {user}, by the task rank" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--client", "films2"], "client"),
        (["--num-negatives", "0"], "num_negatives"),
        (["--task", "buy"], "task"),
        (["--dim", "0"], "dim"),
        (["--model", "mff"], "model"),
        (["--weight", "2"], "weight"),
        (["--kind", "hard"], "kind"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_a_wrong_input_is_one_line(
    run: tuple[Experiment, Path], tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert distil.main([str(run[1]), "--out", str(out), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and says in printed.err and printed.err.count("\n") == 1
    assert not printed.out and not list(tmp_path.iterdir())


def test_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distil.main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: run: must be the folder of a finished run")


def test_a_task_that_some_clients_lack_is_not_taught_to_them() -> None:
    assert distil.only("rank,click*2;shop=click,buy", ["click"]) == "click*2;shop=click"
    assert distil.only("rank;shop=click", ["click"]) == "shop=click"
    assert distil.only("rank;shop=click", []) == "rank;shop=click"


def test_the_study_compares_students_with_their_teacher_and_with_the_student_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "ProcessPoolExecutor", Here)
    tiny = ["--market.users", "50", "--market.items", "40", "--clients", "2", "--rounds", "1"]
    assert studies(["distillation", "--seeds", "2", "--out", str(tmp_path / "out"), *tiny]) == 0
    results, rows = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("results", "summary"))
    assert list(rows["model"]) == ["teacher", "student alone", "soft labels", "ranking distillation"]
    means: Any = results.groupby(["model", "seed"])["value"].mean()
    for row in rows.to_dict("records"):
        own, teacher, alone = (means[name].to_numpy() for name in (row["model"], "teacher", "student alone"))
        assert row["mean"] == pytest.approx(own.mean()) and row["share"] == pytest.approx((own / teacher).mean())
        assert row["minus_alone"] == pytest.approx((own - alone).mean())
        assert row["size"] < 0.1 or row["model"] == "teacher"
    assert "soft labels" in (tmp_path / "out" / "report.html").read_text()
    assert "2 paired seeds" in capsys.readouterr().out


def test_the_study_refuses_no_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert studies(["distillation", "--seeds", "0", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: seeds, workers: must be at least 1, found 0")
