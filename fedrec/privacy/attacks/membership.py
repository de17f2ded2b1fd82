"""Membership: was an interaction trained on, did a user take part, from what a client sent.

An interaction's loss is low where it was trained on (arXiv 1709.01604, section 3), and the first update of its item's
row leans to where training on it leads (the user's vector at the start is a function of the seed, which the server is
told). Scores are higher for what is more likely in.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedrec.data.types import Ints
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import initial
from fedrec.params import Params
from fedrec.privacy.attacks.scores import Values
from fedrec.privacy.attacks.targets import Records
from fedrec.privacy.transcript import Transcript

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
            return np.asarray(-((s.double().numpy() - part.rating) ** 2))

    return records.scored(transcript, score)


def fitted_losses(transcript: Transcript, records: Records, *, experiment: Experiment, ridge: float = 1.0) -> Values:
    """Return by how much [n] the loss of every record fell from the first broadcast to the rows that were sent last.

    The loss is that of `fit`, under a user vector fitted to the user's records; its fall, not its value, since some
    records are hard to predict for every model (difficulty calibration, arXiv 2111.08440). Known beside the transcript:
    the hyper-parameters, and all records of each user that are asked about, of which some were trained on.
    """

    def score(client: str, part: Records, item: Tensor) -> Values:
        rounds, ranked = list(transcript.of(client)), experiment.tasks(client)[0].kind == "rank"
        return fit(rounds[0].z, part, item, ranked, ridge) - fit(rounds[-1].x, part, item, ranked, ridge)

    return records.scored(transcript, score)


def fit(rows: Params, part: Records, item: Tensor, ranked: bool, ridge: float) -> Values:
    """Return the loss [n] of records at `item` [n] under a vector for each user, fitted to the user's other records.

    Of ratings it solves min |r - c - b - Q p - b_u|^2 + ridge v (|p|^2 + b_u^2), v the mean square of Q, and the loss
    is (e_i / (1 - h_ii))^2, the square of the error with the record left out; of positives it is the mean row of the
    others, and the loss is minus the score.
    """
    q = rows["item_table"].double()[item]
    b = rows["item_bias"].double()[item, 0] if "item_bias" in rows else torch.zeros(len(item), dtype=torch.float64)
    _, group = part.profiles()
    losses = np.zeros(len(part))
    for user in range(int(group.max()) + 1):
        at = np.flatnonzero(group == user)
        if ranked:
            others = (q[at].sum(0) - q[at]) / max(len(at) - 1, 1)
            losses[at] = -((q[at] * others).sum(1) + b[at]).numpy()
            continue
        y = torch.from_numpy(part.rating[at].astype(np.float64)) - MEAN - b[at]
        design = torch.cat([q[at], torch.ones(len(at), 1, dtype=torch.float64)], dim=1)
        gram = design.T @ design + ridge * float(q.square().mean()) * torch.eye(design.shape[1]).double()
        hat = design @ torch.linalg.solve(gram, design.T)
        losses[at] = ((y - hat @ y) / (1 - hat.diagonal()).clamp(min=1e-6)).square().numpy()
    return losses


def leanings(transcript: Transcript, records: Records, *, experiment: Experiment, rounds: int = 1) -> Values:
    """Return how much [n] the updates of every record's item row lean to where training on the record leads.

    The cosine of u_i = (x - z)_i and g_i = -grad_{q_i} loss(u, i), times sqrt(d), summed over the client's first
    `rounds`: about normal for a user who has no part in them. Known beside the transcript: hyper-parameters and seed,
    and with them the user vectors at the start; the first round tells most if they move fast, all if they hardly move.
    """

    def score(client: str, part: Records, item: Tensor) -> Values:
        cosines = [along for along, _, _ in _lean(transcript, client, part, item, experiment, rounds)]
        return np.asarray(torch.stack(cosines).sum(0).numpy())

    return records.scored(transcript, score)


def user_leanings(transcript: Transcript, records: Records, *, experiment: Experiment, rounds: int = 1) -> Values:
    """Return how much [k] a client's first `rounds` lean to where training on a whole profile leads.

    One score for every (client, user) of `records.profiles()`: sum u_i . g_i / |u_i|^2 over the profile's records and
    the rounds, divided by its standard deviation for a user who has no part in them, sqrt(sum |g_i|^2 / |u_i|^2 / d).
    Known: as for `leanings`, and the profiles of the users asked about.
    """
    weight, noise = np.zeros(len(records)), np.zeros(len(records))
    for client, rows, part, item in records.by_client(transcript):
        for along, g, u in _lean(transcript, client, part, item, experiment, rounds):
            ratio = (g / u.clamp(min=1e-12 + 1e-3 * float(u.max()))).numpy()
            weight[rows] += along.numpy() * ratio
            noise[rows] += ratio**2
    _, group = records.profiles()
    return np.asarray(np.bincount(group, weight) / np.sqrt(np.bincount(group, noise) + 1e-300))


def _lean(
    transcript: Transcript, client: str, part: Records, item: Tensor, experiment: Experiment, rounds: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield sqrt(d) cos(u_i, g_i), |g_i| and |u_i|, each [n], of the records of a client in its first rounds."""
    items = transcript.ids(client, "item_table")
    for round_ in islice(transcript.of(client), rounds):
        g = steps(round_.z, part, item, items, client, experiment)["item_table"]
        u = (round_.x["item_table"].double() - round_.z["item_table"].double())[item]
        yield F.cosine_similarity(u, g, dim=1, eps=1e-12) * u.shape[1] ** 0.5, g.norm(dim=1), u.norm(dim=1)


def steps(z: Params, part: Records, item: Tensor, items: Ints, client: str, experiment: Experiment) -> Params:
    """Return minus the gradient, by every record's own loss alone, of the rows of its item: [n, d] and [n, 1].

    At z and the private parameters that a client starts with; the loss of a rank task is minus the score.
    """
    task, model = experiment.tasks(client)[0], experiment.recommender(client)
    offset = MEAN if task.kind == "rating" else 0.0
    start = initial(experiment, model, part.user, items, {task.name: offset})
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


def _ranked(score_all: Callable[[Tensor], Tensor], user: Tensor, item: Tensor) -> Values:
    result = torch.zeros(len(user), dtype=torch.float64)
    for chosen in torch.split(torch.from_numpy(np.unique(user.numpy())), 256):
        s = score_all(chosen).double()
        rows = torch.isin(user, chosen).nonzero()[:, 0]
        scores = s[torch.searchsorted(chosen, user[rows])]
        result[rows] = -F.softplus(scores - scores.gather(1, item[rows, None])).mean(1)
    return result.numpy()
