"""Rounds of the first answers: known answers on a clock by hand, and the bits of rounds that wait if none is late."""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Message
from safetensors.torch import load

from fedrec.errors import UserError
from fedrec.experiment.config import build
from fedrec.experiment.records import Record, table_of
from fedrec.federation.asynchrony import Asynchrony, Clock
from fedrec.federation.coordination import Descent
from fedrec.federation.participation import Turnout
from server.strategy import Coordinator
from simulations.check import check
from simulations.cli import parse
from simulations.studies.asynchrony import hits, plan, summary
from tests.helpers import experiment, fit, results, shared_by
from tests.letters import read_contribution
from tests.test_strategy import Scripted, ScriptedGrid, run

SECONDS = {"a": 1.0, "b": 2.5}


class ByHand(Asynchrony, frozen=True):
    """Clients whose trainings take as long as `SECONDS` says."""

    def seconds(self, seed: int, client: str, number: int) -> float:
        """See Asynchrony."""
        return SECONDS[client]


def two() -> list[Scripted]:
    """Return two clients that begin at 0 and add 1 and 4; each has an item that the other has not."""
    return [Scripted("a", table_of([0, 1]), step=1.0), Scripted("b", table_of([1, 7]), step=4.0)]


def scripted(rounds: int, rules: Asynchrony, **plan: Any) -> Coordinator:
    return run(ScriptedGrid(two()), rounds=rounds, asynchrony=rules, **plan)


def body(found: Coordinator) -> float:
    return float(found.tie.whole()["body.0.bias"].item())


def column(record: Record, name: str) -> list[float]:
    return [float(row[name]) for row in record.rounds]


@pytest.mark.parametrize(("discount", "late"), [(0.0, 4.0), (1.0, 4 / 3), (0.5, 4 / math.sqrt(3))])
def test_an_answer_moves_z_from_where_its_client_began_by_what_its_age_counts(discount: float, late: float) -> None:
    """a ends at 1 and 2 and moves Z by 1 each time; b began with a, ends at 2.5, and is two rounds old."""
    found = scripted(3, ByHand(buffer=1, discount=discount))
    assert column(found.record, "clock") == [1.0, 2.0, 2.5]
    assert column(found.record, "staleness") == [0.0, 0.0, 2.0]
    assert body(found) == pytest.approx(2 + late, rel=1e-6)
    table = found.tie.whole()["item_table"][:, 0].tolist()  # items 0, 1, 7: of a, of both, of b
    assert table == pytest.approx([2.0, 2 + late, late], rel=1e-6)
    ages = [(row["client"], row["value"]) for row in found.record.clients if row["metric"] == "staleness"]
    assert ages == [("a", 0.0), ("a", 0.0), ("b", 2.0)]
    assert found.record.notes[-1] == "staleness of the answers in rounds: 2 of 0, 1 of 2"


def test_a_buffer_is_a_mean_over_its_answers_old_and_new() -> None:
    """a waits at 1 for b, which ends at 2.5; both begin again: of two clients a buffer of two has no old answer."""
    found = scripted(2, ByHand(buffer=2))
    assert column(found.record, "clock") == [2.5, 5.0]
    assert body(found) == 5.0  # twice the mean of 1 and 4


def test_the_servers_optimiser_steps_along_what_is_discounted() -> None:
    found = scripted(3, ByHand(buffer=1, discount=1.0), descent=Descent(lr=0.5))
    assert body(found) == pytest.approx(0.5 + 0.5 + 0.5 * 4 / 3, rel=1e-6)


def test_with_one_client_at_once_no_answer_is_old() -> None:
    found = scripted(6, ByHand(buffer=1, concurrency=1))
    assert set(column(found.record, "staleness")) == {0.0}
    steps = np.diff([0.0, *column(found.record, "clock")]).tolist()
    assert set(steps) == set(SECONDS.values())  # one after the other, and both in turn


