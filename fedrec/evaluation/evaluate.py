"""Evaluation of one client: full ranking or sampled candidates, and the pointwise metrics of its other tasks."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from types import MappingProxyType
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrec.data.types import Bools, ClientData, Floats, Interactions, Ints
from fedrec.evaluation.asked import Asked
from fedrec.evaluation.counts import Counts
from fedrec.evaluation.scorers import Scorer
from fedrec.keyed import select
from fedrec.metrics import (
    NEGATIVES,
    Values,
    auc,
    average_precision,
    log_loss,
    macro_auc,
    metrics_of,
    placements,
    places,
    rmse,
)
from fedrec.params import Params
from fedrec.tasks import Task

T = TypeVar("T")
Split = Literal["validation", "test"]
Ranked = tuple[Ints, dict[str, Values]]
Scores = Callable[[Ints, Ints, int], Tensor]  # of users of the clients that own them, for catalogues of at most a width
NONE: Mapping[str, Counts] = MappingProxyType({})
CHUNK = 512  # users scored at a time, to bound memory
SCORES = 2**20  # scores at a time: memory for more is asked of the system again each time, which takes as long as they


@dataclass(frozen=True)
class PerUser:
    """The values [n] of one metric for the users [n] (global ids) that have held-out data.

    The client's metric is their mean by `weights` [n], of rmse the root of the mean of their squares: one for each user
    in ranking, else the user's number of rows. An AUC is the mean of `auc`, the placements of each user's positives,
    and of `NEGATIVES`, see `placements`. Of a task about items, `items` is set, and `users` are the held-out items.
    """

    client: str
    task: str
    metric: str
    users: Ints
    values: Values
    items: bool = False
    weights: Ints | None = None  # None: 1 each


@dataclass(frozen=True)
class Evaluation:
    """The means by (client, task, metric), and the per-user values behind them, which never leave the client."""

    metrics: dict[tuple[str, str, str], float]
    per_user: tuple[PerUser, ...]


def evaluate(
    scorer: Scorer,
    data: ClientData,
    tasks: Sequence[Task],
    split: Split,
    *,
    metrics: Sequence[str],
    candidates: Literal["full"] | int,
    seed: int,
) -> Evaluation:
    """Return the metrics of a client's held-out `split`.

    rank: the held-out positives are ranked among the catalogue without the user's other known positives (training; for
    the test also validation; of a new user the support), or among `candidates` items drawn from those that the user has
    never met; where items are new (`ClientData.new`), both among those that are new at this split. rating: rmse.
    binary: auc and logloss over all rows; behaviour: accuracy and logloss, over all rows too. One of the user's
    own: its loss and its metrics, means over its rows. Per-user values are what
    these are the means of, see `PerUser`. Tasks about items: `about_items` over the items of the split that the client
    carries.
    """
    alone = partial(evaluate_all, lambda _: scorer, [data], [tasks], split)
    return alone(metrics=metrics, candidates=candidates, seed=seed)[0]


def evaluate_all(
    scorer: Callable[[int], Scorer],
    datas: Sequence[ClientData],
    tasks: Sequence[Sequence[Task]],
    split: Split,
    *,
    metrics: Sequence[str],
    candidates: Literal["full"] | int,
    seed: int,
    counts: Mapping[str, Counts] = NONE,
) -> list[Evaluation]:
    """Return what `evaluate` returns of several clients, each with a scorer, by its position, and tasks of its own.

    `counts` are those of the tasks by name whose scores are counts: whole catalogues are ranked by them without scores.
    """
    scorer = cache(scorer)
    having: dict[str, list[int]] = {}
    for position, own in enumerate(tasks):
        for task in own:
            if task.kind == "rank":
                having.setdefault(task.name, []).append(position)
    ranks: dict[tuple[str, int], Ranked] = {}
    for name, positions in having.items():
        asked, chosen = Asked.of(datas, split), np.array(positions, np.int64)
        if name in counts and candidates == "full" and not any(data.new is not None for data in datas):
            at = np.flatnonzero(np.isin(asked.owner, chosen))
            found = by_client(asked, at, counts[name].ranks(asked, at), metrics, chosen)
        else:
            scores = score_each(scorer, asked.first, name)
            found = rank_many(asked, scores, metrics, candidates, seed, chosen)
        ranks |= {(name, position): one for position, one in zip(positions, found, strict=True)}

    def evaluation(position: int) -> Evaluation:
        return assemble(
            lambda: scorer(position), datas[position], tasks[position], split, lambda task: ranks[task, position]
        )

    return [evaluation(position) for position in range(len(datas))]


def score_each(scorer: Callable[[int], Scorer], first: Ints, task: str) -> Scores:
    """Return the scores that the scorer of each client gives, see `rank_many`; `first` is each client's first user."""

    def scores(users: Ints, owner: Ints, width: int) -> Tensor:
        edge = np.flatnonzero(np.diff(owner, prepend=-1))
        parts = [
            scorer(position).score_all(task, users[a:b] - first[position])
            for position, a, b in zip(owner[edge].tolist(), edge, [*edge[1:], len(owner)], strict=True)
        ]
        if len(parts) == 1:
            return parts[0].clone()
        if any(part.shape[1] < width for part in parts):
            parts = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
        return torch.cat(parts)

    return scores


