"""The parts of an experiment: what each needs of the others and takes away from them, as one table."""

from collections.abc import Callable, Iterator
from typing import Any

from fedrec.components import per_client, read, split_at
from fedrec.data.sources.roles import weighted
from fedrec.errors import UserError
from fedrec.experiment.needs import Can, Conflict, conflicts, needs, shown, takes
from fedrec.models import SUMMED
from fedrec.models.bodies import BODIES
from fedrec.models.lora import FORMS
from fedrec.models.transfer import CHAIN
from fedrec.params import covers
from fedrec.tasks import names_of, parse_task, several, tasks_of
from fedrec.training.optimisers import rates


def models(*kinds: str) -> Callable[[Any], str]:
    """Return the condition that clients have some of these models."""
    return lambda e: ",".join(kind for kind in kinds if kind in per_client(e.model).values())


def own_models(e: Any) -> str:
    """Return the models of a user's own."""
    return ",".join(sorted(text for text in per_client(e.model).values() if read(text).own))


def tasks_with(what: str) -> Callable[[Any], str]:
    """Return the condition that some client has a task with something: a part of a user's own, or an attribute."""
    return lambda e: names_of(e.task, lambda task: getattr(task, what))


def missing_tasks(e: Any, model: str, chained: tuple[str, ...]) -> str:
    """Return the tasks of the first client that has a model, and fewer than two of some tasks."""
    kinds, tasks = per_client(e.model), per_client(e.task)
    for client in sorted({*kinds, *tasks}):
        if kinds.get(client, kinds.get("*")) == model and {client, "*"} & tasks.keys():
            names = [task.name for task in tasks_of(e.task, client)]
            if len(set(names) & set(chained)) < 2:
                return ",".join(names) + ("" if client == "*" else f" of {client}")
    return ""


def odd_width(e: Any) -> str:
    """Return the first width that the heads of attention do not divide."""
    widths = per_client(str(e.dim)).values()
    return next((width for width in widths if e.sequence.kind == "sasrec" and int(width) % e.sequence.heads), "")


def by_rounds(e: Any, field: str) -> bool:
    """Return whether a budget is kept by what clients minimise in their rounds: of sums by what the server solves."""
    return not e.by_sums and getattr(e.budget, field) not in (None, "")


def other_than_rank(e: Any) -> str:
    """Return the tasks that are not ranking alone."""
    names = [task.name for client in per_client(e.task) for task in tasks_of(e.task, client)]
    return "" if {*names} == {"rank"} else ",".join(dict.fromkeys(names))


def tuned_loss(e: Any) -> str:
    """Return the task that ranks by another loss than the usual one, or with a weight."""
    texts = [text for client in per_client(e.task).values() for text in split_at(client, ",")]
    return next((text for text in texts if text != "rank" and parse_task(text).kind == "rank"), "")


def weight_column(e: Any) -> str:
    """Return the column of what rows weigh, as it is mapped."""
    column = weighted(e.columns)
    return f"weight={column}" if column else ""


def shared_beside_sums(e: Any) -> str:
    """Return what is shared where it is something, and not what a model by sums has."""
    if e.ties_users:
        return ""
    sums = ("sums", "item_sums") if e.alternates else ("item_sums",) if e.sums.active else ("sums",)
    lacking = bool(e.share) and not all(covers(e.share, name) for name in sums)
    return shown(e.share) * (lacking or (e.alternates and covers(e.share, "user_factors")))


def in_sums(e: Any) -> str:
    """Return the models by sums, of which no parameters travel."""
    return "" if e.ties_users else models(*SUMMED)(e)


def in_users(e: Any) -> str:
    """Return the model whose factors of users travel."""
    return str("ials" * e.ties_users)


def item_content(e: Any) -> str:
    """Return what describes items."""
    vectors = f" with {e.content.vectors.name}" if e.content.vectors else ""
    return f"{e.content.kind}{vectors}" if e.content.active else ""


def other_content(e: Any) -> str:
    """Return what describes items other than the sentence encoder alone."""
    return "" if item_content(e) == "minilm" else item_content(e) or "none"


def foreign_part(e: Any) -> str:
    """Return the first part of the adapter that is shared against its form."""
    fit = ("lora", *FORMS[e.lora.form].shared) if e.lora.active else e.share
    return next((module for module in e.share if covers(("lora",), module) and module not in fit), "")


