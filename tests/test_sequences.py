"""Sequence encoders: the papers' formulas by hand, leak-free histories, and runs that read users from them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.recommend import experiment_of, recommend
from fedrec.data import ClientData
from fedrec.data.split import concatenate
from fedrec.errors import UserError
from fedrec.evaluation.evaluate import evaluate
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.config import build
from fedrec.experiment.holdings import clients_data, dataset, reader
from fedrec.experiment.records import Row
from fedrec.models import Recommender, UserSequence
from fedrec.models.side import Side
from fedrec.params import Params, covers
from fedrec.rng import generator
from fedrec.sharing import MODULES, SHARINGS, Sharing
from fedrec.tasks import parse_task
from fedrec.training.local import held_out_loss, local_update
from fedrec.training.losses import task_losses
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Batch, Recipe
from simulations.check import check
from simulations.engines import launch
from simulations.run import main
from tests.builders import batches, client, interactions
from tests.helpers import experiment, fit, same

GRU, SAS = UserSequence(kind="gru4rec", history=4), UserSequence(kind="sasrec", history=4, blocks=2, heads=2)
BOTH = pytest.mark.parametrize("sequence", [GRU, SAS], ids=["gru4rec", "sasrec"])
OFFSETS = {"rank": 0.0, "rating": 3.5}
HISTORY = torch.tensor([[-1, -1, -1, -1], [-1, -1, -1, 5], [-1, 2, 0, 6], [3, 1, 4, 2]])
D = 6
Array = np.ndarray[Any, np.dtype[np.float64]]


def noisy(model: Recommender, seed: int = 0) -> Params:
    """Return parameters without a zero, so that no term can go missing unseen."""
    params = model.init(seed, np.arange(4), np.arange(7), OFFSETS)
    g = torch.Generator().manual_seed(seed)
    return {name: value + 0.3 * torch.randn(value.shape, generator=g) for name, value in params.items()}


def made(sequence: UserSequence, kind: str = "mf") -> Recommender:
    return Recommender(kind, D, (6, 4), experts=2, sequence=sequence, side=Side(history=HISTORY))


def of(params: Params, name: str) -> Array:
    return params[f"sequence.{name}"].double().numpy()


def items_of(params: Params, row: int) -> Array:
    """Return the q_i [n, d] of a user's history without the padding."""
    return params["item_table"].double().numpy()[[i for i in HISTORY[row].tolist() if i >= 0]]


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def test_a_gru_by_hand_step_by_step_and_by_torchs_own_module() -> None:
    model = made(GRU)
    params = noisy(model)
    p = model.users(params, torch.arange(4))
    module = torch.nn.GRU(D, D, batch_first=True)
    module.load_state_dict({
        "weight_ih_l0": params["sequence.input.weight"], "bias_ih_l0": params["sequence.input.bias"],
        "weight_hh_l0": params["sequence.hidden.weight"], "bias_hh_l0": params["sequence.hidden.bias"],
    })  # fmt: skip
    assert torch.equal(p[0], params["sequence.start"])
    for row in (1, 2, 3):
        h = np.zeros(D)
        for q in items_of(params, row):
            r, z, n = np.split(of(params, "input.weight") @ q + of(params, "input.bias"), 3)
            r_h, z_h, n_h = np.split(of(params, "hidden.weight") @ h + of(params, "hidden.bias"), 3)
            r, z = sigmoid(r + r_h), sigmoid(z + z_h)
            h = (1 - z) * np.tanh(n + r * n_h) + z * h
        assert p[row].tolist() == pytest.approx(h.tolist(), abs=1e-5)
        whole = module(params["item_table"][HISTORY[row][HISTORY[row] >= 0]][None])[1]
        assert torch.allclose(p[row], whole[0, 0], atol=1e-6)


def norm(params: Params, path: str, x: Array) -> Array:
    y = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return np.asarray(y * of(params, f"{path}norm.weight") + of(params, f"{path}norm.bias"))


