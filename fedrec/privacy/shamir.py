"""Shamir's secret sharing over a prime field (Shamir 1979): any t shares tell the secret, fewer tell nothing.

A secret s of 32 bytes is the constant term of a random polynomial f of degree t - 1 over Z_p; the share at x is f(x).
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

from fedrec.sharing import ContractError

PRIME = 2**256 + 297  # the smallest prime above every secret
SECRET = 32  # bytes of a secret
SHARE = 33  # bytes of a share


def split(secret: bytes, threshold: int, points: Sequence[int]) -> dict[int, bytes]:
    """Return the share [33 bytes] of a secret [32 bytes] at every point, of which `threshold` are needed.

    Raises ValueError for points that are not distinct and from 1, or fewer than the threshold.
    """
    if len(secret) != SECRET:
        raise ValueError(f"secret: must have {SECRET} bytes, found {len(secret)}")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold: must be from 1 to the {len(points)} points, found {threshold}")
    if len(set(points)) < len(points) or not all(1 <= x < PRIME for x in points):
        raise ValueError("points: must be distinct numbers from 1, found others")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {x: value(coefficients, x).to_bytes(SHARE, "big") for x in points}


def value(coefficients: Sequence[int], x: int) -> int:
    """Return sum_k c_k x^k mod p (Horner)."""
    total = 0
    for c in reversed(coefficients):
        total = (total * x + c) % PRIME
    return total


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret of shares by their points.

    Raises ContractError for fewer than `threshold` shares, one outside the field, or shares that are not all of one
    polynomial of degree `threshold` - 1: somebody sent a wrong one, and which cannot be told.
    """
    if len(shares) < threshold:
        raise ContractError(f"shares: must be at least {threshold}, found {len(shares)}")
    points = tuple(sorted(shares))
    values = [int.from_bytes(shares[x], "big") for x in points]
    if not all(len(shares[x]) == SHARE and y < PRIME for x, y in zip(points, values, strict=True)):
        raise ContractError(f"shares: must be numbers of the field in {SHARE} bytes, found another")
    known = values[:threshold]
    for x, y in zip(points[threshold:], values[threshold:], strict=True):
        if interpolate(known, points[:threshold], x) != y:
            raise ContractError(f"shares: must lie on one polynomial of degree {threshold - 1}, found others")
    secret = interpolate(known, points[:threshold], 0)
    if secret >= 1 << 8 * SECRET:
        raise ContractError(f"shares: must be of a secret of {SECRET} bytes, found a larger one")
    return secret.to_bytes(SECRET, "big")


def interpolate(values: Sequence[int], points: tuple[int, ...], x: int) -> int:
    """Return f(x) of the polynomial through the values at the points."""
    return sum(y * w for y, w in zip(values, weights(points, x), strict=True)) % PRIME


@lru_cache(maxsize=1024)
def weights(points: tuple[int, ...], x: int) -> tuple[int, ...]:
    """Return the Lagrange weights prod_{k != j} (x - x_k) / (x_j - x_k), which a round's secrets have in common."""
    values = []
    for j in points:
        above = below = 1
        for k in points:
            if k != j:
                above, below = above * (x - k) % PRIME, below * (j - k) % PRIME
        values.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(values)
