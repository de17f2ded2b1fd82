"""Answers out of all proportion to those beside them: refused before anything is added up, never scaled.

What counts is not changed by a bit, and so a round of honest clients is what it would be without the rule.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from fedrec.params import Params, norm, subtract
from fedrec.sharing import is_sum
from fedrec.sparse import entries

# How far an answer may be beyond the others. It is to catch what would end the run for everybody, and must never meet
# an honest client: one with ten thousand times the data of the others, or with the noise of a far smaller epsilon. What
# moves a mean by less is for a robust rule.
MULTIPLE = 10_000.0
Who = TypeVar("Who", str, int)
Told = Mapping[str, Mapping[str, float]]  # name -> client -> a number that is not negative
NOTHING: Told = {}


def refusals(
    answers: Mapping[str, Params], sent: Mapping[str, Params], increments: bool = False, told: Told = NOTHING
) -> dict[str, str]:
    """Return, for each client of a cohort whose answer is out of proportion, what is wrong with it.

    The change |x_i - z_i| of an answer x_i to `sent` z_i may be MULTIPLE times the largest of its `size` and the upper
    median of the changes of the others; of `increments` the change is |x_i|. What clients have `told`, by its name, may
    be MULTIPLE times the larger of 100 and the upper median of what the others told.
    """
    faults: dict[str, str] = {}
    if any(large(answers[name], sent[name], increments) for name in answers):
        changes = {name: change(answers[name], sent[name], increments) for name in answers}
        faults |= too_far(changes, {name: size(sent[name]) for name in answers})
    for what, values in told.items():
        ordered = sorted(values.values())
        for name, value in values.items():
            if value > 100.0 * MULTIPLE and value > (limit := MULTIPLE * max(100.0, others(ordered, value))):
                faults.setdefault(name, f"{what}: must be at most {limit:.4g} beside the others, found {value:.4g}")
    return faults


def too_far(
    changes: Mapping[Who, float], sent: Mapping[Who, float], what: str = "the change of the parameters"
) -> dict[Who, str]:
    """Return which of a cohort's `changes` are out of proportion, and why.

    `sent` has the `size` of z_i of those that may be.
    """
    faults: dict[Who, str] = {}
    ordered = sorted(changes.values())
    for name, usual in sent.items():
        limit = MULTIPLE * max(usual, others(ordered, changes[name]))
        if changes[name] > limit:
            faults[name] = f"{what} must be at most {limit:.4g} in norm, found {changes[name]:.4g}"
    return faults


def large(answer: Params, sent: Params, increments: bool = False) -> bool:
    """Return whether an answer may be out of proportion: whether it is one, but for what the others changed."""
    most = math.sqrt(math.fsum(v.numel() * largest(v) ** 2 for v in answer.values() if entries(v).numel()))
    if most <= MULTIPLE - 1:  # then |x_i - z_i| <= |x_i| + |z_i| is within the limit whatever z_i is
        return False
    return change(answer, sent, increments) > MULTIPLE * size(sent)


def size(sent: Params) -> float:
    """Return |z_i|, but the `least` where it is smaller."""
    return max(norm(sent), least(sent))


def least(sent: Params) -> float:
    """Return what is no size to speak of: 1, or the number of entries of sums over users, which have no scale."""
    return max(1.0, float(sum(value.numel() for name, value in sent.items() if is_sum(name))))


def largest(value: Tensor) -> float:
    """Return the largest entry in size."""
    low, high = entries(value).aminmax()
    return max(-low.item(), high.item())


def change(answer: Params, sent: Params, increments: bool = False) -> float:
    """Return the norm of what an answer would change."""
    return norm(answer if increments else subtract(answer, sent))


def others(ordered: Sequence[float], value: float) -> float:
    """Return the upper median of ascending values without one of them, 0 if there is no other."""
    middle = (len(ordered) - 1) // 2
    return ordered[middle + (bisect_left(ordered, value) <= middle)] if len(ordered) > 1 else 0.0
