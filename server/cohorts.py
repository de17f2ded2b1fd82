"""What a node is asked for its clients, one or more, and what it answers: contributions, sums, refusals."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from flwr.app import Message, RecordDict

from fedrec.federation.proportion import MULTIPLE, least
from fedrec.keyed import Carrier, Ints, Subtotal, add_among, chunks, sum_type, union
from fedrec.params import Params, norm
from fedrec.sharing import Broadcast, ContractError, Contribution, admit, filled, is_sum
from fedrec.wire import Answers, Call, Entry, ids_record, ledger, pack, read_answers
from server.faults import Refused, content_of

Letters = dict[str, Contribution | Refused]


@dataclass(frozen=True)
class Opened:
    """What the answer of a node holds: a contribution or a refusal of each of its clients, and sums of some of them."""

    letters: Letters
    subtotals: list[Subtotal]


def open_answer(answer: Message | None, clients: Sequence[str], deadline: float = 0.0, most: float = 0) -> Opened:
    """Return what a node answered for its clients; what is missing or cannot be read is a refusal of each of them.

    Of clients that are joining the names are not known before, but how many may join at `most` from this node.
    """
    try:
        answers = read_answers(content_of(answer, deadline))
        names = names_of(answers)
        if most and not 0 < len(names) <= most:
            raise ContractError(f"client: must be one of its own for each node, found {len(names)}")
        return Opened(letters_of(answers, list(names) if most else clients), answers.subtotals)
    except Refused as refused:
        return Opened(dict.fromkeys(clients, refused), [])
    except ContractError as error:
        return Opened(dict.fromkeys(clients, Refused("contract", str(error))), [])


def names_of(answers: Answers) -> dict[str, None]:
    """Return the names that an answer uses; raises ContractError if it has one twice."""
    names = [*(reply.client for reply in answers.contributions), *answers.failed]
    if len(set(names)) < len(names):
        raise ContractError(f"client: must have a name of its own, found one of {len(names)} twice")
    return dict.fromkeys(names)


def letters_of(answers: Answers, clients: Sequence[str]) -> Letters:
    """Return the letter of every client of a node."""
    letters: Letters = dict.fromkeys(clients, Refused("silence", "did not answer"))
    for reply in answers.contributions:
        if reply.client not in letters:
            raise ContractError(f"must answer under its own name, found {reply.client!a}")
        letters[reply.client] = reply
    return letters | {name: Refused("error", f"failed: {text}") for name, text in answers.failed.items()}


def calls(
    broadcasts: Mapping[str, Broadcast],
    nodes: Mapping[str, int],
    summed: Mapping[str, Carrier],
    metrics: Iterable[str] = (),
) -> dict[int, Call]:
    """Return the call of every node. A client of `summed` is in a chunk if one node has all of the chunk that is sent.

    The chunks are those of the mean over all clients, so that the sum of a chunk does not depend on who makes it.
    """
    chunk, names = chunks(nodes), tuple(sorted(metrics)) if summed else ()
    by_node = {node: Call({}, told=names) for node in dict.fromkeys(nodes[n] for n in broadcasts)}
    homes: dict[int, set[int]] = {}
    for name in summed:
        homes.setdefault(chunk[name], set()).add(nodes[name])
    for name, broadcast in broadcasts.items():
        call = by_node[nodes[name]]
        call.broadcasts[name] = broadcast
        if name in summed and len(homes[chunk[name]]) == 1:
            call.chunks[name] = (chunk[name], summed[name].weight)
    return by_node


def admit_subtotal(part: Subtotal, call: Call, carriers: Mapping[str, Carrier]) -> Subtotal:
    """Return a sum if it is of clients of which one was asked, of their rows, and in proportion to what they were sent.

    Raises ContractError.
    """
    if not part.clients or not call.chunks.keys() >= set(part.clients) or len(set(part.clients)) != len(part.clients):
        raise ContractError(f"sum: must be of clients that may be summed, once, found {', '.join(part.clients[:5])}")
    members = [carriers[name] for name in part.clients]
    rows = union(members)
    shapes: Params = {}
    for who in members:
        if not who.like.keys() <= shapes.keys():
            shapes |= who.like
    like = {
        name: torch.empty(
            (len(rows[name]) if name in rows else len(value), *value.shape[1:]),
            dtype=sum_type(name, value),
            device="meta",
        )
        for name, value in shapes.items()
    }
    values = admit(part.values, like)
    told = {name for name in values if is_sum(name)}
    if part.counts.keys() != told or not all(
        0 <= count <= values[name].numel() for name in told for count in part.counts[name]
    ):
        raise ContractError("sum: must come with how many entries each client adds to it, found others")
    sent = weighted_sent(part, call, members, rows)
    mass = math.fsum(call.chunks[name][1] for name in part.clients)
    change = {name: value - sent[name] if name in sent else value for name, value in values.items()}
    moved, limit = norm(change), MULTIPLE * max(norm(sent), mass * least(like))
    if moved > limit:
        raise ContractError(
            f"sum: must change the mean by at most {limit / mass:.4g} in norm, found {moved / mass:.4g}"
        )
    return replace(part, values=values)


def weighted_sent(part: Subtotal, call: Call, members: Sequence[Carrier], rows: Mapping[str, torch.Tensor]) -> Params:
    """Return sum_i p_i z_i of what the clients of a sum were sent, on its rows."""
    total = Params()
    weights: dict[int, tuple[Params, Carrier, float]] = {}  # those who were sent one object are added once
    for who in members:
        z, weight = call.broadcasts[who.client].values, call.chunks[who.client][1]
        before = weights.get(id(z), (z, who, 0.0))[2]
        weights[id(z)] = (z, who, before + weight)
    for z, who, weight in weights.values():
        add_among(total, rows, who, z, weight)
    return total


@dataclass
class Equal:
    """Has one copy of what several clients join with, whichever nodes bring it, so that equal starts are the same."""

    found: dict[bytes, tuple[Params, dict[str, Ints]]] = field(default_factory=dict)
    looked: dict[tuple[int, int], tuple[Params, dict[str, Ints]]] = field(default_factory=dict)  # of one node

    def first(self, reply: Contribution) -> Contribution:
        """Return what a client joined with, with the tensors and row ids of the first whose are equal."""
        key = id(reply.values), id(reply.rows)
        if key not in self.looked:
            mine = reply.values, reply.rows
            dense = all(value.layout == torch.strided for value in reply.values.values())
            self.looked[key] = self.found.setdefault(content(reply), mine) if dense else mine
        values, rows = self.looked[key]
        return reply if values is reply.values else replace(reply, values=values, rows=rows)


def content(reply: Contribution) -> bytes:
    """Return the digest of the tensors and row ids that a client joined with."""
    digest = hashlib.blake2b()
    for arrays in ({name: value.numpy() for name, value in reply.values.items()}, reply.rows):
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
        digest.update(b"|")
    return digest.digest()


Form = tuple[tuple[str, torch.Size, torch.dtype, int], ...]  # of sums, which travel as entries, also how many
Sizes = tuple[tuple[str, int], ...]
NOTHING: Mapping[str, Any] = {}


@dataclass
class Tally:
    """Counts what clients are sent and send: one entry of the ledger for all whose messages have one form and size."""

    number: int
    direction: str
    alike: dict[tuple[Form, Form, Sizes, int], tuple[list[str], list[Entry]]] = field(default_factory=dict)
    forms: dict[int, tuple[Params, Form]] = field(default_factory=dict)
    known: dict[tuple[int, int, int], list[str]] = field(default_factory=dict)  # whose messages are of the same objects

    def add(
        self,
        client: str,
        values: Params,
        control: Params | None = None,
        metrics: Mapping[str, float] = NOTHING,
        rows: Mapping[str, Any] = NOTHING,
    ) -> None:
        """Count a message of a client with these tensors, metrics and row ids."""
        size = sum(map(len, metrics)) + 8 * len(metrics)
        if not rows and (id(values), id(control), size) in self.known:
            self.known[id(values), id(control), size].append(client)
            return
        ids = tuple((space, len(column)) for space, column in rows.items())
        key = (self.form(values), self.form(control or {}), ids, size)
        if key not in self.alike:
            content = RecordDict({"shared": pack(values)})
            if control is not None:
                content["control"] = pack(control)
            if rows:
                content["rows"] = ids_record(rows)
            entries = ledger(content, self.number, client, self.direction)
            if metrics:
                entries.append(Entry(self.number, client, self.direction, "metrics", 0, size))
            self.alike[key] = ([], entries)
        self.alike[key][0].append(client)
        if not rows:
            self.known[id(values), id(control), size] = self.alike[key][0]

    def form(self, values: Params) -> Form:
        """Return the names, shapes and dtypes of tensors; those that many clients have in common are looked at once."""
        if id(values) not in self.forms:  # kept, since an id names an object only as long as it lives
            counts = filled(values)
            form = tuple((n, v.shape, v.dtype, counts.get(n, 0)) for n, v in values.items())
            self.forms[id(values)] = (values, form)
        return self.forms[id(values)][1]
