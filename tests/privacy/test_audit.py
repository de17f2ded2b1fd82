"""Audits of real training: an honest mechanism passes, close to its epsilon, and every broken one is named."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from dp_accounting import get_epsilon_gaussian
from scipy.stats import binom, chi2, norm, ttest_ind
from scipy.stats import t as student

from fedrec.errors import UserError
from fedrec.params import Params
from fedrec.privacy import differential
from fedrec.privacy.audit import (
    ALARM,
    CHANCE,
    CHECKS,
    Claim,
    Evidence,
    Finding,
    audit,
    bounds,
    count,
    estimate,
    evidence,
    fresh,
    noise,
    repeated,
    response,
    sampling,
)
from fedrec.privacy.bounds import gaussian_mu, halved, independent, independent_p, steinke, steinke_p
from fedrec.privacy.canaries import Canaries, project
from fedrec.privacy.clipping import clipped
from fedrec.privacy.differential import Mechanism, private_update
from fedrec.privacy.noise import Source
from fedrec.privacy.transcript import Transcript
from fedrec.sharing import Broadcast, Contribution
from simulations.studies.__main__ import main
from simulations.studies.auditing import Trial, Update, audited
from tests.privacy.trials import silo

SMALL = Trial(4.0, canaries=1000, rounds=5)
SAMPLED = replace(SMALL, rate=0.1)


def tried(trial: Trial, update: Update = private_update) -> tuple[Evidence, Claim, Transcript]:
    """Return what a run shows; its noise follows from the trial's seed."""
    return audited(*silo(), trial, Source.replayable(trial.seed, "audit"), update)


def broken(findings: list[Finding]) -> dict[str, str]:
    """Return the texts of the checks that failed."""
    return {one.check: one.text for one in findings if one.broken}


def other(change: Callable[[Mechanism], Mechanism], **recipe: Any) -> Update:
    """Return training by another mechanism than the one that is claimed, and another recipe."""

    def update(model, params, data, tasks, plan, sharing, mechanism, source, **scope):  # type: ignore[no-untyped-def]
        plan = replace(plan, **recipe)
        return private_update(model, params, data, tasks, plan, sharing, change(mechanism), source, **scope)

    return update


def reused_noise(model, params, data, tasks, recipe, sharing, mechanism, _, **scope):  # type: ignore[no-untyped-def]
    """Every round draws the same noise."""
    source = Source.replayable(7, "the same")
    return private_update(model, params, data, tasks, recipe, sharing, mechanism, source, **scope)


def actual_count(model, params, data, *rest, **scope):  # type: ignore[no-untyped-def]
    """The sum is divided by how many users have interactions."""
    found, loss = private_update(model, params, data, *rest, **scope)
    factor = len(data.users) / len(np.unique(data.train.user))
    return {name: params[name] + factor * (value - params[name]) for name, value in found.items()}, loss


def unnoised_buffer(model, params, data, tasks, recipe, sharing, mechanism, source, **scope):  # type: ignore[no-untyped-def]
    """The items' biases are a running statistic that leaves without noise."""
    rest = (model, params, data, tasks, recipe, sharing)
    found, loss = private_update(*rest, mechanism, source, **scope)
    exact, _ = private_update(*rest, replace(mechanism, noise=0.0), source, **scope)
    return {**found, "item_bias": exact["item_bias"]}, loss


def per_batch(gradients, batch, weight, clip, into, own):  # type: ignore[no-untyped-def]
    """The sum of a batch is clipped, not each unit's gradient."""
    total: Params = {name: torch.zeros_like(value) for name, value in into.items()}
    clipped(gradients, batch, weight, 1e12, total, own)
    norm = sum(float(value.square().sum()) for value in total.values()) ** 0.5
    for name, value in total.items():
        into[name] += value * min(1.0, clip / norm)


MUTANTS: dict[str, tuple[Update, str, str]] = {
    "noise / 10": (other(lambda m: replace(m, noise=m.noise / 10)), "leak", "accounted"),
    "noise / 1.5": (other(lambda m: replace(m, noise=m.noise / 1.5)), "leak", "accounted"),
    "no clipping": (other(lambda m: replace(m, clip=m.clip * 1e6, noise=m.noise / 1e6)), "leak", "accounted"),
    "reused noise": (reused_noise, "repeated", "correlation 1.0"),
    "actual count": (actual_count, "count", "division by"),
    "unnoised buffer": (unnoised_buffer, "leak", "accounted"),
}


