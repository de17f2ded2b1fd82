"""The constraints of a run, in words: how each stands in the round that was tested, and its price."""

import math
from typing import Any, NamedTuple

import pandas as pd

from fedrec.experiment.naming import natural
from fedrec.federation.coordination.clauses import EXPOSURE, HARM, LOSSES, MINIMAX, Clause, read_clause
from fedrec.report.findings import DASH, listing, significant
from fedrec.report.tables import Run

PRICE = (
    "Multiplier, the price of a constraint: by how much the sum of the clients' losses (weights of mean 1) would fall "
    "for a unit by which its bound were loosened; 0 does not bind; of several their norm."
)
JUDGED = {
    "validation": "Losses are judged on a third of each client's validation rows; another drives the multipliers.",
    "training": "Losses are those of the training rows.",
}


SHOWN = "Exposure is the share of the softmax of the scores of some of a client's users, the same in every round."


class Constraint(NamedTuple):
    """One constraint as it is shown: its text, the verdict, and numbers as they are printed."""

    text: str
    verdict: str
    residual: str
    multiplier: str
    rows: str  # the multipliers one by one, where they are few


def constraints(run: Run) -> list[Constraint]:
    """Return the constraints of a run, those that are not met first."""
    found = [constraint(row, run.names()) for row in run.ties]
    return sorted(found, key=lambda one: ("infeasible", "violated", "not judged", "met").index(one.verdict))


def constraint(row: dict[str, Any], clients: list[str]) -> Constraint:
    """Return one row of the record as it is shown."""
    text, verdict, residual = str(row["tie"]), str(row["verdict"]), significant(row.get("residual", math.nan))
    if verdict == "infeasible":  # whose multipliers grow without end
        return Constraint(text, verdict, residual, DASH, "")
    return Constraint(text, verdict, residual, significant(row.get("multiplier", math.nan)), priced(row, clients))


def priced(row: dict[str, Any], clients: list[str]) -> str:
    """Return what of a constraint has a multiplier, by name where it is known; nothing where there is but one."""
    weights = [float(weight) for weight in row.get("weights", ())]
    if len(weights) < 2:
        return ""
    names = named(read_clause(str(row["tie"])), len(weights), sorted(clients, key=lambda name: (natural(name), name)))
    binding = [f"{name} {significant(weight)}" for name, weight in zip(names, weights, strict=True) if weight]
    return listing(binding) or "none binds"


def named(clause: Clause, count: int, clients: list[str]) -> list[str]:
    """Return what the rows of a constraint are called: by client where each has one, or one of either sense."""
    if clause.form in ("ball", "at-least", "at-most", MINIMAX) and count == len(clients):
        return clients
    if clause.form == "parity" and count == 2 * len(clients):
        return [f"{name} {side}" for side in ("above", "below") for name in clients]
    return [f"row {number}" for number in range(1, count + 1)]


def explained(run: Run) -> str:
    """Return what the numbers of the constraints mean."""
    blocks = {block for row in run.ties for block in read_clause(str(row["tie"])).blocks}
    closed = any("multiplier" not in row for row in run.ties)
    texts = ["Residual: by how much a constraint was missed.", PRICE]
    texts += [JUDGED[(run.option("coupling") or {}).get("judged", "validation")]] * bool(blocks & {LOSSES, HARM})
    texts += [SHOWN] * (EXPOSURE in blocks)
    texts += ["A closed form is met exactly, and tells no multiplier."] * closed
    return " ".join(texts)


def by_round(run: Run) -> list[tuple[str, pd.Series, pd.Series]]:
    """Return (text, residual, multiplier) by round of every constraint that the rounds tell of.

    What losses miss is known of the rounds that were validated alone.
    """
    found = []
    for number, row in enumerate(run.ties, 1):
        columns = [f"tie{number}_{what}" for what in ("residual", "multiplier")]
        if all(column in run.rounds and run.rounds[column].notna().any() for column in columns):
            residual, multiplier = (run.rounds[column] for column in columns)
            if read_clause(str(row["tie"])).of_losses:
                residual = residual.where(run.rounds["validation"].notna())
            found.append((str(row["tie"]), residual, multiplier))
    return found
