"""One client lies: the run ends, and the others' results are to the bit what they are when its answers are lost."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict
from flwr.serverapp import Grid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.app import clients_of
from clients.node import Node
from fedrec import keyed
from fedrec.experiment.config import Experiment
from fedrec.experiment.records import Record
from fedrec.federation import proportion
from fedrec.privacy.encoding import Layout
from fedrec.privacy.secure_sum import Keys
from fedrec.sharing import MODULES, Broadcast, ContractError
from fedrec.wire import Call, call_record, read_call
from fedrec.wire.bundle import bundled, unbundled
from fedrec.wire.secure import (
    SEALED,
    Masked,
    masked_call,
    read_masked,
    read_roster,
    read_unmask,
    roster_call,
    unmask_call,
)
from server import cohorts, faults
from server.faults import LONGEST, ClientFailure
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.engines import InlineGrid
from simulations.engines.nodes import each_alone
from simulations.engines.slots import in_order
from tests.helpers import experiment
from tests.letters import broadcast_record, read_broadcast
from tests.liars import (
    KINDS,
    HostsGrid,
    Lie,
    LyingGrid,
    archive,
    entry,
    header,
    lies,
    raw,
    silence,
    with_array,
    with_config,
    with_metrics,
    with_new,
    with_records,
    wrecks,
)

LIAR = "shop"


def run(method: str, told: Mapping[tuple[str, int], Lie], home: Path | None = None, **fields: Any) -> Record:
    """Run an experiment in which one client lies; return its record."""
    if method == "scaffold":
        fields["optimiser"] = "sgd"
    e = experiment(method, **{"quorum": 0.0, "market": {"users": 40, "items": 60}, **fields})
    grid = LyingGrid(e, LIAR, told, home)
    return Coordinator(grid, plan_of(e, home)).fit(list(grid.get_node_ids()))


@cache
def lost(method: str, kind: str) -> Record:
    """Return the record of the run in which one answer of the liar is lost."""
    return run(method, {(kind, KINDS[kind]): silence})


def honest(record: Record) -> dict[str, Any]:
    """Return all that is of the honest clients, but for the bytes, and for tensors that a liar alone joined with."""
    timing = {"seconds", "evaluate_seconds", "bytes_up", "bytes_down"}
    return {
        "rounds": [[(k, repr(v)) for k, v in row.items() if k not in timing] for row in record.rounds],
        "clients": [[(k, repr(v)) for k, v in row.items()] for row in record.clients],
        "selected": record.selected_round,
        "shared": {n: v.numpy().tobytes() for n, v in record.shared.items() if n.partition(".")[0] in MODULES},
    }


def refused(record: Record) -> list[str]:
    """Return the texts of the faults; what a client wrote is quoted in them shortly and on one line."""
    texts = [str(row["text"]) for row in record.faults]
    assert all(len(text) <= LONGEST and text.isprintable() for text in texts)
    assert all(len(str(row["client"])) <= 255 for row in record.faults)
    return texts


ENDINGS = [1e13, -1e30, 1e38, 3.4e38, 1e8, -1e10]
TRAIN: dict[str, Lie] = {
    **{f"one {value:g}": with_array("item_table", entry(value)) for value in ENDINGS},
    "0-d": with_array("item_table", lambda _: Array(np.asarray(1.0, np.float32))),
    "0-d in name only": with_array("item_table", lambda a: raw(a.data, ())),
    "empty": with_array("item_table", lambda a: Array(np.zeros((0, 4), np.float32))),
    "archive": with_array("item_table", lambda _: raw(archive())),
    "far too short": with_array("item_table", lambda _: raw(header("(100000000000,)"))),
    "device of 10 MB": with_config(device="x" * 10**7),
    "device in HTML": with_config(device="<img src=x onerror=alert(1)>"),
    "device as bytes": with_config(device=b"cpu"),
    "name of 10 MB": with_config(client="shop" * 10**7),
    "loss 1e308": with_metrics(loss=1e308),
    "rows": lambda content: RecordDict({**content, "rows": ArrayRecord({"item": Array(np.arange(4))})}),
    "no content": lambda content: RecordDict(),
    "error of 10 MB": lambda content: Error(code=0, reason="\x1b[2J<b>" * 10**6),
    "metrics of another kind": with_records(metrics=ArrayRecord()),
}


@pytest.mark.parametrize("name", list(TRAIN))
def test_a_lie_in_training_is_refused_and_the_others_do_not_notice(name: str) -> None:
    made = run("fedper", {("train", 1): TRAIN[name]})
    assert [(row["round"], row["client"], row["during"]) for row in made.faults] == [(1, LIAR, "train")]
    assert refused(made)
    assert honest(made) == honest(lost("fedper", "train"))


@pytest.mark.parametrize("method", ["admm", "fednova", "scaffold", "no-harm", "cagrad", "mr-mtl"])
@pytest.mark.parametrize("value", [1e8, 1e38])
def test_a_lie_is_refused_whatever_the_method(method: str, value: float) -> None:
    made = run(method, {("train", 1): with_array("item_table", entry(value))})
    assert [(row["round"], row["client"]) for row in made.faults] == [(1, LIAR)]
    assert honest(made) == honest(lost(method, "train"))


@pytest.mark.parametrize(("method", "metric"), [("fednova", "steps"), ("admm", "gap")])
def test_what_is_told_must_be_in_proportion_too(method: str, metric: str) -> None:
    made = run(method, {("train", 1): with_metrics(**{metric: 2.0**52})})
    assert metric in refused(made)[0]
    assert honest(made) == honest(lost(method, "train"))


JOIN: dict[str, Lie] = {
    **{f"one {value:g}": with_array("item_table", entry(value)) for value in ENDINGS},
    "0-d": with_array("item_table", lambda _: Array(np.asarray(1.0, np.float32))),
    "rows 0-d": with_array("item", lambda _: Array(np.array(3)), "rows"),
    "rows too few": with_array("item", lambda a: Array(a.numpy()[1:]), "rows"),
    "integers": with_array("item_table", lambda a: Array(a.numpy().astype(np.uint16))),
    "name of 10 MB": with_config(client="7" * 10**7),
    "name that clears the screen": with_config(client="\x1b[2J"),
    "a parameter in HTML": with_new("<script>alert(1)</script>"),
    "examples 2**52": with_metrics(examples=2.0**52),
    "examples below 0": with_metrics(examples=-1.0),
}


@pytest.mark.parametrize("name", list(JOIN))
def test_a_lie_at_joining_is_refused_and_the_others_do_not_notice(name: str) -> None:
    made = run("fedper", {("query.join", 0): JOIN[name]})
    assert [(row["round"], row["during"]) for row in made.faults] == [(0, "join")]
    assert refused(made)
    assert honest(made) == honest(lost("fedper", "query.join"))


def test_a_client_that_says_that_it_has_nearly_all_the_data_is_named() -> None:
    made = run("fedper", {("query.join", 0): with_metrics(examples=1e9)})
    assert not made.faults
    assert [note for note in made.notes if note.startswith("shop says that it has 100% of all training rows")]
    assert not [note for note in run("fedper", {}).notes if "says that it has" in note]


EVALUATE: dict[str, Lie] = {
    "beyond 1": with_metrics(**{"shop/rank/ndcg@10": 1.5}),
    "below 0": with_metrics(**{"shop/rank/ndcg@10": -0.5}),
    "1e308": with_metrics(**{"shop/rank/logloss": 1e308}),
    "of another": with_metrics(**{"films/rank/ndcg@10": 0.5}),
    "a name of 10 MB": with_metrics(**{"x" * 10**7: 0.5}),
    "tensors": with_records(shared=ArrayRecord({"item_table": Array(np.ones((3, 3)))})),
}


@pytest.mark.parametrize("name", list(EVALUATE))
def test_a_lie_in_an_evaluation_is_refused(name: str) -> None:
    made = run("fedper", {("evaluate", 1): EVALUATE[name]})
    assert [(row["round"], row["client"], row["during"]) for row in made.faults] == [(1, LIAR, "validation")]
    assert refused(made)
    assert honest(made) == honest(lost("fedper", "evaluate"))


@pytest.mark.soak
def test_random_lies_end_no_run_and_change_nothing_for_the_others(tries: Callable[[int, int], int]) -> None:
    """Whatever a client sends: the run ends, and if it was refused, as if it had sent nothing.

    One that joins under another name is refused later: a client that has joined and is never heard of.
    """
    counts = {"refused": 0, "admitted": 0}

    @settings(max_examples=tries(15, 500), database=None, suppress_health_check=list(HealthCheck), deadline=None)
    @given(lies(), st.sampled_from(list(KINDS)), st.sampled_from(["fedper", "admm", "fednova", "no-harm"]))
    def lie_once(lie: Lie, kind: str, method: str) -> None:
        made = run(method, {(kind, KINDS[kind]): lie})
        assert len(made.rounds) == 2
        refused(made)
        counts["refused" if made.faults else "admitted"] += 1
        if made.faults and (kind != "query.join" or made.faults[0]["during"] == "join"):
            assert honest(made) == honest(lost(method, kind))
        for value in made.shared.values():
            assert bool(value.abs().max() < 1e6)

    lie_once()
    assert counts["refused"] > tries(2, 250)  # most of many, some of few


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two clients be a chunk, so that a host of two adds them up."""
    monkeypatch.setattr(keyed, "CHUNK", 2)


