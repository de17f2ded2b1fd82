"""A client's memory: whatever is trained later, the best round's private parameters come back."""

import pytest
import torch
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from clients.memory import Memory
from fedrec.coordination import Link
from fedrec.parameters import Params
from fedrec.sharing import ContractError


def memory() -> Memory:
    return Memory(Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={}))


def state(number: int) -> Params:
    """Return private parameters that tell the round after which they stand."""
    return {"heads.rank.bias": torch.tensor([float(number)]), "user_table": torch.full((2, 3), number / 7)}


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tied(number: int) -> Link:
    x = {"item_table": torch.full((2, 2), number / 3)}
    return Link.start(x, 0.5)


def test_what_is_stored_comes_back_to_the_bit_and_is_nobody_elses() -> None:
    one = memory()
    private = {"user_table": torch.tensor([[0.1, -0.0, 1e-40]]), "empty": torch.zeros(0, 4)}
    one.begin(private, None)
    private["user_table"].zero_()
    assert one.private["user_table"].numpy().tobytes() == torch.tensor([[0.1, -0.0, 1e-40]]).numpy().tobytes()
    assert one.private["empty"].shape == (0, 4)
    one.private["user_table"].zero_()
    assert one.private["user_table"].any()


def test_another_view_of_the_same_context_sees_the_same() -> None:
    one = memory()
    one.begin(state(0), tied(0))
    one.trained(3, state(3), tied(3))
    other = Memory(one.context)
    assert same(other.private, state(3))
    assert same(other.link.sent, tied(3).sent)
    assert (other.round, other.link.rho) == (3, 0.5)
    assert other.link.dual["item_table"].dtype == torch.float64


def test_without_a_kept_round_the_present_state_is_the_best() -> None:
    one = memory()
    one.begin(state(0), None)
    one.trained(1, state(1), None)
    assert same(one.best, state(1))


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 4))
def test_the_best_round_comes_back_whenever_the_run_ends(better: list[bool], every: int) -> None:
    """Replays what the server sends: `keep` with the first message after a better evaluation, and at last the test."""
    one, best, tell = memory(), 0, False
    one.begin(state(0), None)
    for number, improved in enumerate(better, 1):
        if tell:
            one.keep()
        tell = False
        one.trained(number, state(number), None)
        if number % every == 0 and (improved or not best):
            best, tell = number, True
    if tell:
        one.keep()
    assert same(one.best, state(best or len(better)))


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_a_lost_contribution_is_undone(taken: list[bool]) -> None:
    """The client ends where it would be if the lost rounds had never been asked of it."""
    one, seen = memory(), 0
    one.begin(state(0), tied(0))
    for number, arrives in enumerate(taken, 1):
        one.settle(seen)
        one.trained(number, state(number), tied(number))
        seen = number if arrives else seen
    one.settle(seen)
    assert one.round == seen
    assert same(one.private, state(seen))
    assert same(one.link.sent, tied(seen).sent)


def test_a_server_that_has_seen_neither_of_the_last_two_is_refused() -> None:
    one = memory()
    one.begin(state(0), None)
    for number in (1, 2, 3):
        one.trained(number, state(number), None)
    with pytest.raises(ContractError, match=r"^seen: must be one of the last two contributions, found 1 in round 3"):
        one.settle(1)
    assert same(one.private, state(3))


def test_joining_again_forgets_an_earlier_run() -> None:
    one = memory()
    one.begin(state(0), tied(0))
    one.trained(4, state(4), tied(4))
    one.keep()
    one.begin(state(7), None)
    assert same(one.best, state(7))
    assert one.round == 0
    with pytest.raises(KeyError):
        _ = one.link


def test_nothing_stored_is_an_error_and_no_empty_answer() -> None:
    with pytest.raises(KeyError):
        _ = memory().private
