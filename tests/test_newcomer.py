"""Newcomers: taught by a running federation of which nothing changes, not a bit, whatever becomes of them."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from clients.client import Client
from clients.home import HOME
from clients.node import Node
from clients.recommend import params_of
from clients.round import receive
from fedrec.errors import UserError
from fedrec.experiment.channel import LOGITS, Logits, channel_of
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, initial
from fedrec.experiment.records import Record, load_params, table_of, write_record
from fedrec.federation.coordination import Coupling
from fedrec.federation.participation import arrivals
from fedrec.keyed import CHUNK
from fedrec.params import Params, norm, subtract
from fedrec.sharing import Broadcast, ContractError
from fedrec.training.local import local_update
from fedrec.wire import Call, call_record, read_call
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.check import check
from simulations.engines import launch
from simulations.engines.local import SERVER_NODE
from simulations.engines.nodes import each_alone
from simulations.run import main
from tests.helpers import FAULTS, FaultyGrid, SpyGrid, experiment, fit, same
from tests.letters import broadcast_record, contribution_record, read_broadcast, read_contribution, state_of
from tests.test_cohorts import HostGrid
from tests.test_resume import Killed, into, until
from tests.test_strategy import Scripted, ScriptedGrid, coordinator

NEW = "news"


def late(method: str = "fedper", **fields: Any) -> Experiment:
    """Return a run of three platforms that the last one joins in round 3 of 4."""
    return experiment(method, **{"rounds": 4, "newcomers": f"{NEW}=3", **fields})


def nodes_of(grid: SpyGrid) -> dict[str, Node]:
    """Return every client's node by its name."""
    found = {}
    for reply in grid.received[: len(grid.nodes)]:  # those to the joining
        found[read_contribution(reply.content).client] = grid.nodes[reply.metadata.src_node_id]
    return found


def private(node: Node, best: bool = False) -> Params:
    """Return a client's private parameters: the present ones, or those of the best round."""
    state = state_of(node)
    return dict((state.best if best else state.now).private)


def without(e: Experiment, *names: str) -> tuple[Record, SpyGrid]:
    """Run an experiment with everybody but some clients, who are not there at all."""
    e = e.model_copy(update={"newcomers": ""})
    grid = SpyGrid(each_alone(e, None))
    for place, data in enumerate(clients_data(e)):
        if data.name in names:
            del grid.nodes[SERVER_NODE + 1 + place]
    return Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids())), grid


def unchanged(found: Record, expected: Record) -> None:
    """Assert that a run's result is, to the bit, that of another run for all clients of the latter."""
    drop = {"seconds", "evaluate_seconds", "bytes_down", "bytes_up"}
    for one, other in zip(found.rounds, expected.rounds, strict=True):
        assert {k: repr(v) for k, v in one.items() if k not in drop} == {
            k: repr(v) for k, v in other.items() if k not in drop
        }
    names = {row["client"] for row in expected.clients}
    assert [repr(row) for row in found.clients if row["client"] in names] == [repr(row) for row in expected.clients]
    assert found.selected_round == expected.selected_round
    assert found.shared.keys() == expected.shared.keys()
    assert all(torch.equal(found.shared[name], value) for name, value in expected.shared.items())
    assert all(np.array_equal(found.rows[space], ids) for space, ids in expected.rows.items())


METHODS: dict[str, dict[str, Any]] = {
    "fedper": {},
    "fedrep": {"participation": 0.5, "dropout": "0.3", "quorum": 0.0, "eval_every": 3},
    "fedavg": {"weights": "uniform", "task": "rank,click;news=rank,buy"},
    "median": {},
    "fedadam": {"weighting": {"kind": "uncertainty"}, "task": "rank,click", "model": "mlp"},
    "fednova": {"patience": 1},
    "agreement": {"volunteers": 20, "model": "mf;shop=mlp"},
}


