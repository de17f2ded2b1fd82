"""Utility, attacks and audits against the budget: `python -m simulations.studies privacy --epsilon 0.5,1,2,4,8,inf`."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from fedrec.errors import UserError
from fedrec.experiment import Experiment
from fedrec.folders import writing
from fedrec.holdings import clients_data, dataset
from fedrec.privacy.attacks import ATTACKS, violates
from fedrec.privacy.audit import ALARM, audit, bounds
from fedrec.privacy.guarantee import guarantees
from fedrec.privacy.noise import Source
from fedrec.records import gather_measured
from simulations.baselines import baseline, run_baseline, run_popularity
from simulations.check import check
from simulations.cli import parse
from simulations.studies.auditing import Trial, audited
from simulations.studies.options import parser_of
from simulations.studies.privacy_page import show, write_page
from simulations.witness import case_of, witness

OPEN = "inf"  # no mechanism at all


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
        "silos",
        "--clients 5 --partition users --task rating --split random --dim 8 --rounds 20 --weights uniform",
        "--privacy.unit user --phases private,shared --local-epochs 1 --optimiser sgd --lr 1.5 --l2 0 "
        "--lrs user_bias=0.5,heads=0.0001,user_table=0.05,item_table=1",
    ),
    Scene(
        "one-user",
        "--clients 400 --partition one-user --task rating --split random --dim 8 --rounds 3 --weights uniform "
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
    audits: int = 1  # of the study, which share the level of their checks


def run(argv: Sequence[str]) -> None:
    """Run every scene, and an audit, at every budget; write the results and a page."""
    parser = parser_of("privacy")
    parser.add_argument("--epsilon", default="0.5,1,2,4,8,inf", help="budgets of a whole run; inf: no mechanism")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each: 0, 1, ... share data and start")
    parser.add_argument("--canaries", type=int, default=2000, help="dummy users of an audit")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/study-privacy"), help="a new folder for the results")
    options, flags = parser.parse_known_args(argv)
    if min(options.seeds, options.workers, options.canaries) < 1:
        raise UserError(
            f"seeds, workers, canaries: must be at least 1, found {options.seeds}, {options.workers}, "
            f"{options.canaries}"
        )
    budgets = [budget(text) for text in options.epsilon.split(",")]
    jobs = jobs_of(budgets, range(options.seeds), options.canaries, flags)
    for job in jobs:
        check(job.experiment)
    with writing(options.out) as home:
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            results = pd.DataFrame([row for rows in pool.map(run_job, jobs) for row in rows])
        results.to_csv(home / "results.csv", index=False)
        write_page(home / "report.html", results, budgets, {job.scene: job.experiment for job in jobs})
    show(results, budgets)
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


def jobs_of(budgets: Sequence[str], seeds: Sequence[int], canaries: int, flags: Sequence[str]) -> list[Job]:
    """Return the runs of the study, the longest first."""
    found: list[Job] = []
    for seed in seeds:
        own = [*flags, "--seed", str(seed), "--engine", "inline"]
        for scene in SCENES:
            for text in budgets:
                found.append(Job(scene.name, text, seed, experiment_of(scene, text, own)))
            found.append(Job(f"{scene.name} alone", OPEN, seed, experiment_of(scene, OPEN, own)))
        audit_of = experiment_of(SCENES[0], OPEN, own)
        noisy = [text for text in budgets if text != OPEN]
        found += [Job("audit", text, seed, audit_of, canaries, len(noisy) * len(seeds)) for text in noisy]
    return found


def experiment_of(scene: Scene, text: str, flags: Sequence[str]) -> Experiment:
    """Return the experiment of a scene at a budget."""
    noisy = [] if text == OPEN else [*scene.noisy.split(), "--privacy.epsilon", text]
    return parse([*scene.usual.split(), *noisy, *flags]).experiment


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
        # A promise to a user covers every interaction of it; an attribute is no unit of a promise.
        covered = attack.released and attack.unit in ("interaction", "user")
        broken = covered and violates(found, promised, e.privacy.delta)
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
    """Return the lower bounds of epsilon that canaries in a real run of the first silo give, and the checks."""
    data, whole = clients_data(job.experiment)[0], dataset(job.experiment)
    trial = Trial(float(job.budget), delta=job.experiment.privacy.delta, canaries=job.canaries, seed=job.seed)
    found, claim, twin = audited(data, len(whole.users), len(whole.items), trial, Source.system())
    rows: list[dict[str, Any]] = [{"kind": "accounted", "name": "accounted", "value": claim.epsilon}]
    rows += [{"kind": "bound", "name": one.method, "value": one.epsilon} for one in bounds(found, claim)]
    for one in audit(found, claim, twin, ALARM / job.audits):
        text = f"{one.text} (p {one.p:.2g})"
        rows.append({"kind": "check", "name": one.check, "value": float(one.broken), "text": text})
    return rows
