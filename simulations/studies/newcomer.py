"""A platform joins a running federation: `python -m simulations.studies newcomer --joins 11 --volunteers 60`."""

import argparse
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from fedrec.errors import UserError, choose
from fedrec.experiment import Experiment
from fedrec.folders import writing
from fedrec.holdings import clients_data
from fedrec.records import natural, write_csv
from fedrec.report.study import seeded, write_study
from simulations.baselines import run_popularity
from simulations.check import check
from simulations.cli import heeded
from simulations.studies.methods import POPULARITY, experiment_of, facts, show, summary
from simulations.studies.options import parsed, parser_of

# What a platform may do that comes in round R of T; `local` first, with which the others are compared.
ARMS = {
    "local": "alone for the T - R + 1 rounds that a newcomer has",
    "local-long": "alone for all T rounds",
    "late": "joins in round R, trains only what is private on what the others have learned",
    "beginning": "takes part from round 1 on",
    "taught": "joins in round R, trains all of its own model, pulled to the others' consensus logits",
}
ALONE = ("local", "local-long")
SIZES = {"smallest": min, "largest": max}


def run(argv: Sequence[str]) -> None:
    """Compare, with paired seeds and on the newcomer's test data alone, what a platform that comes late may do."""
    parser = parser_of("newcomer", "; ".join(f"{name}: {text}" for name, text in ARMS.items()))
    parser.add_argument("--client", default="", help="the newcomer, or smallest, or largest by users [the last one]")
    parser.add_argument("--joins", type=int, default=11, help="R, the round in which it joins")
    parser.add_argument("--federated", default="fedper", help="method of late and beginning, with options after colons")
    parser.add_argument("--teaching", default="agreement", help="method of taught; only with --volunteers")
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds: 0, 1, ... share data, start and order")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/study-newcomer"), help="a new folder for the results")
    options, flags = parsed(parser, argv)
    jobs = [one for seed in range(options.seeds) for one in arms(options, flags, seed)]
    heeded(flags, [experiment for *_, experiment in jobs])
    with writing(options.out) as home:
        results = pd.concat(run_all(jobs, home, options.workers))
        results.to_csv(home / "results.csv", index=False)
        names = list(dict.fromkeys(name for name, *_ in jobs))
        table = summary(results, names)
        write_csv(home / "summary.csv", table)
        about = {
            "newcomer": ", ".join(dict.fromkeys(who for _, _, who, _ in jobs)),
            "joins in round": str(options.joins),
        }
        about |= facts({(name, seed): e for name, seed, _, e in jobs if name != POPULARITY})
        about |= {name: text for name, text in ARMS.items() if name in names}
        write_study(home / "report.html", table, options.seeds, about, jobs[0][-1].negatives == "published")
    show(table, seeded(options.seeds, "the newcomer alone, 95% intervals over seeds"))
    for name in names[:-1]:
        print(f"{name}: {ARMS[name]}")
    print(f"report: {options.out / 'report.html'}")


Job = tuple[str, int, str, Experiment]  # arm, seed, newcomer, what is run


def arms(options: argparse.Namespace, flags: Sequence[str], seed: int) -> list[Job]:
    """Return the runs of a seed, all on the same data; raises UserError for one that cannot be."""
    flags = [*flags, "--seed", str(seed), "--engine", "inline"]
    whole = experiment_of(options.federated, flags)
    who = newcomer(whole, options.client)
    if not 1 < options.joins < whole.rounds:
        raise UserError(f"joins: must be a round from 2 to {whole.rounds - 1}, found {options.joins}")
    late = [*flags, "--newcomers", f"{who}={options.joins}"]
    found = {
        "local": experiment_of("local", [*flags, "--rounds", str(whole.rounds - options.joins + 1)]),
        "local-long": experiment_of("local", flags),
        "late": experiment_of(options.federated, late),
        "beginning": whole,
    }
    if whole.volunteers:
        found["taught"] = experiment_of(options.teaching, late)
    for experiment in found.values():
        check(experiment)
    return [(name, seed, who, e) for name, e in {**found, POPULARITY: found["local"]}.items()]


def newcomer(experiment: Experiment, wanted: str) -> str:
    """Return the client that is meant; raises UserError if there is none of that name."""
    parts = sorted(clients_data(experiment), key=lambda data: natural(data.name))
    if wanted in SIZES:
        return SIZES[wanted](parts, key=lambda data: len(data.users)).name
    return choose("client", wanted, [data.name for data in parts]) if wanted else parts[-1].name


def run_all(jobs: Sequence[Job], home: Path, workers: int) -> Iterable[pd.DataFrame]:
    """Run everything in a pool of processes; return the newcomer's test rows of each."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_one, jobs, [home / f"{name}-{seed}" for name, seed, *_ in jobs])


def run_one(job: Job, home: Path) -> pd.DataFrame:
    """Run one experiment in this process; who is alone is the only client, so that its own validation selects."""
    from simulations.apps import apps_for
    from simulations.engines import InlineGrid
    from simulations.engines.inline import run_on

    name, seed, who, e = job
    if name == POPULARITY:
        run_popularity(e, home)
    else:
        home.mkdir()
        parts = [data.name for data in clients_data(e)]
        grid = InlineGrid(apps_for(e, home)[1], len(parts))
        if name in ALONE:
            grid.contexts = {k: one for (k, one), part in zip(grid.contexts.items(), parts, strict=True) if part == who}
        run_on(grid, apps_for(e, home, nodes=len(grid.contexts))[0])
    rows = pd.read_csv(home / "clients.csv", dtype={"client": str})
    return rows[(rows["split"] == "test") & (rows["client"] == who)].assign(method=name, seed=seed)
