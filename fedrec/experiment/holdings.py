"""What an experiment's clients hold, and what their models read of it."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedrec.components import per_client
from fedrec.data import (
    ClientData,
    Clients,
    Dataset,
    Filters,
    Listed,
    Market,
    Reading,
    content_vectors,
    federation,
    latest,
    load,
    pool,
    public_vectors,
)
from fedrec.data.history import sequences
from fedrec.data.release_years import year_groups
from fedrec.data.split import Split
from fedrec.data.store import Changed, Federation
from fedrec.data.tokens import item_tokens
from fedrec.data.types import Floats, Interactions, Ints, Keys
from fedrec.errors import UserError, named, one_line
from fedrec.experiment.config import Experiment
from fedrec.models import (
    Adapted,
    FactorRecommender,
    NoisyRecommender,
    ProjectedRecommender,
    Recommender,
    SummedRecommender,
)
from fedrec.models.projected import Statistics
from fedrec.models.quadratic import Matrix, statistics
from fedrec.models.released import Exact
from fedrec.models.subspace import begin
from fedrec.params import Params
from fedrec.sharing import OF_USERS, is_sum
from fedrec.subspace import leading
from fedrec.tasks import Task

PAIR = 2  # clients of whom each can subtract its own from a total


class Source(NamedTuple):
    """The settings that data are read by."""

    name: str
    data_dir: Path | None
    columns: str
    platforms: int
    market: Market
    seed: int
    reading: Reading
    filters: Filters


class Division(NamedTuple):
    """The settings that divide the data of a source among clients: what others say changes nobody's data."""

    source: Source
    clients: int | None
    partition: str
    skew: float | None
    split: Split
    fractions: tuple[float, float]
    volunteers: int
    without: tuple[str, ...]
    forgotten: Path | None


def source_of(experiment: Experiment) -> Source:
    """Return the source of an experiment; the synthetic market has a platform for each client, or one to be divided."""
    e = experiment
    platforms = (e.clients or 5) if e.partition in ("auto", "platform") else 1
    return Source(e.dataset, e.data_dir, e.columns, platforms, e.market, e.seed, e.reading, e.filters)


@functools.lru_cache(maxsize=2)
def read_dataset(source: Source) -> Dataset:
    """Return the dataset of a source, kept for the process: every client of a worker reads the same one."""
    return load(**source._asdict())


def dataset(experiment: Experiment) -> Dataset:
    """Return the experiment's dataset."""
    return read_dataset(source_of(experiment))


def clients_data(experiment: Experiment) -> Clients:
    """Return what every client holds, kept for the process; a pooled experiment has the one client "pooled"."""
    e = experiment
    how = (e.clients, e.partition, e.skew, e.split, e.fractions, e.volunteers, e.without, e.forgotten)
    return divided(Division(source_of(e), *how), e.pool)


@functools.lru_cache(maxsize=2)
def divided(division: Division, together: bool) -> Clients:
    """Return the clients among whom data are divided, or all `together` as one; raises UserError if there are none."""
    if together:
        return Listed((pool(divided(division, False)),))
    d = division
    data = read_dataset(d.source)
    parts = federation(
        data,
        clients=d.clients,
        partition=d.partition,
        skew=d.skew,
        split=d.split,
        fractions=d.fractions,
        seed=d.source.seed,
        volunteers=d.volunteers,
    )
    if not set(parts.names) - set(d.without):
        raise UserError(f"without: must leave a client, found all {len(d.without)}")
    lost = read_users(d.forgotten) if d.forgotten else {}
    return left(parts, d.without, lost, data.users["key"].to_numpy(object)) if d.without or lost else parts


def left(parts: Clients, without: Sequence[str], lost: Mapping[str, frozenset[str]], keys: Keys) -> Clients:
    """Return clients without some, and without the users that are `lost`, the keys of these by client."""
    if isinstance(parts, Changed):
        rest = left(parts.clients, without, lost, keys)
        return Changed(rest, lambda data: forget(parts.changed(data), lost, keys))
    assert isinstance(parts, Federation)
    users = np.zeros(len(parts.users), np.bool_)
    for number, name in enumerate(parts.names):
        if name in lost:
            here = slice(*parts.user_edges[number : number + 2])
            users[here] = [key in lost[name] for key in keys[parts.users[here]]]
    return parts.without(np.array([name in without for name in parts.names]), users)


def forget(data: ClientData, lost: Mapping[str, frozenset[str]], keys: Keys) -> ClientData:
    """Return a client without its users that are `lost`."""
    gone = lost.get(data.name, frozenset())
    rows = np.flatnonzero([key in gone for key in keys[data.users]])
    return data.without(rows) if len(rows) else data


