"""Utility, attacks and audits against the budget: `python -m simulations.studies privacy --epsilon 0.5,1,2,4,8,inf`.

The clients are those that `python -m simulations.run` would have with the same options, and, in a scene of its own, a
client for each user.
"""

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from fedrec.errors import UserError
from fedrec.experiment import Experiment, build
from fedrec.folders import writing
from fedrec.holdings import clients_data, dataset
from fedrec.privacy.attacks.scores import violates
from fedrec.privacy.attacks.table import ATTACKS, Attack
from fedrec.privacy.audit import ALARM, audit, bounds
from fedrec.privacy.guarantee import guarantees
from fedrec.privacy.noise import Source
from fedrec.records import gather_measured
from fedrec.report.findings import listing, plural
from simulations.baselines import baseline, run_baseline, run_popularity
from simulations.check import check
from simulations.cli import arm, heeded
from simulations.studies.auditing import Trial, audited
from simulations.studies.methods import facts
from simulations.studies.options import parsed, parser_of
from simulations.studies.privacy_numbers import LEAST
from simulations.studies.privacy_page import Setting, counted, show, write_page
from simulations.witness import case_of, witness

OPEN = "inf"  # no mechanism at all
CLIENTS, ONE_USER = "clients", "one-user"
PEOPLE = 400  # clients of the scene of one-user clients, if there are so many users
OWN = {  # options of a run that the study gives itself
    "seed": "give --seeds",
    "engine": "it is inline",
    "privacy.epsilon": "give --epsilon",
    "privacy.noise": "give --epsilon",
    **dict.fromkeys(("compare", "no-compare", "quiet", "checkpoint-every", "resume"), "it is for a single run"),
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


@dataclass(frozen=True)
class Job:
    """One run of the study: a scene, an audit (scene "audit"), or what a scene's runs are compared with ("alone")."""

    scene: str
    budget: str
    seed: int
    experiment: Experiment
    canaries: int = 0
    tests: int = 1  # of promises, by attacks and audits of the whole study, which share its `ALARM`


def run(argv: Sequence[str]) -> None:
    """Run every scene, and an audit, at every budget; write the results and a page."""
    parser = parser_of("privacy")
    parser.add_argument("--epsilon", default="0.5,1,2,4,8,inf", help="budgets of a whole run; inf: no mechanism")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each: 0, 1, ...; one seed gives no intervals")
    parser.add_argument("--one-user", type=int, help=f"one-user clients; 0: no such scene [at most {PEOPLE}]")
    parser.add_argument("--canaries", type=int, default=2000, help="dummy users of an audit")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/study-privacy"), help="a new folder for the results")
    options, flags = parsed(parser, argv)
    if options.canaries < 1:
        raise UserError(f"canaries: must be at least 1, found {options.canaries}")
    for flag in flags:
        name = flag.removeprefix("--").partition("=")[0]
        if flag.startswith("--") and name in OWN:
            raise UserError(f"option --{name}: the study sets it itself; {OWN[name]}")
    budgets = [budget(text) for text in options.epsilon.split(",")]
    jobs = jobs_of(budgets, range(options.seeds), options.canaries, flags, people_of(options.one_user, flags))
    heeded(flags, [job.experiment for job in jobs])
    for job in jobs:
        check(job.experiment)
        if job.scene == CLIENTS and len(clients_data(job.experiment)) < 2:
            raise UserError("clients: must be at least 2 to learn together, found 1")
    noisy = sorted(jobs, key=lambda job: job.experiment.privacy.active)  # which name a scene if there are any
    scenes = {job.scene: setting(job.experiment) for job in noisy if job.scene in (CLIENTS, ONE_USER)}
    with writing(options.out) as home:
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            results = pd.DataFrame([row for rows in pool.map(run_job, jobs) for row in rows])
        results.to_csv(home / "results.csv", index=False)
        write_page(home / "report.html", results, budgets, scenes, about(jobs, scenes, budgets))
    show(results, budgets, scenes)
    print(f"report: {options.out / 'report.html'}")


def budget(text: str) -> str:
    """Return a budget as it is written; raises UserError for one that is no number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise UserError(f"epsilon: must be numbers above 0, or inf, joined by commas, found {text!r}")
    return text.strip()


def people_of(given: int | None, flags: Sequence[str]) -> int:
    """Return how many one-user clients there are to be, 0 for none; raises UserError for too few to tell anything."""
    if given == 0:
        return 0
    users = int(dataset(experiment_of(SCENES[1], OPEN, flags)).interactions["user"].nunique())
    found = min(PEOPLE, users) if given is None else given
    if not LEAST <= found <= users:
        rule = f"must be from {LEAST}, below which no attack can be told from chance, to the number of users, {users}"
        raise UserError(f"one-user: {rule}, or 0 for no such scene, found {found}")
    return found


def jobs_of(
    budgets: Sequence[str], seeds: Sequence[int], canaries: int, flags: Sequence[str], people: int
) -> list[Job]:
    """Return the runs of the study, the longest first."""
    found: list[Job] = []
    scenes = [scene for scene in SCENES if people or scene.name != ONE_USER]
    noisy = [text for text in budgets if text != OPEN]
    kinds = {CLIENTS: "silos", ONE_USER: "one-user"}
    covering = [a for scene in scenes for a in ATTACKS if a.clients == kinds[scene.name] and covered(a)]
    tests = (len(covering) + 1) * len(noisy) * len(seeds)  # and an audit
    for seed in seeds:
        own = [*flags, "--seed", str(seed), "--engine", "inline"]
        for scene in scenes:
            for text in budgets:
                found.append(Job(scene.name, text, seed, experiment_of(scene, text, own, people), tests=max(tests, 1)))
            found.append(Job(f"{scene.name} alone", OPEN, seed, experiment_of(scene, OPEN, own, people)))
        audit_of = experiment_of(SCENES[0], OPEN, own)
        found += [Job("audit", text, seed, audit_of, canaries, tests) for text in noisy]
    return found


def experiment_of(scene: Scene, text: str, flags: Sequence[str], people: int | None = None) -> Experiment:
    """Return the experiment of a scene at a budget; that of one-user clients has so many `people` (None: all)."""
    noisy = [] if text == OPEN else [*scene.noisy.split(), "--privacy.epsilon", text]
    e = arm([*scene.usual.split(), *noisy, *flags])
    if e.partition == "one-user":
        raise UserError("option --partition: one-user clients are a scene of their own; give --one-user")
    if scene.name != ONE_USER:
        return e
    return build({**e.model_dump(), "partition": "one-user", "clients": people, "skew": None})


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


def about(jobs: Sequence[Job], scenes: Mapping[str, Setting], budgets: Sequence[str]) -> dict[str, str]:
    """Return what was run, in words."""
    first = next(job.experiment for job in jobs if job.scene == CLIENTS)
    canaries = max(job.canaries for job in jobs)
    source = f", {first.data_dir.name}" if first.data_dir else ""
    same = facts({(job.scene, job.seed): job.experiment for job in jobs})
    return {
        "Data": f"{first.dataset}{source}: {plural(len(dataset(first).users), 'user')}",
        "Clients": "; ".join(f"{name}: {one.who}" for name, one in scenes.items()),
        "Rounds": "; ".join(f"{name}: {one.rounds}" for name, one in scenes.items()),
        "Seeds": ", ".join(str(seed) for seed in dict.fromkeys(job.seed for job in jobs)),
        "Budgets": ", ".join(budgets),
        "Audit": f"{canaries:,} canaries in a run of {clients_data(first)[0].name}" if canaries else "none",
        **{name: text for name, text in same.items() if name not in ("dataset", "data_dir", "clients", "rounds")},
    }


def run_job(job: Job) -> list[dict[str, Any]]:
    """Run one job in this process; return its rows: kind, name, value, low, high, and what a row's kind adds."""
    import torch

    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        if job.scene == "audit":
            rows = audit_rows(job)
        elif job.scene.endswith(" alone"):
            rows = reference_rows(job, Path(folder))
        else:
            rows = attack_rows(job, Path(folder))
    return [{"scene": job.scene, "epsilon": job.budget, "seed": job.seed, **row} for row in rows]


def attack_rows(job: Job, home: Path) -> list[dict[str, Any]]:
    """Return the utility of a run, and what every attack makes of what its server saw."""
    e = job.experiment
    seen = witness(e, home)
    rows = utility_rows([*seen.record.clients, *gather_measured(home)])
    case, promised = case_of(e, seen, job.seed), max((g.budget for g in guarantees(e).values()), default=math.inf)
    for attack in ATTACKS:
        if not attack.fits(case):
            continue
        try:
            found = attack.result(seen.transcript, case)
        except ValueError:  # there are no targets of both kinds, such as too few people of an occupation
            continue
        row = {"kind": "attack", "name": attack.name, "value": found.auc, "low": found.auc_low, "high": found.auc_high}
        row |= {"tpr": found.tpr_at, "tpr_low": found.tpr_low, "tpr_high": found.tpr_high, "unit": attack.unit}
        row |= {"members": found.members, "others": found.others, "groups": found.groups}
        broken = covered(attack) and violates(found, promised, e.privacy.delta, 1 - ALARM / job.tests)
        rows.append({**row, "released": attack.released, "chance": found.chance, "violates": broken})
    return rows


def reference_rows(job: Job, home: Path) -> list[dict[str, Any]]:
    """Return how the clients do alone, and by what is popular among their own users."""
    rows = []
    run_baseline(baseline(job.experiment, "local"), home / "local")
    run_popularity(job.experiment, home / "popularity")
    for name in ("local", "popularity"):
        table = pd.read_csv(home / name / "clients.csv").to_dict("records")
        rows += [{**row, "kind": name} for row in utility_rows(table)]
    return rows


def utility_rows(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the mean over the clients of each test metric."""
    table = pd.DataFrame(rows)
    table = table[table["split"] == "test"]
    means = table["value"].groupby(table["task"] + " " + table["metric"], sort=False).mean()
    return [{"kind": "utility", "name": name, "value": float(value)} for name, value in means.items()]


def audit_rows(job: Job) -> list[dict[str, Any]]:
    """Return the lower bounds of epsilon that canaries in a real run of the first client give, and the checks."""
    data, whole = clients_data(job.experiment)[0], dataset(job.experiment)
    trial = Trial(float(job.budget), delta=job.experiment.privacy.delta, canaries=job.canaries, seed=job.seed)
    found, claim, twin = audited(data, len(whole.users), len(whole.items), trial, Source.system())
    rows: list[dict[str, Any]] = [{"kind": "accounted", "name": "accounted", "value": claim.epsilon}]
    rows += [{"kind": "bound", "name": one.method, "value": one.epsilon} for one in bounds(found, claim)]
    for one in audit(found, claim, twin, ALARM / job.tests):
        text = f"{one.text} (p {one.p:.2g})"
        rows.append({"kind": "check", "name": one.check, "value": float(one.broken), "text": text})
    return rows
