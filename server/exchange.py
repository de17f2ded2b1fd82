"""Messages to the clients and their answers: admitted against the contract, counted in the ledger, in one order."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedrec.experiment.records import Record, natural
from fedrec.federation.codecs import Coding, Scope
from fedrec.keyed import Carrier, Subtotal, chunks
from fedrec.params import Params
from fedrec.sharing import Broadcast, ContractError, Contribution, admit_metrics, admit_start
from fedrec.wire import Call, Entry, call_record, pack, stand_in
from fedrec.wire.messages import Packed
from server.cohorts import Equal, Letters, Opened, Tally, admit_subtotal, calls, open_answer
from server.faults import Fault, Outcome, Refused, review, unheard, unlike

TIMEOUT = 24 * 3600.0
NOBODY: Mapping[str, Carrier] = {}
Admitted = dict[tuple[int, int], Params]
Refuse = Callable[[Mapping[str, Contribution]], Mapping[str, str]]  # answers of a cohort -> what is wrong with some


def none_refused(answers: Mapping[str, Contribution]) -> Mapping[str, str]:
    """Find nothing wrong with answers beside one another."""
    return {}


@dataclass
class Exchange:
    """Sends messages over a grid. Every answer is checked before anybody sees it; one that fails becomes a Fault."""

    grid: Grid
    record: Record
    hosts: bool = False  # whether a node of this grid may have several clients; else none speaks for another
    codec: Coding = field(default_factory=Coding)  # of the answers to training
    increments: bool = False  # whether these are increments
    seed: int = 0  # of what both sides of a codec draw
    nodes: dict[str, int] = field(default_factory=dict)  # by client, in the order of all sums

    def join(self, nodes: Sequence[int]) -> Outcome:
        """Ask every node for the initial shared tensors, row ids and number of examples of its clients.

        A client takes no part in the run if its answer does not count, if another has its name, or if a parameter has
        another form than most clients'.
        """
        answers = self.answers(
            [Message(RecordDict({"shared.0": pack({})}), node, "query.join", group_id="0") for node in nodes]
        )
        most = math.inf if self.hosts else 1
        outcome, joined, equal = Outcome(), [], Equal()
        for node in nodes:
            # Taken from the answers: of a thousand tables there is one copy at a time, not two.
            letters, known = open_answer(answers.pop(node, None), [f"node {node}"], most=most).letters, Admitted()
            for letter in letters.values():
                reply = review(letter, partial(admit_start, known=known))
                if isinstance(reply, Contribution):
                    joined.append((node, equal.first(reply)))
                else:
                    outcome.faults.append(Fault(0, reply.client or f"node {node}", "join", reply.kind, reply.text))
            equal.looked.clear()
        # The name itself comes last in the key: "7" and "07" are equal to `natural`, and sums must have one order.
        joined.sort(key=lambda pair: (natural(pair[1].client), pair[1].client))
        names = Counter(reply.client for _, reply in joined)
        wrong = {name: f"must have a name of its own, found it {n} times" for name, n in names.items() if n > 1}
        wrong |= unlike([reply for _, reply in joined if reply.client not in wrong])
        wrong |= unheard([reply for _, reply in joined if reply.client not in wrong])
        for node, reply in joined:
            if reply.client in wrong:
                outcome.faults.append(Fault(0, reply.client, "join", "contract", wrong[reply.client]))
                continue
            self.nodes[reply.client] = node
            outcome.replies.append(reply)
        up = Tally(0, "up")
        for reply in outcome.replies:
            up.add(reply.client, reply.values, None, reply.metrics, reply.rows)
        self.record.tally(up.alike.values())
        return outcome

    def send(
        self,
        kind: str,
        broadcasts: Mapping[str, Broadcast],
        like: Mapping[str, Params],
        metrics: frozenset[str],
        check: Callable[[Contribution], object] = lambda reply: None,
        lost: frozenset[str] = frozenset(),
        deadline: float = 0.0,
        summed: Mapping[str, Carrier] = NOBODY,
        refuse: Refuse = none_refused,
    ) -> Outcome:
        """Send each client its broadcast; return what became of it, in the clients' order.

        A reply counts if it stands for exactly the tensors of `like`, with metrics of the allow-list, `check` raises no
        ContractError, it comes within `deadline` seconds (0: within a day), it is not among the `lost`, and `refuse`
        finds nothing wrong with it beside those of its cohort, the clients that are summed with it. Of the clients in
        `summed` the server needs only the sum: a node may add up what they send.
        """
        first = next(iter(broadcasts.values()))
        number = first.round
        sums = {name: who for name, who in summed.items() if name not in lost} if self.hosts else {}
        asked = calls(broadcasts, self.nodes, sums, metrics)
        down, up = Tally(number, "down"), Tally(number, "up")
        for name, broadcast in broadcasts.items():
            down.add(name, broadcast.values, broadcast.control, rows=broadcast.rows)
        self.record.tally(down.alike.values())
        letters: Letters = {}
        outcome = Outcome()
        answers = self.answers(self.messages(kind, asked, number), deadline)
        for node, call in asked.items():
            answer = open_answer(answers.pop(node, None), list(call.broadcasts), deadline)
            letters |= answer.letters
            outcome.subtotals.extend(admit_sums(answer, call, sums, letters))
        inside = {
            name: {entry: int(counts[place]) for entry, counts in part.counts.items()}
            for part in outcome.subtotals
            for place, name in enumerate(part.clients)
        }
        letters |= dict.fromkeys(lost & broadcasts.keys(), Refused("dropout", "dropped out, as the run says"))
        verdicts = {}
        for name, sent in broadcasts.items():
            expected = {} if name in inside else like.get(name, {})
            scope = Scope(self.seed, name, number)
            read = partial(self.codec.read, increments=self.increments, scope=scope)
            admit = partial(admit_answer, z=sent.values, like=expected, metrics=metrics, check=check, read=read)
            verdicts[name] = review(letters[name], admit)
        verdicts |= refuse_cohorts(verdicts, self.nodes, refuse)
        during = first.split if kind == "evaluate" else kind
        for name, broadcast in broadcasts.items():
            reply, letter = verdicts[name], letters[name]
            if isinstance(reply, Contribution):
                assert isinstance(letter, Contribution)  # nothing else counts
                told = letter.values
                if name in inside:  # what is added up travels as what was sent, but for sums
                    told = stand_in(summed[name].like, inside[name]) if inside[name] else broadcast.values
                up.add(name, told, metrics=reply.metrics)
                outcome.replies.append(reply)
                continue
            outcome.faults.append(Fault(number, name, during, reply.kind, reply.text))
            if isinstance(letter, Contribution):
                self.record.log([name], [refused_entry(letter, number)])
        self.record.tally(up.alike.values())
        return whole_sums(outcome)

    def messages(self, kind: str, asked: Mapping[int, Call], number: int) -> list[Message]:
        """Return the message to every node; what clients have in common is packed once."""
        packed: Packed = {}
        return [Message(call_record(call, packed), node, kind, group_id=str(number)) for node, call in asked.items()]

    def answers(self, messages: Sequence[Message], deadline: float = 0.0) -> dict[int, Message]:
        """Send messages and return every node's reply that came within `deadline` seconds (0: within a day)."""
        replies = self.grid.send_and_receive(messages, timeout=deadline or TIMEOUT)
        return {reply.metadata.src_node_id: reply for reply in replies}


