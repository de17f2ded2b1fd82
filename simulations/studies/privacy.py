"""Utility, attacks and audits against the budget: `python -m simulations.studies privacy --epsilon 0.5,1,2,4,8,inf`.

The clients are those that `python -m simulations.run` would have with the same options, and, in a scene of its own, a
client for each user. With `--sums` they learn by sums, with one noise in their total, beside what each can do alone.
"""

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data, dataset
from fedrec.experiment.origins import origins
from fedrec.experiment.records import gather_measured
from fedrec.privacy.attacks import summed
from fedrec.privacy.attacks.scores import violates
from fedrec.privacy.attacks.table import ATTACKS, Attack, own_attacks
from fedrec.privacy.audit import ALARM, audit, bounds
from fedrec.privacy.guarantee import guarantees
from fedrec.privacy.noise import Source
from fedrec.report.findings import listing, plural
from fedrec.report.results import read_clients
from simulations.baselines import baseline, closed_forms, run_alone, run_popularity
from simulations.cli import arm
from simulations.engines import launch
from simulations.studies.auditing import Trial, audited
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.options import budget
from simulations.studies.privacy_page import LEAST, OPEN, Setting, brief, counted, page
from simulations.studies.tables import Row
from simulations.witness import case_of, witness

CLIENTS, ONE_USER = "clients", "one-user"
PEOPLE = 400  # clients of the scene of one-user clients, if there are so many users
OWN = {  # options of a run that the study gives itself
    "seed": "give --seeds",
    "engine": "it is inline",
    "privacy.epsilon": "give --epsilon",
    "privacy.noise": "give --epsilon",
    **dict.fromkeys(("compare", "no-compare", "quiet", "checkpoint-every", "resume"), "it is for a single run"),
}
OPTIONS = {
    "epsilon": ("0.5,1,2,4,8,inf", "budgets of a whole run; inf: no mechanism"),
    "seeds": (3, "runs of each: 0, 1, ...; one seed gives no intervals"),
    "one-user": (int, f"one-user clients; 0: no such scene [at most {PEOPLE}]"),
    "canaries": (2000, "dummy users of an audit"),
    "sums": (False, "models by sums, with noise in a secure sum over users"),
    "attack": ("", "attacks of your own, beside ours: MODULE:CLASS, or with fields, joined by commas"),
}


@dataclass(frozen=True)
class Scene:
    """A setting to attack: the options of every run of it, and those that a run with a promise has besides.

    They were chosen on the synthetic market, by the utility at epsilon 2.
    """

    name: str
    usual: str
    noisy: str


SCENES = (
    Scene(
        CLIENTS,
        "--task rating --split random --dim 8 --rounds 20 --weights uniform",
        "--privacy.unit user --phases private,shared --local-epochs 1 --optimiser sgd --lr 1.5 --l2 0 "
        "--lrs user_bias=0.5,heads=0.0001,user_table=0.05,item_table=1",
    ),
    Scene(
        ONE_USER,
        "--task rating --split random --dim 8 --rounds 3 --weights uniform "
        "--local-epochs 1 --batch-size 4096 --optimiser sgd --lr 0.2 --l2 0",
        "--privacy.unit client --privacy.where client --privacy.clip 0.05",
    ),
)

# Of models by sums, whose settings nothing was chosen for here: what a run has.
SUMS = Scene(CLIENTS, "--model slist", "--secure.active --privacy.unit user --privacy.where sum")


class Tests(NamedTuple):
    """How promises are tested: the canaries of an audit, and the tests that share the study's `ALARM`."""

    canaries: int
    promises: int
    attack: str = ""  # of the user's own, beside ours


def plan(options: Namespace) -> list[Run]:
    """Return the runs of every scene, and an audit, at every budget and seed; raises UserError for what is refused."""
    for flag in options.flags:
        name = flag.removeprefix("--").partition("=")[0]
        if flag.startswith("--") and name in OWN:
            raise UserError(f"option --{name}: the study sets it itself; {OWN[name]}")
    budgets = [budget(text) for text in options.epsilon.split(",")]
    if options.sums and options.one_user:
        raise UserError(f"one-user: is no scene of sums, which silos add up, found {options.one_user}")
    people = 0 if options.sums else people_of(options.one_user, options.flags)
    if "__main__:" in options.attack:
        raise UserError(f"attack: must be a class of a module, which other processes import, found {options.attack}")
    seeds = range(options.seeds)
    runs = runs_of(budgets, seeds, options.canaries, options.flags, people, options.attack, options.sums)
    for run in runs:
        if run.labels["scene"] == CLIENTS and len(clients_data(run.experiment)) < 2:
            raise UserError("clients: must be at least 2 to learn together, found 1")
    return runs


