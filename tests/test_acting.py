"""No option is ignored: a changed field changes what a run makes, or it is refused with what would make it act."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedrec.data import Reading
from fedrec.errors import UserError
from fedrec.experiment.acting import ALWAYS, RULES, acting, acts, inert, refuse
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.holdings import clients_data
from simulations import flower
from simulations.apps import apps_for, plan_of
from simulations.baselines import baseline, comparisons, run_popularity, single_task
from simulations.check import check
from simulations.cli import arm, check_flags, parse
from simulations.engines.nodes import stacked
from simulations.engines.slots import slots_of
from simulations.methods import METHODS, usual
from simulations.options import FIELDS, flag, flatten, nest
from simulations.run import main
from tests.helpers import run_inline

Flat = dict[str, Any]
SMALL: Flat = {"market.users": 12, "market.items": 30, "market.impressions": 12, "clients": 3, "rounds": 2}
SMALL |= {"local_epochs": 1, "dim": 4, "engine": "inline", "seed": 1, "batch_size": 20}
AGREED: Flat = {"method": "agreement", "volunteers": 6, "agreement.items": 8, "agreement.epochs": 2}
USER: Flat = {"weights": "uniform", "privacy.unit": "user", "privacy.noise": 1.0, "privacy.replay": True}
SETS = {"coupling.kind": "clusters", "coupling.groups": "films,shop", "coupling.rho": 0.1}
STILL: Flat = {name: getattr(Experiment(), name) for name in ("local_epochs", "dim", "batch_size")}  # which acts not
# Experiments that differ in what acts in them; every field must act in one of them, and be refused where it cannot.
BASES: dict[str, Flat] = {
    "usual": {},
    "admm": {"method": "admm", "coupling.rho": 1e-3},
    "parity": {"method": "admm", "coupling.ties": "losses: parity(0.001)"},
    "shown": {"method": "admm", "coupling.ties": "exposure: at-least(0.9)"},
    "agreement": AGREED,
    "mlp student": {**AGREED, "agreement.student": "mlp"},
    "click student": {**AGREED, "task": "rank,click", "agreement.scale": "raw"},
    "local": {"method": "local"},
    "pooled": {"method": "pooled"},
    "user": USER,
    "interaction": {**USER, "privacy.unit": "interaction", "privacy.rate": 0.5, "privacy.epsilon": "100"},
    "client": {**USER, "privacy.unit": "client", "privacy.epsilon": "200"},
    "new users": {"split": "new-users", "fractions": (0.2, 0.2), "lr": 0.1},
    "secure": {"secure.active": True, "clients": 5},
    "tasks": {"task": "click,buy", "model": "aitm", "hidden": (6, 4), "init_std": 2.0, "lr": 0.5},
    "experts": {"task": "rank,click", "model": "mmoe", "hidden": (6, 4)},
    "weighed": {"task": "rank,click", "weighting.kind": "aggregator"},
    "one task": {"task": "rating;shop=click", "model": "mf;shop=mlp"},
    "graph": {"method": "graph", "coupling.strength": 0.1, "coupling.rho": 0.1},
    "clusters": SETS,
    "mixture": {"coupling.kind": "mixture", "coupling.mixing": "1,0;0.5,0.5;0,1"},
    "sum": {"coupling.kind": "sum", "coupling.duals": True, "coupling.rho": 0.1},
    "linear": {"method": "admm", "coupling.kind": "linear", "coupling.width": 2, "share": ("item_table",)},
    "limits": {"method": "no-harm", "budget.margin": None, "budget.limits": "films=0.2", "rounds": 3},
    "no harm": {"method": "no-harm", "budget.margin": 0.0},
    "fedmgda": {"method": "fedmgda", "descent.eps": 0.01},
    "cagrad": {"method": "cagrad"},
    "fedadam": {"method": "fedadam"},
    "ditto": {"method": "ditto", "drift.weight": 0.1},
    "sgd": {"optimiser": "sgd", "lr": 1.0},
    "item": {"model": "item", "split": "new-users"},
    "trimmed mean": {"method": "trimmed-mean", "clients": 5},
    "multi-krum": {"method": "multi-krum", "clients": 5},
    "clipped": {"method": "clipped"},
    "top-k": {"codec.kind": "top-k"},
    "quantised": {"codec.kind": "quantised", "codec.bits": 3},
    "low-rank": {"codec.kind": "low-rank"},
    "count-sketch": {"codec.kind": "count-sketch", "codec.fraction": 0.3},
    "hashed": {"content.kind": "hashed", "content.dim": 8},
    "gru4rec": {"sequence.kind": "gru4rec"},
    "sasrec": {"sequence.kind": "sasrec"},
    "ease": {"model": "ease", "rounds": 1, **STILL},
    "slist": {"model": "slist", "rounds": 1, **STILL},
    "ditto by sums": {"model": "slist", "method": "ditto", "rounds": 1, "drift.weight": 1.0, **STILL},
    "no harm by sums": {
        **STILL,
        "model": "slist",
        "method": "no-harm",
        "coupling.strength": 10.0,
        "coupling.rho": 0.0,
        "coupling.duals": False,
        "budget.margin": None,
        "budget.limits": "-1",
        "budget.step": 1.0,
    },
    "subspace": {"model": "slist", "sums.kind": "subspace", "sums.passes": 2, "rounds": 3, "eval_every": 3, **STILL},
    "sweeps": {"model": "ials", "ials.d": 3, "rounds": 2, **STILL},
    "two": {"model": "slist", "rounds": 1, "clients": 2, **STILL},
    "absent": {"model": "slit", "participation": 0.5, **STILL},
    "silos": {"partition": "users", "market.users": 60},
    "buffered": {"asynchrony.buffer": 2, "asynchrony.spread": 1.0, "rounds": 3},
}
# Another value of every field; of some it takes other fields too, or more than one to have one that is taken.
CHANGES: dict[str, list[Any]] = {
    "method": ["fedavg"],
    "share": [("item_bias",)],
    "phases": [("private", "shared")],
    "coupling.kind": ["clusters"],
    "coupling.rho": [0.5],
    "coupling.duals": [True],
    "coupling.balance": [True],
    "coupling.strength": [0.5],
    "coupling.groups": ["films,news"],
    "coupling.edges": ["films~shop"],
    "coupling.mixing": ["1,0;0,1;0.5,0.5"],
    "coupling.maps": ["identity"],
    "coupling.width": [3],
    "coupling.total": [1.0],
    "coupling.ties": ["item_table: ball(0.1)"],
    "coupling.step": [3.0],
    "coupling.judged": ["training"],
    "coupling.tolerance": [1.0],
    "coupling.shown": ["drama"],
    "coupling.along": ["training"],
    "coupling.radius": [0.1],
    "coupling.bound": [0.01],
    "budget.margin": [0.01],
    "budget.limits": ["0.1"],
    "budget.step": [1.0],
    "budget.confidence": [2.0],
    "descent.aggregator": ["mgda"],
    "descent.eps": [0.3],
    "descent.c": [0.9],
    "descent.optimiser": ["momentum"],
    "descent.lr": [0.7],
    "descent.beta1": [0.5],
    "descent.beta2": [0.5],
    "descent.tau": [0.1],
    "drift.correction": ["scaffold"],
    "drift.normalise": [True],
    "drift.personal": ["tuned"],
    "drift.weight": [0.9],
    "reveal": [True],
    "ials.d": [5],
    "ials.unliked": [0.9],
    "ials.ridge": [0.5],
    "ials.nu": [0.5],
    "ials.spread": [0.5],
    "sums.kind": ["subspace"],
    "sums.k": [3],
    "sums.passes": [1],
    "sums.damping": [0.1],
    "sums.ridge": [0.9],
    "sums.basis": ["categories"],
    "quadratic.past": [9.0],
    "quadratic.future": [3.0],
    "quadratic.recent": [3.0],
    "quadratic.whole": [0.9],
    "quadratic.length": [1.5],
    "quadratic.ridge": [50.0],
    "quadratic.popular": [0.9],
    "quadratic.rare": [0.9],
    "quadratic.repeats": [0.0, 1.0],
    "agreement.items": [5],
    "agreement.task": ["click"],
    "agreement.scale": ["raw"],
    "agreement.batch": [16, 10_000],
    "agreement.student": ["mlp"],
    "agreement.epochs": [3],
    "robust.kind": ["median"],
    "robust.beta": [0.4],
    "robust.f": [0],
    "robust.m": [2],
    "robust.norm": [0.01],
    "codec.kind": ["top-k"],
    "codec.fraction": [0.5],
    "codec.bits": [4],
    "codec.block": [8],
    "codec.rank": [1],
    "codec.hashes": [3],
    "codec.feedback": [False],
    "pool": [True],
    "clients": [4],
    "dataset": ["table"],
    "data_dir": [None],
    "columns": ["user=user,item=item,rating=other"],
    "filters.core": [3],
    "filters.user_most": [5],
    "filters.since": ["10"],
    "market.similarity": [0.1],
    "market.conflicting": [1],
    "market.users": [13],
    "market.items": [31],
    "market.impressions": [13],
    "partition": ["users"],
    "skew": [0.3],
    "volunteers": [3],
    "split": ["random"],
    "fractions": [(0.3, 0.2)],
    "fold_in": [3],
    "negatives": ["published"],
    "num_negatives": [2],
    "candidates": [5],
    "history": ["train"],
    "task": ["rank-bce"],
    "weighting.kind": ["rlw"],
    "weighting.aggregator": ["mgda"],
    "model": ["mlp"],
    "dim": [3],
    "init_std": [0.2],
    "hidden": [(7, 5)],
    "experts": [2],
    "calibration": [0.1],
    "content.kind": ["hashed"],
    "content.dim": [4],
    "content.vectors": [None],
    "content.dropout": [0.4],
    "sequence.kind": ["gru4rec"],
    "sequence.history": [2],
    "sequence.blocks": [1],
    "sequence.heads": [2],
    "metrics": [("ndcg@3",)],
    "rounds": [1],
    "local_epochs": [2],
    "batch_size": [9],
    "optimiser": ["adagrad"],
    "lr": [0.05],
    "lrs": ["item_table=0.05"],
    "l2": [0.5],
    "transform": ["tests.own_parts:Decay"],
    "objective": ["tests.own_parts:Ridge"],
    "weights": ["uniform"],
    "patience": [1],
    "eval_every": [2],
    "participation": [0.5],
    "dropout": ["1:shop"],
    "deadline": [1e6],
    "quorum": [0.3],
    "asynchrony.buffer": [1],
    "asynchrony.concurrency": [2],
    "asynchrony.discount": [2.0],
    "asynchrony.spread": [0.5],
    "asynchrony.jitter": [0.5],
    "newcomers": ["shop=1"],
    "privacy.unit": ["user"],
    "privacy.epsilon": ["150"],
    "privacy.delta": [1e-3],
    "privacy.clip": [0.1],
    "privacy.noise": [2.0],
    "privacy.rate": [0.3],
    "privacy.where": ["client"],
    "privacy.ledger": [None],
    "privacy.replay": [False],
    "secure.active": [True],
    "secure.threshold": [4],
    "secure.bound": [32.0],
    "secure.carriers": [3],
    "seed": [2],
}
# Whether these change a number is also up to the data: a rho in balance, experts that agree, a bound that is met.
BY_DATA = {"coupling.balance", "calibration", "robust.f", "budget.step", "privacy.where", "quadratic.repeats"}
# What no small run in this process tells; each is looked at in a test of its own below.
APART = {
    "engine": "the same numbers by another engine, which tests/test_engines.py shows",
    "device": "needs an accelerator",
    "workers": "needs processes",
    "stack": "needs processes",
    "without": "names clients of the data: tests/test_unlearn.py",
    "forgotten": "needs a file of users: tests/test_unlearn.py",
    "start": "needs a run to go on from: tests/test_unlearn.py",
    "retune": "needs a run to go on from: tests/test_unlearn.py",
    **{
        f"reading.{name}": "how files are read, and what rows mean: tests/test_reading.py, tests/test_rows.py"
        for name in Reading.model_fields
    },
    **{
        f"filters.{name}": "as other filters: tests/data/test_data_filters.py"
        for name in ("user_least", "item_least", "item_most", "until")
    },
    "tracker": "is told of a run and changes nothing of it: tests/test_tracking.py",
    "lora.rank": "needs the weights of the sentence encoder: tests/test_lora_rounds.py",
    "lora.form": "needs the weights of the sentence encoder: tests/test_lora_rounds.py",
    "lora.alpha": "needs the weights of the sentence encoder: tests/test_lora_rounds.py",
}


def experiment(base: str, **change: Any) -> Experiment:
    """Return the experiment of a base with a changed value, by dotted path; raises UserError."""
    flat = {**SMALL, **BASES[base], **change}
    values = flatten(Experiment().model_dump()) | flatten(METHODS[flat.get("method", "fedper")].model_dump())
    return build(nest({**values, **flat}))


@functools.cache
def outcome(e: Experiment, folder: Path) -> Mapping[str, str]:
    """Return what comes of a run, by file: everything but times, drawn names, and what merely repeats the options."""
    home = folder / hashlib.sha256(e.model_dump_json().encode()).hexdigest()[:16]
    home.mkdir()
    run_inline(*apps_for(e, home), len(clients_data(e)))
    run_popularity(e, home / "popularity")
    plan = plan_of(e, home)
    found = {"plan": repr((plan.turnout, plan.secure, plan.patience, plan.newcomers))}
    for path in sorted(home.rglob("*")):
        name = path.relative_to(home).as_posix()
        if path.suffix == ".csv":
            table = pd.read_csv(path)
            # `rho` is the option itself; where it is adapted, other numbers follow.
            timed = [name for name in map(str, table) if "seconds" in name or name.endswith("_ms") or name == "rho"]
            size = [one for one in map(str, table) if one.startswith("bytes")]
            found[name], found[f"size of {name}"] = (
                one.to_csv(index=False) for one in (table.drop(columns=[*timed, *size]), table[size])
            )
        elif name == "experiment.json":
            promised = json.loads(path.read_text()).get("privacy") or {}
            found[name] = repr([promised.get(key) for key in ("parties", "people", "spent")])
        elif path.is_file() and not name.startswith(("about/", "privacy/", "model/student.json")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = ""
    return found


def changed(path: str, base: str, folder: Path) -> Iterator[Experiment]:
    """Yield the experiments of a base with another value of a field, those that are accepted beside the rule."""
    for value in CHANGES[path]:
        change: Flat = {path: value}
        if path == "dataset":
            change |= table_of(folder)
        if of_table(path):
            change |= table_of(folder)
        if path in ("data_dir", "columns"):
            change = {**table_of(folder), path: folder / "other.csv" if path == "data_dir" else value}
        if path == "content.vectors":
            change[path] = vectors(folder)
        if path == "quadratic.repeats" and base == "ease":  # where none is the least
            change[path] = 0.5
        if path == "privacy.ledger":
            change[path] = folder / f"ledger {base}"
        if path == "drift.correction":
            change["optimiser"] = BASES[base].get("optimiser", "adam")
        if path == "privacy.unit":
            change |= {"privacy.noise": 1.0, "privacy.replay": True, "weights": "uniform"}
        try:
            e = experiment(base, **change)
            check(acting(e, usual(e)))
        except UserError:
            continue
        yield e


def table_of(folder: Path) -> Flat:
    """Return the fields of a small table of interactions, which is written with another of the same form."""
    rows = [
        {"user": u, "item": (u * k) % 17, "rating": 1 + (u + k) % 5, "other": 1 + u % 5, "time": 6 * u + k}
        for u in range(1, 12)
        for k in range(1, 4 + u % 4)
    ]
    pd.DataFrame(rows).drop_duplicates(["user", "item"]).to_csv(folder / "table.csv", index=False)
    pd.DataFrame(rows[6:]).drop_duplicates(["user", "item"]).to_csv(folder / "other.csv", index=False)
    columns = "user=user,item=item,rating=rating,time=time"
    return {"dataset": "table", "data_dir": folder / "table.csv", "columns": columns, "task": "rating"}


def vectors(folder: Path) -> Path:
    """Return a file of vectors of the market's items."""
    from fedrec.experiment.holdings import dataset

    keys = dataset(experiment("usual")).items["key"]
    pd.DataFrame({"key": keys, "a": range(len(keys)), "b": 1.0}).to_csv(folder / "vectors.csv", index=False)
    return folder / "vectors.csv"


