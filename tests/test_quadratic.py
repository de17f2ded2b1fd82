"""Quadratic recommenders: sums against their definition by points, and fits against what they must satisfy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fedrec.data.history import Sequences
from fedrec.errors import UserError
from fedrec.models import quadratic
from fedrec.models.quadratic import KINDS, Quadratic, inputs, penalty, scale, score, solve, statistics

Matrix = NDArray[np.float64]
N = 6
PLAIN = Quadratic(length=0, popular=0, rare=0)
USERS = st.lists(st.lists(st.integers(0, N - 1), max_size=8), max_size=8)  # items may repeat, users may have none
CONFIGS = st.builds(
    Quadratic,
    past=st.floats(0.2, 20),
    future=st.floats(0, 2),
    recent=st.floats(0, 2),
    whole=st.floats(0, 1),
    length=st.floats(0, 1),
    ridge=st.floats(0.1, 10),
    popular=st.floats(0, 1),
    rare=st.floats(0, 0.5),
)


def of(users: list[list[int]]) -> Sequences:
    items = np.array([item for user in users for item in user], np.int64)
    return Sequences(items, np.cumsum([0, *map(len, users)]))


def sums(kind: str, config: Quadratic, users: list[list[int]], items: int = N) -> tuple[Matrix, Matrix]:
    gram, cross = statistics(kind, config, of(users), items)
    return gram.toarray(), cross.toarray()


def many(seed: int, users: int, items: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(items)[: rng.integers(0, items)].tolist() for _ in range(users)]


def by_points(config: Quadratic, users: list[list[int]]) -> tuple[Matrix, Matrix, Matrix]:
    """Return X'X, S'S and S'T, row by row: the past and the future of every point between two items of a user."""
    whole, gram, cross = np.zeros((3, N, N))
    for user in filter(None, users):
        weight = len(user) ** -config.length
        x = np.bincount(user, minlength=N)
        whole += weight * np.outer(x, x)
        for t in range(1, len(user)):
            past = np.exp(-(t - 1 - np.arange(t)) / config.past)
            future = (1.0 + np.arange(len(user) - t)) ** -config.future
            s, f = np.bincount(user[:t], past, N), np.bincount(user[t:], future, N)
            gram += weight * np.outer(s, s)
            cross += weight * np.outer(s, f)
    unit = 1 - np.exp(-2 / config.past)
    return whole, unit * gram, unit * cross


@given(USERS, CONFIGS, st.sampled_from([0, 5, 10**6]))
def test_the_sums_are_those_of_every_point_of_every_user(users: list[list[int]], config: Quadratic, batch: int) -> None:
    whole, gram, cross = by_points(config, users)
    share = config.whole
    expected = {
        "ease": (whole, whole),
        "slit": (gram, cross),
        "slist": (share * whole + (1 - share) * gram, share * whole + (1 - share) * cross),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quadratic, "BATCH", batch)
        for kind, pair in expected.items():
            np.testing.assert_allclose(sums(kind, config, users), pair, rtol=1e-9, atol=1e-12)


@given(USERS, CONFIGS, st.sampled_from(KINDS), st.lists(st.integers(0, 2), min_size=8, max_size=8))
def test_the_sums_of_any_partition_of_the_users_add_up_to_those_of_all(
    users: list[list[int]], config: Quadratic, kind: str, client: list[int]
) -> None:
    parts = [[user for user, mine in zip(users, client, strict=False) if mine == one] for one in range(3)]
    added = np.sum([sums(kind, config, part) for part in parts], axis=0)
    np.testing.assert_allclose(added, sums(kind, config, users), rtol=1e-12, atol=1e-13)


@given(USERS, CONFIGS, st.sampled_from(KINDS), st.permutations(range(N)))
def test_items_by_other_numbers_have_the_same_sums_and_scores(
    users: list[list[int]], config: Quadratic, kind: str, number: list[int]
) -> None:
    renamed = [[number[item] for item in user] for user in users]
    here, there = sums(kind, config, users), sums(kind, config, renamed)
    for mine, other in zip(here, there, strict=True):
        np.testing.assert_allclose(other[np.ix_(number, number)], mine, rtol=1e-12, atol=1e-13)
    old = score(kind, config, *here, inputs(kind, config, of(users), N))
    new = score(kind, config, *there, inputs(kind, config, of(renamed), N))
    np.testing.assert_allclose(new[:, number], old, rtol=1e-9, atol=1e-10)


@given(USERS, CONFIGS, st.sampled_from(KINDS))
def test_a_gram_matrix_is_symmetric_and_never_negative(users: list[list[int]], config: Quadratic, kind: str) -> None:
    gram, _ = sums(kind, config, users)
    np.testing.assert_allclose(gram, gram.T, rtol=1e-12, atol=1e-14)
    assert np.linalg.eigvalsh(gram).min() > -1e-12 * max(1, gram.max())
    assert penalty(config, np.diagonal(gram)).min() > 0


