"""Needs and gives: what is known of the mathematics and of privacy, case by case, against the one table."""

import re
from typing import Any, NamedTuple, get_args

import pytest

from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, build
from fedrec.experiment.needs import UNBUILT, Can, conflicts, needs, takes
from fedrec.experiment.parts import PARTS, STACKED, check_parts, conflicts_of
from fedrec.training.conflict import Method as Aggregator
from simulations.engines.nodes import stacked
from simulations.methods import METHODS
from simulations.options import FIELDS, nest

Flat = dict[str, Any]
UNIFORM: Flat = {"weights": "uniform"}
USER: Flat = {**UNIFORM, "privacy.unit": "user", "privacy.epsilon": "8"}
CLIENT: Flat = {**USER, "privacy.unit": "client"}
SECURE: Flat = {"secure.active": True}
NOISY: Flat = {
    **SECURE,
    "model": "slist",
    "rounds": 2,
    "eval_every": 2,
    "privacy.unit": "user",
    "privacy.where": "sum",
    "privacy.noise": 1.0,
    "weights": "uniform",
}
ADMM: Flat = {"method": "admm"}
DITTO: Flat = {"method": "ditto"}
GROUPED: Flat = {"coupling.kind": "clusters", "coupling.groups": "films,shop"}
SGD: Flat = {"method": "scaffold", "optimiser": "sgd"}
AGREED: Flat = {"method": "agreement", "volunteers": 6}
LINEAR: Flat = {"coupling.kind": "linear", "coupling.rho": 0.1, "share": "item_table"}
LORA: Flat = {"content.kind": "minilm", "lora.rank": 4}
OWN: Flat = {"model": "tests.own_parts:TwoTower"}
GRU: Flat = {"sequence.kind": "gru4rec"}
DWA: Flat = {"weighting.kind": "dwa", "task": "rank,click"}
COUNTED: Flat = {"dataset": "tests.own_parts:Events", "reading.repeats": "count"}
LATE: Flat = {"newcomers": "news=3"}
BUDGET: Flat = {"method": "no-harm"}
BUFFER: Flat = {"asynchrony.buffer": 2}


class Case(NamedTuple):
    """A capability that one experiment lacks, and another, next to it, has; and why that is so."""

    lacks: Flat
    has: Flat
    why: str


