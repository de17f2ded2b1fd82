"""A client's state: whatever is trained later the best round comes back, what is lost is undone, all of it to the bit.

That holds of a state as it is, of one that is kept in a client's own Context between two messages, and of one that a
node of several clients gives away and takes back.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clients.app import clients_of
from clients.client import Client
from clients.node import Node
from clients.state import TIMES, Kept, Party, State, restore, saved
from fedrec.experiment.holdings import clients_data
from fedrec.federation.coordination import Link, Own
from fedrec.params import Params
from fedrec.sharing import Broadcast, ContractError
from fedrec.training.moved import Moved
from fedrec.wire import Call
from tests.helpers import experiment
from tests.letters import state_of

NOTHING = Own()
BASE = {"item_table": torch.arange(12.0).reshape(6, 2), "heads.rank.bias": torch.zeros(3)}


(DATA, *_) = clients_data(E := experiment("fedper"))


def parties(*states: State | None) -> dict[str, Party]:
    """Return clients of a node in these states."""
    return {f"c{place}": Party(Client(E, DATA, "cpu", None), state) for place, state in enumerate(states)}


def again(*states: State) -> list[State]:
    """Return the states of the clients of a node after they were saved and read by another."""
    others = parties(*[None] * len(states))
    restore(others, saved(parties(*states)))
    return [party.state for party in others.values()]


def private(number: int) -> Params:
    """Return private parameters that tell the round after which they stand."""
    return {"heads.rank.bias": torch.tensor([float(number)]), "user_table": torch.full((2, 3), number / 7)}


def tied(number: int) -> Link:
    return Link.start({"item_table": torch.full((2, 2), number / 3)}, 0.5)


def owned(number: int) -> Own:
    """Return what is a client's own after a round: it has moved two rows of the server's table."""
    rows, table = torch.tensor([number % 3, 3 + number % 3]), torch.full((2, 2), number / 9)
    moved = Moved(BASE, {"item": rows}, {"item_table": table, "heads.rank.bias": torch.full((3,), number / 5)})
    return Own(moved, {"item_table": torch.full((2, 2), number / 11, dtype=torch.float64)}, {"w": torch.ones(number)})


def after(number: int, link: bool = False, own: bool = True) -> Kept:
    """Return what a client remembers after a round."""
    return Kept(number, private(number), tied(number) if link else None, owned(number) if own else NOTHING, number / 13)


def bits(params: Mapping[str, Tensor] | None) -> dict[str, Any] | None:
    """Return all that there is to tensors."""
    if params is None:
        return None
    return {name: (value.dtype, tuple(value.shape), value.numpy().tobytes()) for name, value in params.items()}


def alike(a: Kept, b: Kept) -> bool:
    return a.marks == b.marks and all(bits(x) == bits(b.tensors[kind]) for kind, x in a.tensors.items())


def equal(a: State, b: State) -> bool:
    pairs = [(getattr(a, when), getattr(b, when)) for when in TIMES]
    return a.limits == b.limits and all(alike(x, y) if x and y else x is y for x, y in pairs)


def stored(state: State) -> State:
    """Return a state after it was that of a node's one client."""
    return again(state)[0]


def hosted(state: State) -> State:
    """Return a state after it was among those of a node, whose other clients remember other things."""
    others = [State(after(4, link=True, own=False)), State(after(2), after(1)).trained(after(5))]
    found = again(others[0], state, others[1])
    assert equal(found[0], others[0]) and equal(found[2], others[1])
    return found[1]


WAYS: dict[str, Callable[[State], State]] = {"as it is": lambda state: state, "stored": stored, "hosted": hosted}
KEPT = pytest.mark.parametrize("way", WAYS)


def test_what_is_stored_comes_back_to_the_bit_and_is_nobody_elses() -> None:
    mine = {"user_table": torch.tensor([[0.1, -0.0, 1e-40]]), "empty": torch.zeros(0, 4)}
    found, other = saved(parties(State(Kept(0, mine)))), parties(None)
    mine["user_table"].zero_()
    for _ in range(2):
        restore(other, found)
        private = other["c0"].state.now.private
        assert private["user_table"].numpy().tobytes() == torch.tensor([[0.1, -0.0, 1e-40]]).numpy().tobytes()
        assert private["empty"].shape == (0, 4)
        private["user_table"].zero_()


