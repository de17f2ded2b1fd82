"""The server's half of a secure sum: four stages of a round, of which all but t clients may be lost at each.

It relays public keys and sealed shares, adds up what the clients send under masks, and takes the masks off the sum. A
round that fewer than t clients see to its end has no sum, and ends the run. Of a sum that no honest clients add up to
nobody can tell whose part is wrong: the answers of all its clients are refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

from fedrec.experiment.records import to_row
from fedrec.federation.codecs import Squeeze
from fedrec.keyed import TABLES, Carrier, carried, wide
from fedrec.params import Params
from fedrec.privacy.encoding import Layout
from fedrec.privacy.masks import KEY, Words, agree
from fedrec.privacy.secure_sum import Keys, Stage, Terms, unmask_sum
from fedrec.privacy.shamir import SHARE
from fedrec.sharing import Broadcast, ContractError, Contribution, admit_metrics, is_sum
from fedrec.wire import Entry
from fedrec.wire.bundle import bundled, unbundled
from fedrec.wire.messages import Packed
from fedrec.wire.secure import (
    KINDS,
    SEALED,
    Masked,
    Sum,
    keys_call,
    masked_call,
    read_keys,
    read_masked_answer,
    read_shares,
    roster_call,
    secure_ledger,
    unmask_call,
)
from server.exchange import Exchange
from server.faults import Fault, Outcome, Refused, content_of
from server.state import State

T = TypeVar("T")
NOBODY: frozenset[str] = frozenset()


@dataclass
class SecureRound:
    """One round of secure sums over an exchange, with `deadline` seconds for every stage (0: within a day)."""

    exchange: Exchange
    terms: Terms
    number: int
    deadline: float = 0.0
    faults: list[Fault] = field(default_factory=list)

    def ask(
        self,
        stage: Stage,
        contents: Mapping[str, RecordDict],
        read: Callable[[RecordDict, str], T],
        lost: frozenset[str] = NOBODY,
    ) -> dict[str, T]:
        """Return the answers to a stage as `read`, and note faults; raises ClientFailure if too few are left."""
        self.log(contents, "down")
        letters, answers = self.letters(KINDS[stage], contents), dict[str, T]()
        for name in contents:
            try:
                if name in lost:
                    raise Refused("dropout", "dropped out, as the run says")
                letter = letters[name]
                if isinstance(letter, Refused):
                    raise letter
                answers[name] = read(letter, name)
                self.log({name: letter}, "up")
            except Refused as refused:
                self.faults.append(Fault(self.number, name, stage, refused.kind, refused.text))
            except ContractError as error:
                self.faults.append(Fault(self.number, name, stage, "contract", Refused("contract", str(error)).text))
                self.exchange.record.log([name], [refused_entry(letters[name], self.number, name)])
        if len(answers) < self.terms.threshold:
            self.exchange.record.faults += [to_row(fault) for fault in self.faults]
            left = Outcome([Contribution(name, {}) for name in answers], self.faults)
            left.require(self.terms.threshold, f"round {self.number}, {stage} of the secure sum")
        return answers

    def letters(self, kind: str, contents: Mapping[str, RecordDict]) -> dict[str, RecordDict | Refused]:
        """Return the clients' answers as they came, those of one node in one message."""
        homes: dict[int, list[str]] = {}
        for name in contents:
            homes.setdefault(self.exchange.nodes[name], []).append(name)
        messages = [
            Message(bundled({name: contents[name] for name in names}), node, kind, group_id=str(self.number))
            for node, names in homes.items()
        ]
        answers = self.exchange.answers(messages, self.deadline)
        letters: dict[str, RecordDict | Refused] = {}
        for node, names in homes.items():
            letters |= open_letters(answers.get(node), names, self.deadline)
        return letters

    def log(self, contents: Mapping[str, RecordDict], direction: str) -> None:
        """Add messages to the byte ledger."""
        for name, content in contents.items():
            self.exchange.record.log([name], secure_ledger(content, self.number, name, direction))

    def broken(self, replies: Sequence[Contribution], text: str) -> Outcome:
        """Return the outcome of a round of which the sum is refused, with all who are in it."""
        return Outcome([], [*self.faults, *(Fault(self.number, r.client, "unmask", "contract", text) for r in replies)])

    def open_sum(self, keys: Mapping[str, Keys], dealt: Sequence[str], sums: Mapping[str, Sum]) -> Words:
        """Return the sum without its masks; raises ContractError if what the clients give for it does not fit."""
        survivors, dropped = list(sums), [name for name in dealt if name not in sums]
        call = unmask_call(self.number, survivors, dropped)
        shares = self.ask(
            "unmask", dict.fromkeys(sums, call), lambda content, name: read_shares(content, name, SHARE, dealt)
        )
        total = np.zeros_like(next(iter(sums.values())).words)
        for part in sums.values():
            total += part.words
        return unmask_sum(total, self.number, self.terms.threshold, keys, survivors, dropped, shares)


