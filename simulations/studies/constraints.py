"""Every form of a tie against other solvers: `python -m simulations.studies constraints`.

By the numerics alone (`solve`), and over Flower on platforms whose losses are quadratics: exact gradients, each
engine, all clients a round or some of them.
"""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from clients.client import Client
from fedrec.errors import UserError, choose
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.kept import load_kept
from fedrec.report.study import Page, Part
from fedrec.rng import generator
from simulations.engines import launch
from simulations.studies.constraint_cases import CASES, CONTRADICTIONS
from simulations.studies.constraint_problems import NAMES, Case, Problem, Quadratic, draw
from simulations.studies.constraint_solvers import contradicted, far, solved
from simulations.studies.harness import Findings, Rows, Run, Study
from simulations.studies.tables import Row

CONVEX, SMOOTH = 1e-5, 1e-4  # what a convex problem, and another, may be from the answer of another solver
NUMERICS = "numerics"
BY_NAME = {case.name: case for case in (*CASES, *CONTRADICTIONS)}
Told = tuple[str, str, Sequence[float]]  # tie, verdict, multipliers
OPTIONS = {
    "seeds": (20, "random problems of each form, by the numerics"),
    "runs": (3, "random problems of each form over Flower, with each engine and participation; 0: none"),
    "engines": ("inline,process,batched", "engines, comma-separated"),
    "participation": ("1,0.6", "fractions of the clients in a round, comma-separated"),
    "rounds": (2000, "rounds at most, by the numerics"),
    "messages": (600, "rounds over Flower"),
    "forms": ("", "forms, comma-separated; all without it"),
}
WORDS = (
    "Every form of a tie on random problems, against an interior-point solver where it is convex, and against "
    "sequential quadratic programming where it is not. Primal is the largest difference of any coordinate, multiplier "
    "that of any multiplier relative to 1 + the largest. Ties that contradict each other are to be called infeasible, "
    "others never. Beyond: problems whose answer gives the loss of a client a weight below 0. By the numerics they are "
    "solved; in a run no weight is below 0, and their tie is to be called violated, or is met at a higher price."
)


def plan(options: Namespace) -> list[Run]:
    """Return a run for each form, seed, engine and participation."""
    names = [name.strip() for name in options.forms.split(",")] if options.forms else list(BY_NAME)
    parts = [float(text) for text in options.participation.split(",")]
    if not all(0 < part <= 1 for part in parts):
        raise UserError(f"participation: must be above 0 and at most 1, found {options.participation}")
    engines = [choose("engines", name, ("inline", "process", "batched", "ray")) for name in options.engines.split(",")]
    runs = []
    for case in [BY_NAME[choose("forms", name, BY_NAME)] for name in names]:
        for part in parts:
            about = {"form": case.name, "participation": part}
            for seed in range(options.seeds):
                runs.append(Run({**about, "by": NUMERICS, "seed": seed}, NOTHING, about=options.rounds))
            for engine in engines if case in CASES else ():
                for seed in range(options.runs):
                    e = experiment(seed, part, engine, options.messages)
                    runs.append(Run({**about, "by": engine, "seed": seed}, e, about=options.messages))
    return runs


def experiment(seed: int, participation: float, engine: str, rounds: int) -> Experiment:
    """Return the run of four regressions with a seed, which nothing ties yet."""
    parts = "simulations.studies.constraint_parts"
    return build(
        {
            "method": "admm",
            "dataset": {"use": f"{parts}:Regressions", "seed": seed},
            "model": f"{parts}:Linear",
            "task": "rating",
            "share": "body",
            "clients": len(NAMES),
            "split": "random",
            "lrs": "item_table=0,heads=0",
            "optimiser": "sgd",
            "l2": 0.0,
            "batch_size": 1000,
            "local_epochs": 5,
            "rounds": rounds,
            "eval_every": rounds,
            "weights": "uniform",
            "coupling": {"rho": 1.0, "duals": True},
            "participation": participation,
            "engine": engine,
            "seed": seed,
        }
    )


NOTHING = Experiment()


def measure(run: Run, home: Path) -> Rows:
    """Solve one problem; return how far it is from another solver's answer."""
    case, rounds = BY_NAME[run.labels["form"]], run.about
    labels = {**run.labels, "convex": case.claims is not None}
    if case in CONTRADICTIONS:
        found = contradicted(case, run.labels["seed"], run.labels["participation"], rounds)
        return [{**labels, "rounds": len(found.history), "verdicts": words([v.verdict for v in found.verdicts])}]
    if run.labels["by"] == NUMERICS:
        p = draw(run.labels["seed"])
        found = solved(case, p, run.labels["participation"], rounds, run.labels["seed"])
        theta, taken = np.stack([t.numpy() for t in found.theta]), len(found.history)
        told: list[Told] = [(v.tie, v.verdict, v.weights) for v in found.verdicts]
    else:
        theta, told, p = over_flower(case, run.experiment, home)
        taken = rounds
    gap = far(case, p, theta, {tie: np.array(y) for tie, _, y in told if len(y)})
    verdicts = words([verdict for _, verdict, _ in told])
    beyond = run.labels["by"] != NUMERICS and gap.lowest < 0
    return [{**labels, **gap._asdict(), "rounds": taken, "verdicts": verdicts, "beyond": beyond}]


def words(verdicts: Sequence[str]) -> str:
    """Return the verdicts that there are."""
    return " ".join(sorted({*verdicts}))


