"""The command `fedrec`: `fedrec run ...` is `python -m simulations.run ...`, from any folder."""

import sys
from collections.abc import Sequence
from importlib import import_module

from simulations.start import help_at_once, prepare, ready

COMMANDS = {
    "profile": ("simulations.profile", "a look at data before training, and the command to run next"),
    "run": ("simulations.run", "train recommenders that learn together, and report whether it helped"),
    "studies": ("simulations.studies.__main__", "compare methods, budgets of privacy, engines and more over seeds"),
    "recommend": ("clients.recommend", "what a client of a finished run recommends to one of its users"),
    "distil": ("simulations.distil", "small students of the models of a finished run"),
    "unlearn": ("simulations.unlearn", "forget clients or users of a finished run"),
    "flower": ("simulations.flower", "a run by Flower's own command"),
}
MORE = "fedrec COMMAND --help lists the options."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return its status, or 2 for a wrong name."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {command:<10} {text}" for command, (_, text) in COMMANDS.items()]
        print("\n".join(["usage: fedrec COMMAND [OPTION ...]", "", *lines, "", MORE]))
        return 0
    if name == "--version":
        from simulations.options import version

        print(version())
        return 0
    if name not in COMMANDS:
        print(f"error: command: must be one of {', '.join(COMMANDS)}, found {name[:100]!r}", file=sys.stderr)
        return 2
    if name == "run":
        help_at_once(rest)
    command = import_module(COMMANDS[name][0]).main
    if argv is None:
        ready()
    return int(command(rest))


def console() -> int:
    """Be the installed command."""
    prepare()
    return main()


if __name__ == "__main__":
    sys.exit(console())