@functools.lru_cache(maxsize=2)
def read_users(path: Path) -> dict[str, frozenset[str]]:
    """Return the keys of users by client of a CSV file with the columns client and user; raises UserError."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return {str(name): frozenset(rows) for name, rows in table.groupby("client")["user"]}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"forgotten: {path} must be a CSV file of client,user, found {one_line(error)}") from None


@functools.lru_cache(maxsize=2)
def keys(experiment: Experiment) -> tuple[Keys, Keys]:
    """Return the keys of all users and of all items, by global id, kept for the process."""
    data = dataset(experiment)
    return data.users["key"].to_numpy(object), data.items["key"].to_numpy(object)


def initial(
    experiment: Experiment, model: Recommender, users: Ints, items: Ints, offsets: Mapping[str, float | Floats]
) -> Params:
    """Return the initial parameters of a model for users and items by global id, whose rows start by their keys."""
    people, catalogue = keys(experiment)
    return model.init(experiment.seed, people[users], catalogue[items], offsets)


def task_lists(experiment: Experiment, parts: Sequence[ClientData]) -> list[tuple[Task, ...]]:
    """Return the tasks of clients, members of the pooled one, where they differ, in the order of the clients."""
    parts, named = parts[0].members or parts, per_client(experiment.task)
    if named.keys() == {"*"}:
        return [experiment.tasks(parts[0].name)]
    names = parts.names if isinstance(parts, Clients) else [data.name for data in parts]
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(name if name in named else "*", name)
    return [experiment.tasks(name) for name in first.values()]


def tasks_of_all(experiment: Experiment, parts: Sequence[ClientData]) -> tuple[Task, ...]:
    """Return every task that one of some clients has, each once."""
    tasks: dict[str, Task] = {}
    for several in task_lists(experiment, parts):
        for task in several:
            tasks.setdefault(task.name, task)
    return tuple(tasks.values())


def tasks_for(experiment: Experiment, data: ClientData) -> tuple[Task, ...]:
    """Return the tasks of a client; a pooled one has every task of its members, each once."""
    return tasks_of_all(experiment, [data])


def unlike(experiment: Experiment, parts: Clients) -> Iterator[ClientData]:
    """Yield the first of all clients that only their users and rows tell apart, not their settings nor their items."""
    e = experiment
    if not parts.alike or e.pool or e.coupling.kind == "linear":
        yield from parts
        return
    named = {client for text in (e.task, e.model, str(e.dim)) for client in per_client(text)}
    seen = set[str]()
    for number, name in enumerate(parts.names):
        key = name if name in named else "*"
        if key not in seen:
            seen.add(key)
            yield parts[number]


def reader(experiment: Experiment, data: ClientData, split: Literal["train", "validation", "test"]) -> Recommender:
    """Return the model of a client with what it reads of the client's data when the rows of a split are asked.

    The history of a training row is its own (`fedrec.training.recipe`), that of another row is of `met`.
    """
    model, vectors = experiment.recommender(data.name), item_content(experiment)[0]
    if isinstance(model, SummedRecommender):
        past = sequences(data, met(experiment, data, split), experiment.seed)
        model = replace(model, catalogue_size=len(dataset(experiment).items), places=data.items, past=past)
        model = replace(model, own=functools.partial(own_sums, experiment, data))
        if isinstance(model, FactorRecommender):
            return replace(model, learnt=sequences(data, [data.train], experiment.seed))
        if isinstance(model, NoisyRecommender):
            learnt = sequences(data, [data.train], experiment.seed)
            kept = functools.partial(exact_sums, experiment, data)
            return replace(model, groups=item_classes(experiment), learnt=learnt, exact=kept)
        if isinstance(model, ProjectedRecommender):
            first = functools.partial(first_basis, experiment, model, data.items)
            model = replace(model, counts=functools.partial(own_statistics, experiment, data), first=first)
            if experiment.sums.basis:
                model = replace(model, columns=public_basis(experiment)[0].shape[1])
        return model
    about = {task.name: task.usual(data.attributes) for task in tasks_for(experiment, data) if task.attribute}
    classes = {task.name: task.classes for task in tasks_for(experiment, data) if task.classes}
    if about or classes:
        model = replace(model, attributes=about, classes=classes)
    if vectors is not None:
        # Most clients carry the whole catalogue: they read one tensor.
        content = vectors if len(data.items) == len(vectors) else vectors[torch.from_numpy(data.items)]
        tokens = item_tokens(dataset(experiment)).of(data.items) if experiment.lora.active else None
        encoder = Adapted(experiment.lora, tokens) if tokens else None
        model = replace(model, side=replace(model.side, content=content, encoder=encoder))
    if not model.sequence.active or split == "train":
        return model
    last = latest(data, met(experiment, data, split), model.sequence.history, experiment.seed)
    return replace(model, side=replace(model.side, history=torch.from_numpy(last.take(np.arange(len(data.users))))))


def met(experiment: Experiment, data: ClientData, split: Literal["train", "validation", "test"]) -> list[Interactions]:
    """Return the rows that histories are made of when the rows of a split are asked: none of that split.

    They are training rows, and what is known of new users; at the test also validation rows, unless `history` is train.
    """
    if split == "train":
        return [data.train]
    return data.known("validation" if experiment.history == "train" else split)


def own_sums(experiment: Experiment, data: ClientData) -> Params:
    """Return the sums over the users of a client, of its training rows."""
    model = reader(experiment, data, "train")
    assert isinstance(model, SummedRecommender)
    if isinstance(model, ProjectedRecommender):
        return model.sums(model.past)
    return model.dense(*whole_statistics(experiment, data))


@functools.lru_cache(maxsize=8)
def whole_statistics(experiment: Experiment, data: ClientData) -> Statistics:
    """Return G and C over the users of a client and all items, of its training rows, kept for a few clients."""
    model = reader(experiment, data, "train")
    assert isinstance(model, SummedRecommender)
    return statistics(model.kind, model.quadratic, model.placed(model.past), model.catalogue_size)


@functools.lru_cache(maxsize=8)
def exact_sums(experiment: Experiment, data: ClientData) -> Exact | None:
    """Return a client's own exact sums of all that is released in its order, kept for a few clients; None of a gram."""
    model = reader(experiment, data, "train")
    assert isinstance(model, NoisyRecommender)
    return Exact.of(model.placed(model.learnt), model.groups, model.catalogue_size) if model.ordered else None


