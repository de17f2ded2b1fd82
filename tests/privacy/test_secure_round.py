"""Secure sums over Flower: the result of a plain run, whoever is lost; nothing but masked words on the wire."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from clients.home import HOME
from clients.secure import PRESENT, member_of
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.records import Record, load_params
from fedrec.privacy.guarantee import terms
from fedrec.privacy.secure_sum import Stage
from fedrec.wire.bundle import bundled, unbundled
from fedrec.wire.secure import KINDS, STAGES, keys_call, read_masked
from server.faults import ClientFailure
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.check import check
from simulations.engines import launch
from simulations.engines.nodes import each_alone, stacked
from tests.helpers import SpyGrid, experiment, fit, results
from tests.letters import read_contribution, reason, state_of

SECURE = {"active": True}
STEP = 1e-6  # ten float32 steps of numbers about 1: what rounding to 29 binary digits may become in a few rounds
Fault = Callable[[RecordDict], RecordDict | None]


def silo(method: str = "fedper", **fields: Any) -> Experiment:
    """Return five silos of a small synthetic market."""
    small = {"clients": 5, "partition": "users", "rounds": 3, "market": {"users": 60, "items": 120}}
    return experiment(method, **{**small, **fields})


def secure(method: str = "fedper", **fields: Any) -> Experiment:
    """Return five silos whose answers are summed in secret."""
    return silo(method, **{"secure": SECURE, **fields})


class Lossy(SpyGrid):
    """A grid on which some answers to the stages of secure sums are lost (None) or arrive otherwise."""

    def __init__(self, e: Experiment, faults: Mapping[tuple[str, Stage, int], Fault], home: Path | None = None) -> None:
        parts = clients_data(e)
        super().__init__(each_alone(e, home))
        self.names = dict(zip(self.nodes, [part.name for part in parts], strict=True))
        self.faults = {(name, KINDS[stage], number): fault for (name, stage, number), fault in faults.items()}

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        about = message.metadata
        fault = self.faults.get((self.names[about.dst_node_id], about.message_type, int(about.group_id or 0)))
        if fault is None or reason(reply):
            return reply
        (name,) = unbundled(reply.content)[0]
        made = fault(unbundled(reply.content)[0][name])
        if made is None:
            return Message(Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason="gone"), reply_to=message)
        return Message(bundled({name: made}, {}), reply_to=message)


def lost(_: RecordDict) -> None:
    """Lose an answer."""


def ran(e: Experiment, faults: Mapping[tuple[str, Stage, int], Fault]) -> tuple[Record, Lossy]:
    grid = Lossy(e, faults)
    made = Coordinator(grid, plan_of(e))
    try:
        made.fit(list(grid.get_node_ids()))
    except ClientFailure as error:
        error.add_note(str(made.record.faults))
        raise
    return made.record, grid


def close(a: Record, b: Record) -> None:
    """Assert that two runs have one result but for rounding."""
    assert a.shared.keys() == b.shared.keys()
    assert max(float((a.shared[name] - b.shared[name]).abs().max()) for name in a.shared) <= STEP
    for one, two in zip(a.rounds, b.rounds, strict=True):
        assert one["clients"] == two["clients"]
        assert one["validation"] == pytest.approx(two["validation"], abs=2e-3)


METHODS = ("fedavg", "fedper", "fedrep", "fedprox", "fedadam", "fedavgm", "ditto", "apfl", "admm")


@pytest.mark.parametrize("partition", ["users", "platform"])
@pytest.mark.parametrize("method", METHODS)
def test_a_secure_run_is_the_plain_one_but_for_rounding(method: str, partition: str) -> None:
    fields: dict[str, Any] = {"partition": partition, "weights": "uniform" if method == "admm" else "examples"}
    if partition == "users":
        fields["skew"] = 0.7  # silos of unlike sizes, so that the weights matter
    if method == "admm":
        fields["coupling"] = {"rho": 1e-3, "duals": True}
    close(fit(silo(method, **fields))[0], fit(secure(method, **fields))[0])


def test_the_weights_matter_in_the_test_above() -> None:
    examples, uniform = (fit(secure(skew=0.7, weights=weights))[0] for weights in ("examples", "uniform"))
    with pytest.raises(AssertionError):
        close(examples, uniform)


@pytest.mark.parametrize("method", ["fedper", "fedadam", "admm"])
def test_with_dropouts_it_is_the_plain_one_too(method: str) -> None:
    fields = {
        "dropout": "1:silo-1,silo-2;2:silo-5;3:silo-1,silo-3",
        "quorum": 0.6,
        "weights": "uniform" if method == "admm" else "examples",
    }
    plain, hidden = fit(silo(method, **fields))[0], fit(secure(method, **fields))[0]
    close(plain, hidden)
    assert [(row["round"], row["client"], row["kind"]) for row in plain.faults] == [
        (row["round"], row["client"], row["kind"]) for row in hidden.faults
    ]
    assert {row["during"] for row in hidden.faults} == {"masked"}


def test_with_a_part_of_the_clients_it_is_the_plain_one_too() -> None:
    fields: dict[str, Any] = {"participation": 0.6, "rounds": 5}
    close(fit(silo(**fields))[0], fit(secure(**fields))[0])


@pytest.mark.parametrize("method", ["fedper", "admm"])
@pytest.mark.parametrize("stage", ["keys", "shares", "masked"])
def test_two_of_five_lost_before_the_sum_are_as_if_they_had_not_been_there(method: str, stage: Stage) -> None:
    weights = "uniform" if method == "admm" else "examples"
    found, _ = ran(secure(method, weights=weights), {(name, stage, 2): lost for name in ("silo-1", "silo-2")})
    plain, _ = fit(silo(method, weights=weights, dropout="2:silo-1,silo-2"))
    close(plain, found)
    assert [(row["client"], row["during"], row["kind"]) for row in found.faults] == [
        (name, stage, "error") for name in ("silo-1", "silo-2")
    ]


def test_two_of_five_lost_after_the_sum_are_in_it() -> None:
    found, grid = ran(secure(), {(name, "unmask", 2): lost for name in ("silo-1", "silo-2")})
    assert results(found)[:3] != [] and [row["during"] for row in found.faults] == ["unmask", "unmask"]
    plain, other = fit(silo())
    close(plain, found)
    rounds = [[state_of(context).now.round for context in one.nodes.values()] for one in (grid, other)]
    assert rounds == [[3] * 5, [3] * 5]


@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "unmask"])
def test_three_of_five_lost_and_the_round_has_no_sum(stage: Stage) -> None:
    with pytest.raises(ClientFailure, match=f"round 2, {stage} of the secure sum: 3 of 5 clients") as caught:
        ran(secure(quorum=0.0), {(name, stage, 2): lost for name in ("silo-1", "silo-2", "silo-3")})
    assert all(name in str(caught.value) for name in ("silo-1", "silo-2", "silo-3"))
    assert caught.value.__notes__[0].count(f"'during': '{stage}'") == 3


@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "unmask"])
def test_a_failed_round_leaves_nothing_in_plain_text(stage: Stage) -> None:
    e = secure(quorum=0.0)
    grid = Lossy(e, {(name, stage, 1): lost for name in ("silo-1", "silo-2", "silo-3")})
    with pytest.raises(ClientFailure):
        Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids()))
    kinds = [message.metadata.message_type for message in grid.sent]
    assert "train" not in kinds and set(kinds) <= {"query.join", *STAGES}
    check_wire(grid, allowed_metrics={"loss"})


def spoilt_words(content: RecordDict) -> RecordDict:
    found = content.array_records["masked"]["sum"].numpy()
    return RecordDict({**content, "masked": ArrayRecord({"sum": Array(found[:-1])})})


def floats(content: RecordDict) -> RecordDict:
    found = content.array_records["masked"]["sum"].numpy()
    return RecordDict({**content, "masked": ArrayRecord({"sum": Array(found.astype(np.float64))})})


def told(content: RecordDict) -> RecordDict:
    return RecordDict({**content, "metrics": MetricRecord({"loss": 0.1, "age": 41.0})})


def renamed(content: RecordDict) -> RecordDict:
    return RecordDict({**content, "config": ConfigRecord({**content.config_records["config"], "client": "somebody"})})


def extra(content: RecordDict) -> RecordDict:
    return RecordDict({**content, "shared": ArrayRecord({})})


def short(content: RecordDict) -> RecordDict:
    name = "keys" if "keys" in content else "shares"
    record = {key: value[:-1] if key != "client" else value for key, value in content.config_records[name].items()}  # type: ignore[index]
    return RecordDict({**content, name: ConfigRecord(record)})


WRONG: list[tuple[Stage, Fault]] = [
    ("masked", spoilt_words),
    ("masked", floats),
    ("masked", told),
    *((stage, change) for stage in KINDS for change in (renamed, extra)),
    *((stage, short) for stage in KINDS if stage != "masked"),
]


@pytest.mark.parametrize(("stage", "change"), WRONG)
def test_a_wrong_answer_is_a_fault_of_its_stage(stage: Stage, change: Fault) -> None:
    found, _ = ran(secure(rounds=1), {("silo-2", stage, 1): change})
    assert [(row["client"], row["during"], row["kind"]) for row in found.faults] == [("silo-2", stage, "contract")]


def test_a_sum_that_no_clients_add_up_to_is_refused_with_all_of_them() -> None:
    def other(content: RecordDict) -> RecordDict:
        words = content.array_records["masked"]["sum"].numpy() + np.uint64(2**40 + 12345)
        return RecordDict({**content, "masked": ArrayRecord({"sum": Array(words)})})

    with pytest.raises(ClientFailure, match="must lie within the bounds of its clients"):
        ran(secure(rounds=1), {("silo-2", "masked", 1): other})


def arrays(content: RecordDict) -> dict[str, np.ndarray]:
    return {f"{place}:{name}": one.numpy() for place, r in content.array_records.items() for name, one in r.items()}


def check_wire(grid: SpyGrid, allowed_metrics: Iterable[str]) -> None:
    """Assert that every answer holds what its stage may hold, and tensors in plain text only those of its start."""
    parts = {
        "train.keys": {"config", "keys"},
        "train.shares": {"config", "shares"},
        "train.masked": {"config", "masked", "metrics"},
        "train.unmask": {"config", "shares"},
        "query.join": {"config", "shared.0", "metrics", "rows.0"},
        "evaluate": {"config", "shared.0", "metrics"},
    }
    kinds = {message.metadata.message_id: message.metadata.message_type for message in grid.sent}
    for reply in grid.received:
        if reply.has_error():
            continue
        kind = kinds[reply.metadata.reply_to_message_id]
        assert set(reply.content) <= parts[kind], kind
        found = arrays(reply.content)
        if kind == "train.masked":
            assert list(found) == ["masked:sum"] and found["masked:sum"].dtype == np.uint64
            assert set(reply.content.metric_records["metrics"]) <= set(allowed_metrics)
        elif kind != "query.join":
            assert not found
        else:
            assert read_contribution(reply.content).metrics == {"examples": 1.0}


def lengths(grid: SpyGrid) -> list[list[tuple[str, int]]]:
    """Return the kinds and bytes of what every client sent, in the order of the clients."""
    kinds = {message.metadata.message_id: message.metadata.message_type for message in grid.sent}
    found: dict[int, list[tuple[str, int]]] = {}
    for reply in grid.received:
        kind = kinds[reply.metadata.reply_to_message_id]
        if kind in STAGES:
            size = sum(len(one.data) for r in reply.content.array_records.values() for one in r.values())
            size += sum(deep(value) for r in reply.content.config_records.values() for value in r.values())
            size += 8 * len(reply.content.metric_records.get("metrics", {}))
            found.setdefault(reply.metadata.src_node_id, []).append((kind, size))
    return list(found.values())


def deep(value: object) -> int:
    return sum(map(deep, value)) if isinstance(value, list) else len(value) if isinstance(value, bytes | str) else 8


def test_the_wire_holds_nothing_else_and_its_lengths_do_not_depend_on_data() -> None:
    """Two markets with one catalogue: unlike interactions, numbers of them, and trained values."""
    found = [fit(secure(market={"items": 60, "users": 120, "impressions": n}))[1] for n in (10, 40)]
    for grid in found:
        check_wire(grid, {"loss"})
    assert lengths(found[0]) == lengths(found[1]) and len(lengths(found[0])) == 5
    sizes = [len(part.train) for part in clients_data(secure(market={"items": 60, "users": 120, "impressions": 10}))]
    assert len(set(sizes)) > 1


def test_the_joining_tells_nothing_of_the_data() -> None:
    """Also under tasks whose start is made of it: the mean of a client's ratings is its own business."""
    e = secure("fedavg", task="rating")
    _, grid = fit(e)
    starts = [arrays(reply.content) for reply in grid.received[:5]]
    for one in starts[1:]:
        assert all(np.array_equal(one[name], starts[0][name]) for name in one if name.startswith("shared.0:heads"))


