"""Run a study: `python -m simulations.studies methods --seeds 5 --dataset ml-100k --data-dir PATH`."""

if __name__ == "__main__":  # before the imports, which take seconds
    from simulations.start import prepare

    prepare()

import sys
from collections.abc import Sequence
from importlib import import_module

from fedrec.errors import choose
from simulations.start import ready, status_of
from simulations.studies.harness import conduct
from simulations.studies.options import MODULES, WORDS, overview


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study that the command line names; return the status, see `status_of`."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return 0
    return status_of(lambda: study(name, rest))


def study(name: str, argv: Sequence[str]) -> None:
    """Run the study of a name; raises as `conduct` does."""
    choose("study", name, WORDS)
    module = import_module(f"simulations.studies.{MODULES.get(name, name)}")
    if name == "speed":  # whose runs are compared within their repeats
        module.run(argv)
    else:
        conduct(module.STUDY, argv)


if __name__ == "__main__":
    ready()
    sys.exit(main())