def hosted(grid: Callable[[Experiment], Grid], e: Experiment | None = None, **fields: Any) -> Coordinator:
    """Run an experiment, usually of four clients, on a grid; return its coordinator."""
    e = e or experiment("fedper", **{"clients": 4, "quorum": 0.0, "market": {"users": 40, "items": 60}, **fields})
    made = grid(e)
    coordinator = Coordinator(made, plan_of(e))
    coordinator.fit(list(made.get_node_ids()))
    return coordinator


@pytest.mark.parametrize(
    "name", ["one 1e+08", "one 1e+38", "0-d", "archive", "device in HTML", "loss 1e308", "rows", "no content"]
)
def test_a_host_refuses_before_it_adds_up_what_the_server_refuses(name: str, pairs: None) -> None:
    lie = {("train", 1): TRAIN[name]}
    made = hosted(lambda e: HostsGrid(e, LIAR, lie)).record
    assert [(row["round"], row["client"]) for row in made.faults] == [(1, LIAR)]
    assert refused(made)
    for other in (lie, {("train", 1): silence}):
        assert honest(made) == honest(hosted(lambda e, told=other: LyingGrid(e, LIAR, told)).record)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["one 1e+38", "0-d", "rows too few", "name of 10 MB", "examples 2**52"])
def test_a_host_goes_on_without_a_client_that_lies_at_joining(name: str, pairs: None) -> None:
    lie = {("query.join", 0): JOIN[name]}
    made = hosted(lambda e: HostsGrid(e, LIAR, lie)).record
    assert len(made.faults) == 1 and refused(made)
    assert honest(made) == honest(hosted(lambda e: LyingGrid(e, LIAR, {("query.join", 0): silence})).record)


