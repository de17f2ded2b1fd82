"""Whatever a server sends, in whatever order: no noise that is not booked, none that answers two inputs, no crash."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from clients.client import Client
from clients.joining import join
from clients.round import trained
from clients.secure import Envelope, source
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.records import failures
from fedrec.keyed import carrier, catalogue
from fedrec.params import LARGEST, Params
from fedrec.privacy.encoding import Layout
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.secure_sum import Keys, Stage
from fedrec.sharing import Broadcast, Contribution
from fedrec.wire import pack
from fedrec.wire.bundle import bundled, unbundled
from fedrec.wire.secure import (
    KINDS,
    SEALED,
    STAGES,
    Masked,
    keys_call,
    masked_call,
    read_keys,
    read_masked_answer,
    read_shares,
    roster_call,
    unmask_call,
)
from server.secure import layout_of
from simulations.engines import InlineGrid
from simulations.engines.nodes import each_alone
from simulations.engines.storing import packed
from tests.helpers import experiment, first_of
from tests.letters import broadcast_record, read_contribution, reason

SECONDS = 60.0  # for one answer, far more than any takes
NUMBERS = st.sampled_from([1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 0, -5, 2**62])
SEEN = st.sampled_from(["last", "last", "last", "last", "before", "before", 0, 3, -1, 2**62])
Z = st.sampled_from(["start", "start", "last", "other", "huge"])
ROUNDS = 3
HUGE = 0.99 * LARGEST  # which a client still takes
LARGE = 100.0  # far above any noise here; beyond it, what was sent is so large that float32 has no place for the noise
# Items that nobody rates show the noise alone: ratings move no others.
SMALL: dict[str, Any] = {
    "clients": 3, "partition": "users", "task": "rating", "market": {"users": 30, "items": 300, "impressions": 15},
    "rounds": ROUNDS, "local_epochs": 1, "optimiser": "sgd", "lr": 0.1, "l2": 0.0, "weights": "uniform",
}  # fmt: skip
NAME = "silo-1"  # the first client
CASES: dict[str, dict[str, Any]] = {
    "interaction": {"privacy": {"unit": "interaction", "noise": 1.0, "rate": 0.5}},
    "user": {"privacy": {"unit": "user", "noise": 1.0, "rate": 0.5}},
    "user, duals and a penalty that adapts": {
        "privacy": {"unit": "user", "noise": 1.0, "rate": 0.5},
        "coupling": {"rho": 0.1, "duals": True, "balance": True},
    },
    "client, with a budget": {"privacy": {"unit": "client", "where": "client", "noise": 2.0, "epsilon": "5"}},
}


class Server(RuleBasedStateMachine):
    """A server that asks one client for anything, whose process may end and go back to a checkpoint meanwhile."""

    case = "user"

    def __init__(self) -> None:
        super().__init__()
        self.e = experiment(**{**SMALL, **CASES[self.case]})
        self.data = clients_data(self.e)[0]
        self.folder = tempfile.TemporaryDirectory()
        self.home = Path(self.folder.name)
        self.answers: dict[tuple[bytes, bytes], bytes] = {}  # by the client's memory and the message
        self.noises: dict[bytes, np.ndarray[Any, Any]] = {}  # of every distinct answer, on rows without data
        self.start, self.last = first_of(self.e), first_of(self.e)
        self.tested = False
        self.restart()
        self.process("save")
        self.join()
        self.process("save")

    def teardown(self) -> None:
        self.folder.cleanup()

    def restart(self) -> None:
        """The client's process ends: what is left is its folder."""
        self.grid = InlineGrid(each_alone(self.e, self.home))
        self.node = next(iter(self.grid.nodes))
        self.rounds = (0, 0)  # of the last answer, and of the one before

    @rule(what=st.sampled_from(["restart", "save", "go back", "go back", "go back"]))
    def process(self, what: str) -> None:
        """The client's process ends, or its memory is saved, or is what was saved."""
        if what == "restart":
            self.restart()
        elif what == "save":
            self.saved = self.grid.nodes[self.node].state(), self.rounds
        else:
            state, self.rounds = self.saved
            self.grid.nodes[self.node].restore(state)

    @rule()
    def join(self) -> None:
        """The client joins, whether it has or not."""
        reply = self.ask("query.join", RecordDict({"shared.0": pack({})}))
        assert isinstance(reply, RecordDict)
        found, self.rounds = read_contribution(reply), (0, 0)
        assert found.metrics == {"examples": 1.0}
        assert all(torch.equal(value, self.start[name]) for name, value in found.values.items())

    @rule(z=Z, rho=st.sampled_from([0.1, 1.0]))
    def go_on(self, z: str, rho: float) -> None:
        """The client is to train the round that is next."""
        self.train(min(self.rounds[0] + 1, ROUNDS), "last", z, rho)

    @rule(number=NUMBERS, seen=SEEN, z=Z, rho=st.sampled_from([0.1, 1.0, 1.0, 0.0]))
    def train(self, number: int, seen: int | str, z: str, rho: float) -> None:
        """The client is to train a round."""
        values, after = self.values(z), self.after(seen)
        content = broadcast_record(Broadcast(number, values, seen=after, rho=rho), NAME)
        key = (packed(self.grid.nodes[self.node].state()), packed(content))
        reply = self.ask("train", content)
        if not isinstance(reply, RecordDict):
            return
        assert 1 <= number <= ROUNDS
        assert not self.tested, "it has forgotten its secret"
        found = read_contribution(reply)
        assert found.metrics.keys() <= {"gap"}, "a number that is not noised"
        told = packed(RecordDict({"shared": pack(found.values)}))
        assert self.answers.setdefault(key, told) == told, "other bytes for the same input"
        # Of an increment it is v_i that is released: only the first of a link is a function of x_i and z_i alone.
        if not self.e.coupling.duals:
            self.noises[told] = self.noise(found.values, values)
        elif self.rounds[0] == 0:
            self.noises[told + packed(RecordDict({"shared": pack(values)}))] = self.noise(found.values, values)
        self.rounds, self.last = (number, after), self.last if self.e.coupling.duals else found.values

    @rule(number=NUMBERS, seen=SEEN, z=Z, keep=st.booleans(), test=st.integers(0, 7))
    def evaluate(self, number: int, seen: int | str, z: str, keep: bool, test: int) -> None:
        """The client is to validate, or now and then to test, which is to be its last."""
        split, after = "validation" if test else "test", self.after(seen)
        sent = Broadcast(number, self.values(z), keep, split, 1.0, after)
        reply = self.ask("evaluate", broadcast_record(sent, NAME))
        if isinstance(reply, RecordDict):
            found = read_contribution(reply)
            assert not found.values and not found.metrics
            self.rounds = (after, after)
            self.tested |= split == "test"

    @rule(kind=st.sampled_from(["train", "evaluate"]), what=st.sampled_from(["nothing", "values", "config", "private"]))
    def nonsense(self, kind: str, what: str) -> None:
        """A message that is none."""
        content = broadcast_record(Broadcast(1, self.start), NAME)
        if what == "nothing":
            content = RecordDict()
        elif what == "values":
            content["shared.0"] = pack({name: value[:1] for name, value in self.start.items()})
        elif what == "config":
            content["config"] = ConfigRecord({"round": "one"})
        else:
            content["shared.0"] = pack({**self.start, "user_table": torch.zeros(2, 2)})
        assert isinstance(self.ask(kind, content), str)

    @precondition(lambda self: self.spent)
    @rule(often=st.integers(0, 7))
    def lose_the_secret(self, often: int) -> None:
        """The file of the secret is lost now and then: from there on no noise is made."""
        if often:
            return
        for path in self.home.rglob("*.secret"):
            path.unlink()
        self.tested = True

    @invariant()
    def every_noise_is_booked_and_answers_one_input(self) -> None:
        assert len(self.noises) <= self.spent
        found = np.array([noise for noise in self.noises.values() if 0 < np.abs(noise).max() < LARGE])
        if len(found) > 1:
            alike = np.abs(np.corrcoef(found) - np.eye(len(found))).max()
            assert alike < 0.5, f"two answers have the same noise, of correlation {alike:.3f}"

    @property
    def spent(self) -> int:
        """How many rounds the client has booked."""
        path = self.home / "privacy" / f"{self.data.name}.jsonl"
        return len(Ledger(path).entries) if path.exists() else 0

    def after(self, seen: int | str) -> int:
        """Return the round of a contribution that the server may say it has taken last."""
        return seen if isinstance(seen, int) else self.rounds[0] if seen == "last" else self.rounds[1]

    def values(self, z: str) -> Params:
        """Return parameters that a server may send."""
        if z == "other":
            return {name: value + 0.25 for name, value in self.start.items()}
        if z == "huge":
            return {name: torch.full_like(value, HUGE) for name, value in self.start.items()}
        return self.start if z == "start" else self.last

    def noise(self, told: Params, z: Params) -> np.ndarray[Any, Any]:
        """Return how the rows that no interaction touches have moved: x - z; the first increment is 2x - z - start."""
        rows = np.setdiff1d(np.arange(len(self.data.items)), self.data.train.item)
        start = self.start["item_table"] if self.e.coupling.duals else torch.zeros(())
        assert len(rows) > 30
        moved = (told["item_table"].double() + start - z["item_table"])[torch.from_numpy(rows)]
        return np.asarray(moved.reshape(-1))

    def ask(self, kind: str, content: RecordDict) -> RecordDict | str:
        """Return what the client answers, or the words in which it refuses."""
        return asked(self.grid, self.node, kind, content)


