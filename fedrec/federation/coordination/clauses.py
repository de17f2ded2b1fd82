"""What ties the clients together, as text: `body: clusters(films+books, shop+news)`, `losses: shop <= news + 0.02`.

A tie is BLOCK+BLOCK: FORM. A block is a shared module by its path, or `losses`, the clients' losses f_i, `harm`, by
how much a client's loss is above the one that it reaches alone, or `exposure`, the share of what a client shows its
users (the softmax of their scores) that goes to a group of items. A form is a name with arguments, an
equation of clients' names (each a variable in every block of the tie, or CLIENT.PARAMETER), or a part of the user's
own, MODULE:NAME, with a method `value(z)` or itself a function of z: numbers [m] that are to be 0, or at most 0 where
`<= 0` follows.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from fedrec.components import number, split_at
from fedrec.errors import UserError, choose
from fedrec.params import Params

LOSSES, HARM, EXPOSURE = "losses", "harm", "exposure"
MEASURED = (LOSSES, HARM, EXPOSURE)  # the blocks that are no parameters
CLOSED = ("consensus", "clusters", "mean-regularised", "graph", "sum")  # forms with a closed-form operator
SETS = ("ball", "box")  # of every client's block by itself
LINEAR = "linear"  # sum_i G_i theta_i = c, of a file
MINIMAX = "minimax"  # the objective P max_i f_i in the place of sum_i p_i f_i
OF_LOSSES = ("at-most", "parity", MINIMAX)
OF_EXPOSURE = ("at-least", "at-most", "parity")
NAMED = re.compile(r"([a-z-]+)(?:\((.*)\))?", re.DOTALL)
SENSE = re.compile(r"\s(<=|>=|=)\s")
OWN = re.compile(r"([A-Za-z_][\w.]*:[A-Za-z_]\w*\s*(?:\{.*\})?)\s*(?:(<=|=)\s*0)?", re.DOTALL)
VARIABLE = re.compile(r"[A-Za-z_][^\s*+=<>(){},;:]*")


class Constraint(Protocol):
    """A g of the user's own, of named tensors."""

    def value(self, z: Mapping[str, Params]) -> Tensor:
        """Return g(z), numbers [m], differentiable; z has the blocks of every client, of tables the rows of all."""
        ...


class Variable(NamedTuple):
    """A client's block in an equation: `parameter` is empty where it is each block of the tie."""

    client: str
    parameter: str
    factor: float


@dataclass(frozen=True)
class Clause:
    """One tie as it was read: its text, its blocks, and one of a form, an equation, or a part of the user's own."""

    text: str
    blocks: tuple[str, ...]
    form: str = ""
    arguments: tuple[str, ...] = ()
    variables: tuple[Variable, ...] = ()
    constant: float = 0.0  # sum_i factor_i variable_i + constant is 0, or at most 0
    own: str = ""
    inequality: bool = False

    @property
    def closed(self) -> bool:
        """Whether it is an operator with a closed form."""
        return self.form in CLOSED

    @property
    def of_losses(self) -> bool:
        """Whether it is of losses, and not of parameters."""
        return self.blocks[0] in MEASURED

    def numbers(self, count: int = 1) -> list[float]:
        """Return the first arguments, which must be so many numbers; raises UserError."""
        found = [number(text) for text in self.arguments[:count]]
        if len(found) != count or not all(math.isfinite(value) for value in found):
            raise UserError(f"tie {self.text!r}: {self.form} must have {count} finite number, found {self.arguments}")
        return found


def read_clauses(text: str) -> list[Clause]:
    """Return the ties of a text, joined by ';'; raises UserError for one that stands there twice."""
    found = [read_clause(part.strip()) for part in split_at(text) if part.strip()]
    for place, clause in enumerate(found):
        if any(clause.text == other.text for other in found[:place]):
            raise UserError(f"tie {clause.text!r}: may be given once, found twice")
    return found


