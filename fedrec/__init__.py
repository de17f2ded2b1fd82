"""Federated collaborative learning for recommender systems: the public interface, by name.

A door, not a room: what it names is imported at first use, so that `import fedrec` loads neither torch nor Flower, and
no module of ours imports a name from here.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrec.errors import RunFailure, UserError
    from fedrec.experiment.config import Experiment, Method
    from simulations.api import Run, compare, load_run, resume, run
    from simulations.methods import METHODS

__all__ = ["METHODS", "Experiment", "Method", "Run", "RunFailure", "UserError", "compare", "load_run", "resume", "run"]

_PLACES = {
    "fedrec.errors": ("RunFailure", "UserError"),
    "fedrec.experiment.config": ("Experiment", "Method"),
    "simulations.api": ("Run", "compare", "load_run", "resume", "run"),
    "simulations.methods": ("METHODS",),
}
_ROOMS = ("clients", "server", "simulations")


if not TYPE_CHECKING:  # where it is a wrong name that is an error

    def __getattr__(name: str) -> Any:
        """Import what a public name stands for."""
        place = next((place for place, names in _PLACES.items() if name in names), None)
        if place is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        _refuse_hidden()
        globals()[name] = value = getattr(import_module(place), name)
        return value


def __dir__() -> list[str]:
    """Return the public names beside what is there."""
    return sorted({*globals(), *__all__})


def _refuse_hidden() -> None:
    """Raise UserError if a module beside the user's script has the name of one of our packages, and so hides it."""
    for room in _ROOMS:
        spec = find_spec(room)
        place = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
        if Path(str(place)).parent.parent != Path(__file__).parent.parent:
            from fedrec.errors import UserError

            raise UserError(
                f"{room}: must be the package that fedrec comes with, found {place}; give that another name"
            )
