"""Which model is taken where nobody names one: the one by sums, unless something that was asked for needs gradients."""

import re
from pathlib import Path

from fedrec.errors import UserError
from fedrec.experiment.acting import refuse
from fedrec.experiment.config import Experiment, Method, build
from fedrec.federation.methods import TABLE

AUTO, BY_SUMS, BY_STEPS = "auto", "slist", "mf"
STEPS = "steps along gradients"


def check_choice(e: Experiment) -> None:
    """Raise UserError if an experiment by sums is possible, but is not what its values ask for."""
    if e.privacy.active:
        raise UserError(f"privacy.unit: {e.privacy.unit} needs {STEPS} to add noise to")
    if e.split == "new-items":
        raise UserError("split: new-items needs more of an item than who liked it")
    if e.stack == "yes":
        raise UserError(f"stack: yes needs {STEPS} that make one program")


def reason(error: str) -> str:
    """Return the part of a refusal that says what needs gradients, without what to do about it."""
    if found := re.match(r"(?:option )?(.+): acts only with (.*?)(?: \(.*)?, found (.*)", error):
        return f"{found[1]} {found[3]} acts only with {STEPS if STEPS in error else found[2]}"
    text = re.split(r", but |,? \((?:add|take) |; (?:add|take) |, found ", error)[0]
    text = re.sub("^(option )?(--)?(model: )?", "", text).replace(": ", " ", 1)
    return text if " needs " in text or " acts only with " in text else f"{text.partition(' ')[0]} needs {STEPS}"


def why_steps(e: Experiment) -> str:
    """Return what of an experiment needs a model by gradients; nothing if a model by sums would do."""
    values = {**e.model_dump(), "model": BY_SUMS}
    if e.rounds == Experiment().rounds:
        del values["rounds"]  # nobody asked for the usual number
    usual = Method(method=e.method, **TABLE[e.method]).coupling if e.method in TABLE else None
    if e.coupling == usual and e.coupling.kind != "mean":
        values["coupling"] |= {"rho": 0.0, "duals": False, "balance": False}  # by sums a method does without
    try:
        other = build(values)
        refuse(other, Method(method=e.method, **TABLE[e.method]) if e.method in TABLE else Method())
        check_choice(other)
    except UserError as error:
        return reason(str(error))
    return ""


def within(e: Experiment) -> str:
    """Return in which subspace an experiment learns by sums, in words; nothing if in none."""
    public = f"public subspace of {Path(e.sums.basis).name}, " if e.sums.basis else "subspace "
    return f", in a {public}of at most {e.sums.k} columns" if e.sums.active else ""


def describe(e: Experiment) -> str:
    """Return which model an experiment has, and why, in words."""
    if e.by_sums:
        return f"{e.model}, learnt by sums in {'one round' if e.rounds == 1 else f'{e.rounds} rounds'}{within(e)}"
    if e.model != BY_STEPS:
        return f"{e.model}, as asked for"
    why = why_steps(e)
    return f"{e.model}, since {why}" if why else f"{e.model}, learnt by {STEPS}"