@KEPT
def test_everything_that_there_is_comes_back(way: str) -> None:
    one = State(after(3, link=True), after(2), after(1, own=False), (0.1, float("inf")))
    found = WAYS[way](one)
    assert equal(found, one)
    assert found.now.link is not None and (found.now.round, found.now.link.rho, found.now.mu) == (3, 0.5, 3 / 13)
    assert found.now.link.dual["item_table"].dtype == torch.float64
    assert not equal(found, one._replace(limits=()))
    assert not any(equal(found, other) for other in (one._replace(now=after(5)), one._replace(kept=None)))
    assert not equal(found, one._replace(before=after(2, link=True)))


@KEPT
def test_without_a_kept_round_the_present_state_is_the_best(way: str) -> None:
    one = WAYS[way](State(after(0)).trained(after(1)))
    assert alike(one.best, after(1))


@KEPT
@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 4))
def test_the_best_round_comes_back_whenever_the_run_ends(way: str, better: list[bool], every: int) -> None:
    """Replays what the server sends: `keep` with the first message after a better evaluation, and at last the test."""
    one, best, tell = State(after(0)), 0, False
    for number, improved in enumerate(better, 1):
        one = WAYS[way](one)
        if tell:
            one = one._replace(kept=one.now)
        tell = False
        one = one.trained(after(number))
        if number % every == 0 and (improved or not best):
            best, tell = number, True
    one = WAYS[way](one)
    if tell:
        one = one._replace(kept=one.now)
    assert alike(WAYS[way](one).best, after(best or len(better)))


@KEPT
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_a_lost_contribution_is_undone(way: str, taken: list[bool]) -> None:
    """The client ends where it would be if the lost rounds had never been asked of it."""
    one, seen = State(after(0, link=True)), 0
    for number, arrives in enumerate(taken, 1):
        one = WAYS[way](one).settled(seen).trained(after(number, link=True))
        seen = number if arrives else seen
    one = WAYS[way](WAYS[way](one).settled(seen))
    assert alike(one.now, after(seen, link=True))
    assert one.settled(seen) is one


@KEPT
def test_a_server_that_has_seen_neither_of_the_last_two_is_refused(way: str) -> None:
    one = State(after(0))
    for number in (1, 2, 3):
        one = WAYS[way](one.trained(after(number)))
    for seen in (0, 1, 4):
        with pytest.raises(
            ContractError, match=rf"^seen: must be one of the last two contributions, found {seen} in round 3"
        ):
            one.settled(seen)
    undone = WAYS[way](one.settled(2))
    with pytest.raises(ContractError, match=r"found 1 in round 2"):
        undone.settled(1)
    assert equal(one, State(after(3), after(2)))


def test_a_node_keeps_what_there_is_of_secure_sums_and_who_has_not_joined() -> None:
    one, other = parties(State(after(4, link=True)), None, State(after(1))), parties(*[State(after(9))] * 3)
    one["c1"].secrets["last"], one["c2"].secrets["member"] = ConfigRecord({"round": 4}), ConfigRecord({"round": 5})
    other["c0"].secrets["last"] = ConfigRecord({"round": 6})
    restore(other, saved(one))
    assert [dict(party.secrets) for party in other.values()] == [dict(party.secrets) for party in one.values()]
    assert other["c1"].joined is None and equal(other["c0"].state, one["c0"].state)
    restore(other, RecordDict())
    assert all(party.joined is None and not party.secrets for party in other.values())


def test_nothing_stored_is_an_error_and_no_empty_answer() -> None:
    with pytest.raises(ContractError, match=r"^join: must come before training and evaluation"):
        state_of(Node([Client(E, DATA, "cpu", None)]))


NAMES = st.sampled_from(["item_table", "user_table", "heads.rank.weight", "heads.a:b.weight", "home/item_table/rows"])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64])


@st.composite
def tensors(draw: st.DrawFn) -> Params | None:
    """Return named tensors of any size, or none."""
    if not draw(st.booleans()):
        return None
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shapes = st.lists(st.integers(0, 3), min_size=1, max_size=3)
    names = draw(st.lists(NAMES, unique=True, max_size=3))
    return {n: torch.from_numpy(rng.standard_normal(draw(shapes)) * 9).to(draw(DTYPES)) for n in names}