def admit_answer(
    reply: Contribution,
    z: Params,
    like: Params,
    metrics: frozenset[str],
    check: Callable[[Contribution], object],
    read: Callable[[Params, Params, Params], Params],
) -> Contribution:
    """Return a reply with its tensors in the order of `like`; raises ContractError for what it may not hold."""
    if reply.rows:
        raise ContractError("record rows: must be sent to join alone, found it in an answer")
    # The task/metric of client/task/metric, and any other name as it is.
    admit_metrics({"/".join(metric.rsplit("/", 2)[-2:]): value for metric, value in reply.metrics.items()}, metrics)
    reply = replace(reply, values=read(reply.values, z, like)) if reply.values or like else reply
    check(reply)
    return reply


def refuse_cohorts(
    answers: Mapping[str, Contribution | Refused], order: Iterable[str], refuse: Refuse
) -> dict[str, Refused]:
    """Return the refusals of answers beside those of their cohorts.

    A cohort is a chunk of the clients in their order, which one node may see too: the verdict is the same whoever sums.
    """
    chunk, cohorts = chunks(order), dict[int, dict[str, Contribution]]()
    for name, reply in answers.items():
        if isinstance(reply, Contribution) and name in chunk:
            cohorts.setdefault(chunk[name], {})[name] = reply
    return {name: Refused("contract", text) for cohort in cohorts.values() for name, text in refuse(cohort).items()}


def admit_sums(answer: Opened, call: Call, carriers: Mapping[str, Carrier], letters: Letters) -> list[Subtotal]:
    """Return the sums of a node that count; the clients of one that does not are refused in `letters`."""
    sums: list[Subtotal] = []
    for part in answer.subtotals:
        try:
            if any(set(part.clients) & set(other.clients) for other in sums):
                raise ContractError("sum: must be the only one of its clients, found another")
            sums.append(admit_subtotal(part, call, carriers))
        except ContractError as error:
            refused = Refused("contract", str(error))
            letters |= {name: refused for name in part.clients if name in call.broadcasts}
    return sums


def whole_sums(outcome: Outcome) -> Outcome:
    """Return an outcome without the sums of which a client was refused: they cannot be taken without it."""
    refused = {fault.client: fault for fault in outcome.faults}
    broken = [part for part in outcome.subtotals if refused.keys() & set(part.clients)]
    lost = {name: part for part in broken for name in part.clients if name not in refused}
    text = "was summed with a client that is refused"
    faults = [replace(outcome.faults[0], client=name, kind="contract", text=text) for name in lost]
    replies = [reply for reply in outcome.replies if reply.client not in lost]
    sums = [part for part in outcome.subtotals if part not in broken]
    return Outcome(replies, [*outcome.faults, *faults], sums)


def refused_entry(sent: Contribution, number: int) -> Entry:
    """Return the one line of the byte ledger for an answer that was refused, whatever it holds."""
    size = sum(len(array.data) for array in pack(sent.values).values())
    return Entry(number, sent.client, "up", "refused", 0, size)
