"""A tracker of the user's own, which is told of a run as it goes: its experiment, every finished round, its results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedrec.components import make, read
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.records import Row
from fedrec.report.tables import compare, read_run
from simulations.runs import SUMMARY


@contextmanager
def tracking(
    experiment: Experiment, home: Path, shown: Callable[[Row], None], tell: Callable[[str], None]
) -> Iterator[Callable[[Row], None]]:
    """Yield what shows a finished round and tells the tracker; at the end it is told what `Run.summary` says.

    A tracker that fails at the start is the user's to mend, a UserError before anything is trained. What fails later is
    told once, and the run goes on without it.
    """
    if not read(experiment.tracker).own:
        yield shown
        return
    tracker = make.__wrapped__("tracker", experiment.tracker)  # another for each run: it may hold an open file
    failed: list[str] = []

    def call(event: str, value: Any) -> None:
        if failed or not hasattr(tracker, event):
            return
        try:
            getattr(tracker, event)(value)
        except Exception as error:
            failed.append(f"tracker: {experiment.tracker}: {event}: {type(error).__name__}: {error}")
            if event == "start":
                raise UserError(failed[0]) from error
            tell(f"failed: {failed[0]}; the run goes on without it")

    def on_round(row: Row) -> None:
        shown(row)
        call("round", dict(row))

    call("start", experiment.model_dump(mode="json"))
    yield on_round
    call("end", compare(read_run(home, complete=False))[list(SUMMARY)].rename(columns=SUMMARY).to_dict("records"))