def frozen_part(e: Any) -> str:
    """Return the first part of the adapter with a rate, which its form does not train."""
    frozen = FORMS[e.lora.form].frozen if e.lora.active else ()
    return next((module for module, _ in rates(e.lrs) if module in frozen), "")


def other_than_tables(e: Any) -> str:
    """Return what is shared that is not all rows of tables."""
    return "" if e.share and {"item_table", "user_table"} >= set(e.share) else ",".join(e.share) or "nothing"


def noise_at(*where: str) -> Callable[[Any], str]:
    """Return the condition that noise is added to the updates of whole clients at one of some places."""
    return lambda e: e.privacy.where * (e.privacy.unit == "client" and e.privacy.where in where)


def inside(e: Any) -> str:
    """Return the unit whose noise is added in a client's own training."""
    return str(e.privacy.unit * e.privacy.inside)


def examples(e: Any) -> str:
    """Return what weighs clients by their data; sums over users have no weights."""
    return str(e.weights * (e.weights == "examples" and not e.by_sums))


def noisy_sums(e: Any) -> str:
    """Return the unit whose noise is added to sums over users."""
    return str(e.privacy.where * e.privacy.summed)


def without_sums(e: Any) -> str:
    """Return the models that make no sums over users."""
    return ",".join(sorted(set(per_client(e.model).values()) - (set(SUMMED) - {"ials"})))


def second_model(e: Any) -> str:
    """Return the second model that clients train."""
    return str(e.drift.personal) if e.drift.second else ""


def rho_of(e: Any) -> str:
    """Return the proximal weight, if there is one."""
    return shown(e.coupling.rho) if e.coupling.rho else ""


def held_out_losses(e: Any) -> str:
    """Return the losses that ties name, where they are those of held-out rows."""
    return ",".join(e.coupling.losses) if e.coupling.judged == "validation" else ""


def along_held_out(e: Any) -> str:
    """Return what ties of held-out losses are trained along, where it is those."""
    return str(e.coupling.along) * (e.coupling.along == "held-out" and bool(held_out_losses(e)))


def exposed(e: Any) -> str:
    """Return the tie of what clients show."""
    return "exposure" * ("exposure" in e.coupling.priced)


def solved_head(e: Any) -> str:
    """Return the second model that is a private head around sums."""
    return str(e.drift.personal) if e.by_sums and e.drift.personal in ("ditto", "apfl") else ""


def trained_copy(e: Any) -> str:
    """Return the personal model that clients train."""
    return "" if e.drift.personal == "none" or solved_head(e) else str(e.drift.personal)


def in_lockstep(e: Any) -> str:
    """Return the second model that makes its steps with the first."""
    return "" if e.drift.personal == "ditto" or solved_head(e) else second_model(e)


def shared_heads(e: Any) -> str:
    """Return what is shared of a model by sums, if its heads are."""
    return ",".join(e.share) if e.by_sums and covers(e.share, "heads") else ""


def server_step(e: Any) -> str:
    """Return how the server steps, where that is not to the mean."""
    return "" if e.descent.plain else f"{e.descent.aggregator} with {e.descent.optimiser}"


def asked_to_stack(e: Any) -> str:
    """Return what asks to train clients as one program; one pooled client is nothing to stack."""
    return "" if e.pool else "batched" if e.engine == "batched" else f"{e.engine} with stack yes" * (e.stack == "yes")


def not_linear(e: Any) -> str:
    """Return the codec whose payloads do not add up."""
    return str(e.codec.kind * (e.codec.active and not e.codec.linear))


def owing(e: Any) -> str:
    """Return the codec whose payloads hold what earlier ones lacked."""
    return str(e.codec.kind * (e.codec.active and e.codec.feedback))


