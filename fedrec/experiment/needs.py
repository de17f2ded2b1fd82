"""What a part of an experiment needs of the others, and takes away from them: a need that nothing gives is refused.

Everything is given that no part takes away. A wrong value in a part's own field is its own validator's business.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from functools import reduce
from typing import Any, NamedTuple


class Can(StrEnum):
    """What a part may need: a capability, in the words of a refusal."""

    # What the server has of the clients.
    ROWS = "every client's answer by itself"
    GRAM = "the inner products of the clients' answers"
    STEPS = "counts of steps, or control variates, beside the answers"
    SUMS = "answers that add up as they travel"
    RESIDUALS = "every client's distance to what it was sent"
    MEMORY = "a server that remembers what every client sent last"
    INCREMENTS = "answers that are increments, which add up over the rounds"
    TOGETHER = "clients that begin a round together"
    VALIDATION = "what is measured on held-out rows, told to the server"
    # What travels, and of whom.
    EXCHANGE = "something that clients exchange"
    PARAMETERS = "parameters that travel as they are"
    LOGITS = "logits as answers"
    TABLES = "item_table or user_table to be shared, and nothing else"
    MEANS = "shared parts of the adapter whose mean means something"
    LISTENERS = "clients that learn and send nothing"
    PUBLIC_WEIGHTS = "weights that tell nothing of the data"
    PUBLIC_USERS = "public users"
    HIDDEN_USERS = "users of whom nobody is public"
    SECURE_SUMS = "secure sums to add noise in"
    USER_SUMS = "sums over users"
    TWO_ROUNDS = "two rounds, of popularity and of what is popular"
    ALL_ANSWERS = "the answers of all clients"
    NORMS = "updates that one norm bounds"
    # How a client trains.
    COMMON_START = "clients that start from the server's parameters"
    GIVEN_HEAD = "private heads of a weight that is given"
    APPROACH = "rounds that approach a consensus"
    TIE = "a proximal tie, coupling.rho above 0"
    DUALS = "duals, which hold what a constraint costs"
    ONE_PHASE = "the one phase all"
    ONE_RATE = "steps of SGD at one rate"
    UNPULLED = "a shared delta that nothing pulls at in training"
    LOCKSTEP = "a second model that steps with the first"
    GRADIENTS = "steps along gradients"
    LOSSES = "the losses of single tasks as they are"
    ROW_WEIGHTS = "losses of rows that weigh what the data say"
    UNIT_GRADIENTS = "gradients by unit"
    CLIENT_GRADIENTS = "gradients by client, all in one step"
    ALONE = "clients that each train by themselves"
    UNSEEN = "clients whose answers nobody else sees"
    # What a recommender reads, and what is asked of it.
    TWO_WIDTHS = "two widths or more, the last for the towers"
    EVEN_WIDTH = "a width that its heads divide among them"
    CLICK_AND_BUY = "the tasks click and buy, of which it learns P(click) P(buy | click)"
    BEHAVIOURS = "two or more of the tasks view, click, like and buy, each of which tells the next"
    USER_SIDE = "a user side"
    ENCODER = "the sentence encoder alone"
    STILL = "no rate for what its form does not train"
    PAIRS = "sums of all pairs of items"
    ONE_RANKING = "the one task rank"
    ITS_SUMS = "its sums to be what is shared, if anything is"
    READS_ITEMS = "an item side that reads more than ids"
    UNTOLD = "answers that nothing which is read tells"
    PAIR_SCORES = "a score of any user and item"
    HISTORIES = "rows whose items others read in their histories"
    KNOWN_USERS = "users who are trained before a loss is asked of them"


# What is missing for the implementation alone, as is most of what tells clients of one program from others.
UNBUILT = frozenset({Can.PAIRS, Can.UNIT_GRADIENTS, Can.CLIENT_GRADIENTS, Can.PAIR_SCORES, Can.LOGITS})
# Values of a field whose part is not there.
NOTHING = (None, False, 0, "", "none", "mean", "fixed", "identity", (), ("all",))


Here = tuple[object, ...] | Callable[[Any], str]  # values of a field, or a function that returns what is found


class Part(NamedTuple):
    """A part of an experiment: what it needs of the others, or what it takes from them and why.

    It is there where the value at the dotted path `field` is one of `here`, or without these is not one of NOTHING; or
    where a function of the experiment returns what is found.
    """

    field: str
    here: Here
    needs: tuple[Can, ...] = ()
    takes: tuple[Can, ...] = ()
    why: str = ""

    def find(self, e: Any) -> str:
        """Return what is found of it in an experiment, as on the command line; nothing where it is not there."""
        if callable(self.here):
            return self.here(e)
        value = value_of(e, self.field)
        return shown(value) if (value in self.here if self.here else value not in NOTHING) else ""


def needs(field: str, *cans: Can, here: Here = ()) -> Part:
    """Return a part that needs something."""
    return Part(field, here, needs=cans)


def takes(field: str, *cans: Can, why: str, here: Here = ()) -> Part:
    """Return a part that takes something from the others, and why."""
    return Part(field, here, takes=cans, why=why)


class Conflict(NamedTuple):
    """A capability that one part needs and another takes away."""

    part: Part
    can: Can
    other: Part

    @property
    def unbuilt(self) -> bool:
        """Whether it rests on the implementation alone, and not on mathematics or privacy."""
        return self.can in UNBUILT or ("engine" in (self.part.field, self.other.field) and self.can != Can.UNSEEN)

    def text(self, e: Any) -> str:
        """Return the refusal: the part and its need, why that is not there, and the other part."""
        value, other = (part.find(e) or value_of(e, part.field) for part in (self.part, self.other))
        why = self.other.why + " (not built)" * self.unbuilt
        return f"{self.part.field}: {value} needs {self.can}, but {why}, found {self.other.field} {other}"


def conflicts(parts: Iterable[Part], others: Iterable[Part]) -> Iterator[Conflict]:
    """Yield what some parts need and others take away."""
    for part in parts:
        for can in part.needs:
            yield from (
                Conflict(part, can, other) for other in others if can in other.takes and other.field != part.field
            )


def value_of(e: Any, path: str) -> Any:
    """Return the value of a field by its dotted path."""
    return reduce(getattr, path.split("."), e)


def shown(value: object) -> str:
    """Return a value as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
