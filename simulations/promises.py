"""The runs that say what a promise of privacy costs: the same experiment without it, and the stages between."""

from typing import Any

from fedrec.experiment.config import Experiment, build
from fedrec.experiment.records import CLIPPED, PLAIN, UNCLIPPED
from fedrec.privacy.guarantee import guarantees
from simulations.defaults import DEFAULTS
from simulations.options import flatten, nest


def without_promise(e: Experiment) -> dict[str, Any]:
    """Return the fields of the same experiment without its promise.

    A field that stands at the promise's default stands at the usual one, so that nothing is compared with a run whose
    optimiser was chosen for noise.
    """
    values, usual = flatten(e.model_dump()), flatten(Experiment().model_dump())
    for path, value in DEFAULTS[e.privacy.unit].items():
        if values[path] == value:
            values[path] = usual[path]
    return {**nest(values), "privacy": {}}


def stages(e: Experiment) -> dict[str, Experiment]:
    """Return the runs between a run without a promise and that with it, of which none is private or spends a budget.

    `plain` is the same method without a promise; `unclipped` has the promise's batches, weights and training, but
    bounds nothing and adds no noise; `clipped` bounds and adds no noise. There is none for a run without noise, nor for
    one of sums over users, which are made for their noise.
    """
    rule = e.privacy
    if not rule.active or rule.open or rule.summed:
        return {}
    where = "client" if rule.where == "sum" else rule.where  # a sum of whole numbers has bounds; the mean is the same
    allowed = min([e.rounds, *(g.affordable() for g in guarantees(e).values())])
    bare = {**rule.model_dump(), "noise": 0.0, "epsilon": "", "ledger": None, "where": where}
    fields = {**e.model_dump(), "rounds": max(allowed, 1)}
    return {
        PLAIN: build(without_promise(e)),
        UNCLIPPED: build({**fields, "privacy": {**bare, "clip": float("inf")}}),
        CLIPPED: build({**fields, "privacy": bare}),
    }
