"""What cannot be combined in one experiment, and why; refused when it is built."""

import math
from typing import TYPE_CHECKING

from fedrec.errors import UserError
from fedrec.models.bodies import BODIES
from fedrec.models.lora import FORMS
from fedrec.models.transfer import CHAIN, chain
from fedrec.optimisers import rates
from fedrec.parameters import covers
from fedrec.stacking import HANDWRITTEN
from fedrec.tasks import ATTRIBUTES, per_client, tasks_of

if TYPE_CHECKING:
    from fedrec.experiment import Experiment


def compatible(e: "Experiment") -> None:
    """Raise UserError for a combination that cannot hold."""
    bodies(e)
    if e.sequence.active:
        sequences(e)
    if e.split == "new-users" and (e.budget.active or e.agreement.active):
        found = "budget" if e.budget.active else "agreement"
        raise UserError(f"{found}: must be none with the split new-users, who have no row when a loss is asked of it")
    if e.weighting.active and e.drift.personal in ("ditto", "apfl"):
        raise UserError(
            "weighting.kind: must be fixed for a client that trains a second model, whose losses would need weights of "
            f"their own, found {e.weighting.kind} with {e.drift.personal}"
        )
    if e.content.kind != "none" and "category" in several(e).split(","):
        raise UserError(
            "content.kind: must be none for the task category, whose answers stand in the items' texts, found "
            f"{e.content.kind}"
        )
    if e.lora.active:
        adapted(e)
    if e.privacy.active:
        private(e)
    if e.secure.active:
        secret(e)
    if e.newcomers:
        newcomers(e)
    if e.agreement.active:
        if not e.volunteers:
            raise UserError("agreement: needs public users to agree on (add --volunteers 60), found volunteers 0")
        found = ",".join(e.share) or ("pool" if e.pool else "coupling linear" if e.coupling.kind == "linear" else "")
        if found:
            raise UserError(f"agreement: shares logits only, never parameters, found {found}")
        if e.agreement.task in (*ATTRIBUTES, "behaviour"):
            raise UserError(f"agreement.task: must have one score for a user and an item, found {e.agreement.task}")
        if e.agreement.task != "rank" and e.agreement.scale != "raw":
            raise UserError(f"agreement.scale: must be raw for a task that does not rank, found {e.agreement.scale}")
        apart(e, "output agreement")
    elif e.coupling.kind == "linear":
        if not e.share or not {"item_table", "user_table"} >= set(e.share):
            raise UserError(
                f"share: must be item_table or user_table for linear, whose maps act on rows (add --share item_table), "
                f"found {','.join(e.share) or 'nothing'}"
            )
        apart(e, "linear")


def first(seen: dict[str, bool]) -> str:
    """Return the first name that is seen, or nothing."""
    return next((name for name, here in seen.items() if here), "")


def newcomers(e: "Experiment") -> None:
    """Raise UserError for what clients that join later, and send nothing, could have no part in."""
    for name, number in e.arrivals.items():
        if not 1 <= number < e.rounds:
            raise UserError(f"newcomers: must join in a round from 1 to {e.rounds - 1}, found {name}={number}")
    if not e.share and not e.agreement.active:
        raise UserError("newcomers: join what is shared, found nothing that is (share is empty)")
    seen = {
        "a pooled client, which has the data of all": e.pool,
        f"coupling {e.coupling.kind}, whose clients' z_i are made of what each sends": e.coupling.personal,
        "coupling.duals, which remember what each client sent": e.coupling.duals,
        "coupling.radius or coupling.bound, which remember what each client sent": not e.coupling.plain,
        "the control variates of SCAFFOLD, of which each client has a part": e.drift.correction == "scaffold",
        f"drift.personal {e.drift.personal}, which trains a copy of what is shared": e.drift.personal != "none",
        "privacy, which promises for the clients of every round": e.privacy.active,
        "secure sums, whose terms are for all clients of the run": e.secure.active,
        "engine batched, which trains all clients as one": e.engine == "batched",
        "stack yes, which trains clients as one": e.stack == "yes",
    }
    found = first(seen)
    if found:
        raise UserError(f"newcomers: train what is private and send nothing, found {found}")


def several(e: "Experiment") -> str:
    """Return the tasks with a head of several scores that some client has, joined by commas; "" without one."""
    every = [task for client in per_client(e.task) for task in tasks_of(e.task, client)]
    return ",".join(sorted({task.name for task in every if task.attribute or task.classes}))