class Summing(RuleBasedStateMachine):
    """A server that asks three clients for the stages of secure sums in any order, whose processes may end."""

    def __init__(self) -> None:
        super().__init__()
        noise = {"unit": "client", "where": "sum", "noise": 1.0}
        self.e = experiment(**{**SMALL, "secure": {"active": True}, "privacy": noise})
        self.names = [data.name for data in clients_data(self.e)]
        self.folder = tempfile.TemporaryDirectory()
        self.home = Path(self.folder.name)
        self.answers: dict[str, set[bytes]] = {name: set() for name in self.names}  # that are masked and noisy
        self.keys: dict[int, dict[str, Keys]] = {}  # by round
        self.sealed: dict[int, dict[str, dict[str, bytes]]] = {}
        self.tested: set[str] = set()
        self.restart()

    def teardown(self) -> None:
        self.folder.cleanup()

    def restart(self) -> None:
        """All processes end, and the clients join again."""
        self.grid = InlineGrid(each_alone(self.e, self.home))
        self.nodes = dict(zip(self.names, self.grid.nodes, strict=True))
        joined = [self.joined(name) for name in self.names]
        self.z, rows = joined[0].values, catalogue([one.rows for one in joined])
        who = [carrier(one.client, one.values, one.rows, rows, 1.0) for one in joined]
        self.layout = layout_of(who, rows, self.z, 2)

    @rule(k=st.integers(0, 2), what=st.sampled_from(["join", "restart", "test"]), often=st.integers(0, 3))
    def disturb(self, k: int, what: str, often: int) -> None:
        """A client joins again or is tested, or all end."""
        name = self.names[k]
        if what == "join":
            self.joined(name)
        elif what == "restart":
            self.restart()
        elif not often:
            reply = asked(
                self.grid, self.nodes[name], "evaluate", broadcast_record(Broadcast(1, self.z, split="test"), name)
            )
            self.tested |= set() if isinstance(reply, str) else {name}

    @rule(number=NUMBERS)
    def whole(self, number: int) -> None:
        """Three stages of a round in their order, for everybody."""
        for stage in ("keys", "shares", "masked"):
            for k in range(3):
                self.ask(stage, k, number, "start")

    @rule(stage=st.sampled_from(["keys", "shares", "masked", "unmask"]), k=st.integers(0, 2), number=NUMBERS, z=Z)
    def ask(self, stage: Stage, k: int, number: int, z: str) -> None:
        """A client is to answer a stage of a round."""
        name = self.names[k]
        reply = asked(self.grid, self.nodes[name], KINDS[stage], self.content(stage, name, number, z))
        if isinstance(reply, str):
            return
        assert 1 <= number <= ROUNDS
        if stage == "keys":
            self.keys.setdefault(number, {})[name] = read_keys(reply, name)
        elif stage == "shares":
            others = [one for one in self.keys[number] if one != name]
            self.sealed.setdefault(number, {})[name] = read_shares(reply, name, SEALED, others)
        elif stage == "masked":
            assert name not in self.tested, "it has forgotten its secret"
            found = read_masked_answer(reply, name, self.layout.size + self.layout.masses)
            assert not found.metrics
            self.answers[name].add(found.words.tobytes())

    @invariant()
    def every_noise_is_booked(self) -> None:
        for name, answers in self.answers.items():
            path = self.home / "privacy" / f"{name}.jsonl"
            assert len(answers) <= (len(Ledger(path).entries) if path.exists() else 0)

    def content(self, stage: Stage, name: str, number: int, z: str) -> RecordDict:
        """Return a message made of what the clients have answered in a round."""
        if stage == "keys":
            return keys_call(number)
        if stage == "shares":
            return roster_call(number, self.keys.get(number, {}))
        dealt = self.sealed.get(number, {})
        if stage == "unmask":
            return unmask_call(number, list(dealt), [])
        values = {n: torch.full_like(v, HUGE) if z == "huge" else v for n, v in self.z.items()}
        theirs = [(peer, shares[name]) for peer, shares in dealt.items() if peer != name and name in shares]
        return masked_call(name, Masked(Broadcast(number, values), theirs, self.layout))

    def joined(self, name: str) -> Contribution:
        """Let a client join, whether it has or not."""
        reply = asked(self.grid, self.nodes[name], "query.join", RecordDict({"shared.0": pack({})}))
        assert isinstance(reply, RecordDict)
        return read_contribution(reply)


