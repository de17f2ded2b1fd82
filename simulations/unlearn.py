"""Forget clients or users of a finished run: `python -m simulations.unlearn RUN --client silo-3`.

Of a model by sums what they added is subtracted, over a Flower round on the run's engine, and nothing else is asked of
anybody: the total is that of a run that never had them. Any other model is trained again without them, from the start.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from simulations.start import prepare

    prepare()

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from fedrec.components import join_clients, per_client
from fedrec.errors import Parser, UserError, choose, one_line
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.earlier import FORGOTTEN, TOGETHER, experiment_of, parties, total
from fedrec.experiment.holdings import PAIR, clients_data, dataset, read_users
from fedrec.experiment.records import load_params, write_json
from fedrec.folders import write_private
from fedrec.models.summed import unpack
from fedrec.privacy.attacks.forgotten import Profiles, forgotten
from fedrec.privacy.attacks.scores import Result
from fedrec.report.changes import write_changes
from fedrec.report.findings import number, plural, size
from fedrec.report.tables import UNLEARNED, Run, read_run
from simulations.cli import SAVING, Command
from simulations.closing import STYLE, gap
from simulations.run import complain, flags, perform
from simulations.start import ready, status_of

ABOUT = "Forget clients of a finished run, or users of them: a new run that is as if it had never had them."
KEPT = (
    "kept, and not unlearned: the weight of every private head, and all settings (--retune chooses the weights again)"
)
SECRET = "the server is told what is to be subtracted in all, and of nobody alone"
SEEN = {"before": "the old model", "after": "the new model alone", "both": "both models"}


@dataclass(frozen=True)
class Leaving:
    """Who leaves: whole clients, or users by client as local rows."""

    clients: tuple[str, ...]
    users: Mapping[str, np.typing.NDArray[np.int64]]

    @property
    def senders(self) -> tuple[str, ...]:
        """The clients that send what is to be subtracted."""
        return self.clients or tuple(self.users)

    @property
    def words(self) -> str:
        """What to call them."""
        counted = [f"{plural(len(rows), 'user')} of {name}" for name, rows in self.users.items()]
        return ", ".join(map(one_line, [*self.clients, *counted]))


def leaving(e: Experiment, names: Sequence[str], users: Path | None) -> Leaving:
    """Return who is to leave an experiment: the named clients, or users in a file, one key a line, at these clients.

    Without names the users may be at any client. Raises UserError.
    """
    parts = {data.name: data for data in clients_data(e)}
    for name in names:
        choose("client", name, parts)
    if users is None:
        if not names:
            raise UserError("option --client: must name who leaves, or --users FILE users, found neither")
        if len(set(names)) == len(parts):
            raise UserError(f"option --client: must leave a client, found all {len(parts)}")
        return Leaving(tuple(dict.fromkeys(names)), {})
    try:
        keys = set(users.read_text(encoding="utf-8").split("\n")) - {""}
    except (OSError, ValueError) as error:
        raise UserError(f"option --users: {users} must be a text file, found {one_line(error)}") from None
    known = dataset(e).users["key"].to_numpy(object)
    at: dict[str, np.typing.NDArray[np.int64]] = {}
    for name in names or parts:
        rows = np.flatnonzero([key in keys for key in known[parts[name].users]])
        if len(rows) == len(parts[name].users):
            raise UserError(f"option --users: must leave users of {name}, found all (take --client {name})")
        if len(rows):
            at[name] = rows
    there = {key for name, rows in at.items() for key in known[parts[name].users[rows]]}
    if not keys or keys - there:
        found = f"{sorted(keys - there)[0]!r}" if keys else "none"
        raise UserError(f"option --users: must be keys of users of {', '.join(names) or 'the run'}, found {found}")
    return Leaving((), at)


def without(run: Path, e: Experiment, who: Leaving, retune: bool, reveal: bool) -> Experiment:
    """Return the experiment that goes on without those who leave, or begins again; raises UserError where none can.

    Users that leave are still in its data: the file that names them is in the folder of the run.
    """
    if e.pool:
        raise UserError("run: must be of clients that learn together, found one that holds all their data")
    if not e.share:
        raise UserError(f"run: must be of clients that share something, found none under {e.method}")
    if e.privacy.active:
        raise UserError(
            "privacy: nothing is taken from a released total, since the difference would tell who left without noise; "
            "a new noisy release of everything must be made and booked (simulations.run --without)"
        )
    if e.adds_up and e.secure.active and not reveal and len(who.senders) < TOGETHER:
        raise UserError(
            "secure: what is taken from a secure sum tells the sums of those who leave, and of nobody else; let "
            f"another leave with them, or add --reveal to tell the server the sums of {who.words}"
        )
    pair = e.adds_up and len(clients_data(e)) - len(who.clients) == PAIR
    if reveal and not (e.adds_up and (e.secure.active or pair)):
        raise UserError("option --reveal: acts only with a run by sums that is secure or leaves two, found another")
    if retune and not (e.adds_up and e.chooses_heads):
        raise UserError("option --retune: acts only with a run by sums whose private heads are chosen, found another")
    named = {name: left_out(str(getattr(e, name)), who.clients) for name in ("task", "model", "dim")}
    late = ";".join(part for part in e.newcomers.split(";") if part.partition("=")[0].strip() not in who.clients)
    begun: dict[str, Any] = {}
    if e.adds_up:  # one round, in which nobody may be missing
        begun = {
            "start": run.absolute(),
            "retune": retune,
            "reveal": reveal and pair,
            "rounds": 1,
            "participation": 1.0,
            "dropout": "0",
        }
    secure = e.secure.model_copy(update={"active": e.secure.active and not reveal})
    if e.adds_up:  # nobody may be missing
        secure = secure.model_copy(update={"threshold": None})
    gone = {"without": (*e.without, *who.clients), "newcomers": late, "secure": secure.model_dump()}
    return build({**e.model_dump(), **named, **begun, **gone})


def left_out(text: str, clients: Sequence[str]) -> str:
    """Return a text of parts for clients without those of some."""
    return join_clients({name: value for name, value in per_client(text).items() if name not in clients})


def write_users(e: Experiment, who: Leaving, path: Path) -> None:
    """Write the users that an experiment is to be without: those it is without already, and those who leave."""
    parts, known = {data.name: data for data in clients_data(e)}, dataset(e).users["key"].to_numpy(object)
    gone = [
        (name, key) for name, keys in (read_users(e.forgotten) if e.forgotten else {}).items() for key in sorted(keys)
    ]
    gone += [(name, key) for name, rows in who.users.items() for key in known[parts[name].users[rows]]]
    write_private(path, pd.DataFrame(gone, columns=["client", "user"]).to_csv(index=False))


def attacked(e: Experiment, s: Experiment, home: Path, who: Leaving) -> dict[str, Result]:
    """Return how well is told what the forgotten were trained on; nothing where nobody can be asked about."""
    targets = Profiles([], [])
    for data in clients_data(e):
        rows = (
            np.arange(len(data.users)) if data.name in who.clients else who.users.get(data.name, np.zeros(0, np.int64))
        )
        targets += Profiles.of(data, rows)
    if not targets.held:
        return {}
    new = load_params(home / "model" / "shared.safetensors")
    return forgotten(unpack(total(s))[0], unpack(new)[0], targets)


def said(e: Experiment, who: Leaving, retune: bool) -> Iterator[str]:
    """Yield what is to be known before anything is done."""
    if not e.adds_up:
        how = "in sweeps" if e.solves else "by gradients"
        yield f"{e.model} learns {how}, of which nothing is subtracted: trained again from the start"
        yield f"left out from the first round on: {who.words}"
        return
    asked = ", ".join(map(one_line, who.senders))
    if e.secure.active:
        yield f"all {len(parties(e))} clients add up in secret, and all but {asked} add zero: {SECRET}"
    else:
        yield f"nobody but {asked} is asked: for what is to be subtracted, made again of its own data"
    if who.users:
        yield f"the sums of {who.words} tell the server these users' items, not who they are"
    if e.chooses_heads and not retune:
        yield KEPT


def cost(home: Path) -> str:
    """Return what a run took."""
    run = read_run(home, complete=False)
    rounds, seconds = len(run.rounds), float(run.record["seconds"])
    return f"{plural(rounds, 'round')}, {seconds:.1f} s, {size(float(run.ledger['bytes'].sum()))}"


def outcome(run: Path, home: Path, e: Experiment, words: Sequence[str], found: Mapping[str, Result]) -> dict[str, Any]:
    """Return what is recorded of who was forgotten."""
    lines = [f"{word[0].upper()}{word[1:]}." for word in words]
    lines.append(f"It took {cost(home)}; the run before took {cost(run)}.")
    if found:
        told = "; ".join(
            f"with {SEEN[n]} {number(r.auc)} [{number(r.auc_low)}, {number(r.auc_high)}]" for n, r in found.items()
        )
        lines.append(
            "Told what the forgotten were trained on from what of theirs was held out (AUC, .5 is chance; with the new "
            f"model alone it is that of a run that never had them): {told}."
        )
    values = {n: {k: v for k, v in asdict(r).items() if k not in ("fpr", "tpr")} for n, r in found.items()}
    return {"run": str(run.absolute()), "exact": e.adds_up, "words": lines, "attack": values}


def show(console: Console, run: Run, known: int) -> None:
    """Print what changed, for whom, and all that is said but for the first `known` lines."""
    table = Table(title="Test before and after, and 95% intervals over users", padding=(0, 1, 0, 0), **STYLE)
    for name in ("client", "metric", "users", "before", "after", "difference"):
        table.add_column(name, justify="left" if name in ("client", "metric") else "right", no_wrap=name != "client")
    for row in run.changes.to_dict("records"):
        change = gap(*(float(row[name]) for name in ("difference", "low", "high")))
        cells = [str(int(row["users"])), number(float(row["before"]), 4), number(float(row["after"]), 4), change]
        table.add_row(str(row["client"]), f"{row['task']} {row['metric']}", *cells)
    console.print(table)
    for line in run.unlearned["words"][known:]:
        console.print(line, highlight=False, markup=False)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = Parser(prog="python -m simulations.unlearn", description=ABOUT, allow_abbrev=False)
    p.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of the run")
    p.add_argument("--client", default="", help="the clients that leave, comma-separated; with --users whose users")
    p.add_argument("--users", type=Path, metavar="FILE", help="keys of the users who leave, one a line")
    p.add_argument("--retune", action="store_true", help="choose the weights of private heads again")
    p.add_argument("--reveal", action="store_true", help="of a secure sum: tell the server the sums of who leaves")
    p.add_argument("--compare", action="store_true", help="train the baselines alone and pooled too")
    p.add_argument("--quiet", action="store_true", help="print where the report is, and nothing else")
    p.add_argument("--out", type=Path, help="a new folder for the run without them [RUN_DIR-without-...]")
    return p


def unlearn(options: argparse.Namespace, console: Console) -> int:
    """Do what the command line asks for, and return the status; raises UserError, and what a run raises."""
    run: Path = options.run
    e = experiment_of(run)
    who = leaving(e, [name for name in options.client.split(",") if name], options.users)
    s = without(run, e, who, options.retune, options.reveal)
    words = list(said(s, who, options.retune))
    name = f"{run.absolute().name}-without-{'-'.join(who.clients) or 'users'}"
    out = options.out or run.absolute().with_name(name.replace("/", "_"))

    def write(home: Path) -> dict[str, Path]:
        if not who.users:
            return {}
        path = home.absolute() / FORGOTTEN
        write_users(e, who, path)
        return {"forgotten": path}

    for line in words if not options.quiet else ():
        console.print(line, highlight=False, markup=False)
    every = int(e.engine in SAVING)

    def compare(home: Path) -> None:
        write_changes(run, home)
        write_json(home / UNLEARNED, outcome(run, home, e, words, attacked(e, s, home, who) if e.adds_up else {}))

    ended = perform(Command(s, out, options.quiet, options.compare, every), console, complain, flags, write, compare)
    if not options.quiet:
        show(console, read_run(ended.out), len(words))
    console.print(f"report: {ended.out / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    return 130 if ended.interrupted else int(bool(ended.failures))


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the status, see `status_of`."""
    console = Console(markup=False, emoji=False, highlight=False)
    return status_of(lambda: unlearn(parser().parse_args(argv), console))


if __name__ == "__main__":
    ready()
    sys.exit(main())
