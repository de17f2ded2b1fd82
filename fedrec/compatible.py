"""What cannot be combined in one experiment, and why; refused when it is built."""

from typing import TYPE_CHECKING

from fedrec.errors import UserError

if TYPE_CHECKING:
    from fedrec.experiment import Experiment


def compatible(e: "Experiment") -> None:
    """Raise UserError for a combination that cannot hold."""
    if e.agreement.active:
        if not e.volunteers:
            raise UserError("agreement: needs public users to agree on (add --volunteers 60), found volunteers 0")
        found = ",".join(e.share) or ("pool" if e.pool else "coupling linear" if e.coupling.kind == "linear" else "")
        if found:
            raise UserError(f"agreement: shares logits only, never parameters, found {found}")
        if e.agreement.task != "rank" and e.agreement.scale != "raw":
            raise UserError(f"agreement.scale: must be raw for a task that does not rank, found {e.agreement.scale}")
        apart(e, "output agreement")
    elif e.coupling.kind == "linear":
        if not e.share or not {"item_table", "user_table"} >= set(e.share):
            raise UserError(
                f"share: must be item_table or user_table for linear, whose maps act on rows (add --share item_table), "
                f"found {','.join(e.share) or 'nothing'}"
            )
        apart(e, "linear")


def apart(e: "Experiment", name: str) -> None:
    """Raise UserError for what needs clients that start from the server's parameters, where they keep their own."""
    if not e.coupling.rho:
        raise UserError(f"coupling.rho: must be above 0 for {name}, where nothing else ties a client, found 0")
    if e.phases != ("all",):
        raise UserError(f"phases: must be the one phase all for {name}, found {','.join(e.phases)}")
    corrections = {e.drift.correction, e.drift.personal, "fednova" if e.drift.normalise else "none"} - {"none"}
    if corrections:
        raise UserError(
            f"drift: must be none for {name}, where no client starts from the server's parameters, "
            f"found {min(corrections)}"
        )
    if not e.descent.plain:
        found = f"{e.descent.aggregator} with {e.descent.optimiser}"
        raise UserError(f"descent: steps along pseudo-gradients of parameters, which {name} has not, found {found}")
