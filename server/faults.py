"""Answers that do not count: what was wrong with them, and when too few are left."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict

from fedrec.federation.proportion import too_far
from fedrec.keyed import TABLES, Subtotal
from fedrec.params import Params, norm
from fedrec.sharing import ContractError, Contribution

LONGEST = 300  # characters of a fault's text, which a client may have written


class ClientFailure(RuntimeError):
    """Too few clients answered, or are there; the text names those that did not."""


@dataclass(frozen=True)
class Fault:
    """An answer that does not count; a row of `faults.csv`.

    `during` is join, train, validation, test, or a stage of a secure sum: keys, shares, masked, unmask. `kind` is
    dropout (lost as the experiment says), silence (none came in time), error (the client raised), contract (what it
    sent is not what it may send), or guarantee (too few answers for what a robust rule promises).
    """

    round: int
    client: str
    during: str
    kind: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """What became of a message to several clients: the answers that count, in the clients' order, and the others."""

    replies: list[Contribution] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    subtotals: list[Subtotal] = field(default_factory=list)  # of clients whose replies then hold no tensors
    change: Params | None = None  # the mean change of a secure sum, whose replies hold no tensors either

    def require(self, needed: int, what: str) -> None:
        """Raise ClientFailure that names every client without a valid answer, if fewer than `needed` have one."""
        if len(self.replies) < needed:
            total = len(self.replies) + len(self.faults)
            texts: dict[str, list[str]] = {}
            for fault in self.faults:
                texts.setdefault(fault.text, []).append(fault.client)
            why = "; ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
            raise ClientFailure(f"{what}: {needed} of {total} clients must answer, found {len(self.replies)} ({why})")


def review(letter: "Contribution | Refused", judge: Callable[[Contribution], Contribution]) -> "Contribution | Refused":
    """Return what came from a client, if `judge` admits it, and else why not."""
    if isinstance(letter, Refused):
        return letter
    try:
        return judge(letter)
    except ContractError as error:
        return Refused("contract", str(error), letter.client)


class Refused(Exception):
    """Why an answer does not count; `text` is one printable line, `client` whose it says that it is."""

    def __init__(self, kind: str, text: str, client: str = "") -> None:
        line = "".join(c if c.isprintable() else " " for c in text)
        super().__init__(line)
        self.kind, self.client, self.text = kind, client, line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def content_of(answer: Message | None, deadline: float = 0.0) -> RecordDict:
    """Return what a node answered; raises Refused if it is not there, tells of a failure, or is empty."""
    if answer is None:
        raise Refused("silence", f"did not answer within {deadline:g} s" if deadline else "did not answer")
    if answer.has_error():
        raise Refused("error", f"failed: {answer.error.reason}")
    if not answer.has_content():
        raise Refused("contract", "must have a content, found none")
    return answer.content


def unlike(replies: Sequence[Contribution]) -> dict[str, str]:
    """Return, for each client with a parameter of another form than most clients have, what is wrong with it.

    The form is the dtype and the shape, of a table the width. The first in order wins a tie.
    """
    forms: dict[str, Counter[str]] = {}
    each = {key: forms_of(values) for key, values in distinct(replies).items()}
    for key, count in Counter(id(reply.values) for reply in replies).items():
        for name, form in each[key].items():
            forms.setdefault(name, Counter())[form] += count
    usual = {name: counts.most_common(1)[0][0] for name, counts in forms.items()}
    unusual = {
        key: next((f"{n}: must have {usual[n]}, found {form}" for n, form in found.items() if form != usual[n]), "")
        for key, found in each.items()
    }
    return {reply.client: unusual[id(reply.values)] for reply in replies if unusual[id(reply.values)]}


def unheard(replies: Sequence[Contribution]) -> dict[str, str]:
    """Return, for each client whose first tensors are out of all proportion to the others', what is wrong with them."""
    norms = {key: norm(values) for key, values in distinct(replies).items()}
    sizes = {reply.client: norms[id(reply.values)] for reply in replies}
    return too_far(sizes, dict.fromkeys(sizes, 1.0), "the first parameters") if len(sizes) > 1 else {}


def distinct(replies: Sequence[Contribution]) -> dict[int, Params]:
    """Return the tensors of all replies by their identity: what many clients have in common is looked at once."""
    return {id(reply.values): reply.values for reply in replies}


def forms_of(values: Params) -> dict[str, str]:
    """Return the form of every parameter, in words."""
    return {
        name: f"{'width' if name in TABLES else 'shape'} {list(value.shape[name in TABLES :])} of {value.dtype}"
        for name, value in values.items()
    }
