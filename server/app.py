"""The ServerApp: wait for the clients, coordinate them, hand over the record."""

import time
from collections.abc import Callable, Sequence

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedrec.experiment.records import Record, Row
from server.checkpoint import Checkpoints
from server.faults import ClientFailure
from server.plan import Plan
from server.strategy import Coordinator

Finish = Callable[[Record], None]


def server_app(
    expected: Callable[[Context], int | None],
    read: Callable[[Context, int], tuple[Plan, Finish]],
    on_round: Callable[[Row], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoints: Checkpoints | None = None,
) -> ServerApp:
    """Return the ServerApp.

    `expected` tells how many nodes to wait for (None: all that are connected); `read` gives the plan for so many
    clients, and what to do with the record. `on_round` is told of every round; the run ends after the round in which
    `stop` says so. `checkpoints` are written, and gone on from.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = wait_for(grid, expected(context))
        plan, finish = read(context, len(nodes))
        finish(Coordinator(grid, plan, on_round, stop, checkpoints).fit(nodes))

    return app


def wait_for(grid: Grid, clients: int | None, seconds: float = 60.0, settle: float = 2.0) -> Sequence[int]:
    """Return the ids of the connected nodes; a ServerApp may start before they have registered.

    Waits for `clients` nodes, or, if that is None, until their number has not changed for `settle` seconds. Raises
    ClientFailure if they have not come after `seconds`, or if there are more.
    """
    start = changed = time.monotonic()
    nodes: list[int] = []
    while time.monotonic() - start < seconds:
        ids = sorted(grid.get_node_ids())
        changed = changed if len(ids) == len(nodes) else time.monotonic()
        nodes = ids
        if nodes and (len(nodes) >= clients if clients is not None else time.monotonic() - changed >= settle):
            break
        time.sleep(0.05)
    if not nodes or (clients is not None and len(nodes) != clients):
        raise ClientFailure(f"clients: {clients or 'some'} must be connected, found {len(nodes)} after {seconds:.0f} s")
    return nodes
