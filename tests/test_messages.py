"""A spy on the wire: no private tensor's name or bytes in any message, nothing outside the contract."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from clients.app import client_app
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.sharing import Contribution
from fedrec.wire.messages import ANSWERS
from simulations.engines.nodes import each_alone
from tests.helpers import AppNode, SpyGrid, experiment, fit
from tests.letters import contribution_record, read_contribution, reason, state_of

CASES = [
    experiment("fedper"),
    experiment("fedrep"),
    experiment("fedavg"),
    experiment("local"),
    experiment("fedper", model="mlp", task="rank,click*0.5;shop=rating;news=buy,rank-bce"),
    experiment("fedprox", task="rank"),
    experiment("fedper", model="mf;shop=mlp", task="rank"),
    experiment("admm"),
    experiment("graph"),
    experiment("no-harm"),
    experiment("cagrad"),
]


def content_bytes(message: Message) -> bytes:
    """Return every name and every byte of payload of a message's content."""
    parts: list[bytes] = []
    for name, record in message.content.items():
        parts.append(name.encode())
        for key, value in record.items():
            parts += [key.encode(), value.data if hasattr(value, "data") else repr(value).encode()]
    return b"\0".join(parts)


@pytest.mark.parametrize("e", CASES, ids=lambda e: f"{e.method}-{e.model}")
def test_no_private_tensor_is_in_any_message(e: Experiment) -> None:
    snapshots: list[tuple[str, bytes]] = []

    class Watching(SpyGrid):
        def _answer(self, message: Message) -> Message:
            reply = super()._answer(message)
            private = state_of(self.nodes[message.metadata.dst_node_id]).now.private
            snapshots.extend((name, value.numpy().tobytes()) for name, value in private.items() if value.numel() > 2)
            return reply

    from server.strategy import Coordinator
    from simulations.apps import plan_of

    grid = Watching(each_alone(e, None))
    record = Coordinator(grid, plan_of(e)).fit(list(grid.get_node_ids()))
    wire = [content_bytes(m) for m in [*grid.sent, *grid.received]]
    assert len(wire) == 2 * 3 * (1 + 2 * e.rounds + 1)  # join, train and validate each round, test; both ways
    private = {name for name, _ in snapshots}
    assert {name.split(".")[0] for name in private} >= {"user_table"}
    trained = {data for _, data in snapshots if any(data)}
    assert len(trained) > 3
    for blob in wire:
        for name in private - set(record.shared):
            assert name.encode() not in blob
        for data in trained:
            assert data not in blob


@pytest.mark.parametrize("e", CASES, ids=lambda e: f"{e.method}-{e.model}")
def test_messages_hold_only_what_the_contract_allows(e: Experiment) -> None:
    _, grid = fit(e)
    metrics = {
        "loss",
        "examples",
        *(["gap"] if e.coupling.duals else []),
        *(["mu", "excess"] if e.budget.active else []),
    }
    for message in grid.sent:
        assert set(message.content) <= {"shared.0", "config"}
        assert all(
            e.sharing().split({name: torch.zeros(0)})[1] == {} for name in message.content.array_records["shared.0"]
        )
    for message in grid.received:
        content = message.content
        assert set(content) <= {"shared.0", "rows.0", "metrics", "config"}
        assert all(e.sharing().split({name: torch.zeros(0)})[1] == {} for name in content.array_records["shared.0"])
        assert set(content.config_records["config"]) <= ANSWERS
        names = {n if "/" not in n else n.rsplit("/", 1)[1] for n in read_contribution(content).metrics}
        assert names <= metrics | set(e.metrics) | {"auc", "logloss", "rmse"}


def test_permuting_a_private_head_leaves_the_next_message_unchanged() -> None:
    e = experiment("fedper")
    _, grid = fit(e)
    context = next(iter(grid.nodes.values()))
    private = state_of(context).now.private
    shared = {"item_table": torch.arange(8.0).reshape(4, 2)}

    def message(head: torch.Tensor) -> str:
        joined = e.sharing().join(shared, {**private, "heads.rank.weight": head})
        update, _ = e.sharing().split(joined)
        return contribution_record(Contribution("films", update, {"loss": 0.5})).object_id

    head = private["heads.rank.weight"]
    assert not torch.equal(head, head.flip(0))
    assert message(head) == message(head.flip(0))


def test_a_contribution_covers_the_rows_a_client_carries_not_those_it_touched() -> None:
    e = experiment("fedper")
    _, grid = fit(e)
    sizes = {data.name: len(data.items) for data in clients_data(e)}
    for message in grid.received:
        shared = message.content.array_records["shared.0"]
        if "item_table" in shared:
            assert shared["item_table"].shape[0] == sizes[read_contribution(message.content).client]


def test_the_length_of_a_message_does_not_depend_on_the_interactions() -> None:
    lengths = []
    for seed in (0, 1):
        _, grid = fit(experiment("fedper", seed=seed, dataset="synthetic", partition="users"))
        lengths.append(
            [sum(len(a.data) for r in m.content.array_records.values() for a in r.values()) for m in grid.received]
        )
    assert lengths[0] == lengths[1]


def test_an_error_of_a_client_does_not_quote_private_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    e = experiment("fedper")
    _, grid = fit(e)
    before = next(m for m in reversed(grid.sent) if m.metadata.message_type == "evaluate")
    (party,) = grid.nodes[before.metadata.dst_node_id].parties.values()
    state = party.state
    broken: Any = {"secret": 41.5}
    party.joined = state._replace(now=state.now._replace(private=broken))
    assert reason(grid._answer(before)) == "AttributeError"
    node = AppNode(client_app(lambda _: (e, None)), 0, 3)
    node.context.state = RecordDict({"about": ConfigRecord({"about": '{"names": [41.5]}'})})
    with pytest.raises(UserError, match="KeyError"):
        node.answer("evaluate", before.content)
