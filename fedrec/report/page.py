"""The report of a run: one HTML page that needs nothing else."""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from fedrec.metrics import higher_is_better, sign
from fedrec.report import plots
from fedrec.report.constraints import by_round, constraints, explained
from fedrec.report.facts import facts, model_of
from fedrec.report.findings import DASH, MANY, WORST, answer, headline, label, listing, plural, size, warnings
from fedrec.report.price import price_rows
from fedrec.report.several import WORDS, balance_of, balances, transfer
from fedrec.report.spread import QUANTILES, spread, worst
from fedrec.report.standing import Standing, correction, standings, stands, unpopular
from fedrec.report.summed import sums_told
from fedrec.report.tables import BASELINES, Run, compare, read_run, unit_of
from fedrec.report.template import render

# Columns of rounds.csv that are drawn where they are found, with the words on their axis.
ROUND_CURVES = {
    "train_loss": "mean training loss",
    "primal_residual": "primal residual |X - Z|",
    "dual_residual": "dual residual rho |Z+ - Z|",
    "violation": "largest budget violation",
    "staleness": "mean age of the answers in rounds",
}
# What the metrics of tasks about items are, beside their names.
MEANINGS = {
    ("category", "auc"): "the mean over the names with both classes among the held-out items",
    ("category", "ap"): "average precision over all pairs of an item and a name",
    ("category", "logloss"): "the mean over all pairs of an item and a name",
    ("price", "mae"): "in units of the logarithm of the price: .1 is about 10%",
    ("price", "rmse"): "in units of the logarithm of the price: .1 is about 10%",
}


class Figure(NamedTuple):
    """A figure and its caption."""

    picture: Markup
    caption: str


def write_report(run_dir: Path, complete: bool = True) -> Path:
    """Write `report.html` into a run directory and return its path; raises UserError as `read_run` does."""
    path, partial = run_dir / "report.html", run_dir / ".report.html"
    partial.write_text(page(read_run(run_dir, complete)), encoding="utf-8")
    return partial.replace(path)


def page(run: Run) -> str:
    """Return the HTML of a run."""
    table, together = compare(run), compare(run, together=True)
    primary = table[table["primary"]]
    standing = standings(run, together)
    return render(
        "run",
        leaking=run.stamp(),
        run=run.record,
        option=run.option,
        facts=facts(run),
        many=len(run.names()) > MANY,
        headlines=[text for s in standing for text in (s.headline, s.beaten) if text],
        corrected=correction(primary),
        answers=[
            _answer(run, i, rows, together, standing) for i, (_, rows) in enumerate(primary.groupby("task", sort=False))
        ],
        warnings=warnings(run, primary),
        tables=[_comparison(rows, together) for _, rows in table.groupby(["task", "metric"], sort=False)],
        baselines=run.baselines,
        several=_several(run),
        curves=_curves(run, primary),
        model=model_of(run),
        sums=sums_told(run),
        constraints=_constraints(run),
        **_budgets(run),
        quantiles=list(QUANTILES),
        privacy=run.record.get("privacy"),
        price=price_rows(run, MANY),
        **_changes(run, primary),
        unlearned=run.unlearned,
        student=run.student.head(MANY).to_dict("records"),
        traffic=_traffic(run),
        parameters=_parameters(run),
        clients=run.record.get("data", {}).get("clients", []),
    )


def _answer(
    run: Run, place: int, rows: pd.DataFrame, together: pd.DataFrame, standing: list[Standing]
) -> dict[str, Any]:
    """Return the answer for one task: the words, a headline for each client, and the picture of the differences."""
    task, metric = rows["task"].iloc[0], rows["metric"].iloc[0]
    everyone = together[(together["task"] == task) & (together["metric"] == metric)]
    first = [stands(s, bool(run.record.get("privacy"))) for s in standing if s.task == task]
    return {
        "task": task,
        "words": " ".join(text for text in (*first, answer(rows), unpopular(rows)) if text),
        "headlines": [] if len(run.names()) > MANY else [headline(row) for row in rows.itertuples()],
        "everyone": headline(next(everyone.itertuples())) if len(rows) > 1 else None,
        "figure": _differences(run, f"differences{place}", rows[rows["verdict"] != ""]),
    }


