"""A training round of which the server sees the sum alone."""

from collections.abc import Sequence
from dataclasses import replace

from fedrec.privacy.encoding import Layout
from fedrec.privacy.secure_sum import Terms
from fedrec.sharing import Broadcast, ContractError, Contribution, admit_metrics
from fedrec.wire.secure import Sum
from server.faults import Outcome
from server.secure import SecureRound, layout_of, mean_change
from server.state import State


def secret(c: State, agreed: Terms, number: int, broadcasts: dict[str, Broadcast], lost: frozenset[str]) -> Outcome:
    """Return what became of a round whose answers are summed in secret: the mean change, and who is in it."""
    duals, carriers, rows = c.plan.coupling.duals, c.carriers, c.record.rows
    one = SecureRound(c.exchange, agreed, number, c.plan.turnout.deadline)

    def layout(names: Sequence[str]) -> Layout:
        return layout_of([carriers[name] for name in names], rows, c.z, agreed.carriers)

    def check(answer: Sum) -> None:
        admit_metrics(answer.metrics, c.plan.told)
        c.plan.check(Contribution(answer.client, {}, answer.metrics, answer.device), True)

    outcome, places, words = one.run(broadcasts, layout, check, lost)
    inside = [carriers[reply.client] for reply in outcome.replies]
    everybody = list(carriers.values()) if duals else None
    if words is None:
        return outcome
    try:
        return replace(outcome, change=mean_change(words, places, agreed, inside, everybody, c.z, rows))
    except ContractError as error:
        return one.broken(outcome.replies, str(error))
