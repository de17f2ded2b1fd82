"""The random numbers of mechanisms: their distribution, their independence, and what floating point betrays."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrec.errors import UserError
from fedrec.privacy.noise import GRAIN, Source, add_noise

N = 1_000_000


def distance(cumulative: Tensor) -> float:
    """Return sqrt(n) times the distance of Kolmogorov and Smirnov of numbers [n], given their claimed distribution.

    It exceeds 1.95 with a probability of 2 exp(-2 1.95^2) = 0.001.
    """
    u, n = cumulative.sort().values, len(cumulative)
    step = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * float(torch.maximum((step[1:] - u).max(), (u - step[:-1]).max()))


@pytest.fixture(scope="module")
def normal() -> Tensor:
    return Source.replayable(0, "test").normal(N)


def test_normal_numbers_have_the_moments_and_the_distribution_of_a_normal(normal: Tensor) -> None:
    assert normal.dtype == torch.float64
    z = normal.numpy()
    # The standard errors of the mean, the variance, the skewness and the kurtosis are sqrt(1, 2, 6, 24) / sqrt(n).
    centred = z - z.mean()
    scaled = centred / z.std()
    for moment, expected, error in ((z, 0, 1), (centred**2, 1, 2), (scaled**3, 0, 6), (scaled**4, 3, 24)):
        assert abs(moment.mean() - expected) < 4 * math.sqrt(error / N)
    assert distance(torch.special.ndtr(normal)) < 1.95
    for t in (2.0, 3.0, 4.0, 4.5):
        for tail in (z > t, z < -t):
            count = N * math.erfc(t / math.sqrt(2)) / 2
            assert abs(int(tail.sum()) - count) < 4 * math.sqrt(count)


def test_normal_numbers_do_not_repeat_and_do_not_depend_on_each_other(normal: Tensor) -> None:
    z = normal.numpy()
    assert len(np.unique(z)) == N
    for lag in (1, 2, N // 2):  # N // 2: the two of a pair of Box and Muller's
        for power in (1, 2):
            assert abs(np.corrcoef(z[:-lag] ** power, z[lag:] ** power)[0, 1]) < 4 / math.sqrt(N - lag)


def test_uniform_numbers_are_above_0_and_at_most_1() -> None:
    u = Source.replayable(0).uniform(N)
    assert u.min() > 0 and u.max() <= 1
    assert distance(torch.from_numpy(u)) < 1.95
    assert np.array_equal(u * 2.0**53, np.rint(u * 2.0**53))


def test_sources_of_the_system_differ_and_replayable_ones_are_equal_and_say_so() -> None:
    a, b = Source.system(), Source.system()
    assert a.private and b.private and a.spawn().private
    assert not torch.equal(a.normal(8), b.normal(8))
    one, same, other = (
        Source.replayable(3, "films", 1),
        Source.replayable(3, "films", 1),
        Source.replayable(3, "films", 2),
    )
    assert not one.private and not Source.replayable(3).spawn().private
    assert one.spawn().bytes(16) == same.spawn().bytes(16)
    x = one.normal(3, 5)
    assert x.shape == (3, 5) and torch.equal(x, same.normal(3, 5))
    assert not torch.equal(x, other.normal(3, 5))
    assert not torch.equal(x, one.normal(3, 5))


def test_what_a_spawned_source_draws_does_not_move_its_parent() -> None:
    a, b = Source.replayable(0), Source.replayable(0)
    a.spawn().normal(100)
    b.spawn()
    assert torch.equal(a.normal(4), b.normal(4))


def test_the_stream_is_chacha20() -> None:
    # RFC 8439, appendix A.1, test vector 1: key 0, nonce 0, block counter 0.
    expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert Source(bytes(32), False).bytes(32).hex() == expected


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0), (5,), (2, 3, 4)])
def test_any_shape_is_drawn(shape: tuple[int, ...]) -> None:
    assert Source.system().normal(*shape).shape == shape
    assert add_noise(torch.zeros(shape), 2.0, Source.system()).shape == shape


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-6, 1e6), st.integers(0, 100), st.floats(-1000, 1000))
def test_noise_and_total_are_whole_multiples_of_a_grain(std: float, seed: int, size: float) -> None:
    total = torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).normal(0, 1, 50) * size * std)
    got = add_noise(total, std, Source.replayable(seed))
    whole = got / (std * GRAIN)
    torch.testing.assert_close(whole, whole.round(), rtol=1e-15, atol=0)
    # The very numbers that the noise is made of, and the total to half a grain each.
    expected = total + std * Source.replayable(seed).normal(50)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=std * GRAIN * 1.01)


def test_neighbours_have_the_same_possible_outcomes_to_the_last_bit() -> None:
    # Mironov's attack asks which of two totals a released number can come from: its last bits tell. Added as floating
    # point numbers they do; on the grid the outcomes of 1 + 0.1 are outcomes of 1, shifted by whole grains.
    z = Source.replayable(1).normal(1000)
    a, b = torch.full((1000,), 1.1, dtype=torch.float64), torch.ones(1000, dtype=torch.float64)
    assert not torch.equal((a + z) - z, a)  # the plain sum is rounded, differently for every number
    shift = (add_noise(a, 1.0, Source.replayable(1)) - add_noise(b, 1.0, Source.replayable(1))) / GRAIN
    assert torch.equal(shift, torch.full_like(shift, round(0.1 / GRAIN)))


def test_without_noise_the_total_comes_back() -> None:
    total = torch.tensor([0.1, -3.0])
    assert torch.equal(add_noise(total, 0.0, Source.system()), total.double())


@pytest.mark.parametrize("bad", [math.nan, math.inf, 2.0**21])
def test_a_total_that_would_not_be_added_exactly_is_refused(bad: float) -> None:
    with pytest.raises(UserError, match=r"total: every entry must be finite and at most 2\^20 standard deviations"):
        add_noise(torch.tensor([0.0, bad]), 1.0, Source.system())