@pytest.mark.parametrize("epsilon", [4.0, 8.0])
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_mechanism_is_found_and_what_is_broken_is_named(name: str, epsilon: float) -> None:
    update, check, text = MUTANTS[name]
    found, claim, twin = tried(replace(SMALL, epsilon=epsilon), update)
    verdicts = broken(audit(found, claim, twin))
    assert text in verdicts[check]
    assert {  # what a proof rests on and did not hold
        "noise / 10": {"leak", "noise", "fresh"},
        "noise / 1.5": {"leak", "noise", "fresh"},
        "no clipping": {"leak", "response"},
        "reused noise": {"repeated", "fresh"},
        "actual count": {"count", "noise", "response"},
        "unnoised buffer": {"leak", "noise", "fresh"},
    }[name] <= set(verdicts)


@pytest.mark.parametrize("epsilon", [4.0, 8.0])
def test_clipping_a_batch_instead_of_units_is_found(epsilon: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differential, "clipped", per_batch)
    verdicts = broken(audit(*tried(replace(SMALL, epsilon=epsilon))))
    assert "clipped together with others" in verdicts["response"]
    assert not {"leak", "noise", "count"} & set(verdicts), "no bound of epsilon sees it"


@pytest.mark.parametrize("divides", ["by what it draws", "by what it accounts for"])
def test_drawing_more_often_than_accounted_is_found(divides: str) -> None:
    def update(model, params, data, tasks, recipe, *rest, **scope):  # type: ignore[no-untyped-def]
        factor = 1.0 if divides == "by what it draws" else 2.0
        optimiser = replace(recipe.optimiser, lr=factor * recipe.optimiser.lr)
        twice = other(lambda m: replace(m, rate=2 * m.rate), epochs=2, optimiser=optimiser)
        return twice(model, params, data, tasks, recipe, *rest, **scope)

    trial = replace(SAMPLED, canaries=2000)
    verdicts = broken(audit(*tried(trial, update)))
    assert "accounted 0.100" in verdicts["sampling"]
    assert ("response" if divides == "by what it accounts for" else "noise") in verdicts
    assert not broken(audit(*tried(trial)))


@pytest.mark.parametrize("trial", [SMALL, SAMPLED], ids=["everyone", "sampled"])
def test_an_honest_mechanism_passes_all_checks_as_often_as_promised(trial: Trial) -> None:
    failed, unusual, above = 0, 0, 0
    runs = 40
    for seed in range(runs):
        found, claim, twin = tried(replace(trial, canaries=400, seed=seed))
        findings = audit(found, claim, twin)
        failed += bool(broken(findings))
        unusual += any(one.unusual for one in findings)
        above += any(bound.epsilon > claim.epsilon for bound in bounds(found, claim))
    assert failed <= binom.ppf(0.999, runs, ALARM)
    assert unusual <= binom.ppf(0.999, runs, CHANCE)
    assert above <= binom.ppf(0.999, runs, 0.01)


@pytest.mark.parametrize(("epsilon", "aim"), [(4.0, 0.75), (8.0, 0.85)])
def test_five_thousand_canaries_in_a_real_run_come_close_to_epsilon(epsilon: float, aim: float) -> None:
    begun = time.monotonic()
    found, claim, twin = tried(Trial(epsilon, seed=3))
    findings = audit(found, claim, twin)
    one, two, gaussian = bounds(found, claim)
    assert time.monotonic() - begun < 120
    assert claim.epsilon == pytest.approx(epsilon, rel=2e-3)
    assert not broken(findings)
    assert aim * claim.epsilon <= gaussian.epsilon <= claim.epsilon
    assert 0.3 * claim.epsilon < one.epsilon < two.epsilon < gaussian.epsilon
    assert [bound.method for bound in (one, two, gaussian)] == ["one run", "f-DP", "Gaussian"]
    assert estimate(found, claim).epsilon == pytest.approx(epsilon, rel=0.25)


def test_a_sampled_mechanism_gets_no_gaussian_bound() -> None:
    found, claim, _ = tried(replace(SAMPLED, canaries=200))
    assert [bound.method for bound in bounds(found, claim)] == ["one run"]


def test_without_noise_the_bounds_are_as_large_as_the_canaries_allow_and_nothing_is_checked() -> None:
    found, claim, twin = tried(replace(SMALL, epsilon=float("inf"), canaries=400, rounds=2))
    one, two, gaussian = bounds(found, claim, 0.95)
    q = 0.05 ** (1 / gaussian.guesses)  # every guess is right
    assert gaussian.correct == gaussian.guesses == 380
    assert gaussian.epsilon == pytest.approx(get_epsilon_gaussian(1 / (2 * norm.ppf(q)), 1e-5), abs=1e-6)
    assert min(one.epsilon, two.epsilon) > 3
    assert estimate(found, claim).epsilon == float("inf")
    with pytest.raises(UserError, match="found noise 0"):
        audit(found, claim, twin)