def assemble(
    scorer: Callable[[], Scorer],
    data: ClientData,
    tasks: Sequence[Task],
    split: Split,
    rank: Callable[[str], Ranked],
) -> Evaluation:
    """Return `evaluate`'s result, given the users of every rank task and their metrics, see `rank_many`.

    A `scorer` is asked for where there is more than ranks.
    """
    held, about, asked_once = held_out(data, split), data.attributes, cache(scorer)
    metrics: dict[tuple[str, str, str], float] = {}
    per_user: list[PerUser] = []
    for task in tasks:
        entry = partial(PerUser, data.name, task.name)
        if task.kind == "rank":
            users, values = rank(task.name)
            whole = means(values)
            per_user += [entry(name, data.users[users], value) for name, value in values.items()]
        elif task.attribute:
            asked = about.validation if split == "validation" else about.test
            item = np.flatnonzero(asked & about.known(task.name))
            said, target = asked_once().attribute(task.name, item), about.values[task.name][item]
            whole, values = about_items(task, said, target, about.deviation)
            per_user += [entry(name, data.items[item], value, items=True) for name, value in values.items()]
        else:
            rows = held.take(task.rows(held))
            score = asked_once().score(task.name, rows.user, rows.item)
            whole, each = pointwise(task, score, task.target(rows), rows.user)
            per_user += [entry(n, data.users[part.users], part.values, weights=part.rows) for n, part in each.items()]
        metrics |= {(data.name, task.name, name): value for name, value in whole.items()}
    return Evaluation(metrics, tuple(per_user))


@dataclass(frozen=True)
class ByUser:
    """Means over each user's rows: local users [n], ascending, their means [n], and their numbers of rows [n]."""

    users: Ints
    values: Values
    rows: Ints

    @staticmethod
    def of(user: Ints, value: Values) -> "ByUser":
        """Take the means of the `value` [rows] of rows of `user` [rows]."""
        users, index, rows = np.unique(user, return_inverse=True, return_counts=True)
        return ByUser(users, np.bincount(index, value) / rows, rows)


def pointwise(task: Task, score: Floats, target: Floats, user: Ints) -> tuple[dict[str, float], dict[str, ByUser]]:
    """Return a task's metrics over all rows, and what each user adds to them, see `PerUser`."""
    if task.kind == "rating":
        squares = ByUser.of(user, np.square(score.astype(np.float64) - target))
        return {"rmse": rmse(score, target)}, {"rmse": replace(squares, values=np.sqrt(squares.values))}
    if task.classes or task.part:
        values = task.measured(score, target) if task.part else of_classes(score, target)
        return means(values), {name: ByUser.of(user, value) for name, value in values.items()}
    label = target > 0.5
    nats, place = log_loss(score, label), placements(score, label)
    whole = {"auc": auc(score, label), **means({"logloss": nats})}
    kept = ~np.isnan(place)
    sides = {"auc": label & kept, NEGATIVES: ~label & kept}
    return whole, {
        **{name: ByUser.of(user[side], place[side]) for name, side in sides.items()},
        "logloss": ByUser.of(user, nats),
    }


def about_items(
    task: Task, score: Floats, target: Floats, deviation: float
) -> tuple[dict[str, float], dict[str, Values]]:
    """Return a task's metrics over items, and per item, from what is said of them and what they are, [n, C] each.

    multi-label: `macro_auc`, `average_precision` over all (item, name) pairs (micro), logloss as the mean over them.
    multi-class: accuracy of the most probable class, logloss. value: mae and rmse in units of the logarithm of the
    price, of which `deviation` is the standard deviation: 0.1 is an error of about 10 %.
    """
    s, y = score.astype(np.float64), target.astype(np.float64)
    if task.kind == "multi-label":
        nats = (np.logaddexp(0, s) - y * s).mean(1)
        whole = {"auc": macro_auc(s, y > 0.5), "ap": average_precision(s, y > 0.5)}
        each = {"logloss": nats}
    elif task.kind == "multi-class":
        whole, each = {}, of_classes(s, y)
    else:
        error = deviation * np.abs(s - y)[:, 0]
        return {"rmse": rmse(error, np.zeros_like(error)), **means({"mae": error})}, {"rmse": error, "mae": error}
    return {**whole, **means(each)}, each


def means(values: Mapping[str, Values]) -> dict[str, float]:
    """Return the mean of each metric's values; NaN without any."""
    # As `mean` has it, which takes twice as long, and is asked of every one of many clients.
    return {n: float(np.add.reduce(value) / len(value)) if len(value) else math.nan for n, value in values.items()}


