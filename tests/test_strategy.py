"""The strategy: one Z whatever the order of replies, named failures that leave Z alone, and the best round chosen."""

import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from flwr.app import Array, ConfigRecord, Error, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.node import Node
from fedrec.data.types import Ints
from fedrec.experiment.records import table_of
from fedrec.federation.coordination import Coupling, Descent
from fedrec.federation.participation import Turnout
from fedrec.params import Params
from fedrec.sharing import Contribution
from server.faults import ClientFailure
from server.joining import join
from server.plan import Plan
from server.strategy import Coordinator
from tests.helpers import SpyGrid
from tests.letters import contribution_record, read_broadcast, read_contribution

Alter = Callable[[Message, Message], Message | None]  # (message, its reply) to what arrives; None: nothing does


@dataclass
class Scripted:
    """A client that answers by the book: it sends back what it was sent, plus `step`, and scores as told."""

    name: str
    ids: Ints = field(default_factory=lambda: table_of([0, 1]))
    body: float = 0.0
    examples: float = 1.0
    step: float = 1.0
    scores: dict[int, float] = field(default_factory=dict)  # round -> ndcg@10

    def start(self) -> Params:
        """Return what it shares when it joins."""
        return {"item_table": torch.zeros(len(self.ids), 2), "body.0.bias": torch.tensor([self.body])}

    def __call__(self, message: Message) -> Message:
        kind = message.metadata.message_type
        if kind == "query.join":
            reply = Contribution(self.name, self.start(), {"examples": self.examples}, rows={"item": self.ids})
        else:
            broadcast = read_broadcast(message.content)
            if kind == "train":
                values = {name: value + self.step for name, value in broadcast.values.items()}
                reply = Contribution(self.name, values, {"loss": 0.5})
            else:
                score = self.scores.get(broadcast.round, 0.0)
                reply = Contribution(self.name, {}, {f"{self.name}/rank/ndcg@10": score})
        return Message(contribution_record(reply), reply_to=message)


