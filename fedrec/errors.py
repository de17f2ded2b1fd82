"""Errors that are the user's to mend."""

import argparse
import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

LONGEST = 1000  # characters of an error's line


class UserError(ValueError):
    """A wrong input: one line that names the thing, the rule and the value found; the command ends with status 2."""


class ContractError(ValueError):
    """A message broke the sharing contract; the text names the parameter, the rule and the value found."""


class RunFailure(RuntimeError):
    """A run, or a baseline of one, that did not come to its end; one line says why, and how to go on if that can be."""


class Parser(argparse.ArgumentParser):
    """A parser of a command line whose errors are UserErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise the error that a command line has."""
        raise UserError(message.replace("argument --", "option --", 1))


def choose(thing: str, value: str, valid: Iterable[str]) -> str:
    """Return `value` if it is one of `valid`, else raise a UserError that offers the nearest valid name.

    An error without a `thing` gets its name from `named`, or from the field that is validated.
    """
    names = sorted(valid)
    if value in names:
        return value
    raise UserError(
        f"{thing}{': ' * bool(thing)}must be one of {', '.join(names)}, found {value[:100]!r}{nearest(value, names)}"
    )


def nearest(value: str, names: Iterable[str]) -> str:
    """Return the end of an error: the name that a wrong one is nearest to, if it is near any."""
    near = difflib.get_close_matches(value[:100], names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_line(text: object) -> str:
    """Return a text as one line that is safe to print: what is not printable is a blank, and a long text is cut."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


@contextmanager
def named(field: str) -> Iterator[None]:
    """Put the field's name before the text of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
