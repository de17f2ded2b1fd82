"""Quality against bytes: `python -m simulations.studies compression --seeds 10 --dataset ml-100k --data-dir PATH`.

Every codec runs twice, with error feedback and, as the control, without. Its settings are such that about an eighth of
the bytes travel, with 3 bits a tenth, with 8 a quarter; the blocks of scales were chosen on validation rows.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedrec.errors import choose
from fedrec.experiment.acting import acts
from fedrec.experiment.config import Experiment
from fedrec.metrics import higher_is_better, paired
from fedrec.report.findings import label, number
from fedrec.report.study import Page, Part, forest, interval, seeded
from simulations.cli import arm, check_flags
from simulations.engines import launch
from simulations.studies.harness import Findings, Rows, Run, Study, facts
from simulations.studies.options import SEEDS
from simulations.studies.tables import Row, by_arm, ends, read_test, records, spread

USUAL = "--method fedper --model mf --clients 5 --rounds 16 --batch-size 1024 --engine inline"
NONE, OFF = "none", "without feedback"
ARMS = {
    NONE: "",
    "8-bit": "--codec.kind quantised",
    "4-bit": "--codec.kind quantised --codec.bits 4",
    "3-bit": "--codec.kind quantised --codec.bits 3",
    "top-k": "--codec.kind top-k --codec.fraction 0.06",
    "random-k": "--codec.kind random-k --codec.fraction 0.12",
    "low-rank": "--codec.kind low-rank --codec.rank 3",
    "count-sketch": "--codec.kind count-sketch --codec.fraction 0.12",
    "projection": "--codec.kind projection --codec.fraction 0.12",
}
OPTIONS = {
    "arms": (",".join(name for name in ARMS if name != "projection"), "comma-separated, also projection"),
    "seeds": (10, SEEDS),
    "margin": (0.002, "a loss that is small enough"),
}
WORDS = (
    "What clients send up is encoded, what the server sends is not. Bytes are those of the messages' arrays and "
    "metrics, as the ledger of a run counts them. For a seed, all arms have the same data, start and order; "
    "validation chooses the round. Without feedback what a payload lacks is lost, and rounding and drawing are "
    "unbiased instead. Under duals there is no control: the tie owes."
)
TABLE = (
    "Sent up a round, and of what a run without a codec sends; then the mean over clients and seeds, and the "
    "difference to none with its 95% interval over seeds. Within the margin: the whole interval is above minus it."
)


def plan(options: Namespace) -> list[Run]:
    """Return a run for each seed, codec, and whether what it lacks is owed, where that can be chosen."""
    names = list(dict.fromkeys([NONE, *(choose("arms", name, ARMS) for name in options.arms.split(","))]))
    runs = []
    for seed in range(options.seeds):
        for name in names:
            e = experiment_of(name, True, options, seed)
            runs.append(Run({"arm": name, "seed": seed}, e))
            if acts(e, "codec.feedback"):
                runs.append(Run({"arm": f"{name} {OFF}", "seed": seed}, experiment_of(name, False, options, seed)))
    return runs


def experiment_of(name: str, feedback: bool, options: Namespace, seed: int) -> Experiment:
    """Return the experiment of an arm; raises UserError where a codec does not go with the options."""
    off = [] if feedback else ["--no-codec.feedback"]
    e = arm([*USUAL.split(), *options.flags, *ARMS[name].split(), *off, "--seed", str(seed)])
    check_flags([*ARMS[name].split(), *off], [e])
    return e


def measure(run: Run, home: Path) -> Rows:
    """Return a row for each client: its test of the first ranking metric, and the bytes of the run."""
    launch(run.experiment, home)
    rounds, ledger = pd.read_csv(home / "rounds.csv"), pd.read_csv(home / "ledger.csv")
    sums = ledger.groupby("direction")["bytes"].sum()
    about = {"up": float(rounds["bytes_up"].mean()), "run_up": int(sums["up"]), "run_down": int(sums["down"])}
    test = read_test(home)
    rows = test[(test["task"] == "rank") & (test["metric"] == run.experiment.metrics[0])]
    return records(rows.assign(**run.labels, **about))


def findings(results: pd.DataFrame, runs: Sequence[Run], options: Namespace) -> Findings:
    """Return what every arm sends and reaches, and the page that compares them."""
    metric = runs[0].experiment.metrics[0]
    rows = summary(results, metric, options.margin)
    gains = [
        (row["arm"], *(row[f"minus_none{end}"] for end in ("", "_low", "_high")), row["verdict"])
        for row in rows
        if row["arm"] != NONE
    ]
    figure = forest(gains, "compression", f"{label(metric)} minus none") if gains else None
    page = Page(
        "What may be left out on the way up?",
        WORDS,
        seeded(options.seeds, "mean over clients, 95% intervals over seeds"),
        [Part(f"{label(metric)} against bytes", [texts(row, metric) for row in rows], TABLE, figure)],
        facts(runs),
        [
            f"{name}: {flags}"
            for name, flags in ARMS.items()
            if any(run.labels["arm"] == name for run in runs) and flags
        ],
    )
    return Findings(rows, page, [Part("", [brief(row, metric) for row in rows])], notes=[f"margin: {options.margin:g}"])


def summary(results: pd.DataFrame, metric: str, margin: float) -> list[Row]:
    """Return a row for each arm: bytes, the mean over clients and seeds, and its paired difference to none."""
    values, sign = by_arm(results, "arm"), 1 if higher_is_better(metric) else -1
    up, run_up, run_down = (by_arm(results, "arm", name) for name in ("up", "run_up", "run_down"))
    rows: list[Row] = []
    for name, scores in values.items():
        gap = paired(scores, values[NONE])
        low, high = sorted((sign * gap.low, sign * gap.high))
        row: Row = {"arm": name, "up": float(up[name].mean()), "share": float(up[name].mean() / up[NONE].mean())}
        row |= {"run_up": float(run_up[name].mean()), "run_down": float(run_down[name].mean()), **spread(scores)}
        row |= ends({"minus_none": gap}) | {"margin": margin, "verdict": "hurt" if high < 0 else ""}
        rows.append(
            row | {"within": "" if name == NONE else "yes" if low >= -margin else "no" if high < -margin else "unclear"}
        )
    return rows


def texts(row: Row, metric: str) -> dict[str, str]:
    """Return a row as it is printed, by heading."""
    return {
        "Codec": row["arm"],
        "KB up a round": f"{row['up'] / 1e3:,.1f}",
        "Of none": f"{row['share']:.1%}",
        "MB up, run": f"{row['run_up'] / 1e6:.2f}",
        "MB down, run": f"{row['run_down'] / 1e6:.2f}",
        metric: f"{row['mean']:.4f}",
        "SD": number(row["sd"], 4),
        "Minus none [95%]": "" if row["arm"] == NONE else interval(row, "minus_none"),
        "Within margin": row["within"],
    }


def brief(row: Row, metric: str) -> dict[str, str]:
    """Return a row for the terminal, where it fits into 80 columns."""
    shown = texts(row, metric)
    return {
        "codec": row["arm"].replace(OFF, "off"),
        "KB up": shown["KB up a round"],
        "of none": shown["Of none"],
        metric: shown[metric],
        "minus none [95%]": shown["Minus none [95%]"],
        "within": row["within"],
    }


STUDY = Study("compression", OPTIONS, plan, measure, findings)