def asked(grid: InlineGrid, node: int, kind: str, content: RecordDict) -> RecordDict | str:
    """Return what a client answers, or the words in which it refuses; anything else is a crash."""
    began, staged = time.monotonic(), kind in STAGES
    (name,) = grid.nodes[node].parties
    content = bundled({name: content}) if staged else content
    (reply,) = grid.send_and_receive([Message(content, node, kind, group_id="1")])
    assert time.monotonic() - began < SECONDS
    words = reason(reply)
    if not words:
        return unbundled(reply.content)[0][name] if staged else reply.content
    assert (": " in words and "must" in words) or "budget" in words, f"no words: {words!r}"
    return words


def run(machine: type[RuleBasedStateMachine], examples: int) -> None:
    quick = settings(
        max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck),
        database=None,
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=quick)


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
def test_no_order_of_messages_makes_noise_that_is_not_booked(
    case: str, tries: Callable[[int, int], int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    run(type("Case", (Server,), {"case": case}), tries(20, 100))


@pytest.mark.soak
def test_no_order_of_the_stages_of_a_sum_makes_noise_that_is_not_booked(
    tries: Callable[[int, int], int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    run(Summing, tries(10, 100))


def client_of(e: Experiment, home: Path) -> tuple[InlineGrid, int]:
    """Return a grid of an experiment and the node of its first client, in a process of its own."""
    grid = InlineGrid(each_alone(e, home))
    return grid, next(iter(grid.nodes))


WHERE: dict[str, dict[str, Any]] = {
    "user": {"unit": "user", "noise": 1.0},
    "interaction": {"unit": "interaction", "noise": 1.0, "rate": 0.5},
    "client": {"unit": "client", "where": "client", "noise": 1.0},
}


@pytest.mark.parametrize("unit", WHERE)
def test_a_round_that_is_asked_again_after_a_test_is_refused_for_good(unit: str, tmp_path: Path) -> None:
    e = experiment(**{**SMALL, "privacy": WHERE[unit]})
    z, name = first_of(e), clients_data(e)[0].name
    train = broadcast_record(Broadcast(1, z), NAME)
    found: list[RecordDict | str] = []
    for _ in range(3):  # three processes, one after the other
        grid, node = client_of(e, tmp_path)
        for kind, content in (
            ("query.join", RecordDict({"shared.0": pack({})})),
            ("train", train),
            ("evaluate", broadcast_record(Broadcast(1, z, split="test", seen=1 if not found else 0), NAME)),
            ("query.join", RecordDict({"shared.0": pack({})})),
            ("train", train),
        ):
            reply = asked(grid, node, kind, content)
            found += [reply] if kind == "train" else []
    assert not isinstance(found[0], str)
    for refused in found[1:]:
        assert isinstance(refused, str) and "must not go on after its final test" in refused
    assert len(Ledger(tmp_path / "privacy" / f"{name}.jsonl").entries) == 1


@pytest.mark.parametrize("unit", WHERE)
def test_whose_secret_was_lost_refuses_to_go_on(unit: str, tmp_path: Path) -> None:
    e = experiment(**{**SMALL, "privacy": WHERE[unit]})
    grid, node = client_of(e, tmp_path)
    z, name = first_of(e), clients_data(e)[0].name
    asked(grid, node, "query.join", RecordDict({"shared.0": pack({})}))
    assert not isinstance(asked(grid, node, "train", broadcast_record(Broadcast(1, z), NAME)), str)
    (tmp_path / "privacy" / f"{name}.secret").unlink()
    refused = asked(grid, node, "train", broadcast_record(Broadcast(2, z, seen=1), NAME))
    assert isinstance(refused, str) and f"the secret of '{name}' must be there" in refused
    assert len(Ledger(tmp_path / "privacy" / f"{name}.jsonl").entries) == 1


def test_another_penalty_is_another_input_with_noise_of_its_own(tmp_path: Path) -> None:
    # Under duals that start at 0 the anchor is z whatever rho is, but the steps after the first are not the same.
    e = experiment(**{**SMALL, **CASES["user, duals and a penalty that adapts"]})
    z, data = first_of(e), clients_data(e)[0]
    rows = np.setdiff1d(np.arange(len(data.items)), data.train.item)
    found = []
    for rho in (0.1, 1.0):
        grid, node = client_of(e, tmp_path)
        asked(grid, node, "query.join", RecordDict({"shared.0": pack({})}))
        reply = asked(grid, node, "train", broadcast_record(Broadcast(1, z, rho=rho), NAME))
        assert isinstance(reply, RecordDict)
        moved = read_contribution(reply).values["item_table"]  # v_i minus what they start with, 2 (x_i - z)
        found.append(moved[torch.from_numpy(rows)].double().reshape(-1).numpy())
    assert abs(np.corrcoef(found)[0, 1]) < 0.4
    assert len(Ledger(tmp_path / "privacy" / f"{data.name}.jsonl").entries) == 2


def test_what_an_accelerator_makes_again_has_noise_of_its_own(tmp_path: Path) -> None:
    # Its sums differ in their last bits, in rows that somebody touched alone: under one noise that would show them.
    e = experiment(**{**SMALL, "privacy": WHERE["user"]})
    data, z, found = clients_data(e)[0], first_of(e), []
    for device in ("cpu", "cpu", "cpu:0", "cpu:0"):  # the last is the same processor by another name
        client = Client(e, data, device, tmp_path)
        found.append(trained(client, join(client)[0], Broadcast(1, z))[1].values["item_table"])
    assert torch.equal(found[0], found[1])
    assert len({tuple(one.reshape(-1).tolist()) for one in found}) == 3
    assert len(Ledger(tmp_path / "privacy" / f"{data.name}.jsonl").entries) == 3


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("unit", [*WHERE, "sum"])
def test_whether_training_diverged_is_not_told(unit: str, optimiser: str, tmp_path: Path) -> None:
    # A server that makes one item's row huge learns from a refusal whether anybody has rated it, without any noise.
    privacy = WHERE.get(unit, {"unit": "client", "where": "sum", "noise": 1.0})
    e = experiment(**{**SMALL, "optimiser": optimiser, "local_epochs": 5, "privacy": privacy,
                      "secure": {"active": unit == "sum"}})  # fmt: skip
    data = clients_data(e)[0]
    z = {name: value.clone() for name, value in first_of(e).items()}
    z["item_table"][int(data.train.item[0])] = HUGE
    sent, client = Broadcast(1, z), Client(e, data, "cpu", tmp_path)
    envelope = Envelope.of(client, Layout({n: tuple(v.shape) for n, v in z.items()}, {
        n: np.asarray(data.items) for n in z}), 1) if unit == "sum" else None  # fmt: skip
    state, reply, start = trained(client, join(client)[0], sent, envelope)
    assert not reply.metrics and all(bool(value.isfinite().all()) for value in reply.values.values())
    assert all(bool(value.isfinite().all()) for value in state.now.private.values())
    if envelope:
        words = envelope.words(reply.values, start, source(client, 1, reply.values, start))
        assert len(words) == envelope.layout.size + envelope.layout.masses


def test_a_failed_evaluation_is_not_told_and_the_secret_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    e = experiment(**{**SMALL, "privacy": WHERE["user"]})
    grid, node = client_of(e, tmp_path)
    z = first_of(e)
    asked(grid, node, "query.join", RecordDict({"shared.0": pack({})}))
    asked(grid, node, "train", broadcast_record(Broadcast(1, z), NAME))

    def fails(*_: object, **__: object) -> None:
        raise ValueError("user 7 has no items left")

    monkeypatch.setattr("clients.round.evaluate_all", fails)
    for split in ("validation", "test"):
        reply = asked(grid, node, "evaluate", broadcast_record(Broadcast(1, z, split=split, seen=1), NAME))
        assert isinstance(reply, RecordDict) and not read_contribution(reply).metrics
    assert "user 7 has no items left" in caplog.text
    name = clients_data(e)[0].name  # the simulation, which sees everything, says it in the report
    assert failures(tmp_path) == [
        f"{name}: the {split} of round 1 failed; its log says why" for split in ("validation", "test")
    ]
    assert not list(tmp_path.rglob("*.secret")) and list(tmp_path.rglob("*.forgotten"))
