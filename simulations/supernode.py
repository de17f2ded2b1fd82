"""SuperNodes: `python -m simulations.supernode SOCKET N FOLDER PART ...` runs N of them, each a process of its own.

Flower's `flower-supernode` starts a fresh Python for every message, and looks for one every three seconds. These ones
keep their ClientApp, its data and its Context in memory. They are forked from one process after its imports, which then
are done, and held in memory, once.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from clients.app import client_app
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.origins import permit
from simulations.processes import GONE, START, answers, end_with_parent
from simulations.sockets import NOWHERE, speaking

IDLE = (0.02, 1.0)  # seconds between two looks for a message: from the first, by and by, to the second


def read(context: Context, allowed: Collection[str] = ()) -> tuple[Experiment, Path]:
    """Return the experiment of a run_config, and the folder that a client keeps its files in.

    Raises UserError for a part by path that is not `allowed` to this node.
    """
    experiment = build(json.loads(str(context.run_config["experiment"])))
    permit(experiment.own_parts, allowed)
    return experiment, Path(str(context.run_config["out"]))


def take(pull: Callable[[str], bytes], before: Mapping[str, bytes], held: dict[str, bytes], name: str) -> bytes:
    """Return a part of a message from the message before, or else by `pull`; add it to `held`."""
    held[name] = content = before[name] if name in before else pull(name)
    return content


def inflated(
    tree: ObjectTree, pull: Callable[[str], bytes], confirm: Callable[[str], None], looks: tuple[float, float]
) -> Message:
    """Return the message of a tree, which may be there before its tensors are; `looks` are as in `IDLE`."""
    message = pull_and_inflate_object_from_tree(
        tree, pull, confirm, return_type=Message, initial_backoff=looks[0], backoff_cap=looks[1]
    )
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def serve(partition: int, clients: int, app: ClientApp) -> None:
    """Register at the SuperLink as the node of one partition, and answer its messages until it is gone."""
    wait = IDLE[0]
    context: Context | None = None
    held: dict[str, bytes] = {}  # the last message's parts by the hash of their content: most come again in the next
    with http_request_response(NOWHERE, insecure=True, max_wait_time=GONE) as connection:
        node, receive, send, get_run, _, pull, push, confirm = connection
        while True:
            received = receive()
            if received is None:
                time.sleep(wait)
                wait = min(wait * 1.5, IDLE[1])
                continue
            wait = IDLE[0]
            header, tree = received
            run = header.metadata.run_id
            if context is None:
                config: UserConfig = {"partition-id": partition, "num-partitions": clients}
                context = Context(run, node, config, RecordDict(), get_run(run).override_config)
                TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, node
            before, held = held, {}
            message = inflated(tree, partial(take, partial(pull, run), before, held), partial(confirm, run), IDLE)
            begun = time.monotonic()
            reply = app(message, context)
            reply.metadata.__dict__["_message_id"] = reply.object_id
            with no_object_id_recompute():
                missing, session = send(reply, get_object_tree(reply), time.monotonic() - begun)
                push_objects(
                    get_all_nested_objects(reply),
                    partial(push, run, session),
                    object_ids_to_push=missing,
                )


def main(socket: str, clients: int, folder: str = "", *allowed: str) -> int:
    """Fork the nodes, which may import parts `allowed`; return 1 when one ends, which none may before the run."""
    sys.path += [folder] if folder else []
    app = client_app(partial(read, allowed=allowed))
    answers(socket, START)
    gc.freeze()  # what the imports left is never collected, so that the pages stay shared
    nodes = {}
    for partition in range(clients):
        if (child := os.fork()) == 0:
            end_with_parent()
            with speaking(socket):
                serve(partition, clients, app)
            return 1
        nodes[child] = partition
    end_with_parent()
    child, status = os.wait()
    print(f"the node of partition {nodes[child]} ended with status {os.waitstatus_to_exitcode(status)}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
