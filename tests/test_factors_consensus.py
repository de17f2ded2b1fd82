"""Implicit ALS of platforms with the same users: consensus on their factors over Flower, items that stay at home."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array

from clients.recommend import recommend
from clients.round import receive
from fedrec.data.history import sequences
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, keys
from fedrec.experiment.records import Record
from fedrec.models.factors import OWN_FACTORS
from fedrec.models.ials import Tie, begin, item_sums, objective, solve_items, solve_users
from fedrec.models.quadratic import Matrix
from fedrec.models.user_factors import OWN_ITEMS
from fedrec.sharing import Broadcast, ContractError
from simulations.baselines import baseline
from simulations.check import check
from simulations.cli import overrides
from simulations.engines.nodes import each_alone
from tests.helpers import FAULTS, alter, coordinated, experiment, fit, shared_by, shared_names
from tests.letters import read_broadcast

USERS, PLATFORMS = 18, {"films": 9, "music": 7, "shop": 12}  # and how many items each has


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table of platforms with the same users, whose tastes are alike, and items of their own."""
    rng = np.random.default_rng(0)
    tastes, rows = rng.standard_normal((USERS, 3)), []
    for platform, items in PLATFORMS.items():
        scores = tastes @ rng.standard_normal((3, items)) + 0.5 * rng.standard_normal((USERS, items))
        for user in range(USERS):
            best = np.argsort(-scores[user])[:5]
            rows += [(f"u{user}", f"{platform}-{item}", platform) for item in best]
    path = tmp_path_factory.mktemp("aligned") / "table.csv"
    pd.DataFrame(rows, columns=["user", "item", "platform"]).to_csv(path, index=False)
    return path


def small(table: Path, **fields: Any) -> Experiment:
    """Return a small experiment of clients that meet in their users, whose last round counts."""
    usual = {"dataset": "table", "data_dir": table, "model": "ials", "share": "user_factors", "clients": None}
    usual |= {"columns": "user=user,item=item,platform=platform"}
    usual |= {"weights": "uniform", "coupling": {"rho": 0.5, "duals": True}, "local_epochs": 2}
    usual |= {"ials": {"d": 3, "unliked": 0.2, "ridge": 0.05}, "rounds": 4, "eval_every": 4}
    return experiment(**{**usual, **fields})


def liked_by(e: Experiment) -> dict[str, csr_array]:
    """Return what the users of every client like, as ones; all clients have the same users."""
    found = {}
    for data in clients_data(e):
        met = sequences(data, [data.train], e.seed)
        rows = csr_array((np.ones(len(met.item)), met.item, met.start), shape=(len(data.users), len(data.items)))
        found[data.name] = csr_array((rows.toarray() > 0).astype(float))
    return found


class Admm:
    """Consensus on P by ADMM with exact halves of sweeps, written for matrices: P_i, then U_i, then Z."""

    def __init__(self, e: Experiment, lost: tuple[str, int] = ("", 0)) -> None:
        self.liked, names = liked_by(e), [str(key) for key in keys(e)[0][clients_data(e)[0].users]]
        self.z = begin(e.ials, e.seed, names)
        self.v = dict.fromkeys(self.liked, self.z)
        duals = dict.fromkeys(self.liked, np.zeros_like(self.z))
        self.items: dict[str, Matrix] = {}
        self.gaps: list[float] = []
        rho = e.coupling.rho
        for number in range(1, e.rounds + 1):
            squares = 0.0
            for name, liked in self.liked.items():
                if (name, number) == lost:
                    continue
                target = self.z - duals[name]
                y = self.items.get(name, solve_items(e.ials, item_sums(liked, target)))
                for _ in range(e.local_epochs):
                    p = solve_users(e.ials, liked, y, Tie(target, rho))
                    y = solve_items(e.ials, item_sums(liked, p))
                self.items[name], squares = y, squares + float(((p - self.z) ** 2).sum())
                duals[name] = duals[name] + p - self.z
                self.v[name] = p + duals[name]
            self.z = np.mean(list(self.v.values()), 0)
            self.gaps.append(squares**0.5)


def close(record: Record, pure: Admm) -> None:
    found = record.shared[OWN_FACTORS].numpy()
    assert found.dtype == np.float64 and np.abs(pure.z).max() > 0.05  # not the rest that says nothing
    assert np.abs(found - pure.z).max() <= 1e-9 * np.abs(pure.z).max()
    gaps = np.array([float(row["primal_residual"]) for row in record.rounds])
    np.testing.assert_allclose(gaps, np.array(pure.gaps), rtol=1e-9)


