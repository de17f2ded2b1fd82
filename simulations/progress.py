"""What a run shows on the terminal: a live line for the rounds, or nothing in CI and with --quiet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from fedrec.records import Row


class Reporter:
    """A live progress line with the training loss, the validation and the time left, or nothing at all."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress or Progress(disable=True)
        self.task = self.progress.add_task("starting", total=None, loss="-", validation="-")

    def phase(self, text: str, rounds: int) -> None:
        """Begin a phase of so many rounds."""
        self.progress.reset(self.task, description=text, total=rounds, loss="-", validation="-")

    def round(self, row: Row) -> None:
        """Show a finished round."""
        shown = {
            name: f"{row[key]:.4f}"
            for name, key in (("loss", "train_loss"), ("validation", "validation"))
            if key in row
        }
        self.progress.update(self.task, advance=1, **shown)  # type: ignore[arg-type]


@contextmanager
def reporter(console: Console, quiet: bool) -> Iterator[Reporter]:
    """Yield the live display on a terminal, a silent one with `quiet`, in CI, or when the output is a file."""
    if quiet or not console.is_terminal or os.environ.get("CI"):
        yield Reporter(None)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  validation {task.fields[validation]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Reporter(progress)
