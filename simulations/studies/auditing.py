"""Audits of private training: `python -m simulations.studies auditing --epsilon 4,8`, canaries in a real run."""

from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fedrec.data import ClientData
from fedrec.experiment.holdings import clients_data, dataset
from fedrec.keyed import TABLES
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.privacy.accounting import Event, calibrate
from fedrec.privacy.accounting import epsilon as accounted
from fedrec.privacy.audit import ALARM, CHANCE, CHECKS, Claim, Evidence, audit, bounds, estimate, evidence
from fedrec.privacy.canaries import directions, plant
from fedrec.privacy.differential import Mechanism, private_steps, private_update
from fedrec.privacy.noise import Source
from fedrec.privacy.transcript import Transcript
from fedrec.report.study import Part
from fedrec.sharing import Broadcast, Contribution, Sharing
from fedrec.tasks import parse_task
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Recipe
from simulations.cli import arm
from simulations.studies.harness import Findings, Rows, Run, Study
from simulations.studies.options import budget
from simulations.studies.tables import Row, records

Update = Callable[..., tuple[Params, float]]
MIDDLE = 3.0  # the public score that training starts from: the middle of one to five stars
SIZE = 8.0  # how far a canary's ratings lie from it: far beyond the clip, whatever the noise does
TRAVEL = 0.05  # stars that a clipped user moves its items apart in a whole run: little, so that even unclipped runs end
MODEL, TASKS = Recommender("mf", 8), (parse_task("rating"),)
BROKEN, AGAIN = "BROKEN", "look again"
SHARING = Sharing(("item_table", "item_bias"))
OPTIONS = {
    "epsilon": ("4,8", "comma-separated budgets of the whole run"),
    "canaries": (5000, "dummy users, each in by a fair coin"),
    "rate": (1.0, "fraction of the users that a step draws"),
    "seeds": (1, "runs of each"),
}


@dataclass(frozen=True)
class Trial:
    """One run to be audited: user-level DP-SGD on a silo's shared tables, for a budget of the whole run.

    Users' own rows and the heads keep their start: every parameter that is trained is released, and canaries do not
    meet, as the Gaussian bound assumes.
    """

    epsilon: float
    delta: float = 1e-5
    canaries: int = 5000
    rounds: int = 20
    clip: float = 0.5
    rate: float = 1.0
    seed: int = 0


def audited(
    data: ClientData, users: int, items: int, trial: Trial, source: Source, update: Update = private_update
) -> tuple[Evidence, Claim, Transcript]:
    """Return what a silo's run shows of its canaries, what it claims, and a second first round beside its own.

    `users` and `items` are how many there are in all. `update` trains a round, as `private_update` does.
    """
    data, canaries = plant(data, trial.canaries, users=users, items=items, middle=MIDDLE, size=SIZE, seed=trial.seed)
    start = MODEL.init(trial.seed, data.users, data.items, {task.name: MIDDLE for task in TASKS})
    mechanism, claim, recipe = claimed(trial, len(data.users))
    transcript = Transcript({data.name: Contribution(data.name, SHARING.split(start)[0], rows={"item": data.items})})

    def train(shared: Params, number: int) -> Params:
        params = SHARING.join(shared, SHARING.split(start)[1])
        scope = (data.name, number)
        fit = update(MODEL, params, data, TASKS, recipe, SHARING, mechanism, source, seed=trial.seed, scope=scope)
        return SHARING.split(fit[0])[0]

    shared = transcript.joined[data.name].values
    again = train(shared, 1)
    for number in range(1, trial.rounds + 1):
        before, shared = shared, train(shared, number)
        transcript.train({data.name: Broadcast(number, before)}, [Contribution(data.name, shared)])
    first = transcript.rounds[0]
    twin = Transcript(transcript.joined, [first])
    twin.train({data.name: Broadcast(1, first.z)}, [Contribution(data.name, again)])
    along = directions(canaries, start, TASKS[0].name, claim.lr)
    return evidence(transcript, data.name, canaries, along, claim), claim, twin


