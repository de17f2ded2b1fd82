"""Membership: was an interaction trained on, did a user take part, from what a client sent.

An interaction's loss is low where it was trained on (arXiv 1709.01604, section 3), and the first update of its item's
row leans to where training on it leads (the user's vector at the start is a function of the seed, which the server is
told). Scores are higher for what is more likely in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedrec.data.types import Ints
from fedrec.experiment import Experiment
from fedrec.parameters import Params
from fedrec.privacy.attacks.scores import Values
from fedrec.privacy.attacks.targets import Records
from fedrec.privacy.transcript import Transcript
from fedrec.tasks import Task

MEAN = 3.5  # of ratings, as the public may guess it


@dataclass(frozen=True)
class Held:
    """What an insider holds of a client: its private parameters, and the global ids of the users that they are of."""

    users: Ints
    private: Params


def insider_losses(
    transcript: Transcript, records: Records, *, experiment: Experiment, held: Mapping[str, Held]
) -> Values:
    """Return minus the loss [n] of every record under the rows that its client sent last and the user's own vector.

    The loss is the first task's: the squared error of a rating, or the mean of log(1 + e^(s_j - s_i)) over the items j
    of the catalogue. For an insider: the user's vector is no part of any message, and no mechanism covers it.
    """

    def score(client: str, part: Records, item: Tensor) -> Values:
        task, model = experiment.tasks(client)[0], experiment.recommender(client)
        params = {**list(transcript.of(client))[-1].x, **held[client].private}
        user = torch.from_numpy(np.searchsorted(held[client].users, part.user))
        with torch.no_grad():
            if task.kind == "rank":
                return _ranked(lambda u: model.score_all(params, task.name, u), user, item)
            s = model.head(params, task.name, model.features(params, user, item))
            return _pointwise(task, s, part)

    return _each(transcript, records, score)


def fitted_losses(transcript: Transcript, records: Records, *, experiment: Experiment, ridge: float = 1.0) -> Values:
    """Return minus the loss [n] of every record under released rows and a user vector fitted to the user's records.

    Known beside the transcript: the hyper-parameters, and all records of each user that are asked about, of which some
    were trained on. Of ratings the vector solves min |r - c - b - Q p - b_u|^2 + ridge n |p|^2 and the error is that
    of leaving the record out, e_i / (1 - h_ii); of positives it is the mean row of the user's other records.
    """

    def score(client: str, part: Records, item: Tensor) -> Values:
        task, last = experiment.tasks(client)[0], list(transcript.of(client))[-1].x
        q = last["item_table"].double()[item]
        b = last["item_bias"].double()[item, 0] if "item_bias" in last else torch.zeros(len(item), dtype=torch.float64)
        _, group = part.profiles()
        found = np.zeros(len(part))
        for user in range(int(group.max()) + 1):
            rows = np.flatnonzero(group == user)
            if task.kind == "rank":
                others = (q[rows].sum(0) - q[rows]) / max(len(rows) - 1, 1)
                found[rows] = ((q[rows] * others).sum(1) + b[rows]).numpy()
                continue
            y = torch.from_numpy(part.rating[rows].astype(np.float64)) - MEAN - b[rows]
            design = torch.cat([q[rows], torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
            gram = design.T @ design + ridge * float(q.square().mean()) * torch.eye(design.shape[1]).double()
            hat = design @ torch.linalg.solve(gram, design.T)
            found[rows] = -((y - hat @ y) / (1 - hat.diagonal()).clamp(min=1e-6)).square().numpy()
        return found

    return _each(transcript, records, score)


def leanings(transcript: Transcript, records: Records, *, experiment: Experiment) -> Values:
    """Return how much [n] the first update of every record's item row leans to where training on the record leads.

    The cosine of (x - z)_i and -grad_{q_i} loss(u, i), times sqrt(d): about standard normal for a user who has no part
    in the update. Known beside the transcript: hyper-parameters and seed, and with them the user vectors at the start.
    """

    def score(client: str, part: Records, item: Tensor) -> Values:
        along, _, _ = _lean(transcript, client, part, item, experiment)
        return np.asarray(along.numpy())

    return _each(transcript, records, score)


def user_leanings(transcript: Transcript, records: Records, *, experiment: Experiment) -> Values:
    """Return how much [k] the first update leans to where training on a whole profile leads.

    One score for every (client, user) of `records.profiles()`: sum_i u_i . g_i / |u_i|^2 over the profile's records,
    with u_i the row's update and g_i = -grad_{q_i} loss(u, i), divided by its standard deviation for a user who has no
    part in it, sqrt(sum_i |g_i|^2 / |u_i|^2 / d). Known: as for `leanings`, and the profiles of the users asked about.
    """
    weight, noise = np.zeros(len(records)), np.zeros(len(records))
    for number, client in enumerate(records.client):
        rows = np.flatnonzero(records.of == number)
        part = records.take(rows)
        along, length, u = _lean(transcript, client, part, _items(transcript, client, part), experiment)
        ratio = (length / u.clamp(min=1e-12 + 1e-3 * float(u.max()))).numpy()
        weight[rows], noise[rows] = along.numpy() * ratio, ratio**2
    _, group = records.profiles()
    return np.asarray(np.bincount(group, weight) / np.sqrt(np.bincount(group, noise) + 1e-300))


def _lean(
    transcript: Transcript, client: str, part: Records, item: Tensor, experiment: Experiment
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sqrt(d) cos(u_i, g_i), |g_i| and |u_i|, each [n], of the records of one client."""
    first = next(iter(transcript.of(client)))
    items = transcript.ids(client, "item_table")
    g = steps(first.z, part, item, items, client, experiment)["item_table"]
    u = (first.x["item_table"].double() - first.z["item_table"].double())[item]
    return F.cosine_similarity(u, g, dim=1, eps=1e-12) * u.shape[1] ** 0.5, g.norm(dim=1), u.norm(dim=1)