def test_rounds_over_flower_are_those_of_the_pure_loop(table: Path) -> None:
    e = small(table)
    check(e)
    users = [data.users.tolist() for data in clients_data(e)]
    assert users == users[:1] * 3 and len({item for data in clients_data(e) for item in data.items}) == 28
    record, _ = fit(e)
    close(record, Admm(e))
    assert record.shared.keys() == {OWN_FACTORS} and not any("changes nothing" in note for note in record.notes)


def test_the_loss_that_is_told_is_the_objective(table: Path) -> None:
    e = small(table, rounds=1, local_epochs=1)
    record, _ = fit(e)
    pure = Admm(e)
    for data in clients_data(e):
        liked = pure.liked[data.name]
        users = pure.v[data.name]  # p = v - u, where u = p - z_0
        users = (users + begin(e.ials, e.seed, [str(key) for key in keys(e)[0][data.users]])) / 2
        expected = objective(e.ials, liked, users, pure.items[data.name]) / len(data.train)
        (found,) = [row["value"] for row in record.clients if row["client"] == data.name and row["metric"] == "loss"]
        assert found == pytest.approx(expected, rel=1e-9)


def test_clients_come_to_agree_where_the_pooled_objective_rests(table: Path) -> None:
    """With every user everywhere and nu = 1 the ridges of the clients add up to those of all items together."""
    e = small(table, rounds=150, eval_every=150, local_epochs=1, coupling={"rho": 1.0, "duals": True})
    record, _ = fit(e)
    gaps = [float(row["primal_residual"]) for row in record.rounds]
    assert gaps[-1] < 1e-4 * gaps[0]
    pure, z = Admm(e), record.shared[OWN_FACTORS].numpy()
    together = csr_array(np.hstack([rows.toarray() for rows in pure.liked.values()]))
    everything = np.vstack(list(pure.items.values()))
    np.testing.assert_allclose(solve_users(e.ials, together, everything), z, atol=1e-4)
    np.testing.assert_allclose(solve_items(e.ials, item_sums(together, z)), everything, atol=1e-4)
    assert np.abs(z).max() > 0.05


def test_a_lost_answer_is_of_a_round_that_never_was(table: Path) -> None:
    e = small(table, dropout="2:shop", rounds=5, eval_every=5)
    record, _ = fit(e)
    pure = Admm(e, ("shop", 2))
    close(record, pure)
    assert np.abs(pure.z - Admm(small(table, rounds=5, eval_every=5)).z).max() > 1e-4


def test_a_first_answer_that_is_lost_leaves_items_to_be_solved_for_anew(table: Path) -> None:
    e = small(table, dropout="1:shop")
    close(fit(e)[0], Admm(e, ("shop", 1)))


def test_item_factors_never_travel(table: Path) -> None:
    record, grid = fit(small(table))
    assert {row["parameter"] for row in record.ledger if row["bytes"]} - {"metrics", "rows:user"} == {OWN_FACTORS}
    arrays = shared_names(grid)
    assert {name.partition(":")[0] for name in arrays} == {OWN_FACTORS}
    sent = [read_broadcast(m.content).values for m in grid.sent if m.metadata.message_type == "train"]
    assert sent and all(values.keys() == {OWN_FACTORS} for values in sent)


def test_one_node_for_all_clients_gives_the_same_bits(table: Path, tmp_path: Path) -> None:
    e = small(table, dropout="2:shop")
    first, second = (
        shared_by(e.model_copy(update={"engine": name}), tmp_path / name) for name in ("inline", "batched")
    )
    assert first == second


@pytest.mark.parametrize("fault", ["shape", "nan", "dtype", "extra", "missing"])
def test_a_hostile_answer_is_refused_and_the_others_count(table: Path, fault: str) -> None:
    change = alter(lambda value: value.float()) if fault == "dtype" else FAULTS[fault]
    e = small(table)
    made, grid = coordinated(e, {("shop", "train", 2): change})
    assert grid.injected == [("shop", "train", 2)]
    assert [row["client"] for row in made.record.faults] == ["shop"]
    close(made.record, Admm(e, ("shop", 2)))