KNOWN: dict[Can, Case] = {
    Can.ROWS: Case({**CLIENT, "method": "median"}, {**USER, "method": "median"}, "a median is no function of the mean"),
    Can.GRAM: Case({**SECURE, "method": "mgda"}, {**SECURE, "method": "fedadam"}, "sum_i g_i does not tell <g_i, g_j>"),
    Can.STEPS: Case(
        {**SECURE, "method": "fednova"}, {**SECURE, "method": "fedprox"}, "z - (z - x_i) / tau_i weighs each x_i"
    ),
    Can.RESIDUALS: Case(
        {**SECURE, **UNIFORM, **ADMM, "coupling.balance": True}, {**SECURE, **UNIFORM, **ADMM}, "sum of |x_i - z_i|^2"
    ),
    Can.MEMORY: Case({**SECURE, "method": "mr-mtl"}, {**USER, "method": "mr-mtl"}, "z_i is made of v_i"),
    Can.INCREMENTS: Case({**SECURE, **ADMM}, {**SECURE, **UNIFORM, **ADMM}, "sum_i p_i dv_i adds up for one p only"),
    Can.SUMS: Case(
        {**SECURE, "codec.kind": "top-k"},
        {**SECURE, "codec.kind": "random-k"},
        "top-k(a) + top-k(b) is not top-k(a + b)",
    ),
    Can.TOGETHER: Case({**BUFFER, "method": "fednova"}, {**BUFFER, "method": "fedprox"}, "a mean of other starts"),
    Can.VALIDATION: Case({**USER, "patience": 2}, {**UNIFORM, "patience": 2}, "when it stops tells of held-out rows"),
    Can.EXCHANGE: Case({**SECURE, "method": "local"}, {**SECURE, "method": "fedper"}, "a sum of nothing"),
    Can.PARAMETERS: Case({**USER, **LINEAR}, {**USER, "share": "item_table"}, "A_i x_i is not what noise was put on"),
    Can.LOGITS: Case(
        {**AGREED, **LINEAR}, {**AGREED, "share": "item_table"}, "not built: a message of logits and of rows under maps"
    ),
    Can.TABLES: Case({**LINEAR, "share": "item_table,body"}, LINEAR, "A_i acts on rows of a width"),
    Can.MEANS: Case(
        {**LORA, "lora.form": "share-a", "share": "lora.B"}, {**LORA, "share": "lora.B"}, "mean(B) mean(A) != mean(B A)"
    ),
    Can.LISTENERS: Case({**LATE, **SGD}, {**LATE, "method": "fedavg"}, "c = sum_i c_i / n over all that train"),
    Can.PUBLIC_WEIGHTS: Case({**USER, "weights": "examples"}, USER, "one unit more changes n_i"),
    Can.PUBLIC_USERS: Case({**AGREED, "volunteers": 0}, AGREED, "a probe of no users has no pairs"),
    Can.HIDDEN_USERS: Case({**USER, "volunteers": 6}, {"volunteers": 6}, "the promise is for every user"),
    Can.SECURE_SUMS: Case(
        {**CLIENT, "privacy.where": "sum"}, {**CLIENT, **SECURE, "privacy.where": "sum"}, "shares of noise in a sum"
    ),
    Can.COMMON_START: Case(
        {**LINEAR, "drift.personal": "tuned"}, {"share": "item_table", "drift.personal": "tuned"}, "x_i is not z"
    ),
    Can.GIVEN_HEAD: Case(
        {**NOISY, **DITTO, "drift.weight": 1}, {"model": "slist", **DITTO, "drift.weight": 1}, "own exact sums"
    ),
    Can.APPROACH: Case({"model": "slist", "method": "fedprox"}, {"model": "mf", "method": "fedprox"}, "W is there"),
    Can.TIE: Case({**BUDGET, "coupling.rho": 0.0}, BUDGET, "mu weighs f_i against rho |x - z|^2"),
    Can.DUALS: Case({**BUDGET, "coupling.duals": False}, BUDGET, "an ADMM without u has no fixed point"),
    Can.ONE_PHASE: Case({**SGD, "phases": "private,shared"}, SGD, "c_i is of the gradient in all at once"),
    Can.ONE_RATE: Case({**SGD, "optimiser": "adam"}, SGD, "c_i = (z - x_i) / (tau lr) for one lr"),
    Can.UNPULLED: Case({**LORA, "lora.form": "exact", "coupling.rho": 0.1}, {**LORA, "coupling.rho": 0.1}, "no step"),
    Can.LOCKSTEP: Case({**USER, "method": "apfl"}, {**USER, "method": "ditto"}, "a step of both on the units drawn"),
    Can.GRADIENTS: Case(
        {"model": "ease", "objective": "tests.own_parts:Ridge"},
        {"model": "mf", "objective": "tests.own_parts:Ridge"},
        "W is solved for",
    ),
    Can.PAIRS: Case(
        {"model": "slist", "sums.kind": "subspace", **GROUPED},
        {"model": "slist", **GROUPED},
        "not built: weights that are solved for within V",
    ),
    Can.ITS_SUMS: Case(
        {"model": "slist", "share": "item_table"}, {"model": "slist", "share": "sums"}, "there is no table of items"
    ),
    Can.USER_SUMS: Case({**NOISY, "model": "mf"}, {**NOISY, "model": "ease"}, "noise on gradients is another one"),
    Can.TWO_ROUNDS: Case({**NOISY, "rounds": 3}, NOISY, "each release has its share of the budget"),
    Can.ALL_ANSWERS: Case({**NOISY, "participation": 0.6}, NOISY, "a missing share of the noise"),
    Can.NORMS: Case(
        {"model": "slist", "privacy.unit": "client", "privacy.where": "client", "privacy.noise": 1.0, **UNIFORM},
        {"model": "mf", "privacy.unit": "client", "privacy.where": "client", "privacy.noise": 1.0, **UNIFORM},
        "a client's sums grow with its users",
    ),
    Can.ONE_RANKING: Case(
        {"model": "ease", "task": "rank,click"}, {"model": "mf", "task": "rank,click"}, "X'X is of one relation"
    ),
    Can.LOSSES: Case({**USER, **DWA}, {**CLIENT, **DWA}, "weights made of losses are made of rows"),
    Can.ROW_WEIGHTS: Case({**USER, **COUNTED}, {**CLIENT, **COUNTED}, "w_r / mean(w) of one row is made of all rows"),
    Can.UNIT_GRADIENTS: Case(
        {**USER, **LORA}, {**USER, "content.kind": "minilm"}, "not built: a pass of the encoder for every unit"
    ),
    Can.CLIENT_GRADIENTS: Case(
        {**LORA, "stack": "yes"},
        {"content.kind": "minilm", "stack": "yes"},
        "not built: a pass of the encoder for every client",
    ),
    Can.ALONE: Case({**LATE, "stack": "yes"}, LATE, "not built: the stack begins with all"),
    Can.UNSEEN: Case({**SECURE, "stack": "yes"}, SECURE, "one program would see what is to be secret"),
    Can.TWO_WIDTHS: Case({"model": "ple", "hidden": "8"}, {"model": "esmm", "hidden": "8", "task": "click,buy"}, ""),
    Can.EVEN_WIDTH: Case(
        {"sequence.kind": "sasrec", "sequence.heads": 4, "dim": 6},
        {"sequence.kind": "sasrec", "sequence.heads": 3, "dim": 6},
        "6 = 3 x 2",
    ),
    Can.CLICK_AND_BUY: Case(
        {"model": "esmm", "task": "click,like"},
        {"model": "esmm", "task": "click,buy"},
        "P(buy) = P(click) P(buy | click)",
    ),
    Can.BEHAVIOURS: Case(
        {"model": "aitm", "task": "buy"}, {"model": "aitm", "task": "view,buy"}, "a link has two ends"
    ),
    Can.USER_SIDE: Case({**GRU, "model": "item"}, {**GRU, "model": "mf"}, "h(q_i) reads no user"),
    Can.READS_ITEMS: Case({**OWN, "content.kind": "hashed"}, {**OWN, "task": "rank,click"}, "its forward takes ids"),
    Can.ENCODER: Case({**LORA, "content.kind": "hashed"}, LORA, "counts of words have no W to adapt"),
    Can.STILL: Case({**LORA, "lrs": "lora.A=0.1"}, {**LORA, "lrs": "lora.B=0.1"}, "mean(B_i) A for one A"),
    Can.UNTOLD: Case(
        {"task": "rank,category", "content.kind": "hashed"}, {"task": "rank,price", "content.kind": "hashed"}, "a leak"
    ),
    Can.PAIR_SCORES: Case({**AGREED, **GRU}, {**AGREED, "model": "mlp"}, "not built: histories of public users"),
    Can.HISTORIES: Case(
        {**USER, **GRU, "privacy.unit": "interaction"}, {**CLIENT, **GRU}, "a row in others' histories"
    ),
    Can.KNOWN_USERS: Case({**BUDGET, "split": "new-users"}, {**BUDGET, "split": "random"}, "p_u is not trained yet"),
}


