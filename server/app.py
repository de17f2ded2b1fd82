"""The ServerApp: wait for the clients, coordinate them, hand over the record."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedrec.records import Record, Row
from server.strategy import ClientFailure, Coordinator, Plan

Finish = Callable[[Record], None]


def server_app(
    read: Callable[[dict[str, Any]], tuple[Plan, int, Finish]],
    on_round: Callable[[Row], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
) -> ServerApp:
    """Return the ServerApp; `read` gives the plan, the number of clients, and what to do with the record.

    `on_round` is told of every round; the run ends after the round in which `stop` says so.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        plan, clients, finish = read(dict(context.run_config))
        finish(Coordinator(grid, plan, on_round, stop).fit(wait_for(grid, clients)))

    return app


def wait_for(grid: Grid, clients: int, seconds: float = 120.0) -> Sequence[int]:
    """Return the ids of `clients` nodes; a ServerApp may start before they have registered.

    Raises ClientFailure if they have not come after `seconds`, or if there are more.
    """
    deadline = time.monotonic() + seconds
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= clients or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if len(nodes) != clients:
        raise ClientFailure(f"clients: {clients} must be connected, found {len(nodes)} after {seconds:.0f} s")
    return nodes