def test_a_hostile_message_of_the_server_is_refused(table: Path) -> None:
    e = small(table)
    node = each_alone(e, None)[0]
    ((_, party),) = node.parties.items()
    with pytest.raises(ContractError, match=r"user_factors: must have shape \[18, 3\]"):
        receive(party.client, Broadcast(1, {OWN_FACTORS: torch.zeros(17, 3, dtype=torch.float64)}))
    with pytest.raises(ContractError, match="item_factors: must be a shared parameter"):
        receive(party.client, Broadcast(1, {OWN_ITEMS: torch.zeros(9, 3, dtype=torch.float64)}))


def test_it_scores_with_the_common_users_of_the_best_round(table: Path, tmp_path: Path) -> None:
    e = small(table, rounds=6, eval_every=1)
    shared_by(e, tmp_path / "run")
    best = int(np.argmax(pd.read_csv(tmp_path / "run" / "rounds.csv")["validation"])) + 1
    assert json.loads((tmp_path / "run" / "experiment.json").read_text())["selected_round"] == best
    pure = Admm(small(table, rounds=best))
    found = recommend(tmp_path / "run", "music", "u3", 3)
    data = next(data for data in clients_data(e) if data.name == "music")
    row = int(np.flatnonzero(keys(e)[0][data.users] == "u3")[0])
    told = pure.z[row] @ pure.items["music"].T
    places = np.searchsorted(data.items, found.items)
    np.testing.assert_allclose(found.scores, told[places], rtol=1e-5)


def test_who_has_no_user_in_common_is_told_that_it_changes_nothing(tmp_path: Path) -> None:
    rows = [(f"{p}{u}", f"{p}-{i}", p) for p in "ab" for u in range(6) for i in range(6) if (u + i) % 2]
    path = tmp_path / "apart.csv"
    pd.DataFrame(rows, columns=["user", "item", "platform"]).to_csv(path, index=False)
    record, _ = fit(small(path, rounds=1, eval_every=1))
    assert "no row of user_factors is carried by two clients: sharing changes nothing" in record.notes


def test_it_is_compared_with_plain_sweeps_alone_and_of_everybody(table: Path) -> None:
    e = small(table)
    for method in ("local", "pooled"):
        other = baseline(e, method)
        check(other)
        assert (other.share, other.model, other.ials) == ((), "ials", e.ials)
        assert not other.coupling.duals and not other.ties_users


def test_the_command_line_ties_by_duals_unless_another_tie_is_given(table: Path, tmp_path: Path) -> None:
    given = {"model": "ials", "share": "user_factors", "dataset": "table", "data-dir": str(table)}
    given["columns"] = "user=user,item=item,platform=platform"
    e = overrides(given)
    assert (e.coupling.rho, e.coupling.duals, e.weights, e.rounds) == (30.0, True, "uniform", 20)
    assert overrides({**given, "method": "admm"}).coupling.rho == 30.0
    assert overrides({**given, "coupling.rho": 3.0}).coupling.rho == 3.0
    assert overrides({**given, "share": "item_sums,sums"}).coupling.rho == 0.0


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"coupling": {}}, "coupling.duals: must be kept"),
        ({"coupling": {"rho": 1.0}}, "coupling.duals: must be kept"),
        (
            {"coupling": {"kind": "clusters", "groups": "films,shop", "rho": 1.0, "duals": True}},
            "steps along gradients",
        ),
        ({"budget": {"margin": 0.1}}, "a proximal tie|duals"),
        ({"secure": {"active": True}}, "users' factors"),
        ({"codec": {"kind": "top-k"}}, "steps along gradients"),
        ({"robust": {"kind": "median"}}, "median"),
        ({"descent": {"optimiser": "adam", "lr": 0.1}}, "the server steps"),
        ({"drift": {"personal": "ditto", "weight": 1.0}}, "clients that start"),
        ({"newcomers": "shop=2"}, "clients that learn and send nothing"),
        ({"split": "new-users"}, "new users have no row"),
        ({"share": "user_factors,item_sums", "coupling": {}}, "its sums to be what is shared"),
        ({"task": "rating"}, "the one task rank"),
        ({"privacy": {"unit": "user", "epsilon": "8"}}, "privacy.unit"),
    ],
)
def test_what_does_not_go_with_it_is_refused(table: Path, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check(small(table, **fields))


@pytest.mark.parametrize(
    ("fields", "path"), [({"lr": 0.5}, "lr"), ({"batch_size": 7}, "batch_size"), ({"l2": 0.5}, "l2")]
)
def test_what_cannot_act_is_refused(table: Path, fields: dict[str, Any], path: str) -> None:
    values = small(table).model_dump() | fields
    with pytest.raises(UserError, match=f"{path}: acts only with"):
        check(build(values))
