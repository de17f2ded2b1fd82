"""The client's half of a secure sum over Flower: four stages of a round, each answered once, nothing in plain text.

It trains before it looks at the shares of its peers, so that a round that is repeated after a crash, in which the new
keys fit nothing, still leaves the state behind that the server counts on; what is sent then is a refusal.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from secrets import token_hex

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict

from clients.client import Client
from clients.home import at_home
from clients.private import books
from clients.state import Party, State
from fedrec.data.types import Ints
from fedrec.experiment.channel import row_ids
from fedrec.federation.codecs import Squeeze, owed
from fedrec.federation.coordination import double
from fedrec.keyed import TABLES, wide
from fedrec.params import Params, subtract
from fedrec.privacy.encoding import Layout
from fedrec.privacy.guarantee import terms
from fedrec.privacy.masks import Words
from fedrec.privacy.noise import Source
from fedrec.privacy.secret import digest
from fedrec.privacy.secure_sum import Member, Terms
from fedrec.sharing import Broadcast, ContractError, Contribution, admit_round
from fedrec.wire.messages import part
from fedrec.wire.secure import (
    KINDS,
    Sum,
    keys_answer,
    masked_answer,
    member_record,
    read_masked,
    read_member,
    read_number,
    read_roster,
    read_unmask,
    shares_answer,
)

PRESENT, LAST = "member", "last"  # what a client remembers of a secure sum: the present round, and the last with keys


@dataclass(frozen=True)
class Envelope:
    """How what a client shares travels in a secure sum: where its entries lie, how encoded, with which weight p_i."""

    layout: Layout
    ids: Mapping[str, Ints]
    terms: Terms
    weight: int
    squeeze: Squeeze

    @staticmethod
    def of(client: Client, layout: Layout, number: int) -> "Envelope":
        """Return a client's envelope of a round; raises ContractError if its tensors do not fit the layout."""
        e, like = client.experiment, client.shared_like
        ids = row_ids(like, client.data, client.channel)
        layout.check(like)
        weight = 1 if e.weights == "uniform" or e.by_sums else max(len(client.data.train), 1)
        return Envelope(layout, ids, terms(e), weight, Squeeze.of(e.codec, e.seed, number, layout.size))

    def words(self, values: Params, z: Params, source: Source | None) -> Words:
        """Return the entries and masses [M] that a client adds to the sum: p_i x_i [P], or its noisy x_i - z_i.

        With a codec the entries are of the payload, and `values` the change x_i - z_i.
        """
        noise = self.terms.noise
        values = {name: value.to_dense() for name, value in values.items()}
        changed = noise is not None and not self.squeeze.codec
        x, held = self.layout.lay(subtract(double(values), double(z)) if changed else values, self.ids)
        x = self.squeeze.encode(x)
        assert (noise is None) == (source is None)
        entries = noise.words(x, source) if noise and source else self.terms.encoding.words(x, self.weight)
        return np.concatenate([entries, held.astype(np.uint64) * np.uint64(self.weight)])

    def travelled(self, change: Params) -> Params:
        """Return what the sum takes of a change: encoded, rounded, and nothing of rows that have no place in it."""
        x, _ = self.layout.lay(change, self.ids)
        payload, coding = self.squeeze.encode(x), self.terms.encoding
        if not self.terms.noise:  # which rounds at random
            payload = coding.values(coding.words(payload, 1))
        like = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in change.items()}
        return self.layout.pick(self.squeeze.decode(payload), like, self.ids)

    def owe(self, change: Params, memory: Params) -> tuple[Params, Params]:
        """Return a change with what is owed of earlier ones, and what the sum does not take of it, which is owed next.

        Of rows that have no place in the sum nothing is owed: the client keeps them.
        """
        whole = owed(change, memory)
        inside = {name: torch.from_numpy(self.layout.inside(name, self.ids)) for name in whole}
        rest = subtract(double(whole), self.travelled(whole))
        return whole, {
            name: (value * wide(inside[name].double(), value)).to(whole[name].dtype) for name, value in rest.items()
        }

    def at_home(self, shared: Params) -> Params:
        """Return what has no place in the sum, for the client to go on with by itself: values and local rows."""
        outside = {name: torch.from_numpy(np.flatnonzero(~self.layout.inside(name, self.ids))) for name in shared}
        return at_home(shared, {n: rows if n in TABLES else None for n, rows in outside.items() if len(rows)})


def source(client: Client, number: int, x: Params, z: Params) -> Source | None:
    """Return the random numbers of a client that adds noise to a sum, after it has booked the round; else None.

    A round that is repeated gets other noise and is booked again: its sum may be over other clients, and of two sums
    with the same noise the difference is a few clients' parts, under a part of the noise.
    """
    ledger = books(client)
    if ledger is None or terms(client.experiment).noise is None:
        return None
    return ledger.open(number, digest(*client.setting, number, x, z, token_hex()))


Train = Callable[[Client, State, Broadcast, Envelope], tuple[State, Contribution, Params]]


def answer_in_secret(kind: str, content: RecordDict, party: Party, train: Train) -> RecordDict:
    """Return what a client answers to a stage of a secure sum; `train` is `clients.round.trained`.

    Raises ContractError for a client that sums nothing in secret.
    """
    client, name = party.client, party.client.data.name
    if not client.experiment.secure.active:
        raise ContractError("secure: must be active in the client's own configuration, found it is not")
    if kind == KINDS["keys"]:
        return keys_answer(name, draw_keys(party, read_number(content)).keys)
    if kind == KINDS["shares"]:
        member, sealed = member_of(party).share(*read_roster(content))
        party.secrets[PRESENT] = member_record(member)
        return shares_answer(name, sealed)
    if kind == KINDS["unmask"]:
        shares = member_of(party).unmask(*read_unmask(content))
        party.secrets.pop(PRESENT)
        return shares_answer(name, shares)
    asked = read_masked(content)
    envelope, number = Envelope.of(client, asked.layout, asked.broadcast.round), asked.broadcast.round
    party.joined, reply, z = train(client, party.state, asked.broadcast, envelope)
    words = envelope.words(reply.values, z, source(client, number, reply.values, z))
    member, total = member_of(party).mask(number, asked.sealed, words)
    party.secrets[PRESENT] = member_record(member)
    return masked_answer(Sum(name, total, reply.metrics, client.device))


def draw_keys(party: Party, number: int) -> Member:
    """Draw the keys of a round; raises ContractError for one that is not after all rounds before."""
    last = part(party.secrets, LAST, ConfigRecord).get("round", 0)
    assert isinstance(last, int)
    if number <= last:
        raise ContractError(f"round: must be after {last}, for which there were keys, found {number}")
    admit_round(number, party.client.experiment.rounds)
    agreed = terms(party.client.experiment)
    member = Member.start(party.client.data.name, number, agreed.threshold, agreed.clients)
    party.secrets.update({LAST: ConfigRecord({"round": number}), PRESENT: member_record(member)})
    return member


def member_of(party: Party) -> Member:
    """Return the client's half of the present round; raises ContractError if there is none."""
    if PRESENT not in party.secrets:
        raise ContractError("stage: must begin with the keys of a round, found none")
    return read_member(part(party.secrets, PRESENT, ConfigRecord))
