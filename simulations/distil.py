"""A small student of a client's model: `python -m simulations.distil RUN --client silo-1 --dim 5 --kind soft`."""

if __name__ == "__main__":  # before the imports, which take seconds
    from simulations.start import prepare

    prepare()

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from clients.client import Client
from clients.recommend import params_of
from clients.round import measure
from fedrec.components import join_clients, per_client, split_at
from fedrec.data import ClientData
from fedrec.distillation import KINDS, Distillation, learn
from fedrec.errors import Parser, UserError, choose
from fedrec.evaluation.evaluate import Evaluation, Split
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.acting import RULES, acting, inert
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.earlier import experiment_of
from fedrec.experiment.holdings import clients_data, tasks_for
from fedrec.experiment.peruser import as_read, users_table
from fedrec.experiment.records import Record, Row, slug, versions, write_csv, write_json, write_tensors
from fedrec.folders import writing
from fedrec.params import Params
from fedrec.report.findings import DASH, number
from fedrec.report.gaps import differences
from fedrec.report.results import KEY, Results
from fedrec.tasks import parse_task, several
from fedrec.training.weighting import Weighting
from server.scores import selection_scores
from simulations.baselines import baseline
from simulations.closing import STYLE, gap
from simulations.cost import BATCH, Cost, cost
from simulations.methods import usual
from simulations.start import ready, status_of

ABOUT = "Train small students of the clients' models of a finished run, and measure them beside their teachers."
TEACHER, STUDENT, ALONE = "teacher", "student", "student alone"
COLUMNS, OTHERS = ("teacher", "student", "alone"), ("teacher", "alone")  # of metrics.csv


@dataclass(frozen=True)
class Model:
    """A trained model of a client: who it is, what it costs, and what it reaches on the test data."""

    name: str
    params: Params
    round: int
    cost: Cost
    test: Evaluation


def distilled(
    run: Path, e: Experiment, s: Experiment, data: ClientData, rules: Mapping[str, Distillation | None]
) -> list[Model]:
    """Return a client's teacher and its students by name, each under its rule; None has no teacher.

    `e` is the experiment of the run, `s` that of its students. The round of a student is chosen on the client's
    validation rows, as the run's was; then it is tested once.
    """
    params = params_of(run, e, data)
    teacher, student = Client(e, data, "cpu", None), Client(s, data, "cpu", None)
    task = student.tasks[0].name
    models = [measured(TEACHER, teacher, params, 0, task)]
    for name, rule in rules.items():
        learned = learn(
            student.model,
            student.start(),
            data,
            student.tasks,
            s.recipe(),
            rounds=s.rounds,
            seed=s.seed,
            score=lambda params: validated(student, params),
            teacher=ModelScorer(teacher.model, params),
            rule=rule,
        )
        models.append(measured(name, student, learned.params, learned.round, task))
    return models


def measured(name: str, client: Client, params: Params, number: int, task: str) -> Model:
    """Return a trained model with its cost, by the time of a task, and its test."""
    price = cost(ModelScorer(client.model, params), task, len(client.data.users))
    return Model(name, params, number, price, evaluated(client, params, "test"))


def evaluated(client: Client, params: Params, split: Split) -> Evaluation:
    """Return the metrics of a client's own model."""
    return measure(client, *client.experiment.sharing().split(params), split)


def validated(client: Client, params: Params) -> float:
    """Return the validation score that chooses a round, as a server does: larger is better, NaN if there is none."""
    metrics = evaluated(client, params, "validation").metrics
    scores = selection_scores(metrics, (client.experiment.metrics[0], "logloss", "rmse", "loss"))
    return sum(scores.values()) / len(scores) if scores else math.nan