def over_flower(case: Case, e: Experiment, home: Path) -> tuple[Any, list[Told], Problem]:
    """Return what a run makes of the regressions under a case's ties: theta, and tie, verdict and multipliers."""
    p = regressions(e)
    ties, largest = case.ties(p), max(float(np.linalg.eigvalsh(f.hessian).max()) for f in p.losses)
    coupling: dict[str, Any] = {"ties": "; ".join(map(in_flower, ties)), "rho": p.rho, "duals": True}
    if any(tie.startswith("losses") for tie in ties):
        coupling |= {"judged": "training", "step": 0.2 if case.between else 1.0}
    lr = 1 / (3 * largest + p.rho)
    launch(build({**e.model_dump(mode="json"), "coupling": coupling, "lr": lr}), home)
    own = [load_kept(home, name, "own") for name in NAMES]
    theta = np.stack([torch.cat([part["body.a"], part["body.b"]]).double().numpy() for part in own])
    rows = json.loads((home / "experiment.json").read_text())["ties"]
    told: list[Told] = [(tie, row["verdict"], in_order(row)) for tie, row in zip(ties, rows, strict=True)]
    return theta, told, p


def in_order(row: Mapping[str, Any]) -> list[float]:
    """Return the multipliers of a tie; those of single clients, which a run has by name, in the order of NAMES."""
    weights = list(row.get("weights", []))
    if not any(form in row["tie"] for form in ("ball(", "at-most(", "parity(", "minimax")):
        return weights
    by_name, n = sorted(NAMES), len(NAMES)
    return [weights[start + by_name.index(name)] for start in range(0, len(weights), n) for name in NAMES]


def regressions(e: Experiment) -> Problem:
    """Return the losses of the clients of an experiment as the quadratics that they are."""
    losses: dict[str, Quadratic] = {}
    for data in clients_data(e):
        start = Client(e, data, "cpu", None).start()
        features = start["item_table.features.weight"][torch.from_numpy(data.train.item)].double().numpy()
        a, b = (float(start[f"heads.rating.{name}"]) for name in ("weight", "bias"))
        phi, y = a * features, data.train.rating - b
        centre = np.linalg.lstsq(phi, y, rcond=None)[0]
        losses[data.name] = Quadratic(2 * phi.T @ phi / len(y), centre, float(np.mean((phi @ centre - y) ** 2)))
    numbers = generator(e.seed, "constraints").uniform(size=4)
    return Problem([losses[name] for name in NAMES], [1.0] * len(NAMES), numbers)


def in_flower(tie: str) -> str:
    """Return a tie of the toy problems' blocks in those that the platforms share."""
    blocks, _, form = tie.partition(":")
    names = {"x": "body", "a": "body.a", "b": "body.b"}
    return "+".join(names.get(block, block) for block in blocks.split("+")) + ":" + form


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return the worst of every form, by solver and participation."""
    columns = ["form", "participation", "by"]
    rows = []
    for _, table in results.groupby(columns, sort=False):
        rows.append(worst(table))
    wrong = [f"{row['form']} ({row['by']}, {row['participation']})" for row in rows if row["verdict"] == "wrong"]
    part = Part("Forms of ties", [texts(row) for row in rows], WORDS)
    about = {"Rounds": f"{options.rounds}, over Flower {options.messages}", "Clients": ", ".join(NAMES)}
    page = Page("Do ties hold what they promise?", WORDS, "constraints", [part], about)
    return Findings(rows, page, failed=f"other answers than of other solvers: {', '.join(wrong)}" if wrong else "")


def worst(table: pd.DataFrame) -> Row:
    """Return the worst of the problems of one form."""
    row: Row = {name: table[name].iloc[0] for name in ("form", "participation", "by")}
    beyond = table["beyond"] if "beyond" in table else pd.Series(False, index=table.index)
    called = int(table["verdicts"].str.contains("infeasible").sum())
    whole, table = len(table), table[~beyond.fillna(False).astype(bool)]
    contradictory = row["form"] in {case.name for case in CONTRADICTIONS}
    limit = CONVEX if table["convex"].any() else SMOOTH
    primal, multiplier = (
        float("nan") if contradictory else float(table[name].max(skipna=False)) for name in ("primal", "multiplier")
    )
    met = int((table["verdicts"] == "met").sum())
    near = not len(table) or (primal <= limit and multiplier <= limit)
    good = called == whole if contradictory else not called and met == len(table) and near
    return {
        **row,
        "problems": len(table),
        "beyond": whole - len(table),
        "primal": primal,
        "multiplier": multiplier,
        "rounds": int(table["rounds"].max()) if len(table) else 0,
        "infeasible": called,
        "verdict": "wrong" if not good else "right" if len(table) else "beyond",
    }


def texts(row: Row) -> dict[str, str]:
    """Return a row as it is printed, by heading."""
    return {
        "form": str(row["form"]),
        "by": str(row["by"]),
        "part": f"{row['participation']:g}",
        "n": str(row["problems"]),
        "primal": f"{row['primal']:.0e}",
        "multiplier": f"{row['multiplier']:.0e}",
        "rounds": str(row["rounds"]),
        "infeasible": str(row["infeasible"]),
        "beyond": str(row["beyond"]) if row["beyond"] else "",
        "": str(row["verdict"]),
    }


STUDY = Study("constraints", OPTIONS, plan, measure, findings)
