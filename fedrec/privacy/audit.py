"""Audits: what canaries in one run of private training say of a mechanism, against what it says of itself.

A lower bound of epsilon above the accounted one proves a breach, but many broken mechanisms keep below it for the
canaries at hand. Beside the bounds, each property that a proof rests on has a test of its own. An honest mechanism
fails any of them with probability at most `level`, all together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtr, chdtrc, ndtr, stdtr

import fedrec.privacy.bounds as lower
from fedrec.errors import UserError
from fedrec.params import Params
from fedrec.privacy.bounds import Bound, Estimate, Reals
from fedrec.privacy.canaries import Canaries, moves_of, project
from fedrec.privacy.differential import Mechanism
from fedrec.privacy.transcript import Transcript

CHECKS = 7  # that share the level
ALARM = 1e-3  # how often some check of an audit says of an honest mechanism that it is broken
CHANCE = 0.05  # how often some check of an audit of an honest mechanism is worth a second look
WEAK = 20.0  # an epsilon beyond which the number of guesses need not be chosen for it


@dataclass(frozen=True)
class Claim:
    """What a mechanism says of itself: `steps` steps a round, by plain SGD at the rates `lr` of what it releases.

    `users` is the public number of users that the sum is divided by, times the sampling rate.
    """

    mechanism: Mechanism
    lr: Mapping[str, float]
    users: int
    steps: int
    epsilon: float
    delta: float

    @property
    def units(self) -> dict[str, float]:
        """How far a gradient as long as the clip moves each released parameter in one step."""
        scale = self.mechanism.clip / (self.mechanism.rate * self.users)
        return {name: lr * scale for name, lr in self.lr.items()}


@dataclass(frozen=True)
class Evidence:
    """What a run shows of its canaries; movements are in the claim's units."""

    movement: Mapping[str, Reals]  # of each released table of items [rounds, m, 2, d]
    along: Reals  # [rounds, m] movement along the direction in which a canary that is in moves
    reach: Reals  # [m] how much of a canary's gradient lies in what was released
    canaries: Canaries
    loose: tuple[str, ...]  # what left beside the claim: parameters that moved, metrics

    @property
    def scores(self) -> Reals:
        """How likely each canary is in [m]: white-box over all rounds, or the final model against its start.

        Under plain SGD the rounds' updates sum to what the last model shows.
        """
        return np.asarray(self.along.sum(0))


@dataclass(frozen=True)
class Finding:
    """The verdict of one check: `p` is how probable it is at most that an honest mechanism looks as far off as this.

    `broken` says that the property does not hold; of an honest mechanism it says so with probability at most `level`.
    """

    check: str
    p: float
    text: str
    level: float

    @property
    def broken(self) -> bool:
        """Whether the property does not hold, by the level of the check."""
        return self.p < self.level or self.p == 0.0

    @property
    def unusual(self) -> bool:
        """Whether an audit of an honest mechanism has a check as far off as this with probability `CHANCE` at most."""
        return self.p < self.level * CHANCE / ALARM


def evidence(transcript: Transcript, client: str, canaries: Canaries, along: Params, claim: Claim) -> Evidence:
    """Return what a transcript shows of a client's canaries, whose directions are `along`."""
    movement = moves_of(transcript, client, canaries, claim.units)
    if not movement:
        raise UserError(f"audit: the transcript must hold a table of items from {client!r}, found none")
    rounds = list(transcript.of(client))
    answers = [transcript.joined[client].metrics, *(round_.metrics for round_ in rounds)]
    loose = {f"metric {name}" for metrics in answers for name in metrics}
    for round_ in rounds:
        loose |= {name for name, value in round_.update().items() if name not in claim.lr and bool(value.any())}
    return Evidence(movement, *project(movement, along), canaries, tuple(sorted(loose)))


def bounds(facts: Evidence, claim: Claim, confidence: float = 0.99) -> tuple[Bound, ...]:
    """Return the lower bounds of epsilon: any mechanism's; where everyone is in every step, the Gaussian ones too.

    The numbers of guesses follow from the claim, before anything is looked at. The Gaussian bound comes so close that
    it exceeds the epsilon of an honest mechanism nearly as often as its confidence allows.
    """
    scores, coins, m = facts.scores, facts.canaries.coins, len(facts.canaries.coins)
    ranks = (lower.steinke, lower.f_dp) if claim.mechanism.rate == 1 else (lower.steinke,)
    result = []
    for method in ranks:
        guesses = lower.best_guesses(method, m, min(claim.epsilon, WEAK), claim.delta, confidence)
        result.append(method(m, guesses, lower.ranked(scores, coins, guesses), claim.delta, confidence))
    if claim.mechanism.rate == 1:
        result.append(lower.independent(m, *lower.halved(scores, coins), claim.delta, confidence))
    return tuple(result)


