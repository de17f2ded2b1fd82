"""Audits of private training: `python -m simulations.studies auditing --epsilon 4,8`, canaries in a real run."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fedrec.batches import Recipe
from fedrec.data import ClientData
from fedrec.errors import UserError
from fedrec.experiment import Experiment
from fedrec.folders import writing
from fedrec.holdings import clients_data, dataset
from fedrec.models import Recommender
from fedrec.optimisers import Optimiser
from fedrec.parameters import Params
from fedrec.privacy.accounting import Event, calibrate
from fedrec.privacy.accounting import epsilon as accounted
from fedrec.privacy.audit import ALARM, CHANCE, CHECKS, Claim, Evidence, audit, bounds, estimate, evidence
from fedrec.privacy.canaries import directions, plant
from fedrec.privacy.differential import Mechanism, private_steps, private_update
from fedrec.privacy.noise import Source
from fedrec.privacy.transcript import Transcript
from fedrec.records import write_csv
from fedrec.sharing import TABLES, Broadcast, Contribution, Sharing
from fedrec.tasks import parse_task
from simulations.cli import arm, heeded
from simulations.studies.options import parser_of

Update = Callable[..., tuple[Params, float]]
MIDDLE = 3.0  # the public score that training starts from: the middle of one to five stars
SIZE = 8.0  # how far a canary's ratings lie from it: far beyond the clip, whatever the noise does
TRAVEL = 0.05  # stars that a clipped user moves its items apart in a whole run: little, so that even unclipped runs end
MODEL, TASKS = Recommender("mf", 8), (parse_task("rating"),)
BROKEN, AGAIN = "BROKEN", "look again"
SHARING = Sharing(("item_table", "item_bias"))


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
        found = update(MODEL, params, data, TASKS, recipe, SHARING, mechanism, source, seed=trial.seed, scope=scope)
        return SHARING.split(found[0])[0]

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


def run(argv: Sequence[str]) -> None:
    """Audit a run of the first silo for every epsilon and seed; exit with status 1 if a check fails."""
    parser = parser_of("auditing")
    parser.add_argument("--epsilon", default="4,8", help="comma-separated budgets of the whole run")
    parser.add_argument("--canaries", type=int, default=5000, help="dummy users, each in by a fair coin")
    parser.add_argument("--rate", type=float, default=1.0, help="fraction of the users that a step draws")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each")
    parser.add_argument("--out", type=Path, default=Path("runs/study-auditing"), help="a new folder for the results")
    options, flags = parser.parse_known_args(argv)
    experiment = arm(["--task", "rating", *flags])
    heeded(flags, [experiment])
    rows: list[dict[str, str | float]] = []
    with writing(options.out) as home:
        trials = [
            Trial(epsilon, canaries=options.canaries, rate=options.rate, seed=seed)
            for epsilon in budgets(options.epsilon)
            for seed in range(options.seeds)
        ]
        for trial in trials:
            rows += verdicts(experiment, trial, len(trials))
        write_csv(home / "findings.csv", rows)
    table = Table(*rows[0], box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    console = Console(markup=False, emoji=False)
    console.print(table)
    for text in meaning({str(row["verdict"]) for row in rows}, len(trials)):
        console.print(text, highlight=False)
    broken = sorted({str(row["what"]) for row in rows if row["verdict"] == BROKEN})
    if broken:
        raise SystemExit(f"failed: {', '.join(broken)}")


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


def verdicts(experiment: Experiment, trial: Trial, audits: int = 1) -> list[dict[str, str | float]]:
    """Return bounds, estimate and findings of one of some audits of an experiment's first silo, a row each."""
    data, whole = clients_data(experiment)[0], dataset(experiment)
    found, claim, twin = audited(data, len(whole.users), len(whole.items), trial, Source.system())
    about: dict[str, str | float] = {"epsilon": trial.epsilon, "seed": str(trial.seed), "accounted": claim.epsilon}
    rows: list[dict[str, str | float]] = []
    for bound in bounds(found, claim):
        text = f"at confidence {bound.confidence:.0%}; assumes {bound.assumes}"
        if bound.epsilon > claim.epsilon:
            text += f"; above the accounted one, as {1 - bound.confidence:.0%} are by chance: the check leak decides"
        row = {"what": f"bound, {bound.method}", "verdict": f"{bound.epsilon:.3f}", "p": "", "text": text}
        rows.append({**about, **row})
    one = estimate(found, claim)
    row = {"what": f"estimate, {one.method}", "verdict": f"{one.epsilon:.3f}", "p": "", "text": "no bound"}
    rows.append({**about, **row})
    for finding in audit(found, claim, twin, ALARM / audits) if claim.mechanism.noise else ():
        verdict = BROKEN if finding.broken else AGAIN if finding.unusual else "holds"
        row = {"what": finding.check, "verdict": verdict, "p": f"{finding.p:.2g}", "text": finding.text}
        rows.append({**about, **row})
    return rows


def budgets(text: str) -> list[float]:
    """Return the budgets of a text like `4,8,inf`; raises UserError for one that is not a positive number."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [0.0]
    if not all(epsilon > 0 for epsilon in found):
        raise UserError(f"epsilon: must be positive numbers joined by commas, found {text!r}")
    return found