class ScriptedGrid(SpyGrid):
    """Scripted clients; replies come in the order of `order`, and `alter` may forge or lose them."""

    def __init__(
        self, clients: list[Scripted], alter: Alter = lambda message, reply: reply, order: list[int] | None = None
    ) -> None:
        super().__init__([Node([]) for _ in clients])
        self.script = dict(zip(self.nodes, clients, strict=True))
        self.alter, self.order = alter, order or list(range(len(clients)))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        return self.script[node](message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See InlineGrid."""
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        found = [self.alter(message, reply) for message, reply in zip(messages, replies, strict=True)]
        return [found[i] for i in self.order if i < len(found) and found[i] is not None]  # type: ignore[misc]


EVERYBODY = Turnout(quorum=1.0)
METRICS = frozenset({"rank/ndcg@10", "rank/hr@10", "buy/auc", "buy/logloss", "rating/rmse"})


def coordinator(grid: ScriptedGrid, **plan: Any) -> Coordinator:
    usual = {"rounds": 3, "eval_every": 1, "patience": 0, "uniform": False, "select": ("ndcg@10", "logloss")}
    return Coordinator(
        grid,
        Plan(
            **{
                **usual,
                "metrics": METRICS,
                "pooled": False,
                "coupling": Coupling(),
                "descent": Descent(),
                "seed": 0,
                **plan,
            }
        ),
    )


def run(grid: ScriptedGrid, **plan: Any) -> Coordinator:
    found = coordinator(grid, **plan)
    found.fit(list(grid.get_node_ids()))
    return found


def three() -> list[Scripted]:
    return [
        Scripted("silo-2", table_of([0, 1]), body=1e11, examples=3, step=1e11),
        Scripted("silo-10", table_of([1, 4]), body=1.0, examples=5, step=1.0),
        Scripted("films", table_of([0, 1, 4]), body=-1e11, examples=3, step=-1e11),
    ]


def bits(params: Params) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in params.items()}


def test_z_is_the_weighted_mean_over_the_carriers_of_a_row() -> None:
    clients = [
        Scripted("a", table_of([0, 1]), body=4.0, examples=1, step=1.0),
        Scripted("b", table_of([1, 7]), body=0.0, examples=3, step=5.0),
    ]
    found = run(ScriptedGrid(clients), rounds=1)
    assert found.record.rows["item"].tolist() == [0, 1, 7]
    # Row 0 is a's alone, row 7 b's; row 1 and the body: (1 * 1 + 3 * 5) / 4 = 4 above where they were, 0 and 1.
    assert found.z["item_table"].tolist() == [[1, 1], [4, 4], [5, 5]]
    assert found.z["body.0.bias"].tolist() == [1 + 4]
    assert found.record.shared is found.z and list(found.z) == sorted(found.z)


@pytest.mark.parametrize(("uniform", "body"), [(True, 5.0), (False, 2.0 + 1.0)])
def test_clients_weigh_one_each_or_as_many_as_their_examples(uniform: bool, body: float) -> None:
    # Uniform: start 2, steps of mean 3. By examples 3 : 1: start 1, steps (3 * 1 + 1 * 5) / 4 = 2.
    clients = [Scripted("a", body=0.0, examples=3, step=1.0), Scripted("b", body=4.0, examples=1, step=5.0)]
    assert run(ScriptedGrid(clients), rounds=1, uniform=uniform).z["body.0.bias"].item() == body


def test_a_client_without_examples_still_counts_as_one() -> None:
    clients = [Scripted("a", examples=0, step=2.0), Scripted("b", examples=1, step=4.0)]
    assert run(ScriptedGrid(clients), rounds=1).z["body.0.bias"].item() == 3


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_replies_in_any_order_give_the_same_z_to_the_bit(order: tuple[int, ...]) -> None:
    reference = run(ScriptedGrid(three()), rounds=2)
    found = run(ScriptedGrid(three(), order=list(order)), rounds=2)
    assert bits(found.z) == bits(reference.z)
    assert repr(found.record.clients) == repr(reference.record.clients)
    assert list(found.carriers) == ["films", "silo-2", "silo-10"]


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(3)), st.lists(st.floats(-(2.0**36), 2.0**36, width=32), min_size=3, max_size=3))
def test_neither_the_nodes_nor_the_order_decide_z(nodes: list[int], steps: list[float]) -> None:
    clients = [replace(one, step=step) for one, step in zip(three(), steps, strict=True)]
    found = run(ScriptedGrid([clients[i] for i in nodes], order=nodes), rounds=1)
    assert bits(found.z) == bits(run(ScriptedGrid(clients), rounds=1).z)


def forged(name: str, kind: str, change: Callable[[Contribution, Message], Message | Contribution | None]) -> Alter:
    """Return an `alter` that changes the replies of one client to messages of one kind."""

    def alter(message: Message, reply: Message) -> Message | None:
        found = read_contribution(reply.content)
        if message.metadata.message_type != kind or found.client != name:
            return reply
        made = change(found, message)
        return Message(contribution_record(made), reply_to=message) if isinstance(made, Contribution) else made

    return alter


def values(change: Callable[[Params], Params]) -> Callable[[Contribution, Message], Contribution]:
    return lambda reply, message: replace(reply, values=change(reply.values))


def failed(reply: Contribution, message: Message) -> Message:
    return Message(Error(code=0, reason="out of memory"), reply_to=message)


def smuggling(reply: Contribution, message: Message) -> Message:
    content = contribution_record(reply)
    content["history"] = ConfigRecord({"users": "1,2,3"})
    return Message(content, reply_to=message)


def text(reply: Contribution, message: Message) -> Message:
    content = contribution_record(reply)
    content.array_records["shared.0"]["body.0.bias"] = Array("str", (1,), "numpy.ndarray", b"not an array")
    return Message(content, reply_to=message)


FAULTS: list[tuple[str, Callable[[Contribution, Message], Any], str, str]] = [
    (
        "nan",
        values(lambda p: {**p, "body.0.bias": torch.tensor([math.nan])}),
        "contract",
        r"body.0.bias: every value must be finite, found nan",
    ),
    (
        "infinite",
        values(lambda p: {**p, "item_table": torch.full((2, 2), math.inf)}),
        "contract",
        r"item_table: every value must be finite, found inf at entry 0",
    ),
    (
        "shape",
        values(lambda p: {**p, "item_table": torch.zeros(3, 2)}),
        "contract",
        r"item_table: must have shape \[2, 2\], found \[3, 2\]",
    ),
    (
        "dtype",
        values(lambda p: {**p, "body.0.bias": torch.zeros(1, dtype=torch.float64)}),
        "contract",
        r"body.0.bias: must have dtype torch.float32, found torch.float64",
    ),
    (
        "extra",
        values(lambda p: {**p, "user_table": torch.zeros(1, 2)}),
        "contract",
        r"user_table: must be a shared parameter \(body.0.bias, item_table\), found unknown name",
    ),
    (
        "missing",
        values(lambda p: {"item_table": p["item_table"]}),
        "contract",
        r"body.0.bias: must be sent, found missing",
    ),
    (
        "name",
        lambda reply, _: replace(reply, client="films"),
        "contract",
        r"must answer under its own name, found 'films'",
    ),
    ("record", smuggling, "contract", r"record history: must be one of"),
    ("bytes", text, "contract", r"body.0.bias: must be a NumPy array without objects"),
    ("error", failed, "error", r"failed: out of memory"),
    ("silence", lambda reply, message: None, "silence", r"did not answer"),
]


@pytest.mark.parametrize(("change", "kind", "match"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_reply_that_breaks_the_contract_is_named_and_does_not_count(
    change: Callable[[Contribution, Message], Any], kind: str, match: str
) -> None:
    """films carries the rows 0 and 2, shop 0 and 1; Z starts with the body (1 + 3) / 2, and films adds one."""
    clients = [Scripted("films", table_of([0, 2]), body=1.0), Scripted("shop", table_of([0, 1]), body=3.0)]
    found = coordinator(ScriptedGrid(clients, forged("shop", "train", change)))
    join(found, list(found.grid.get_node_ids()))
    row = found.round(1)
    assert found.z["body.0.bias"].item() == 3.0 and found.z["item_table"][:, 0].tolist() == [1.0, 0.0, 1.0]
    assert (row["drawn"], row["clients"]) == (2, 1)
    assert found.seen == {"films": 1, "shop": 0}
    (fault,) = found.record.faults
    assert (fault["round"], fault["client"], fault["during"], fault["kind"]) == (1, "shop", "train", kind)
    assert re.search(match, str(fault["text"]))
    assert [row["client"] for row in found.record.clients] == ["films"]


@pytest.mark.parametrize(("change", "kind", "match"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_below_the_quorum_the_run_fails_and_z_is_left_alone(
    change: Callable[[Contribution, Message], Any], kind: str, match: str
) -> None:
    clients = [Scripted("films", table_of([0, 2]), body=1.0), Scripted("shop", table_of([0, 1]), body=3.0)]
    found = coordinator(ScriptedGrid(clients, forged("shop", "train", change)), turnout=EVERYBODY)
    join(found, list(found.grid.get_node_ids()))
    before = found.z
    with pytest.raises(ClientFailure, match=rf"^round 1: 2 of 2 clients must answer, found 1 \(shop: .*{match}"):
        found.round(1)
    assert found.z is before


JOINS: list[tuple[str, Callable[[Contribution, Message], Any], str, str]] = [
    (
        "twice",
        lambda reply, _: replace(reply, client="films"),
        "contract",
        r"must have a name of its own, found it 2 times",
    ),
    (
        "order",
        lambda reply, _: replace(reply, rows={"item": table_of([1, 0])}),
        "contract",
        r"rows item: must be non-negative and strictly ascending",
    ),
    (
        "negative",
        lambda reply, _: replace(reply, rows={"item": table_of([-1, 0])}),
        "contract",
        r"rows item: must be non-negative and strictly ascending",
    ),
    (
        "count",
        lambda reply, _: replace(reply, rows={"item": table_of([0, 1, 2])}),
        "contract",
        r"item_table: must come with 2 row ids, found 3",
    ),
    (
        "none",
        lambda reply, _: replace(reply, rows={}),
        "contract",
        r"item_table: must come with 2 row ids, found none",
    ),
    (
        "space",
        lambda reply, _: replace(reply, rows={"item": table_of([0, 1]), "genre": table_of([0])}),
        "contract",
        r"rows genre: must be one of item, pair, probe, user",
    ),
    (
        "nan",
        values(lambda p: {**p, "body.0.bias": torch.tensor([math.nan])}),
        "contract",
        r"body.0.bias: every value must be finite, found nan",
    ),
    (
        "width",
        values(lambda p: {**p, "item_table": torch.zeros(2, 5)}),
        "contract",
        r"item_table: must have width \[2\] of torch.float32, found width \[5\]",
    ),
    (
        "metric",
        lambda reply, _: replace(reply, metrics={"income": 1.0}),
        "contract",
        r"metric income: must be on the allow-list \(examples\)",
    ),
    ("error", failed, "error", r"failed: out of memory"),
    ("silence", lambda reply, message: None, "silence", r"did not answer"),
]


@pytest.mark.parametrize(("change", "kind", "match"), [j[1:] for j in JOINS], ids=[j[0] for j in JOINS])
def test_a_client_cannot_join_against_the_contract(
    change: Callable[[Contribution, Message], Any], kind: str, match: str
) -> None:
    """With a third client the run goes on without it, and as if it had never been there."""
    others = [Scripted("films"), Scripted("news", step=3.0)]
    grid = ScriptedGrid([*others, Scripted("shop")], forged("shop", "query.join", change))
    with pytest.raises(ClientFailure, match=rf"^joining: 3 of 3 clients must answer, found \d \(.*{match}"):
        run(grid, turnout=EVERYBODY)
    assert {message.metadata.message_type for message in grid.sent} == {"query.join"}
    if "its own" in match or "of its own" in match:
        return  # nobody can tell which of two is films, so neither is
    found = run(ScriptedGrid([*others, Scripted("shop")], forged("shop", "query.join", change)))
    without = run(ScriptedGrid(others))
    assert bits(found.z) == bits(without.z) and found.record.selected_round == without.record.selected_round
    (fault,) = found.record.faults
    assert (fault["during"], fault["kind"], fault["round"]) == ("join", kind, 0)
    assert re.search(match, str(fault["text"])) and fault["client"] in ("shop", "node 4")


def test_a_metric_without_its_client_and_task_is_refused() -> None:
    alter = forged("shop", "evaluate", lambda reply, _: replace(reply, metrics={"ndcg@10": 0.5}))
    with pytest.raises(ClientFailure, match=r"\(shop: metric ndcg@10: must be on the allow-list"):
        run(ScriptedGrid([Scripted("films"), Scripted("shop")], alter), turnout=EVERYBODY)


SCORES = st.lists(st.one_of(st.integers(0, 5).map(lambda i: i / 5), st.just(math.nan)), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(SCORES, st.integers(1, 3), st.integers(0, 2))
def test_the_best_validated_round_is_tested_with_its_z(scores: list[float], every: int, patience: int) -> None:
    rounds, told = len(scores), dict(enumerate(scores, 1))
    grid = ScriptedGrid([Scripted("films", scores=told), Scripted("shop", scores=told)])
    found = run(grid, rounds=rounds, eval_every=every, patience=patience)

    best, best_score, stale, number, keep = 0, -math.inf, 0, 0, False
    expected: list[tuple[str, int, bool]] = []  # the messages that each client must get
    while number < rounds and not (patience and stale >= patience):
        number += 1
        expected.append(("train", number, keep))
        keep = False
        if number % every == 0 or number == rounds:
            expected.append(("evaluate", number, False))
            score = -math.inf if math.isnan(told[number]) else told[number]
            keep = not best or score > best_score or score == best_score == -math.inf
            best, best_score, stale = (number, score, 0) if keep else (best, best_score, stale + 1)
    expected.append(("evaluate", best, keep))

    for node in grid.nodes:
        mine = [message for message in grid.sent[2:] if message.metadata.dst_node_id == node]
        read = [(message.metadata.message_type, read_broadcast(message.content)) for message in mine]
        assert [(kind, b.round, b.keep) for kind, b in read] == expected
        assert [b.split for _, b in read] == ["validation"] * (len(read) - 1) + ["test"]
        assert read[-1][1].values["body.0.bias"].item() == best  # every round adds one
    assert found.record.selected_round == best
    assert found.record.shared["body.0.bias"].item() == best
    assert [row["round"] for row in found.record.rounds] == list(range(1, number + 1))
    assert found.record.stopped == ("patience" if patience and stale >= patience else "")


def test_a_score_that_is_missing_does_not_make_a_round_better() -> None:
    """In round 3 shop has no number: the worse of its last one, .4, and its one in the best round, .1, stands in."""
    clients = [
        Scripted("films", scores={1: 0.9, 2: 0.4, 3: 0.6}),
        Scripted("shop", scores={1: 0.1, 2: 0.4, 3: math.nan}),
    ]
    found = run(ScriptedGrid(clients))
    assert [row["validation"] for row in found.record.rounds] == [0.5, 0.4, 0.35]
    assert found.record.selected_round == 1


def test_a_client_that_never_has_a_score_is_left_out_of_all_rounds() -> None:
    clients = [
        Scripted("films", scores={1: 0.5, 2: 0.4, 3: 0.6}),
        Scripted("shop", scores={1: math.nan, 2: math.nan, 3: math.nan}),
    ]
    found = run(ScriptedGrid(clients))
    assert [row["validation"] for row in found.record.rounds] == [0.5, 0.4, 0.6]
    assert found.record.selected_round == 3


def test_a_client_without_the_first_metric_is_judged_by_its_next_one_of_which_less_is_better() -> None:
    def loss(reply: Contribution, message: Message) -> Contribution:
        number = read_broadcast(message.content).round
        return replace(reply, metrics={"shop/buy/logloss": {1: 0.7, 2: 0.2, 3: 0.9}[number], "shop/buy/auc": 0.5})

    found = run(ScriptedGrid([Scripted("shop")], forged("shop", "evaluate", loss)))
    assert [row["validation"] for row in found.record.rounds] == [-0.7, -0.2, -0.9]
    assert found.record.selected_round == 2


def test_the_members_of_a_pooled_client_are_judged_one_by_one() -> None:
    def two(reply: Contribution, message: Message) -> Contribution:
        return replace(reply, metrics={"films/rank/ndcg@10": 0.2, "shop/rank/ndcg@10": 0.4})

    found = run(ScriptedGrid([Scripted("pooled")], forged("pooled", "evaluate", two)), rounds=1, pooled=True)
    assert found.record.rounds[0]["validation"] == pytest.approx(0.3)
    tested = [row for row in found.record.clients if row["split"] == "test"]
    assert [(row["client"], row["value"]) for row in tested] == [("films", 0.2), ("shop", 0.4)]


@pytest.mark.parametrize(("every", "after", "selected"), [(1, 2, 1), (2, 3, 2), (5, 3, 3)])
def test_stop_ends_the_run_after_its_round_and_still_tests(every: int, after: int, selected: int) -> None:
    """Round 1 is the best; where nothing was validated before the stop, the last round is what there is."""
    grid = ScriptedGrid([Scripted("films", scores={1: 0.9, 2: 0.5, 3: 0.4})])
    told: list[Any] = []
    found = coordinator(grid, rounds=9, eval_every=every)
    found.on_round, found.stop = told.append, lambda: len(told) == after
    record = found.fit(list(grid.get_node_ids()))
    assert (record.stopped, record.selected_round, len(record.rounds)) == ("interrupted", selected, after)
    assert told == record.rounds
    assert record.shared["body.0.bias"].item() == selected
    assert read_broadcast(grid.sent[-1].content).split == "test"
    assert [row["round"] for row in record.clients if row["split"] == "test"] == [selected]


def test_a_round_reports_its_loss_and_what_its_training_moved() -> None:
    nan = forged("shop", "train", lambda reply, _: replace(reply, metrics={"loss": math.nan}))
    grid = ScriptedGrid([Scripted("films"), Scripted("shop")], nan)
    found = run(grid, rounds=2)
    message = next(m for m in grid.sent if m.metadata.message_type == "train")
    arrays = sum(len(array.data) for array in message.content.array_records["shared.0"].values())
    for row in found.record.rounds:
        assert row["clients"] == 2
        assert row["train_loss"] == 0.5  # a client without a row to train on has no loss
        # Down: a training and a validation message for each client. Up: the update and the loss, then the metrics.
        metrics = sum(len(f"{name}/rank/ndcg@10") + 8 for name in ("films", "shop"))
        assert (row["bytes_down"], row["bytes_up"]) == (4 * arrays, 2 * (arrays + len("loss") + 8) + metrics)


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({"age": 41.0}, r"metric age: must be on the allow-list \(loss\)"),
        ({}, "metric loss: must be sent, found missing"),
        ({"loss": math.inf}, "loss: must be finite, found inf"),
    ],
)
def test_metrics_of_a_training_are_those_that_are_asked_for(metrics: dict[str, float], text: str) -> None:
    alter = forged("shop", "train", lambda reply, _: replace(reply, metrics=metrics))
    found = run(ScriptedGrid([Scripted("films"), Scripted("shop")], alter), rounds=1)
    assert [row["client"] for row in found.record.faults] == ["shop"]
    assert re.search(text, str(found.record.faults[0]["text"]))


@pytest.mark.parametrize("examples", [math.inf, math.nan, -5.0])
def test_a_weight_that_is_no_number_of_examples_is_refused(examples: float) -> None:
    with pytest.raises(ClientFailure, match=r"examples: .* found"):
        run(ScriptedGrid([Scripted("films"), Scripted("shop", examples=examples)]), turnout=EVERYBODY)


def test_names_that_differ_by_a_zero_only_are_in_one_order_too() -> None:
    clients = [replace(one, name=name) for one, name in zip(three(), ["u-7", "u-07", "u-007"], strict=True)]
    found = {str(bits(run(ScriptedGrid(clients, order=list(o)), rounds=1).z)) for o in itertools.permutations(range(3))}
    assert len(found) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda reply: replace(reply, metrics={"shop/rank/income": 1.0}),
        lambda reply: replace(reply, metrics={"films/rank/ndcg@10": 1.0}),
        lambda reply: replace(reply, values={"user_table": torch.ones(3, 3)}),
    ],
    ids=["not a metric", "in the name of another", "with parameters"],
)
def test_an_evaluation_holds_a_clients_own_metrics_and_nothing_else(
    change: Callable[[Contribution], Contribution],
) -> None:
    alter = forged("shop", "evaluate", lambda reply, _: change(reply))
    found = run(ScriptedGrid([Scripted("films"), Scripted("shop")], alter), rounds=1).record
    assert [(f["client"], f["during"], f["kind"]) for f in found.faults] == [
        ("shop", split, "contract") for split in ("validation", "test")
    ]
    assert not [row for row in found.clients if row["client"] == "shop" and row["split"] != "train"]
