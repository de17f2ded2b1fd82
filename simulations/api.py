"""The Python interface, which `fedrec` offers by name: run an experiment, open a run, set runs side by side."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel
from rich.console import Console

from fedrec.components import SEAMS, text_of
from fedrec.data.table import FRAME, columns_text, write_frame
from fedrec.errors import RunFailure, UserError
from fedrec.experiment.choice import AUTO, BY_STEPS, BY_SUMS
from fedrec.experiment.config import Experiment, Method
from fedrec.folders import resumable
from fedrec.report.beside import side_by_side
from simulations import cli
from simulations.baselines import baseline
from simulations.check import check, check_sums, told_whole
from simulations.cli import Command, Given
from simulations.methods import METHODS
from simulations.options import flatten
from simulations.run import close, perform
from simulations.runs import Run, forget, load_run

__all__ = ["Run", "compare", "load_run", "resume", "run"]

PathLike = str | os.PathLike[str]
Columns = str | Mapping[str, str | Iterable[str]]
Arm = Run | os.PathLike[str] | str | Mapping[str, Any]
# What must be the same for a difference user by user: who is tested, on which rows, among which items.
TESTED = (
    *("clients", "dataset", "columns", "reading", "filters", "market", "partition", "skew", "volunteers"),
    *("split", "fractions", "candidates", "seed"),
)


def run(
    experiment: Experiment | None = None,
    *,
    out: PathLike | None = None,
    compare: bool = True,
    quiet: bool = True,
    checkpoint_every: int | None = None,
    data: pd.DataFrame | None = None,
    columns: Columns = "",
    **fields: Any,
) -> Run:
    """Run an experiment and its baselines; return the run.

    `fields` are those of Experiment, and lie upon `experiment` as options lie upon a --config file: from low to high
    defaults, those under a promise of privacy, the method, the other fields. A nested field is a mapping, a value of
    its type, or goes by its dotted name: `coupling={"rho": 0.1}`, `**{"coupling.rho": 0.1}`. What cannot act is
    refused.

    `data` is a table of interactions, and `columns` says which role a column has; these columns are written into the
    folder of the run, for its owner alone. The other arguments are the options of these names; `quiet=False` shows what
    the command shows.

    Raises UserError before any work, RunFailure if the run or a baseline failed, and KeyboardInterrupt after Ctrl-C, of
    which the first lets the round finish and the second does not. Both say how to go on, where that can be.
    """
    every = checkpoint_every
    if every is not None and (type(every) is not int or every < 0):
        raise UserError(f"checkpoint_every: must be a whole number from 0, found {every!r}")
    if experiment:
        told_whole(experiment, Experiment)
    base, values = given(experiment.model_dump() if experiment else {}), of_table(given(fields), data, columns)
    return carry_out(cli.command_of(base, values, folder(out), quiet, compare, every), data)


def resume(path: PathLike, *, compare: bool | None = None, quiet: bool = True) -> Run:
    """Go on with a run that was stopped or broken off, or (`compare=True`) add the baselines that a whole one lacks.

    Raises as `run` does.
    """
    return carry_out(cli.resumed(Path(path).expanduser(), quiet, compare))


def compare(
    arms: Sequence[Arm] | Mapping[str, Arm],
    *,
    out: PathLike | None = None,
    quiet: bool = True,
    data: pd.DataFrame | None = None,
    columns: Columns = "",
    all_metrics: bool = False,
    **fields: Any,
) -> pd.DataFrame:
    """Return runs on the same data side by side, and how each differs from the first, see `side_by_side`.

    An arm is a run, its path, the name of a method, or a mapping of fields. The latter two are run here, with `fields`
    in common and without baselines of their own (`local` and `pooled` are methods too), each into a folder in `out`. A
    mapping of arms names them. `attrs["runs"]` of the table has the paths. Raises as `run` does, and UserError for runs
    that are not tested on the same rows.
    """
    named = {name: open_arm(arm) for name, arm in (arms if isinstance(arms, Mapping) else by_name(arms)).items()}
    common = of_table(given(fields), data, columns)
    if not all(isinstance(arm, Run) for arm in named.values()):
        common |= common_model(common, named.values())
    new = {name: arm_of(common, given(arm)) for name, arm in named.items() if not isinstance(arm, Run)}
    if common and not new:
        raise UserError(f"{next(iter(common))}: acts only with a method to run, found runs alone")
    cli.check_given(common, new.values())
    if len(named) < 2:
        raise UserError(f"compare: must have at least two, found {len(named)}")
    (first, base), *others = ((n, arm.experiment if isinstance(arm, Run) else new[n]) for n, arm in named.items())
    for (name, other), field in product(others, TESTED):
        if (x := getattr(base, field)) != (y := getattr(other, field)):
            raise UserError(f"compare: {field} must be the same in all, found {x!r} in {first} and {y!r} in {name}")
    for e in new.values() if data is None else ():
        check(e)
    commands = {n: Command(e, folder(out, n), quiet, False, int(e.engine in cli.SAVING)) for n, e in new.items()}
    runs = {n: arm if isinstance(arm, Run) else carry_out(commands[n], data) for n, arm in named.items()}
    table = side_by_side({name: r.read for name, r in runs.items()})
    table = table if all_metrics else table[table["primary"]].reset_index(drop=True)
    table.attrs["runs"] = {name: str(r.path) for name, r in runs.items()}
    return table


def common_model(common: Mapping[str, Given], arms: Iterable[Run | Mapping[str, Any]]) -> dict[str, Given]:
    """Return the model of all arms to run that name none: that by sums, unless one of all arms has or needs another."""
    if "model" in common and common["model"].value != AUTO:
        return {}
    try:
        for arm in arms:
            e = arm.experiment if isinstance(arm, Run) else cli.decide({**common, **given(arm)}).experiment
            if not e.by_sums:
                raise UserError(f"model: must be one for all, found {e.model}")
            if not isinstance(arm, Run) and e.data_dir != Path(FRAME):
                check_sums(e)
    except UserError:
        return given({"model": BY_STEPS})
    return given({"model": BY_SUMS})


def open_arm(arm: Arm) -> Run | Mapping[str, Any]:
    """Return the run that is meant, or the fields of one that is to be run; raises UserError for no run's folder."""
    if isinstance(arm, str) and (arm in METHODS or not Path(arm).is_dir()):
        return {"method": arm}
    return arm if isinstance(arm, Run | Mapping) else load_run(arm)