def students_of(e: Experiment, wanted: Mapping[str, Any], tasks: Sequence[str]) -> Experiment:
    """Return the experiment of the students: every client alone, on the run's data, with what is `wanted` of a model.

    Its folder can be asked by `clients.recommend`. Of the clients' tasks only those named remain, if any are. Raises
    UserError.
    """
    alone = baseline(e, "pooled" if e.pool else "local").model_dump()
    s = build({**alone, "weighting": Weighting().model_dump(), **wanted, "task": only(e.task, tasks)})
    for name in set(wanted) & set(inert(s, usual(s))):
        raise UserError(f"{name}: acts only with {RULES[name].needs}, found {wanted[name]}")
    s = acting(s, usual(s))
    if text := several(s.task):
        raise UserError(
            f"task: must have one score for a user and an item to be taught (add --task rank), found {text}"
        )
    return s


def only(text: str, tasks: Sequence[str]) -> str:
    """Return an experiment's `task` text with the named tasks alone; raises UserError for one that nobody has."""
    parts = {client: list(split_at(value, ",")) for client, value in per_client(text).items()}
    for name in tasks:
        choose("task", name, dict.fromkeys(parse_task(part).name for value in parts.values() for part in value))
    kept = {
        client: [part for part in value if not tasks or parse_task(part).name in tasks]
        for client, value in parts.items()
    }
    return join_clients({client: ",".join(value) for client, value in kept.items() if value})


def cost_rows(client: str, s: Experiment, e: Experiment, models: Sequence[Model]) -> Iterator[Row]:
    """Yield what each model of a client is and costs; `share` is of the teacher's parameters."""
    for model in models:
        kind = (e if model.name == TEACHER else s).recommender(client)
        about: Row = {"client": client, "model": model.name, "kind": kind.kind, "dim": kind.dim, "round": model.round}
        yield {**about, **asdict(model.cost), "share": model.cost.parameters / models[0].cost.parameters}


def metric_rows(models: Sequence[Model]) -> Iterator[Row]:
    """Yield, for each metric, the three models and the student's paired differences with 95% intervals over users."""
    teacher, student, alone = (results_of(model) for model in models)
    gaps = {"teacher": differences(student, teacher), "alone": differences(student, alone)}
    tests = {"teacher": teacher.test(), "student": student.test(), "alone": alone.test()}
    for key in models[1].test.metrics:
        row: Row = {**dict(zip(KEY, key, strict=True)), **{name: test[key] for name, test in tests.items()}}
        for name, pairs in gaps.items():
            gap = pairs[key]
            ends = {f"minus_{name}_low": gap.low, f"minus_{name}_high": gap.high}
            row |= {"users": gap.n, f"minus_{name}": gap.mean, **ends}
        yield row


def results_of(model: Model) -> Results:
    """Return what a model reaches on the test data, as it is read of a run."""
    record = Record()
    record.score(model.round, "test", model.test.metrics, "cpu")
    return Results(pd.DataFrame(record.clients), as_read(users_table(model.test.per_user)))


def write(home: Path, s: Experiment, about: Mapping[str, Any], trained: Mapping[str, Sequence[Model]]) -> None:
    """Write the parameters of the students as a run of clients that train alone, and what was done."""
    (home / "model").mkdir()
    for client, (_, *students) in trained.items():
        for model, stem in zip(students, ("client", "alone"), strict=True):
            write_tensors(home / "model" / f"{stem}-{slug(client)}.safetensors", model.params, private=True)
    write_tensors(home / "model" / "shared.safetensors", {}, private=False)
    write_json(home / "model" / "rows.json", {})
    write_json(
        home / "experiment.json",
        {"experiment": s.model_dump(mode="json"), "versions": versions(), "distillation": dict(about)},
    )