def of_table(path: str) -> bool:
    """Return whether a field acts on a table alone."""
    return path in ("data_dir", "columns") or path.startswith("filters.")


def before(path: str, base: str, folder: Path) -> Experiment:
    """Return what a change of a field in a base is compared with."""
    return experiment(base, **(table_of(folder) if of_table(path) else {}))


def effects(found: Mapping[str, str]) -> dict[str, str]:
    """Return an outcome without what the server is told and how many bytes were sent."""
    sizes = ("plan", "ledger.csv")
    return {name: text for name, text in found.items() if name not in sizes and not name.startswith("size of ")}


def fault(path: str, base: str, e: Experiment, folder: Path) -> str:
    """Return what is wrong with a changed field: ignored without a word, or refused although it acts; or nothing."""
    refused = path in inert(e, usual(e))
    old = before(path, base, folder)
    try:
        new, old_one = dict(outcome(e, folder)), dict(outcome(old, folder))
    except UserError as error:  # it does not fit, either
        return "" if refused else f"{path}: ends {base}: {error}"
    if refused:  # more bytes alone are no effect
        new, old_one = effects(new), effects(old_one)
    same = new == old_one
    if same and not refused and e != old:
        return f"{path}: is ignored in {base}"
    return f"{path}: is refused in {base}, where it acts" if refused and not same else ""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_every_field_has_an_entry() -> None:
    assert set(RULES) | ALWAYS == set(FIELDS)
    assert not set(RULES) & ALWAYS
    assert set(CHANGES) | set(APART) == set(FIELDS)
    assert not set(CHANGES) & set(APART)


