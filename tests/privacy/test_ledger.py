"""The ledger: written before anything is sent, never below what was spent, shared by processes, composed by person."""

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data.types import Ints
from fedrec.errors import UserError
from fedrec.privacy import accounting
from fedrec.privacy.accounting import Event, bound, epsilon
from fedrec.privacy.ledger import EXACT, Entry, Ledger, Note, OverBudget, persons, statement

NOTE = Note("films", "user", 1e-3, 0.5, 0.1)
STEP = Event(5.0, 1.0, 20)  # an epsilon of 2.7354 at 1e-3; two of 4.2077
SPAWN = multiprocessing.get_context("spawn")


def spent(ledger: Ledger) -> float:
    """Return the epsilon of all that was booked."""
    return epsilon(ledger.events, ledger.note.delta)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ids(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


def test_the_file_says_what_was_spent_and_on_what(tmp_path: Path) -> None:
    path = tmp_path / "spent" / "films.jsonl"
    ledger = Ledger(path, NOTE)
    assert ledger.events == [] and spent(ledger) == 0.0 and not path.exists()
    ledger.book(1, STEP, 5.0)
    ledger.book(2, Event(2.0, 0.1, 3), math.inf, "run", "abc")
    assert lines(path) == [
        {
            "client": "films",
            "unit": "user",
            "neighbours": "zero-out",
            "sampler": "Poisson at rate 0.1",
            "delta": 1e-3,
            "clip": 0.5,
            "noise": "private",
        },
        {"round": 1, "run": "", "inputs": "", "sigma": 5.0, "rate": 1.0, "count": 20, "kind": "gaussian"},
        {"round": 2, "run": "run", "inputs": "abc", "sigma": 2.0, "rate": 0.1, "count": 3, "kind": "gaussian"},
    ]
    assert ledger.entries == [Entry(1, STEP), Entry(2, Event(2.0, 0.1, 3), "run", "abc")]
    assert ledger.events == [STEP, Event(2.0, 0.1, 3)]
    assert Ledger(path).note == NOTE
    assert Ledger(path).entries == ledger.entries
    assert spent(Ledger(path)) == epsilon([STEP, Event(2.0, 0.1, 3)], 1e-3)


def test_an_event_is_on_the_disk_before_the_booking_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sync, seen = tmp_path / "films.jsonl", os.fsync, []

    def fsync(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            seen.append(lines(path)[1:])
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    ledger = Ledger(path, NOTE)
    for number in (1, 2):
        ledger.book(number, STEP, math.inf)
        assert [line["round"] for line in seen[-1]] == list(range(1, number + 1))
    assert len(seen) == 2


def test_the_round_that_exceeds_the_budget_is_refused_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    ledger = Ledger(path, NOTE)
    ledger.book(1, STEP, 4.0)
    before = path.read_bytes()
    with pytest.raises(OverBudget) as refused:
        ledger.book(2, STEP, 4.0)
    assert str(refused.value) == (
        "privacy: client 'films' has a budget of epsilon 4 at delta 0.001 and has spent 2.736; "
        "round 2 would make it 4.208"
    )
    assert path.read_bytes() == before
    ledger.book(2, Event(5.0, 1.0, 5), 4.0)  # what fits goes on
    ledger.book(3, STEP, 6.0)
    for free in (Event(0.0), Event(0.0, 0.1)):
        with pytest.raises(OverBudget, match="would make it inf"):
            ledger.book(4, free, 1e6)
    with pytest.raises(UserError, match="epsilon: must be above 0"):
        ledger.book(4, STEP, 0.0)
    with pytest.raises(UserError, match="round: must be a whole number of at least 0, found -1"):
        ledger.book(-1, STEP, math.inf)
    ledger.book(4, Event(0.0), math.inf)
    assert spent(ledger) == math.inf


def test_calibrated_rounds_all_fit_and_one_more_does_not(tmp_path: Path) -> None:
    sigma = accounting.calibrate(2.0, 1e-3, 0.2, 30)
    ledger = Ledger(tmp_path / "films.jsonl", NOTE)
    for number in range(10):
        ledger.book(number, Event(sigma, 0.2, 3), 2.0)
    assert 1.99 < spent(ledger) <= 2.0
    with pytest.raises(OverBudget):
        ledger.book(10, Event(sigma, 0.2, 3), 2.0)


def test_a_repeated_round_is_spent_twice_by_whichever_process(tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    Ledger(path, NOTE).book(1, STEP, math.inf)
    again = Ledger(path, NOTE)
    again.book(1, STEP, math.inf)
    assert again.entries == [Entry(1, STEP), Entry(1, STEP)]
    assert 4.2076 < spent(Ledger(path)) < 4.2177


def test_a_round_with_the_same_noise_on_the_same_inputs_is_spent_once(tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    Ledger(path, NOTE).book(1, STEP, 2.8, "run", "abc")
    again = Ledger(path, NOTE)
    again.book(1, STEP, 2.8, "run", "abc")
    assert len(again.entries) == 1
    for run, inputs in (("run", "abd"), ("another", "abc"), ("run", ""), ("", "")):
        with pytest.raises(OverBudget):
            again.book(1, STEP, 2.8, run, inputs)
    # The difference of two events with the same noise would show what it hides.
    for other in (Event(4.0, 1.0, 20), Event(5.0, 1.0, 19)):
        with pytest.raises(UserError, match="must not use the noise of round 1 for another event, found"):
            again.book(1, other, math.inf, "run", "abc")
    assert len(Ledger(path).entries) == 1


def test_a_budget_of_people_in_several_silos_counts_the_rounds_of_all(tmp_path: Path) -> None:
    Ledger(tmp_path / "a.jsonl", NOTE).book(1, STEP, 4.21, overlap=2)  # two silos: 4.2077
    with pytest.raises(OverBudget, match=r"round 1 would make it 4\.208"):
        Ledger(tmp_path / "b.jsonl", NOTE).book(1, STEP, 4.2, overlap=2)


def _book(path: Path, rounds: Iterable[int], budget: float, kill: bool = False) -> None:
    ledger = Ledger(path, NOTE)
    for number in rounds:
        try:
            ledger.book(number, Event(5.0, 1.0, 2), budget)
        except OverBudget:
            break
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)


def _run(*processes: Any) -> list[int]:
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    return [process.exitcode for process in processes]


def test_processes_that_book_at_once_lose_nothing_and_keep_the_budget(tmp_path: Path) -> None:
    free, bound = tmp_path / "free.jsonl", tmp_path / "bound.jsonl"
    codes = _run(
        SPAWN.Process(target=_book, args=(free, range(60), math.inf)),
        SPAWN.Process(target=_book, args=(free, range(100, 160), math.inf, True)),  # killed after its last
        SPAWN.Process(target=_book, args=(bound, range(60), 2.7355)),
        SPAWN.Process(target=_book, args=(bound, range(100, 160), 2.7355)),
    )
    assert codes == [0, -signal.SIGKILL, 0, 0]
    assert sorted(entry.round for entry in Ledger(free).entries) == [*range(60), *range(100, 160)]
    rounds = [entry.round for entry in Ledger(free).entries]
    assert [n for n in rounds if n < 100] == list(range(60))  # each in its own order
    assert len(Ledger(bound).events) == 10  # 20 steps of the 2.7354


def test_a_line_that_lacks_only_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    Ledger(path, NOTE).book(1, STEP, math.inf)
    path.write_bytes(path.read_bytes()[:-1])
    ledger, beside = Ledger(path, NOTE), Ledger(path, NOTE)
    assert ledger.events == [STEP]
    ledger.book(2, STEP, math.inf)
    beside.book(3, STEP, math.inf)
    assert [entry.round for entry in ledger.entries] == [1, 2, 3]
    assert Ledger(path).entries == ledger.entries
    assert len(lines(path)) == 4


def test_a_line_cut_anywhere_is_never_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    ledger = Ledger(path, NOTE)
    for number in (1, 2):
        ledger.book(number, STEP, math.inf)
    whole = path.read_bytes()
    first, second = whole.index(b"\n") + 1, whole.rindex(b"\n", 0, -1) + 1
    for start, end in ((0, first), (second, len(whole))):
        for cut in range(start + 1, end - 1):
            path.write_bytes(whole[:cut])
            for note in (None, NOTE):
                with pytest.raises(UserError, match="every line must be what was booked, found"):
                    Ledger(path, note)
    path.write_bytes(whole[:second] + bytes(8))  # as a file system may leave it after a power failure
    with pytest.raises(UserError, match="every line must be what was booked"):
        Ledger(path)


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ('"count": 20', '"count": -20', "event.count: must be a whole number of at least 1, found -20"),
        ('"count": 20', '"count": 20, "paid": true', "event: must have sigma, rate, count and kind"),
        ('"sigma": 5.0', '"sigma": NaN', "event.sigma"),
        ('"round": 1, ', "", "round"),
        ('"round": 1, ', '"round": "x", ', "round: must be of type int, found 'x'"),
        ('"round": 1, ', '"round": true, ', "round: must be of type int, found True"),
        ('"inputs": ""', '"inputs": 0', "inputs: must be of type str, found 0"),
        ('{"round": 1', '[{"round": 1', "every line"),
        ('"clip": 0.5', '"clip": 0', "clip: must be above 0, found 0"),
        ('"zero-out"', '"replace"', "note: must be as"),
        ('"unit": "user"', '"unit": "none"', "unit: must be interaction, user or client, found 'none'"),
        ("Poisson at rate 0.1", "shuffled", "could not convert"),
        ('"delta": 0.001', '"delta": "0"', "delta: must be above 0 and at most 1, found '0'"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, old: str, new: str, rule: str) -> None:
    path = tmp_path / "films.jsonl"
    ledger = Ledger(path, NOTE)
    for number in (1, 2):
        ledger.book(number, STEP, math.inf)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=rule):
        Ledger(path)
    with pytest.raises(UserError, match="every line must be what was booked"):
        Ledger(path, NOTE)


@pytest.mark.parametrize(
    ("other", "rule"),
    [
        (Note("films", "interaction", 1e-3, 0.5), "unit must be 'user' as in it, found 'interaction'"),
        (Note("films", "user", 1e-5, 0.5), "delta must be 0.001 as in it, found 1e-05"),
        (Note("shop", "user", 1e-3, 0.5), "client must be 'films' as in it, found 'shop'"),
        (Note("films", "user", 1e-3, 0.5, replay=True), "noise must be 'private' as in it, found 'NOT PRIVATE'"),
    ],
)
def test_a_ledger_of_something_else_is_refused_by_name(tmp_path: Path, other: Note, rule: str) -> None:
    path = tmp_path / "films.jsonl"
    early = Ledger(path, other)  # before there is a file
    Ledger(path, NOTE).book(1, STEP, math.inf)
    before = path.read_bytes()
    with pytest.raises(UserError, match=rule):
        Ledger(path, other)
    with pytest.raises(UserError, match=rule):
        early.book(2, STEP, math.inf)
    assert path.read_bytes() == before


def test_another_clip_norm_or_rate_goes_on_in_the_same_ledger(tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    Ledger(path, NOTE).book(1, STEP, math.inf)
    Ledger(path, Note("films", "user", 1e-3, 2.0, 0.3)).book(1, Event(5.0, 0.3), math.inf)
    assert len(Ledger(path).events) == 2


def test_a_file_that_is_missing_empty_or_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    with pytest.raises(UserError, match="must be a file of what was spent, found none"):
        Ledger(path)
    path.touch()  # made by a process that was killed before it wrote
    with pytest.raises(UserError, match="must begin with a note"):
        spent(Ledger(path))
    ledger = Ledger(path, NOTE)
    ledger.book(1, STEP, math.inf)
    size = path.stat().st_size
    path.write_bytes(b"")
    with pytest.raises(UserError, match=f"must only grow, found 0 bytes after {size}"):
        ledger.book(2, STEP, math.inf)
    with pytest.raises(UserError, match="must only grow"):
        _ = ledger.events
    path.unlink()
    with pytest.raises(FileNotFoundError):
        _ = ledger.events
    with pytest.raises(UserError, match="unit: must be"):
        Note("films", "none", 1e-3, 0.5)


def test_a_person_in_two_silos_pays_in_both() -> None:
    events = {"a": [STEP], "b": [STEP], "c": [Event(5.0, 1.0, 5)]}
    members = {"a": ids(1, 2, 3, 3), "b": ids(2, 3, 9), "c": ids(4)}
    found = persons(events, members, 1e-3)
    assert [group[:2] for group in found] == [(("a", "b"), 2), (("a",), 1), (("b",), 1), (("c",), 1)]
    assert [round(group.epsilon, 4) for group in found[:3]] == [4.2077, 2.7354, 2.7354]
    assert persons({"a": []}, {"a": ids(1)}, 1e-3)[0].epsilon == 0.0
    assert persons(events, {}, 1e-3) == []
    free = events | {"c": [Event(0.0)]}
    assert persons(free, members, 1e-3)[0] == (("c",), 1, math.inf)
    with pytest.raises(UserError, match="every silo with members must have its events listed, found none for 'd'"):
        persons(events, members | {"d": ids(1)}, 1e-3)


@settings(max_examples=10)
@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 9), max_size=8), max_size=4))
def test_everybody_is_in_one_group_which_pays_for_all_its_silos(members: dict[str, list[int]]) -> None:
    events = {silo: [Event(6.0 + 2 * (silo > "b"), 1.0, 4)] for silo in "abcd"}
    found = persons(events, {silo: ids(*people) for silo, people in members.items()}, 1e-4)
    everyone = {person for people in members.values() for person in people}
    assert sum(group.people for group in found) == len(everyone)
    for group in found:
        mine = [p for p in everyone if tuple(sorted(s for s in members if p in members[s])) == group.silos]
        assert len(mine) == group.people
        assert group.epsilon == epsilon([event for silo in group.silos for event in events[silo]], 1e-4)
    assert [group.epsilon for group in found] == sorted((group.epsilon for group in found), reverse=True)