def test_an_answer_that_is_lost_is_a_fault_and_its_client_begins_again() -> None:
    def lose(message: Message, reply: Message) -> Message | None:
        if message.metadata.message_type != "train" or message.metadata.group_id != "2":
            return reply
        assert read_contribution(reply.content).client == "a"
        return None

    rules, quorum = ByHand(buffer=1, discount=0.0), Turnout(quorum=0.0)
    found = run(ScriptedGrid(two(), lose), rounds=4, asynchrony=rules, turnout=quorum)
    assert [(fault["round"], fault["client"]) for fault in found.record.faults] == [(2, "a")]
    assert column(found.record, "clients") == [1, 0, 1, 1]
    assert column(found.record, "clock") == [1.0, 2.0, 2.5, 3.0]
    assert body(found) == 1 + 4 + 1


def test_rounds_that_wait_last_as_long_as_the_slowest_of_their_clients() -> None:
    rules = ByHand(spread=1.0)
    assert column(scripted(2, rules).record, "clock") == [2.5, 5.0]
    drawn = scripted(6, rules, turnout=Turnout(participation=0.5)).record
    steps = np.diff([0.0, *column(drawn, "clock")])
    asked = [next(str(row["client"]) for row in drawn.clients if row["round"] == n) for n in range(1, 7)]
    assert steps.tolist() == [SECONDS[row] for row in asked]
    assert "staleness" not in drawn.rounds[0]


def test_where_nobody_is_late_rounds_are_those_that_wait_to_the_bit() -> None:
    waits, first = (fit(experiment("fedyogi", asynchrony=rules))[0] for rules in ({}, {"buffer": 3}))
    added = {"clock", "staleness"}
    assert [{k: repr(v) for k, v in row.items() if k not in added and "seconds" not in k} for row in first.rounds] == [
        {k: repr(v) for k, v in row.items() if "seconds" not in k} for row in waits.rounds
    ]
    assert {n: v.tolist() for n, v in first.shared.items()} == {n: v.tolist() for n, v in waits.shared.items()}
    assert column(first, "clock") == [1.0, 2.0] and not any(column(first, "staleness"))


LATE: dict[str, Any] = {"rounds": 4, "asynchrony": {"buffer": 2, "spread": 1.0, "jitter": 0.3}, "clients": 4}


def test_whoever_runs_the_clients_gives_the_same(tmp_path: Path) -> None:
    made = {
        engine: load(shared_by(experiment(**LATE, engine=engine), tmp_path / engine))
        for engine in ("inline", "process", "batched")
    }
    table = pd.read_csv(tmp_path / "inline" / "rounds.csv")
    assert table["staleness"].max() > 0
    for engine, largest in (("process", 0.0), ("batched", 1e-5)):
        for name, value in made["inline"].items():
            assert (value - made[engine][name]).abs().max() <= largest
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / engine / "rounds.csv")[["clock"]], table[["clock"]])


def test_what_is_fitted_twice_is_the_same_and_another_seed_has_other_speeds() -> None:
    one, two, other = (fit(experiment(**LATE, seed=seed))[0] for seed in (1, 1, 2))
    assert results(one) == results(two)
    assert column(one, "clock") != column(other, "clock")


def test_seconds_are_lognormal_a_clients_own_and_a_function_of_the_seed() -> None:
    rules = Asynchrony(spread=0.8, jitter=0.6)
    clients = [f"c{i}" for i in range(4000)]
    logs = np.log([[rules.seconds(3, name, number) for number in (0, 1)] for name in clients])
    assert abs(logs.mean()) < 0.05 and abs(logs.std() - 1.0) < 0.05
    assert abs(np.corrcoef(logs.T)[0, 1] - 0.64) < 0.05  # what two trainings of a client have in common
    steady = Asynchrony(spread=1.0)
    assert steady.seconds(3, "c1", 0) == steady.seconds(3, "c1", 9) != steady.seconds(4, "c1", 0)
    assert Asynchrony().seconds(3, "c1", 0) == 1.0


