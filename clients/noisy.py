"""What a client sends of its users under a promise by sums: popularity first, then transitions, both with its noise."""

from secrets import token_hex

import numpy as np
import torch

from clients.client import Client
from clients.private import books
from fedrec.models.contributions import GRID
from fedrec.models.noisy import BETWEEN, PAIRS, POPULARITY, PUBLIC, NoisyRecommender
from fedrec.params import Params
from fedrec.privacy.guarantee import sums_plan
from fedrec.privacy.secret import digest
from fedrec.sharing import Broadcast


def noisy_sums(client: Client, model: NoisyRecommender, sent: Broadcast) -> Params:
    """Return what a client adds to the totals in a round, which it has booked; raises OverBudget.

    A round that is repeated gets other noise and is booked again. Of what is sent, the second round reads the noisy
    popularity, which decides which items are summed and with what weights.
    """
    ledger, plan = books(client), sums_plan(client.experiment)
    assert ledger is not None
    number, own = sent.round, model.placed(model.past)
    like = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in client.shared_like.items()}
    if number > len(plan.rounds):
        return like
    source = ledger.open(number, digest(*client.setting, number, sent.values, token_hex()))
    if number == 1:
        like[POPULARITY] = torch.from_numpy(plan.popularity(own, source) / GRID)
        like[PUBLIC] = torch.tensor([len(own.start) - 1, *plan.public], dtype=torch.float64)
    else:
        first = np.rint(sent.values[POPULARITY].numpy() * GRID).astype(np.int64)
        between, pairs = plan.parts(plan.transitions(own, first, source))
        like[BETWEEN] = torch.from_numpy(between)
        like[PAIRS][: len(pairs), : len(pairs)] = torch.from_numpy(pairs)
    return like
