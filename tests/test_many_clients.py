"""What many clients have in common is made, sent, admitted and kept once, and is what each would have alone."""

import functools
import tracemalloc
from collections.abc import Mapping
from statistics import median_high
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

import fedrec.sharing as sharing
from clients.app import clients_of
from clients.cohort import Program
from clients.joining import join
from clients.node import Node
from clients.states import Snapshots
from fedrec.data.types import Ints
from fedrec.experiment.config import Experiment
from fedrec.federation.proportion import too_far
from fedrec.keyed import carrier, catalogue, mean
from fedrec.params import Params
from fedrec.rng import Streams, derive, generator, streams
from fedrec.sharing import ContractError, Contribution
from fedrec.training.rows import Touched
from fedrec.training.stacks import Stack
from fedrec.wire import Answers, answers_record, read_answers
from server.cohorts import Equal
from server.strategy import Coordinator
from simulations.apps import plan_of
from simulations.engines.inline import InlineGrid
from simulations.engines.slots import in_order
from simulations.studies.crowd import FEWEST, Crowd
from tests.helpers import experiment
from tests.test_state import bits, equal

MANY: dict[str, Any] = {
    "partition": "one-user",
    "clients": 40,
    "market": {"users": 40, "items": 30, "impressions": 8},
}


@functools.cache
def program(e: Experiment, count: int) -> Program:
    """Return the one program of some of an experiment's clients, which have joined."""
    node = Node(clients_of(e, None, range(count)), stacked=True)
    assert not node.join().failed
    (one,) = node.programs
    return one


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("fedper", {}),
        ("fedavg", {"task": "rating,click*0.5", "share": ["all-but-users"]}),
        ("fedper", {"model": "mlp"}),
        ("fedavg", {"share": ["user_table"]}),
        ("admm", {}),
        ("ditto", {}),
        ("fedavg", {"drift": {"personal": "tuned"}}),
    ],
    ids=["mf", "shared heads", "mlp", "shared users", "duals", "a second model", "tuned"],
)
def test_clients_that_are_alike_join_together_with_what_each_joins_with_alone(
    method: str, fields: dict[str, Any]
) -> None:
    e = experiment(method, **{**MANY, **fields})
    clients = clients_of(e, None, range(40))
    node = Node(clients, stacked=True)
    found = node.join().contributions
    assert [one.client for one in found] == [client.data.name for client in clients]
    for one, client in zip(found, clients_of(e, None, range(40)), strict=True):
        state, alone = join(client)
        assert bits(one.values) == bits(alone.values) and one.metrics == alone.metrics
        assert {space: ids.tolist() for space, ids in one.rows.items()} == {
            s: i.tolist() for s, i in alone.rows.items()
        }
        assert equal(node.parties[one.client].state, state)
    different = {repr(bits(one.values)) for one in found}
    assert len({id(one.values) for one in found}) == len(different)


def test_what_clients_start_with_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(client: object) -> None:
        raise AssertionError("a client made its own start")

    monkeypatch.setattr("clients.client.Client.start", alone)
    made = program(experiment(**MANY), 40)
    assert len({id(client.model) for client in made.clients}) == 1
    assert made.states.now.private.values["user_table"].shape == (40, 4)


class Host(InlineGrid):
    """One node of all clients, which sends `spoilt` tables to join with."""

    def __init__(self, e: Experiment) -> None:
        super().__init__([Node(clients_of(e, None, in_order(e)), stacked=True)], hosts=True)
        self.spoilt = False

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        if not self.spoilt:
            return reply
        found = read_answers(reply.content)
        wrong = {name: value * float("nan") for name, value in found.contributions[0].values.items()}
        sent = [Contribution(one.client, wrong, one.metrics, one.device, one.rows) for one in found.contributions]
        return Message(answers_record(Answers(sent)), reply_to=message)


def test_equal_starts_of_two_nodes_are_one_copy() -> None:
    """So that the mean of all of them is found without adding up, whoever hosts how many clients."""
    start = {"item_table": torch.rand(5, 3), "item_bias": torch.zeros(5, 1)}
    rows = {"item": np.arange(5)}
    found = Equal()

    def join(name: str, table: torch.Tensor, ids: Ints) -> Contribution:
        found.looked.clear()  # a node of its own
        return found.first(Contribution(name, {**start, "item_table": table}, {}, "cpu", {"item": ids}))

    first = join("a", start["item_table"], rows["item"])
    same = join("b", start["item_table"].clone(), rows["item"].copy())
    assert same.values is first.values and same.rows is first.rows and same.client == "b"
    other, others = (
        join("c", start["item_table"] + 1e-7, rows["item"]),
        join("d", start["item_table"], rows["item"] + 1),
    )
    assert other.values is not first.values and others.values is not first.values
    assert torch.equal(other.values["item_table"], start["item_table"] + 1e-7)
    assert others.rows["item"].tolist() == [1, 2, 3, 4, 5]


