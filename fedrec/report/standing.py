"""Where a federation stands among its baselines: the strongest of them by name, and whether popularity does better."""

from typing import Any, NamedTuple

import pandas as pd

from fedrec.metrics import Paired, higher_is_better, sign
from fedrec.report.findings import change, label, listing, number
from fedrec.report.gaps import differences
from fedrec.report.tables import BASELINES, Run, as_one, compare, paired_in
from fedrec.tasks import ATTRIBUTES

OWN = "own popularity"
WORDS = {
    "local": "training alone",
    "pooled": "pooled",
    "popularity": "popularity",
    OWN: "popularity among each client's own rows",
}
FORMS = {"local": "each client alone with", "pooled": "all clients together with"}


def words(name: str) -> str:
    """Return what a baseline is called: of a closed form the model, and whose data it has."""
    model, _, method = name.rpartition("-")
    return f"{FORMS[method]} the closed form {model}" if model else WORDS[name]


TRIVIAL = ("popularity", OWN)


class Standing(NamedTuple):
    """The test values of a run and its baselines for one task, of all users or of the one client there is."""

    who: str
    task: str
    metric: str
    ours: float
    baselines: dict[str, float]  # only those that were measured
    gaps: dict[str, Paired]  # ours minus each
    several: bool  # whether there are other tasks

    def ahead(self, name: str) -> bool:
        """Tell whether a baseline is better than the federation."""
        return self._good(self.baselines[name]) > self._good(self.ours)

    def _good(self, value: float) -> float:
        return sign(self.metric) * value

    @property
    def strongest(self) -> str | None:
        """The baseline with the best value."""
        return max(self.baselines, key=lambda name: self._good(self.baselines[name]), default=None)

    @property
    def popular(self) -> str | None:
        """The better kind of popularity, if it is better than the federation."""
        names = [name for name in TRIVIAL if name in self.baselines and self.ahead(name)]
        return max(names, key=lambda name: self._good(self.baselines[name]), default=None)

    @property
    def closed(self) -> str | None:
        """The best closed form, if it is better than the federation."""
        names = [name for name in self.baselines if "-" in name and self.ahead(name)]
        return max(names, key=lambda name: self._good(self.baselines[name]), default=None)

    @property
    def beaten(self) -> str:
        """That a closed form does better, where an interval says so; empty where none does."""
        gap = self.gaps[self.closed] if self.closed else None
        if gap is None or not self.closed or gap.low <= 0 <= gap.high or gap.low != gap.low:
            return ""
        ours, other = number(self.ours, 4), number(self.baselines[self.closed], 4)
        return f"The model is the weaker part: {words(self.closed)} reaches {other}, this run {ours}"

    @property
    def headline(self) -> str:
        """What a reader must see first where popularity does better; empty where it does not."""
        if self.popular is None:
            return ""
        gap = self.gaps[self.popular]
        usual = {"rank": "recommending what is popular", "rating": "each item's mean rating"}
        what = usual.get(self.task, "what is usual of items" if self.task in ATTRIBUTES else "each item's usual label")
        end = f" (task {self.task})" if self.several else ""
        if gap.low <= 0 <= gap.high:
            return f"Working together is not shown to do better than {what}{end}"
        return f"Working together does worse than {what}{end}"


def standings(run: Run, together: pd.DataFrame | None = None) -> list[Standing]:
    """Return where the run stands in each task's primary metric; `together` is `compare(run, together=True)`."""
    single = len(run.names()) == 1
    table = compare(run) if single else compare(run, together=True) if together is None else together
    # Popularity among own rows, and closed forms, by task and metric.
    beside: dict[tuple[str, ...], dict[str, tuple[float, Paired]]] = {}
    for name, other in {**({OWN: run.own} if run.own else {}), **run.closed}.items():
        ours, base = (run.federated, other) if single else (run.as_one, as_one(other))
        worth: dict[Any, float] = base.test().dropna().to_dict()
        for key, gap in differences(ours, base).items():
            if key in worth:
                beside.setdefault(key[1:], {})[name] = worth[key], gap
    rows = table[table["primary"] & table["federated"].notna()]
    apart = {name: paired_in(rows, name) for name in BASELINES}
    out = []
    for place, row in enumerate(rows.to_dict("records")):
        values = {name: float(row[name]) for name in BASELINES if row[name] == row[name]}
        gaps = {name: apart[name][place] for name in values}
        for name, (value, gap) in beside.get((row["task"], row["metric"]), {}).items():
            values[name], gaps[name] = value, gap
        out.append(Standing(row["client"], row["task"], row["metric"], row["federated"], values, gaps, len(rows) > 1))
    return out


def stands(standing: Standing, private: bool) -> str:
    """Return the strongest baseline with its number, and which others are not what they seem; "" without any.

    `private`: whether the run made a promise, which popularity does not keep.
    """
    name = standing.strongest
    if name is None:
        return ""

    def against(baseline: str) -> str:
        gap = standing.gaps[baseline]
        return change(gap.mean, gap.low, gap.high)

    better = "higher" if higher_is_better(standing.metric) else "lower"
    text = f"{standing.who}, {label(standing.metric)} ({better} is better): {number(standing.ours, 4)} together; the "
    text += f"strongest baseline is {words(name)}, {number(standing.baselines[name], 4)} ({against(name)} against it)."
    popular = standing.popular
    if popular and popular != name:
        text += f" {WORDS[popular].capitalize()} is better than together too: "
        text += f"{number(standing.baselines[popular], 4)} ({against(popular)})."
    forms = [f"{words(at)} {number(standing.baselines[at], 4)}" for at in best_forms(standing) if at != name]
    if forms:
        text += f" Closed forms: {', '.join(forms)}."
    if "pooled" in standing.baselines and not standing.ahead("pooled") and standing.gaps["pooled"].mean:
        text += f" Pooled, {number(standing.baselines['pooled'], 4)}, is no better than together: it is worth what its "
        text += "model is worth, and is no upper bound."
    if private and "popularity" in standing.baselines:
        text += " Popularity counts the rows of all clients as they are: it is not private."
    return text


def best_forms(standing: Standing) -> list[str]:
    """Return the best closed form alone and the best pooled one, as far as they were made."""
    worth = {name: sign(standing.metric) * value for name, value in standing.baselines.items()}
    parts = [[name for name in worth if name.endswith(f"-{method}")] for method in FORMS]
    return [max(names, key=worth.__getitem__) for names in parts if names]


def unpopular(primary: pd.DataFrame) -> str:
    """Return which clients were helped against training alone and are still below popularity; "" without any."""
    way = primary["metric"].map(sign)
    below = (primary["verdict"] == "helped") & (way * primary["federated"] < way * primary["popularity"])
    helped = list(dict.fromkeys(primary.loc[below, "client"]))
    return f"Helped against training alone, but still below popularity: {listing(helped)}." if helped else ""


def correction(primary: pd.DataFrame) -> str:
    """Return what the verdicts are corrected for; "" without an interval."""
    tests = int(primary["local_p"].notna().sum())
    return f"Verdicts: 5% over all {tests} of them together (Holm); intervals: 95% each." if tests else ""
