"""Small students of federated models: `python -m simulations.studies distillation --seeds 5 --dataset ml-100k ...`.

The clients of a run are the teachers; each trains three students on its own rows: alone, with soft labels, and with
ranking distillation. What is not said on the command line was chosen on validation rows, under seeds from 100 on.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from fedrec.distillation import Distillation
from fedrec.errors import UserError
from fedrec.experiment import Experiment
from fedrec.folders import writing
from fedrec.holdings import clients_data
from fedrec.metrics import Paired, paired
from fedrec.records import Row, write_csv
from fedrec.report.findings import number
from fedrec.report.study import Part, interval, seeded, write_measured
from simulations.check import check
from simulations.cli import arm, heeded
from simulations.cost import BATCH
from simulations.distil import ALONE, TEACHER, distilled, students_of
from simulations.studies.methods import facts
from simulations.studies.options import parser_of

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
Job = tuple[Experiment, int]


def run(argv: Sequence[str]) -> None:
    """Train teachers and students under paired seeds, and compare what they cost and what they reach."""
    parser = parser_of("distillation")
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed; those from 100 on have been tuned on")
    parser.add_argument("--student-dim", type=int, default=STUDENTS["dim"], help="width of the students' tables")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/study-distillation"), help="a new folder")
    options, flags = parser.parse_known_args(argv)
    if options.seeds < 1 or options.workers < 1 or options.first < 0:
        found = f"{options.seeds}, {options.workers}, {options.first}"
        raise UserError(f"seeds, workers, first: must be at least 1, 1 and 0, found {found}")
    seeds = range(options.first, options.first + options.seeds)
    runs = {seed: arm([*TEACHERS.split(), *flags, "--seed", str(seed)]) for seed in seeds}
    heeded(flags, runs.values())
    for experiment in runs.values():
        check(experiment)
    with writing(options.out) as home:
        results = pd.DataFrame(run_all([(e, options.student_dim) for e in runs.values()], options.workers))
        results.to_csv(home / "results.csv", index=False)
        rows = summary(results)
        write_csv(home / "summary.csv", rows)
        metric = runs[options.first].metrics[0]
        write_page(home / "report.html", rows, metric, options.seeds, facts({("", k): e for k, e in runs.items()}))
    show(rows, f"{metric}, the mean over clients; {seeded(options.seeds)}")
    print(f"report: {options.out / 'report.html'}")


def run_all(jobs: Sequence[Job], workers: int) -> Iterator[Row]:
    """Yield the rows of every seed, from a pool of processes."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for rows in pool.map(run_one, jobs):
            yield from rows


def run_one(job: Job) -> list[Row]:
    """Return a row for each client and model of a seed: what it costs, and its test of the first ranking metric."""
    import torch

    from simulations.apps import apps_for
    from simulations.engines import run_inline

    torch.set_num_threads(1)
    e, dim = job
    students = students_of(e, {**STUDENTS, "dim": dim}, ["rank"])
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        run_inline(*apps_for(e, Path(folder)), len(clients_data(e)))
        for data in clients_data(e):
            for model in distilled(Path(folder), e, students, data, RULES):
                values = [
                    v for (_, task, name), v in model.test.metrics.items() if (task, name) == ("rank", e.metrics[0])
                ]
                about: Row = {"seed": e.seed, "client": data.name, "model": model.name, "round": model.round}
                rows.append({**about, **vars(model.cost), "value": float(np.mean(values))})
    return rows


def summary(results: pd.DataFrame) -> list[Row]:
    """Return a row for each model: its mean costs, and its value as the mean over clients, by seed.

    `share` is the mean over seeds of the value over the teacher's, with its Student-t interval; so is `minus_alone` of
    the difference to the student alone.
    """
    names = list(dict.fromkeys(results["model"]))
    means = results.groupby(["model", "seed"])[["parameters", "one_ms", "batch_ms", "value"]].mean()
    value = {name: means.loc[name]["value"].to_numpy(np.float64) for name in names}
    size = {name: float(means.loc[name]["parameters"].mean()) for name in names}
    rows: list[Row] = []
    for name in names:
        row: Row = {"model": name, "parameters": size[name], "size": size[name] / size[TEACHER]}
        row |= {time: float(means.loc[name][time].median()) for time in ("one_ms", "batch_ms")}
        row |= {"mean": float(value[name].mean()), "sd": float(pd.Series(value[name]).std())}
        row |= ends("share", paired(value[name] / value[TEACHER], np.zeros(len(value[name]))))
        rows.append({**row, **ends("minus_alone", paired(value[name], value[ALONE]))})
    return rows


def ends(name: str, found: Paired) -> Row:
    """Return a mean with its interval, by column."""
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def texts(row: Row, metric: str) -> dict[str, str]:
    """Return a row of the summary as it is printed, by heading."""
    share, gain = interval(row, "share", ".1%"), interval(row, "minus_alone")
    return {
        "Model": str(row["model"]),
        "Parameters": f"{row['parameters']:,.0f}",
        "Of teacher": f"{row['size']:.1%}",
        "ms": f"{row['one_ms']:.3f}",
        f"ms for {BATCH}": f"{row['batch_ms']:.2f}",
        metric: f"{row['mean']:.4f}",
        "sd": number(float(row["sd"]), 4),
        "Share of teacher [95%]": "" if row["model"] == TEACHER else share,
        "Minus alone [95%]": "" if row["model"] == ALONE else gain,
    }


def write_page(path: Path, rows: Sequence[Row], metric: str, seeds: int, about: dict[str, str]) -> None:
    """Write the page of the study."""
    words = "Every client's own model of the run teaches students that train on the client's own rows."
    times = f"The times are medians for scoring the client's catalogue for one user, and for {BATCH}, on one thread."
    part = Part("Teachers and students", times, None, [texts(row, metric) for row in rows])
    notes = [f"{name}: {rule}" for name, rule in RULES.items() if rule]
    title = "What does a small student keep of its teacher?"
    write_measured(
        path,
        title,
        words,
        seeded(seeds, "means over clients and seeds, 95% intervals over seeds"),
        [part],
        notes,
        {**about, "students": str(STUDENTS)},
    )


def show(rows: Sequence[Row], title: str) -> None:
    """Print the summary."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    cells = [texts(row, "mean") for row in rows]
    for name in cells[0]:
        table.add_column(name)
    for row in cells:
        table.add_row(*row.values())
    Console(markup=False, emoji=False).print(table)
