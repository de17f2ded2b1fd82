"""The likelihood-ratio attack with shadow models (LiRA, arXiv 2112.03570), on the update of a client's first round."""

from dataclasses import replace

import numpy as np

from fedrec.data.types import Bools, ClientData
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import initial, tasks_for
from fedrec.privacy.attacks.membership import leanings
from fedrec.privacy.attacks.scores import Values
from fedrec.privacy.attacks.targets import Records
from fedrec.privacy.transcript import Exchanged, Transcript
from fedrec.rng import generator
from fedrec.training.local import local_update


def likelihood_ratios(
    transcript: Transcript, records: Records, *, experiment: Experiment, pool: ClientData, shadows: int = 16, seed: int
) -> Values:
    """Return log p(phi | in) - log p(phi | out) [n] of the records of one client, `pool.name`.

    phi is the record's leaning (`membership.leanings`). Known beside the transcript: hyper-parameters and seed, and in
    `pool.train` records among which the client's are (as the paper's online attack has them): every shadow trains on a
    random half of them, from the broadcast that the client trained from. phi is taken for normal, with means of each
    record's own and one variance for all (section VI, few shadow models).
    """
    (client,) = {records.client[number] for number in np.unique(records.of)}
    first, width = next(iter(transcript.of(client))), int(pool.items[-1]) + 1
    inside, phi = np.zeros((shadows, len(records)), np.bool_), np.zeros((shadows, len(records)))
    for k in range(shadows):
        chosen = generator(seed, "shadow", client, k).random(len(pool.train)) < 0.5
        alone = Transcript({client: transcript.joined[client]}, [shadow(first, pool, chosen, experiment, seed, k)])
        rows = pool.train.take(chosen)
        held = pool.users[rows.user] * width + pool.items[rows.item]
        inside[k] = np.isin(records.user * width + records.item, held)
        phi[k] = leanings(alone, records, experiment=experiment)
    observed = leanings(transcript, records, experiment=experiment)
    n_in, n_out = inside.sum(0), (~inside).sum(0)
    mean_in = (phi * inside).sum(0) / np.maximum(n_in, 1)
    mean_out = (phi * ~inside).sum(0) / np.maximum(n_out, 1)
    variance = float(np.square(phi - np.where(inside, mean_in, mean_out)).sum() / max(phi.size - 2 * phi.shape[1], 1))
    ratio = ((observed - mean_out) ** 2 - (observed - mean_in) ** 2) / (2 * max(variance, 1e-300))
    return np.asarray(np.where((n_in > 0) & (n_out > 0), ratio, 0.0), np.float64)


def shadow(
    first: Exchanged, pool: ClientData, chosen: Bools, experiment: Experiment, seed: int, number: int
) -> Exchanged:
    """Return what a client would have answered to the same broadcast, had it held the chosen records of the pool."""
    data, sharing = replace(pool, train=pool.train.take(chosen)), experiment.sharing()
    model, tasks = experiment.recommender(pool.name), tasks_for(experiment, pool)
    offsets = {task.name: task.offset(data.train) for task in tasks}
    private = sharing.split(initial(experiment, model, data.users, data.items, offsets))[1]
    start = sharing.join(first.z, private)
    scope = ("shadow", pool.name, number)
    params, _ = local_update(model, start, data, tasks, experiment.recipe(), sharing, seed=seed, scope=scope)
    return replace(first, x=sharing.split(params)[0], metrics={})
