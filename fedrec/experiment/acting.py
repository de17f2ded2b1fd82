"""Which fields of an experiment can act in it, as one table; a value that cannot act is refused, never ignored."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from fedrec.components import per_client
from fedrec.data import LAYOUTS, Filters, Reading
from fedrec.errors import UserError
from fedrec.experiment.config import Experiment, Method
from fedrec.experiment.holdings import PAIR
from fedrec.experiment.needs import shown, value_of
from fedrec.experiment.parts import tasks_with, weight_column
from fedrec.federation.coordination.clauses import EXPOSURE
from fedrec.federation.coordination.maps import RULES as NAMED_MAPS
from fedrec.models import SUMMED
from fedrec.models.bodies import BODIES
from fedrec.tasks import Task, tasks_of


class Rule(NamedTuple):
    """When a field acts, and the words that say what would make it act."""

    acts: Callable[[Experiment], bool]
    needs: str


def tied(e: Experiment) -> bool:
    """Return whether the clients exchange anything: parameters, or logits."""
    return bool(e.share) or e.agreement.active


def tasks(e: Experiment) -> list[tuple[Task, ...]]:
    """Return the tasks of every client that is named and of all others; a pooled client has them all."""
    groups = [tasks_of(e.task, client) for client in per_client(e.task)]
    return [tuple({task.name: task for part in groups for task in part}.values())] if e.pool else groups


def ranks(e: Experiment) -> bool:
    """Return whether some client ranks."""
    return any(task.kind == "rank" for part in tasks(e) for task in part)


def kinds(e: Experiment) -> set[str]:
    """Return the models that clients may have."""
    models = per_client(e.model)
    return {models.get("*", "mf")} if e.pool else {*models.values(), models.get("*", "mf")}


def ours(e: Experiment) -> bool:
    """Return whether some model, or the student, is one of the package's own that has tables."""
    return any(":" not in kind for kind in kinds(e) - {*SUMMED}) or e.agreement.active


def layered(e: Experiment) -> bool:
    """Return whether some model, or the student, has layers."""
    return bool(kinds(e) & {"mlp", *BODIES}) or (e.agreement.active and e.agreement.student == "mlp")


def folds(e: Experiment) -> bool:
    """Return whether new users have rows of a table that can be learnt."""
    return e.split == "new-users" and kinds(e) != {"item"} and not e.sequence.active and not e.solves


def reads_histories(e: Experiment) -> bool:
    """Return whether scores of users are made of their histories, by sums or by an encoder."""
    return (e.by_sums or e.sequence.active) and any(not task.attribute for part in tasks(e) for task in part)


def batched(e: Experiment) -> bool:
    """Return whether anything is trained in batches: noisy steps for users draw users."""
    steps = not e.solves and e.privacy.unit != "user"
    return steps or (e.drift.personal == "ditto" and not e.solves) or (bool(e.fold_in) and folds(e))


def phased(e: Experiment) -> bool:
    """Return whether the phases are other than one pass over all: what is not shared is private, if nothing is."""
    return bool(e.share) or e.phases[0] == "shared" or any(phase != "shared" for phase in e.phases[1:])


def avoids(e: Experiment) -> bool:
    """Return whether what is held out can be a negative: of a user who is trained, or whose row is folded in.

    The negatives of a protected interaction come from the whole catalogue.
    """
    drawn = e.privacy.unit != "interaction" or e.drift.personal == "ditto"
    return ranks(e) and not e.solves and ((drawn and e.split != "new-users") or (bool(e.fold_in) and folds(e)))


def promised(e: Experiment) -> bool:
    """Return whether a margin can promise anybody anything that no given limit does."""
    return not any("=" not in part for part in e.budget.limits.split(";") if part)


def chunked(e: Experiment) -> bool:
    """Return whether the probe may have more logits than a step, with the batch given or the usual one."""
    usual = type(e.agreement)().batch
    return e.agreement.active and e.agreement.items * e.volunteers > min(e.agreement.batch, usual)


def parts(e: Experiment, path: str) -> dict[str, str]:
    """Return the values that a field has for single clients."""
    return {client: value for client, value in per_client(str(value_of(e, path))).items() if client != "*"}


def returns(e: Experiment) -> bool:
    """Return whether of sums a later round tells more: of a client that was missed, or of a price that changes."""
    return e.budget.active or e.participation < 1 or e.dropout != "0" or e.deadline > 0