@pytest.mark.parametrize(("buffer", "concurrency"), [(1, 0), (3, 0), (3, 5), (10, 2), (10, 0)])
def test_the_clock_never_goes_back_and_nobody_trains_twice_at_once(buffer: int, concurrency: int) -> None:
    rules = Asynchrony(buffer=buffer, concurrency=concurrency, spread=1.0, jitter=0.5)
    clients = [f"c{i}" for i in range(10)]
    clock, again, before = Clock(rules, clients, 5), Clock(rules, clients, 5), 0.0
    for number in range(60):
        if number % 7 == 3:
            again.restore(clock.state())
        ages = clock.fill()
        assert again.fill() == ages and again.now == clock.now
        assert len(ages) == buffer and list(ages) == sorted(ages, key=clients.index)
        assert clock.now >= before and len(clock.busy) <= (concurrency or 10)
        assert all(0 <= age <= number for age in ages.values())
        assert sorted([*clock.idle, *(place for _, place, _ in clock.busy)]) == list(range(10))
        before = clock.now
    assert len(clock.begun) == 10  # nobody is left out


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"buffer": 4}, r"^asynchrony.buffer: must be at most 3, the clients, found 4$"),
        ({"buffer": 1, "concurrency": 4}, r"^asynchrony.concurrency: must be at most 3, the clients, found 4$"),
    ],
)
def test_more_than_there_are_clients_cannot_answer(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check(experiment(asynchrony=fields))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--asynchrony.discount 1", r"^option --asynchrony.discount: acts only with a buffer of answers"),
        ("--asynchrony.buffer 2 --participation 0.5", r"^option --participation: acts only with .* rounds that wait"),
        ("--asynchrony.buffer 2 --method admm", r"needs .*, but a buffer is of answers that began in different rounds"),
        ("--asynchrony.buffer -1", r"^option --asynchrony.buffer: .* found '-1'$"),
    ],
)
def test_what_a_buffer_cannot_have_is_refused(flags: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        parse(flags.split())


def test_a_robust_rule_needs_its_answers_in_the_buffer() -> None:
    with pytest.raises(UserError, match=r"^robust.f: .* found 1 for 3$"):
        check(build({"clients": 6, "robust": {"kind": "krum"}, "asynchrony": {"buffer": 3}, "engine": "inline"}))


def test_the_study_gives_a_buffer_its_trainings_and_measures_the_time_to_the_goal() -> None:
    flags = ["--clients", "6", "--rounds", "4", "--market.users", "30", "--market.items", "30"]
    runs = plan(Namespace(seeds=1, buffers="2", drawn="0.5", longer=2.0, flags=flags))
    assert {run.labels["arm"]: (run.experiment.rounds, run.experiment.eval_every) for run in runs} == {
        "waits": (4, 1),
        "waits for 50%": (8, 2),
        "first 2": (24, 3),
    }
    rows = [("waits", s, t, v) for s in (0, 1) for t, v in ((5.0, 0.5), (10.0, 0.96), (15.0, 1.0))]
    rows += [("first 2", 0, 2.0, 0.9), ("first 2", 0, 4.0, 0.95), ("first 2", 1, 8.0, 1.2), ("first 2", 1, 9.0, 0.1)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "clock", "validation"]).assign(staleness=0.5, test=0.3)
    waits, first = summary(table)
    assert (waits["time"], waits["ratio"], first["time"]) == (10.0, 1.0, 6.0)
    assert first["ratio"] == pytest.approx(math.sqrt(0.4 * 0.8)) and first["reached"] == 2
    never = table.assign(validation=table["validation"].where(table["arm"] == "waits", 0.1))
    assert math.isnan(summary(never)[1]["ratio"]) and summary(never)[1]["reached"] == 0
    assert np.isnan(hits(never[never["arm"] == "first 2"], pd.Series([1.0, 1.0], index=[0, 1]))).all()
    for wrong in ({"drawn": "1.5"}, {"longer": 0.0}):
        usual = {"seeds": 1, "buffers": "2", "drawn": "", "longer": 1.0, "flags": flags}
        with pytest.raises(UserError, match=f"^{next(iter(wrong))}: must be "):
            plan(Namespace(**{**usual, **wrong}))