def show(console: Console, costs: Sequence[Row], metrics: Sequence[Row]) -> None:
    """Print what the models cost and reach."""
    table = Table(title="Cost", padding=(0, 1, 0, 0), **STYLE)
    for name in ("client", "model", "parameters", "of teacher", "ms a user", f"ms {BATCH} users", "round"):
        table.add_column(name, justify="left" if name in ("client", "model") else "right")
    for row in costs:
        cells = [f"{row['parameters']:,}", f"{row['share']:.1%}", f"{row['one_ms']:.3f}", f"{row['batch_ms']:.2f}"]
        table.add_row(str(row["client"]), str(row["model"]), *cells, str(row["round"] or "-"))
    console.print(table)
    title = "Test, and 95% intervals over users of the student's difference to the others"
    table = Table(title=title, padding=(0, 1, 0, 0), **STYLE)
    for name in ("client", "metric", *COLUMNS, *(f"to {name}" for name in OTHERS)):
        table.add_column(name, justify="left" if name in ("client", "metric") else "right", no_wrap=name != "client")
    for row in metrics:
        cells = [*(number(float(row[name]), 4) for name in COLUMNS), *(interval(row, name) for name in OTHERS)]
        table.add_row(str(row["client"]), f"{row['task']} {row['metric']}", *cells)
    console.print(table)


def interval(row: Row, other: str) -> str:
    """Return the interval of a difference; a dash for a metric that is of no single user."""
    return gap(*(float(row[f"minus_{other}{end}"]) for end in ("", "_low", "_high"))).partition(" ")[2] or DASH


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = Parser(prog="python -m simulations.distil", description=ABOUT, allow_abbrev=False)
    p.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of the run")
    p.add_argument("--client", help="name of the client; every client without it")
    p.add_argument("--task", default="", help="the tasks that the student learns, comma-separated; all without it")
    p.add_argument("--kind", choices=KINDS, default="soft", help="soft labels, or ranking distillation [soft]")
    p.add_argument("--weight", type=float, default=0.5, help="of the teacher's word, 0: the labels alone [0.5]")
    p.add_argument("--temperature", type=float, default=1.0, help="soft: the temperature T [1]")
    p.add_argument("--top", type=int, default=10, help="ranking: recommendations of the teacher to each user [10]")
    p.add_argument("--decay", type=float, default=10.0, help="ranking: places in which their weight falls by e [10]")
    p.add_argument("--model", default="mf", help="what the student is, as of a run [mf]")
    p.add_argument("--dim", type=int, default=5, help="width of its tables [5]")
    for name, kind in (("rounds", int), ("lr", float), ("l2", float), ("num-negatives", int)):
        p.add_argument(f"--{name}", type=kind, help="of its training; that of the run without it")
    p.add_argument("--out", type=Path, help="a new folder for the students [RUN_DIR/students]")
    return p


def distil_run(options: argparse.Namespace, console: Console) -> None:
    """Do what the command line asks for; raises UserError."""
    e = experiment_of(options.run)
    rule = Distillation(options.kind, options.weight, options.temperature, options.top, options.decay)
    given = {name: getattr(options, name) for name in ("model", "dim", "rounds", "lr", "l2", "num_negatives")}
    wanted = {name: value for name, value in given.items() if value is not None}
    s = students_of(e, wanted, options.task.split(",") if options.task else [])
    parts = {data.name: data for data in clients_data(e)}
    names = [options.client] if options.client is not None else list(parts)
    for name in names:
        teacher = [task.name for task in tasks_for(e, parts[choose("client", name, parts)])]
        for task in tasks_for(s, parts[name]):
            choose(f"task of {name}", task.name, teacher)
    out = options.out or options.run / "students"
    with writing(out) as home:
        trained = {name: distilled(options.run, e, s, parts[name], {STUDENT: rule, ALONE: None}) for name in names}
        costs = [row for name, models in trained.items() for row in cost_rows(name, s, e, models)]
        metrics = [row for models in trained.values() for row in metric_rows(models)]
        write(home, s, {"run": str(options.run.absolute()), **asdict(rule)}, trained)
        write_csv(home / "costs.csv", costs)
        write_csv(home / "metrics.csv", metrics)
    show(console, costs, metrics)
    console.print(f"students: {out}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return 0, or 2 for a wrong input."""
    console = Console(markup=False, emoji=False, highlight=False)
    return status_of(lambda: distil_run(parser().parse_args(argv), console))


if __name__ == "__main__":
    ready()
    sys.exit(main())