def test_the_server_looks_once_at_what_all_join_with(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    first = sharing.admit_first

    def look(values: Mapping[str, torch.Tensor]) -> Params:
        looked.append(len(values))
        return first(values)

    monkeypatch.setattr(sharing, "admit_first", look)
    grid = Host(experiment(**MANY))
    made = Coordinator(grid, plan_of(experiment(**MANY)))
    outcome = made.exchange.join([2])
    assert len(outcome.replies) == 40 and len(looked) == 1
    grid.spoilt = True
    outcome = Coordinator(grid, plan_of(experiment(**MANY))).exchange.join([2])
    assert not outcome.replies
    assert {fault.text for fault in outcome.faults} == {
        "item_bias: every value must be finite, found nan at entry 0",
    }
    assert len(outcome.faults) == 40


def test_the_message_of_a_node_has_what_its_clients_have_in_common_once() -> None:
    content = Node(clients_of(experiment(**MANY), None, range(40)), stacked=True).answer("query.join", RecordDict())
    assert sorted(name for name in content if "." in name) == ["rows.0", "shared.0"]


def test_ids_in_common_are_joined_once() -> None:
    ids, own = {"item": np.arange(50_000)}, {"item": np.array([3, 70_000])}
    tracemalloc.start()
    try:
        found = catalogue([ids] * 1000 + [own] + [ids])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["item"].tolist() == [*range(50_000), 70_000]
    assert peak < 10 * ids["item"].nbytes


@given(st.lists(st.floats(0.125, 9.0), min_size=1, max_size=6), st.integers(0, 9))
def test_the_mean_of_what_all_have_is_that_to_the_bit(weights: list[float], seed: int) -> None:
    table = torch.from_numpy(generator(seed, "mean").standard_normal((5, 2)).astype(np.float32))
    table[0], rows = -0.0, {"item": np.arange(5)}
    one: dict[str, Any] = {"item_table": table, "body.0.bias": table[1]}
    members = [carrier(f"c{n}", one, rows, rows, weight) for n, weight in enumerate(weights)]
    together = mean([(who, one) for who in members])
    apart = mean([(who, {name: value.clone() for name, value in one.items()}) for who in members])
    assert list(together) == list(apart) and bits(together) == bits(apart)


@given(st.dictionaries(st.integers(0, 20), st.sampled_from([0.0, 1.0, 1.5, 2.0, 3e5, 1e9]), min_size=1, max_size=9))
def test_a_change_is_judged_beside_the_upper_median_of_the_others(changes: Mapping[int, float]) -> None:
    expected = set()
    for who, change in changes.items():
        others = [value for other, value in changes.items() if other != who]
        if change > 10_000.0 * max(1.0, median_high(others) if others else 0.0):
            expected.add(who)
    assert too_far(changes, dict.fromkeys(changes, 1.0)).keys() == expected


STEPS = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.sets(st.integers(0, 3), min_size=1), st.integers(0, 2)), max_size=6
)


@given(STEPS)
def test_states_that_lie_together_are_those_of_each_alone(steps: list[tuple[bool, bool, set[int], int]]) -> None:
    """Some train, some follow a server that has lost their last answer, or that has seen neither, some keep a round."""
    made = program(experiment(**MANY), 4)
    for party, state in zip(made.parties, [join(client)[0] for client in made.clients], strict=True):
        party.joined = state
    expected = [party.state for party in made.parties]
    states = made.states
    for number, (training, keep, chosen, back) in enumerate(steps, 1):
        places = np.array(sorted(chosen))
        seen = max(0, max(int(states.now.round[place]) for place in places) - back)
        wrong = states.follow(places, seen, keep).tolist()
        refused = []
        for place in places.tolist():
            try:
                followed = expected[place].settled(seen)
                expected[place] = followed._replace(kept=followed.now) if keep else followed
            except ContractError:
                refused.append(place)
        assert wrong == refused
        left = np.setdiff1d(places, wrong)
        if training and len(left):
            values = {name: torch.full_like(value, number) for name, value in states.now.private.values.items()}
            full = np.full(4, number)
            after = Snapshots(made.cohort, full, Stack(values), np.zeros(4), states.now.links, states.now.owns)
            states.train(left, after)
            for place in left.tolist():
                now = after.at(place)
                assert now is not None
                expected[place] = expected[place].trained(now)
    assert all(equal(states.at(place), one) for place, one in enumerate(expected))