BUFFERED = "a buffer is of answers that began in different rounds"
ONE_ROUND = "the server steps along what it makes of one round's answers"
ONE_MEAN = "what is released of whole clients is one noisy mean with fixed weights"
NO_STEPS = (
    *(Can.GRADIENTS, Can.UNIT_GRADIENTS, Can.CLIENT_GRADIENTS, Can.COMMON_START, Can.LOCKSTEP, Can.TIE, Can.DUALS),
    *(Can.STEPS, Can.GRAM, Can.INCREMENTS, Can.RESIDUALS, Can.READS_ITEMS, Can.USER_SIDE, Can.PAIR_SCORES),
    *(Can.ENCODER, Can.LISTENERS, Can.LOGITS, Can.TABLES, Can.LOSSES, Can.ROWS),
)
NO_STEPS_BUT_TIED = tuple(can for can in NO_STEPS if can not in (Can.INCREMENTS, Can.RESIDUALS))
REACHED = "by sums it is reached in one (take --method fedavg for fedprox, fedper for admm, or --model mf)"
AGREES = (Can.PUBLIC_USERS, Can.LOGITS, Can.EXCHANGE, Can.TIE, Can.ONE_PHASE, Can.KNOWN_USERS, Can.PAIR_SCORES)
PRICED = (Can.TIE, Can.DUALS, Can.KNOWN_USERS)
PARTS = (
    # Recommenders, their tasks, and what they read.
    takes("model", Can.USER_SIDE, why="item has none (add --model mf)", here=models("item")),
    takes("model", Can.CLIENT_GRADIENTS, why="a module of one's own may read other rows", here=own_models),
    takes("model", Can.READS_ITEMS, Can.USER_SIDE, why="a module of one's own reads the ids alone", here=own_models),
    takes("model", *NO_STEPS, why="a model by sums is solved for (take --model mf)", here=in_sums),
    takes("model", *NO_STEPS_BUT_TIED, why="it is solved for (take --model mf)", here=in_users),
    needs("model", Can.KNOWN_USERS, here=in_users),
    takes("model", Can.APPROACH, why=REACHED, here=in_sums),
    takes("model", Can.PAIRS, Can.GIVEN_HEAD, why="it is of users' factors (add --model slist)", here=models("ials")),
    needs("secure.active", Can.PAIRS, here=lambda e: "True" * (e.alternates and e.secure.active)),
    takes("sums.kind", Can.PAIRS, why="a subspace has none (add --sums.kind dense)", here=("subspace",)),
    needs("coupling.kind", Can.PAIRS, here=lambda e: e.coupling.kind * (e.by_sums and not e.coupling.plain)),
    needs("budget.step", Can.PAIRS, here=lambda e: "a loss budget" * (e.by_sums and e.budget.active)),
    needs("model", Can.ONE_RANKING, here=models(*SUMMED)),
    takes("task", Can.ONE_RANKING, why="there is another (add --task rank)", here=other_than_rank),
    needs("task", Can.GRADIENTS, here=tuned_loss),
    needs("columns", Can.GRADIENTS, Can.ROW_WEIGHTS, here=weight_column),
    needs("reading.repeats", Can.GRADIENTS, Can.ROW_WEIGHTS, here=("count",)),
    needs("model", Can.ITS_SUMS, here=models(*SUMMED)),
    takes("share", Can.ITS_SUMS, why="others are (leave out --share, or take --model mf)", here=shared_beside_sums),
    needs("model", Can.TWO_WIDTHS, here=models(*(kind for kind in BODIES if BODIES[kind].widths > 1))),
    takes(
        "hidden",
        Can.TWO_WIDTHS,
        why="there is one (add --hidden 64,32)",
        here=lambda e: shown(e.hidden) * (len(e.hidden) < 2),
    ),
    needs("model", Can.CLICK_AND_BUY, here=models("esmm")),
    takes("task", Can.CLICK_AND_BUY, why="one is missing", here=lambda e: missing_tasks(e, "esmm", ("click", "buy"))),
    needs("model", Can.BEHAVIOURS, here=models("aitm")),
    takes("task", Can.BEHAVIOURS, why="there are fewer", here=lambda e: missing_tasks(e, "aitm", CHAIN)),
    needs("task", Can.READS_ITEMS, here=tasks_with("attribute")),
    needs("content.kind", Can.READS_ITEMS, here=item_content),
    needs("task", Can.UNTOLD, here=lambda e: "category" * ("category" in several(e.task))),
    takes("task", Can.CLIENT_GRADIENTS, why="a loss of one's own may know one client alone", here=tasks_with("part")),
    needs("weighting.kind", Can.LOSSES),
    takes("content.kind", Can.UNTOLD, why="items' texts tell categories"),
    takes("content.kind", Can.ENCODER, why="it is what is adapted (add --content.kind minilm)", here=other_content),
    takes("lora.rank", Can.UNIT_GRADIENTS, why="the encoder reads a text once for all units that name it"),
    takes("lora.rank", Can.CLIENT_GRADIENTS, why="the encoder reads a text once for all rows that name it"),
    needs("lora.rank", Can.ENCODER, Can.MEANS, Can.STILL),
    needs("lora.form", Can.UNPULLED, here=lambda e: e.lora.form * (e.lora.active and e.lora.form == "exact")),
    takes("share", Can.MEANS, why="means of A and of B are none of B A (add --share lora)", here=foreign_part),
    takes("lrs", Can.STILL, why="it has one", here=frozen_part),
    needs("sequence.kind", Can.USER_SIDE, Can.EVEN_WIDTH, Can.HISTORIES),
    takes("sequence.kind", Can.PAIR_SCORES, why="public pairs, and the student, have no histories"),
    takes("dim", Can.EVEN_WIDTH, why="one leaves a remainder", here=odd_width),
    takes("split", Can.KNOWN_USERS, why="new users have no row before they are tested", here=("new-users",)),
    # What is exchanged.
    takes("pool", Can.EXCHANGE, why="one client has the data of all"),
    needs("share", Can.EXCHANGE, here=lambda e: shown(e.share) * e.by_sums),
    takes(
        "share",
        Can.EXCHANGE,
        why="it is empty (add --share shared-body)",
        here=lambda e: "nothing" * (not e.share and not e.agreement.active),
    ),
    takes("share", Can.TABLES, why="maps act on rows (add --share item_table)", here=other_than_tables),
    needs("agreement.items", *AGREES, Can.ROWS),
    takes("agreement.items", Can.COMMON_START, Can.PARAMETERS, why="logits travel, and clients keep their own"),
    takes("volunteers", Can.PUBLIC_USERS, why="there are none (add --volunteers 60)", here=(0,)),
    takes("volunteers", Can.HIDDEN_USERS, why="volunteers gave up what is protected"),
    needs("newcomers", Can.EXCHANGE, Can.LISTENERS, Can.ALONE, Can.TOGETHER),
    takes("newcomers", Can.MEMORY, Can.INCREMENTS, why="newcomers send nothing"),
    # What the server makes of the answers.
    needs("coupling.rho", Can.APPROACH, here=lambda e: rho_of(e) * (e.coupling.kind == "mean")),
    needs("coupling.kind", Can.MEMORY),
    needs("coupling.kind", Can.GRADIENTS, here=lambda e: e.coupling.kind * (":" in e.coupling.kind)),
    needs("coupling.kind", Can.TABLES, Can.TIE, Can.ONE_PHASE, here=("linear",)),
    takes("coupling.kind", Can.COMMON_START, Can.PARAMETERS, why="clients keep their own rows", here=("linear",)),
    takes("coupling.kind", Can.LOGITS, why="maps act on rows", here=("linear",)),
    takes(
        "agreement.items",
        Can.LISTENERS,
        why="logits travel beside what is shared",
        here=lambda e: shown(e.agreement.items) * (e.agreement.active and bool(e.share)),
    ),
    needs("coupling.ties", Can.EXCHANGE, Can.GRADIENTS),
    needs("coupling.ties", Can.PARAMETERS, here=lambda e: e.coupling.ties * (not e.agreement.active)),
    needs("coupling.ties", Can.MEMORY, Can.INCREMENTS, Can.TIE, Can.DUALS),
    needs("coupling.ties", Can.VALIDATION, here=lambda e: ",".join(e.coupling.priced)),
    needs("coupling.ties", Can.KNOWN_USERS, here=held_out_losses),
    needs("coupling.ties", Can.PAIR_SCORES, here=exposed),
    takes("coupling.ties", Can.CLIENT_GRADIENTS, Can.LOGITS, why="exposure is of all that is shown", here=exposed),
    needs("coupling.along", Can.ROW_WEIGHTS, here=along_held_out),
    takes("coupling.along", Can.CLIENT_GRADIENTS, why="rows weigh otherwise in every round", here=along_held_out),
    needs("coupling.radius", Can.MEMORY),
    needs("coupling.bound", Can.MEMORY),
    needs("coupling.balance", Can.RESIDUALS),
    needs("coupling.duals", Can.INCREMENTS),
    takes(
        "coupling.duals", Can.DUALS, why="there are none (add --coupling.duals, or take --method admm)", here=(False,)
    ),
    needs("phases", Can.GRADIENTS),
    needs("transform", Can.GRADIENTS),
    needs("objective", Can.GRADIENTS),
    needs("lrs", Can.GRADIENTS),
    needs("codec.kind", Can.GRADIENTS),
    needs("coupling.rho", Can.GRADIENTS, here=lambda e: rho_of(e) * (e.coupling.kind != "mean")),
    takes(
        "coupling.rho",
        Can.TIE,
        why="nothing else ties a client (add --coupling.rho 1e-4, or take --method admm)",
        here=(0,),
    ),
    takes("coupling.rho", Can.UNPULLED, why="the delta is made when training is over"),
    needs("budget.margin", Can.VALIDATION, here=lambda e: shown(e.budget.margin) * (e.budget.margin is not None)),
    needs("budget.limits", Can.VALIDATION),
    needs("budget.margin", *PRICED, here=lambda e: shown(e.budget.margin) * by_rounds(e, "margin")),
    needs("budget.limits", *PRICED, here=lambda e: e.budget.limits * by_rounds(e, "limits")),
    needs("budget.step", Can.MEMORY, here=lambda e: shown(e.budget.step) * (e.by_sums and e.budget.active)),
    needs("descent", Can.COMMON_START, here=server_step),
    takes("descent", Can.MEMORY, Can.INCREMENTS, why=ONE_ROUND, here=server_step),
    needs("descent.aggregator", Can.GRAM),
    needs("asynchrony.buffer", Can.EXCHANGE, Can.COMMON_START, Can.PARAMETERS),
    takes("asynchrony.buffer", Can.MEMORY, Can.INCREMENTS, Can.SUMS, Can.TOGETHER, why=BUFFERED),
    needs("dropout", Can.TOGETHER, here=lambda e: e.dropout * (e.dropout not in ("", "0"))),
    needs("robust.kind", Can.ROWS),
    takes("robust.kind", Can.MEMORY, Can.INCREMENTS, why=ONE_ROUND),
    takes("robust.kind", Can.GRAM, why="the rule combines the answers itself"),
    takes("robust.kind", Can.STEPS, why="the rule believes nothing that a client says of its steps"),
    takes("codec.kind", Can.SUMS, why="a sum of what it makes stands for nothing (take random-k)", here=not_linear),
    takes(
        "codec.kind",
        Can.STEPS,
        why="what arrives holds what earlier rounds still owed (add --no-codec.feedback)",
        here=owing,
    ),
    # How a client trains.
    takes("phases", Can.ONE_PHASE, why="phases part what is trained (add --phases all)"),
    takes("objective", Can.UNIT_GRADIENTS, why="a term of one's own is of a batch, and of no unit"),
    takes("optimiser", Can.ONE_RATE, why="its rates differ (add --optimiser sgd --lr 10)", here=("adam", "adagrad")),
    takes("lrs", Can.ONE_RATE, why="modules have rates of their own"),
    needs("drift.correction", Can.COMMON_START, Can.ONE_RATE, Can.ONE_PHASE, Can.STEPS, Can.TOGETHER),
    takes("drift.correction", Can.MEMORY, Can.INCREMENTS, why=ONE_ROUND),
    takes("drift.correction", Can.UNPULLED, why="control variates count steps, of which it makes none"),
    takes("drift.correction", Can.LISTENERS, why="control variates are made of every client's part"),
    needs("drift.normalise", Can.COMMON_START, Can.STEPS, Can.TOGETHER),
    takes("drift.normalise", Can.INCREMENTS, why="changes of parameters are scaled to their steps"),
    needs("drift.personal", Can.COMMON_START, here=trained_copy),
    needs("drift.personal", Can.GIVEN_HEAD, here=solved_head),
    needs("drift.personal", Can.PAIRS, here=lambda e: solved_head(e) * (e.drift.personal == "apfl")),
    takes("share", Can.GIVEN_HEAD, why="heads are shared (add --share shared-body)", here=shared_heads),
    takes("drift.personal", Can.LISTENERS, why="a copy of what is shared is trained"),
    takes("drift.personal", Can.UNPULLED, why="the delta is made when training is over", here=second_model),
    needs("drift.personal", Can.LOCKSTEP, here=in_lockstep),
    # What is protected.
    takes("weights", Can.PUBLIC_WEIGHTS, why="they are made of the data (add --weights uniform)", here=examples),
    needs("patience", Can.VALIDATION),
    needs("privacy.unit", Can.PUBLIC_WEIGHTS, Can.EXCHANGE, Can.PARAMETERS, Can.HIDDEN_USERS, Can.TOGETHER),
    takes("privacy.unit", Can.VALIDATION, why="no noise covers it"),
    takes("privacy.unit", Can.LISTENERS, why="the promise is for the clients of every round"),
    needs("privacy.unit", Can.UNIT_GRADIENTS, Can.ALONE, here=inside),
    takes("privacy.unit", Can.LOSSES, why="noise on gradients covers no weights that are made of losses", here=inside),
    takes(
        "privacy.unit",
        Can.ROW_WEIGHTS,
        why="a weight is relative to all rows, which no clip bounds",
        here=inside,
    ),
    takes("privacy.unit", Can.LOCKSTEP, why="noisy steps draw their own units", here=inside),
    takes("privacy.unit", Can.HISTORIES, why="then no bound on a row's gradient holds", here=("interaction",)),
    needs("privacy.where", Can.ALONE, here=noise_at("client", "sum")),
    takes("privacy.where", Can.STEPS, Can.INCREMENTS, why="noise is on one update", here=noise_at("client")),
    takes("privacy.where", Can.ROWS, Can.GRAM, Can.STEPS, why=ONE_MEAN, here=noise_at("server", "sum")),
    takes("privacy.where", Can.MEMORY, Can.INCREMENTS, why=ONE_MEAN, here=noise_at("server", "sum")),
    needs("privacy.where", Can.ROWS, here=noise_at("server")),
    needs("privacy.where", Can.SECURE_SUMS, here=noise_at("sum")),
    needs("privacy.where", Can.SECURE_SUMS, Can.USER_SUMS, Can.TWO_ROUNDS, Can.ALL_ANSWERS, Can.ALONE, here=noisy_sums),
    takes("privacy.where", Can.MEMORY, why="noise is on two totals alone", here=noisy_sums),
    takes("privacy.where", Can.GIVEN_HEAD, why="beside noisy sums a client chooses it", here=noisy_sums),
    takes("model", Can.USER_SUMS, why="it makes none (add --model slist)", here=without_sums),
    takes("rounds", Can.TWO_ROUNDS, why="there are others", here=lambda e: shown(e.rounds) * (e.rounds != 2)),
    takes(
        "participation",
        Can.ALL_ANSWERS,
        why="some are not asked",
        here=lambda e: shown(e.participation) * (e.participation < 1),
    ),
    needs("privacy.unit", Can.NORMS, here=lambda e: "client" * (e.privacy.unit == "client")),
    takes(
        "model",
        Can.NORMS,
        why="of few clients no sum would be left above the noise: what counts is their number over sigma (add "
        "--privacy.unit user --privacy.where sum)",
        here=models(*SUMMED),
    ),
    needs("secure.active", Can.EXCHANGE, Can.UNSEEN, Can.SUMS),
    takes("secure.active", Can.ROWS, Can.GRAM, Can.STEPS, why="the server sees no more than a sum"),
    takes("secure.active", Can.RESIDUALS, Can.MEMORY, why="the server sees no more than a sum"),
    takes("secure.active", Can.LISTENERS, why="the terms of a sum are for all clients of the run"),
    takes(
        "secure.active",
        Can.INCREMENTS,
        why="they add up under fixed weights (add --weights uniform)",
        here=lambda e: f"with weights {e.weights}" * (e.secure.active and e.weights != "uniform"),
    ),
    takes("secure.active", Can.SECURE_SUMS, why="there are none (add --secure.active)", here=(False,)),
)
STACKED = (
    needs("engine", Can.CLIENT_GRADIENTS, Can.PARAMETERS, Can.KNOWN_USERS, here=asked_to_stack),
    takes("engine", Can.ALONE, Can.UNSEEN, Can.LOSSES, why="clients are trained as one program", here=asked_to_stack),
)


def conflicts_of(e: Any) -> Iterator[Conflict]:
    """Yield what parts of an experiment need and others take away."""
    here = [part for part in PARTS if part.find(e)]
    return conflicts(here, here)


def check_parts(e: Any) -> None:
    """Raise UserError for the first need of a part of an experiment that another takes away."""
    for conflict in conflicts_of(e):
        raise UserError(conflict.text(e))


def stacking_refusal(e: Any) -> str:
    """Return why the clients of an experiment cannot be trained as one program; nothing if they can."""
    here = [part for part in PARTS if part.find(e)]
    clashes = (*conflicts(STACKED, here), *conflicts(here, STACKED))
    return clashes[0].text(e) if clashes else ""