def kept_shapes(experiment: Experiment, data: ClientData, tasks: Sequence[str]) -> Params:
    """Return the names, shapes and dtypes of what a client recommends with: of sums what it was sent, if anything."""
    model = reader(experiment, data, "train")
    like = model.shapes(len(data.users), len(data.items), tasks)
    if isinstance(model, FactorRecommender):
        return {name: value for name, value in like.items() if name not in OF_USERS}
    if not isinstance(model, SummedRecommender) or experiment.pool:
        return like
    heads = {name: value for name, value in like.items() if not is_sum(name)}
    return heads | model.weights_like if weights_sent(experiment) else like if experiment.share else heads


def weights_sent(experiment: Experiment) -> bool:
    """Return whether clients that learn by sums are sent weights, and not the total: of two that is the other's."""
    e = experiment
    alone = e.adds_up and not e.sums.active and bool(e.share) and not e.reveal and len(clients_data(e)) == PAIR
    return e.weighs or alone


@functools.lru_cache(maxsize=2)
def item_classes(experiment: Experiment) -> Ints:
    """Return the public classes of the whole catalogue: groups of alike release years, where titles have them.

    One class where pairs have no order, of whose sums they are no part.
    """
    titles = [str(title) for title in dataset(experiment).items["title"]]
    return year_groups(titles) if ordered(experiment) else np.zeros(len(titles), np.int64)


def ordered(experiment: Experiment) -> bool:
    """Return whether clients that learn by sums know the order of histories."""
    return "ease" not in per_client(experiment.model).values()


@functools.lru_cache(maxsize=8)
def own_statistics(experiment: Experiment, data: ClientData) -> Statistics:
    """Return G and C over the users and items of a client, of its training rows, kept for a few clients."""
    model = reader(experiment, data, "train")
    assert isinstance(model, ProjectedRecommender)
    return model.statistics(model.past)


def first_basis(experiment: Experiment, model: ProjectedRecommender, items: Ints) -> Matrix:
    """Return the rows [items, k] of the subspace before the first pass, or of a public one."""
    if experiment.sums.basis:
        return public_basis(experiment)[0][items]
    return begin(model.width, experiment.seed, [str(key) for key in keys(experiment)[1][items]])


@functools.lru_cache(maxsize=2)
def public_basis(experiment: Experiment) -> tuple[Matrix, tuple[str, ...]]:
    """Return a public subspace [all items, k] of what clients carry, kept for the process, and notes.

    It is orthonormal, of the k leading directions of the items' vectors, and zero where nobody carries an item. Raises
    UserError for a file that does not fit, and for vectors that tell nothing.
    """
    e = experiment
    with named("sums.basis"):
        vectors, notes = public_vectors(dataset(e), e.sums.basis)
        carried = np.zeros(len(vectors), np.bool_)
        carried[clients_data(e).catalogue()] = True
        basis = leading(vectors * carried[:, None], e.sums.k)
        if not basis.size:
            raise UserError(f"must tell items apart, found nothing of {int(carried.sum())} items in {e.sums.basis}")
    return basis, notes


@functools.lru_cache(maxsize=2)
def item_content(experiment: Experiment) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return the vectors [items, d] of the whole catalogue, kept for the process, and notes; None without content."""
    if not experiment.content.active:
        return None, ()
    vectors, notes = content_vectors(dataset(experiment), experiment.content)
    return torch.from_numpy(vectors), notes
