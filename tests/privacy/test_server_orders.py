"""Whatever a server sends, in whatever order: no noise that is not booked, none that answers two inputs, no crash."""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from clients.app import client_app
from fedrec.experiment import Experiment
from fedrec.holdings import clients_data
from fedrec.parameters import Params
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.secure_sum import Keys
from fedrec.sharing import Broadcast
from fedrec.wire import broadcast_record, pack, read_contribution
from fedrec.wire.secure import (
    KINDS,
    SEALED,
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
from simulations.engines.storing import packed
from tests.helpers import first_of, experiment

SECONDS = 60.0  # for one answer, far more than any takes
NUMBERS = st.sampled_from([1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 0, -5, 2**62])
SEEN = st.sampled_from(["last", "last", "last", "last", "before", "before", 0, 3, -1, 2**62])
Z = st.sampled_from(["start", "start", "last", "other", "huge"])
ROUNDS = 3
LARGE = 100.0  # far above any noise here; beyond it, what was sent is so large that float32 has no place for the noise
# Items that nobody rates show the noise alone: ratings move no others.
SMALL = {
    "clients": 3, "partition": "users", "task": "rating", "market": {"users": 30, "items": 300, "impressions": 15},
    "rounds": ROUNDS, "local_epochs": 1, "optimiser": "sgd", "lr": 0.1, "l2": 0.0, "weights": "uniform",
}  # fmt: skip
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
        self.grid = InlineGrid(client_app(lambda _: (self.e, self.home)), len(clients_data(self.e)))
        self.node = next(iter(self.grid.contexts))
        self.rounds = (0, 0)  # of the last answer, and of the one before

    @rule(what=st.sampled_from(["restart", "save", "go back", "go back", "go back"]))
    def process(self, what: str) -> None:
        """The client's process ends, or its memory is saved, or is what was saved."""
        if what == "restart":
            self.restart()
        elif what == "save":
            self.saved = RecordDict(dict(self.grid.contexts[self.node].state)), self.rounds
        else:
            state, self.rounds = self.saved
            self.grid.contexts[self.node].state = RecordDict(dict(state))

    @rule()
    def join(self) -> None:
        """The client joins, whether it has or not."""
        reply = self.ask("query.join", RecordDict({"shared": pack({})}))
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
        content = broadcast_record(Broadcast(number, values, seen=after, rho=rho))
        key = (packed(self.grid.contexts[self.node].state), packed(content))
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
        reply = self.ask("evaluate", broadcast_record(sent))
        if isinstance(reply, RecordDict):
            found = read_contribution(reply)
            assert not found.values and not found.metrics
            self.rounds = (after, after)
            self.tested |= split == "test"

    @rule(kind=st.sampled_from(["train", "evaluate"]), what=st.sampled_from(["nothing", "values", "config", "private"]))
    def nonsense(self, kind: str, what: str) -> None:
        """A message that is none."""
        content = broadcast_record(Broadcast(1, self.start))
        if what == "nothing":
            content = RecordDict()
        elif what == "values":
            content["shared"] = pack({name: value[:1] for name, value in self.start.items()})
        elif what == "config":
            content["config"] = ConfigRecord({"round": "one"})
        else:
            content["shared"] = pack({**self.start, "user_table": torch.zeros(2, 2)})
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
            assert alike < 0.8, f"two answers have the same noise, of correlation {alike:.3f}"

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
            return {name: torch.full_like(value, 1e38) for name, value in self.start.items()}
        return self.start if z == "start" else self.last

    def noise(self, x: Params, z: Params) -> np.ndarray[Any, Any]:
        """Return how the rows that no interaction touches have moved."""
        rows = np.setdiff1d(np.arange(len(self.data.items)), self.data.train.item)
        assert len(rows) > 30
        return np.asarray((x["item_table"] - z["item_table"]).double()[torch.from_numpy(rows)].reshape(-1))

    def ask(self, kind: str, content: RecordDict) -> RecordDict | str:
        """Return what the client answers, or the words in which it refuses."""
        return asked(self.grid, self.node, kind, content)


def asked(grid: InlineGrid, node: int, kind: str, content: RecordDict) -> RecordDict | str:
    """Return what a client answers, or the words in which it refuses; anything else is a crash."""
    began = time.monotonic()
    (reply,) = grid.send_and_receive([Message(content, node, kind, group_id="1")])
    assert time.monotonic() - began < SECONDS
    if not reply.has_error():
        return reply.content
    reason = str(reply.error.reason)
    assert ": " in reason and "must" in reason or "budget" in reason, f"no words: {reason!r}"
    return reason


def run(machine: type[RuleBasedStateMachine], examples: int) -> None:
    quick = settings(
        max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck),
        database=None,
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=quick)  # type: ignore[no-untyped-call]


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
def test_no_order_of_messages_makes_noise_that_is_not_booked(
    case: str, tries: Callable[[int, int], int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    run(type("Case", (Server,), {"case": case}), tries(8, 100))
