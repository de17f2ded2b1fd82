"""A newcomer's half of a round: it fits what the federation has into its own model, and trains the rest alone."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from clients.client import Client
from clients.home import Lacking, at_home, parted, with_home
from clients.state import Kept
from clients.training import require_finite
from fedrec.data.types import Ints
from fedrec.experiment.channel import LOGITS, Logits, row_ids
from fedrec.keyed import TABLES
from fedrec.params import Params, to
from fedrec.rng import generator
from fedrec.sharing import Broadcast, ContractError, admit, admit_rows
from fedrec.training.local import update_one
from fedrec.training.recipe import Term
from fedrec.training.results import stack
from fedrec.training.stacks import Terms


def fit_message(client: Client, sent: Broadcast) -> Broadcast:
    """Return a message with tables of all the client's rows, zero where the federation has none.

    Raises ContractError for what the client does not share, and for rows that it does not carry.
    """
    like, places = client.shared_like, known(client, sent.rows)
    part = {name: like[name] for name in like if name in sent.values}
    for name in part.keys() & places.keys():
        part[name] = like[name].new_empty((len(places[name]), *like[name].shape[1:]))
    values = admit(sent.values, part)
    for name in values.keys() & places.keys():
        whole = torch.zeros(like[name].shape, dtype=like[name].dtype)
        values[name] = whole.index_copy(0, places[name], values[name])
    return replace(sent, values=values)


def known(client: Client, rows: Mapping[str, Ints]) -> dict[str, Tensor]:
    """Return, for each of a client's shared tables, the ascending local rows [n] that the federation has too."""
    like, sent, places = client.shared_like, admit_rows(rows), dict[str, Tensor]()
    for space, ids in row_ids(like, client.data, client.channel).items():
        common = sent.get(space, ids[:0])
        if not np.isin(common, ids).all():
            raise ContractError(f"rows {space}: must be among the {len(ids)} that the client carries, found others")
        places |= {name: torch.from_numpy(np.searchsorted(ids, common)) for name in like if TABLES.get(name) == space}
    return places


def lacking(client: Client, broadcast: Broadcast) -> Lacking:
    """Return the shared parameters, or the local rows of one, that the federation does not have."""
    places, rows = known(client, broadcast.rows), dict[str, Tensor | None]()
    for name, value in client.shared_like.items():
        if name not in broadcast.values:
            rows[name] = None
        elif name in places and len(places[name]) < len(value):
            rows[name] = torch.from_numpy(np.setdiff1d(np.arange(len(value)), places[name].numpy()))
    return rows


def lesson(client: Client, now: Kept, broadcast: Broadcast) -> tuple[Kept, float]:
    """Return what a client remembers after a round on what the federation has, which stays as it is, and the loss.

    What is trained is the private part, and what the federation does not have of the shared one. A client that
    exchanges logits trains all of its parameters, and is pulled to the consensus of the others.
    """
    e, own, number = client.experiment, now.own, broadcast.round
    private, home = parted(now.private)
    pull, rest = consensus_pull(client, broadcast), lacking(client, broadcast)
    if pull:
        rest = {}  # logits that nobody else has are not parameters
    shared = with_home(broadcast.values, home or at_home(client.channel.split(client.start())[0], rest))
    weigher = client.weigher(own.weighting)
    masks = to({name: mask(shared[name], rows) for name, rows in rest.items()}, client.device)
    params, loss, _ = update_one(
        client.cohort,
        to(client.channel.join(shared, private), client.device),
        replace(client.recipe, phases=("private",)),
        e.sharing(),
        seed=e.seed,
        scope=(client.data.name, number),
        terms=Terms(pull=pull, weigher=weigher, masks=stack([masks]) if masks else None),
    )
    shared, private = client.channel.split(require_finite(client, to(params, "cpu"), number))
    if weigher:
        own = replace(own, weighting=require_finite(client, weigher.state, number) or None)
    return Kept(number, {**private, **at_home(shared, rest)}, None, own), loss


def mask(value: Tensor, rows: Tensor | None) -> Tensor:
    """Return 1 for some rows of a table, or for all of a parameter, and 0 elsewhere, in its shape."""
    return torch.ones_like(value) if rows is None else torch.zeros_like(value).index_fill(0, rows, 1.0)


def consensus_pull(client: Client, broadcast: Broadcast) -> Term | None:
    """Return the pull to the consensus logits that there are; None for a client that shares parameters."""
    channel, e = client.channel, client.experiment
    if not isinstance(channel, Logits):
        return None
    rows = known(client, broadcast.rows)[LOGITS]
    among = replace(channel, ids=channel.ids[rows.numpy()], user=channel.user[rows], item=channel.item[rows])
    anchor: Params = {LOGITS: broadcast.values[LOGITS][rows]}
    rng = generator(e.seed, "pull", client.data.name, broadcast.round)
    return among.pull(to(anchor, client.device), e.coupling.rho, rng)
