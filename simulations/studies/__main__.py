"""Run a study: `python -m simulations.studies methods --seeds 5 --dataset ml-100k --data-dir PATH`."""

if __name__ == "__main__":  # before the imports, which take seconds
    from simulations.start import prepare

    prepare()

import sys
from collections.abc import Callable, Sequence
from functools import partial

from fedrec.errors import RunFailure, UserError, choose, one_line
from simulations.start import ready
from simulations.studies import (
    auditing,
    cold,
    distillation,
    methods,
    newcomer,
    privacy,
    promise,
    published,
    ratings,
    scale,
    sequences,
    speed,
    tasks,
)
from simulations.studies.harness import conduct
from simulations.studies.options import overview

COMPARED = (
    *(auditing, cold, distillation, methods, newcomer, privacy),
    *(promise, published, ratings, scale, sequences, tasks),
)
STUDIES: dict[str, Callable[[Sequence[str]], None]] = {
    **{module.STUDY.name: partial(conduct, module.STUDY) for module in COMPARED},
    "speed": speed.run,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study that the command line names; return 0, 2 for a wrong input, 1 for a failure, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in ([], ["-h"], ["--help"]):
        print(overview())
        return 0
    try:
        name = choose("study", arguments[0], STUDIES)
        STUDIES[name](arguments[1:])
        return 0
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except RunFailure as error:
        print(f"failed: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    ready()
    sys.exit(main())