def read_clause(text: str) -> Clause:
    """Return the tie that a text says; raises UserError."""
    head, colon, body = text.partition(":")
    blocks, body = tuple(part.strip() for part in head.split("+")), body.strip()
    if not colon or not body or not all(VARIABLE.fullmatch(block) for block in blocks):
        raise UserError(f"tie: must be BLOCK: FORM, such as 'item_table: consensus', found {text!r}")
    if {*blocks} & {*MEASURED} and len(blocks) > 1:
        raise UserError(f"tie {text!r}: {blocks[0]} must stand alone, found {', '.join(blocks)}")
    if own := OWN.fullmatch(body):
        return Clause(text, blocks, own=own[1].strip(), inequality=own[2] == "<=")
    if SENSE.search(body):
        return _equation(text, blocks, body)
    found = NAMED.fullmatch(body)
    if not found:
        raise UserError(f"tie {text!r}: must be a form, an equation or MODULE:NAME, found {body!r}")
    with_blocks = OF_LOSSES if blocks[0] in (LOSSES, HARM) else (*CLOSED, *SETS, LINEAR)
    with_blocks = OF_EXPOSURE if blocks[0] == EXPOSURE else with_blocks
    form = choose(f"tie {text!r}", found[1], with_blocks)
    arguments = tuple(part.strip() for part in found[2].split(",")) if found[2] and found[2].strip() else ()
    clause = Clause(text, blocks, form, arguments)
    _check_arguments(clause)
    return clause


def _check_arguments(clause: Clause) -> None:
    needed = dict.fromkeys(("ball", "box", "at-least", "at-most", "parity", "mean-regularised", "graph", "sum"), 1)
    if clause.form in needed:
        (value,) = clause.numbers()
        low = -math.inf if clause.form in ("sum", "at-least", "at-most") else 0.0
        if value < low or (value == 0 and clause.form in SETS):
            raise UserError(f"tie {clause.text!r}: the number of {clause.form} must be above 0, found {value:g}")
    if clause.form == LINEAR and len(clause.arguments) != 1:
        raise UserError(
            f"tie {clause.text!r}: must name a safetensors file with CLIENT/G, as in linear(maps.safetensors)"
        )
    if clause.form == LINEAR:
        return
    if clause.form == "clusters" and not clause.arguments:
        raise UserError(f"tie {clause.text!r}: must name the clients of each cluster, as in clusters(films+books)")
    most = math.inf if clause.form in ("clusters", "graph") else needed.get(clause.form, 0)
    if len(clause.arguments) > most:
        found = len(clause.arguments)
        raise UserError(f"tie {clause.text!r}: {clause.form} must have {most or 'no'} argument, found {found}")


def _equation(text: str, blocks: tuple[str, ...], body: str) -> Clause:
    left, sense, *rest = SENSE.split(body)
    if len(rest) != 1:
        raise UserError(f"tie {text!r}: must have one of =, <= and >=, found {body!r}")
    sides = [(1.0, left), (-1.0, rest[0])] if sense != ">=" else [(-1.0, left), (1.0, rest[0])]
    variables: dict[tuple[str, str], float] = {}
    constant = 0.0
    for side, words in sides:
        sign = side
        expected = True  # a term, and not + or -
        for word in words.split():
            if word in ("+", "-"):
                sign = -sign if word == "-" else sign
                expected = True
                continue
            if not expected:
                raise UserError(f"tie {text!r}: terms must be joined by ' + ' or ' - ', found {word!r}")
            expected, factor, name = False, 1.0, word
            if "*" in word:
                head, _, name = word.partition("*")
                factor = number(head)
            value = number(name)
            if math.isfinite(factor) and math.isfinite(value):
                constant += sign * factor * value
            elif math.isfinite(factor) and VARIABLE.fullmatch(name):
                client, _, parameter = name.partition(".")
                variables[client, parameter] = variables.get((client, parameter), 0.0) + sign * factor
            else:
                raise UserError(f"tie {text!r}: terms must be NUMBER, CLIENT or NUMBER*CLIENT, found {word!r}")
            sign = side
        if expected:
            raise UserError(f"tie {text!r}: must have a term after every sign, found {words!r}")
    if not variables:
        raise UserError(f"tie {text!r}: must have a client's name, found none")
    found = tuple(Variable(*key, factor) for key, factor in variables.items() if factor)
    return Clause(text, blocks, variables=found, constant=constant, inequality=sense != "=")