def by_hand(params: Params, row: int, heads: int, causal: bool = True) -> Array:
    """Return the encoding of a user's history: place by place, head by head, from the items up to the place alone."""
    q, n = items_of(params, row), len(items_of(params, row))
    x = list(q * math.sqrt(D) + of(params, "positions.weight")[-n:])
    for block in range(2):
        path, out, width = f"blocks.{block}.", [], D // heads
        for place in range(n):
            seen = [norm(params, path, x[j]) for j in range(place + 1 if causal else n)]
            query = of(params, f"{path}query.weight") @ seen[place]
            keys, values = (
                np.array([of(params, f"{path}{name}.weight") @ h for h in seen]) for name in ("key", "value")
            )
            read = []
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                logits = keys[:, part] @ query[part] / math.sqrt(width)
                weights = np.exp(logits) / np.exp(logits).sum()
                read.append(weights @ values[:, part])
            y = x[place] + np.concatenate(read)
            inner = of(params, f"{path}forward.0.weight") @ norm(params, f"{path}forward.", y)
            inner = np.maximum(inner + of(params, f"{path}forward.0.bias"), 0)
            out.append(y + of(params, f"{path}forward.1.weight") @ inner + of(params, f"{path}forward.1.bias"))
        x = out
    return norm(params, "", x[-1])


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_self_attention_by_hand_from_the_items_before_each_place_alone(heads: int) -> None:
    model = made(SAS.model_copy(update={"heads": heads}))
    params = noisy(model)
    p = model.users(params, torch.arange(4))
    assert torch.equal(p[0], params["sequence.start"])
    for row in (1, 2, 3):
        assert p[row].tolist() == pytest.approx(by_hand(params, row, heads).tolist(), abs=1e-4)
    # Were an earlier place to see a later item, what the last place reads in the second block would be another.
    assert np.abs(by_hand(params, 3, heads) - by_hand(params, 3, heads, causal=False)).max() > 1e-2


@BOTH
def test_padding_does_not_matter(sequence: UserSequence) -> None:
    model = made(sequence)
    params = noisy(model)
    long = torch.cat([torch.full((4, 3), -1), HISTORY], 1)
    wide = replace(model, sequence=sequence.model_copy(update={"history": 7}))
    more = noisy(wide, 5) | params
    if sequence.kind == "sasrec":  # places count from the end
        ahead = torch.randn(3, D, generator=torch.Generator().manual_seed(1))
        more["sequence.positions.weight"] = torch.cat([ahead, params["sequence.positions.weight"]])
    user = torch.arange(4)
    assert torch.allclose(wide.users(more, user, long), model.users(params, user, HISTORY), atol=1e-6)
    # The row of item 0, which stands in for padding, is read by nobody who has not liked it.
    other = params | {"item_table": params["item_table"].clone()}
    other["item_table"][0] = 9.0
    same = (model.users(other, user) == model.users(params, user)).all(1)
    assert same.tolist() == [True, True, False, True]


@BOTH
@pytest.mark.parametrize("kind", ["mf", "mlp", "mmoe", "esmm"])
def test_scoring_the_catalogue_agrees_with_scoring_pair_by_pair(sequence: UserSequence, kind: str) -> None:
    model = made(sequence, kind)
    offsets = {"click": 0.1, "buy": -1.0} if kind == "esmm" else OFFSETS
    params = model.init(0, np.arange(4), np.arange(7), offsets)
    params |= {name: value + 0.3 for name, value in params.items() if name.startswith("sequence")}
    user = torch.tensor([3, 0, 3])
    for task in offsets:
        everything = model.score_all(params, task, user)
        features = model.features(params, user.repeat_interleave(7), torch.arange(7).repeat(3))
        assert torch.allclose(everything.reshape(-1), model.head(params, task, features), atol=1e-4)


def test_matrix_factorisation_with_a_history_by_hand() -> None:
    model = made(GRU)
    params = noisy(model)
    p, q = model.users(params, torch.tensor([2]))[0], params["item_table"][5]
    w, c = params["heads.rank.weight"], params["heads.rank.bias"]
    score = (w[:-1] * p * q).sum() + w[-1] * params["item_bias"][5, 0] + c
    assert float(model.score_all(params, "rank", torch.tensor([2]))[0, 5]) == pytest.approx(float(score), abs=1e-5)


@BOTH
@pytest.mark.parametrize("kind", ["mf", "mlp", "ple"])
def test_nothing_of_a_user_is_a_parameter_and_every_parameter_is_trained(sequence: UserSequence, kind: str) -> None:
    model = made(sequence, kind)
    params, like = noisy(model), model.shapes(4, 7, OFFSETS)
    assert [(name, value.shape) for name, value in params.items()] == [(name, v.shape) for name, v in like.items()]
    assert not any(name.startswith("user") for name in params)
    assert all(covers(MODULES, name) for name in params)
    values = {name: value.requires_grad_() for name, value in params.items()}
    user, item = torch.arange(4).repeat_interleave(7), torch.arange(7).repeat(4)
    score = sum(
        (model.head(values, t, model.features(values, user, item)).square().sum() for t in OFFSETS), Tensor([0])
    )
    grads = dict(zip(values, torch.autograd.grad(score, list(values.values())), strict=True))
    assert [name for name, grad in grads.items() if not grad.any()] == []
    shared, private = Sharing(SHARINGS["shared-body"]).split(params)
    assert set(sequence.sizes(D)) <= set(shared)
    assert not {name.split(".")[0] for name in private} & {"sequence", "item_table"}