@pytest.mark.parametrize("value", [1e8, -1e38, float("nan")])
def test_a_broken_sum_is_refused_as_a_whole_with_all_its_clients_named(value: float, pairs: None) -> None:
    def wreck(content: RecordDict) -> RecordDict:
        return cast(RecordDict, with_array("item_table", entry(value), "sum.0")(content))

    made = hosted(lambda e: HostsGrid(e, wrecks={("train", 1): wreck}))
    first = list(made.carriers)
    named = [row["client"] for row in made.record.faults]
    assert len(named) == 2 and {row["kind"] for row in made.record.faults} == {"contract"}
    assert refused(made.record)
    drop = "1:" + ",".join(map(str, named))
    without = hosted(lambda e: HostsGrid(e), dropout=drop)
    assert first == list(without.carriers)
    assert honest(made.record) == honest(without.record)


@pytest.mark.soak
def test_random_messages_of_a_host_end_no_run(tries: Callable[[int, int], int], pairs: None) -> None:
    @settings(max_examples=tries(10, 300), database=None, suppress_health_check=list(HealthCheck), deadline=None)
    @given(wrecks(), st.sampled_from(list(KINDS)))
    def wreck_once(wreck: Lie, kind: str) -> None:
        made = hosted(lambda e: HostsGrid(e, wrecks={(kind, KINDS[kind]): wreck})).record
        refused(made)
        assert len(made.rounds) == 2

    wreck_once()


STAGES = ["query.join", "train.keys", "train.shares", "train.masked", "train.unmask", "evaluate"]