def test_thousands_of_people_in_twenty_silos_ask_once_for_what_is_alike() -> None:
    draw = np.random.default_rng(0)
    members = {f"silo{i}": draw.choice(5000, 1500, replace=False) for i in range(20)}
    events = {silo: [Event(7.0, 1.0, 3), Event(7.0, 1.0, 3)] for silo in members}
    asked = accounting._epsilon.cache_info().misses
    found = persons(events, members, 1e-5)
    assert len(found) > 1000
    # Silos that spend alike: only their number counts.
    assert accounting._epsilon.cache_info().misses - asked == len({len(group.silos) for group in found})
    start = time.perf_counter()
    assert persons(events, members, 1e-5) == found
    assert time.perf_counter() - start < 5  # 0.2 s on one idle core


@pytest.mark.parametrize(
    ("events", "unit", "replay", "text"),
    [
        (
            [Event(1.0, 0.05, 100)] * 2,
            "user",
            False,
            "epsilon 4.766 at delta 1e-05 for a user (zero-out: one user's interactions replaced by none), 200 steps "
            "of the Gaussian mechanism with noise multiplier 1, Poisson sampling at rate 0.05, accountant PLD (1e-4)",
        ),
        (
            [Event(0.0)],
            "interaction",
            False,
            "no guarantee for an interaction (zero-out: one interaction replaced by none), 1 step without noise",
        ),
        (
            [],
            "client",
            True,
            "NOT PRIVATE, the noise can be replayed: epsilon 0 at delta 1e-05 for a client (zero-out: one client's "
            "data replaced by none), nothing released, accountant PLD (1e-4)",
        ),
    ],
)
def test_a_statement_says_all_that_a_guarantee_rests_on(
    events: list[Event], unit: Any, replay: bool, text: str
) -> None:
    assert statement(events, unit, 1e-5, replay) == text


