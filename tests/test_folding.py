"""New users: who they are, what is known of them, and rows that are learnt when they are asked."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.recommend import recommend
from fedrec.data import ClientData, Clients, federation, pool, public_data, view_public
from fedrec.errors import UserError
from fedrec.evaluation.evaluate import mask_of
from fedrec.experiment.config import Experiment
from fedrec.experiment.folding import fold_in
from fedrec.experiment.holdings import clients_data, dataset, reader
from fedrec.experiment.parts import stacking_refusal
from fedrec.params import Params
from fedrec.tasks import parse_task, task_loss
from simulations.run import main
from tests.helpers import experiment, fit

NEW: dict[str, Any] = {"split": "new-users", "fractions": (0.2, 0.2)}
PARTS = ("train", "validation", "test", "support")


def parts(**fields: Any) -> tuple[Experiment, Clients]:
    e = experiment(**NEW, **fields)
    return e, clients_data(e)


def people(data: ClientData, part: str) -> set[int]:
    """Return the global ids of the users of a part."""
    return set(data.users[getattr(data, part).user].tolist())


def test_nothing_of_a_new_user_is_trained_on_and_whoever_is_asked_is_of_one_kind() -> None:
    _, clients = parts()
    for data in (*clients, pool(clients)):
        train, validation, test, support = (people(data, part) for part in PARTS)
        assert validation and test and support
        assert not train & (validation | test | support)
        assert not validation & test
        assert support <= validation | test | (set(data.users.tolist()) - train)
        for held in (data.validation, data.test):
            for user in np.unique(held.user):
                mine = held.take(held.user == user)
                known = data.support.take(data.support.user == user)
                assert mine.positive.sum() == 1 or data.members  # the pooled one has one of each platform
                if not data.members:
                    assert known.time.max(initial=0) <= mine.time.min()
    # The same users everywhere: by user and seed alone, on whatever platform, in whatever silo.
    kinds = [{u: part for part in ("train", "validation", "test") for u in people(data, part)} for data in clients]
    everyone = kinds[0] | kinds[1] | kinds[2]
    assert all(everyone[user] == kind for one in kinds for user, kind in one.items())
    e = experiment(**NEW)
    silos = federation(dataset(e), clients=2, partition="users", split="new-users", fractions=(0.2, 0.2), seed=e.seed)
    for data in silos:
        assert all(everyone.get(user) in (part, None) for part in ("validation", "test") for user in people(data, part))
    other = federation(dataset(e), clients=None, split="new-users", fractions=(0.2, 0.2), seed=1)
    assert people(pool(other), "test") != people(pool(clients), "test")


def test_the_fractions_are_of_users_and_every_interaction_is_in_one_part() -> None:
    e, clients = parts(market={"users": 600})
    whole = pool(clients)
    n = len(whole.users)
    for part in ("validation", "test"):  # within three deviations of a binomial, of users with a positive
        assert abs(len(people(whole, part)) - 0.2 * n) < 3 * math.sqrt(0.16 * n)
    for data in clients:
        frame = dataset(e).interactions
        mine = frame[frame["platform"] == dataset(e).platforms.index(data.name)]
        assert sum(len(getattr(data, part)) for part in PARTS) == len(mine)


def test_what_is_known_of_a_new_user_is_known_to_volunteers_views_and_to_the_ranking() -> None:
    e, (data, *_) = parts(volunteers=10)
    plain = clients_data(experiment(**NEW))[0]
    assert people(data, "support") == people(plain, "support") - (people(plain, "support") - set(data.users.tolist()))
    public = public_data(dataset(e), volunteers=10, split="new-users", fractions=(0.2, 0.2), seed=e.seed)
    view = view_public(public, "films", data.items)
    assert len(view.support) == np.isin(public.items[public.support.item], data.items).sum() > 0
    user = np.unique(data.test.user)[:3]
    mask = mask_of(data.known("test"), user, len(data.items))
    for row, one in enumerate(user.tolist()):
        mine = data.support.take((data.support.user == one) & data.support.positive)
        assert set(np.flatnonzero(mask[row])) == set(mine.item.tolist())


def start(e: Experiment, data: ClientData, seed: int = 0) -> Params:
    """Return parameters as after training: whoever has been trained on has rows of their own."""
    params = reader(e, data, "train").init(0, data.users, data.items, {task.name: 0.0 for task in e.tasks(data.name)})
    g = torch.Generator().manual_seed(seed)
    return {name: value + 0.3 * torch.randn(value.shape, generator=g) for name, value in params.items()}


@pytest.mark.parametrize("model", ["mf", "mlp"])
def test_new_users_start_at_the_mean_row_and_only_their_rows_are_trained(model: str) -> None:
    e, (data, *_) = parts(model=model, task="rank,rating", optimiser="adam", lr=0.05)
    params, asked = start(e, data), np.unique(data.test.user)
    copy = {name: value.clone() for name, value in params.items()}
    trained = np.unique(data.train.user)
    mean = fold_in(e.model_copy(update={"fold_in": 0}), params, data, "test", asked)
    found = fold_in(e, params, data, "test", asked)
    assert all(torch.equal(params[name], copy[name]) for name in params)
    others = np.setdiff1d(np.arange(len(data.users)), [*trained, *asked])
    for name, value in params.items():
        if not name.startswith("user"):
            assert torch.equal(found[name], value) and torch.equal(mean[name], value)
            continue
        assert torch.equal(found[name][trained], value[trained])
        expected = value[trained].mean(0)
        assert all(torch.allclose(mean[name][user], expected) for user in [*asked, *others])
        assert torch.equal(found[name][others], mean[name][others])
        learnt = data.support.positive | np.isfinite(data.support.rating)
        supported = np.intersect1d(asked, data.support.user[learnt])
        assert bool((found[name][supported] != mean[name][supported]).any(1).all())


def test_folding_in_finds_the_least_squares_row_of_a_user() -> None:
    # With one user asked, full batches and no penalty, p_u and b_u minimise a convex loss whose solution is in closed
    # form: |r - c - w_i b_i - [q_i * w, w_u] (p_u, b_u)|^2.
    e, (data, *_) = parts(task="rating", l2=0.0, optimiser="adam", lr=0.05, fold_in=400, batch_size=4096, dim=2)
    params = start(e, data)
    rated = np.bincount(data.support.user[np.isfinite(data.support.rating)])
    user = np.array([int(rated.argmax())])
    found = fold_in(e, params, data, "test", user)
    mine = data.support.take((data.support.user == user[0]) & np.isfinite(data.support.rating))
    w, c = params["heads.rating.weight"].double(), params["heads.rating.bias"].double()
    q, b_i = params["item_table"].double()[mine.item], params["item_bias"].double()[mine.item, 0]
    design = torch.cat([q * w[:2], w[2].expand(len(q), 1)], 1)
    target = torch.from_numpy(mine.rating).double() - c - w[3] * b_i
    best = torch.linalg.lstsq(design, target[:, None]).solution[:, 0]
    row = torch.cat([found["user_table"][user[0]], found["user_bias"][user[0]]]).double()
    loss = [float((design @ one - target).square().mean()) for one in (row, best)]
    assert len(mine) > 3
    assert loss[0] == pytest.approx(loss[1], rel=1e-3)


def test_what_is_held_out_moves_no_row() -> None:
    e, (data, *_) = parts()
    params, asked = start(e, data), np.unique(data.test.user)
    moved = replace(data.test, item=(data.test.item + 1) % len(data.items))
    one, two = (fold_in(e, params, d, "test", asked) for d in (data, replace(data, test=moved)))
    assert all(torch.equal(one[name], two[name]) for name in params)
    task, model = parse_task("rank"), reader(e, data, "test")
    rows = data.support.take(np.isin(data.support.user, asked) & data.support.positive)
    user, item = torch.from_numpy(rows.user), torch.from_numpy(rows.item)

    def loss(params: Params) -> float:
        """Return the mean loss of the support against the whole catalogue: fitting it is what folding in is for."""
        score = model.score_all(params, "rank", user)
        return float(task_loss(task, score.gather(1, item[:, None])[:, 0], torch.ones(len(user)), score).mean())

    assert loss(one) < loss(fold_in(e.model_copy(update={"fold_in": 0}), params, data, "test", asked)) - 0.01


def test_without_a_table_or_another_split_nothing_is_folded_in() -> None:
    for fields in ({"model": "item"}, {"sequence": {"kind": "gru4rec"}}):
        e, (data, *_) = parts(**fields)
        params = reader(e, data, "train").init(0, data.users, data.items, {"rank": 0.0})
        assert fold_in(e, params, data, "test", data.test.user) is params
    e = experiment()
    data = clients_data(e)[0]
    params = start(e, data)
    assert fold_in(e, params, data, "test", data.test.user) is params


@pytest.mark.parametrize("kind", ["none", "sasrec"])
@pytest.mark.parametrize("method", ["fedper", "local", "pooled", "ditto"])
def test_new_users_are_asked_under_every_kind_of_method(method: str, kind: str) -> None:
    e = experiment(method, **NEW, sequence={"kind": kind, "history": 5, "blocks": 1}, local_epochs=1, lr=0.02)
    record, _ = fit(e)
    test = [row for row in record.clients if row["split"] == "test"]
    assert {row["client"] for row in test} == {data.name for data in clients_data(experiment(**NEW))}
    assert all(math.isfinite(float(row["value"])) for row in test)


def test_a_new_user_is_recommended_what_it_has_not_liked_yet(tmp_path: Path) -> None:
    words = "--clients 2 --rounds 1 --local-epochs 1 --dim 4 --split new-users --fractions 0.2,0.2 --engine inline"
    more = ["--device", "cpu", "--no-compare", "--quiet", "--out", str(tmp_path / "run")]
    assert main([*words.split(), *more]) == 0
    e = experiment(**NEW, clients=2)
    data = clients_data(e)[0]
    for user in (int(data.test.user[0]), int(data.validation.user[0])):
        key = str(dataset(e).users["key"].to_numpy()[data.users[user]])
        made = recommend(tmp_path / "run", data.name, key, 5)
        assert made.task is not None and np.isfinite(made.scores).all()
        liked = [part.item[(part.user == user) & part.positive] for part in data.known("test")]
        assert not set(made.items.tolist()) & set(data.items[np.concatenate(liked)].tolist())


@pytest.mark.parametrize(
    ("method", "fields", "text"),
    [
        ("no-harm", {}, "budget.margin: 0.02 needs users who are trained .*, found split new-users"),
        ("agreement", {"volunteers": 9}, "agreement.items: .* needs users who are trained .*, found split new-users"),
        ("fedper", {"fractions": (0.5, 0.5)}, "fractions: validation and test must be positive and sum to less than 1"),
    ],
)
def test_what_cannot_be_asked_of_new_users_is_refused(method: str, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        experiment(method, **{**NEW, **fields})
    assert stacking_refusal(experiment(**NEW)).endswith("found split new-users")