def test_the_masked_words_of_a_run_are_uniform_and_never_the_same() -> None:
    runs = [[arrays(r.content)["masked:sum"] for r in fit(secure())[1].received if "masked" in r.content] for _ in "12"]
    words = np.concatenate([np.concatenate(run) for run in runs])
    assert len(np.unique(words)) == len(words)
    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 400  # 255 on average, with a standard deviation of 23


def test_two_secure_runs_have_one_result_to_the_bit_whatever_the_masks() -> None:
    first, second = fit(secure())[0], fit(secure())[0]
    assert results(first) == results(second)
    assert all(torch.equal(first.shared[name], second.shared[name]) for name in first.shared)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "clusters": (
        {"coupling": {"kind": "clusters", "groups": "silo-1,silo-2"}},
        "coupling.kind: clusters needs a server that remembers",
    ),
    "mr-mtl": (
        {"coupling": {"kind": "mean-regularised", "rho": 1e-4}},
        "coupling.kind: mean-regularised needs a server that remembers",
    ),
    "radius": ({"coupling": {"radius": 1.0}}, "coupling.radius: .* no more than a sum"),
    "balance": ({"coupling": {"rho": 1e-4, "duals": True, "balance": True}}, "coupling.balance: .* no more than a sum"),
    "median": ({"robust": {"kind": "median"}}, "robust.kind: median needs every client's answer by itself"),
    "clip": ({"robust": {"kind": "clip"}}, "robust.kind: clip needs every client's answer by itself"),
    "mgda": ({"descent": {"aggregator": "mgda"}}, "descent.aggregator: mgda needs the inner products"),
    "fednova": ({"drift": {"normalise": True}}, "drift.normalise: .* no more than a sum"),
    "scaffold": (
        {"drift": {"correction": "scaffold"}, "optimiser": "sgd"},
        "drift.correction: scaffold .* no more than a sum",
    ),
    "pooled": ({"pool": True}, "secure.active: .* found pool True"),
    "agreement": (
        {"agreement": {"items": 10}, "share": (), "coupling": {"rho": 1e-4}, "volunteers": 5},
        "agreement.items: 10 needs every client's answer by itself",
    ),
    "stack": ({"engine": "process", "stack": "yes"}, "found engine process with stack yes"),
    "nothing": ({"share": ()}, "secure.active: .* found share nothing"),
    "weighted duals": (
        {"coupling": {"rho": 1e-4, "duals": True}},
        "coupling.duals: .* fixed weights .add --weights uniform",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_more_than_the_sum_is_refused_with_the_reason(what: str) -> None:
    fields, text = REFUSED[what]
    with pytest.raises(UserError, match=text):
        stacked(secure(**fields))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"clients": 2}, "needs 3 clients in a round, found 2"),
        ({"participation": 0.4}, "needs 3 clients in a round, found 2"),
        ({"secure": {"active": True, "threshold": 2}}, "must be a majority of a round's 5 clients, from 3 to 5"),
        ({"secure": {"active": True, "bound": 1e9}}, "secure.bound: must leave"),
        ({"dropout": "2:silo-1,silo-2,silo-3", "quorum": 0.0}, "found 2 in round 2"),
    ],
)
def test_terms_that_cannot_hold_are_refused_before_anything_is_started(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check(secure(**fields))


def test_noise_in_a_sum_needs_a_secure_one() -> None:
    with pytest.raises(
        UserError, match=r"privacy.where: sum needs secure sums to add noise in.*\(add --secure.active\)"
    ):
        silo(weights="uniform", privacy={"unit": "client", "where": "sum", "noise": 1.0})


def test_a_client_answers_no_plain_request_and_a_plain_one_no_secret_request() -> None:
    hidden, plain = fit(secure(rounds=1))[1], fit(silo(rounds=1))[1]
    node = next(iter(hidden.nodes))
    train = next(message for message in plain.sent if message.metadata.message_type == "train")
    assert "must go into a secure sum" in reason(hidden._answer(asked(train.content, node, "train")))
    (name,) = plain.nodes[node].parties
    for kind in STAGES:
        assert "secure: must be active" in reason(plain._answer(asked(keys_call(2), node, kind, name=name)))


def asked(content: RecordDict, node: int, kind: str, number: int = 2, name: str = "") -> Message:
    message = Message(bundled({name: content}) if kind in STAGES else content, node, kind, group_id=str(number))
    message.metadata.__dict__["_message_id"] = "again"
    return message


@pytest.mark.parametrize("stage", KINDS)
def test_a_message_that_comes_again_is_refused(stage: Stage) -> None:
    """In the round of its own, after it, and in a later one."""
    _, grid = fit(secure(rounds=2))
    node = next(iter(grid.nodes))
    for number in (1, 2):
        first = next(
            message
            for message in grid.sent
            if message.metadata.message_type == KINDS[stage]
            and (message.metadata.dst_node_id, message.metadata.group_id) == (node, str(number))
        )
        (name,) = grid.nodes[node].parties
        answer = reason(grid._answer(asked(first.content, node, KINDS[stage], number, name)))
        rule = {"keys": "must be after 2", "masked": "must"}.get(stage, "must begin with the keys")
        assert rule in answer, answer


def test_a_round_leaves_no_secrets_behind_and_a_lost_client_none_for_long() -> None:
    _, grid = fit(secure(dropout="2:silo-1"))
    assert not any(PRESENT in party.secrets for node in grid.nodes.values() for party in node.parties.values())


def test_the_secrets_of_a_round_are_in_no_reply() -> None:
    e, seen = secure(rounds=1), []

    class Peeking(Lossy):
        def _answer(self, message: Message) -> Message:
            reply = super()._answer(message)
            for party in (party for node in self.nodes.values() for party in node.parties.values()):
                if PRESENT in party.secrets:
                    member = member_of(party)
                    seen.extend([member.mask_key, member.seal_key, member.seed])
            return reply

    grid = Peeking(e, {})
    Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids()))
    told = [
        one
        for message in [*grid.sent, *grid.received]
        for record in message.content.config_records.values()
        for value in record.values()
        for one in (value if isinstance(value, list) else [value])
        if isinstance(one, bytes)
    ]
    assert len(set(seen)) == 15 and len(told) > 100
    assert not any(secret in one for secret in set(seen) for one in told)