def admit_keys(keys: Keys, taken: set[bytes]) -> Keys:
    """Return a client's keys if they are keys, and its own; raises ContractError.

    For a roster with a key twice, or one that is none, every client would refuse its part in the round.
    """
    for key in (keys.mask, keys.seal):
        agree(token_bytes(KEY), key)
        if key in taken:
            raise ContractError("keys: must be two of its own, found one twice")
        taken.add(key)
    return keys


def refused_entry(content: RecordDict | Refused, number: int, client: str) -> Entry:
    """Return the one line of the byte ledger for an answer that was refused, whatever it holds."""
    arrays = [] if isinstance(content, Refused) else [r for r in content.values() if isinstance(r, ArrayRecord)]
    return Entry(number, client, "up", "refused", 0, sum(len(raw.data) for record in arrays for raw in record.values()))


def open_letters(answer: Message | None, names: Sequence[str], deadline: float) -> dict[str, RecordDict | Refused]:
    """Return the letters of the clients of a node; what is missing or cannot be read is a refusal of each of them."""
    try:
        contents, failed = unbundled(content_of(answer, deadline))
    except Refused as refused:
        return dict.fromkeys(names, refused)
    except ContractError as error:
        return dict.fromkeys(names, Refused("contract", str(error)))
    silent = Refused("silence", "did not answer")
    return {
        name: Refused("error", f"failed: {failed[name]}") if name in failed else contents.get(name, silent)
        for name in names
    }


