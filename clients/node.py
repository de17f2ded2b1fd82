"""A node: one client or more, what a message asks of each, and the sums where the server needs no more."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

import torch
from flwr.app import RecordDict

from clients.client import Client
from clients.cohort import Program, programs
from clients.joining import Together, join, together
from clients.round import evaluated, trained
from clients.secure import PRESENT, answer_in_secret
from clients.state import Party, restore, saved
from fedrec.errors import UserError
from fedrec.experiment.channel import row_ids
from fedrec.experiment.holdings import keys
from fedrec.experiment.kept import Shelf, keep
from fedrec.experiment.traffic import MANY
from fedrec.federation.proportion import change, large, size, too_far
from fedrec.keyed import Carrier, Subtotal, carrier, catalogue, subtotal, union
from fedrec.params import Params, same
from fedrec.sharing import Broadcast, ContractError, Contribution, admit, admit_metrics, admit_told, filled
from fedrec.wire import ALONE, Answers, Call, answers_record, read_call
from fedrec.wire.bundle import bundled, unbundled
from fedrec.wire.messages import TEXT
from fedrec.wire.secure import STAGES


class Node:
    """The clients of a node. They are trained one after the other, or as few programs if they are `stacked`."""

    def __init__(self, clients: Sequence[Client], stacked: bool = False) -> None:
        torch.set_num_threads(1)  # sums in one order, whatever the engine
        torch.backends.cudnn.allow_tf32 = False  # float32 everywhere: an accelerator's GRU would else be less exact
        self.parties = {client.data.name: Party(client) for client in clients}
        self.stacked = stacked
        self.programs: list[Program] = []
        self.shelf: Shelf | None = None  # what clients keep in one file, where they are many

    def answer(self, kind: str, content: RecordDict) -> RecordDict:
        """Return what the clients answer to a message of the server; a client that fails is named in it."""
        if kind in STAGES:
            return self.stage(kind, content)
        if kind == "query.join":
            return answers_record(self.join())
        call = read_call(content)
        return answers_record(self.as_programs(kind, call) if self.programs else self.one_by_one(kind, call))

    def join(self) -> Answers:
        """Begin every client's state; return what they join with, equal tensors once."""
        found, alike = Answers([]), self.alike()
        for name, party in self.parties.items():
            try:
                many = alike.get(name)
                reply = many[0].join(many[1], party) if many else self.first(name)
            except Exception as error:
                found.failed[name] = words(error)
                continue
            party.drop(PRESENT)  # but not which rounds had keys: no round gets a second pair
            last = found.contributions[-1].values if found.contributions else {}
            objects = all(reply.values.get(name) is value for name, value in last.items())
            common = same(last, reply.values) if not objects else last.keys() == reply.values.keys()
            found.contributions.append(replace(reply, values=last) if common else reply)
        joined = [self.parties[one.client] for one in found.contributions]
        if self.stacked and joined:
            rows = catalogue([one.rows for one in found.contributions])
            self.programs = programs(joined, [one.values for one in found.contributions], rows)
        return found

    def alike(self) -> dict[str, tuple[Together, int]]:
        """Return which clients of a program join together, and their places there."""
        groups: dict[int, list[Client]] = {}
        for party in self.parties.values() if self.stacked else ():
            groups.setdefault(id(party.client.like or party.client), []).append(party.client)
        found: dict[str, tuple[Together, int]] = {}
        for clients in groups.values():
            if len(clients) > 1 and together(clients[0]):
                with suppress(Exception):  # which each of them will tell by itself
                    many = Together(clients)
                    found |= {client.data.name: (many, place) for place, client in enumerate(clients)}
        return found

    @cached_property
    def carriers(self) -> dict[str, Carrier]:
        """What each of the clients that have joined carries, where the rows are those of all of them."""
        clients = {name: party.client for name, party in self.parties.items() if party.joined}
        ids = {name: row_ids(one.shared_like, one.data, one.channel) for name, one in clients.items()}
        rows = catalogue(list(ids.values()))
        return {name: carrier(name, one.shared_like, ids[name], rows, 1.0) for name, one in clients.items()}

    def first(self, name: str) -> Contribution:
        """Return what a client joins with; raises what goes wrong."""
        self.parties[name].joined, reply = join(self.parties[name].client)
        return reply

    def as_programs(self, kind: str, call: Call) -> Answers:
        """Let clients that are stacked answer what they were sent."""
        found = Answers([])
        for program in self.programs:
            made = program.answer(kind, call)
            found.contributions.extend(made.contributions)
            found.subtotals.extend(made.subtotals)
            found.failed.update(made.failed)
        return found

    def one_by_one(self, kind: str, call: Call) -> Answers:
        """Let clients answer what they were sent, one after the other; those of a chunk are summed as they come."""
        found, members = Answers([]), dict[int, list[str]]()
        self.shelf = [] if len(call.broadcasts) >= MANY else None
        for name in call.broadcasts:  # a chunk has one sum, also where a client of it that is not summed stands between
            members.setdefault(call.chunks.get(name, (ALONE, 0.0))[0], []).append(name)
        for number, names in members.items():
            replies = self.replies(kind, call, names, found)
            if number == ALONE:
                found.contributions.extend(replies)
            else:
                found.subtotals.extend(self.summed(call, names, replies, found))
        if self.shelf:
            client = self.parties[self.shelf[0].client].client
            assert client.home is not None
            keep(client.home, self.shelf, keys(client.experiment))
            self.shelf = None
        return found

    def replies(self, kind: str, call: Call, names: Sequence[str], found: Answers) -> Iterator[Contribution]:
        """Yield the contributions of clients; note the failures."""
        for name in names:
            try:
                reply = self.reply(kind, name, call.broadcasts[name])
            except Exception as error:
                found.failed[name] = words(error)
            else:
                yield reply

    def reply(self, kind: str, name: str, sent: Broadcast) -> Contribution:
        """Return what a client contributes; raises what goes wrong."""
        party = self.party(name)
        if kind == "train":
            if party.client.experiment.secure.active:
                raise ContractError("secure: the answer must go into a secure sum, found a request for it as it is")
            party.joined, reply, _ = trained(party.client, party.state, sent)
        else:
            party.joined, reply = evaluated(party.client, party.state, sent, self.shelf)
        return reply

    def summed(
        self, call: Call, names: Sequence[str], replies: Iterator[Contribution], found: Answers
    ) -> list[Subtotal]:
        """Return the sum of what a chunk answers; nothing of a chunk in which nobody does."""
        members = {name: replace(self.carriers[name], weight=call.chunks[name][1]) for name in names}
        rows, counts = union(list(members.values())), dict[str, list[int]]()

        def parts() -> Iterator[tuple[Carrier, Params, Params]]:
            for reply in self.proportionate(call, replies, found):
                found.contributions.append(replace(reply, values={}))
                for name, count in filled(reply.values).items():
                    counts.setdefault(name, []).append(count)
                yield members[reply.client], reply.values, self.measured_from(call, reply)

        total = replace(subtotal(parts(), rows), counts=counts)
        if len(total.clients) < len(names):
            kept = union([members[name] for name in total.clients])
            rest = {n: v[torch.isin(rows[n], kept[n])] if n in rows else v for n, v in total.values.items()}
            total = replace(total, values=rest)
        return [total] if total.clients else []

    def by_sums(self, name: str) -> bool:
        """Return whether what a client answers is to be added to what the server has."""
        return self.party(name).client.experiment.by_sums

    def measured_from(self, call: Call, reply: Contribution) -> Params:
        """Return what the distance of an answer is measured from; of what is added nobody asks for one."""
        return reply.values if self.by_sums(reply.client) else call.broadcasts[reply.client].values

    def proportionate(self, call: Call, replies: Iterable[Contribution], found: Answers) -> Iterator[Contribution]:
        """Yield the replies that may be added up, in their order; note the failures.

        They are added as they come. From the first on that is large they wait for those beside which it is judged.
        """
        held: list[Contribution] = []
        changes: dict[str, float] = {}
        for reply in replies:
            z, increments = call.broadcasts[reply.client].values, self.by_sums(reply.client)
            try:
                reply = replace(reply, values=admit(reply.values, self.carriers[reply.client].like))
                if reply.rows:
                    raise ContractError("record rows: must be sent to join alone, found it in an answer")
                admit_metrics(reply.metrics, call.told)
                admit_told(reply, frozenset(call.told))
            except ContractError as error:
                found.failed[reply.client] = str(error)
                continue
            changes[reply.client] = change(reply.values, z, increments)
            if held or large(reply.values, z, increments):
                held.append(reply)
            else:
                yield reply
        refused = too_far(changes, {reply.client: size(call.broadcasts[reply.client].values) for reply in held})
        found.failed.update(refused)
        yield from (reply for reply in held if reply.client not in refused)

    def stage(self, kind: str, content: RecordDict) -> RecordDict:
        """Return what clients answer to a stage of a secure sum, each to a message of its own."""
        found: dict[str, RecordDict] = {}
        failed: dict[str, str] = {}
        for name, one in unbundled(content)[0].items():
            try:
                found[name] = self.staged(kind, name, one)
            except Exception as error:
                failed[name] = words(error)
        return bundled(found, failed)

    def staged(self, kind: str, name: str, content: RecordDict) -> RecordDict:
        """Return what a client answers to a stage of a secure sum; raises what goes wrong."""
        return answer_in_secret(kind, content, self.party(name), trained)

    def party(self, name: str) -> Party:
        """Return a client of this node; raises ContractError for any other."""
        if name not in self.parties:
            raise ContractError(f"client: must be of this node, found {name!a}")
        return self.parties[name]

    def state(self) -> RecordDict:
        """Return the private state of all clients."""
        return saved(self.parties)

    def restore(self, state: RecordDict) -> None:
        """Go back to a state; clients that are stacked must have joined."""
        restore(self.parties, state)


def words(error: Exception) -> str:
    """Return what a node tells of a failure: of a broken contract its text, of anything else only the kind.

    Another exception's text may quote private data; with the traceback it stays in the node's own log.
    """
    if isinstance(error, ContractError | UserError):
        return str(error)[:TEXT]
    logging.getLogger(__name__).error("a client failed", exc_info=error)
    return type(error).__name__
