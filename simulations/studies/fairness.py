"""Losses of the clients that are tied: `python -m simulations.studies fairness --seeds 5 --dataset ml-100k ...`.

What a tie asks for is judged on the rows of the test, which have no part in the run. Settings were chosen under seeds
from 100 on.
"""

import json
import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from clients.budget import models_alone
from clients.client import Client
from clients.exposure import shown_by
from clients.recommend import params_of
from fedrec.data import ClientData
from fedrec.errors import choose
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, reader, tasks_for
from fedrec.metrics import Values, paired
from fedrec.params import Params
from fedrec.report.study import Page, Part, interval, seeded
from fedrec.training.local import held_out_loss
from simulations.baselines import baseline
from simulations.cli import arm
from simulations.engines import launch
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.tables import Row, ends, read_test

ALONE, SHARED, PARITY, MINIMAX, HARM, BUDGET = "alone", "shared", "parity", "minimax", "harm", "no-harm"
EXPOSED = "exposure"
ARMS = (ALONE, SHARED, PARITY, MINIMAX, HARM, BUDGET, EXPOSED)
WORDS = (
    "Every arm has the data, the split and the start of its seed. Losses are those of the test rows, which have no "
    "part in a run. Violation: of parity max |f_i - mean f| - eps; of minimax the worst client's loss minus that under "
    "no tie; of harm and no-harm max (f_i - f_i alone) - margin, f_i alone being that of the round with the lowest "
    "validation loss; of exposure the share asked for minus the least that a client shows. A tie holds where the 95% "
    "interval over seeds contains 0 or lies below. Own flag: in how many seeds the run itself says that the tie is "
    "broken, by the third of the validation rows that judges."
)
OPTIONS = {
    "seeds": (5, "paired seeds from --first on"),
    "first": (0, "the first seed; those from 100 on have been tuned on"),
    "arms": (",".join(ARMS[:4]), f"some of {', '.join(ARMS)}; what is not {ALONE} is --method admm with a tie"),
    "eps": (0.05, "parity: how far a client's loss may be from the mean"),
    "asked": (0.0, "parity: the eps that the tie is given, below what is judged, for what few rows tell; 0: the same"),
    "floor": (0.4, "exposure: the share of what a client shows that must go to its less popular items"),
    "margin": (0.02, "harm: how far a client's loss may be above that which it reaches alone"),
}


def plan(options: Namespace) -> list[Run]:
    """Return a run of every arm for each seed."""
    more = {
        PARITY: ["--tie", f"losses: parity({options.asked or options.eps:g})"],
        MINIMAX: ["--tie", "losses: minimax"],
        EXPOSED: ["--tie", f"exposure: at-least({options.floor:g})"],
        HARM: ["--tie", f"harm: at-most({options.margin:g})"],
        BUDGET: ["--method", "no-harm", "--budget.margin", f"{options.margin:g}"],
    }
    runs = []
    for seed in range(options.first, options.first + options.seeds):
        for name in dict.fromkeys(options.arms.split(",")):
            choose("arms", name, ARMS)
            flags = ["--method", "admm", "--engine", "inline", *options.flags, *more.get(name, []), "--seed", f"{seed}"]
            e = arm(flags)
            about: float | bool = {PARITY: options.eps, EXPOSED: options.floor}.get(name, options.margin)
            if name == ALONE:
                e, about = baseline(e, "local"), bool({HARM, BUDGET} & {*options.arms.split(",")})
            runs.append(Run({"arm": name, "seed": seed}, e, about=about))
    return runs


def measure(run: Run, home: Path) -> Rows:
    """Return for each client of a run the loss of its test rows and NDCG@10, or its first metric.

    `flag` is by how much the run itself says that the tie is broken; `least`, where it is asked for, what a client
    alone comes to in the round of its lowest validation loss.
    """
    e, (name, _) = run.experiment, run.labels.values()
    launch(e, home)
    tested, record = read_test(home), json.loads((home / "experiment.json").read_text(encoding="utf-8"))
    over = [tie["residual"] for tie in record.get("ties", [])] + [b["excess"] for b in record.get("budgets", [])]
    rows: Rows = []
    for data in clients_data(e):
        mine = tested[tested["client"] == data.name]
        metric = next(m for m in ("ndcg@10", *e.metrics, "auc", "rmse") if (mine["metric"] == m).any())
        rows.append(
            {
                **run.labels,
                "client": data.name,
                "loss": loss_of(e, data, params_of(home, e, data), "test"),
                "least": least(e, data) if name == ALONE and run.about else math.nan,
                "shown": shown(e, data, params_of(home, e, data)),
                "value": float(mine.loc[mine["metric"] == metric, "value"].mean()),
                "round": record["selected_round"],
                "flag": max(over, default=math.nan),
            }
        )
    return rows


def loss_of(e: Experiment, data: ClientData, params: Params, split: str) -> float:
    """Return the loss of a model on a client's rows of a split."""
    held = replace(data, validation=data.test) if split == "test" else data
    return held_out_loss(reader(e, data, "train"), params, held, tasks_for(e, data), e.recipe(), seed=e.seed)


