"""What a federated run is compared with: every client alone, one model on everyone's data, and popularity."""

from collections.abc import Callable
from pathlib import Path

from fedrec.evaluation import PerUser, PopularityScorer, evaluate
from fedrec.experiment import Experiment, build, clients_data
from fedrec.records import Record, Row, write_csv, write_users
from simulations.apps import apps_for
from simulations.engines import run_inline
from simulations.methods import METHODS

PRESENT = {"participation": 1.0, "dropout": "0", "deadline": 0.0, "privacy": {}, "secure": {}, "newcomers": ""}


def baseline(experiment: Experiment, method: str) -> Experiment:
    """Return the same experiment under the method `local` or `pooled`; data, model, seed and epochs stay.

    Nobody is drawn, no answer is lost, nobody comes later and there is no noise: training alone needs no messages.
    """
    fields = {**experiment.model_dump(), **METHODS[method].model_dump(), **PRESENT}
    return build(fields)


def run_baseline(
    experiment: Experiment,
    method: str,
    home: Path,
    on_round: Callable[[Row], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train a baseline in this process and write its record into `home`."""
    home.mkdir(parents=True)
    other = baseline(experiment, method)
    run_inline(*apps_for(other, home, on_round, stop), len(clients_data(other)))


def run_popularity(experiment: Experiment, home: Path) -> None:
    """Write how the non-personal baseline of every client's own training data does on its test data."""
    home.mkdir(parents=True)
    record, every = Record(), list[PerUser]()
    for data in clients_data(baseline(experiment, "local")):
        tasks = experiment.tasks(data.name)
        found = evaluate(
            PopularityScorer.fit(tasks, data.train, len(data.items), about=data.attributes),
            data,
            tasks,
            "test",
            metrics=experiment.metrics,
            candidates=experiment.candidates,
            seed=experiment.seed,
        )
        record.score(0, "test", found.metrics, "cpu")
        every += found.per_user
    write_users(home, every, "popularity")
    write_csv(home / "clients.csv", record.clients)
