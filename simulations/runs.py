"""A run that has its record, as a value: what it measured, its verdicts, and the clients' models."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

import fedrec.components as components
import fedrec.experiment.channel as channel
import fedrec.experiment.earlier as earlier
import fedrec.experiment.holdings as holdings
import fedrec.experiment.kept as kept
from clients import recommend
from fedrec.evaluation.scorers import ModelScorer
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import dataset, reader
from fedrec.federation.coordination import maps
from fedrec.privacy import guarantee
from fedrec.report import tables
from fedrec.report.verdicts import labels

SUMMARY = {
    **{name: name for name in ("client", "task", "metric")},
    "federated": "together",
    "local": "alone",
    "pooled": "pooled",
    "popularity": "popularity",
    "local_difference": "difference",
    "local_low": "low",
    "local_high": "high",
    **{name: name for name in ("verdict", "protocol")},
}
# Functions that keep what they made of files, or of classes, by the names of these.
KEPT = (
    components.make,
    *(
        holdings.read_dataset,
        holdings.keys,
        holdings.divided,
        holdings.whole_statistics,
        holdings.own_statistics,
        holdings.exact_sums,
        holdings.item_content,
        holdings.item_classes,
        maps.read_maps,
    ),
    *(tables.read_once, kept.index_of),
    *(holdings.read_users, holdings.public_basis, earlier.earlier),
    *(channel.public, channel.probe, guarantee.terms, guarantee.guarantees, guarantee.sums_plan),
)


@dataclass(frozen=True, repr=False)
class Run:
    """A run: its folder, and the experiment that was run. What it says is read from the folder, and is its report's."""

    path: Path
    experiment: Experiment

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.experiment.method} on {self.experiment.dataset})"

    @cached_property
    def read(self) -> tables.Run:
        """The folder as it was read: its record, its tables and its baselines."""
        return tables.read_run(self.path)

    @cached_property
    def _comparison(self) -> pd.DataFrame:
        return tables.compare(self.read)

    def summary(self, all_metrics: bool = False) -> pd.DataFrame:
        """Return the test values of every client beside its baselines, see `fedrec.report.comparison`.

        Columns: `client`, `task`, `metric`; `together`, `alone`, `pooled`, `popularity` (NaN: not run); `difference` of
        together and alone with its 95% interval `low`, `high`; `verdict`; `protocol`, what must stand beside every
        number, or "". A row for each client and task, by the metric that speaks for it, or one for each metric.
        """
        rows = self._comparison if all_metrics else self._comparison[self._comparison["primary"]]
        return rows[list(SUMMARY)].rename(columns=SUMMARY).reset_index(drop=True)

    @property
    def verdicts(self) -> dict[str, str]:
        """The report's verdict of every client, or client and task; empty where none was trained alone."""
        rows = self._comparison[self._comparison["primary"]]
        return dict(zip(labels(rows), rows["verdict"], strict=True))

    @property
    def clients(self) -> pd.DataFrame:
        """The metrics of every client by round, split, task and metric."""
        return self.read.federated.clients.copy()

    @property
    def rounds(self) -> pd.DataFrame:
        """What happened in each round: losses, validation, bytes, seconds."""
        return self.read.rounds.copy()

    @property
    def ties(self) -> pd.DataFrame:
        """How every constraint of `coupling.ties` stands in the round that was tested; no row without constraints.

        Columns: `tie`, its text; `verdict`, met, violated or infeasible; `residual`, by how much it was missed;
        `multiplier`, its price (NaN of a closed form), of several numbers their norm; `weights`, these, where few.
        """
        return pd.DataFrame(self.read.ties, columns=["tie", "verdict", "residual", "multiplier", "weights"])

    @property
    def users(self) -> pd.DataFrame:
        """The test metrics of every user by its key, with their weights; of a task about items `user` is the item."""
        return self.read.federated.users.copy()

    @property
    def report_path(self) -> Path:
        """The page of the run."""
        return self.path / "report.html"

    def recommend(self, client: str, user: str | int, k: int = 10) -> pd.DataFrame:
        """Return what a client recommends to the user of a key, best first, see `clients.recommend`.

        Columns: `item` (its key), `title`, `categories`, and `score` - or `positives`, for a user that the client does
        not have, who gets what is most popular in the client's own training data. Raises UserError.
        """
        answer = recommend.recommend(self.path, client, str(user), k)
        items = dataset(self.experiment).items.iloc[answer.items]
        table = items[["key", "title", "categories"]].rename(columns={"key": "item"}).reset_index(drop=True)
        return table.assign(**{"score" if answer.task else "positives": answer.scores})

    def model(self, client: str) -> ModelScorer:
        """Return the recommender of a client with its parameters, shared and private; raises UserError."""
        data, params = recommend.held_by(self.path, self.experiment, client)
        return ModelScorer(reader(self.experiment, data, "test"), params)


def load_run(path: str | os.PathLike[str]) -> Run:
    """Return the run in a folder; raises UserError if there is none, or one that is not complete."""
    forget()
    home = Path(path).expanduser().absolute()
    return Run(home, earlier.experiment_of(home))


def forget() -> None:
    """Drop what this process keeps of what it has read: what has the same name may be another by now."""
    for cached in KEPT:
        cached.cache_clear()