def test_many_unlike_groups_are_told_by_few_questions() -> None:
    draw = np.random.default_rng(1)
    members = {f"silo{i}": draw.choice(1000, 300, replace=False) for i in range(12)}
    events = {silo: [Event(6.0 + i, 1.0, 3)] for i, silo in enumerate(members)}
    asked = accounting._epsilon.cache_info().misses
    found = persons(events, members, 1e-5)
    assert len(found) > 500
    assert EXACT <= accounting._epsilon.cache_info().misses - asked < 2 * EXACT
    # All steps are Gaussian, so that the worst group is the one with the largest sum of T / sigma^2.
    cost = {silo: 3 / events[silo][0].sigma ** 2 for silo in members}
    costs = [sum(cost[silo] for silo in group.silos) for group in found]
    assert math.isclose(costs[0], max(costs))
    for group in (found[0], found[200], found[-1]):
        spent = [event for silo in group.silos for event in events[silo]]
        assert epsilon(spent, 1e-5) <= group.epsilon <= min(bound(spent, 1e-5), found[0].epsilon)
    assert found[0].epsilon == epsilon([event for silo in found[0].silos for event in events[silo]], 1e-5)


def test_a_statement_of_several_mechanisms_names_each_and_rounds_up() -> None:
    events = [Event.concentrated(0.02, 3), Event(5.0, 1.0, 2)]
    text = statement(events, "client", 1e-5)
    assert "3 steps of a mechanism with zero-concentrated DP of rho 0.02" in text
    assert "2 steps of the Gaussian mechanism with noise multiplier 5, no sampling" in text
    assert text.endswith("accountant RDP")
    stated = float(text.removeprefix("epsilon ").split(" ")[0])
    assert 0 <= stated - epsilon(events, 1e-5) <= 1e-3