def bodies(e: "Experiment") -> None:
    """Raise UserError for a multi-task body whose widths or tasks are not what it needs."""
    models, tasks = per_client(e.model), per_client(e.task)
    for kind in sorted(set(models.values()) & BODIES.keys()):
        if len(e.hidden) < BODIES[kind].widths:
            raise UserError(
                f"hidden: must have {BODIES[kind].widths} widths or more for {kind}, the last for the towers "
                f"(add --hidden 64,32), found {','.join(map(str, e.hidden))}"
            )
    for client in sorted({*models, *tasks}):
        model = models.get(client, models.get("*"))
        if model not in ("esmm", "aitm") or not {client, "*"} & tasks.keys():
            continue
        names = [task.name for task in tasks_of(e.task, client)]
        of, given = "" if client == "*" else f" of {client}", ",".join(names)
        if model == "esmm" and not {"click", "buy"} <= set(names):
            raise UserError(
                f"task{of}: must have click and buy for esmm, which is P(click) P(buy | click), found {given}"
            )
        if model == "aitm" and len(chain(names)) < 2:
            raise UserError(
                f"task{of}: must have two or more of {', '.join(CHAIN)} for aitm, in which one behaviour tells the "
                f"next, found {given}"
            )


def sequences(e: "Experiment") -> None:
    """Raise UserError for what knows no users that are read from their history."""
    if "item" in per_client(e.model).values():
        raise UserError(
            f"model: must have a user side for the sequence encoder {e.sequence.kind} (add --model mf), found item"
        )
    heads = e.sequence.heads
    for width in per_client(str(e.dim)).values():
        if e.sequence.kind == "sasrec" and int(width) % heads:
            raise UserError(f"sequence.heads: must divide dim, which they share, found {heads} heads and dim {width}")
    seen = {
        "agreement on logits, whose public pairs and student have no histories": e.agreement.active,
        f"noise inside a client (privacy.unit {e.privacy.unit}), whose bound on a unit's gradient ends where its items "
        "are read in the histories of other rows": e.privacy.inside,
        "engine batched, which stacks tables": e.engine == "batched",
        "stack yes, which stacks tables": e.stack == "yes",
    }
    found = first(seen)
    if found:
        raise UserError(f"sequence.kind: must be none for {found}, found {e.sequence.kind}")


def adapted(e: "Experiment") -> None:
    """Raise UserError for a low-rank adapter without its encoder, or a tie that its form of sharing breaks."""
    if e.content.kind != "minilm" or e.content.vectors is not None:
        found = e.content.kind if e.content.vectors is None else f"{e.content.kind} with {e.content.vectors.name}"
        raise UserError(
            f"lora.rank: adapts the sentence encoder (add --content.kind minilm), which must be alone, found {found}"
        )
    form = FORMS[e.lora.form]
    for module in e.share:
        if covers(("lora",), module) and module not in ("lora", *form.shared):
            raise UserError(
                f"share: must name lora or {', '.join(form.shared)} for the form {e.lora.form}, since means of A and "
                f"of B are none of B A, found {module}"
            )
    for module, _ in rates(e.lrs):
        if module in form.frozen:
            raise UserError(f"lrs: {module} must have none for the form {e.lora.form}, which does not train it")
    if e.lora.form == "exact":
        folds(e)


def folds(e: "Experiment") -> None:
    """Raise UserError for what pulls at a shared parameter in training, which a folded one does not see."""
    pulls = {
        f"coupling.rho {e.coupling.rho}": e.coupling.rho > 0,
        "SCAFFOLD, whose control variates count gradient steps": e.drift.correction == "scaffold",
        f"drift.personal {e.drift.personal}": e.drift.personal in ("ditto", "apfl"),
    }
    found = first(pulls)
    if found:
        raise UserError(
            "lora.form: must be share-a or freeze-a with terms on shared parameters, for the delta of the form exact "
            f"is not trained itself but takes B A at the end of a round, found {found}"
        )


def apart(e: "Experiment", name: str) -> None:
    """Raise UserError for what needs clients that start from the server's parameters, where they keep their own."""
    if not e.coupling.rho:
        raise UserError(f"coupling.rho: must be above 0 for {name}, where nothing else ties a client, found 0")
    if e.phases != ("all",):
        raise UserError(f"phases: must be the one phase all for {name}, found {','.join(e.phases)}")
    corrections = {e.drift.correction, e.drift.personal, "fednova" if e.drift.normalise else "none"} - {"none"}
    if corrections:
        raise UserError(
            f"drift: must be none for {name}, where no client starts from the server's parameters, "
            f"found {min(corrections)}"
        )
    if not e.descent.plain:
        found = f"{e.descent.aggregator} with {e.descent.optimiser}"
        raise UserError(f"descent: steps along pseudo-gradients of parameters, which {name} has not, found {found}")


def private(e: "Experiment") -> None:
    """Raise UserError for what a promise of privacy does not cover."""
    if e.weights != "uniform":
        raise UserError(
            "weights: must be uniform under privacy, since numbers of examples are made of the data (add --weights "
            f"uniform), found {e.weights}"
        )
    if e.patience:
        raise UserError(
            "patience: must be 0 under privacy, where no validation is released that could end a run, found "
            f"{e.patience}"
        )
    if e.budget.active:
        raise UserError("budget: must be none under privacy, since its excess and price are made of held-out losses")
    if e.agreement.active or e.pool or e.coupling.kind == "linear":
        found = "agreement on logits" if e.agreement.active else "a pooled client" if e.pool else "linear maps"
        raise UserError(f"privacy: protects parameters that clients share as they are, found {found}")
    if e.volunteers:
        raise UserError(f"volunteers: must be 0 under privacy, which they gave up, found {e.volunteers}")
    if not e.share:
        raise UserError("privacy: protects what is shared, found nothing that is (share is empty)")
    (inside if e.privacy.inside else as_a_whole)(e)