@pytest.mark.parametrize("method", METHODS)
def test_for_the_others_it_is_as_if_a_newcomer_were_not_there(method: str) -> None:
    e = late(method, **METHODS[method])
    found, grid = fit(e)
    expected, other = without(e, NEW)
    unchanged(found, expected)
    mine, theirs = nodes_of(grid), nodes_of(other)
    assert mine.keys() == {*theirs, NEW}
    for name, context in theirs.items():
        for best in (False, True):
            a, b = (private(one, best) for one in (mine[name], context))
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), f"{name}: {best}"
    tests = [row for row in found.clients if row["client"] == NEW and row["split"] == "test"]
    assert len(tests) >= 2 and all(math.isfinite(float(row["value"])) for row in tests)
    assert not found.faults or method == "fedrep"


MANY: dict[str, Any] = {
    "partition": "one-user",
    "clients": CHUNK + 6,
    "market": {"users": CHUNK + 6, "items": 30, "impressions": 6},
    "rounds": 2,
}


def test_newcomers_do_not_shift_the_chunks_in_which_a_mean_is_summed() -> None:
    first = sorted(int(data.name.removeprefix("user-")) for data in clients_data(experiment(**MANY)))[:2]
    names = [f"user-{number}" for number in first]
    e = experiment(**MANY, newcomers=";".join(f"{name}=1" for name in names))
    expected = without(e, *names)[0]
    unchanged(fit(e)[0], expected)
    grid = HostGrid(e, [CHUNK + 2, 4])
    unchanged(Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids())), expected)


def broadcasts(grid: SpyGrid, name: str) -> list[tuple[str, Broadcast]]:
    """Return what a client was sent after it joined: the kind of each message and the broadcast."""
    every = nodes_of(grid)
    names = {number: name for number, node in grid.nodes.items() for name, one in every.items() if one is node}
    mine = [one for one in grid.sent if names[one.metadata.dst_node_id] == name]
    return [(m.metadata.message_type, read_broadcast(m.content)) for m in mine if "config" in m.content.config_records]


@pytest.mark.parametrize("method", ["fedper", "agreement"])
def test_a_newcomer_is_asked_from_its_round_on_and_sends_no_tensor(method: str) -> None:
    e = late(method, volunteers=20 * (method == "agreement"))
    record, grid = fit(e)
    sent = [(kind, one.round) for kind, one in broadcasts(grid, NEW)]
    assert sent == [("train", 3), ("evaluate", 3), ("train", 4), ("evaluate", 4), ("evaluate", record.selected_round)]
    assert not any(one.rows for name in ("films", "shop") for _, one in broadcasts(grid, name))
    answers = [read_contribution(one.content) for one in grid.received[3:]]
    mine = [one for one in answers if one.client == NEW]
    assert len(mine) == len(sent) and not any(one.values or one.rows for one in mine)
    up = [row for row in record.ledger if (row["client"], row["direction"]) == (NEW, "up") and row["round"]]
    assert {row["parameter"] for row in up} == {"metrics"}
    down = {row["parameter"] for row in record.ledger if (row["client"], row["direction"]) == (NEW, "down")}
    assert down == ({LOGITS, "rows:probe"} if method == "agreement" else {"item_table", "item_bias", "rows:item"})


def test_what_it_shares_is_the_federations_and_what_nobody_else_carries_it_trains(tmp_path: Path) -> None:
    e = late("fedper", task="rank;news=click", share="all-but-users")
    record, grid = fit(e, tmp_path)
    (data,) = (one for one in clients_data(e) if one.name == NEW)
    mine = load_params(tmp_path / "model" / f"own-{NEW}.safetensors")
    common = np.isin(data.items, record.rows["item"])
    places = torch.from_numpy(np.searchsorted(record.rows["item"], data.items[common]))
    start = initial(e, e.recommender(NEW), data.users, data.items, {"click": 0.0})
    for name in ("item_table", "item_bias"):
        assert torch.equal(mine[name][common], record.shared[name][places]), name
        assert (mine[name][~common] != start[name][~common]).any(1).all(), f"{name}: rows of its own must be trained"
        assert torch.equal(mine[name][~common], private(nodes_of(grid)[NEW], best=True)[f"{HOME}{name}"])
    assert 0 < common.sum() < len(common)
    # Nobody else has its head, which is shared by name: it is its own as well.
    assert {name for name in mine if name.startswith("heads")} == {"heads.click.weight", "heads.click.bias"}
    assert not torch.equal(mine["heads.click.weight"], start["heads.click.weight"])
    assert "heads.click.weight" not in record.shared
    told = "; ".join(record.notes)
    assert f"{(~common).sum()} of its {len(common)} rows of item_table are carried by no other client" in told
    assert "news: no other client has heads.click.weight, which it trains by itself" in told
    saved = params_of_run(e, record, tmp_path)
    assert all(torch.equal(saved[name], mine[name]) for name in mine)