def shown(e: Experiment, data: ClientData, params: Params) -> float:
    """Return the share of what a client shows that goes to its less popular items; NaN of one that does not rank."""
    client = Client(e, data, "cpu", None)
    ranks = any(task.kind == "rank" for task in client.tasks)
    return shown_by(client).exposure(params) if ranks else math.nan


def least(e: Experiment, data: ClientData) -> float:
    """Return the test loss that a client reaches alone in the round of its lowest validation loss."""
    models = models_alone(Client(e, data, "cpu", None))
    return min((loss_of(e, data, model, "validation"), loss_of(e, data, model, "test")) for model in models)[1]


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return what ties come to on test rows and what they cost, and the page."""
    rows = summary(results, {run.labels["arm"]: run.about for run in runs})
    page = Page(
        "Do ties of losses hold on rows that nobody has seen, and what do they cost?",
        WORDS,
        seeded(options.seeds, "means over clients and seeds, 95% intervals over seeds"),
        [Part("Ties of losses", [texts(row) for row in rows]), Part("Clients", clients(results))],
        facts(runs),
    )
    return Findings(rows, page)


def summary(results: pd.DataFrame, limits: dict[str, float]) -> list[Row]:
    """Return a row for each arm: what its clients lose at the test, by how much its tie is broken, what it costs."""
    each = {str(name): part.pivot_table("loss", "seed", "client") for name, part in results.groupby("arm", sort=False)}
    values = results.pivot_table("value", "seed", "arm")
    alone = results[results["arm"] == ALONE].pivot_table("least", "seed", "client")
    flags = results.groupby(["arm", "seed"])["flag"].first()
    shares = results.pivot_table("shown", "seed", "arm", "min")
    rows: list[Row] = []
    for name, losses in each.items():
        f, nothing = losses.to_numpy(np.float64), np.zeros(len(losses))
        row: Row = {"arm": name, "loss": float(f.mean()), "worst": float(f.max(1).mean()), "value": values[name].mean()}
        row["spread"] = float(apart(f).mean())
        row["round"] = float(results.loc[results["arm"] == name, "round"].mean())
        row["flagged"] = int((flags[name] > 0).sum())
        row["shown"] = float(shares[name].mean()) if name in shares else math.nan
        broken = violation(name, f, limits[name], each, alone, shares)
        if broken is not None:
            gap = paired(broken, nothing)
            row |= ends({"violation": gap}) | {"broken": int((broken > 0).sum())}
            row["holds"] = "yes" if math.isnan(gap.low) or gap.low <= 0 else "no"
        if name != SHARED and SHARED in each:
            row |= ends({"loss_change": paired(f.mean(1), each[SHARED].to_numpy(np.float64).mean(1))})
            row |= ends({"value_change": paired(values[name].to_numpy(), values[SHARED].to_numpy())})
        rows.append(row)
    return rows


def apart(f: Values) -> Values:
    """Return max_i |f_i - mean f| [seeds] of losses [seeds, clients]."""
    found: Values = np.abs(f - f.mean(1, keepdims=True)).max(1)
    return found


def violation(
    name: str, f: Values, limit: float, each: dict[str, pd.DataFrame], alone: pd.DataFrame, shares: pd.DataFrame
) -> Values | None:
    """Return by how much the tie of an arm is broken [seeds] by losses [seeds, clients]; None of what has none."""
    found: Values | None = None
    if name == PARITY:
        found = apart(f) - limit
    elif name == EXPOSED:
        found = limit - shares[name].to_numpy(np.float64)
    elif name == MINIMAX and SHARED in each:
        found = f.max(1) - each[SHARED].to_numpy(np.float64).max(1)
    elif name in (HARM, BUDGET, SHARED) and len(alone) and (HARM in each or BUDGET in each):
        found = (f - alone.to_numpy(np.float64)).max(1) - limit
    return found


def clients(results: pd.DataFrame) -> list[dict[str, str]]:
    """Return the mean test loss of every client under every arm, as it is printed."""
    table = results.pivot_table("loss", "client", "arm", sort=False)
    return [{"Client": str(name), **{str(a): f"{x:.4f}" for a, x in row.items()}} for name, row in table.iterrows()]


def texts(row: Row) -> dict[str, str]:
    """Return a row as it is printed."""
    held = "violation" in row
    return {
        "Arm": row["arm"],
        "Violation at the test [95%]": interval(row, "violation") if held else "",
        "Holds": row.get("holds", ""),
        "Broken": f"{row['broken']}" if held else "",
        "Own flag": f"{row['flagged']}" if held else "",
        "Mean loss": f"{row['loss']:.4f}",
        "Minus shared [95%]": interval(row, "loss_change") if "loss_change" in row else "",
        "Worst": f"{row['worst']:.4f}",
        "max |f - mean|": f"{row['spread']:.4f}",
        "Least shown": "" if math.isnan(row["shown"]) else f"{row['shown']:.3f}",
        "Metric": f"{row['value']:.4f}",
        "Metric minus shared [95%]": interval(row, "value_change") if "value_change" in row else "",
    }


STUDY = Study("fairness", OPTIONS, plan, measure, findings)
