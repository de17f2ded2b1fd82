"""What was run, in words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from fedrec.errors import UserError
from fedrec.experiment.choice import describe
from fedrec.experiment.config import build
from fedrec.experiment.privacy import UNBOUNDED
from fedrec.federation.coordination.clauses import read_clause
from fedrec.models import SUMMED
from fedrec.models.quadratic import KINDS
from fedrec.params import covers
from fedrec.report.findings import listing, plural
from fedrec.report.summed import meets
from fedrec.report.tables import LEAKING, Run


def facts(run: Run) -> dict[str, str]:
    """Return what was run, in words."""
    option, record = run.option, run.record
    names = run.names()
    clients = record.get("data", {}).get("clients", [])
    selected, stopped = record.get("selected_round"), record.get("stopped", "")
    rounds = f"{len(run.rounds):,} of {option('rounds', len(run.rounds)):,}"
    rounds += {
        "patience": ", stopped early: validation had stopped improving",
        "interrupted": ", interrupted",
        "budget": ", the privacy budget allowed no more",
    }.get(stopped, "")
    summed = option("model") in KINDS
    best = selected is not None and not run.record.get("privacy") and not (summed and not run.record.get("budgets"))
    chosen = f"round {selected}, the best on validation" if best else "the last round"
    if best and any(read_clause(str(row["tie"])).of_losses for row in run.ties):
        chosen += " of those that break the constraints of losses least"
    users = sum(int(c.get("users", 0)) for c in clients)
    held_out = sum(int(c.get("test", 0)) for c in clients)
    volunteers = int(option("volunteers", 0))
    users -= volunteers * max(len(clients) - 1, 0)  # every client has them
    public = f" ({volunteers:,} of them public volunteers)" if volunteers else ""
    sampled, seconds = option("candidates", "full"), float(record.get("seconds", 0))
    devices = run.federated.clients.get("device", pd.Series(dtype=str)).unique()
    negatives = f"outside the held-out items too: {LEAKING}" if run.leaking() else "outside the training positives"
    return {
        "Model": model_of(run),
        "Method": f"{option('method', '?')}; shared: {shared(run)}",
        **({"Constraints": "; ".join(str(row["tie"]) for row in run.ties)} if run.ties else {}),
        "Data": f"{option('dataset', '?')}: {plural(users, 'user')}{public}, {plural(held_out, 'test interaction')}",
        "Clients": f"{len(names):,}: {listing(names)}",
        "Tasks": str(option("task", "?")),
        "Rounds": rounds,
        **solved(record.get("certificate") or {}),
        "Tested model": chosen,
        "Split": str(option("split", "?")),
        **histories(run),
        "Ranking": "among the whole catalogue" if sampled == "full" else f"among {sampled} sampled candidates",
        **({} if option("model") in SUMMED else {"Negatives": negatives}),
        "Privacy": privacy(run),
        "Engine": f"{option('engine', '?')}; devices: {listing(sorted(set(devices) - {''})) or 'not recorded'}",
        "Seed": str(option("seed", "?")),
        "Time": f"{seconds:,.{0 if seconds >= 10 else 1}f} s",
    }


def histories(run: Run) -> dict[str, str]:
    """Return in words what is read of users at the test, for a run whose model reads histories."""
    encoder = (run.option("sequence") or {}).get("kind", "none")
    if (run.option("model") not in SUMMED or meets(run)) and encoder == "none":
        return {}
    alone = run.option("history") == "train"
    return {"Histories": f"at the test {'training items alone' if alone else 'validation items too'}"}


def solved(proof: Mapping[str, Any]) -> dict[str, str]:
    """Return in words what proves that the clients' weights are the best there are, for a record that has a proof."""
    if not proof:
        return {}
    binding = {what: bound(proof[f"multipliers_{what}"]) for what in ("budget", "ball")}
    words = [f"; the {what} binds {listing(names)}" for what, names in binding.items() if names]
    lacking = f"{short(proof['relative_gap'])} of the objective is all that can be lacking"
    return {"Coupling": f"solved exactly: {lacking}{''.join(words)}"}


def bound(multipliers: Mapping[str, float]) -> list[str]:
    """Return the clients with a price."""
    return [name for name, value in multipliers.items() if value > 0]


def short(gap: float) -> str:
    """Return a relative gap as one would say it: what is below the precision of numbers is that."""
    return "under 1e-15" if gap < 1e-15 else f"{gap:.0e}"


def model_of(run: Run) -> str:
    """Return which model was learnt, and why, in words; of a record that cannot be built its name."""
    try:
        return describe(build(run.record.get("experiment", {})))
    except UserError:
        return str(run.option("model", "?"))


def privacy(run: Run) -> str:
    """Return what is promised of what leaves a client, in a few words."""
    promised = run.record.get("privacy")
    if not promised:
        return "no mechanism: shared parameters and metrics leave the clients as they are"
    who = f"for {'an' if promised['unit'] == 'interaction' else 'a'} {promised['unit']}"
    spent: dict[str, list[str]] = {}  # by an epsilon as it is printed, whoever has spent it
    for row in promised["people"] or promised["parties"]:
        spent.setdefault(row["spent"], []).append(row["who"] if "who" in row else " and ".join(row["silos"]))
    bounded = sorted((text for text in spent if text != UNBOUNDED), key=float)
    if not bounded:
        return f"no guarantee {who}: some of what left the clients has no noise"
    if UNBOUNDED not in spent:
        return f"epsilon {promised['spent']} at delta {promised['delta']:g} {who}"
    ends = " to ".join(dict.fromkeys((bounded[0], bounded[-1])))
    return f"epsilon {ends} at delta {promised['delta']:g} {who}; no guarantee in {listing(spent[UNBOUNDED])}"


def shared(run: Run) -> str:
    """Return what the clients shared, in words."""
    items = (run.option("agreement") or {}).get("items", 0)
    logits = f"logits, of each public volunteer on {plural(items, 'public item')}" if items else ""
    if items and not run.option("share", ()):
        return f"only {logits}; no parameter"
    there = [str(p["name"]) for p in run.record.get("parameters", {}).get("shared", [])]
    modules = [one for one in run.option("share", ()) if not there or any(covers((one,), name) for name in there)]
    names, coupling = listing(modules), run.option("coupling") or {}
    if coupling.get("kind") == "linear":
        return f"{names}, every row under the client's own map ({coupling.get('maps')})"
    return f"{names}, and {logits}" if logits else names or "nothing"
