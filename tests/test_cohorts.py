"""Nodes that host cohorts: the same result as clients alone, and nothing taken on trust."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from clients.app import clients_of
from clients.node import Node
from fedrec.experiment.config import Experiment
from fedrec.experiment.records import Record
from fedrec.keyed import CHUNK, Subtotal, carrier, catalogue, gather, mean, mean_of, sums
from fedrec.rng import generator
from fedrec.sharing import Broadcast, ContractError, Contribution
from fedrec.wire import Answers, Call, answers_record, call_record, read_answers, read_call
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.engines.inline import InlineGrid
from simulations.engines.slots import in_order
from tests.helpers import experiment, fit


class HostGrid(InlineGrid):
    """A grid whose nodes have several clients; `spoil` may change what they answer."""

    def __init__(self, e: Experiment, sizes: list[int], hosts: bool = True) -> None:
        starts, order = np.cumsum([0, *sizes]), in_order(e)
        super().__init__([Node(clients_of(e, None, order[a:b])) for a, b in pairwise(starts)], hosts)
        self.answered: list[RecordDict] = []

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        content = self.spoil(reply.content)
        self.answered.append(content)
        return Message(content, reply_to=message)

    def spoil(self, content: RecordDict) -> RecordDict:
        return content


def hosted(e: Experiment, sizes: list[int]) -> tuple[Record, HostGrid]:
    grid = HostGrid(e, sizes)
    return Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids())), grid


def equal(a: Record, b: Record) -> None:
    drop = {"seconds", "evaluate_seconds"}
    for x, y in zip(a.rounds, b.rounds, strict=True):
        assert {k: repr(v) for k, v in x.items() if k not in drop} == {
            k: repr(v) for k, v in y.items() if k not in drop
        }
    assert [repr(row) for row in a.clients] == [repr(row) for row in b.clients]
    assert [repr(row) for row in a.ledger] == [repr(row) for row in b.ledger]
    assert all(torch.equal(a.shared[name], b.shared[name]) for name in a.shared)


MANY: dict[str, Any] = {
    "partition": "one-user",
    "clients": 150,
    "market": {"users": 150, "items": 30, "impressions": 6},
    "rounds": 2,
}


def test_sums_of_chunks_leave_the_result_the_same_to_the_bit() -> None:
    e = experiment(**MANY)
    found, grid = hosted(e, [128, 22])
    equal(found, fit(e)[0])
    training = [read_answers(content) for content in grid.answered if "sum.0" in content]
    assert [len(part.clients) for one in training[:2] for part in one.subtotals] == [CHUNK, CHUNK, 22]
    assert not any(reply.values for one in training for reply in one.contributions), "summed, and yet sent"


@pytest.mark.parametrize("method", ["admm", "median", "fednova"])
def test_where_rows_are_needed_hosts_send_every_clients_own(method: str) -> None:
    e = experiment(method)
    found, grid = hosted(e, [2, 1])
    equal(found, fit(e)[0])
    assert not any("sum.0" in content for content in grid.answered)


def test_dropouts_and_partial_participation_under_sums() -> None:
    e = experiment(**MANY, participation=0.5, dropout="0.2", quorum=0.0)
    found, grid = hosted(e, [64, 64, 22])
    equal(found, fit(e)[0])
    # A second sum of a chunk, begun behind a client that drops out, would differ from the whole in the last bits.
    training = [read_answers(content) for content in grid.answered if "sum.0" in content]
    assert training and all(len(one.subtotals) == 1 for one in training)


@given(st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=1, max_size=9), st.integers(0, 9))
def test_the_mean_of_sums_is_the_mean(catalogues: list[set[int]], seed: int) -> None:
    rng = generator(seed, "sums")
    rows = [{"item": np.array(sorted(ids))} for ids in catalogues]
    server = catalogue(rows)
    values = [{"item_table": torch.from_numpy(rng.standard_normal((len(r["item"]), 2), np.float32))} for r in rows]
    names = [f"c{i}" for i in range(len(rows))]
    carriers = {
        n: carrier(n, v, r, server, float(rng.uniform(0.5, 2))) for n, v, r in zip(names, values, rows, strict=True)
    }
    z = {"item_table": torch.zeros(len(server["item"]), 2)}
    answers = dict(zip(names, values, strict=True))
    parts = sums(answers, {n: gather(z, carriers[n]) for n in names}, carriers)
    expected = mean([(carriers[n], answers[n]) for n in names], z)
    assert torch.allclose(mean_of(parts, carriers, z)["item_table"], expected["item_table"], atol=1e-6)
    gap = sum(float(v["item_table"].double().square().sum()) for v in values)
    assert sum(part.gap for part in parts) == pytest.approx(gap)


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=5)


@given(st.dictionaries(NAMES, st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=6))
def test_a_call_comes_back_as_it_was(about: dict[str, tuple[bool, int, int]]) -> None:
    distinct = [{"a": torch.full((2,), float(k))} for k in range(3)]
    sent = Call(
        {name: Broadcast(4, distinct[k], keep, "test", 0.5, seen) for name, (keep, seen, k) in about.items()},
        {name: (k, 0.25) for name, (_, _, k) in about.items() if k},
    )
    content = call_record(sent)
    found = read_call(content)
    assert found.chunks == sent.chunks
    assert list(found.broadcasts) == list(sent.broadcasts)
    for name, broadcast in sent.broadcasts.items():
        other = found.broadcasts[name]
        assert (other.round, other.keep, other.split, other.rho, other.seen) == (
            4,
            broadcast.keep,
            "test",
            0.5,
            broadcast.seen,
        )
        assert torch.equal(other.values["a"], broadcast.values["a"])
    assert len([name for name in content if name.startswith("shared.")]) == len({k for _, _, k in about.values()})


def test_answers_come_back_as_they_were() -> None:
    table = {"item_table": torch.arange(4.0).reshape(2, 2)}
    sent = Answers(
        [
            Contribution("a", table, {"loss": 0.5, "gap": 1.0}, "cpu", {"item": np.array([3, 7])}),
            Contribution("b", {}, {"loss": float("nan")}, "cuda:0"),
        ],
        [Subtotal(("b",), {"item_table": table["item_table"].double()}, 2.5)],
        {"c": "it is broken"},
    )
    found = read_answers(answers_record(sent))
    assert [one.client for one in found.contributions] == ["a", "b"]
    assert [one.device for one in found.contributions] == ["cpu", "cuda:0"]
    assert found.contributions[0].metrics == {"loss": 0.5, "gap": 1.0}
    assert np.isnan(found.contributions[1].metrics["loss"]) and len(found.contributions[1].metrics) == 1
    assert found.contributions[0].rows["item"].tolist() == [3, 7]
    assert found.contributions[1].rows == {}
    assert found.failed == {"c": "it is broken"}
    (part,) = found.subtotals
    assert (part.clients, part.gap, part.values["item_table"].dtype) == (("b",), 2.5, torch.float64)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config", {"client": "alone"}),
        ("config", {"shared": [5, 5]}),
        ("config", {"shared": [-1, 0]}),
        ("config", {"device": ["cpu"]}),
        ("config", {"sums": 2}),
        ("config", {"reason": ["what?"]}),
        ("metrics", {"client": [9], "name": [0], "value": [1.0]}),
        ("of.0", {"gap": float("inf")}),
        ("of.0", {"client": [1.0]}),
    ],
)
def test_a_malformed_answer_is_refused(name: str, change: dict[str, Any]) -> None:
    sent = Answers([Contribution("a", {}, {"loss": 1.0}), Contribution("b", {})], [Subtotal(("a",), {}, 0.0)])
    content = answers_record(sent)
    content[name].update(change)
    with pytest.raises(ContractError):
        read_answers(content)


def spoilt(grid: type[HostGrid]) -> Record:
    e = experiment(**MANY, quorum=0.0)
    made = grid(e, [128, 22])
    return Coordinator(made, plan_of(e)).fit(list(made.get_node_ids()))


class Poisoned(HostGrid):
    """The first sum of the first node is no number."""

    def spoil(self, content: RecordDict) -> RecordDict:
        if "sum.1" in content:
            found = read_answers(content)
            values = {name: value * float("nan") for name, value in found.subtotals[0].values.items()}
            parts = [Subtotal(found.subtotals[0].clients, values, 0.0), *found.subtotals[1:]]
            return answers_record(Answers(found.contributions, parts))
        return content


class Stolen(HostGrid):
    """The second node's sum claims a client of another node."""

    def spoil(self, content: RecordDict) -> RecordDict:
        if "sum.0" in content and "sum.1" not in content:
            found = read_answers(content)
            (part,) = found.subtotals
            other = Subtotal(("user-0", *part.clients[1:]), part.values, part.gap)
            return answers_record(Answers(found.contributions, [other]))
        return content