def of_classes(score: NDArray[np.floating], target: NDArray[np.floating]) -> dict[str, Values]:
    """Return whether the most probable class is the right one, and its log loss [n], from logits and 0 or 1 [n, C]."""
    s, y = score.astype(np.float64), target.astype(np.float64)
    nats = np.logaddexp.reduce(s, axis=1) - (y * s).sum(1)
    return {"accuracy": (s.argmax(1) == y.argmax(1)).astype(np.float64), "logloss": nats}


def rank_many(
    asked: Asked,
    scores: Scores,
    metrics: Sequence[str],
    candidates: Literal["full"] | int,
    seed: int,
    chosen: Ints,
) -> list[Ranked]:
    """Return the local users with a held-out positive, ascending, and each one's ranking metrics, of some clients.

    They are the `chosen` (ascending positions) of those that are `asked`. `scores(users, owner, width)` are the scores
    [B, width] of the catalogues for users [B] of the clients `owner`, in memory of their own, which is changed; behind
    a catalogue's end a score is anything.
    """
    at = np.flatnonzero(np.isin(asked.owner, chosen))
    keys = asked.keys(seed) if candidates != "full" else None
    found = [np.empty(0, np.int64)]
    chunk = max(1, min(CHUNK, SCORES // max(int(asked.items.max()), 1)))
    for start in range(0, len(at), chunk):
        part = at[start : start + chunk]
        who = asked.owner[part]
        width = int(asked.items[who].max())
        score = scores(asked.users[part], who, width)
        score = score if score.is_floating_point() else score.double()  # counts have no infinity
        row, item = asked.relevant.take(part)
        known, out = asked.known.take(part), asked.closed(who, width)
        if keys is not None and candidates != "full":
            met, drawn = np.zeros((len(part), width), np.bool_), keys(who, width)
            met[asked.met.take(part)] = True
            out = ~smallest(drawn, met if out is None else met | out, candidates)
        elif out is not None:
            out[known] = True
        if out is None:
            left = width - np.bincount(known[0], minlength=len(part))
            score.index_put_([torch.from_numpy(index) for index in known], score.new_tensor(-torch.inf))
        else:
            out[row, item] = False
            left = (~out).sum(1)
            score.masked_fill_(torch.from_numpy(out), -torch.inf)
        found.append(places(score, row, item, left))
    return by_client(asked, at, np.concatenate(found), metrics, chosen)


def by_client(asked: Asked, at: Ints, ranks: Ints, metrics: Sequence[str], chosen: Ints) -> list[Ranked]:
    """Return, for each client `chosen`, the local users among those `at` and their metrics, from the ranks of all."""
    values = metrics_of(ranks, asked.relevant.counts[at], metrics)
    users = asked.users[at]
    bounds = zip(chosen, *(np.searchsorted(users, asked.first[chosen + last]) for last in (0, 1)), strict=True)
    return [(users[a:b] - asked.first[c], {name: value[a:b] for name, value in values.items()}) for c, a, b in bounds]


def held_out(data: ClientData, split: Split) -> Interactions:
    """Return the rows of a client's split."""
    return data.validation if split == "validation" else data.test


def mask_of(parts: Sequence[Interactions], users: Ints, items: int) -> Bools:
    """Return the mask [len(users), items] of the positives of ascending `users` in `parts`."""
    mask = np.zeros((len(users), items), dtype=np.bool_)
    for part in parts:
        row = np.searchsorted(users, part.user)
        here = part.positive & (row < len(users))
        here[here] = users[row[here]] == part.user[here]
        mask[row[here], part.item[here]] = True
    return mask


def smallest(keys: Values, met: Bools, count: int) -> Bools:
    """Return the mask of the `count` smallest `keys` below 1 in each row, outside `met`; changes `keys`."""
    keys[met] = 2.0
    count = min(count, met.shape[1])
    chosen = np.argpartition(keys, count - 1, axis=1)[:, :count]
    mask = np.zeros_like(met)
    np.put_along_axis(mask, chosen, True, axis=1)
    return mask & ~met


def blocks(parts: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Yield parts together until their sizes reach `most`: what is measured of some is in memory for all of them."""
    block, held = list[T](), 0
    for part in parts:
        block.append(part)
        held += size(part)
        if held >= most:
            yield block
            block, held = [], 0
    if block:
        yield block


def members(data: ClientData, params: Mapping[str, Tensor]) -> Iterator[tuple[ClientData, Params]]:
    """Yield the clients to evaluate with their parameters: the client itself, or every member of a pooled one.

    A member gets the rows of its own users and items, so that its catalogue and its metrics are those of its own run.
    """
    if not data.members:
        yield data, dict(params)
    for member in data.members:
        rows = {
            "user": torch.from_numpy(np.searchsorted(data.users, member.users)),
            "item": torch.from_numpy(np.searchsorted(data.items, member.items)),
        }
        yield member, select(params, rows)
