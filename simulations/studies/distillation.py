"""Small students of federated models: `python -m simulations.studies distillation --seeds 5 --dataset ml-100k ...`.

The clients of a run are the teachers; each trains three students on its own rows: alone, with soft labels, and with
ranking distillation. What is not said on the command line was chosen on validation rows, under seeds from 100 on.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedrec.distillation import Distillation
from fedrec.errors import UserError
from fedrec.experiment.holdings import clients_data
from fedrec.metrics import paired
from fedrec.report.findings import number
from fedrec.report.study import Page, Part, interval, seeded
from simulations.cli import arm
from simulations.cost import BATCH
from simulations.distil import ALONE, TEACHER, distilled, students_of
from simulations.engines import launch
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.tables import Row, by_arm, ends, spread

TEACHERS = (
    "--method fedper --clients 5 --model mf --dim 128 --lr 0.005 --l2 0.01 --batch-size 512 --rounds 14 --patience 4 "
    "--engine inline"
)
STUDENTS = {"model": "mf", "dim": 11, "lr": 0.02, "l2": 0.0, "rounds": 6, "num_negatives": 20}
RULES: dict[str, Distillation | None] = {
    ALONE: None,
    "soft labels": Distillation("soft", weight=1.0, temperature=1.0),
    "ranking distillation": Distillation("ranking", weight=0.5, top=20, decay=20.0),
}
WORDS = "Every client's own model of the run teaches students that train on the client's own rows."
TIMES = f"The times are medians for scoring the client's catalogue for one user, and for {BATCH}, on one thread."
OPTIONS = {
    "seeds": (5, "paired seeds from --first on"),
    "first": (0, "the first seed; those from 100 on have been tuned on"),
    "student-dim": (STUDENTS["dim"], "width of the students' tables"),
}


def plan(options: Namespace) -> list[Run]:
    """Return the teachers of every seed, with the width of their students' tables."""
    if options.first < 0:
        raise UserError(f"first: must be at least 0, found {options.first}")
    return [
        Run({"seed": seed}, arm([*TEACHERS.split(), *options.flags, "--seed", str(seed)]), about=options.student_dim)
        for seed in range(options.first, options.first + options.seeds)
    ]


def measure(run: Run, home: Path) -> Rows:
    """Return a row for each client and model of a seed: what it costs, and its test of the first ranking metric."""
    e = run.experiment
    students = students_of(e, {**STUDENTS, "dim": run.about}, ["rank"])
    launch(e, home)
    rows: list[Row] = []
    for data in clients_data(e):
        for model in distilled(home, e, students, data, RULES):
            tested = model.test.metrics.items()
            values = [v for (_, task, name), v in tested if (task, name) == ("rank", e.metrics[0])]
            about = {**run.labels, "client": data.name, "model": model.name, "round": model.round}
            rows.append({**about, **vars(model.cost), "value": float(np.mean(values))})
    return rows


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return what students cost and what they reach, and their page."""
    rows, metric = summary(results), runs[0].experiment.metrics[0]
    page = Page(
        "What does a small student keep of its teacher?",
        WORDS,
        seeded(options.seeds, "means over clients and seeds, 95% intervals over seeds"),
        [Part("Teachers and students", [texts(row, metric) for row in rows], TIMES)],
        {**facts(runs), "students": str(STUDENTS)},
        [f"{name}: {rule}" for name, rule in RULES.items() if rule],
    )
    return Findings(rows, page)


def summary(results: pd.DataFrame) -> list[Row]:
    """Return a row for each model: its mean costs, and its value as the mean over clients, by seed.

    `share` is the mean over seeds of the value over the teacher's, with its Student-t interval; so is `minus_alone` of
    the difference to the student alone.
    """
    size, one, batch, value = (by_arm(results, "model", name) for name in ("parameters", "one_ms", "batch_ms", "value"))
    rows: list[Row] = []
    for name, scores in value.items():
        parameters, teacher = float(size[name].mean()), float(size[TEACHER].mean())
        row: Row = {"model": name, "parameters": parameters, "size": parameters / teacher}
        row |= {"one_ms": float(np.median(one[name])), "batch_ms": float(np.median(batch[name])), **spread(scores)}
        share = paired(scores / value[TEACHER], np.zeros(len(scores)))
        rows.append(row | ends({"share": share, "minus_alone": paired(scores, value[ALONE])}))
    return rows


def texts(row: Row, metric: str) -> dict[str, str]:
    """Return a row as it is printed, by heading."""
    return {
        "Model": row["model"],
        "Parameters": f"{row['parameters']:,.0f}",
        "Of teacher": f"{row['size']:.1%}",
        "ms": f"{row['one_ms']:.3f}",
        f"ms for {BATCH}": f"{row['batch_ms']:.2f}",
        metric: f"{row['mean']:.4f}",
        "sd": number(row["sd"], 4),
        "Share of teacher [95%]": "" if row["model"] == TEACHER else interval(row, "share", ".1%"),
        "Minus alone [95%]": "" if row["model"] == ALONE else interval(row, "minus_alone"),
    }


STUDY = Study("distillation", OPTIONS, plan, measure, findings)