def _differences(run: Run, name: str, rows: pd.DataFrame) -> Figure | None:
    """Return the picture of the clients' differences against local: each one, or how many there are of each size."""
    if not len(rows):
        return None
    task, metric = rows["task"].iloc[0], rows["metric"].iloc[0]
    better = "higher" if higher_is_better(metric) else "lower"
    words = f"{label(metric)} together minus alone ({better} is better)\n{run.stamp()}".rstrip()  # a line of its own
    if len(run.names()) > MANY:
        picture = plots.distribution(rows["local_difference"], sign(metric), name, words, f"{words}. {answer(rows)}")
        return Figure(picture, "How many clients differ by how much.")
    each = "; ".join(f"{h.name}: {h.numbers}" for h in map(headline, rows.itertuples()))
    picture = plots.forest(rows, name, words, f"{words}. {each}")
    if rows["local_low"].notna().any():
        return Figure(picture, f"The difference over each client's {unit_of(task)}s, with its 95% interval.")
    return Figure(picture, "Bare difference of two numbers, without an interval.")


def _comparison(rows: pd.DataFrame, together: pd.DataFrame) -> dict[str, Any]:
    """Return the rows to print of one task and metric: every client, or the worst where they are many."""
    task, metric = rows["task"].iloc[0], rows["metric"].iloc[0]
    shown = rows
    if len(rows) > MANY:
        shown = worst(rows, WORST)
    everyone = together[(together["task"] == task) & (together["metric"] == metric)]
    if len(rows) > 1:
        shown = pd.concat([shown, everyone])
    return {
        "task": task,
        "metric": metric,
        "meaning": MEANINGS.get((task, metric), ""),
        "unit": f"{unit_of(task)}s".capitalize(),
        "primary": bool(rows["primary"].iloc[0]),
        "rows": shown.to_dict("records"),
        "everyone": len(rows) > 1,
        "cut": len(rows) - WORST if len(rows) > MANY else 0,
        "counts": rows["verdict"].value_counts().to_dict() if len(rows) > MANY else {},
        "spread": spread(rows) if len(rows) > MANY else [],
        "baselines": BASELINES,
    }


def _several(run: Run) -> dict[str, Any] | None:
    """Return what several tasks in one client gain or lose: all users' balance, and the rows of the table."""
    table = transfer(run)
    if not len(table):
        return {"words": f"Not compared: {run.not_single}.", "rows": [], "cut": 0} if run.not_single else None
    clients, together = balances(table), transfer(run, together=True)
    many = len(clients) > MANY
    shown = together if many else pd.concat([table, together]) if len(clients) > 1 else table
    return {
        "words": f"{'All users' if len(clients) > 1 else next(iter(clients))}: {balance_of(together).words}.",
        "rows": [{**row, "verdict": WORDS.get(row["verdict"], row["verdict"])} for row in shown.to_dict("records")],
        "cut": len(clients) if many else 0,
        "seesaws": sum(b.seesaw for b in clients.values()),
    }


def _curves(run: Run, primary: pd.DataFrame) -> list[Figure]:
    """Return the learning curves: validation of each task's primary metric, then what rounds.csv holds."""
    selected = run.record.get("selected_round")
    mark = f" The circle marks round {selected}, whose model was tested." if selected is not None else ""
    flag = f" {run.stamp()}" if run.stamp() else ""
    out = []
    for place, (task, metric) in enumerate(primary[["task", "metric"]].drop_duplicates().itertuples(index=False)):
        ours, local = (
            r.clients[
                (r.clients["split"] == "validation") & (r.clients["task"] == task) & (r.clients["metric"] == metric)
            ]
            for r in (run.federated, run.baselines.get("local", run.federated))
        )
        there = set(ours["client"])
        names = [name for name in run.names() if name in there]
        if not names:
            continue
        local = local if "local" in run.baselines else local.head(0)
        words = f"{label(metric)}{flag}"
        alt = f"Validation {label(metric)} by round, task {task}, for {plural(len(names), 'client')}.{flag}"
        if len(names) > MANY:
            picture = plots.bands(ours, selected, f"validation{place}", words, alt)
            caption = f"Validation, task {task}: mean over clients and the middle 80% of them.{mark}{flag}"
        else:
            picture = plots.curves(ours, local, selected, names, f"validation{place}", words, alt)
            caption = f"Validation by round, task {task}; each panel has its own scale.{mark}{flag}"
        out.append(Figure(picture, caption))
    for column, words in ROUND_CURVES.items():
        if column in run.rounds and run.rounds[column].notna().any():
            picture = plots.line(run.rounds["round"], run.rounds[column], selected, column, words, f"{words} by round.")
            out.append(Figure(picture, f"{words[0].upper()}{words[1:]} by round."))
    return out