def table(path: Path) -> Path:
    """Write a table of three platforms, of which each has five items of its own and ten in common with the others."""
    rng, lines = np.random.default_rng(0), ["user,item,rating,time,platform"]
    for place, name in enumerate(("a", "b", "c")):
        items = [*range(10), *range(10 + 5 * place, 15 + 5 * place)]
        for user in range(12):
            chosen = rng.permutation(items)[:9]
            lines += [f"{name}{user},{item},{1 + (user + item) % 5},{k},{name}" for k, item in enumerate(chosen)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def own_items(tmp_path: Path) -> dict[str, Any]:
    columns = "user=user,item=item,rating=rating,time=time,platform=platform"
    return {
        "dataset": "table",
        "data_dir": table(tmp_path / "table.csv"),
        "columns": columns,
        "partition": "platform",
        "clients": None,
        "rounds": 4,
        "task": "rank",
    }


def test_rows_of_one_client_alone_do_not_leave_it_and_its_results_are_those_of_the_plain_run(
    own_items: dict[str, Any],
) -> None:
    plain, hidden = fit(silo(**own_items))[0], fit(secure(**own_items))
    assert [note for note in hidden[0].notes if "15 rows of item_table stay at home" in note]
    asked = [read_masked(m.content) for m in hidden[1].sent if m.metadata.message_type == KINDS["masked"]]
    carried = [reply.content.array_records["rows.0"]["item"].numpy() for reply in hidden[1].received[:3]]
    common = np.intersect1d(carried[0], carried[1])
    assert len(common) == 10 and all(np.array_equal(one.layout.rows["item_table"], common) for one in asked)
    validated = [
        {
            (r["round"], r["client"], r["split"], r["metric"]): r["value"]
            for r in record.clients
            if r["metric"] != "loss"
        }
        for record in (plain, hidden[0])
    ]
    assert validated[0].keys() == validated[1].keys() and len(validated[0]) > 20
    assert all(validated[1][key] == pytest.approx(value, abs=1e-6) for key, value in validated[0].items())
    assert float((plain.shared["item_table"] - hidden[0].shared["item_table"])[common].abs().max()) <= STEP
    kept = state_of(next(iter(hidden[1].nodes.values()))).now.private
    assert np.array_equal(carried[0][kept[f"{HOME}item_table/rows"]], np.setdiff1d(carried[0], common))


def test_a_lost_answer_takes_what_stayed_at_home_back_too(own_items: dict[str, Any]) -> None:
    fields = {**own_items, "dropout": "2:a;3:b", "quorum": 0.5}
    plain, hidden = fit(silo(**fields))[0], fit(secure(**fields))[0]
    for one, two in zip(plain.rounds, hidden.rounds, strict=True):
        assert one["validation"] == pytest.approx(two["validation"], abs=1e-6)


def test_rows_of_one_client_alone_are_refused_under_duals(own_items: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="rows must be summed under duals"):
        fit(secure("admm", weights="uniform", **own_items))


def test_more_carriers_can_be_asked_for(own_items: dict[str, Any]) -> None:
    record, _ = fit(secure(**own_items, secure={"active": True, "carriers": 3}))
    assert [note for note in record.notes if "fewer than 3 clients" in note]


def test_numbers_beyond_the_bound_are_refused_by_their_own_client() -> None:
    e = secure(rounds=1, secure={"active": True, "bound": 0.05})
    with pytest.raises(ClientFailure, match=r"at most secure.bound 0.05, found a larger one"):
        fit(e)


def test_the_workers_of_the_process_engine_sum_in_secret_too(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"engine": "process", "workers": 2, "rounds": 2}
    launch(secure(**fields), tmp_path / "process")
    inline, _ = fit(secure(rounds=2))
    shared = load_params(tmp_path / "process" / "model" / "shared.safetensors")
    assert all(torch.equal(shared[name], value) for name, value in inline.shared.items())


def test_noise_of_all_clients_in_the_sum(tmp_path: Path) -> None:
    """The mean of five changes, each clipped to C, with noise of sigma C for the three that are sure to be there.

    sigma C sqrt(5/3) / 5 = 0.129 of noise on an entry of the mean; over one round, and 16,000 entries.
    """
    rule = {"unit": "client", "where": "sum", "noise": 1.0, "clip": 0.5}
    e = secure(rounds=1, weights="uniform", privacy=rule, market={"items": 600, "users": 100})
    record, grid = fit(e, tmp_path)
    start = arrays(grid.received[0].content)
    moved = record.shared["item_table"].numpy() - start["shared.0:item_table"]
    assert moved.std() == pytest.approx(0.5 * (5 / 3) ** 0.5 / 5, rel=0.05)
    noise = terms(e).noise
    assert noise is not None and (noise.clients, noise.sigma) == (3, 1.0)
    masked = [reply for reply in grid.received if not reply.has_error() and "masked" in reply.content]
    assert len(masked) == 5 and not any(reply.content.metric_records["metrics"] for reply in masked)


def test_a_round_that_is_repeated_after_a_crash_leaves_the_state_that_the_server_counts_on() -> None:
    """New keys fit no old message, and nothing is masked twice; but the training is repeated to the bit."""
    e = secure("admm", weights="uniform")
    record, grid = fit(e)
    again = SpyGrid(each_alone(e, None))
    for message in grid.sent:
        about = message.metadata
        (name,) = again.nodes[about.dst_node_id].parties
        number = int(about.group_id or 0)
        reply = again._answer(asked(message.content, about.dst_node_id, about.message_type, number, name))
        if about.message_type in {KINDS["shares"], KINDS["masked"], KINDS["unmask"]}:
            assert reason(reply)
    for number, node in grid.nodes.items():
        state, other = node.state(), again.nodes[number].state()
        for name in ("now.private", "now.dual", "now.sent", "before.private", "kept.private"):
            assert arrays(RecordDict({"": state[name]})).keys() == arrays(RecordDict({"": other[name]})).keys()
            for key, value in arrays(RecordDict({"": state[name]})).items():
                assert np.array_equal(value, arrays(RecordDict({"": other[name]}))[key]), name
    assert len(record.rounds) == 3


class Killed(Exception):
    """Ends a run at once."""


def test_a_run_that_is_resumed_has_the_result_of_one_that_was_not_broken_off(tmp_path: Path) -> None:
    def killed(row: dict[str, Any]) -> None:
        if row["round"] == 2:
            raise Killed

    e = secure(rounds=4, dropout="2:silo-1;3:silo-2")
    for home in ("whole", "broken"):
        (tmp_path / home).mkdir()
    launch(e, tmp_path / "whole")
    with pytest.raises(Killed):
        launch(e, tmp_path / "broken", on_round=killed, every=1)
    launch(e, tmp_path / "broken", every=1)
    one, two = (load_params(tmp_path / home / "model" / "shared.safetensors") for home in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)