def params_of_run(e: Experiment, record: Record, home: Path) -> Params:
    """Return what recommendations of the newcomer are made with, from the files of its run."""
    write_record(home, record, e.model_dump(mode="json"))
    return params_of(home, e, next(one for one in clients_data(e) if one.name == NEW))


def test_it_is_taught_the_best_of_every_round_and_keeps_what_it_likes_best_on_it() -> None:
    # The others score best in round 2; the newcomer likes round 3 on the Z of round 2, then round 5 on that of round 5.
    others = {1: 0.1, 2: 0.5, 3: 0.4, 4: 0.3, 5: 0.6, 6: 0.2}
    mine = {2: 0.5, 3: 0.9, 4: 0.8, 5: 0.2, 6: 0.1}
    ids = table_of([1, 2, 7])
    clients = [Scripted("films", scores=others), Scripted("new", ids, scores=mine, step=math.nan)]
    grid = ScriptedGrid(clients, alter=silent)
    made = coordinator(grid, rounds=6, newcomers={"new": 2})
    record = made.fit(list(grid.get_node_ids()))
    sent = broadcasts(grid, "new")
    taught = {(kind, one.round, one.split): one for kind, one in sent}
    # Scripted clients add 1 in every round: the value tells the round.
    stands = {number: float(taught["train", number, "validation"].values["body.0.bias"]) for number in range(2, 7)}
    assert stands == {2: 2.0, 3: 2.0, 4: 2.0, 5: 5.0, 6: 5.0}
    keep = [(kind, one.round) for kind, one in sent if one.keep]
    assert keep == [("train", 3), ("train", 4), ("train", 6)]
    assert (record.selected_round, float(taught["evaluate", 5, "test"].values["body.0.bias"])) == (5, 5.0)
    assert taught["train", 2, "validation"].rows["item"].tolist() == [1]
    assert torch.equal(taught["train", 2, "validation"].values["item_table"], torch.full((1, 2), 2.0))
    assert [row["client"] for row in record.clients if row["split"] == "test"] == ["films", "new"]


def silent(message: Message, reply: Message) -> Message:
    """Return the answers of scripted clients, of the newcomer without tensors."""
    found = read_contribution(reply.content)
    if message.metadata.message_type == "train" and found.client == "new":
        return Message(contribution_record(replace(found, values={})), reply_to=message)
    return reply


@pytest.mark.parametrize("fault", ["extra", "metric", "name", "raised", "silence"])
def test_a_newcomer_that_fails_takes_nothing_from_the_others(fault: str) -> None:
    e = late()
    grid = FaultyGrid(e, {(NEW, kind, n): FAULTS[fault] for kind in ("train", "evaluate") for n in (3, 4)})
    found = Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids()))
    assert len(grid.injected) >= 2
    unchanged(found, without(e, NEW)[0])
    assert {row["client"] for row in found.faults} == {NEW}
    assert not [row for row in found.clients if row["client"] == NEW and row["split"] != "test"]
    assert "news was to join in round 3, and has not trained" in found.notes


def test_a_newcomer_goes_back_to_the_state_before_a_lost_answer() -> None:
    e = late(rounds=5)
    grid = FaultyGrid(e, {(NEW, "train", 4): FAULTS["silence"]})
    Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids()))
    seen = [one.seen for kind, one in broadcasts(grid, NEW) if kind == "train"]
    assert grid.injected == [(NEW, "train", 4)] and seen == [0, 3, 3]


def test_a_run_that_ends_before_a_newcomers_round_says_so() -> None:
    e = late(rounds=4)
    grid = SpyGrid(each_alone(e, None))
    record = Coordinator(grid, plan_of(e), stop=lambda: True).fit(list(grid.get_node_ids()))
    assert len(record.rounds) == 1 and not [row for row in record.clients if row["client"] == NEW]
    assert "news was to join in round 3, and has not trained" in record.notes