def test_a_crowd_is_a_table_of_its_size() -> None:
    made = Crowd(300, 500, 20.0, 4).load()
    frame = made.interactions
    assert not frame.duplicated(["user", "item"]).any() and len(made.users) == 300 and len(made.items) == 500
    assert frame.equals(frame.sort_values(["platform", "user", "time", "item"]))
    each = frame.groupby("user").size()
    assert len(each) == 300 and each.min() >= FEWEST - 2 and each.mean() == pytest.approx(19, abs=2)
    popular = frame.groupby("item").size().sort_values(ascending=False)
    assert popular.iloc[:50].sum() > 3 * popular.iloc[-200:].sum() / 4  # a tenth of the items, and two fifths
    assert frame.equals(Crowd(300, 500, 20.0, 4).load().interactions)
    assert not frame.equals(Crowd(300, 500, 20.0, 5).load().interactions)


def test_many_streams_are_the_generators_of_their_seeds_to_the_bit() -> None:
    seeds = [0, 1, 2**32 - 1, 2**32, 2**63 - 1, *(derive(3, "train", f"user-{n}", 1) for n in range(200))]
    many, few = streams(seeds), streams(seeds[:3])
    assert isinstance(many, Streams) and not isinstance(few, Streams)
    for number, seed in enumerate(seeds):
        assert many[number].bit_generator.state == np.random.PCG64(seed).state
        expected = np.random.Generator(np.random.PCG64(seed))
        assert many[number].permutation(9).tolist() == expected.permutation(9).tolist()
    assert few[2].bit_generator.state == many[2].bit_generator.state


@given(st.lists(st.integers(1, 40), min_size=9, max_size=60), st.sampled_from([1, 2, 1000, 2**31]), st.integers(0, 5))
def test_streams_that_draw_together_draw_what_each_draws_alone(sizes: list[int], bound: int, m: int) -> None:
    """With a bound of 2^31 half of all streams may reject an integer, and draw by themselves."""
    n, seeds = np.array(sizes), [derive(bound, "train", f"user-{place}", m) for place in range(len(sizes))]
    high = 1 + np.arange(len(n)) % bound
    high[0] = bound
    together = streams(seeds)
    assert isinstance(together, Streams)
    orders, integers = together.orders(n, high, m)
    alone = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
    expected = [(rng.permutation(k), rng.integers(0, h, k * m)) for rng, k, h in zip(alone, n, high, strict=True)]
    assert orders.tolist() == np.concatenate([order for order, _ in expected]).tolist()
    assert integers.tolist() == np.concatenate([drawn for _, drawn in expected]).tolist()


@given(st.integers(1, 60), st.sampled_from([1, 2, 1000, 2**31, 2**33]), st.integers(0, 99))
def test_draws_below_one_bound_are_those_below_as_many_equal_ones(count: int, bound: int, seed: int) -> None:
    """What `fedrec.training.draws` counts on: a client of one user draws as one of several does."""
    one, other = generator(seed, "a"), generator(seed, "a")
    assert one.integers(0, bound, count).tolist() == other.integers(0, np.full(count, bound)).tolist()
    assert one.integers(10**12) == other.integers(10**12)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 99)), min_size=1, max_size=20), st.integers(1, 400))
def test_rows_are_found_alike_whether_they_are_sorted_or_marked(named: list[tuple[int, int]], few: int) -> None:
    owner, local = (np.array(column) for column in zip(*named, strict=True))
    starts, clients = np.arange(5) * 100, np.array([0, 1, 3])
    flat = starts[clients[owner]] + local
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for fewest in (few, 10**9):
            patch.setattr("fedrec.training.rows.FEW", fewest)
            made = Touched.of(starts, clients, [(flat, owner)])
            found.append((made.flat.tolist(), made.owner.tolist(), made.edge.tolist(), made.find(flat, owner).tolist()))
            assert made.flat[made.find(flat, owner)].tolist() == flat.tolist()
    assert found[0] == found[1]


@given(st.lists(st.one_of(st.text(max_size=4), st.sampled_from(["a" * 255, "b" * 256, "c\x1b[31m", "\ud800", "é", 7]))))
def test_names_that_are_looked_at_together_are_admitted_and_refused_as_each_is(names: list[object]) -> None:
    try:
        expected: list[str] | str = [sharing.admit_name("client", name) for name in names]
    except ContractError as error:
        expected = str(error)
    try:
        found: list[str] | str = sharing.admit_names("client", names)
    except ContractError as error:
        found = str(error)
    assert found == expected