def test_the_rest_of_a_model_starts_as_it_does_with_a_user_table() -> None:
    with_table = Recommender("mlp", D).init(3, np.arange(4), np.arange(7), OFFSETS)
    for sequence in (GRU, SAS):
        params = Recommender("mlp", D, sequence=sequence).init(3, np.arange(4), np.arange(7), OFFSETS)
        rest = {name: value for name, value in params.items() if not name.startswith("sequence")}
        assert with_table.keys() - rest.keys() == {"user_table"}
        assert all(torch.equal(value, with_table[name]) for name, value in rest.items())
        assert all(torch.isfinite(value).all() for value in params.values())
        other = Recommender("mlp", D, sequence=sequence).init(4, np.arange(4), np.arange(7), OFFSETS)
        drawn = [n for n in sequence.sizes(D) if not n.endswith(("bias", "start", "norm.weight")) or "put.bias" in n]
        assert drawn and not any(torch.equal(params[name], other[name]) for name in drawn)


RANK, RATING = parse_task("rank"), parse_task("rating")
RECIPE = Recipe(1, 3, Optimiser("adam", 0.01), num_negatives=2)


def small() -> ClientData:
    """Return a client with three users; the times of user 0 run backwards."""
    train = interactions([(0, 1), (0, 3), (1, 2), (0, 5), (1, 4), (2, 0)], rating=[4, 3, 5, 2, 1, 4])
    train = replace(train, time=np.array([9, 5, 0, 1, 2, 3]))
    return client(train, interactions([(0, 2), (1, 0)]), interactions([(0, 6), (2, 1)]), users=3, items=7)


def test_a_batch_has_the_history_of_its_rows_and_its_users_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data, model, seen, calls = small(), made(GRU), {}, []
    users = Recommender.users

    def counted(self: Recommender, params: Params, user: Tensor, history: Tensor | None = None) -> Tensor:
        calls.append(len(user))
        return users(self, params, user, history)

    monkeypatch.setattr(Recommender, "users", counted)

    def look(params: Params, batch: Batch, _: object) -> Tensor:
        assert batch.history is not None
        for user, item, history in zip(batch.user.tolist(), batch.item.tolist(), batch.history.tolist(), strict=True):
            seen[user, item] = history
        return torch.zeros(())

    local_update(model, noisy(model), data, (RANK, RATING), RECIPE, Sharing(()), seed=0, scope=("x",), pull=look)
    x = -1
    assert seen == {
        (0, 5): [x, x, x, x], (0, 3): [x, x, x, 5], (0, 1): [x, x, 5, 3],
        (1, 2): [x, x, x, x], (1, 4): [x, x, x, 2], (2, 0): [x, x, x, x],
    }  # fmt: skip
    assert calls == [3, 3]  # two batches of three rows, each with two sampled items


def test_the_held_out_loss_reads_what_was_liked_in_training_and_the_test_is_read_by_nothing() -> None:
    data, model = small(), made(GRU)
    params = noisy(model)
    loss = held_out_loss(model, params, data, (RANK,), RECIPE, seed=0)
    bound = replace(model, side=Side(history=torch.tensor([[-1, 5, 3, 1], [-1, -1, 2, 4], [-1, -1, -1, 0]])))
    held, rng = replace(data, train=data.validation), generator(0, "held out", data.name)
    (batch,) = batches(held, (RANK,), RECIPE, rng, avoided=data)
    with torch.no_grad():
        assert loss == pytest.approx(float(task_losses(bound, params, (RANK,), batch)[0]), rel=1e-5)
    other = replace(data, test=interactions([(0, 4), (2, 3)]))
    assert held_out_loss(model, params, other, (RANK,), RECIPE, seed=0) == loss
    update = [
        local_update(model, params, one, (RANK,), RECIPE, Sharing(()), seed=0, scope=("x",))[0]
        for one in (data, replace(other, validation=data.test))
    ]
    assert all(torch.equal(update[0][name], update[1][name]) for name in params)


