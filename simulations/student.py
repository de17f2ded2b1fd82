"""The server's student of an output agreement: trained on the consensus logits, tested beside its teachers."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from clients.recommend import params_of
from fedrec.data import ClientData, view_public
from fedrec.data.types import Ints
from fedrec.distillation import distil
from fedrec.errors import UserError
from fedrec.evaluation.evaluate import PerUser, evaluate, members
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.channel import LOGITS, public
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, dataset, initial, reader
from fedrec.experiment.kept import is_kept
from fedrec.experiment.records import NO_STUDENT, Record, Row, write_csv, write_json, write_tensors
from fedrec.metrics import paired
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.report.results import STUDENT
from simulations.cost import Cost, cost, parameters


def teach(experiment: Experiment, record: Record, home: Path) -> None:
    """Train the student of a finished run, and write `model/student.*` and `student.csv` into the run's folder.

    It knows the volunteers and the items of the probe, and can rank for nobody else. On each client's items it is
    tested beside the client's own model, on what is held out of the volunteers: neither has trained on it. Costs are
    all the parameters of each, and the milliseconds in which it scores those items for one of the volunteers.
    Of a student that diverged nothing is saved or tested: `student.txt` says so. The run's other results stay.
    """
    try:
        students = student_of(experiment, record.rows["probe"], record.shared[LOGITS])
    except UserError as error:
        (home / NO_STUDENT).write_text(str(error), encoding="utf-8")
        return
    model, params, users, items = students
    write_tensors(home / "model" / "student.safetensors", params, private=False)
    about = {"kind": model.kind, "dim": model.dim, "hidden": model.hidden, "task": experiment.agreement.task}
    write_json(home / "model" / "student.json", {**about, "users": users.tolist(), "items": items.tolist()})
    teachers = [data for data in clients_data(experiment) if data.name not in experiment.arrivals]
    rows = [row for data in teachers for row in compare_models(experiment, home, data, *students)]
    write_csv(home / "student.csv", rows, STUDENT)


def student_of(experiment: Experiment, ids: Ints, logits: torch.Tensor) -> tuple[Recommender, Params, Ints, Ints]:
    """Return the student, its parameters, and the global ids of its users and items, from logits [n] at pairs `ids`."""
    e, count = experiment, len(dataset(experiment).items)
    users, user = np.unique(ids // count, return_inverse=True)
    items, item = np.unique(ids % count, return_inverse=True)
    model = replace(e.recommender("*"), kind=e.agreement.student)
    params = distil(
        model,
        initial(e, model, users, items, {e.agreement.task: 0.0}),
        e.agreement.task,
        torch.from_numpy(user),
        torch.from_numpy(item),
        logits,
        optimiser=e.recipe().optimiser,
        batch_size=e.batch_size,
        epochs=e.agreement.epochs,
        l2=e.l2,
        seed=e.seed,
    )
    return model, params, users, items


def compare_models(
    e: Experiment, home: Path, data: ClientData, model: Recommender, params: Params, users: Ints, items: Ints
) -> list[Row]:
    """Return by metric how student and teacher do on the volunteers' held-out items that the teacher carries."""
    view = view_public(public(e), data.name, np.intersect1d(data.items, items))
    knows = ClientData("student", users, items, view.train, view.validation, view.test, members=(view,))
    ours, price = scores(e, model, knows, params)
    rows: list[Row] = [dict.fromkeys(STUDENT, math.nan) for _ in ours]
    for row, score in zip(rows, ours, strict=True):
        row |= {"client": score.client, "task": score.task, "metric": score.metric, "users": len(score.values)}
        row |= {"student": score.values.mean(), "student_parameters": price.parameters, "student_ms": price.one_ms}
    if not is_kept(home, data.name):  # it ran on another machine
        return rows
    model = reader(e, replace(data, items=view.items), "test")  # which reads the content of what is asked alone
    theirs, price = scores(e, model, replace(data, members=(view,)), params_of(home, e, data))
    for row, score, other in zip(rows, ours, theirs, strict=True):
        gap = paired(score.values, other.values)
        row |= {"users": gap.n, "teacher": other.values.mean(), "low": gap.low, "high": gap.high}
        row |= {"teacher_parameters": price.parameters, "teacher_ms": price.one_ms}
    return rows


def scores(e: Experiment, model: Recommender, data: ClientData, params: Params) -> tuple[Sequence[PerUser], Cost]:
    """Return the test metrics of the one member of `data` by user, and what the whole model costs to ask for it."""
    ((view, part),) = members(data, params)
    task = next(task for task in e.tasks(view.name) if task.name == e.agreement.task)
    scorer = ModelScorer(model, part)
    test = evaluate(scorer, view, (task,), "test", metrics=e.metrics, candidates=e.candidates, seed=e.seed)
    price = cost(scorer, task.name, len(view.users))
    return test.per_user, replace(price, parameters=parameters(params))
