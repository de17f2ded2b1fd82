"""New users: rows of users that nobody has trained on, learnt from what is known of them when they are asked."""

from dataclasses import replace
from typing import Literal

import numpy as np

from fedrec.data import ClientData
from fedrec.data.split import concatenate
from fedrec.data.types import Ints
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import reader
from fedrec.keyed import TABLES
from fedrec.params import Params
from fedrec.sharing import Sharing
from fedrec.training.local import local_update


def fold_in(
    e: Experiment, params: Params, data: ClientData, split: Literal["validation", "test"], users: Ints
) -> Params:
    """Return a client's parameters with rows for those of `users` that are new, made when rows of a split are asked.

    A new user's row p_u (and b_u) starts as the mean of the client's trained users, as its initial row where there are
    none, and is then trained for `fold_in` passes over what is known of the new `users`: p_u ~ argmin f_u(p_u; all
    else), as matrix factorisation folds in. Nothing else changes. Whoever has no table of users, or no split
    `new-users`, has nothing to fold in.
    """
    names = [name for name in params if TABLES.get(name) == "user"]
    if e.split != "new-users" or e.solves or not names:
        return params
    trained = np.unique(data.train.user)
    new = np.setdiff1d(np.arange(len(data.users)), trained)
    params = {name: value.clone() if name in names else value for name, value in params.items()}
    for name in names if len(trained) else ():
        params[name][new] = params[name][trained].mean(0)
    rows = concatenate(data.known(split))
    support = rows.take(np.isin(rows.user, np.intersect1d(users, new)))
    if not e.fold_in or not len(support):
        return params
    return local_update(
        reader(e, data, "train"),
        params,
        replace(data, train=support),
        e.tasks(data.name),
        replace(e.recipe(), epochs=e.fold_in, phases=("private",), mu=0.0, hidden=0.0, transforms=(), objective=()),
        Sharing(tuple(name for name in params if name not in names)),
        seed=e.seed,
        scope=(data.name, "fold in", split),
    )[0]