def test_who_is_asked_is_read_from_training_and_for_the_test_from_validation_too() -> None:
    e = experiment(sequence={"kind": "gru4rec", "history": 3})
    data = clients_data(e)[0]
    found = [reader(e, data, split).side.history for split in ("train", "validation", "test")]
    assert found[0] is None
    for history, known in zip(found[1:], ([data.train], [data.train, data.validation]), strict=True):
        assert history is not None
        rows = concatenate(known)  # what is held out of a user comes later than what is not
        whole = [rows.item[rows.positive & (rows.user == user)].tolist() for user in range(len(data.users))]
        assert history.tolist() == [([-1] * 3 + line)[-3:] for line in whole]


CUES = 6


def market(seed: int = 0, taught: int = 240, asked: int = 60) -> ClientData:
    """Return users who all like the same cues, in an order of their own, and then what the last cue leads to.

    Which of the targets 6 to 11 comes next, the last item alone determines; the set of what a user likes, in which MF
    finds its rows, is the same for all. `taught` users have the target in training, `asked` ones in the test.
    """
    rng, leads = np.random.default_rng(seed), CUES + np.roll(np.arange(CUES), 2)
    order = [rng.permutation(CUES) for _ in range(taught + asked)]
    train = [(u, int(i)) for u, cues in enumerate(order) for i in cues]
    ends = [(u, int(leads[cues[-1]])) for u, cues in enumerate(order)]
    rows = interactions(sorted(train + ends[:taught], key=lambda pair: (pair[0], pair[1] >= CUES)))
    return client(rows, None, interactions(ends[taught:]), users=taught + asked, items=2 * CUES)


@pytest.mark.parametrize("kind", ["none", "gru4rec", "sasrec"])
def test_what_the_last_item_determines_encoders_learn_and_matrix_factorisation_cannot(kind: str) -> None:
    data, e = market(), experiment(sequence={"kind": kind, "history": 4, "blocks": 1}, dim=16)
    model = reader(e, data, "train")
    recipe = Recipe(25, 128, Optimiser("adam", 0.01), num_negatives=2)
    params = model.init(0, data.users, data.items, {"rank": 0.0})
    params, _ = local_update(model, params, data, (RANK,), recipe, Sharing(()), seed=0, scope=("x",))
    scorer = ModelScorer(reader(e, data, "test"), params)
    found = evaluate(scorer, data, (RANK,), "test", metrics=["hr@1"], candidates="full", seed=0)
    hit = found.metrics["films", "rank", "hr@1"]
    # Chance is one of six: of 60 users at most 20 by chance, but for 1 in 1,000 cases.
    assert hit <= 20 / 60 if kind == "none" else hit >= 0.9


def words(kind: str, method: str, engine: str, *more: str) -> list[str]:
    text = f"--sequence.kind {kind} --sequence.history 5 --method {method} --engine {engine} --clients 2 --rounds 2"
    same_for_all = "--local-epochs 1 --dim 4 --device cpu --no-compare --quiet"
    workers = ["--workers", "2"] if engine == "process" and method != "pooled" else []
    return [*text.split(), *same_for_all.split(), *workers, *more]


@pytest.mark.parametrize(("kind", "method"), [("gru4rec", "admm"), ("sasrec", "pooled")])
def test_worker_processes_give_the_result_of_one_process_to_the_bit_and_recommend(
    kind: str, method: str, tmp_path: Path
) -> None:
    for engine in ("inline", "process"):
        assert main(words(kind, method, engine, "--out", str(tmp_path / engine))) == 0
    for name in ("clients.csv", "ledger.csv"):
        assert (tmp_path / "inline" / name).read_text() == (tmp_path / "process" / name).read_text()
    e = experiment_of(tmp_path / "process")
    part = clients_data(e)[0]
    data = part.members[0] if part.members else part
    row = int(data.test.user[0])
    key = str(dataset(e).users["key"].to_numpy()[data.users[row]])
    made = recommend(tmp_path / "process", data.name, key, 3)
    assert len(made.items) == 3 and np.isfinite(made.scores).all()
    liked = [part.item[(part.user == row) & part.positive] for part in data.known("test")]
    assert not set(made.items.tolist()) & set(data.items[np.concatenate(liked)].tolist())


GRID = [
    ("gru4rec", "fedavg", "mlp"),
    ("sasrec", "fedrep", "mmoe"),
    ("gru4rec", "ditto", "mf"),
    ("sasrec", "apfl", "mlp"),
    ("sasrec", "admm", "ple"),
    ("gru4rec", "pooled", "mf"),
    ("sasrec", "local", "mf"),
    ("gru4rec", "cagrad", "mf"),
    ("gru4rec", "no-harm", "mf"),
    ("sasrec", "pfedrec", "mf"),
    ("gru4rec", "median", "mlp"),
]