@pytest.mark.soak
@pytest.mark.parametrize("path", CHANGES)
def test_a_changed_field_changes_the_run_or_is_refused(
    path: str, folder: Path, tries: Callable[[int, int], int]
) -> None:
    """A sample looks at the first base in which the field acts, the soak at all, and at refusals that must be right."""
    left, seen = tries(1, len(BASES)), 0
    for base in BASES:
        for e in changed(path, base, folder):
            refused = path in inert(e, usual(e))
            if left == len(BASES) or (not refused and seen < left):
                found = fault(path, base, e, folder)
                assert not found or (path in BY_DATA and "ignored" in found), found
                seen += not refused and not found
    assert seen, "acts in none of the bases"


@pytest.mark.parametrize(
    ("path", "base"), [("robust.f", "usual"), ("privacy.epsilon", "usual"), ("descent.eps", "admm"), ("skew", "local")]
)
def test_the_property_sees_a_rule_that_is_missing(
    path: str, base: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = {"skew": {"skew": 0.3, "partition": "platform"}}.get(path, {path: CHANGES[path][0]})
    e = experiment(base, **change)
    with pytest.raises(UserError, match=f"^{path}: acts only with "):
        refuse(e, usual(e))
    monkeypatch.setitem(RULES, path, RULES[path]._replace(acts=lambda e: True))
    refuse(e, usual(e))
    if path != "skew":  # which the data refuses again
        assert fault(path, base, e, folder) == f"{path}: is ignored in {base}"


def test_the_property_sees_a_field_that_nobody_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = experiment("usual", l2=0.25)
    assert not fault("l2", "usual", e, folder)
    recipe = Experiment.recipe
    monkeypatch.setattr(Experiment, "recipe", lambda e: replace(recipe(e), l2=0.01))
    deaf = experiment("usual", l2=0.125)
    assert fault("l2", "usual", deaf, folder) == "l2: is ignored in usual"


def test_the_property_sees_a_refusal_of_what_acts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = experiment("usual", num_negatives=2)
    monkeypatch.setitem(RULES, "num_negatives", RULES["num_negatives"]._replace(acts=lambda e: False))
    assert fault("num_negatives", "usual", e, folder) == "num_negatives: is refused in usual, where it acts"


def test_workers_and_stacks_act_where_there_are_processes() -> None:
    e = experiment("usual", engine="process")
    assert [len(slots_of(e.model_copy(update={"workers": n}), 3)) for n in (1, 2)] == [1, 2]
    assert [stacked(e.model_copy(update={"stack": word})) for word in ("yes", "no")] == [True, False]
    for path, value in (("workers", 2), ("stack", "no")):
        refuse(experiment("usual", engine="process", **{path: value}), METHODS["fedper"])
        with pytest.raises(UserError, match=f"^{path}: acts only with several clients in processes"):
            refuse(experiment("usual", **{path: value}), METHODS["fedper"])


def test_an_adapter_acts_with_a_rank_alone() -> None:
    for path, value in (("lora.form", "exact"), ("lora.alpha", 8.0)):
        assert list(inert(experiment("usual", **{path: value}), METHODS["fedper"])) == [path]
        e = experiment("usual", **{path: value, "lora.rank": 2, "content.kind": "minilm"})
        assert not list(inert(e, METHODS["fedper"]))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--privacy.epsilon 2", "option --privacy.epsilon: acts only with privacy.unit (add --privacy.unit user)"),
        ("--privacy.noise 2", "option --privacy.noise: acts only with privacy.unit"),
        ("--privacy.ledger books", "option --privacy.ledger: acts only with privacy.unit"),
        ("--secure.threshold 3", "option --secure.threshold: acts only with secure sums (add --secure.active)"),
        ("--robust.f 2", "option --robust.f: acts only with robust.kind krum or multi-krum"),
        ("--method median --robust.f 2", "option --robust.f: acts only with robust.kind krum or multi-krum"),
        ("--coupling.strength 1", "option --coupling.strength: acts only with coupling.kind mean-regularised or graph"),
        ("--coupling.edges films~shop", "option --coupling.edges: acts only with coupling.kind graph"),
        ("--coupling.groups films", "option --coupling.groups: acts only with coupling.kind clusters"),
        ("--coupling.total 1", "option --coupling.total: acts only with coupling.kind sum"),
        ("--coupling.rho 1 --coupling.balance", "option --coupling.balance: acts only with a coupling that remembers"),
        ("--descent.c 1", "option --descent.c: acts only with descent.aggregator cagrad"),
        ("--descent.beta1 .5", "option --descent.beta1: acts only with descent.optimiser momentum or adam or yogi or"),
        ("--method fedavgm --descent.tau 1", "option --descent.tau: acts only with descent.optimiser adam or yogi or"),
        ("--method fedadagrad --descent.beta2 .5", "option --descent.beta2: acts only with descent.optimiser adam or"),
        ("--method admm --descent.eps 2", "option --descent.eps: acts only with descent.aggregator fedmgda"),
        ("--method fedavg --drift.weight 1", "option --drift.weight: acts only with drift.personal ditto or apfl"),
        ("--sequence.history 5", "option --sequence.history: acts only with a sequence encoder"),
        ("--experts 2", "option --experts: acts only with model mmoe, ple or task-embedding"),
        ("--fold-in 3", "option --fold-in: acts only with new users"),
        ("--weighting.aggregator mgda", "option --weighting.aggregator: acts only with weighting.kind aggregator"),
        ("--content.dropout 0.3", "option --content.dropout: acts only with content"),
        ("--dataset ml-100k --market.users 9", "option --market.users: acts only with the synthetic market"),
        ("--method pooled --model mf;shop=mlp", "option --model: acts only with more than the one pooled client"),
        ("--method pooled --dim 8;shop=4", "option --dim: acts only with more than the one pooled client"),
        ("--rounds 3 --patience 3", "option --patience: acts only with more validations than it waits for"),
        ("--rounds 9 --eval-every 4 --patience 3", "option --patience: acts only with more validations"),
        ("--epsilon 2", "option --epsilon: no such option; did you mean --privacy.epsilon? It acts only with"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_act_is_refused_in_one_line(
    argv: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv.split()) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}"), shown
    assert shown.count("\n") == 1


def test_what_is_at_its_default_or_set_by_the_method_is_no_option() -> None:
    usual = ["--model", "mf", "--privacy.delta", "1e-5", "--experts", "4", "--market.users", "300"]
    assert parse(usual).experiment == Experiment()
    assert parse(["--method", "ditto", "--drift.personal", "none"]).experiment.drift.personal == "none"


@pytest.mark.parametrize("name", ["--engine inline", "--workers 2", "--stack yes", "--compare", "--checkpoint-every 2"])
def test_an_option_that_flwr_run_does_not_use_is_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--market.users", "20", "--market.items", "40", "--clients", "2", "--rounds", "1", "--dim", "4"]
    assert flower.main([*few, *name.split(), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: option {name.split()[0]}: acts only with simulations.run"), shown
    assert shown.count("\n") == 1


def test_patience_can_act_up_to_one_less_than_there_are_validations(tmp_path: Path) -> None:
    """The first validation is the best so far, and none is better where nothing is learnt."""
    ended = []
    for patience in (1, 2, 3):
        e, home = experiment("usual", rounds=3, patience=patience, lr=1e-12), tmp_path / str(patience)
        run_inline(*apps_for(e, home), len(clients_data(e)))
        ended.append(json.loads((home / "experiment.json").read_text())["stopped"])
        assert ("patience" in inert(e, usual(e))) == (not ended[-1])
    assert ended == ["patience", "patience", ""]


def test_few_rounds_are_none_too_few_for_the_usual_patience() -> None:
    assert parse(["--rounds", "1"]).experiment.patience == 0
    assert parse(["--rounds", "9", "--eval-every", "4", "--patience", "2"]).experiment.patience == 2


def test_what_is_pooled_has_the_value_of_all_other_clients(tmp_path: Path) -> None:
    e = experiment("usual", model="mlp;shop=mf", dim="4;news=3", patience=1)
    assert [(one.model, one.dim, one.patience) for one in (baseline(e, "pooled"), baseline(e, "local"))] == [
        ("mlp", 4, 1),
        ("mlp;shop=mf", "4;news=3", 1),
    ]
    assert baseline(experiment("usual", model="films=mlp;shop=mlp;news=mlp"), "pooled").model == "mf"


def test_a_file_is_named_whose_field_cannot_act_any_more(tmp_path: Path) -> None:
    file = tmp_path / "experiment.json"
    made = parse(["--method", "agreement", "--volunteers", "9", "--secure.carriers", "2"]).experiment
    file.write_text(json.dumps({"experiment": made.model_copy(update={"engine": "inline"}).model_dump(mode="json")}))
    assert parse(["--config", str(file), "--method", "local"]).experiment.volunteers == 9
    ranking = parse(["--model", "mlp", "--hidden", "9,8"]).experiment
    file.write_text(json.dumps({"experiment": ranking.model_dump(mode="json")}))
    with pytest.raises(UserError, match=f"^{file}: hidden: acts only with a model with layers"):
        parse(["--config", str(file), "--model", "mf"])


@pytest.mark.parametrize("base", BASES)
def test_what_is_derived_is_not_refused_for_what_it_inherits(base: str) -> None:
    e = experiment(base)
    e = acting(e, usual(e))  # what the bases have in common acts in most
    refuse(e, usual(e))
    for method in ("local", "pooled"):
        one = baseline(e, method)
        refuse(one, usual(one))
    for one in comparisons(e)[0].values():
        check(one)
    if not e.privacy.active and "click" in e.task and e.model not in ("esmm", "aitm") and not e.agreement.active:
        one = single_task(e, "click")
        refuse(one, usual(one))


def test_a_study_refuses_an_option_that_acts_in_none_of_its_experiments() -> None:
    flags = ["--coupling.strength", "0.5"]
    arms = [arm([*flags, "--method", name]) for name in ("fedper", "mr-mtl")]
    assert [e.coupling.strength for e in arms] == [1e-4, 0.5]
    check_flags(flags, arms)
    with pytest.raises(UserError, match=r"^option --coupling\.strength: acts only with"):
        check_flags(flags, arms[:1])


@pytest.mark.parametrize(
    ("flags", "least"),
    [(["--model", "mf;shop=mlp"], ["--method", "pooled"]), (["--patience", "3"], ["--rounds", "3"])],
)
def test_a_study_refuses_a_value_that_acts_in_none_of_its_experiments(flags: list[str], least: list[str]) -> None:
    arms = [arm([*flags, *more]) for more in (least, [])]
    check_flags(flags, arms)
    refuse(arms[0], usual(arms[0]))
    with pytest.raises(UserError, match=f"^option {flags[0]}: acts only with more "):
        check_flags(flags, arms[:1])


def test_what_cannot_act_is_set_back_and_nothing_else() -> None:
    e = experiment("usual", **{"robust.f": 3, "experts": 7, "l2": 0.3})
    assert acting(e, usual(e)) == experiment("usual", l2=0.3)
    assert all(acts(e, path) for path in ALWAYS)
    assert flag("privacy.epsilon") == "--privacy.epsilon"
