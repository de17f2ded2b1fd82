"""A platform joins a running federation: `python -m simulations.studies newcomer --joins 11 --volunteers 60`."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedrec.errors import UserError, choose
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.records import natural
from simulations.baselines import run_popularity
from simulations.studies import methods
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.methods import POPULARITY, experiment_of
from simulations.studies.options import SEEDS
from simulations.studies.tables import read_test, records

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
OPTIONS = {
    "client": ("", "the newcomer, or smallest, or largest by users [the last one]"),
    "joins": (11, "R, the round in which it joins"),
    "federated": ("fedper", "method of late and beginning, with options after colons"),
    "teaching": ("agreement", "method of taught; only with --volunteers"),
    "seeds": (5, SEEDS),
}


def plan(options: Namespace) -> list[Run]:
    """Return the runs of every seed, all on the same data; raises UserError for one that cannot be."""
    runs = []
    for seed in range(options.seeds):
        flags = [*options.flags, "--seed", str(seed), "--engine", "inline"]
        whole = experiment_of(options.federated, flags)
        who = newcomer(whole, options.client)
        if not 1 < options.joins < whole.rounds:
            raise UserError(f"joins: must be a round from 2 to {whole.rounds - 1}, found {options.joins}")
        late = [*flags, "--newcomers", f"{who}={options.joins}"]
        arms = {
            "local": experiment_of("local", [*flags, "--rounds", str(whole.rounds - options.joins + 1)]),
            "local-long": experiment_of("local", flags),
            "late": experiment_of(options.federated, late),
            "beginning": whole,
        }
        if whole.volunteers:
            arms["taught"] = experiment_of(options.teaching, late)
        arms[POPULARITY] = arms["local"]
        for name, e in arms.items():
            runs.append(Run({"method": name, "seed": seed, "client": who}, e, folder=f"{name}-{seed}"))
    return runs


def newcomer(experiment: Experiment, wanted: str) -> str:
    """Return the client that is meant; raises UserError if there is none of that name."""
    parts = sorted(clients_data(experiment), key=lambda data: natural(data.name))
    if wanted in SIZES:
        return SIZES[wanted](parts, key=lambda data: len(data.users)).name
    return choose("client", wanted, [data.name for data in parts]) if wanted else parts[-1].name


def measure(run: Run, home: Path) -> Rows:
    """Return the newcomer's test rows; who is alone is the only client, so that its own validation selects."""
    from simulations.apps import apps_for
    from simulations.engines import InlineGrid
    from simulations.engines.inline import run_on
    from simulations.engines.nodes import each_alone

    e, who = run.experiment, run.labels["client"]
    if run.labels["method"] == POPULARITY:
        run_popularity(e, home)
    else:
        home.mkdir()
        parts = [data.name for data in clients_data(e)]
        alone = run.labels["method"] in ALONE
        nodes = [node for node, part in zip(each_alone(e, home), parts, strict=True) if part == who or not alone]
        run_on(InlineGrid(nodes), apps_for(e, home, nodes=len(nodes))[0])
    rows = read_test(home)
    return records(rows[rows["client"] == who].assign(**run.labels))


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return what the newcomer reaches in every way, and the page that compares them."""
    words = {name: ARMS[name] for name in dict.fromkeys(results["method"]) if name != POPULARITY}
    about = {
        "newcomer": ", ".join(dict.fromkeys(run.labels["client"] for run in runs)),
        "joins in round": str(options.joins),
        **facts(runs),
        **words,
    }
    notes = [f"{name}: {text}" for name, text in words.items()]
    return methods.findings(results, runs, options, "the newcomer alone", about, notes)


MORE = "; ".join(f"{name}: {text}" for name, text in ARMS.items())
STUDY = Study("newcomer", OPTIONS, plan, measure, findings, more=MORE)