@st.composite
def states(draw: st.DrawFn, bases: Sequence[Params]) -> State:
    """Return a state of which anything may be missing; personal parameters may be another's but for some rows."""

    def kept() -> Kept:
        dual, personal = draw(tensors()), draw(tensors())
        private = draw(tensors())
        link = None if dual is None else Link(dual, {n: 2 * v for n, v in dual.items()}, draw(st.floats(0.1, 1)))
        mine: Mapping[str, Tensor] | None = personal
        if draw(st.booleans()):
            base, rows = draw(st.sampled_from(bases)), torch.tensor(sorted(draw(st.sets(st.integers(0, 5)))))
            table = torch.full((len(rows), 2), draw(st.floats(-1, 1, width=32)))
            mine = Moved(base, {"item": rows.long()}, {"item_table": table, "heads.rank.bias": torch.ones(3)})
        own = Own(mine, draw(tensors()), draw(tensors()))
        return Kept(draw(st.integers(0, 9)), private or {}, link, own, draw(st.floats(0, 9)))

    before, best = (kept() if draw(st.booleans()) else None for _ in range(2))
    return State(kept(), before, best, tuple(draw(st.lists(st.floats(allow_nan=False), max_size=3))))


@given(st.data())
def test_the_states_of_a_node_come_back_whatever_each_of_its_clients_remembers(data: st.DataObject) -> None:
    """What is another's but for some rows is so again, and that other is there once."""
    bases = [BASE, {name: value + 1 for name, value in BASE.items()}]
    first = data.draw(st.lists(states(bases), min_size=1, max_size=4))
    made, others = saved(parties(*first)), parties(*[None] * len(first))
    restore(others, made)
    theirs: dict[int, set[int]] = {}
    for one, two in zip(first, [party.state for party in others.values()], strict=True):
        assert equal(one, two)
        for when in TIMES:
            x, y = (getattr(state, when) for state in (one, two))
            if x is not None and isinstance(x.own.personal, Moved):
                assert isinstance(y.own.personal, Moved)
                assert len(y.own.personal.rows["item"]) == len(x.own.personal.rows["item"])
                theirs.setdefault(id(x.own.personal.base), set()).add(id(y.own.personal.base))
    assert all(len(found) == 1 for found in theirs.values())
    assert sum(name.startswith("base.") for name in made) == len(theirs)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
def test_what_is_lost_of_some_clients_of_a_node_is_undone_for_them_alone(taken: list[list[bool]]) -> None:
    """Each ends where it would be alone, with rows of its own on what the server sent in the last round it took."""
    sent = [{name: value + number for name, value in BASE.items()} for number in range(len(taken) + 1)]

    def made(client: int, number: int) -> Kept:
        rows, table = {"item": torch.tensor([client, 3 + number % 3])}, torch.full((2, 2), client + number / 7)
        mine = Moved(sent[number], rows, {"item_table": table, "heads.rank.bias": torch.full((3,), number / 5)})
        return Kept(number, private(number), None, Own(mine))

    every, seen = [State(made(client, 0)) for client in range(3)], [0, 0, 0]
    for number, arrive in enumerate(taken, 1):
        every = again(*every)
        every = [one.settled(seen[client]).trained(made(client, number)) for client, one in enumerate(every)]
        seen = [number if arrives else last for last, arrives in zip(seen, arrive, strict=True)]
    every = [one.settled(last) for one, last in zip(every, seen, strict=True)]
    for client, one in enumerate(again(*every)):
        assert alike(one.now, made(client, seen[client]))
        table = BASE["item_table"] + seen[client]
        table[[client, 3 + seen[client] % 3]] = client + seen[client] / 7
        assert one.now.own.personal is not None and torch.equal(one.now.own.personal["item_table"], table)


def weight(state: RecordDict) -> int:
    """Return the number of bytes of tensors."""
    return sum(len(a.data) for r in state.values() if isinstance(r, ArrayRecord) for a in r.values())


def test_many_clients_who_move_few_rows_each_do_not_weigh_a_table_each() -> None:
    """What they are beside their rows is there once: the start of the last round, and of the one before it."""
    e = experiment(
        "fedavg",
        drift={"personal": "tuned"},
        partition="one-user",
        clients=20,
        market={"users": 20, "items": 3000, "impressions": 4},
        rounds=3,
    )
    node = Node(clients_of(e, None, range(20)), stacked=True)
    joined = node.join().contributions
    z = joined[0].values
    table = z["item_table"].numel() * 4
    assert e.drift.personal == "tuned" and all(one.values is z for one in joined)
    for number in (1, 2):
        z = {name: value + number for name, value in z.items()}
        sent = Broadcast(number, z, seen=number - 1)
        answers = node.as_programs("train", Call({one.client: sent for one in joined}, {}, ()))
        assert len(answers.contributions) == 20 and not answers.failed
        found = node.state()
        assert weight(found) < 4 * table
    expected = [party.state for party in node.parties.values()]
    node.restore(found)
    assert all(equal(one, two.state) for one, two in zip(expected, node.parties.values(), strict=True))
