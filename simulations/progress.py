"""What a run shows on the terminal: a live line for the rounds, or nothing in CI and with --quiet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from fedrec.experiment.records import Row


class Reporter:
    """A live progress line with the training loss, the validation and the time left."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("starting", total=None, loss="-", validation="-")

    def phase(self, text: str, rounds: int) -> None:
        """Begin a phase of so many rounds."""
        self.progress.reset(self.task, description=text, total=rounds, loss="-", validation="-")

    def round(self, row: Row) -> None:
        """Show a finished round."""
        values = {"loss": row.get("train_loss"), "validation": row.get("validation")}
        shown: Any = {name: f"{value:.4f}" for name, value in values.items() if value is not None}
        self.progress.update(self.task, advance=1, **shown)


@contextmanager
def reporter(console: Console, quiet: bool) -> Iterator[Reporter]:
    """Yield the live display on a terminal, a silent one with `quiet`, in CI, or when the output is a file."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  validation {task.fields[validation]}"),
        TimeRemainingColumn(),
    )
    silent = quiet or not console.is_terminal or bool(os.environ.get("CI"))
    with Progress(*columns, console=console, transient=True, disable=silent) as progress:
        yield Reporter(progress)
