"""`flwr run .` with the options of `simulations.run`: offline, with an honest exit status, and nothing left behind.

`flwr run` alone installs the project's dependencies at every run, leaves a SuperLink and a SuperExec behind, and exits
with 0 when the run failed. Here it gets a SuperLink of its own, that installs nothing and ends with this process, a
configuration folder of its own, and its outcome is read from the SuperLink.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from simulations.start import prepare

    prepare()

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from fedrec.errors import RunFailure, UserError, one_line
from fedrec.experiment.config import Experiment
from fedrec.experiment.earlier import parties
from fedrec.folders import numbers, vacant
from simulations.check import check, require_ray
from simulations.cli import parse
from simulations.options import flag, parser
from simulations.processes import START, answers, last_line, quiet, socket_of, started
from simulations.run import base, close, fitting
from simulations.sockets import NOWHERE, private_folder, write_commands
from simulations.start import ready, status_of

ROOT = Path(__file__).parent.parent
NAME = "local"  # of the connection in Flower's configuration
RUNNING = ("engine", "workers", "stack")  # fields of how the clients run
ENDING = ("-m", "simulations.processes")  # runs a command that ends with this process


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the status, see `status_of`."""
    return status_of(lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> None:
    """Run what a command line asks for; raises UserError before anything is started, and RunFailure."""
    command = fitting(parse(argv))
    if command.resume:
        raise UserError("option --resume: flwr run makes no checkpoints, so that a run cannot be gone on with")
    check_flags(argv, command.experiment)
    check(command.experiment)
    require_ray("flwr run: a simulation")
    if not (ROOT / "pyproject.toml").is_file():
        raise UserError(f"flwr run: must have the project's folder with pyproject.toml, found none in {ROOT}")
    out = (command.out or next(path for path in numbers(base(command.experiment)) if not path.exists())).absolute()
    vacant(out)
    flower(command.experiment, out, command.quiet)
    close(out, Console(markup=False, emoji=False), command.quiet)


def check_flags(argv: Sequence[str], experiment: Experiment) -> None:
    """Raise UserError for an option of `simulations.run` that `flwr run` does not use; `argv` or a file gave it."""
    given, usual = vars(parser().parse_known_args(argv)[0]), Experiment()
    asked = {name: getattr(experiment, name) for name in RUNNING if getattr(experiment, name) != getattr(usual, name)}
    asked |= {name: given[name] for name in ("compare", "checkpoint_every") if given.get(name)}
    for name, value in asked.items():
        raise UserError(
            f"option {flag(name)}: acts only with simulations.run, for Flower runs the clients, found {value}"
        )


def flower(experiment: Experiment, out: Path, silent: bool) -> None:
    """Run an experiment by Flower's command into `out`; raises RunFailure unless it is there afterwards."""
    with private_folder() as home:
        environment, log, socket = quiet(home), home / "SuperLink", socket_of(home)
        write_settings(home, experiment, out)
        write_commands(home / "bin", sys.executable, ["flower-superexec", "flwr-simulation"])
        link = ["flower-superlink", "--insecure", "--simulation"]
        with started([*ENDING, *link], log, environment, home) as process:  # its Ray looks for modules where it works

            def alive() -> None:
                if process.poll() is not None:
                    raise RunFailure(f"SuperLink: must run to the end, found {last_line(log)}")

            if not answers(socket, START, alive):
                raise RunFailure(f"SuperLink: must answer within {START:.0f} s, found nothing at {socket}")
            nodes = f"num-supernodes={len(parties(experiment))} client-resources-num-cpus=1"
            options = ["--run-config", str(home / "run.toml"), "--federation-config", nodes, "--stream"]
            flwr(["run", str(ROOT), NAME, *options], home / "run" if silent else None, environment)
            flwr(["list", NAME, "--format", "json"], home / "list", environment)
            failure = failed((home / "list").read_text(encoding="utf-8"))
        if failure or not (out / "report.html").exists():
            raise RunFailure(one_line(failure or f"no report in {out}"))


def write_settings(home: Path, experiment: Experiment, out: Path) -> None:
    """Write Flower's configuration folder and the run's configuration; a string of JSON is one of TOML too."""
    connection = f'[superlink]\ndefault = "{NAME}"\n[superlink.{NAME}]\naddress = "{NOWHERE}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection, encoding="utf-8")
    config = {"experiment": experiment.model_dump_json(), "out": str(out)}
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in config.items()]
    (home / "run.toml").write_text("".join(lines), encoding="utf-8")


def flwr(arguments: Sequence[str], log: Path | None, environment: Mapping[str, str]) -> None:
    """Run Flower's command to its end, whose status says nothing of the run."""
    with started([*ENDING, "flwr", *arguments], log, environment) as process:
        process.wait()


def failed(listing: str) -> str:
    """Return why the only run of a listing did not complete, or an empty text if it did."""
    try:
        (run,) = json.loads(listing[listing.index("{") :])["runs"]
    except (ValueError, KeyError):
        return f"the run was not started: {listing.strip()[-200:]}"
    status, details = str(run["status"]), str(run.get("status-details", ""))
    return "" if status == "finished:completed" else details.partition("exception: ")[2] or details or status


if __name__ == "__main__":
    ready()
    sys.exit(main())
