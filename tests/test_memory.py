"""A client's memory: whatever is trained later, the best round's private parameters come back."""

import pytest
import torch
from flwr.app import Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.memory import Memory
from fedrec.parameters import Params


def memory() -> Memory:
    return Memory(Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={}))


def state(number: int) -> Params:
    """Return private parameters that tell the round after which they stand."""
    return {"heads.rank.bias": torch.tensor([float(number)]), "user_table": torch.full((2, 3), number / 7)}


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_stored_comes_back_to_the_bit_and_is_nobody_elses() -> None:
    one = memory()
    private = {"user_table": torch.tensor([[0.1, -0.0, 1e-40]]), "empty": torch.zeros(0, 4)}
    one.private = private
    private["user_table"].zero_()
    assert one.private["user_table"].numpy().tobytes() == torch.tensor([[0.1, -0.0, 1e-40]]).numpy().tobytes()
    assert one.private["empty"].shape == (0, 4)
    one.private["user_table"].zero_()
    assert one.private["user_table"].any()


def test_another_view_of_the_same_context_sees_the_same() -> None:
    one = memory()
    one.trained(state(3))
    assert same(Memory(one.context).private, state(3))


def test_before_any_evaluation_there_is_only_the_present_state() -> None:
    one = memory()
    one.private = state(0)
    one.trained(state(1))
    assert same(one.at(1), state(1))


def test_the_kept_round_survives_later_trainings_and_evaluations() -> None:
    one = memory()
    one.trained(state(1))
    one.evaluated(1)
    one.keep()
    for number in (2, 3):
        one.trained(state(number))
        one.evaluated(number)
    assert same(one.at(1), state(1))
    assert same(one.at(3), state(3))
    assert same(one.private, state(3))


def test_a_training_after_the_best_evaluation_does_not_pass_for_it() -> None:
    one = memory()
    one.trained(state(2))
    one.evaluated(2)
    one.keep()
    one.trained(state(3))  # and the run is interrupted before the next evaluation
    assert same(one.at(2), state(2))


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 4))
def test_the_best_round_comes_back_whenever_the_run_ends(better: list[bool], every: int) -> None:
    """Replays what the server sends: `keep` with the first message after a better evaluation, and at last the test."""
    one, best, tell = memory(), 0, False
    one.private = state(0)
    for number, improved in enumerate(better, 1):
        if tell:
            one.keep()
        tell = False
        one.trained(state(number))
        if number % every == 0:
            one.evaluated(number)
            if improved or not best:
                best, tell = number, True
    if tell:
        one.keep()
    best = best or len(better)
    assert same(one.at(best), state(best))


def test_nothing_stored_is_an_error_and_no_empty_answer() -> None:
    with pytest.raises(KeyError):
        _ = memory().private
