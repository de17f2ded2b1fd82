"""What several test files need: small experiments, and a grid that records every message."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import ServerApp

from clients.node import Node
from fedrec.errors import UserError
from fedrec.experiment.acting import acting
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.records import Record
from fedrec.params import Params
from fedrec.sharing import ContractError, Contribution
from fedrec.wire import pack
from fedrec.wire.bundle import unbundled
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.engines import InlineGrid, launch
from simulations.engines.inline import run_on
from simulations.engines.nodes import each_alone
from simulations.methods import METHODS, usual
from tests.letters import contribution_record, read_broadcast, read_contribution, reason


def experiment(method: str = "fedper", **fields: Any) -> Experiment:
    """Return a small experiment on the synthetic market; what cannot act in it is at its default."""
    small = {"clients": 3, "rounds": 2, "dim": 4, "engine": "inline", "hidden": (8, 4)}
    made = build({**METHODS[method].model_dump(), **small, **fields})
    return acting(made, usual(made))


class AppNode(Node):
    """A node of one client that answers by a ClientApp, as under Ray or as a SuperNode: its state is in a Context."""

    def __init__(self, app: ClientApp, index: int, clients: int) -> None:
        super().__init__([])
        about = {"partition-id": index, "num-partitions": clients}
        self.app, self.context = app, Context(1, 2 + index, about, RecordDict(), {})  # type: ignore[arg-type]

    def answer(self, kind: str, content: RecordDict) -> RecordDict:
        """See Node; raises UserError with the text of an error."""
        message = Message(content, self.context.node_id, kind, group_id="0")
        message.metadata.__dict__["_message_id"] = "1"
        reply = self.app(message, self.context)
        if reply.has_error():
            raise UserError(str(reply.error.reason))
        return reply.content

    def state(self) -> RecordDict:
        """See Node."""
        return self.context.state


def run_inline(server: ServerApp, client: ClientApp, clients: int) -> None:
    """Run the apps of an experiment in this process, whatever its engine: the reference result."""
    run_on(InlineGrid([AppNode(client, i, clients) for i in range(clients)]), server)


def shared_by(e: Experiment, home: Path) -> bytes:
    """Return what the clients of an experiment share in the end, run by its engine."""
    launch(e, home)
    return (home / "model" / "shared.safetensors").read_bytes()


class SpyGrid(InlineGrid):
    """An inline grid that keeps every message and every reply, of a stage of a secure sum what is in the envelope."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__(nodes)
        self.sent: list[Message] = []
        self.received: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See InlineGrid."""
        messages = list(messages)
        self.sent += map(opened, messages)
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See InlineGrid."""
        replies = list(super().pull_messages(message_ids))
        self.received += map(opened, replies)
        return replies


def opened(message: Message) -> Message:
    """Return a message with what it holds of its one client in the place of an envelope."""
    if message.has_error() or "clients" not in message.content:
        return message
    try:
        found, failed = unbundled(message.content)
    except ContractError:  # a lie, which is kept as it is
        return message
    made: Any = Message  # whose types do not tell that it takes metadata
    about = {"error": Error(0, "; ".join(failed.values()))} if failed else {"content": found.popitem()[1]}
    return cast(Message, made(**about, metadata=message.metadata))


def fit(e: Experiment, home: Path | None = None) -> tuple[Record, SpyGrid]:
    """Run an experiment inline; return its record and the grid with all messages."""
    grid = SpyGrid(each_alone(e, home))
    return Coordinator(grid, plan_of(e, home)).fit(list(grid.get_node_ids())), grid


def shared_names(grid: SpyGrid) -> set[str]:
    """Return the names of all shared arrays that travelled, either way."""
    return {
        name
        for message in [*grid.sent, *grid.received]
        for place, part in message.content.items()
        if isinstance(part, ArrayRecord) and place.startswith("shared")
        for name in part
    }


def first_of(e: Experiment) -> Params:
    """Return the shared parameters that the first client of an experiment joins with."""
    grid = InlineGrid(each_alone(e, None))
    node = next(iter(grid.get_node_ids()))
    (reply,) = grid.send_and_receive([Message(RecordDict({"shared.0": pack({})}), node, "query.join", group_id="0")])
    return read_contribution(reply.content).values


def results(record: Record) -> list[tuple[Any, ...]]:
    """Return everything of a record that must not depend on the engine or the hour, floats exact."""
    timing = {"seconds", "evaluate_seconds"}
    rounds = [tuple((k, repr(v)) for k, v in row.items() if k not in timing) for row in record.rounds]
    return [*rounds, *(tuple((k, repr(v)) for k, v in row.items()) for row in [*record.clients, *record.ledger])]