def test_what_leaves_beside_the_noised_parameters_is_named() -> None:
    found, claim, _ = tried(replace(SMALL, canaries=100))
    (values, ids) = ({"item_table": torch.zeros(8, 2), "count": torch.zeros(1)}, np.arange(8))
    silo_said = Contribution("s", values, {"examples": 3.0}, rows={"item": ids})
    transcript = Transcript({"s": silo_said})
    answer = Contribution("s", {"item_table": torch.ones(8, 2), "count": torch.ones(1)}, {"loss": 0.1})
    transcript.train({"s": Broadcast(1, values)}, [answer])
    canaries = Canaries(np.arange(2), np.arange(4, 8).reshape(2, 2), np.array([True, False]))
    table = replace(claim, lr={"item_table": 1.0})
    shown = evidence(transcript, "s", canaries, {"item_table": torch.full((2, 2, 2), 0.5)}, table)
    assert shown.loose == ("count", "metric examples", "metric loss")
    assert (
        "count, metric examples, metric loss" in broken(audit(replace(found, loose=shown.loose), claim))["unaccounted"]
    )
    with pytest.raises(UserError, match="a table of items from 's'"):
        evidence(Transcript({"s": silo_said}), "s", canaries, {}, table)


def test_the_final_model_tells_as_much_as_all_rounds_under_plain_sgd() -> None:
    found, _, twin = tried(replace(SMALL, canaries=100))
    assert np.allclose(found.scores, found.along.sum(0))
    assert len(found.along) == 5
    assert len(twin.rounds) == 2 and twin.rounds[0].z is not twin.rounds[1].x


def test_noise_that_is_missing_from_rows_without_interactions_is_found() -> None:
    def sparse(model, params, data, *rest, **scope):  # type: ignore[no-untyped-def]
        found, loss = private_update(model, params, data, *rest, **scope)
        touched = torch.zeros(len(data.items), 1)
        touched[np.unique(data.train.item)] = 1
        return {n: params[n] + touched * (v - params[n]) if "item" in n else v for n, v in found.items()}, loss

    assert {"noise", "fresh"} <= set(broken(audit(*tried(SMALL, sparse))))


def test_noise_that_cancels_over_rounds_is_found() -> None:
    kept: list[Params] = []

    def cancelling(model, params, data, tasks, recipe, sharing, mechanism, source, **scope):  # type: ignore[no-untyped-def]
        rest = (model, params, data, tasks, recipe, sharing)
        noisy, loss = private_update(*rest, mechanism, source, **scope)
        exact, _ = private_update(*rest, replace(mechanism, noise=0.0), source, **scope)
        noise = {name: value - exact[name] for name, value in noisy.items()}
        last = kept.pop() if kept else None
        if last is None:
            kept.append(noise)
            return noisy, loss
        return {name: value - last[name] for name, value in exact.items()}, loss

    assert "repeated" in broken(audit(*tried(SMALL, cancelling)))


@pytest.mark.parametrize("q", [1.0, 0.1])
def test_every_check_errs_as_often_as_it_states(q: float) -> None:
    # Movement from its definition: binomial draws of a canary along (1, -1) / sqrt(2), and normal noise.
    rng, sigma, steps, rounds, m, runs = np.random.default_rng(0), 1.5, 10, 6, 300, 400
    claim = Claim(Mechanism("user", 1.0, sigma, q), {"item_bias": 1.0}, 500, steps, 1.0, 1e-5)
    alarms = dict.fromkeys(("noise", "response", "repeated", "count", "sampling"), 0)
    for _ in range(runs):
        coins = rng.random(m) < 0.5
        canaries = Canaries(np.arange(m), np.arange(2 * m).reshape(m, 2), coins)
        signal = (rng.binomial(steps, q, (rounds, m)) * coins)[..., None, None] * np.array([[1.0], [-1.0]]) / 2**0.5
        movement = {"item_bias": signal + sigma * steps**0.5 * rng.standard_normal((rounds, m, 2, 1))}
        along, reach = project(movement, {"item_bias": torch.tensor([[[1.0], [-1.0]]]).expand(m, 2, 1) / 2**0.5})
        found = Evidence(movement, along, reach, canaries, ())
        for check in (noise, response, count, sampling):
            alarms[check.__name__] += check(found, claim, 0.05).broken
        alarms["repeated"] += repeated(found, 0.05).broken
    assert all(number <= binom.ppf(0.9999, runs, 0.05) for number in alarms.values()), alarms
    exact = {"noise", "response", "repeated"} | ({"sampling"} if q < 1 else set())
    assert all(alarms[name] >= binom.ppf(1e-4, runs, 0.03) for name in exact), alarms


