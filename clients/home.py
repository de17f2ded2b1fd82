"""What a client keeps of shared parameters among its private ones, since nobody else has it or may see it."""

from collections.abc import Mapping

from torch import Tensor

from fedrec.params import Params

HOME, ROWS = "home/", "/rows"  # the values, and of a table which rows
Lacking = Mapping[str, Tensor | None]  # shared parameters: local rows [n] of a table, None for all of it


def at_home(shared: Params, lacking: Lacking) -> Params:
    """Return the values and the rows of what a client keeps of shared parameters, by the names of its memory."""
    kept: Params = {}
    for name, rows in lacking.items():
        kept[f"{HOME}{name}"] = shared[name] if rows is None else shared[name][rows]
        if rows is not None:
            kept[f"{HOME}{name}{ROWS}"] = rows
    return kept


def parted(private: Mapping[str, Tensor]) -> tuple[Params, Params]:
    """Return a client's private parameters without, and only, what it keeps of shared ones."""
    home = {name: value for name, value in private.items() if name.startswith(HOME)}
    return {name: value for name, value in private.items() if name not in home}, home


def with_home(z: Params, private: Mapping[str, Tensor]) -> Params:
    """Return what a client starts from: the server's values, and its own where it shares nothing."""
    kept = [name.removeprefix(HOME) for name in private if name.startswith(HOME) and not name.endswith(ROWS)]
    if not kept:
        return z  # itself: what many clients start from is then one for all
    start = dict(z)
    for name in kept:
        value, rows = private[f"{HOME}{name}"], private.get(f"{HOME}{name}{ROWS}")
        start[name] = value if rows is None else z[name].index_copy(0, rows, value)
    return start