def layout_of(carriers: Sequence[Carrier], rows: Mapping[str, NDArray[np.int64]], z: Params, least: int) -> Layout:
    """Return the layout of what at least so many of the clients carry; `rows` are the server's row ids by key space.

    What only one of them carries would be in the sum as it is.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    ids = {}
    for name in sorted(z):
        held = carried(name, carriers, z)
        inside = (held >= least).numpy()
        if name in TABLES:
            ids[name] = rows[TABLES[name]][inside]
            shapes[name] = (len(ids[name]), *z[name].shape[1:])
        elif inside[0]:
            shapes[name] = tuple(z[name].shape)
    return Layout(shapes, ids)


def home_notes(carriers: Mapping[str, Carrier], z: Params, terms: Terms) -> list[str]:
    """Return a note for every tensor of which too few clients carry some, which therefore stay at home."""
    notes = []
    for name in z:
        few = int((carried(name, carriers.values(), z) < terms.carriers).sum())
        if few:
            what = f"{few} rows of {name}" if name in TABLES else name
            notes.append(f"secure sums: {what} stay at home, carried by fewer than {terms.carriers} clients")
    return notes


def mean_change(
    words: Words,
    layout: Layout,
    terms: Terms,
    survivors: Sequence[Carrier],
    everybody: Sequence[Carrier] | None,
    z: Params,
    rows: Mapping[str, NDArray[np.int64]],
    squeeze: Squeeze,
) -> Params:
    """Return the mean of x_i - z [server rows], row by row over the survivors that carry it; 0 where nothing is.

    Of sums over users it is their sum. With duals the sum is of increments of v_i, and `everybody` counts in the mean:
    who sent none has moved nothing. With a codec it is of payloads, of changes. Raises ContractError for a sum that no
    answers within the bounds add up to.
    """
    entries, masses = terms.values(words[: -layout.masses]), words[-layout.masses :].astype(np.float64)
    most = np.inf if terms.noise else len(survivors) * masses.max(initial=0.0) * terms.encoding.bound * (1 + 1e-9)
    if squeeze.codec and np.abs(entries).max(initial=0.0) > most:
        raise ContractError("secure sum: it must lie within the bounds of its clients, found that it does not")
    values, mass = layout.take(squeeze.decode(entries), masses)
    change = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in z.items()}
    for name, total in values.items():
        places = torch.from_numpy(np.isin(rows[TABLES[name]], layout.rows[name])) if name in TABLES else slice(None)
        held = carried(name, survivors, z)[places]
        limit = np.inf if terms.noise or squeeze.codec else terms.encoding.bound * (1 + 1e-9)
        if not bool(((held <= mass[name]) & (mass[name] <= held * terms.encoding.weight)).all()) or not bool(
            (total.abs() <= wide(mass[name], total) * limit).all()
        ):
            raise ContractError(f"secure sum: {name} must lie within the bounds of its clients, found that it does not")
        if is_sum(name):
            change[name][places] = total
            continue
        over = wide(carried(name, everybody, z)[places] if everybody else mass[name], total)
        before = 0.0 if everybody or terms.noise or squeeze.codec else z[name][places].double()
        change[name][places] = torch.where(over > 0, total / over.clamp(min=1.0) - before, 0.0)
    return change


def sum_up(c: State, terms: Terms, number: int, broadcasts: Mapping[str, Broadcast], lost: frozenset[str]) -> Outcome:
    """Return what became of a round whose answers are summed in secret: the mean change, and who is in it.

    Where what the clients of the sum give for it does not fit, all of them are refused. Raises ClientFailure where too
    few are left.
    """
    round_, taken = SecureRound(c.exchange, terms, number, c.plan.turnout.deadline), set[bytes]()
    keys = round_.ask(
        "keys",
        {name: keys_call(number) for name in broadcasts},
        lambda content, name: admit_keys(read_keys(content, name), taken),
    )
    call = roster_call(number, keys)
    sealed = round_.ask(
        "shares",
        dict.fromkeys(keys, call),
        lambda content, name: read_shares(content, name, SEALED, [peer for peer in keys if peer != name]),
    )
    places = layout_of([c.carriers[name] for name in sealed], c.record.rows, c.z, terms.carriers)
    squeeze = Squeeze.of(c.plan.codec, c.plan.seed, number, places.size)
    packed: Packed = {}  # what many clients are sent alike
    calls: dict[str, RecordDict] = {}
    for name in sealed:
        peers = [(peer, shares[name]) for peer, shares in sealed.items() if peer != name]
        calls[name] = masked_call(name, Masked(broadcasts[name], peers, places), packed)

    length = squeeze.size + places.masses

    def read(content: RecordDict, name: str) -> Sum:
        answer = read_masked_answer(content, name, length)
        admit_metrics(answer.metrics, c.plan.told)
        c.plan.check(Contribution(answer.client, {}, answer.metrics, answer.device), True)
        return answer

    sums = round_.ask("masked", calls, read, lost)
    replies = [Contribution(answer.client, {}, answer.metrics, answer.device) for answer in sums.values()]
    inside = [c.carriers[reply.client] for reply in replies]
    everybody = list(c.carriers.values()) if c.plan.coupling.duals else None
    try:
        words = round_.open_sum(keys, list(sealed), sums)
        change = mean_change(words, places, terms, inside, everybody, c.z, c.record.rows, squeeze)
    except ContractError as error:
        return round_.broken(replies, str(error))
    return Outcome(replies, round_.faults, change=change)