def estimate(facts: Evidence, claim: Claim) -> Estimate:
    """Return the one-shot estimate of epsilon, from the cosines of canaries' directions with the whole update."""
    length = math.sqrt(sum(float(np.square(rows.sum(0)).sum()) for rows in facts.movement.values()))
    return lower.one_shot(facts.scores / length, facts.canaries.coins, claim.delta)


def audit(facts: Evidence, claim: Claim, twin: Transcript | None = None, level: float = ALARM) -> list[Finding]:
    """Return the findings of all checks; with a `twin`, two first rounds from the same state, that of fresh noise too.

    `twin` holds the first round of two runs that differ by their noise alone. `level` is shared by all checks, and by
    several audits if it is parted between them. Raises UserError for a mechanism without
    noise, which claims nothing; `bounds` has what its canaries show.
    """
    if not claim.mechanism.noise:
        raise UserError("audit: needs a mechanism with noise, found noise 0")
    each = level / CHECKS
    checks = [leak(facts, claim, each), unaccounted(facts), noise(facts, claim, each), response(facts, claim, each)]
    checks += [repeated(facts, each), count(facts, claim, each), sampling(facts, claim, each)]
    return [*checks, fresh(twin, claim, each)] if twin else checks


def leak(facts: Evidence, claim: Claim, level: float) -> Finding:
    """Check that no lower bound is above the accounted epsilon; two bounds share the level."""
    limits = [b for b in bounds(facts, claim, 1 - level / 2) if b.method != "f-DP"]
    alarms = [text for bound in limits if (text := lower.alarm(bound, claim.epsilon))]
    best = max(limits, key=lambda b: b.epsilon)
    calm = f"epsilon is at least {best.epsilon:.2f} ({best.method}); {claim.epsilon:.2f} was accounted"
    at = (claim.epsilon, claim.delta)
    least = min(
        lower.independent_p(b.guesses, b.correct, *at)
        if b.method == "Gaussian"
        else lower.steinke_p(b.canaries, b.guesses, b.correct, *at)
        for b in limits
    )
    return Finding("leak", min(2 * least, 1.0), "; ".join(alarms) or calm, level)


def unaccounted(facts: Evidence) -> Finding:
    """Check that nothing left the silo but what is noised; this one cannot err."""
    text = f"left without noise: {', '.join(facts.loose)}" if facts.loose else "only noised parameters left"
    return Finding("unaccounted", 0.0 if facts.loose else 1.0, text, 0.0)


def _loudness(rows: Reals, claim: Claim) -> tuple[float, float, float]:
    """Return (standard deviation over the claimed one, the chance of less, of more) of entries that are noise alone.

    The sum of n squares over their variance is chi-square with n degrees of freedom.
    """
    square, n = float(np.square(rows).sum()) / (claim.steps * claim.mechanism.noise**2), rows.size
    return math.sqrt(square / n), float(chdtr(n, square)), float(chdtrc(n, square))


def noise(facts: Evidence, claim: Claim, level: float) -> Finding:
    """Check that the rows of canaries that are out move by the claimed noise: each table, neither less nor more."""
    out = ~facts.canaries.coins
    loud = {name: _loudness(rows[:, out], claim) for name, rows in facts.movement.items()}
    text = ", ".join(f"{name} {ratio:.3f}" for name, (ratio, _, _) in loud.items())
    p = 2 * len(loud) * min(min(less, more) for _, less, more in loud.values())
    return Finding("noise", min(p, 1.0), f"noise over the claimed noise: {text}", level)


def _responses(facts: Evidence, claim: Claim) -> tuple[float, float]:
    """Return (how far canaries move by being in, over what the clip allows; its standard error)."""
    coins, scores = facts.canaries.coins, facts.scores
    expected = len(facts.along) * claim.steps * claim.mechanism.rate * float(facts.reach.mean())
    inside, outside = scores[coins], scores[~coins]
    error = math.sqrt(inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside))
    return float(inside.mean() - outside.mean()) / expected, max(error / expected, 1e-12)


