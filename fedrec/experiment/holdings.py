"""What an experiment's clients hold, and what their models read of it."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedrec.components import per_client
from fedrec.data import (
    ClientData,
    Dataset,
    Filters,
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


@functools.lru_cache(maxsize=2)
def read_dataset(
    name: str,
    data_dir: Path | None,
    columns: str,
    platforms: int,
    market: Market,
    seed: int,
    reading: Reading,
    filters: Filters,
) -> Dataset:
    """Return a dataset, kept for the process: every client of a worker reads the same one."""
    return load(
        name,
        data_dir=data_dir,
        columns=columns,
        platforms=platforms,
        market=market,
        seed=seed,
        reading=reading,
        filters=filters,
    )


def dataset(experiment: Experiment) -> Dataset:
    """Return the experiment's dataset; the synthetic market has a platform for each client, or one to be divided."""
    e = experiment
    platforms = (e.clients or 5) if e.partition in ("auto", "platform") else 1
    return read_dataset(e.dataset, e.data_dir, e.columns, platforms, e.market, e.seed, e.reading, e.filters)


@functools.lru_cache(maxsize=2)
def clients_data(experiment: Experiment) -> tuple[ClientData, ...]:
    """Return what every client holds, kept for the process; a pooled experiment has the one client "pooled"."""
    e = experiment
    parts = federation(
        dataset(e),
        clients=e.clients,
        partition=e.partition,
        skew=e.skew,
        split=e.split,
        fractions=e.fractions,
        seed=e.seed,
        volunteers=e.volunteers,
    )
    parts = tuple(left(e, part) for part in parts if part.name not in e.without)
    if not parts:
        raise UserError(f"without: must leave a client, found all {len(e.without)}")
    return (pool(parts),) if e.pool else parts


def left(experiment: Experiment, data: ClientData) -> ClientData:
    """Return what a client holds without the users that are forgotten."""
    if experiment.forgotten is None:
        return data
    gone = read_users(experiment.forgotten).get(data.name, frozenset())
    key = dataset(experiment).users["key"].to_numpy(object)[data.users]
    rows = np.flatnonzero([one in gone for one in key])
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


def tasks_for(experiment: Experiment, data: ClientData) -> tuple[Task, ...]:
    """Return the tasks of a client; a pooled one has every task of its members, each once."""
    tasks: dict[str, Task] = {}
    for part in data.members or (data,):
        for task in experiment.tasks(part.name):
            tasks.setdefault(task.name, task)
    return tuple(tasks.values())


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
        for data in clients_data(e):
            carried[data.items] = True
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