@pytest.mark.parametrize("method", ["fedper", "agreement"])
def test_a_run_that_is_broken_off_ends_as_if_it_had_not_been(method: str, tmp_path: Path) -> None:
    e = late(method, volunteers=20 * (method == "agreement"))
    whole, broken = into(tmp_path / "whole", e), tmp_path / "broken"
    for number in (2, 4):
        with pytest.raises(Killed):
            into(broken, e, on_round=until(number), every=1)
    same(whole, into(broken, e, every=1))


def test_worker_processes_give_the_same_result_to_the_bit(tmp_path: Path) -> None:
    inline = into(tmp_path / "inline", late())
    processes = tmp_path / "process"
    processes.mkdir()
    launch(late(engine="process", workers=2), processes)
    same(inline, processes, but=("engine", "workers"))


def test_a_run_with_its_baselines_its_report_and_its_recommendations(tmp_path: Path) -> None:
    argv = "--clients 3 --rounds 3 --dim 4 --engine inline --newcomers news=2 --checkpoint-every 0 --quiet"
    assert main([*argv.split(), "--out", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "news in round 2. They trained only what is private" in page
    assert "rows of item_table are carried by no other client; it trains them by itself" in page
    for method in ("local", "pooled"):
        clients = (tmp_path / "run" / "baselines" / method / "clients.csv").read_text()
        assert "1,news,validation" in clients, "alone and pooled have everybody from the first round on"


def test_consensus_logits_teach_a_newcomer_where_others_answer_too() -> None:
    e = late("agreement", volunteers=20, newcomers=f"{NEW}=1", rounds=2)
    (data,) = (one for one in clients_data(e) if one.name == NEW)
    channel = channel_of(e, data)
    assert isinstance(channel, Logits)

    def gap(rho: float) -> float:
        """Return the mean squared distance of the newcomer's logits from the consensus."""
        record, grid = fit(e.model_copy(update={"coupling": Coupling(rho=rho)}))
        common = np.isin(channel.ids, record.rows["probe"])
        assert 0 < common.sum() < len(common)
        z = record.shared[LOGITS][torch.from_numpy(np.searchsorted(record.rows["probe"], channel.ids[common]))]
        x = channel.split(private(nodes_of(grid)[NEW]))[0][LOGITS]
        return float((x[torch.from_numpy(common)] - z).square().mean())

    assert gap(1e-2) < 0.5 * gap(1e-9)


@pytest.mark.parametrize("optimiser", ["adam", "sgd", "adagrad"])
def test_only_the_rows_of_a_mask_are_trained_beside_the_private_part(optimiser: Any) -> None:
    e = late(optimiser=optimiser)
    data = clients_data(e)[0]
    model, tasks = e.recommender(data.name), e.tasks(data.name)
    start = model.init(0, data.users, data.items, {"rank": 0.0})
    mask = (torch.arange(len(data.items)) % 2).reshape(-1, 1).expand_as(start["item_table"]).float()
    recipe = replace(e.recipe(), phases=("private",))

    def trained(own: Mapping[str, torch.Tensor] | None) -> Params:
        return local_update(model, start, data, tasks, recipe, e.sharing(), seed=0, scope=("x",), own=own)[0]

    found, frozen = trained({"item_table": mask}), trained(None)
    moved = (found["item_table"] != start["item_table"]).any(1)
    assert moved[1::2].float().mean() > 0.9 and not moved[::2].any()
    assert torch.equal(found["item_bias"], start["item_bias"])
    assert torch.equal(frozen["item_table"], start["item_table"])
    assert norm(subtract(found, frozen)) > 0 and not torch.equal(frozen["user_table"], start["user_table"])


def test_row_ids_travel_with_a_broadcast() -> None:
    rows = {"item": table_of([3, 7])}
    values = {"item_table": torch.ones(2, 1)}
    one, other = Broadcast(4, values, rows=rows), Broadcast(4, values)
    assert read_broadcast(broadcast_record(one, "a")).rows["item"].tolist() == [3, 7]
    assert not read_broadcast(broadcast_record(other, "a")).rows
    content = call_record(Call({"a": one, "b": other, "c": replace(one)}))
    found = read_call(content).broadcasts
    assert {n: one.rows["item"].tolist() for n, one in found.items() if one.rows} == {"a": [3, 7], "c": [3, 7]}
    assert len([name for name in content if name.startswith("rows.")]) == 1


@pytest.mark.parametrize(
    ("client", "change", "text"),
    [
        (NEW, {"rows": {"item": table_of([10**6])}}, r"^rows item: must be among the \d+ that the client carries"),
        (NEW, {"rows": {"item": table_of([5, 3])}}, "^rows item: must be non-negative and strictly ascending"),
        (NEW, {"rows": {"user": table_of([0])}}, "^item_table: must have shape"),
        (NEW, {"values": {"user_table": torch.ones(2, 4)}}, "^user_table: must be a shared parameter"),
        ("films", {"rows": {"item": table_of([0])}}, "^record rows: must not be sent but to newcomers, found item"),
    ],
)
def test_a_client_takes_no_rows_that_are_not_its_own(client: str, change: dict[str, Any], text: str) -> None:
    e = late()
    (data,) = (one for one in clients_data(e) if one.name == client)
    one = Client(e, data, "cpu", None)
    good = {"item_table": torch.ones(1, 4), "item_bias": torch.ones(1, 1)}
    sent = Broadcast(1, good, rows={"item": data.items[:1]})
    if client == NEW:
        assert torch.equal(receive(one, sent).values["item_table"][0], torch.ones(4))
    with pytest.raises(ContractError, match=text):
        receive(one, replace(sent, **change))


@given(st.dictionaries(st.text(st.characters(exclude_characters=";"), min_size=1), st.integers(1, 99), max_size=4))
def test_the_rounds_of_newcomers_are_read_as_they_are_written(rounds: dict[str, int]) -> None:
    text = ";".join(f"{name}={number}" for name, number in rounds.items())
    assert arrivals(text) == arrivals(text, 100) == rounds


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "grammar": ({"newcomers": "news"}, r"newcomers: must be clients and rounds such as .*, found 'news'"),
    "minus": ({"newcomers": "news=-1"}, "newcomers: must be clients and rounds"),
    "twice": ({"newcomers": "news=1;news=2"}, "newcomers: must name a client once, found news twice"),
    "round 0": ({"newcomers": "news=0"}, "newcomers: must join in a round from 1 to 3, found news=0"),
    "too late": ({"newcomers": "news=4"}, "newcomers: must join in a round from 1 to 3, found news=4"),
    "nobody": ({"newcomers": "new=2"}, "newcomers: .*did you mean 'news'"),
    "everybody": ({"newcomers": "films=1;shop=1;news=1"}, "newcomers: must leave a client for them to join"),
    "local": ({"method": "local"}, "newcomers: .* needs something that clients exchange.* found share nothing"),
    "pooled": ({"method": "pooled", "share": "item_table"}, "newcomers: .* found pool True"),
    "admm": ({"method": "admm"}, "coupling.duals: .* found newcomers news=3"),
    "mr-mtl": (
        {"method": "mr-mtl"},
        "coupling.kind: mean-regularised needs a server that remembers .* found newcomers news=3",
    ),
    "radius": ({"coupling": {"radius": 1.0}}, "coupling.radius: .* found newcomers news=3"),
    "scaffold": ({"method": "scaffold", "optimiser": "sgd"}, "newcomers: .* found drift.correction scaffold"),
    "ditto": ({"method": "ditto"}, "newcomers: .* found drift.personal ditto"),
    "secure": ({"secure": {"active": True}}, "newcomers: .* found secure.active"),
    "privacy": ({"privacy": {"epsilon": "5", "unit": "user"}, "weights": "uniform"}, "newcomers: .* found privacy"),
    "stacked": ({"engine": "process", "stack": "yes"}, "newcomers: .* found engine process with stack yes"),
    "stack": ({"engine": "process", "stack": "yes"}, "newcomers: .* found engine process with stack yes"),
    "dropout": ({"dropout": "3:news"}, "dropout: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_hold_is_refused_with_the_reason(case: str) -> None:
    fields, text = REFUSED[case]
    method = fields.get("method", "fedper")
    with pytest.raises(UserError, match=text):
        check(late(method, **{name: value for name, value in fields.items() if name != "method"}))