def response(facts: Evidence, claim: Claim, level: float) -> Finding:
    """Check that a canary that is in moves its rows by its gradient clipped to C: in the mean exactly 1, in C's unit.

    More: it is not clipped, or not as one unit. Less: it is clipped together with others, or the canaries are too weak
    to reach the clip.
    """
    ratio, error = _responses(facts, claim)
    fewer = min(int(facts.canaries.coins.sum()), int((~facts.canaries.coins).sum()))
    p = 2 * float(stdtr(fewer - 1, -abs(ratio - 1) / error))  # Welch's t has at least so many degrees of freedom
    why = " (not clipped as one unit)" if ratio > 1 else " (clipped together with others)"
    return Finding("response", p, f"a unit moves {ratio:.3f} times the clip{why if p < level else ''}", level)


def repeated(facts: Evidence, level: float) -> Finding:
    """Check that the noise of different rounds is uncorrelated, on rows of canaries that are out.

    With n entries x_t a round, the sum over t < s of <x_t, x_s> has mean 0, and over its standard deviation is normal.
    """
    out = ~facts.canaries.coins
    x = np.concatenate([rows[:, out].reshape(len(rows), -1) for rows in facts.movement.values()], axis=1)
    r, n = x.shape
    if r < 2:
        return Finding("repeated", 1.0, "one round has nothing to repeat", level)
    square = np.square(x).sum(1)
    cross = (float(np.square(x.sum(0)).sum()) - float(square.sum())) / 2
    std = math.sqrt((float(square.sum()) ** 2 - float(np.square(square).sum())) / 2 / n)
    z = cross / std if std else math.inf
    correlation = cross / (float(square.sum()) * (r - 1) / 2) if std else 1.0
    p = 2 * float(ndtr(-abs(z)))
    return Finding("repeated", p, f"rounds' noise has correlation {correlation:.4f}", level)


def count(facts: Evidence, claim: Claim, level: float) -> Finding:
    """Check that the sum is divided by the public number: else noise and response are off by the same factor.

    The canaries that are out are users without a gradient: a mechanism that divides by how many have one gives itself
    away.
    """
    out = ~facts.canaries.coins
    rows = np.concatenate([rows[:, out].ravel() for rows in facts.movement.values()])
    loud, less, more = _loudness(rows, claim)
    ratio, error = _responses(facts, claim)
    p = 2 * min(less, more) if abs(ratio - loud) < 3 * error < abs(loud - 1) else 1.0
    text = f"noise and response are {loud:.3f} and {ratio:.3f} times what division by {claim.users} users gives"
    return Finding("count", p, text, level)


def sampling(facts: Evidence, claim: Claim, level: float) -> Finding:
    """Check that canaries are not drawn more often than the sampling rate q says.

    The number of a round's T steps that draw a canary is binomial: over its squared mean, its variance is
    (1 - q) / (q T) whatever scale and noise, and it is what canaries that are in vary more than those that are out.
    """
    q, coins = claim.mechanism.rate, facts.canaries.coins
    if q == 1:
        return Finding("sampling", 1.0, "everyone is in every step", level)
    inside, outside = facts.along[:, coins].ravel(), facts.along[:, ~coins].ravel()
    a = float(inside.mean())
    excess = float(inside.var() - outside.var()) - a * a * (1 - q) / (q * claim.steps)
    parts = ((np.square(x - x.mean()).var() / len(x)) for x in (inside, outside))
    slope = 2 * a * (1 - q) / (q * claim.steps)
    z = excess / math.sqrt(sum(float(p) for p in parts) + slope**2 * float(inside.var()) / len(inside))
    spread = max(float(inside.var() - outside.var()) * claim.steps / a**2, 1e-12)
    text = f"canaries seem to be drawn with probability {1 / (1 + spread):.3f}, accounted {q:.3f}"
    return Finding("sampling", float(ndtr(z)), text, level)


def fresh(twin: Transcript, claim: Claim, level: float) -> Finding:
    """Check that two runs from the same state differ by two draws of the claimed noise, in all that is released.

    What else they differ by, as in who was drawn, makes them differ more.
    """
    first, second, loud = *twin.rounds, {}
    for name, unit in claim.units.items():
        rows = (first.x[name].double() - second.x[name].double()).numpy() / (unit * math.sqrt(2))
        ratio, less, _ = _loudness(rows, claim)
        loud[name] = ratio, less
    text = ", ".join(f"{name} {ratio:.3f}" for name, (ratio, _) in loud.items())
    p = min(len(loud) * min(less for _, less in loud.values()), 1.0)
    return Finding("fresh", p, f"noise between two runs over the claimed noise: {text}", level)
