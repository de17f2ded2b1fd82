"""A client's recommendations: `python -m clients.recommend RUN_DIR --client films --user 17 -k 10`."""

import difflib
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fedrec.data import ClientData, Dataset
from fedrec.data.types import Floats, Ints
from fedrec.errors import Parser, UserError, choose, one_line
from fedrec.evaluation.evaluate import mask_of, members
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.config import Experiment
from fedrec.experiment.earlier import experiment_of as experiment_of
from fedrec.experiment.folding import fold_in
from fedrec.experiment.holdings import clients_data, dataset, kept_shapes, reader, tasks_for
from fedrec.experiment.kept import OWN, load_kept
from fedrec.experiment.origins import data_digest
from fedrec.experiment.records import load_params, table_of
from fedrec.files import named_values
from fedrec.keyed import TABLES, carrier, gather
from fedrec.params import Params
from fedrec.sharing import ContractError, Sharing, admit
from fedrec.tasks import Task

NEAR = 3  # keys that are offered in the place of one that the client does not have
LOOKED = 20_000  # keys that are compared with it
ABOUT = "Print what a client of a finished run recommends to one of its users, by the client's own model."


@dataclass(frozen=True)
class Recommendation:
    """A ranked list: global item ids [k] and their scores [k], best first; `task` is None for the cold answer.

    The scores are the task's (a logit, or a rating); the cold answer's are numbers of training positives. `near` are
    keys of the client's users that one may have meant who gets the cold answer.
    """

    items: Ints
    scores: Floats
    task: Task | None
    near: tuple[str, ...] = ()


def recommend(home: Path, client: str, user: str, k: int) -> Recommendation:
    """Return at most `k` items that a client of a run recommends to the user of a key, none of those it trained on.

    The user's positives of training and validation are left out. A user that the client does not have gets the cold
    answer: the items by their positives in the client's own training data, ties by item. Raises UserError.
    """
    if k < 1:
        raise UserError(f"k: must be at least 1, found {k}")
    experiment = experiment_of(home)
    data, params = held_by(home, experiment, client)
    row = local_row(dataset(experiment), data, user)
    if row is None:
        count = np.bincount(data.train.item[data.train.positive], minlength=len(data.items)).astype(np.float32)
        keys = dataset(experiment).users["key"].to_numpy()[data.users]
        return replace(top(data, count, k, None), near=nearest(user, keys[:LOOKED].tolist()))
    task = ranking(experiment.tasks(data.name), client)
    users = table_of([row])
    params = fold_in(experiment, params, data, "test", users)
    scores: Floats = ModelScorer(reader(experiment, data, "test"), params).score_all(task.name, users)[0].numpy()
    known = mask_of(data.known("test"), users, len(data.items))[0]
    return top(data, np.where(known, -np.inf, scores), k, task)


def held_by(home: Path, experiment: Experiment, client: str) -> tuple[ClientData, Params]:
    """Return the data and the parameters of a client of a run, or of a member of the pooled one; raises UserError."""
    holders = {data.name: part for part in clients_data(experiment) for data in (part, *part.members)}
    holder = holders[choose("client", client, holders)]
    params = params_of(home, experiment, holder)
    return next((pair for pair in members(holder, params) if pair[0].name == client), (holder, params))


def ranking(tasks: Sequence[Task], client: str) -> Task:
    """Return the task to recommend by: rank, else the first that scores items for a user; raises UserError."""
    able = [task for task in tasks if not (task.attribute or task.classes)]
    if not able:
        names = ", ".join(task.name for task in tasks)
        raise UserError(f"task: {client} must have one that orders items for a user, found {names}")
    return next((task for task in able if task.kind == "rank"), able[0])


def top(data: ClientData, scores: Floats, k: int, task: Task | None) -> Recommendation:
    """Return the `k` best items of a client's catalogue by score [items]; ties by item, -inf left out."""
    order = np.argsort(-scores, kind="stable")
    best = order[np.isfinite(scores[order])][:k]
    return Recommendation(data.items[best], scores[best], task)


def local_row(data: Dataset, client: ClientData, user: str) -> int | None:
    """Return the client's row of the user of a key, or None if it has no such user."""
    (rows,) = np.nonzero(data.users["key"].to_numpy()[client.users] == user)
    return int(rows[0]) if len(rows) else None