NEW: Flat = {"split": "new-users"}
TWICE: Flat = {"phases": "private,shared"}
DUALS: Flat = {"coupling.duals": True, "coupling.rho": 0.1}
BALL: Flat = {"coupling.radius": 1.0}
TIED: Flat = {**ADMM, "coupling.ties": "item_table: ball(1)"}
PARITY: Flat = {**ADMM, "coupling.ties": "losses: parity(0.1)"}
LIMITS: Flat = {"budget.limits": "0.5", **DUALS}
EXACT: Flat = {**LORA, "lora.form": "exact"}
AT_CLIENT: Flat = {**CLIENT, "privacy.where": "client"}
# The same capabilities between other parts.
MORE: list[tuple[Can, Flat]] = [
    (Can.READS_ITEMS, {**OWN, "task": "rank,price"}),
    (Can.UNIT_GRADIENTS, {**USER, "objective": "tests.own_parts:Ridge"}),
    (Can.LOCKSTEP, {**USER, "drift.personal": "tests.own_parts:Partly"}),
    (Can.LOSSES, {**USER, **DWA, "weighting.kind": "tests.own_parts:Worst"}),
    (Can.USER_SIDE, {**OWN, **GRU}),
    (Can.EXCHANGE, {**AGREED, "pool": True}),
    (Can.EXCHANGE, {**LATE, "method": "local"}),
    (Can.TIE, {**AGREED, "coupling.rho": 0.0}),
    (Can.TIE, {**LINEAR, "coupling.rho": 0.0}),
    (Can.TIE, {**LIMITS, "coupling.rho": 0.0}),
    (Can.DUALS, {**LIMITS, "coupling.duals": False}),
    (Can.VALIDATION, {**LIMITS, **USER}),
    (Can.KNOWN_USERS, {**LIMITS, **NEW}),
    (Can.KNOWN_USERS, {**AGREED, **NEW}),
    (Can.TIE, {**TIED, "method": "fedper"}),
    (Can.DUALS, {**TIED, "method": "mr-mtl"}),
    (Can.EXCHANGE, {**TIED, "method": "local"}),
    (Can.EXCHANGE, {**TIED, "pool": True}),
    (Can.MEMORY, {**TIED, **SECURE, **UNIFORM}),
    (Can.MEMORY, {**TIED, "newcomers": "news=3"}),
    (Can.MEMORY, {**TIED, "robust.kind": "median"}),
    (Can.PARAMETERS, {**TIED, **LINEAR}),
    (Can.VALIDATION, {**PARITY, **USER}),
    (Can.VALIDATION, {**PARITY, **USER, "coupling.judged": "training"}),
    (Can.KNOWN_USERS, {**PARITY, **NEW}),
    (Can.ONE_PHASE, {**AGREED, **TWICE}),
    (Can.ONE_PHASE, {**LINEAR, **TWICE}),
    (Can.COMMON_START, {**AGREED, "drift.normalise": True}),
    (Can.COMMON_START, {**AGREED, "drift.correction": "scaffold", "optimiser": "sgd"}),
    (Can.COMMON_START, {**AGREED, "descent.optimiser": "adam"}),
    (Can.MEMORY, {**LATE, "method": "mr-mtl"}),
    (Can.MEMORY, {**SECURE, **BALL}),
    (Can.MEMORY, {**SECURE, "coupling.bound": 1.0}),
    (Can.MEMORY, {**BALL, "method": "fedadam"}),
    (Can.MEMORY, {**BALL, "method": "median"}),
    (Can.MEMORY, {**BALL, **SGD}),
    (Can.INCREMENTS, {**LATE, **ADMM}),
    (Can.INCREMENTS, {**DUALS, "method": "fedadam"}),
    (Can.INCREMENTS, {**DUALS, "method": "median"}),
    (Can.INCREMENTS, {**DUALS, "method": "fednova"}),
    (Can.INCREMENTS, {**DUALS, **SGD}),
    (Can.INCREMENTS, {**DUALS, **AT_CLIENT}),
    (Can.TOGETHER, {**BUFFER, **SGD}),
    (Can.TOGETHER, {**BUFFER, **USER}),
    (Can.TOGETHER, {**BUFFER, **LATE}),
    (Can.TOGETHER, {**BUFFER, "dropout": "0.2"}),
    (Can.MEMORY, {**BUFFER, "method": "mr-mtl"}),
    (Can.INCREMENTS, {**BUFFER, **ADMM}),
    (Can.INCREMENTS, {**BUFFER, **LIMITS}),
    (Can.SUMS, {**BUFFER, **SECURE}),
    (Can.EXCHANGE, {**BUFFER, "method": "local"}),
    (Can.COMMON_START, {**BUFFER, **AGREED}),
    (Can.COMMON_START, {**BUFFER, "model": "slist"}),
    (Can.COMMON_START, {**BUFFER, "model": "ials"}),
    (Can.STEPS, {**AT_CLIENT, "method": "fednova"}),
    (Can.STEPS, {"codec.kind": "quantised", "method": "fednova"}),
    (Can.SUMS, {**CLIENT, **SECURE, "privacy.where": "sum", "codec.kind": "low-rank"}),
    (Can.STEPS, {"method": "median", "drift.normalise": True}),
    (Can.GRAM, {"method": "median", "descent.aggregator": "mgda"}),
    (Can.ROWS, {**CLIENT, **SECURE}),
    (Can.ONE_RATE, {**SGD, "lrs": "heads=1"}),
    (Can.UNPULLED, {**EXACT, **SGD}),
    (Can.UNPULLED, {**EXACT, "method": "ditto"}),
    (Can.GIVEN_HEAD, {"model": "slist", **DITTO, "share": "all-but-users"}),
    (Can.PAIRS, {"model": "slist", "method": "apfl", "sums.kind": "subspace"}),
    (Can.LISTENERS, {**LATE, "method": "pfedrec"}),
    (Can.LISTENERS, {**LATE, **USER}),
    (Can.LISTENERS, {**LATE, **SECURE}),
    (Can.ALONE, {**USER, "stack": "yes"}),
    (Can.ALONE, {**AT_CLIENT, "stack": "yes"}),
]


