"""The two apps as every engine runs them, and as Flower's own command line finds them."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from torch import Tensor

from clients.app import client_app
from fedrec.components import per_client
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment
from fedrec.experiment.earlier import changed, earlier, leavers, parties, total
from fedrec.experiment.holdings import clients_data, dataset, item_content, public_basis, tasks_of_all, weights_sent
from fedrec.experiment.origins import data_digest, origins, permit
from fedrec.experiment.records import Record, Row, failures, write_record
from fedrec.federation.coordination import Penalty, Solver
from fedrec.folders import vacant
from fedrec.models.factors import as_sent, factors_of
from fedrec.models.quadratic import Matrix, Quadratic, penalty, scale
from fedrec.privacy.account import account
from fedrec.privacy.books import Books
from fedrec.privacy.guarantee import SERVER, guarantees, terms
from fedrec.subspace import Search
from server.app import Finish, server_app
from server.checkpoint import Checkpoints
from server.plan import Begun, Plan
from server.release import Release
from simulations.check import check
from simulations.cli import overrides
from simulations.student import teach


def plan_of(experiment: Experiment, home: Path | None = None) -> Plan:
    """Return what the server is told of an experiment; `home` is where it keeps its books, if it adds noise."""
    e, noisy = experiment, guarantees(experiment).get(SERVER)
    if noisy and home is None:
        raise UserError("privacy: the server needs a folder for its ledger, found none")
    return Plan(
        rounds=affordable(e, home),
        eval_every=e.eval_every,
        patience=e.patience,
        uniform=e.weights == "uniform",
        select=(e.metrics[0], "logloss", "rmse", "loss"),
        metrics=frozenset(evaluated(e)),
        pooled=e.pool,
        coupling=e.coupling,
        descent=e.descent,
        seed=e.seed,
        budgets=e.budget.active,
        drift=e.drift,
        lr=e.lr,
        turnout=e.turnout,
        asynchrony=e.asynchrony,
        robust=e.robust,
        codec=e.codec,
        by_sums=e.by_sums,
        search=Search(e.sums, e.quadratic.popular) if e.by_sums and e.sums.active else None,
        factors=Solver(partial(factors_of, e.ials), as_sent) if e.alternates and e.by_sums else None,
        penalty=penalty_of(e) if weights_sent(e) else None,
        begun=begun(e),
        silent=e.privacy.active,
        secure=terms(e) if e.secure.active else None,
        release=Release(Books(noisy, home, e.seed)) if noisy and home else None,
        newcomers=e.arrivals,
    )


def penalty_of(experiment: Experiment) -> Penalty:
    """Return what of a model by sums the server is told, to solve for weights."""
    kind, config = next(iter(per_client(experiment.model).values())), experiment.quadratic

    def by(function: Callable[[Quadratic, Matrix], Matrix], diagonal: Tensor) -> Tensor:
        return torch.from_numpy(function(config, diagonal.numpy()))

    return Penalty(partial(by, penalty), partial(by, scale), kind == "ease", experiment.budget.step)


def begun(experiment: Experiment) -> Begun | None:
    """Return what the run goes on from; None if it begins with nothing."""
    e = experiment
    if e.start is None:
        return None
    # A secure sum is of all: who has nothing to send adds zero.
    asked = frozenset(parties(e).names) if e.secure.active else changed(e)
    return Begun(total(e), earlier(e.start).clients, asked, frozenset(data.name for data in leavers(e)))


def affordable(experiment: Experiment, home: Path | None) -> int:
    """Return how many rounds everybody's budget allows; raises UserError if it is none."""
    e, rounds = experiment, [experiment.rounds]
    for who, g in guarantees(e).items():
        rounds.append(Books(g, home, e.seed).left() if home else g.affordable())
        if not rounds[-1]:
            raise UserError(
                f"privacy.epsilon: must allow {who} a round after all that was spent before, found {g.budget:g}"
            )
    return min(rounds)