def nearest(key: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Return the keys that differ from one in blanks, leading zeros, case or composition alone, else the most alike."""

    def plain(text: str) -> str:
        return unicodedata.normalize("NFKC", text).casefold().strip().lstrip("0")

    wanted = plain(key)
    if same := [one for one in keys if plain(one) == wanted]:
        return tuple(same[:NEAR])
    alike = {plain(one): one for one in keys if abs(len(one) - len(key)) <= 1}
    return tuple(alike[one] for one in difflib.get_close_matches(wanted[:100], alike, NEAR, 0.75))


def params_of(home: Path, experiment: Experiment, data: ClientData) -> Params:
    """Return a client's parameters: its rows of the run's shared tables and what it keeps to itself.

    Under a personal coupling or with a personal model it has a copy of its own of what is shared. Raises UserError if
    files are missing or do not fit the data, which may have changed since the run.
    """
    known = named_values(home / "experiment.json", "run").get("data", {}).get("sha256", "")
    if known and known != data_digest(experiment):
        raise UserError(f"run: {home} must have the data that it was trained on, found others in {experiment.data_dir}")
    shared = load_params(home / "model" / "shared.safetensors")
    private = load_kept(home, data.name)
    server_rows = {space: table_of(ids) for space, ids in named_values(home / "model" / "rows.json", "run").items()}
    rows = {"item": data.items, "user": data.users}
    personal = experiment.personal or (data.name in experiment.arrivals and not experiment.agreement.active)
    for space in {TABLES[name] for name in experiment.sharing().split(shared)[0] if name in TABLES and not personal}:
        if not np.isin(rows[space], server_rows.get(space, table_of([]))).all():
            raise UserError(f"run: {home} must have a row for every {space} of {data.name}: has the data changed?")
    names = [task.name for task in tasks_for(experiment, data)]
    like = kept_shapes(experiment, data, names)
    tables = {name: value for name, value in experiment.sharing().split(like)[0].items() if name in shared}
    try:
        if personal:
            part = load_kept(home, data.name, OWN)
        else:
            part = gather(shared, carrier(data.name, tables, rows, server_rows, 1.0))
        return admit(Sharing.join(part, private), like)
    except ContractError as error:
        raise UserError(f"run: {home} does not fit the data: {error}") from None


def show(console: Console, client: str, user: str, answer: Recommendation, data: Dataset) -> None:
    """Print a ranked list."""
    if answer.task is None:
        near = f" (did you mean {' or '.join(map(repr, answer.near))}?)" if answer.near else ""
        console.print(f"cold answer: {one_line(client)} has no user {user!r}{near};", soft_wrap=True)
        console.print("what is most popular in its own training data:", soft_wrap=True)
    else:
        console.print(
            f"{one_line(client)} recommends to user {as_text(user)}, by the task {answer.task.name}:", soft_wrap=True
        )
    items = data.items.iloc[answer.items]
    columns = {"rank": [str(place) for place in range(1, len(items) + 1)], "item": list(map(as_text, items["key"]))}
    if (items["title"] != items["key"]).any():
        columns["title"] = list(map(one_line, items["title"]))
    if (items["categories"] != "").any():
        columns["categories"] = [one_line(text).replace("|", ", ") for text in items["categories"]]
    form = ".4f" if answer.task else ".0f"
    columns["score" if answer.task else "positives"] = [format(score, form) for score in answer.scores]
    table = Table()
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name not in ("item", "title", "categories"))
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    console.print(table)


def as_text(key: str) -> str:
    """Return a key as it is, or quoted where a line would hide what it is made of."""
    return key if one_line(key) == key else repr(key)


def main(argv: Sequence[str] | None = None) -> int:
    """Print what the command line asks for; return 0, or 2 for a wrong input."""
    parser = Parser(prog="python -m clients.recommend", description=ABOUT, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of the run")
    parser.add_argument("--client", required=True, help="name of the client; of a pooled run also that of a member")
    about = (
        "the user's key as the data have it; an unknown one gets the cold answer (--user=KEY where it begins with -)"
    )
    parser.add_argument("--user", required=True, help=about)
    parser.add_argument("-k", type=int, default=10, help="number of items [10]")
    try:
        options = parser.parse_args(argv)
        answer = recommend(options.run, options.client, options.user, options.k)
        data = dataset(experiment_of(options.run))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    show(Console(markup=False, emoji=False, highlight=False), options.client, options.user, answer, data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