@given(USERS, CONFIGS, st.sampled_from(["slist", "slit"]))
def test_the_fit_satisfies_the_normal_equations(users: list[list[int]], config: Quadratic, kind: str) -> None:
    gram, cross = sums(kind, config, users)
    weights = solve(kind, config, gram, cross)
    left = (gram + np.diag(penalty(config, np.diagonal(gram)))) @ weights
    np.testing.assert_allclose(left, cross * scale(config, np.diagonal(gram)), rtol=1e-8, atol=1e-9)


@given(USERS, CONFIGS)
def test_ease_has_a_zero_diagonal_and_no_gradient_beside_it(users: list[list[int]], config: Quadratic) -> None:
    """Minimise 1/2 |X - X B|^2 + 1/2 sum_i ridge_i |B_i|^2 with B_jj = 0: the gradient is 0 wherever B is free."""
    config = config.model_copy(update={"rare": 0})
    gram, cross = sums("ease", config, users)
    weights = solve("ease", config, gram, cross)
    assert not np.diagonal(weights).any()
    gradient = (gram + np.diag(penalty(config, np.diagonal(gram)))) @ weights - gram
    np.testing.assert_allclose(gradient - np.diag(np.diagonal(gradient)), 0, atol=1e-9 * max(1, gram.max()))


def test_ease_is_the_published_closed_form() -> None:
    """P = (X'X + lambda I)^-1 and B = I - P diagMat(1 / diag P) (arXiv 1905.03375, equation 8)."""
    users = many(0, 30, N)
    gram, cross = sums("ease", PLAIN, users)
    x = np.array([np.bincount(user, minlength=N) for user in users])
    np.testing.assert_array_equal(gram, x.T @ x)
    inverse = np.linalg.inv(gram + PLAIN.ridge * np.trace(gram) / N * np.eye(N))
    expected = np.eye(N) - inverse @ np.diag(1 / np.diagonal(inverse))
    np.testing.assert_allclose(solve("ease", PLAIN, gram, cross), expected, atol=1e-12)


@pytest.mark.parametrize("most", [0.0, 0.1, 0.4, 1.0])
def test_the_similarity_of_items_that_repeat_is_the_published_closed_form(most: float) -> None:
    """B = I - P diagMat(g), g_j the larger of lambda and (1 - xi) / P_jj (arXiv 2103.16104, of SLIS)."""
    users = many(0, 30, N)
    gram, cross = sums("ease", PLAIN, users)
    ridge = PLAIN.ridge * np.trace(gram) / N
    inverse = np.linalg.inv(gram + ridge * np.eye(N))
    expected = np.eye(N) - inverse @ np.diag(np.maximum(ridge, (1 - most) / np.diagonal(inverse)))
    found = solve("ease", PLAIN.model_copy(update={"repeats": most}), gram, cross)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (most > 0) or np.allclose(found, solve("ease", PLAIN, gram, cross), atol=1e-12)


@given(USERS, CONFIGS, st.sampled_from(KINDS), st.floats(0, 1), st.sampled_from([2, 1024]))
def test_a_bound_on_what_an_item_tells_of_itself_has_multipliers(
    users: list[list[int]], config: Quadratic, kind: str, most: float, columns: int
) -> None:
    """(G + ridge) W - C = -diag(mu) with mu >= 0, and mu_j > 0 only where W_jj is at the bound: W is the best."""
    config = config.model_copy(update={"rare": 0, "repeats": most})
    gram, cross = sums(kind, config, users)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quadratic, "COLUMNS", columns)
        weights = solve(kind, config, gram, cross)
    system = gram + np.diag(penalty(config, np.diagonal(gram)))
    slack, scale_ = most - np.diagonal(weights), max(1, np.abs(system).max())
    gradient = system @ weights - cross
    price = -np.diagonal(gradient)
    np.testing.assert_allclose(gradient + np.diag(price), 0, atol=1e-9 * scale_)
    assert slack.min() > -1e-9 and price.min() > -1e-9 * scale_
    np.testing.assert_allclose(slack * price, 0, atol=1e-9 * scale_)


def test_one_user_who_repeats_by_hand() -> None:
    """One item twice is one point: s = f = 1, G = C = u, and a ridge of G: W = 1/2, at most the bound."""
    config = PLAIN.model_copy(update={"ridge": 1.0})
    for most, told in ((None, 0.5), (1.0, 0.5), (0.25, 0.25), (0.0, 0.0)):
        bounded = config.model_copy(update={"repeats": most})
        assert solve("slit", bounded, *sums("slit", bounded, [[0, 0]], items=1))[0, 0] == pytest.approx(told, abs=1e-15)


