"""What clients join with: each by itself, or those that are alike together."""

from collections.abc import Sequence

import numpy as np
import torch

import clients.priced as priced
from clients.client import Client
from clients.heads import kept_head
from clients.state import Kept, Laid, Party, State
from clients.training import COPY, train_alone
from fedrec.data.types import Ints
from fedrec.experiment.channel import row_ids
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import initial
from fedrec.federation.coordination import Own
from fedrec.keyed import TABLES
from fedrec.models import Recommender
from fedrec.params import Params
from fedrec.sharing import Contribution, Sharing, is_sum
from fedrec.training.common_start import CommonStart, worthwhile
from fedrec.training.rows import edges, ranges
from fedrec.training.stacks import Stack


def join(client: Client, start: Params | None = None) -> tuple[State, Contribution]:
    """Return the state in which a client joins, and what it joins with; `start` are its initial parameters, if known.

    Whoever agrees on logits trains alone first, as in FedMD: nobody knows anything yet, and standardised noise is as
    loud as knowledge.
    """
    e, start = client.experiment, client.start() if start is None else start
    own = first(client, start)
    if e.agreement.active and not e.share and not client.newcomer:
        start = train_alone(client, start)
    shared, private = client.channel.split(start)
    private = {name: value for name, value in private.items() if not is_sum(name)}  # made anew of its data
    private |= kept_head(client)
    rows = row_ids(shared, client.data, client.channel)
    shared |= priced.start(client, start)
    reply = Contribution(client.data.name, shared, examples(client), client.device, rows)
    return State(Kept(0, private, client.link(shared), own)), reply


def first(client: Client, start: Params) -> Own:
    """Return what is a client's own when it joins: its start as personal model, c_i = 0, and its first weighting."""
    drift, personal, control = client.experiment.drift, None, None
    if client.experiment.trains_copies:
        personal = client.experiment.sharing().split(start)[0] if drift.personal == "tuned" else start
    if drift.correction == "scaffold":
        like = client.shared_like
        control = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in like.items()}
    weigher = client.weigher()
    weighting = dict(weigher.state) if weigher else {}
    if drift.second:
        weighting |= {f"{COPY}{name}": value for name, value in weighting.items()}
    return Own(personal, control, weighting or None)


class Together:
    """Clients that are alike (`Client.like`) and join together: what they have in common is made, and there, once.

    A row of a table starts by its key alone, and a head by its offset, whoever has them.
    """

    def __init__(self, clients: Sequence[Client]) -> None:
        self.clients = clients
        self.limits: list[tuple[float, ...]] = [()] * len(clients)
        one, nobody = clients[0], np.zeros(0, np.int64)
        e, model, users = one.experiment, one.model, [client.data.users for client in clients]
        offsets = [client.offsets() for client in clients]
        self.common = initial(e, model, nobody, one.data.items, offsets[0])
        rows = initial(e, model, np.concatenate(users), nobody, offsets[0])
        self.rows = {name: value for name, value in rows.items() if name in TABLES and TABLES[name] == "user"}
        self.edge, known = edges(np.array([len(part) for part in users])), dict[bytes, int]()
        keys = [b"".join(np.asarray(value, np.float64).tobytes() for value in offset.values()) for offset in offsets]
        self.head = np.array([known.setdefault(key, len(known)) for key in keys])  # whose heads start alike
        starts = [offsets[place] for place in np.unique(self.head, return_index=True)[1]]
        made = [self.common, *(initial(e, model, nobody, nobody, offset) for offset in starts[1:])]
        self.heads = [{name: value for name, value in part.items() if name.startswith("heads.")} for part in made]
        self.contributed: dict[int, tuple[Params, dict[str, Ints]]] = {}

    def start(self, place: int) -> Params:
        """Return the initial parameters of a client."""
        part = slice(*self.edge[place : place + 2].tolist())
        return {**self.common, **{n: value[part] for n, value in self.rows.items()}, **self.heads[self.head[place]]}

    def join(self, place: int, party: Party) -> Contribution:
        """Let a client join where it is at home; return what it joins with."""
        if remembers(self.clients[0].experiment):
            party.joined, reply = join(self.clients[place], self.start(place))
            return reply
        party.lie(self, place)
        return self.reply(place)

    def at(self, place: int) -> State:
        """Return the state in which a client joins."""
        return join(self.clients[place], self.start(place))[0]

    def laid(self, when: str) -> Laid:
        """Return what all of them remember of a time."""
        return Laid.of([getattr(self.at(place), when) for place in range(len(self.clients))])

    def reply(self, place: int) -> Contribution:
        """Return what a client joins with, one value for those whose heads start alike, unless they share users."""
        client, key = self.clients[place], int(self.head[place])
        found = self.contributed.get(key)
        if found is None:
            shared = client.channel.split(self.start(place))[0]
            found = shared, row_ids(shared, client.data, client.channel)
            if not self.rows.keys() & shared.keys():
                self.contributed[key] = found
        return Contribution(client.data.name, found[0], examples(client), client.device, found[1])

    def private(self, order: Ints) -> Stack:
        """Return the private parameters of some clients end to end.

        Large tables of items, which all begin with alike, are there once: training moves few rows of each.
        """
        counts, made, base = np.diff(self.edge)[order], Params(), Params()
        flat, head = torch.from_numpy(ranges(self.edge[order], counts)), torch.from_numpy(self.head[order])
        one = self.clients[0]
        own = one.channel.split({**self.common, **self.rows})[1]
        tables = {name: value for name, value in own.items() if name in TABLES and name not in self.rows}
        if worthwhile(len(order), tables) and not one.recipe.transforms:
            base = tables
        for name, value in own.items():
            if name in self.rows:
                made[name] = value.index_select(0, flat)
            elif name in self.heads[0]:
                made[name] = torch.stack([part[name] for part in self.heads]).index_select(0, head)
            elif name not in base:
                many = value.expand(len(order), *value.shape)
                made[name] = many.reshape(-1, *value.shape[1:]) if name in TABLES else many.clone()
        return CommonStart.of(made, base) if base else Stack(made)


def remembers(e: Experiment) -> bool:
    """Return whether each client remembers more than its parameters, from the beginning."""
    return bool(e.coupling.duals or e.trains_copies or e.drift.correction != "none" or e.weighting.active or e.start)


def examples(client: Client) -> dict[str, float]:
    """Return what a client tells of its number of training rows."""
    return {"examples": 1.0 if client.experiment.silent else float(len(client.data.train))}


def together(client: Client) -> bool:
    """Return whether clients that are like this one may join together."""
    plain = type(client.model) is Recommender and isinstance(client.channel, Sharing)
    return plain and not client.experiment.agreement.active