def evaluated(experiment: Experiment) -> Iterator[str]:
    """Yield every metric that an evaluation may hold, as task/metric."""
    measures = {
        "rank": experiment.metrics,
        "rating": ("rmse",),
        "binary": ("auc", "logloss"),
        "multi-label": ("auc", "ap", "logloss"),
        "multi-class": ("accuracy", "logloss"),
        "value": ("rmse", "mae"),
    }
    for task in tasks_of_all(experiment, clients_data(experiment)):
        names = task.measured(*np.zeros((2, 0), np.float32)) if task.part else measures[task.kind]
        yield from (f"{task.name}/{name}" for name in names)
    if experiment.budget.active:
        yield "all/excess"
    yield from (f"all/{block}" for block in experiment.coupling.priced)


def finish(experiment: Experiment, home: Path, record: Record) -> None:
    """Write the record of a run into `home`."""
    if experiment.privacy.active:
        record.notes += failures(home)
        record.privacy = account(experiment, home)
        for g in guarantees(experiment).values():  # what could replay the noise
            Books(g, home, experiment.seed).secret.forget()
        if len(record.rounds) < experiment.rounds:
            record.stopped = record.stopped or "budget"
    notes = (*dataset(experiment).notes, *item_content(experiment)[1])
    if experiment.by_sums and experiment.sums.basis:
        notes += public_basis(experiment)[1]
    origin, digest = origins(experiment.own_parts), data_digest(experiment)
    write_record(home, record, experiment.model_dump(mode="json"), notes, origin, digest)
    if experiment.agreement.active:
        teach(experiment, record, home)


def apps_for(
    experiment: Experiment,
    home: Path,
    on_round: Callable[[Row], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
    nodes: int = 0,
    checkpoints: Checkpoints | None = None,
) -> tuple[ServerApp, ClientApp]:
    """Return the apps of one experiment that writes its record into `home`.

    The grid has so many `nodes`, or (0) one for each client.
    """

    def read(_: Context, clients: int) -> tuple[Plan, Finish]:
        return plan_of(experiment, home), partial(finish, experiment, home)

    count = nodes or len(parties(experiment))
    server = server_app(lambda _: count, read, on_round, stop, checkpoints)
    return server, client_app(lambda _: (experiment, home))


def from_context(context: Context, nodes: int) -> tuple[Experiment, Path]:
    """Return the experiment that Flower's run_config describes, and the folder `out` that its record goes to.

    Without a number of clients there is one for every node.
    """
    values = dict(context.run_config)
    out = Path(str(values.pop("out", "") or f"runs/flower-{context.run_id}")).expanduser().absolute()
    experiment = overrides(values)
    return experiment if experiment.clients else experiment.model_copy(update={"clients": nodes}), out


def report(experiment: Experiment, home: Path, record: Record) -> None:
    """Write the record, the baselines that need no training and the report of a run into `home`."""
    from fedrec.report.page import write_report
    from simulations.baselines import beside

    finish(experiment, home, record)
    for name, measured in beside(experiment).items():
        measured(experiment, home / "baselines" / name)
    print(f"report: {write_report(home)}")


def read_for_server(context: Context, nodes: int) -> tuple[Plan, Finish]:
    """Check the experiment of a run_config, and return what the ServerApp needs."""
    experiment, out = from_context(context, nodes)
    if experiment.tracker != "none":
        raise UserError(f"tracker: must be none where Flower starts the run, found {experiment.tracker}")
    check(experiment)
    vacant(out)
    return plan_of(experiment, out), partial(report, experiment, out)


def read_for_client(context: Context) -> tuple[Experiment, Path]:
    """Return the experiment of a client's run_config, and the folder that it keeps its files in.

    Parts by path are imported if the node's own configuration names them, separated by blanks: components.
    """
    experiment, home = from_context(context, int(context.node_config["num-partitions"]))
    permit(experiment.own_parts, str(context.node_config.get("components", "")).split())
    return experiment, home


server = server_app(lambda context: from_context(context, 0)[0].clients or None, read_for_server)
client = client_app(read_for_client)