class Counted(HostGrid):
    """The second node counts entries of what is no sum over users."""

    def spoil(self, content: RecordDict) -> RecordDict:
        if "sum.0" in content and "sum.1" not in content:
            found = read_answers(content)
            (part,) = found.subtotals
            other = replace(part, counts={"item_table": [1] * len(part.clients)})
            return answers_record(Answers(found.contributions, [other]))
        return content


@pytest.mark.parametrize(("grid", "lost"), [(Poisoned, CHUNK), (Stolen, 22), (Counted, 22)])
def test_a_sum_that_breaks_the_contract_counts_for_nobody(grid: type[HostGrid], lost: int) -> None:
    record = spoilt(grid)
    first = [row for row in record.faults if row["round"] == 1]
    assert len(first) == lost
    assert {row["kind"] for row in first} == {"contract"}
    assert record.rounds[0]["clients"] == 150 - lost
    assert all(bool(value.isfinite().all()) for value in record.shared.values())


def test_a_client_alone_may_not_answer_for_a_cohort() -> None:
    e = experiment(rounds=1)
    grid = HostGrid(e, [2, 1], hosts=False)
    record = Coordinator(grid, plan_of(e.model_copy(update={"quorum": 0.0}))).fit(list(grid.get_node_ids()))
    assert [row["text"] for row in record.faults] == ["client: must be one of its own for each node, found 2"]
    assert {row["client"] for row in record.clients} == {"shop"}


def test_one_client_that_fails_does_not_take_its_host_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    e = experiment(**MANY, quorum=0.0)
    grid = HostGrid(e, [150])
    reply = grid.nodes[2].reply

    def failing(kind: str, name: str, sent: Broadcast) -> Contribution:
        if (kind, name) == ("train", "user-70"):
            raise OSError("the phone is off")
        return reply(kind, name, sent)

    monkeypatch.setattr(grid.nodes[2], "reply", failing)
    record = Coordinator(grid, plan_of(e)).fit([2])
    assert {(row["kind"], row["text"]) for row in record.faults} == {("error", "failed: OSError")}
    assert [row["clients"] for row in record.rounds] == [149, 149]