@pytest.mark.soak
def test_random_messages_in_a_secure_sum_end_it_by_name_or_not_at_all(tries: Callable[[int, int], int]) -> None:
    @settings(max_examples=tries(10, 300), database=None, suppress_health_check=list(HealthCheck), deadline=None)
    @given(wrecks(), st.sampled_from(STAGES), st.booleans())
    def wreck_once(wreck: Lie, stage: str, hosts: bool) -> None:
        lie = {(stage, int(stage != "query.join")): wreck}
        try:
            grid = HostsGrid if hosts else LyingGrid
            made = hosted(lambda e: grid(e, LIAR, lie), secure={"active": True}).record
        except ClientFailure as failure:
            assert str(failure).isprintable() and len(str(failure)) < 2000
        else:
            refused(made)
            assert len(made.rounds) == 2

    wreck_once()


@pytest.mark.parametrize(("method", "multiple"), [("fedper", 0.588), ("scaffold", 1.0)])
def test_who_adds_up_does_not_decide_who_is_refused(
    method: str, multiple: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a multiple so small that honest clients are beyond it: the server, a host, and a host that stacks agree."""
    monkeypatch.setattr(proportion, "MULTIPLE", multiple)
    monkeypatch.setattr(cohorts, "MULTIPLE", 10.0)
    monkeypatch.setattr(faults, "too_far", lambda *sizes: {})  # they may join
    fields = {"quorum": 0.0, "optimiser": "sgd", "lr": 10.0} if method == "scaffold" else {"quorum": 0.0}
    e = experiment(method, clients=5, **fields)
    stacks = hosted(lambda e: InlineGrid([Node(clients_of(e, None, range(5)), True)], hosts=True), e=e).record
    single = hosted(lambda e: InlineGrid(each_alone(e, None)), e=e).record
    summed = hosted(lambda e: InlineGrid([Node(clients_of(e, None, in_order(e)))], hosts=True), e=e).record
    found = [[(row["round"], row["client"]) for row in record.faults] for record in (single, summed, stacks)]
    assert found[0] and found[0] == found[1] == found[2]
    assert len(found[0]) < 5 * e.rounds
    assert honest(single) == honest(summed)
    for name, value in single.shared.items():
        torch.testing.assert_close(value, stacks.shared[name], atol=1e-5, rtol=1e-5)


@pytest.mark.soak
def test_random_messages_of_the_server_are_read_or_refused(tries: Callable[[int, int], int]) -> None:
    """A client refuses what it cannot read with an error of the contract, and nothing else."""
    z = {"item_table": torch.ones(3, 2), "item_bias": torch.zeros(3, 1)}
    sent = Broadcast(1, z, True, "test", 0.5, 0, z, {"item": np.arange(3)})
    asked = Call({"films": sent, "shop": Broadcast(1, z)}, {"films": (0, 1.0)}, ("loss",))
    shares = [("films", bytes(SEALED))]
    masked = Masked(Broadcast(1, z), shares, Layout({"item_table": (3, 2)}, {"item_table": np.arange(3)}))
    messages: list[tuple[RecordDict, Callable[[RecordDict], object]]] = [
        (broadcast_record(sent, "films"), read_broadcast),
        (call_record(asked), read_call),
        (masked_call("films", masked), read_masked),
        (roster_call(1, {"films": Keys(bytes(32), bytes(32))}), read_roster),
        (unmask_call(1, ["films"], ["shop"]), read_unmask),
        (bundled({"films": RecordDict({"config": ConfigRecord({"round": 1})})}, {"shop": "no"}), unbundled),
    ]

    @settings(max_examples=tries(100, 2000), database=None, suppress_health_check=list(HealthCheck), deadline=None)
    @given(wrecks(), st.sampled_from(range(len(messages))))
    def wreck_once(wreck: Lie, which: int) -> None:
        content, read = messages[which]
        made = wreck(deepcopy(content))
        assert isinstance(made, RecordDict)
        with suppress(ContractError):
            read(made)

    wreck_once()


def test_under_noise_for_clients_a_verdict_depends_on_nobody_else(tmp_path: Path) -> None:
    """There the clip bounds an answer: whether one counts may not tell of the others."""
    private = {"weights": "uniform", "privacy": {"unit": "client", "noise": 1.0, "replay": True}}
    lies: list[Lie] = [with_array("item_table", entry(1e11)), with_array("item_table", entry(1e13)), silence]
    made = [run("fedper", {("train", 1): lie}, tmp_path / str(n), **private) for n, lie in enumerate(lies)]
    assert [len(record.faults) for record in made] == [0, 1, 1]
    assert honest(made[1]) == honest(made[2])
    assert all(float(value.abs().max()) < 1e3 for record in made for value in record.shared.values())