def people_of(given: int | None, flags: Sequence[str]) -> int:
    """Return how many one-user clients there are to be, 0 for none; raises UserError for too few to tell anything."""
    if given == 0:
        return 0
    users = int(dataset(experiment_of(SCENES[1], OPEN, flags)).interactions["user"].nunique())
    people = min(PEOPLE, users) if given is None else given
    if not LEAST <= people <= users:
        rule = f"must be from {LEAST}, below which no attack can be told from chance, to the number of users, {users}"
        raise UserError(f"one-user: {rule}, or 0 for no such scene, found {people}")
    return people


def runs_of(
    budgets: Sequence[str],
    seeds: Sequence[int],
    canaries: int,
    flags: Sequence[str],
    people: int,
    attack: str = "",
    sums: bool = False,
) -> list[Run]:
    """Return the runs of the study: a scene, what its runs are compared with ("alone"), and an audit ("audit").

    Of sums there is no audit: what it plants are ratings; the attack that knows all others takes its place.
    """
    runs: list[Run] = []
    scenes = [SUMS] if sums else [scene for scene in SCENES if people or scene.name != ONE_USER]
    noisy = [text for text in budgets if text != OPEN]
    kinds = {CLIENTS: "silos", ONE_USER: "one-user"}
    attacks = attacks_on(sums, attack)
    covering = [a for scene in scenes for a in attacks if a.clients == kinds[scene.name] and covered(a)]
    tests = Tests(canaries, max(1, (len(covering) + 1) * len(noisy) * len(seeds)), attack)  # and an audit
    for seed in seeds:
        given = [*flags, "--seed", str(seed), "--engine", "inline"]
        named = []
        for scene in scenes:
            named += [(scene.name, text, experiment_of(scene, text, given, people)) for text in budgets]
            own = noisy[0] if sums and noisy else OPEN  # a model of noisy sums is another than one without
            named.append((f"{scene.name} alone", OPEN, experiment_of(scene, own, given, people)))
        named += [("audit", text, experiment_of(SCENES[0], OPEN, given)) for text in noisy if not sums]
        runs += [Run({"scene": name, "epsilon": text, "seed": seed}, e, about=tests) for name, text, e in named]
    return runs


def experiment_of(scene: Scene, text: str, flags: Sequence[str], people: int | None = None) -> Experiment:
    """Return the experiment of a scene at a budget; that of one-user clients has so many `people` (None: all)."""
    noisy = [] if text == OPEN else [*scene.noisy.split(), "--privacy.epsilon", text]
    e = arm([*scene.usual.split(), *noisy, *flags])
    if e.partition == "one-user":
        raise UserError("option --partition: one-user clients are a scene of their own; give --one-user")
    if scene.name != ONE_USER:
        return e
    return build({**e.model_dump(), "partition": "one-user", "clients": people, "skew": None})


def attacks_on(sums: bool, own: str) -> tuple[Attack, ...]:
    """Return the attacks on runs by sums, or by gradients, and those of the user's own."""
    return (*(summed.ATTACKS if sums else ATTACKS), *own_attacks(own))


def covered(attack: Attack) -> bool:
    """Return whether an attack puts a promise to the test.

    A promise to a user covers every interaction of it; an attribute is no unit of a promise.
    """
    return attack.released and attack.unit in ("interaction", "user")


def setting(experiment: Experiment) -> Setting:
    """Return a scene as the page names it: its clients, and who adds which noise."""
    names, rule = [data.name for data in clients_data(experiment)], experiment.privacy
    whole = dataset(experiment)
    count = f"{counted(len(names))} "
    if experiment.partition == "one-user":
        clients = f"{count}clients, one for each user"
        who = f"{len(names):,} of {whole.interactions['user'].nunique():,} users"
    else:
        platforms = experiment.partition == "platform" or (experiment.partition == "auto" and len(whole.platforms) > 1)
        clients, who = count + ("platforms" if platforms else "silos"), listing(names)
    noise = ", each adding noise to its own update" if rule.where == "client" else ", with noise in their sum"
    if rule.inside:
        noise = f", each adding {rule.unit}-level noise in its own training"
    return Setting(clients + noise * rule.active, who, experiment.rounds)