def test_one_user_of_two_items_by_hand() -> None:
    """One point: s = (1, 0), f = (0, 1). With u = 1 - exp(-2 / past): G = u s s', C = u s f', mean diagonal u / 2.

    The ridge is 2 u / 2 = u, so W_01 = u / (u + u) = 1/2, and item 0 alone leads to item 1.
    """
    config = PLAIN.model_copy(update={"ridge": 2.0, "past": 3.0})
    gram, cross = sums("slit", config, [[0, 1]], items=2)
    unit = 1 - np.exp(-2 / 3)
    expected = np.zeros((2, 2, 2))
    expected[0, 0, 0] = expected[1, 0, 1] = unit
    np.testing.assert_allclose((gram, cross), expected, atol=1e-15)
    np.testing.assert_allclose(solve("slit", config, gram, cross), np.array([[0, 0.5], [0, 0]]), atol=1e-15)


def test_limits_of_the_decays() -> None:
    users = [[0, 1, 2, 3], [3, 1]]
    last = PLAIN.model_copy(update={"past": 1e-3, "future": 0})  # the past is the item before, the future all behind
    gram, cross = sums("slit", last, users)
    np.testing.assert_allclose(gram, np.diag([1.0, 1, 1, 1, 0, 0]), atol=1e-12)
    every: Matrix = np.zeros((N, N))
    every[[0, 0, 0, 1, 1, 2, 3], [1, 2, 3, 2, 3, 3, 1]] = 1
    np.testing.assert_allclose(cross, every, atol=1e-12)
    whole, other = (Quadratic(whole=1.0, past=past) for past in (1, 9))
    np.testing.assert_allclose(sums("slist", whole, users), sums("ease", other, users), atol=1e-12)
    np.testing.assert_allclose(sums("slist", Quadratic(whole=0.0), users), sums("slit", Quadratic(), users), atol=1e-12)
    found = {
        recent: inputs("slist", Quadratic(recent=recent), of([[4, 2]]), N).toarray()[0, [4, 2]] for recent in (0, 1)
    }
    assert found[0].tolist() == [1, 1]
    assert found[1].tolist() == [0.5, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_the_history_times_the_fit_however_many_are_asked(kind: str) -> None:
    users, config = many(1, 90, 30), Quadratic()
    gram, cross = sums(kind, config, users, 30)
    x = inputs(kind, config, of(users), 30)
    for repeats in (None, 0.01):
        config = config.model_copy(update={"repeats": repeats})
        weights = solve(kind, config, gram, cross)
        for asked in (1, 5, 90):
            some = csr_array(x[:asked])
            np.testing.assert_allclose(score(kind, config, gram, cross, some), some @ weights, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_the_order_nor_the_number_of_users_changes_the_fit(kind: str) -> None:
    users, config = many(2, 20, N), Quadratic()
    fit = solve(kind, config, *sums(kind, config, users))
    np.testing.assert_allclose(solve(kind, config, *sums(kind, config, users[::-1])), fit, atol=1e-12)
    np.testing.assert_allclose(solve(kind, config, *sums(kind, config, 5 * users)), fit, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_columns_and_a_short_float_change_little(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    users, config = many(3, 200, 40), Quadratic()
    gram, cross = sums(kind, config, users, 40)
    fit = solve(kind, config, gram, cross)
    monkeypatch.setattr(quadratic, "COLUMNS", 7)
    np.testing.assert_allclose(solve(kind, config, gram, cross), fit, atol=1e-14)
    short = solve(kind, config, gram.astype(np.float32), cross.astype(np.float32))
    assert short.dtype == np.float32
    assert np.abs(short - fit).max() < 1e-5 * np.abs(fit).max()


def test_nothing_is_changed_that_was_given() -> None:
    users, config = many(4, 20, N), Quadratic()
    made = of([*users, [1, 1, 2]])
    before = made.item.copy()
    gram, cross = (total.toarray() for total in statistics("slist", config, made, N))
    x = inputs("slist", config, made, N)
    kept = gram.copy(), cross.copy(), x.toarray()
    for asked in (x, csr_array(x[:1])):
        score("slist", config, gram, cross, asked)
    np.testing.assert_array_equal(made.item, before)
    for old, new in zip(kept, (gram, cross, x.toarray()), strict=True):
        np.testing.assert_array_equal(new, old)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(UserError, match="model"):
        statistics("slits", Quadratic(), of([[0, 1]]), N)
    with pytest.raises(UserError, match=r"quadratic.ridge: must make the sums positive definite"):
        solve("slist", Quadratic(), -np.eye(N), np.eye(N))


@pytest.mark.parametrize("users", [[], [[]], [[3]]])
@pytest.mark.parametrize("kind", KINDS)
def test_nobody_or_a_single_item_teaches_nothing_of_others(kind: str, users: list[list[int]]) -> None:
    weights = solve(kind, Quadratic(), *sums(kind, Quadratic(), users))
    assert not (weights - np.diag(np.diagonal(weights))).any()