Change = Callable[[Contribution, Message], Contribution | Message | None]  # an answer to what arrives; None: nothing


class FaultyGrid(SpyGrid):
    """A grid on which some answers arrive otherwise: `faults` by (client, kind of message, round)."""

    def __init__(self, e: Experiment, faults: Mapping[tuple[str, str, int], Change], home: Path | None = None) -> None:
        super().__init__(each_alone(e, home))
        self.faults = faults
        self.injected: list[tuple[str, str, int]] = []

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        if reason(reply):
            return reply
        read = read_contribution(reply.content)
        number = 0 if "config" not in message.content.config_records else read_broadcast(message.content).round
        key = (read.client, message.metadata.message_type, number)
        if key not in self.faults:
            return reply
        self.injected.append(key)
        made = self.faults[key](read, message)
        if made is None:
            return Message(Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason="gone"), reply_to=message)
        return made if isinstance(made, Message) else Message(contribution_record(made), reply_to=message)


def alter(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Return the fault that sends changed values."""
    return lambda reply, _: replace(reply, values={name: change(value) for name, value in reply.values.items()})


def spoilt(value: float) -> Change:
    """Return the fault that sends one entry that is `value`."""

    def change(reply: Contribution, _: Message) -> Contribution:
        name = next(iter(reply.values))
        tensor = reply.values[name].clone()
        tensor.view(-1)[-1] = value
        return replace(reply, values={**reply.values, name: tensor})

    return change


def raised(reply: Contribution, message: Message) -> Message:
    """Raise in the client, after it has trained."""
    return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason="MemoryError"), reply_to=message)


FAULTS: dict[str, Change] = {
    "nan": spoilt(math.nan),
    "inf": spoilt(-math.inf),
    "shape": alter(lambda value: value[:1]),
    "dtype": alter(lambda value: value.double()),
    "extra": lambda reply, _: replace(reply, values={**reply.values, "user_table": torch.ones(2, 2)}),
    "missing": lambda reply, _: replace(reply, values=dict(list(reply.values.items())[1:])),
    "metric": lambda reply, _: replace(reply, metrics={**reply.metrics, "age": 41.0}),
    "name": lambda reply, _: replace(reply, client="somebody"),
    "raised": raised,
    "silence": lambda reply, _: None,
}


def coordinated(e: Experiment, faults: Mapping[tuple[str, str, int], Change]) -> tuple[Coordinator, FaultyGrid]:
    """Run an experiment in which some answers arrive otherwise; return its coordinator and the grid."""
    grid = FaultyGrid(e, faults)
    made = Coordinator(grid, plan_of(e))
    made.fit(list(grid.get_node_ids()))
    return made, grid


# What may differ between two runs of one experiment on one machine, by file: times, and what was lost and made again.
CLOCK = {
    "rounds.csv": ["seconds", "evaluate_seconds"],
    "student.csv": ["teacher_ms", "student_ms"],
    "experiment.json": ["seconds", "resumed"],
}


def same(a: Path, b: Path, but: Sequence[str] = ()) -> None:
    """Assert that two runs have the same files, to the bit but for `CLOCK` and the report, which shows it.

    `but` names fields of the experiment that may differ.
    """
    one, two = ({str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()} for home in (a, b))
    beside = ("checkpoints/", "report.html", "baselines/")  # these as runs of their own
    one, two = ({name for name in names if not name.startswith(beside)} for names in (one, two))
    assert one == two
    for name in sorted(one):
        drop = CLOCK.get(Path(name).name, [])
        if name.endswith(".json") and drop:
            x, y = (json.loads((home / name).read_text()) for home in (a, b))
            for record in (x, y):
                record |= dict.fromkeys(drop)
                record["experiment"] |= dict.fromkeys(but)
            assert json.dumps(x) == json.dumps(y)
        elif drop:
            x, y = (pd.read_csv(home / name, dtype=str, keep_default_na=False).drop(columns=drop) for home in (a, b))
            pd.testing.assert_frame_equal(x, y)
        else:
            assert (a / name).read_bytes() == (b / name).read_bytes(), name
    for home in (a / "baselines").glob("*/"):
        same(home, b / "baselines" / home.name, but)


class Here:
    """A pool without processes: to start one costs seconds."""

    def __init__(self, workers: int, *args: object, **more: object) -> None:
        self.workers = workers

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def map(self, function: Callable[[Any], Any], jobs: Iterable[Any]) -> list[Any]:
        """Return what a function makes of every job."""
        return [function(job) for job in jobs]
