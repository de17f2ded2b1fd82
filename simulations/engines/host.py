"""A host: one node that runs a cohort of clients, each with a context of its own."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedrec.data.types import Ints
from fedrec.keyed import Carrier, Subtotal, carrier, catalogue, subtotal, union
from fedrec.parameters import Params, norm, same
from fedrec.proportion import change, large, too_far
from fedrec.sharing import Broadcast, ContractError, Contribution, admit, admit_metrics, admit_start
from fedrec.wire import ALONE, Answers, Call, answers_record, broadcast_record, pack, read_call, read_contribution
from fedrec.wire.bundle import bundled, unbundled
from fedrec.wire.messages import TEXT
from fedrec.wire.secure import STAGES
from server.scores import admit_told
from simulations.engines.local import RUN_ID, SERVER_NODE, identify


class Host:
    """Runs its clients one after the other with the ClientApp that every engine runs.

    `partitions` are the clients' indices, `devices` where each trains ("" is for the client to decide).
    """

    def __init__(self, app: ClientApp, partitions: Sequence[int], clients: int, device: str = "") -> None:
        identify()
        self.app = app
        given = {"device": device} if device else {}
        self.contexts = [
            Context(
                run_id=RUN_ID,
                node_id=SERVER_NODE + 1 + i,
                node_config={"partition-id": i, "num-partitions": clients, **given},
                state=RecordDict(),
                run_config={},
            )
            for i in partitions
        ]
        self.places: dict[str, int] = {}
        self.carriers: dict[str, Carrier] = {}

    def answer(self, kind: str, content: RecordDict) -> RecordDict:
        """Return what the clients answer to a message of the server; a client that fails is named in it."""
        if kind in STAGES:
            return self.relay(kind, content)
        return answers_record(self.join(content) if kind == "query.join" else self.call(kind, read_call(content)))

    def join(self, content: RecordDict) -> Answers:
        """Let every client join; equal initial tensors are kept once."""
        replies = {place: admissible(self.ask("query.join", content, place)) for place in range(len(self.contexts))}
        names = Counter(reply.client for reply in replies.values() if isinstance(reply, Contribution))
        found: list[Contribution] = []
        failed: dict[str, str] = {}
        for place, reply in replies.items():
            if isinstance(reply, Contribution) and names[reply.client] > 1:
                reply = f"must have a name of its own, found it {names[reply.client]} times"
            if isinstance(reply, str):
                failed[f"partition {self.contexts[place].node_config['partition-id']}"] = reply
                continue
            if found and same(found[-1].values, reply.values):
                reply = replace(reply, values=found[-1].values)
            found.append(reply)
            self.places[reply.client] = place
        rows: dict[str, Ints] = catalogue([one.rows for one in found])
        self.carriers = {one.client: carrier(one.client, one.values, one.rows, rows, 1.0) for one in found}
        return Answers(found, [], failed)

    def call(self, kind: str, call: Call) -> Answers:
        """Let clients answer what they were sent; those of a chunk are summed as they come."""
        found, members = Answers([]), dict[int, list[str]]()
        for name in call.broadcasts:  # a chunk has one sum, also where a client of it that is not summed stands between
            members.setdefault(call.chunks.get(name, (ALONE, 0.0))[0], []).append(name)
        for number, names in members.items():
            if number == ALONE:
                found.contributions.extend(reply for reply, _ in self.each(kind, call, names, found))
            else:
                found.subtotals.extend(self.summed(kind, call, names, found))
        return found

    def each(
        self, kind: str, call: Call, names: Sequence[str], found: Answers
    ) -> Iterator[tuple[Contribution, Broadcast]]:
        """Yield the contributions of clients; note the failures."""
        packed: dict[int, ArrayRecord] = {}  # what many clients are sent alike
        for name in names:
            broadcast = call.broadcasts[name]
            if id(broadcast.values) not in packed:
                packed[id(broadcast.values)] = pack(broadcast.values)
            reply = self.ask(kind, broadcast_record(broadcast, packed[id(broadcast.values)]), self.places[name])
            if isinstance(reply, str):
                found.failed[name] = reply
            elif reply.client != name:
                found.failed[name] = f"must answer under its own name, found {reply.client!a}"
            else:
                yield reply, broadcast

    def summed(self, kind: str, call: Call, names: Sequence[str], found: Answers) -> list[Subtotal]:
        """Return the sum of what a chunk answers; nothing of a chunk in which nobody does."""
        members = {name: replace(self.carriers[name], weight=call.chunks[name][1]) for name in names}
        rows = union(list(members.values()))

        def parts() -> Iterator[tuple[Carrier, Params, Params]]:
            for reply, z in self.proportionate(call, self.each(kind, call, names, found), members, found):
                found.contributions.append(replace(reply, values={}))
                yield members[reply.client], reply.values, z

        total = subtotal(parts(), rows)
        if len(total.clients) < len(names):
            kept = union([members[name] for name in total.clients])
            rest = {n: v[torch.isin(rows[n], kept[n])] if n in rows else v for n, v in total.values.items()}
            total = replace(total, values=rest)
        return [total] if total.clients else []

    def proportionate(
        self,
        call: Call,
        replies: Iterable[tuple[Contribution, Broadcast]],
        members: Mapping[str, Carrier],
        found: Answers,
    ) -> Iterator[tuple[Contribution, Params]]:
        """Yield the replies that may be added up, in their order, each with what it answers; note the failures.

        They are added as they come. From the first on that is large they wait for those beside which it is judged.
        """
        held: list[tuple[Contribution, Params]] = []
        changes: dict[str, float] = {}
        for reply, broadcast in replies:
            try:
                reply = replace(reply, values=admit(reply.values, members[reply.client].like))
                if reply.rows:
                    raise ContractError("record rows: must be sent to join alone, found it in an answer")
                admit_metrics(reply.metrics, call.told)
                admit_told(reply, frozenset(call.told))
            except ContractError as error:
                found.failed[reply.client] = str(error)
                continue
            changes[reply.client] = change(reply.values, broadcast.values)
            if held or large(reply.values, broadcast.values):
                held.append((reply, broadcast.values))
            else:
                yield reply, broadcast.values
        refused = too_far(changes, {reply.client: norm(z) for reply, z in held})
        found.failed.update(refused)
        yield from (one for one in held if one[0].client not in refused)

    def relay(self, kind: str, content: RecordDict) -> RecordDict:
        """Return what clients answer to a stage of a secure sum, each to a message of its own."""
        found: dict[str, RecordDict] = {}
        failed: dict[str, str] = {}
        for name, one in unbundled(content)[0].items():
            reply = self.reply(kind, one, self.places[name])
            if isinstance(reply, str):
                failed[name] = reply
            else:
                found[name] = reply
        return bundled(found, failed)

    def ask(self, kind: str, content: RecordDict, place: int) -> Contribution | str:
        """Return what a client contributes, or the reason why it does not."""
        reply = self.reply(kind, content, place)
        try:
            return reply if isinstance(reply, str) else read_contribution(reply)
        except ContractError as error:
            return str(error)

    def reply(self, kind: str, content: RecordDict, place: int) -> RecordDict | str:
        """Return what a client answers, or the reason why it does not."""
        message = Message(content, self.contexts[place].node_id, kind, group_id="0")
        message.metadata.__dict__["_message_id"] = str(place)
        try:
            reply = self.app(message, self.contexts[place])
            return str(reply.error.reason)[:TEXT] if reply.has_error() else reply.content
        except Exception as error:
            return type(error).__name__

    def state(self) -> RecordDict:
        """Return the private state of all clients."""
        return RecordDict(
            {f"{place}/{name}": record for place, one in enumerate(self.contexts) for name, record in one.state.items()}
        )

    def restore(self, state: RecordDict) -> None:
        """Go back to a state; the clients must have joined."""
        for context in self.contexts:
            context.state = RecordDict()
        for key, record in state.items():
            place, _, name = key.partition("/")
            self.contexts[int(place)].state[name] = record


def admissible(reply: Contribution | str) -> Contribution | str:
    """Return what a client joins with if the others can go on beside it, or the reason why they cannot."""
    try:
        return reply if isinstance(reply, str) else admit_start(reply)
    except ContractError as error:
        return str(error)
