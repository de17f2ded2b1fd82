"""Shamir shares: any t tell the secret, fewer tell nothing, a wrong one is noticed."""

import secrets
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from sympy import isprime

from fedrec.privacy.shamir import PRIME, SECRET, SHARE, combine, interpolate, split, value
from fedrec.sharing import ContractError


def test_the_field_is_one_and_holds_every_secret() -> None:
    assert isprime(PRIME) and not any(isprime(n) for n in range(2**256 + 1, PRIME))
    assert PRIME < 2 ** (8 * SHARE)


@settings(deadline=None, max_examples=25)
@given(st.binary(min_size=SECRET, max_size=SECRET), st.integers(1, 7), st.data())
def test_any_threshold_of_shares_tells_the_secret(secret: bytes, n: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(1, n))
    shares = split(secret, t, range(1, n + 1))
    assert all(len(one) == SHARE for one in shares.values())
    for size in range(t, n + 1):
        for some in combinations(shares, size):
            assert combine({x: shares[x] for x in some}, t) == secret
    with pytest.raises(ContractError, match=f"at least {t}"):
        combine({x: shares[x] for x in list(shares)[: t - 1]}, t)


def test_a_polynomial_of_known_coefficients() -> None:
    """f(x) = 3 + 5 x + 7 x^2: f(1) = 15, f(2) = 41, f(4) = 135, and back f(0) = 3, f(3) = 81."""
    assert [value([3, 5, 7], x) for x in (1, 2, 4)] == [15, 41, 135]
    assert interpolate([15, 41, 135], (1, 2, 4), 0) == 3 and interpolate([15, 41, 135], (1, 2, 4), 3) == 81


def test_fewer_shares_fit_every_secret() -> None:
    """t - 1 shares and any value at 0 lie on one polynomial of degree t - 1: every secret is left, each as likely."""
    t, points = 3, (1, 2, 3, 4, 5)
    shares = split(bytes(SECRET), t, points)
    seen = (2, 5)
    for other in (1, secrets.randbelow(2**256)):
        known = [other, *(int.from_bytes(shares[x], "big") for x in seen)]
        forged = {x: interpolate(known, (0, *seen), x).to_bytes(SHARE, "big") for x in points}
        assert all(forged[x] == shares[x] for x in seen)
        assert combine(forged, t) == other.to_bytes(SECRET, "big")


@pytest.mark.parametrize("secret", [bytes(SECRET), b"\xff" * SECRET])
def test_a_share_alone_is_uniform_whatever_the_secret(secret: bytes) -> None:
    lowest = [split(secret, 2, [1, 2])[1][-1] for _ in range(4096)]
    counts = np.bincount(lowest, minlength=256)
    assert float(((counts - 16) ** 2 / 16).sum()) < chi2.isf(1e-6, 255)


def test_a_wrong_share_is_noticed_where_there_are_more_than_needed() -> None:
    shares = split(b"s" * SECRET, 3, range(1, 6))
    spoilt = {**shares, 4: (int.from_bytes(shares[4], "big") ^ 1).to_bytes(SHARE, "big")}
    with pytest.raises(ContractError, match="one polynomial of degree 2"):
        combine(spoilt, 3)
    with pytest.raises(ContractError, match="numbers of the field"):
        combine({**shares, 1: b"\xff" * SHARE}, 3)
    with pytest.raises(ContractError, match="numbers of the field"):
        combine({**shares, 1: shares[1][1:]}, 3)


def test_a_secret_is_never_larger_than_a_secret() -> None:
    over = {x: value([2**256 + 1, 9], x).to_bytes(SHARE, "big") for x in (1, 2)}
    with pytest.raises(ContractError, match="found a larger one"):
        combine(over, 2)


@pytest.mark.parametrize("points", [[0, 1], [1, 1], [1, PRIME]])
def test_a_point_at_zero_or_twice_would_give_the_secret_away(points: list[int]) -> None:
    with pytest.raises(ValueError, match="points"):
        split(bytes(SECRET), 2, points)


def test_a_threshold_fits_the_points() -> None:
    for t in (0, 3):
        with pytest.raises(ValueError, match="threshold"):
            split(bytes(SECRET), t, [1, 2])
    with pytest.raises(ValueError, match="32 bytes"):
        split(b"short", 1, [1, 2])