def test_p_values_are_those_of_their_tests() -> None:
    # 60 canaries in, 60 out, one round: sums of squares and means from their definition.
    rng, sigma, m = np.random.default_rng(1), 2.0, 120
    claim = Claim(Mechanism("user", 1.0, sigma, 1.0), {"item_bias": 1.0}, 500, 4, 1.0, 1e-5)
    coins = np.arange(m) % 2 == 0
    canaries = Canaries(np.arange(m), np.arange(2 * m).reshape(m, 2), coins)
    movement = {"item_bias": sigma * 2 * rng.standard_normal((1, m, 2, 1))}
    along, reach = project(movement, {"item_bias": torch.tensor([[[1.0], [-1.0]]]).expand(m, 2, 1) / 2**0.5})
    found = Evidence(movement, along, reach, canaries, ())
    squares = float(np.square(movement["item_bias"][:, ~coins]).sum()) / (4 * sigma**2)
    assert noise(found, claim, 0.1).p == pytest.approx(2 * min(chi2.cdf(squares, 120), chi2.sf(squares, 120)))
    welch = ttest_ind(found.scores[coins], found.scores[~coins] + 4, equal_var=False)
    assert response(found, claim, 0.1).p == pytest.approx(2 * student.sf(abs(welch.statistic), 59), rel=1e-4)
    assert welch.pvalue < response(found, claim, 0.1).p < 3 * welch.pvalue
    guesses, correct = halved(found.scores, coins)
    mu = gaussian_mu(1.0, 1e-5)
    assert independent_p(guesses, correct, 1.0, 1e-5) == pytest.approx(binom.sf(correct - 1, guesses, norm.cdf(mu / 2)))
    # A bound is the epsilon at which the p-value is what is left of its confidence.
    one, two = independent(m, m, 80, 1e-5, 0.99), steinke(m, m, 80, 1e-5, 0.99)
    assert independent_p(m, 80, one.epsilon, 1e-5) == pytest.approx(0.01, rel=1e-6)
    assert steinke_p(m, m, 80, two.epsilon, 1e-5) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize(
    ("p", "verdict", "status", "text"),
    [
        (0.2, "holds", 0, "one in 1,000 has a p below 0.0001"),
        (0.004, "look again", 0, "one in twenty known-good builds would look like this"),
        (1e-5, "BROKEN", 1, "failed: noise"),
        (0.0, "BROKEN", 1, "failed: noise"),
    ],
)
def test_a_known_good_build_does_not_look_broken(
    p: float,
    verdict: str,
    status: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A noise of 1.002 times what is claimed, in one table of some checks, is what chance makes of a known-good build.
    def chance(found: Evidence, claim: Claim, twin: Transcript, level: float) -> list[Finding]:
        return [Finding("noise", p, "noise over the claimed noise: item_table 1.002", level / CHECKS)]

    monkeypatch.setattr("simulations.studies.auditing.audit", chance)
    market = ["--market.users", "40", "--market.items", "40", "--clients", "2"]
    arguments = ["auditing", "--epsilon", "8", "--canaries", "100", "--out", str(tmp_path / "study"), *market]
    code = 0
    try:
        code = main(arguments)
    except SystemExit as error:
        code, said = 1, str(error.code)
        assert said == text
    told = " ".join(capsys.readouterr().out.split())
    assert code == status
    assert status or text in told
    rows = pd.read_csv(tmp_path / "study" / "findings.csv")
    assert rows.loc[rows["what"] == "noise", "verdict"].tolist() == [verdict]
    assert rows.loc[rows["what"] == "noise", "p"].tolist() == [p]


def test_two_runs_with_one_noise_are_found_and_unlike_ones_are_not() -> None:
    _, claim, twin = tried(replace(SMALL, canaries=50))
    assert not fresh(twin, claim, 0.01).broken
    same = Transcript(twin.joined, [twin.rounds[0], twin.rounds[0]])
    assert fresh(same, claim, 0.01).broken


def test_the_study_reports_bounds_and_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    market = ["--market.users", "40", "--market.items", "40", "--clients", "2"]
    arguments = ["auditing", "--epsilon", "8", "--canaries", "200", "--out", str(tmp_path / "study"), *market]
    assert main(arguments) == 0
    rows = pd.read_csv(tmp_path / "study" / "findings.csv")
    assert {"bound, Gaussian", "bound, one run", "estimate, one-shot", "leak", "fresh"} <= set(rows["what"])
    assert set(rows["verdict"][rows["what"].isin(["leak", "noise", "response"])]) <= {"holds", "look again"}
    assert "no bound" in capsys.readouterr().out
    assert main(["auditing", "--epsilon", "0", "--out", str(tmp_path / "none")]) == 2