def about(runs: Sequence[Run], scenes: Mapping[str, Setting], budgets: Sequence[str]) -> dict[str, str]:
    """Return what was run, in words."""
    first = next(run.experiment for run in runs if run.labels["scene"] == CLIENTS)
    audits = any(run.labels["scene"] == "audit" for run in runs)
    source = f", {first.data_dir.name}" if first.data_dir else ""
    same = facts(runs)
    who = clients_data(first)[0].name
    attacks = origins(("attack", attack.name) for attack in own_attacks(runs[0].about.attack))
    return {
        "Data": f"{first.dataset}{source}: {plural(len(dataset(first).users), 'user')}",
        "Clients": "; ".join(f"{name}: {scene.who}" for name, scene in scenes.items()),
        "Rounds": "; ".join(f"{name}: {scene.rounds}" for name, scene in scenes.items()),
        "Seeds": ", ".join(dict.fromkeys(str(run.labels["seed"]) for run in runs)),
        "Budgets": ", ".join(budgets),
        **({"Your attacks": "; ".join(" ".join(attack.values()) for attack in attacks)} if attacks else {}),
        "Audit": f"{runs[0].about.canaries:,} canaries in a run of {who}" if audits else "none",
        **{name: text for name, text in same.items() if name not in ("dataset", "data_dir", "clients", "rounds")},
    }


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return utility, attacks and audits against the budget."""
    noisy = sorted(runs, key=lambda run: run.experiment.privacy.active)  # which name a scene if there are any
    last = {run.labels["scene"]: run.experiment for run in noisy}
    scenes = {name: setting(e) for name, e in last.items() if name in (CLIENTS, ONE_USER)}
    budgets = [budget(text) for text in options.epsilon.split(",")]
    shown = page(results, budgets, scenes, about(runs, scenes, budgets))
    return Findings(page=shown, tables=[brief(part) for part in shown.parts], notes=shown.notes)


def measure(run: Run, home: Path) -> Rows:
    """Return the rows of a run: kind, name, value, low, high, and what a row's kind adds."""
    scene = run.labels["scene"]
    rows = audit_rows if scene == "audit" else reference_rows if scene.endswith(" alone") else attack_rows
    return [{**run.labels, **row} for row in rows(run, home)]


def attack_rows(run: Run, home: Path) -> list[Row]:
    """Return the utility of a run, and what every attack makes of what its server saw."""
    e = run.experiment
    home.mkdir()
    seen = witness(e, home)
    rows = utility_rows(pd.DataFrame([*seen.record.clients, *gather_measured(home)]))
    case = case_of(e, seen, run.labels["seed"])
    promised = max((g.budget for g in guarantees(e).values()), default=math.inf)
    for attack in attacks_on(e.by_sums, run.about.attack):
        if not attack.fits(case):
            continue
        try:
            score = attack.result(seen.transcript, case)
        except ValueError:  # there are no targets of both kinds, such as too few people of an occupation
            continue
        row = {"kind": "attack", "name": attack.name, "value": score.auc, "low": score.auc_low, "high": score.auc_high}
        row |= {"tpr": score.tpr_at, "tpr_low": score.tpr_low, "tpr_high": score.tpr_high, "unit": attack.unit}
        row |= {"members": score.members, "others": score.others, "groups": score.groups, "f1": score.f1}
        level = 1 - ALARM / run.about.promises
        broken = covered(attack) and violates(score, promised, e.privacy.delta, level)
        rows.append({**row, "released": attack.released, "chance": score.chance, "violates": broken})
    return rows


def reference_rows(run: Run, home: Path) -> list[Row]:
    """Return how the clients do alone, and by what is popular among their own users; of noisy sums also by another."""
    e, names = run.experiment, ["local", "popularity"]
    if e.privacy.summed:
        run_alone(e, home / "local")
        forms = {name: form for name, form in closed_forms(e).items() if not form.pool}
        for name, form in forms.items():
            launch(form, home / name)
        names += forms
    else:
        launch(baseline(e, "local"), home / "local")
    run_popularity(e, home / "popularity")
    tables = {name: utility_rows(read_clients(home / name)) for name in names}
    return [{**row, "kind": name} for name, rows in tables.items() for row in rows]


def utility_rows(table: pd.DataFrame) -> list[Row]:
    """Return the mean over the clients of each test metric."""
    table = table[table["split"] == "test"]
    means = table["value"].groupby(table["task"] + " " + table["metric"], sort=False).mean()
    return [{"kind": "utility", "name": name, "value": float(value)} for name, value in means.items()]


def audit_rows(run: Run, home: Path) -> list[Row]:
    """Return the lower bounds of epsilon that canaries in a real run of the first client give, and the checks."""
    e, tests = run.experiment, run.about
    data, whole = clients_data(e)[0], dataset(e)
    trial = Trial(float(run.labels["epsilon"]), e.privacy.delta, tests.canaries, seed=run.labels["seed"])
    seen, claim, twin = audited(data, len(whole.users), len(whole.items), trial, Source.system())
    rows: list[Row] = [{"kind": "accounted", "name": "accounted", "value": claim.epsilon}]
    rows += [{"kind": "bound", "name": bound.method, "value": bound.epsilon} for bound in bounds(seen, claim)]
    for finding in audit(seen, claim, twin, ALARM / tests.promises):
        text = f"{finding.text} (p {finding.p:.2g})"
        rows.append({"kind": "check", "name": finding.check, "value": float(finding.broken), "text": text})
    return rows


STUDY = Study("privacy", OPTIONS, plan, measure, findings)