def made(fields: Flat) -> Experiment:
    """Return the experiment of some options, as far as its clients can be hosted; raises UserError."""
    values = {**METHODS[fields.get("method", "fedper")].model_dump(), "rounds": 5, "hidden": (8, 4), "engine": "inline"}
    more = nest(fields)
    for name, value in more.items():
        values[name] = {**values[name], **value} if isinstance(values.get(name), dict) else value
    e = build(values)
    stacked(e)
    return e


@pytest.mark.parametrize("can", Can)
def test_what_is_known_to_be_lacking_is_refused_and_what_is_next_to_it_runs(can: Can) -> None:
    lacks, has, _ = KNOWN[can]
    with pytest.raises(UserError, match=f" needs {re.escape(can)}, but ") as refused:
        made(lacks)
    assert bool(re.search(r" \(not built\), found ", str(refused.value))) == KNOWN[can].why.startswith("not built")
    made(has)


@pytest.mark.parametrize(("can", "fields"), MORE)
def test_a_capability_is_lacking_whoever_takes_it(can: Can, fields: Flat) -> None:
    with pytest.raises(UserError, match=f" needs {re.escape(can)}, but .*, found "):
        made(fields)


@pytest.mark.parametrize("kind", get_args(Aggregator))
def test_only_the_mean_is_content_with_a_sum(kind: Aggregator) -> None:
    """Every other weight of a pseudo-gradient is made of inner products, which a sum does not tell."""
    fields = {"method": "fedper", "descent.aggregator": kind}
    assert {one.can for one in conflicts_of(made(fields).model_copy(update={"secure": made(SECURE).secure}))} == (
        set() if kind == "mean" else {Can.GRAM}
    )