def validations(e: Experiment) -> int:
    """Return how often a run is validated that nothing ends early."""
    return -(-e.rounds // e.eval_every)


def parted(path: str) -> Rule:
    """Return the rule of the values of a field that have a part for a client, which a pooled one has not."""
    return Rule(
        lambda e: not (e.pool and parts(e, path)),
        "more than the one pooled client, for the part of a client (take another --method, or one value for all)",
    )


SHARED = Rule(tied, "something that is shared (add --share shared-body)")
PARAMETERS = Rule(lambda e: bool(e.share), "shared parameters (add --share shared-body)")
RANK = Rule(ranks, "a task that ranks (add --task rank)")
TASKS = Rule(lambda e: any(len(part) > 1 for part in tasks(e)), "several tasks in a client (add --task rank,click)")
AGREEMENT = Rule(lambda e: e.agreement.active, "agreement.items (add --method agreement --volunteers 60)")
BUDGET = Rule(lambda e: e.budget.active, "a loss budget (add --budget.margin 0.02)")
READ = Rule(lambda e: e.dataset not in ("synthetic", "ml-100k"), "a table (add --dataset table)")
MARKET = Rule(lambda e: e.dataset == "synthetic", "the synthetic market (add --dataset synthetic)")
CONTENT = Rule(lambda e: e.content.active, "content (add --content.kind hashed)")
SEQUENCE = Rule(lambda e: e.sequence.active, "a sequence encoder (add --sequence.kind sasrec)")
SASREC = Rule(lambda e: e.sequence.kind == "sasrec", "sequence.kind sasrec (add --sequence.kind sasrec)")
LORA = Rule(lambda e: e.lora.active, "an adapter (add --lora.rank 8 --content.kind minilm)")
PRIVATE = Rule(lambda e: e.privacy.active, "privacy.unit (add --privacy.unit user)")
CLIPPED = Rule(
    lambda e: e.privacy.active and not e.privacy.summed,
    "privacy.unit, with noise on updates (leave out --privacy.where)",
)
SECURE = Rule(lambda e: e.secure.active, "secure sums (add --secure.active)")
PROCESSES = Rule(lambda e: e.engine == "process" and not e.pool, "several clients in processes (add --engine process)")
STEPS = Rule(lambda e: not e.solves, "a model that learns by steps along gradients (add --model mf)")
TOTALS = Rule(lambda e: e.adds_up and not e.privacy.summed, "a model that learns by sums (add --model slist)")
PASSES = Rule(lambda e: STEPS.acts(e) or e.ties_users, f"{STEPS.needs}, or users' factors (add --share user_factors)")
SWEEPS = Rule(lambda e: e.alternates, "model ials (add --model ials)")
ORDERED = Rule(
    lambda e: TOTALS.acts(e) and bool(kinds(e) & {"slist", "slit"}),
    "a model by sums that knows the order (add --model slist)",
)
TABLES = Rule(lambda e: e.adds_up and e.sums.active, "tables of sums (add --sums.kind subspace)")
FOUND = Rule(
    lambda e: TABLES.acts(e) and not e.sums.basis, f"{TABLES.needs}, of a subspace that passes find (no --sums.basis)"
)
BUFFERED = Rule(lambda e: e.asynchrony.buffer > 0, "a buffer of answers (add --asynchrony.buffer 2)")
MANY = Rule(lambda e: not e.pool, "more than the one pooled client (take another --method)")


def chosen(field: str, *names: str) -> Rule:
    """Return the rule of what acts with some values of a field alone, where something is exchanged for it to act on."""
    exchanges = PARAMETERS.acts if field.startswith("descent") else tied
    return Rule(
        lambda e: exchanges(e) and value_of(e, field) in names,
        f"{field} {' or '.join(names)} (add --{field} {names[0]})",
    )


def each(paths: str, rule: Rule) -> dict[str, Rule]:
    """Return one rule for several fields."""
    return dict.fromkeys(paths.split(), rule)


PARTED = ("model", "dim")  # fields that may have a part for each client
# Fields of which some values cannot act, where others can; the default always does.
VALUES: dict[str, Rule] = {path: parted(path) for path in PARTED} | {
    "rounds": Rule(
        lambda e: not e.adds_up or e.rounds == e.sums.rounds or returns(e) or e.privacy.summed,
        "steps along gradients, clients that may be missed, or a budget: one round of sums is exact, behind the passes "
        "of a subspace (add --model mf)",
    ),
    "patience": Rule(
        lambda e: not e.patience or e.patience < validations(e),
        "more validations than it waits for (take more --rounds, or a smaller --eval-every)",
    ),
}
# Fields that act in every experiment, if only when a client fails (quorum).
ANYWHERE = (
    "method share pool clients dataset partition volunteers split task model content.kind "
    "content.vectors sequence.kind rounds lrs transform objective patience "
    "dropout quorum newcomers without forgotten agreement.items lora.rank privacy.unit secure.active seed engine "
    "device tracker"
)
ALWAYS = frozenset(ANYWHERE.split())
RULES: dict[str, Rule] = {
    "phases": Rule(phased, "something that is shared (add --share shared-body)"),
    **each("coupling.kind coupling.rho coupling.duals", SHARED),
    "coupling.balance": Rule(
        lambda e: tied(e) and not e.coupling.plain,
        "a coupling that remembers: duals, a set, or a kind other than mean (add --coupling.duals)",
    ),
    "coupling.strength": chosen("coupling.kind", "mean-regularised", "graph"),
    "coupling.groups": chosen("coupling.kind", "clusters"),
    "coupling.edges": chosen("coupling.kind", "graph"),
    "coupling.mixing": chosen("coupling.kind", "mixture"),
    "coupling.maps": chosen("coupling.kind", "linear"),
    "coupling.width": Rule(
        lambda e: tied(e) and e.coupling.kind == "linear" and e.coupling.maps in NAMED_MAPS,
        "coupling.kind linear, and maps that are no file (add --coupling.kind linear)",
    ),
    "coupling.total": chosen("coupling.kind", "sum"),
    **each("coupling.radius coupling.bound coupling.ties", SHARED),
    "coupling.step": Rule(lambda e: bool(e.coupling.priced), "a tie of losses (add --tie 'losses: parity(0.05)')"),
    "coupling.tolerance": Rule(
        lambda e: bool(e.coupling.priced) or e.budget.active,
        "a tie of losses, or a promise (add --tie 'losses: parity(0.05)', or take --method no-harm)",
    ),
    "coupling.judged": Rule(lambda e: bool(e.coupling.losses), "a tie of losses (add --tie 'losses: parity(0.05)')"),
    "coupling.along": Rule(
        lambda e: bool(e.coupling.losses) and e.coupling.judged == "validation",
        "a tie of losses, judged on validation rows (add --tie 'losses: parity(0.05)')",
    ),
    "coupling.shown": Rule(
        lambda e: EXPOSURE in e.coupling.priced, "a tie of exposure (add --tie 'exposure: at-least(0.3)')"
    ),
    "budget.margin": Rule(promised, "a client that budget.limits gives no limit (name the clients: films=0.4)"),
    "budget.limits": SHARED,
    "budget.step": BUDGET,
    "budget.confidence": Rule(lambda e: e.by_sums and e.budget.active, "a loss budget, and a model by sums"),
    "descent.aggregator": PARAMETERS,
    "descent.eps": chosen("descent.aggregator", "fedmgda"),
    "descent.c": chosen("descent.aggregator", "cagrad"),
    **each("descent.optimiser descent.lr", PARAMETERS),
    "descent.beta1": chosen("descent.optimiser", "momentum", "adam", "yogi", "adagrad"),
    "descent.beta2": chosen("descent.optimiser", "adam", "yogi"),
    "descent.tau": chosen("descent.optimiser", "adam", "yogi", "adagrad"),
    **each("drift.correction drift.normalise drift.personal", PARAMETERS),
    "drift.weight": Rule(
        lambda e: bool(e.share) and e.drift.second,
        "drift.personal ditto or apfl, or your own (add --drift.personal ditto)",
    ),
    **each("agreement.task agreement.scale", AGREEMENT),
    "agreement.batch": Rule(chunked, "a probe of more logits, agreement.items times volunteers"),
    **each("agreement.student agreement.epochs", AGREEMENT),
    "robust.kind": SHARED,
    "robust.beta": chosen("robust.kind", "trimmed-mean"),
    "robust.f": chosen("robust.kind", "krum", "multi-krum"),
    "robust.m": chosen("robust.kind", "multi-krum"),
    "robust.norm": chosen("robust.kind", "clip"),
    "codec.kind": SHARED,
    "codec.fraction": chosen("codec.kind", "top-k", "random-k", "count-sketch", "projection"),
    **each("codec.bits codec.block", chosen("codec.kind", "quantised")),
    "codec.rank": chosen("codec.kind", "low-rank"),
    "codec.hashes": chosen("codec.kind", "count-sketch"),
    "codec.feedback": Rule(
        lambda e: tied(e) and e.codec.active and not e.coupling.duals,
        "a codec, and no duals, whose tie owes what a payload lacks (add --codec.kind quantised)",
    ),
    "data_dir": Rule(lambda e: e.dataset in ("table", *LAYOUTS), "data of a file or a folder (add --dataset table)"),
    "columns": READ,
    **{f"reading.{name}": READ for name in Reading.model_fields},
    "reading.repeats": Rule(
        lambda e: READ.acts(e) and not weight_column(e),
        f"{READ.needs} without a column of weights, which of repeats add up",
    ),
    "reading.normalise": Rule(lambda e: bool(e.reading.scale), "a stated scale (add --reading.scale 1..5)"),
    "reading.item_columns": Rule(lambda e: bool(e.reading.items), "a file of items (add --reading.items FILE)"),
    "reading.user_columns": Rule(lambda e: bool(e.reading.users), "a file of users (add --reading.users FILE)"),
    **{f"filters.{name}": READ for name in Filters.model_fields},
    **each(
        "dim init_std",
        Rule(ours, "a model of ours with tables (add --model mf); the fields of another are --model.FIELD"),
    ),
    **each("market.similarity market.conflicting market.users market.items market.impressions", MARKET),
    "skew": Rule(lambda e: e.partition in ("auto", "users"), "silos of users (add --partition users)"),
    "fractions": Rule(
        lambda e: e.split != "leave-one-out" or bool(tasks_with("attribute")(e)),
        "another split (add --split random), or a task about items (add --task rank,category)",
    ),
    "history": Rule(
        lambda e: reads_histories(e) and e.split != "new-users",
        "a model that reads histories, and users with validation rows (add --model slist --split leave-one-out)",
    ),
    "fold_in": Rule(folds, "new users who have a row of a table (add --split new-users)"),
    "negatives": Rule(avoids, "a task that ranks, for users with held-out items (add --split leave-one-out)"),
    "local_epochs": PASSES,
    **each("optimiser lr l2", STEPS),
    "num_negatives": Rule(lambda e: ranks(e) and STEPS.acts(e), f"{RANK.needs}, and {STEPS.needs}"),
    **each("candidates metrics", RANK),
    **each(
        "quadratic.length quadratic.ridge quadratic.popular quadratic.rare quadratic.recent quadratic.repeats", TOTALS
    ),
    **each("quadratic.past quadratic.future", ORDERED),
    "quadratic.whole": Rule(lambda e: ORDERED.acts(e) and "slist" in kinds(e), "model slist (add --model slist)"),
    "start": TOTALS,
    "retune": Rule(
        lambda e: e.start is not None and e.chooses_heads,
        "heads of a chosen weight, of a run that is gone on from (add --from RUN)",
    ),
    "sums.kind": TOTALS,
    **each("ials.d ials.unliked ials.ridge ials.nu ials.spread", SWEEPS),
    **each("sums.k sums.ridge sums.basis", TABLES),
    **each("sums.passes sums.damping", FOUND),
    "weighting.kind": TASKS,
    "weighting.aggregator": Rule(
        lambda e: TASKS.acts(e) and e.weighting.kind == "aggregator",
        "weighting.kind aggregator (add --weighting.kind aggregator)",
    ),
    "hidden": Rule(layered, "a model with layers (add --model mlp)"),
    "experts": Rule(
        lambda e: bool(kinds(e) & {"mmoe", "ple", "task-embedding"}),
        "model mmoe, ple or task-embedding (add --model mmoe)",
    ),
    "calibration": Rule(lambda e: "aitm" in kinds(e), "model aitm (add --model aitm --task click,buy)"),
    "content.dim": Rule(lambda e: e.content.kind == "hashed", "content.kind hashed (add --content.kind hashed)"),
    "content.dropout": CONTENT,
    "sequence.history": SEQUENCE,
    **each("sequence.blocks sequence.heads", SASREC),
    **each("lora.form lora.alpha", LORA),
    "batch_size": Rule(batched, "steps on rows, for privacy.unit user draws users (take privacy.rate)"),
    "weights": Rule(lambda e: MANY.acts(e) and PASSES.acts(e), f"{MANY.needs}, and {PASSES.needs}"),
    "participation": Rule(
        lambda e: MANY.acts(e) and not e.asynchrony.buffer,
        f"{MANY.needs}, and rounds that wait: with a buffer asynchrony.concurrency says how many train at once",
    ),
    **each("asynchrony.buffer asynchrony.spread asynchrony.jitter", SHARED),
    **each("asynchrony.concurrency asynchrony.discount", BUFFERED),
    "eval_every": Rule(lambda e: e.rounds > 1, "more than one round (take more --rounds)"),
    "deadline": Rule(
        lambda e: e.engine != "batched", "an engine whose clients answer one by one (add --engine process)"
    ),
    **each("privacy.epsilon privacy.delta privacy.noise privacy.where privacy.ledger privacy.replay", PRIVATE),
    **each("privacy.clip privacy.rate", CLIPPED),
    "secure.threshold": Rule(
        lambda e: SECURE.acts(e) and not e.privacy.summed and e.start is None,
        f"{SECURE.needs}, of which not all must stay: without noise, and not --from a run",
    ),
    "secure.carriers": SECURE,
    "secure.bound": Rule(lambda e: SECURE.acts(e) and STEPS.acts(e), f"{SECURE.needs}, and {STEPS.needs}"),
    "reveal": Rule(
        lambda e: e.adds_up and e.coupling.plain and (not e.clients or e.clients - len(e.without) == PAIR),
        "two clients that learn by sums and share their total (add --model slist --clients 2)",
    ),
    **each("workers stack", PROCESSES),
}


def acts(e: Experiment, path: str) -> bool:
    """Return whether a field, whatever its value, can act in an experiment."""
    return path in ALWAYS or RULES[path].acts(e)


def inert(e: Experiment, method: Method) -> Iterator[str]:
    """Yield the paths of the fields that cannot act, and differ from their default or from the method's value."""
    defaults = type(e)()
    yield from (path for path, rule in VALUES.items() if not rule.acts(e))
    for path, rule in RULES.items():
        usual = method if path.partition(".")[0] in type(method).model_fields else defaults
        # What the method sets may stay as it was, and be at the default: nobody has asked for anything.
        if value_of(e, path) not in (value_of(usual, path), value_of(defaults, path)) and not rule.acts(e):
            yield path


def refuse(e: Experiment, method: Method) -> None:
    """Raise UserError for the first value that cannot act; the values of its `method` count as defaults."""
    for path in inert(e, method):
        raise UserError(f"{path}: acts only with {needs(e, path)}, found {shown(value_of(e, path))}")


def needs(e: Experiment, path: str) -> str:
    """Return the words that say what would make a field of an experiment, or a value of it that cannot, act."""
    value = VALUES.get(path)
    return (value if value and not value.acts(e) else RULES[path]).needs


def acting(e: Experiment, method: Method) -> Experiment:
    """Return the experiment with what cannot act in it set back to its default: the same run, told by what acts.

    For what is derived of another experiment, whose values it inherits.
    """
    while True:
        paths = list(inert(e, method))
        if not paths:
            return e
        before = e
        for path in paths:
            e = reset(e, path)
        if e == before:  # for ever, otherwise
            raise AssertionError(f"{', '.join(paths)}: cannot act, and have no default that would")


def reset(e: Experiment, path: str) -> Experiment:
    """Return the experiment with one field at its default; of parts for clients that of all others remains."""
    top, _, inner = path.partition(".")
    # A model by sums has another number of rounds, which follows from its sums.
    kept = {"model": e.model, **({} if top == "sums" else {"sums": e.sums})} if e.solves else {}
    value = value_of(type(e)(**kept), path)
    if path in PARTED:
        others = type(value)(per_client(str(value_of(e, path))).get("*", value))
        value = others if others != value_of(e, path) else value
    if inner:
        value = getattr(e, top).model_copy(update={inner: value})
    return e.model_copy(update={top: value})