def claimed(trial: Trial, users: int) -> tuple[Mechanism, Claim, Recipe]:
    """Return the mechanism that a trial's budget allows, what it claims, and its recipe."""
    draft = Recipe(1, 1, Optimiser("sgd", 1.0), ("shared",))
    free = Mechanism("user", trial.clip, 0.0, trial.rate)
    steps = private_steps(MODEL, TASKS, draft, SHARING, free)
    sigma = calibrate(trial.epsilon, trial.delta, trial.rate, steps * trial.rounds)
    mechanism = Mechanism("user", trial.clip, sigma, trial.rate)
    lr = TRAVEL * users / (2**0.5 * trial.clip * steps * trial.rounds)
    spent = accounted([Event(sigma, trial.rate, steps * trial.rounds)], trial.delta)
    claim = Claim(mechanism, {name: lr for name in SHARING.modules if name in TABLES}, users, steps, spent, trial.delta)
    return mechanism, claim, Recipe(1, 1, Optimiser("sgd", lr), ("shared",))


def plan(options: Namespace) -> list[Run]:
    """Return an audit of a run of the first silo for every epsilon and seed."""
    e = arm(["--task", "rating", *options.flags])
    budgets = [
        (epsilon, seed)
        for epsilon in map(float, map(budget, options.epsilon.split(",")))
        for seed in range(options.seeds)
    ]
    trials = [Trial(epsilon, canaries=options.canaries, rate=options.rate, seed=seed) for epsilon, seed in budgets]
    return [Run({"audits": len(trials)}, e, about=trial) for trial in trials]


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return what the audits show; the study fails if a check does."""
    rows = records(results)
    shown = [{str(k): f"{v:.2f}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows]
    words = list(meaning(set(results["verdict"]), len(runs)))
    broken = sorted(set(results.loc[results["verdict"] == BROKEN, "what"]))
    return Findings(tables=[Part("", shown)], notes=words, failed=", ".join(broken))


def meaning(verdicts: Collection[str], audits: int) -> Iterator[str]:
    """Yield what verdicts of a study of so many audits mean, in words."""
    yield (
        "p: the chance that one check of a known-good build comes out as far off as here. Of studies of a known-good "
        f"build, with {CHECKS * audits} checks each, one in {1 / ALARM:,.0f} has a p below "
        f"{ALARM / CHECKS / audits:.1g} somewhere: that is called {BROKEN}."
    )
    if AGAIN in verdicts:
        yield (
            f"{AGAIN}: one in twenty known-good builds would look like this, with a p below "
            f"{CHANCE / CHECKS / audits:.1g} somewhere. It is no failure. Audit once more, with more seeds or "
            "canaries: a property that does not hold shows again."
        )


def measure(run: Run, home: Path) -> Rows:
    """Return bounds, estimate and findings of one of some audits of an experiment's first silo, a row each."""
    trial, audits = run.about, run.labels["audits"]
    data, whole = clients_data(run.experiment)[0], dataset(run.experiment)
    seen, claim, twin = audited(data, len(whole.users), len(whole.items), trial, Source.system())
    about: Row = {"epsilon": trial.epsilon, "seed": str(trial.seed), "accounted": claim.epsilon}
    rows = []
    for bound in bounds(seen, claim):
        text = f"at confidence {bound.confidence:.0%}; assumes {bound.assumes}"
        if bound.epsilon > claim.epsilon:
            text += f"; above the accounted one, as {1 - bound.confidence:.0%} are by chance: the check leak decides"
        rows.append((f"bound, {bound.method}", f"{bound.epsilon:.3f}", "", text))
    guess = estimate(seen, claim)
    rows.append((f"estimate, {guess.method}", f"{guess.epsilon:.3f}", "", "no bound"))
    for finding in audit(seen, claim, twin, ALARM / audits) if claim.mechanism.noise else ():
        verdict = BROKEN if finding.broken else AGAIN if finding.unusual else "holds"
        rows.append((finding.check, verdict, f"{finding.p:.2g}", finding.text))
    return [about | dict(zip(("what", "verdict", "p", "text"), row, strict=True)) for row in rows]


STUDY = Study("auditing", OPTIONS, plan, measure, findings, workers=0, results="findings.csv")