def test_the_table_is_whole() -> None:
    """Each capability is needed by some part and taken by another, with a reason; each part is of a field."""
    parts = [*PARTS, *STACKED]
    assert {can for part in parts for can in part.needs} == {can for part in parts for can in part.takes} == set(Can)
    assert all(bool(part.why) == bool(part.takes) != bool(part.needs) for part in parts)
    assert {part.field for part in parts} - set(FIELDS) == {"descent"}
    assert set(Can) > UNBUILT


def test_what_nothing_takes_away_is_given_and_a_part_takes_nothing_from_itself() -> None:
    e = build({})
    one, other = needs("rounds", Can.ROWS), takes("seed", Can.ROWS, why="it is odd")
    assert not list(conflicts([one], [one])) and not list(conflicts([other], [one]))
    (conflict,) = conflicts([one, other], [one, other])
    assert conflict.text(e.model_copy(update={"seed": 7})) == (
        "rounds: 20 needs every client's answer by itself, but it is odd, found seed 7"
    )
    assert not list(conflicts([one], [other._replace(field="rounds")]))


def test_the_first_need_is_refused_also_of_an_experiment_that_was_changed_unseen() -> None:
    e = made(SECURE).model_copy(update={"robust": METHODS["median"].robust})
    with pytest.raises(UserError, match=r"^robust.kind: median needs .* sum, found secure.active True$"):
        check_parts(e)