@pytest.mark.parametrize(("kind", "method", "model"), GRID)
def test_encoders_train_with_every_body_and_method(kind: str, method: str, model: str) -> None:
    sequence = {"kind": kind, "history": 4, "blocks": 1}
    task = "rank" if method == "no-harm" else "rank,rating"
    e = experiment(method, model=model, sequence=sequence, task=task, local_epochs=1, lr=0.02)
    record, grid = fit(e)
    losses = [float(row["train_loss"]) for row in record.rounds if "train_loss" in row]
    assert losses[-1] < losses[0]
    assert all(math.isfinite(float(row["value"])) for row in record.clients if row["metric"] != "excess")
    travelled = {name for m in grid.received for record in m.content.array_records.values() for name in record}
    assert not any(name.startswith("user") for name in travelled)
    if method not in ("pooled", "local", "pfedrec"):
        assert any("sequence.start" in name for name in travelled)


class Killed(Exception):
    """Ends a run at once, as if the process had been killed."""


def test_the_items_of_a_history_are_read_with_their_content_and_tasks_about_items_stand_beside() -> None:
    fields: dict[str, Any] = {
        "content": {"kind": "hashed", "dim": 8, "dropout": 0.3},
        "sequence": {"kind": "sasrec", "history": 4},
    }
    e = experiment(local_epochs=1, **fields)
    data = clients_data(e)[0]
    model = reader(e, data, "test")
    params = model.init(0, data.users, data.items, {"rank": 0.0})
    user = torch.from_numpy(np.unique(data.test.user))
    other = params | {"adapter.item_table": params["adapter.item_table"].flip(0)}
    assert model.side.history is not None
    read = (model.users(params, user) != model.users(other, user)).any(1)
    assert read.tolist() == (model.side.history[user, -1] >= 0).tolist()
    for one in (e, experiment(task="rank,category", local_epochs=1, sequence=fields["sequence"])):
        record, _ = fit(one)
        assert all(math.isfinite(float(row["value"])) for row in record.clients)


def test_a_run_that_was_broken_off_goes_on_to_the_same_end(tmp_path: Path) -> None:
    def on_round(row: Row) -> None:
        if row["round"] == 2:
            raise Killed

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for home in (whole, broken):
        home.mkdir()
    e = experiment(sequence={"kind": "gru4rec", "history": 5}, rounds=3, local_epochs=1)
    launch(e, whole)
    with pytest.raises(Killed):
        launch(e, broken, on_round=on_round, every=1)
    launch(e, broken, every=1)
    same(whole, broken)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"model": "mf;shop=item"},
            r"sequence.kind: sasrec needs a user side, but .* \(add --model mf\), found model item",
        ),
        ({"dim": "4;shop=6"}, "sequence.kind: sasrec needs a width that its heads divide .*, found dim 6"),
        (
            {"weights": "uniform", "privacy": {"epsilon": "4", "unit": "interaction", "rate": 0.5}},
            r"sequence.kind: sasrec needs rows whose items others read .*, found privacy.unit interaction",
        ),
        (
            {"share": (), "agreement": {"items": 5}, "volunteers": 9, "coupling": {"rho": 0.1}},
            "agreement.items: 5 needs a score of any user and item.*, found sequence.kind sasrec",
        ),
        ({"sequence": {"kind": "bert4rec"}}, "sequence.kind: input should be 'none', 'gru4rec' or 'sasrec'"),
        ({"sequence": {"kind": "sasrec", "history": 0}}, "sequence.history: .* greater than or equal to 1"),
    ],
)
def test_what_knows_no_histories_is_refused_with_the_reason(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check(experiment(**{"sequence": {"kind": "sasrec", "heads": 4}, **fields}))


def test_one_pooled_client_is_nothing_to_stack_whatever_its_users_are_read_from(tmp_path: Path) -> None:
    e = experiment("pooled", sequence={"kind": "gru4rec", "history": 4}, rounds=1, local_epochs=1)
    for engine in ("inline", "batched"):
        (tmp_path / engine).mkdir()
        launch(e.model_copy(update={"engine": engine}), tmp_path / engine)
    same(tmp_path / "inline", tmp_path / "batched", but=["engine"])
    check(build({**e.model_dump(), "engine": "batched"}))
