"""What a command does before its imports, which take seconds, and how it ends; of ours nothing is imported here."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent


def prepare() -> None:
    """Let Ctrl-C end this process with one line, and nothing in the working folder pass for a module of ours.

    `python -m` looks for modules in the working folder first, and so would the processes that are started here: a
    `server.py` of the user's would take the place of the package.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nobody asked to ignore it
        signal.signal(signal.SIGINT, leave)
    os.environ["PYTHONSAFEPATH"] = "1"
    here = str(Path.cwd())
    if not sys.flags.safe_path and sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd():
        if Path.cwd() != ROOT:
            del sys.path[0]
        else:  # the packages need not be installed
            paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    gc.disable()  # imports leave no garbage, and make so many objects that looking for it takes a sixth of their time
    if here not in sys.path:  # parts of the user's own are found there, after all that is installed
        sys.path.append(here)


def help_at_once(argv: Sequence[str] | None = None) -> None:
    """Print the first page of --help and leave, if that is all that is asked for."""
    if list(sys.argv[1:] if argv is None else argv) in (["--help"], ["-h"]):
        from simulations.help import first_page
        from simulations.methods import METHODS

        print(first_page(list(METHODS)))
        sys.exit(0)


def ready() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, and garbage be looked for, after the imports."""
    gc.enable()
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def status_of(work: Callable[[], int | None], stopped: str = "stopped") -> int:
    """Do a command's work; return its status, or 2 for a wrong input, 1 for a failed run, 130 after Ctrl-C."""
    from fedrec.errors import RunFailure, UserError, one_line

    try:
        return work() or 0
    except KeyboardInterrupt as error:
        status, words = 130, str(error) or stopped
    except UserError as error:
        status, words = 2, f"error: {one_line(error)}"
    except RunFailure as error:
        status, words = 1, f"failed: {error}"
    except MemoryError:
        status, words = 1, "failed: the experiment needs more memory than there is"
    print(words, file=sys.stderr)
    return status


def leave(number: int, frame: FrameType | None) -> None:
    """End this process, in which nothing has begun."""
    print("stopped: nothing was written", file=sys.stderr, flush=True)
    os._exit(130)