def steps(z: Params, part: Records, item: Tensor, items: Ints, client: str, experiment: Experiment) -> Params:
    """Return minus the gradient, by every record's own loss alone, of the rows of its item: [n, d] and [n, 1].

    At z and the private parameters that a client starts with; the loss of a rank task is minus the score.
    """
    task, model = experiment.tasks(client)[0], experiment.recommender(client)
    offset = MEAN if task.kind == "rating" else 0.0
    start = model.init(experiment.seed, part.user, items, {task.name: offset})
    params = {name: value.double() for name, value in {**start, **z}.items()}
    for name in ("item_table", "item_bias"):
        if name in params:
            params[name] = params[name][item].requires_grad_(True)
    rows = [name for name in ("item_table", "item_bias") if name in z]
    each = torch.arange(len(part))
    s = model.head(params, task.name, model.features(params, each, each))
    loss = (s - torch.from_numpy(part.rating)).square() if task.kind == "rating" else -s
    values = torch.autograd.grad(loss.sum(), [params[name] for name in rows])
    return {name: -g for name, g in zip(rows, values, strict=True)}


def _each(transcript: Transcript, records: Records, score: Callable[[str, Records, Tensor], Values]) -> Values:
    """Return the scores [n] of records, found client by client."""
    found = np.zeros(len(records))
    for number, client in enumerate(records.client):
        rows = np.flatnonzero(records.of == number)
        if len(rows):
            part = records.take(rows)
            found[rows] = score(client, part, _items(transcript, client, part))
    return found


def _items(transcript: Transcript, client: str, part: Records) -> Tensor:
    return torch.from_numpy(np.searchsorted(transcript.ids(client, "item_table"), part.item))


def _pointwise(task: Task, s: Tensor, part: Records) -> Values:
    return np.asarray(-((s.double().numpy() - part.rating) ** 2))


def _ranked(score_all: Callable[[Tensor], Tensor], user: Tensor, item: Tensor) -> Values:
    found = torch.zeros(len(user), dtype=torch.float64)
    for chosen in torch.split(torch.from_numpy(np.unique(user.numpy())), 256):
        s = score_all(chosen).double()
        rows = torch.isin(user, chosen).nonzero()[:, 0]
        mine = s[torch.searchsorted(chosen, user[rows])]
        found[rows] = -F.softplus(mine - mine.gather(1, item[rows, None])).mean(1)
    return found.numpy()