def _constraints(run: Run) -> dict[str, Any] | None:
    """Return how every constraint of named blocks stands, what the numbers mean, and how they went."""
    if not run.ties:
        return None
    rows, drawn, selected = constraints(run), by_round(run)[:WORST], run.record.get("selected_round")
    broken = sum(row.verdict != "met" for row in rows)
    words = f"{broken} of {plural(len(rows), 'constraint')} not met." if broken else "Every constraint is met."
    alt = f"Residual and multiplier by round of {plural(len(drawn), 'constraint')}."
    picture = plots.stacked(run.rounds["round"], drawn, selected, "constraints", alt) if drawn else None
    caption = f"By how much each constraint was missed, and its price, by round; the circle marks round {selected}."
    return {
        "words": f"{words} {explained(run)}",
        "rows": rows,
        "figure": Figure(picture, caption) if picture else None,
    }


def _budgets(run: Run) -> dict[str, Any]:
    """Return what each client was promised, of many those that are furthest above it, and which are above it."""
    budgets = sorted(run.record.get("budgets", []), key=lambda row: -row["excess"])
    above = [row["client"] for row in budgets if not row["feasible"]]
    shown = budgets[:MANY] if len(budgets) > MANY else run.record.get("budgets", [])
    return {"budgets": shown, "above": listing(above), "budgets_unshown": len(budgets) - len(shown)}


def _changes(run: Run, primary: pd.DataFrame) -> dict[str, Any]:
    """Return what changed for each client by the metrics that speak for its tasks; of many for whom most was lost."""
    rows = shown = run.changes[run.changes["metric"].isin(set(primary["metric"]))]
    if len(run.names()) > MANY:
        shown = rows.loc[(rows["metric"].map(sign) * rows["difference"]).sort_values(kind="stable").index[:MANY]]
    return {"changes": shown.to_dict("records"), "changes_unshown": len(rows) - len(shown)}


def _traffic(run: Run) -> dict[str, Any] | None:
    """Return the bytes of every round and their sums."""
    if not len(run.ledger):
        return None
    table = run.ledger.pivot_table(index="round", columns="direction", values="bytes", aggfunc="sum", fill_value=0)
    table = table.reindex(columns=["up", "down"], fill_value=0).reset_index()
    up, down = float(table["up"].sum()), float(table["down"].sum())
    rounds, clients = len(run.rounds) or len(table), len(run.names()) or 1
    unit, scale = next(
        ((u, s) for u, s in (("MB", 1e6), ("kB", 1e3)) if table[["up", "down"]].max().max() >= s), ("B", 1)
    )
    alt = f"Bytes by round: {size(up / rounds)} up and {size(down / rounds)} down in the mean round."
    scaled = table.assign(up=table["up"] / scale, down=table["down"] / scale)
    return {
        "figure": Figure(
            plots.traffic(scaled, unit, "traffic", alt), "Sent to the server (up) and to the clients (down)."
        ),
        "rows": {
            name: [total / parts for total in (up, down, up + down)]
            for name, parts in (("Whole run", 1), ("A round", rounds), ("A client in a round", rounds * clients))
        },
    }


def _parameters(run: Run) -> list[dict[str, Any]]:
    """Return what was shared, what stayed private, and what else the ledger names, with the bytes of each."""
    sent = run.ledger.groupby(["parameter", "direction"])["bytes"].sum().to_dict()
    keyed = run.ledger.groupby("parameter")["rows"].max().to_dict()
    parameters = run.record.get("parameters", {})
    listed = [
        (kind, p["name"], p["shape"], p.get("rows")) for kind in ("shared", "private") for p in parameters.get(kind, [])
    ]
    named = {name for _, name, _, _ in listed}
    listed += [("message", name, None, None) for name in keyed if name not in named]
    return [
        {
            "kind": kind,
            "name": name,
            "shape": " \N{MULTIPLICATION SIGN} ".join(f"{n:,}" for n in shape or ()) or DASH,
            "rows": rows or (shape[0] if shape and keyed.get(name, 0) > 0 else None),
            "up": sent.get((name, "up"), 0),
            "down": sent.get((name, "down"), 0),
        }
        for kind, name, shape, rows in listed
    ]
