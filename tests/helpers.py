"""What several test files need: small experiments, and a grid that records every message."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.clientapp import ClientApp

from clients.app import client_app
from fedrec.experiment import Experiment, build, clients_data
from fedrec.records import Record
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.engines import InlineGrid
from simulations.methods import METHODS


def experiment(method: str = "fedper", **fields: Any) -> Experiment:
    """Return a small experiment on the synthetic market."""
    small = {"clients": 3, "rounds": 2, "dim": 4, "engine": "inline", "hidden": (8, 4)}
    return build({**METHODS[method].model_dump(), **small, **fields})


class SpyGrid(InlineGrid):
    """An inline grid that keeps every message and every reply."""

    def __init__(self, app: ClientApp, clients: int) -> None:
        super().__init__(app, clients)
        self.sent: list[Message] = []
        self.received: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See InlineGrid."""
        messages = list(messages)
        self.sent += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See InlineGrid."""
        replies = list(super().pull_messages(message_ids))
        self.received += replies
        return replies


def fit(e: Experiment, home: Path | None = None) -> tuple[Record, SpyGrid]:
    """Run an experiment inline; return its record and the grid with all messages."""
    grid = SpyGrid(client_app(lambda _: (e, home)), len(clients_data(e)))
    return Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids())), grid


def results(record: Record) -> list[tuple[Any, ...]]:
    """Return everything of a record that must not depend on the engine or the hour, floats exact."""
    timing = {"seconds", "evaluate_seconds"}
    rounds = [tuple((k, repr(v)) for k, v in row.items() if k not in timing) for row in record.rounds]
    return [*rounds, *(tuple((k, repr(v)) for k, v in row.items()) for row in [*record.clients, *record.ledger])]