def inside(e: "Experiment") -> None:
    """Raise UserError for what noise in a client's own training does not cover."""
    unknown = sorted(set(per_client(e.model).values()) - set(HANDWRITTEN))
    if unknown:
        raise UserError(
            f"model: must be one of {', '.join(HANDWRITTEN)} for privacy inside a client, which needs gradients by "
            f"unit that are written by hand, found {', '.join(unknown)}"
        )
    if e.content.active:
        raise UserError(
            "content: must be none with noise inside a silo, whose gradients by unit know no adapter, found "
            f"{e.content.kind}"
        )
    if e.privacy.where != "server":
        raise UserError(f"privacy.where: is for the unit client, found {e.privacy.where} for {e.privacy.unit}")
    if found := several(e):
        raise UserError(
            "task: must have one score for privacy inside a client, which has no gradients by unit of other heads, "
            f"found {found}"
        )
    if e.weighting.active:
        raise UserError(
            "weighting.kind: must be fixed with noise inside a silo, which does not cover weights that are made of "
            f"the silo's losses, found {e.weighting.kind}"
        )
    if e.drift.personal == "apfl":
        raise UserError("drift.personal: must not train in lockstep with noisy steps, found apfl")


def as_a_whole(e: "Experiment") -> None:
    """Raise UserError for what noise on the updates of whole clients does not cover."""
    where = e.privacy.where
    if where == "sum" and not e.secure.active:
        raise UserError("privacy.where: must have secure sums to add noise in (add --secure.active), found none")
    if where == "sum" and not math.isfinite(e.privacy.clip):
        raise UserError("privacy.clip: must be finite in a secure sum, whose numbers have bounds, found inf")
    if where == "server" and e.secure.active:
        raise UserError(
            "privacy.where: must be client or sum under secure sums, in which the server sees no update that it could "
            "clip, found server"
        )
    if e.privacy.rate != 1:
        raise UserError(
            "privacy.rate: is for units inside a client, whole ones are drawn with participation, found "
            f"{e.privacy.rate}"
        )
    if ";" in e.privacy.epsilon and where != "client":
        raise UserError(
            f"privacy.epsilon: must be one for all where the noise is added to a sum, found {e.privacy.epsilon!r}"
        )
    if where == "client":
        if e.coupling.duals or e.drift.counted:
            raise UserError(
                "privacy: a client adds noise to one update of its parameters, found duals or step counts beside it"
            )
        return
    seen = {
        f"coupling {e.coupling.kind}": e.coupling.personal,
        "coupling.duals": e.coupling.duals,
        "coupling.radius or coupling.bound": e.coupling.radius is not None or e.coupling.bound is not None,
        f"robust {e.robust.kind}": e.robust.active,
        f"descent.aggregator {e.descent.aggregator}": e.descent.aggregator != "mean",
        "the step counts of FedNova or SCAFFOLD": e.drift.counted,
    }
    found = first(seen)
    if found:
        raise UserError(
            f"privacy: what is released of whole clients is one noisy mean with fixed weights, found {found}"
        )


def secret(e: "Experiment") -> None:
    """Raise UserError for what needs more than the sum of the clients' answers."""
    duals = e.coupling.duals
    seen = {
        "agreement on logits, which few clients answer alike": e.agreement.active,
        "a pooled client": e.pool,
        f"coupling {e.coupling.kind}, whose clients' z_i differ": e.coupling.personal,
        "coupling.radius or coupling.bound, which remember every v_i": (e.coupling.radius or e.coupling.bound)
        is not None,
        "coupling.balance, which measures every client's residual": e.coupling.balance,
        f"robust {e.robust.kind}": e.robust.active,
        f"descent.aggregator {e.descent.aggregator}": e.descent.aggregator != "mean",
        "the step counts of FedNova or SCAFFOLD": e.drift.counted,
        "engine batched, which sees its clients' answers": e.engine == "batched",
        "stack yes, which trains clients as one": e.stack == "yes",
    }
    found = first(seen)
    if found:
        raise UserError(f"secure: the server sees no more than a sum, found {found}")
    if not e.share:
        raise UserError("secure: sums what is shared, found nothing that is (share is empty)")
    if duals and e.weights != "uniform":
        raise UserError(
            "weights: must be uniform for secure sums with duals, whose increments add up under fixed weights only "
            f"(add --weights uniform), found {e.weights}"
        )