def by_name(arms: Sequence[Arm]) -> dict[str, Arm]:
    """Return arms by the names that they have: a method's, or that of a run's folder; raises UserError."""
    named: dict[str, Arm] = {}
    for arm in arms:
        if isinstance(arm, Mapping):
            raise UserError(f"compare: fields must have a name, as in {{'wide': {dict(arm)}}}, found them in a list")
        name = (arm.path if isinstance(arm, Run) else Path(arm)).name
        if name in named:
            raise UserError(f"compare: each run must have a name of its own, found {name!r} twice; give a mapping")
        named[name] = arm
    return named


def arm_of(common: Mapping[str, Given], fields: Mapping[str, Given]) -> Experiment:
    """Return the experiment of one arm, in which some of the fields that are common to all need not act."""
    e = cli.resolve({**common, **fields}, strict=False)
    cli.check_given(fields, [e])
    return baseline(e, e.method) if e.method in ("local", "pooled") else e


def carry_out(command: Command, data: pd.DataFrame | None = None) -> Run:
    """Do what a command asks for, on `data` if there are any; return its run. Raises as `run` does."""
    forget()
    console = Console(markup=False, emoji=False)
    tell = logging.getLogger("fedrec").warning

    def write(home: Path) -> dict[str, Path]:
        assert data is not None
        write_frame(data, command.experiment.columns, home / FRAME)
        return {"data_dir": home / FRAME}

    ended = perform(command, console, lambda text: tell("%s", text.strip()), calls, None if data is None else write)
    if not command.quiet:
        close(ended.out, console, quiet=False, said=ended.said)
    if ended.interrupted:
        way = f"; go on with {calls(ended.out, False)}" * resumable(ended.out)
        raise KeyboardInterrupt(f"stopped; what was finished is in {ended.out}{way}")
    if ended.failures:
        raise RunFailure(f"{'; '.join(ended.failures)}; the run itself is whole, and {calls(ended.out, True)} adds it")
    return load_run(ended.out)


def calls(out: Path, compare: bool) -> str:
    """Return the call that goes on with the run in a folder, or gives it the baselines that it lacks."""
    return f"fedrec.resume({str(out)!r}{', compare=True' * compare})"


def given(values: Mapping[str, Any]) -> dict[str, Given]:
    """Return fields of an experiment by dotted path; raises UserError for a name that is none."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        content = plain(name, value)
        if name == "method" and isinstance(content, Mapping):  # its other fields lie below all that is given
            flat = flatten(content) | flat
        elif content != {}:
            flat |= flatten({name: content})
    return {path: Given(field.value, path) for path, field in cli.fields(flat, "run").items()}


def plain(path: str, value: Any) -> Any:
    """Return the value of a field as a record would have it: of a nested one what was set, of a component its text.

    Raises UserError for a nested value of another class than the field's, of which a record would say nothing.
    """
    if path in SEAMS:
        return [text_of(part) for part in value] if isinstance(value, list | tuple) else text_of(value)
    if isinstance(value, BaseModel):
        kind = Method if path == "method" else getattr(Experiment.model_fields.get(path), "annotation", None)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            told_whole(value, kind, path)
        return plain(path, value.model_dump(exclude_unset=True))
    if isinstance(value, Mapping):
        return {name: plain(f"{path}.{name}", part) for name, part in value.items()}
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def of_table(values: dict[str, Given], data: pd.DataFrame | None, columns: Columns) -> dict[str, Given]:
    """Return the fields with the columns of a table, and those that say that `data` are one."""
    text = columns if isinstance(columns, str) else columns_text(columns)
    values = values | given({"columns": text} if text else {})
    if data is None:
        return values
    for name in sorted({"dataset", "data_dir"} & values.keys()):
        raise UserError(f"{name}: must not be given beside data, found {values[name].value}")
    return values | given({"dataset": "table", "data_dir": Path(FRAME)})


def folder(out: PathLike | None, *names: str) -> Path | None:
    """Return the folder that is asked for, if one is."""
    return None if out is None else Path(out, *names).expanduser()
