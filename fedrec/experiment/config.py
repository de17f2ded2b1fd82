"""One typed object: the configuration, the command line, and the saved record of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator

from fedrec.components import (
    SEAMS,
    SEVERAL,
    PartText,
    installed,
    make,
    one_of,
    parts_of,
    per_client,
    read,
    text_of,
    with_paths,
)
from fedrec.data import LAYOUTS, Content, Filters, Market, Reading
from fedrec.data.partition import choose_partition
from fedrec.errors import UserError, choose, named
from fedrec.experiment.needs import value_of
from fedrec.experiment.parts import check_parts
from fedrec.experiment.privacy import Privacy, SecureSum
from fedrec.federation.agreement import Agreement
from fedrec.federation.asynchrony import Asynchrony
from fedrec.federation.codecs import Coding
from fedrec.federation.coordination import BudgetRule, Coupling, Descent, Drift
from fedrec.federation.methods import TABLE
from fedrec.federation.participation import Turnout, arrivals, dropouts
from fedrec.federation.robust import Robust
from fedrec.metrics import POINTWISE, RANKING, as_part, parse_metric
from fedrec.models import (
    NAMES,
    SUMMED,
    FactorRecommender,
    Ials,
    Lora,
    ModuleRecommender,
    NoisyRecommender,
    ProjectedRecommender,
    Quadratic,
    Recommender,
    SummedRecommender,
    UserFactorRecommender,
    UserSequence,
)
from fedrec.models.ials import SWEEPS
from fedrec.params import covers
from fedrec.sharing import SHARINGS, Sharing
from fedrec.subspace import Subspace
from fedrec.tasks import Task, tasks_of
from fedrec.training.optimisers import Optimiser, rates
from fedrec.training.recipe import Phase, Recipe
from fedrec.training.weighting import Weighting

# The bounds of every number of an experiment but the seed; inf only where a field allows it.
LARGEST, SMALLEST = 1e9, 1e-30
SUMMED_NAMES = frozenset(SUMMED)
MEETINGS = 20  # rounds in which clients approach common factors of users, unless another number is asked for


class Method(BaseModel, frozen=True, extra="forbid"):
    """What ties the clients together, as a value: the shared modules, the local phases, the proximal weight."""

    method: str = Field("fedper", description="method: a value of simulations/methods.py")
    share: tuple[str, ...] = Field(
        ("item_table", "item_bias", "adapter", "lora", "sums", "item_sums", "body", "sequence"),
        description="modules that are shared, by path, or named sharings; what is not named is private",
    )
    phases: tuple[Phase, ...] = Field(("all",), description="what is trained locally, one phase after the other")
    coupling: Coupling = Field(Coupling(), description="how the shared parameters are tied")
    budget: BudgetRule = Field(BudgetRule(), description="what each client is promised")
    descent: Descent = Field(Descent(), description="how the server steps along the clients' pseudo-gradients")
    drift: Drift = Field(Drift(), description="what is done about clients whose local optima lie apart")
    agreement: Agreement = Field(Agreement(), description="agreement on the logits of public pairs, not on parameters")
    robust: Robust = Field(Robust(), description="what is done about clients that send anything")
    pool: bool = Field(False, description="one model on everyone's data, the upper bound; not federated")

    @field_validator("share", mode="before")
    @classmethod
    def _sharings(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) and value else () if value == "" else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            return value
        return tuple(dict.fromkeys(module for part in parts for module in SHARINGS.get(part, (part,))))


class Experiment(Method):
    """A method applied to data: everything that decides the result of a run, and nothing else."""

    clients: int | None = Field(None, description="number of clients; 5, or one for each platform of the data")
    dataset: Annotated[PartText, one_of("dataset")] = Field(
        "synthetic", description=f"synthetic, table, or a public data set: {', '.join(LAYOUTS)}"
    )
    data_dir: Path | None = Field(
        None,
        description="folder or archive of a public data set, or of a table a file, folder or glob, or one for each "
        "platform: 'films=films.csv;shop=exports/*.jsonl'",
    )
    columns: str = Field(
        "",
        description="columns of a table: "
        "user=NAME,item=NAME[,rating=,weight=,time=,platform=,event=,label=,title=, "
        "category=,price=], those of one platform behind ';shop:'; what is lacking is guessed by what columns are "
        "called, and said",
    )
    reading: Reading = Field(Reading(), description="how the files of a table are read")
    filters: Filters = Field(Filters(), description="which interactions of a table count")
    market: Market = Field(Market(), description="the synthetic market")
    partition: str = Field(
        "auto",
        description="who is a client: platform, users (silos), users:ATTRIBUTE (silos by age, say, or occupation), or "
        "one-user; auto: platforms if there are several",
    )
    skew: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="users: Dirichlet parameter of the silo sizes; equal sizes without it",
    )
    volunteers: int = Field(
        0, ge=0, description="users whose interactions are public: training rows of every client, tested by none"
    )
    split: Literal["leave-one-out", "temporal", "random", "new-items", "new-users"] = Field(
        "leave-one-out",
        description="how test data is held out; new-items, new-users: items, or users, with all their interactions",
    )
    fractions: tuple[float, float] = Field(
        (0.1, 0.1),
        description="temporal, random, new-items, new-users: validation and test, of all rows, items or users",
    )
    fold_in: int = Field(
        10,
        ge=0,
        le=10_000,
        description="new-users: passes over what is known of a new user, which train its row alone; 0: the mean row",
    )
    negatives: Literal["train", "published"] = Field(
        "train", description="training negatives avoid: train positives, or (published, LEAKING) also held-out items"
    )
    num_negatives: int = Field(4, ge=1, le=1000, description="sampled items for each positive of a rank task")
    candidates: Literal["full"] | int = Field(
        "full", description="items a held-out item is ranked among: full, or a number sampled"
    )
    history: Literal["with-validation", "train"] = Field(
        "with-validation",
        description="what a model that reads histories reads of a user at the test: also what was held out for "
        "validation, as published leave-one-out numbers do, or what it was trained on alone",
    )
    task: PartText = Field(
        "rank",
        description="tasks: rank, rank-bce, rating, a label (like, click, buy), behaviour (view, click or buy), or of "
        "items category, brand, price, or your own; 'rank,like*0.5;shop=buy'",
    )
    weighting: Weighting = Field(Weighting(), description="how a client weighs the losses of its tasks")
    model: Annotated[PartText, AfterValidator(partial(with_paths, "model"))] = Field(
        "mf",
        description="auto (slist, which learns by sums, or mf where something else that is asked for needs gradients), "
        "one, or one for each client 'mf;shop=mlp': " + ", ".join(NAMES),
    )
    quadratic: Quadratic = Field(Quadratic(), description="what a model by sums weighs")
    ials: Ials = Field(Ials(), description="what model ials weighs, of which a sweep is a round")
    sums: Subspace = Field(Subspace(), description="what of its sums travels")
    dim: int | str = Field(32, description="width of the user and item tables, or one for each client: '32;phone=8'")
    init_std: float = Field(0.1, ge=0, le=1000, description="standard deviation that the tables start with")
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(
        (64, 32),
        min_length=1,
        max_length=64,
        description="widths of the mlp; of multi-task bodies the last is the towers'",
    )
    experts: int = Field(
        4,
        ge=1,
        le=1000,
        description="mmoe: experts; ple: shared ones, and as many of every task; task-embedding: networks of the basis",
    )
    calibration: float = Field(
        0.6,
        ge=0,
        allow_inf_nan=False,
        description="aitm: weight of what a later behaviour's probability exceeds an earlier one's by",
    )
    content: Content = Field(Content(), description="what describes items beside their ids")
    sequence: UserSequence = Field(UserSequence(), description="what users are read from, in the place of a table")
    lora: Lora = Field(Lora(), description="the low-rank adapter of content.kind minilm")
    metrics: tuple[str, ...] = Field(
        ("ndcg@10", "hr@10"),
        min_length=1,
        description="ranking metrics; the first selects the round, with the log loss or RMSE of other tasks",
    )
    rounds: int = Field(20, ge=1, le=1_000_000, description="rounds of communication")
    local_epochs: int = Field(2, ge=1, le=10_000, description="passes over a client's data in a round")
    batch_size: int = Field(256, ge=1, description="rows in a step")
    optimiser: Literal["sgd", "adam", "adagrad"] = Field(
        "adam", description="local optimiser, started afresh in every round"
    )
    lr: float = Field(0.01, gt=0, lt=1e6, description="local learning rate")
    lrs: str = Field(
        "", description="modules with a local learning rate of their own, 0: not trained; item_table=10,heads=0"
    )
    transform: Annotated[PartText, one_of("transform")] = Field(
        "none", description="none, or a transform of one's own, MODULE:CLASS, of the gradients of a client's steps"
    )
    objective: Annotated[PartText, one_of("objective")] = Field(
        "none", description="none, or a term of one's own, MODULE:CLASS, beside the losses of a client's tasks"
    )
    l2: float = Field(0.01, ge=0, le=1e6, description="L2 penalty of the rows that a batch touches")
    weights: Literal["examples", "uniform"] = Field("examples", description="weight of a client in the mean")
    codec: Coding = Field(Coding(), description="how a client's change travels")
    patience: int = Field(0, ge=0, description="stop after this many evaluations without a better validation; 0: never")
    eval_every: int = Field(1, ge=1, description="rounds between two validations")
    participation: float = Field(1.0, gt=0, le=1, description="fraction of the clients drawn for each round")
    dropout: str = Field(
        "0", description="trained, but the answer is lost: a probability, or rounds and clients '3:films,shop;5:news'"
    )
    deadline: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="seconds for an answer, a later one is lost; 0: no limit"
    )
    quorum: float = Field(
        0.5, ge=0, le=1, description="fraction of a round's clients that must answer, or the run ends"
    )
    asynchrony: Asynchrony = Field(Asynchrony(), description="rounds that wait for nobody, and the clock of clients")
    newcomers: str = Field(
        "",
        description="clients that join in a later round and train only what is private: 'shop=10;news=12'; nothing of "
        "theirs is in what is shared",
    )
    without: tuple[str, ...] = Field((), description="clients of the data that do not take part")
    forgotten: Path | None = Field(None, description="CSV file of users of clients that are in no data: client,user")
    start: Path | None = Field(None, description="folder of a run by sums, from whose total this one goes on (--from)")
    retune: bool = Field(False, description="after --from: choose again what was chosen on validation")
    privacy: Privacy = Field(Privacy(), description="what is protected, and at what cost")
    reveal: bool = Field(
        False,
        description="two clients that learn by sums are sent the total, which less its own is the other's; without it "
        "each is sent what is solved for",
    )
    secure: SecureSum = Field(SecureSum(), description="sums of the clients' answers that nobody sees one of")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of everything random")
    engine: Literal["process", "inline", "batched", "ray", "superlink"] = Field(
        "process",
        description="how the clients run: worker processes, one by one or stacked here, Flower's Ray, a SuperLink",
    )
    workers: int = Field(
        0, ge=0, le=1024, description="process: worker processes; 0: one for each accelerator, or core"
    )
    stack: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="process: whether workers stack their clients; auto: from 64 clients on, or on CUDA",
    )
    tracker: Annotated[PartText, one_of("tracker")] = Field(
        "none", description="a component of your own that is told of every round; it decides nothing of the result"
    )
    device: str = Field("auto", description="auto, cpu, cuda, or a list for the clients to take turns: cuda:0,cuda:1")

    @field_validator("partition")
    @classmethod
    def _partition(cls, value: str) -> str:
        return choose_partition("", value)

    @field_validator("metrics", mode="before")
    @classmethod
    def _parts(cls, value: Any) -> Any:
        return tuple(map(measure, value)) if isinstance(value, list | tuple) else value

    @field_validator("phases", "metrics", "hidden", "fractions", "without", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) and value else () if value == "" else value

    @field_validator("dim", mode="before")
    @classmethod
    def _one_width(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.strip().isdecimal() else value

    @field_validator("dropout", mode="before")
    @classmethod
    def _probability(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value

    @field_validator("candidates")
    @classmethod
    def _some_candidates(cls, value: Any) -> Any:
        if value != "full" and value < 1:
            raise UserError(f"must be full or at least 1, found {value}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _of_the_method(cls, values: Any) -> Any:
        """Take what is not given from the method that is named: its name alone would be a lie."""
        if not isinstance(values, Mapping) or not isinstance(values.get("method"), str):
            return values
        fields = TABLE[choose("method", values["method"], TABLE)]
        both = {name: {**fields[name], **new} for name, new in values.items() if nested(fields.get(name), new)}
        return {**fields, **values, **both}

    @model_validator(mode="before")
    @classmethod
    def _rounds_of_sums(cls, values: Any) -> Any:
        """Take the rounds after which a model by sums is exact, and evaluate it then, where no number is given."""
        return {**schedule_of(values), **values} if isinstance(values, Mapping) else values

    @model_validator(mode="before")
    @classmethod
    def _one_user_each(cls, values: Any) -> Any:
        """Take the unit client for the unit user where clients that add up sums are one user each: it is the same."""
        if not isinstance(values, Mapping) or not adds_up_users(values) or privacy_of(values).get("unit") == "user":
            return values
        return {**values, "privacy": {**privacy_of(values), "unit": "user"}}

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        for name in self.metrics:
            if ":" not in name:
                choose("metrics", parse_metric(name)[0], RANKING)
        with named("lrs"):
            rates(self.lrs)
        if self.adds_up and self.rounds < self.sums.rounds:
            rule = f"must be at least {self.sums.rounds}, for {self.sums.turns} passes and the sums"
            raise UserError(f"rounds: {rule}, found {self.rounds}")
        if self.adds_up and min(self.eval_every, self.rounds) < self.sums.rounds:
            rule = f"must be at least {self.sums.rounds}, before which there is no model"
            raise UserError(f"eval_every: {rule}, found {self.eval_every}")
        if self.by_sums and self.drift.personal == "ditto" and not self.drift.weight:
            raise UserError("drift.weight: must be above 0 for ditto by sums, found 0 (take --method local)")
        kinds = set(per_client(self.model).values())
        if self.solves and len(kinds) > 1:
            raise UserError(f"model: must be one for all where clients learn by sums, found {self.model}")
        if self.ties_users and not (self.coupling.duals and self.coupling.rho):
            rule = "must be kept, with coupling.rho above 0, where users' factors are shared"
            raise UserError(f"coupling.duals: {rule} (add --coupling.duals --coupling.rho 30), found none")
        if self.coupling.priced and self.budget.active:
            raise UserError(
                "budget: must be a tie beside ties of losses (--tie 'losses: films <= 0.4'), found a budget"
            )
        with named("dim"):
            for text in per_client(str(self.dim)).values():
                if not (text.isdecimal() and 1 <= int(text) <= 4096):
                    raise UserError(f"must be a whole number from 1 to 4096, found {text!r}")
        with named("task"):
            parts: dict[str, str] = {}
            for task in (task for client in per_client(self.task) for task in tasks_of(self.task, client)):
                if parts.setdefault(task.name, task.part) != task.part:  # what all know of a task would be of both
                    raise UserError(f"{task.name} must be one for all, found {task.part} and {parts[task.name]}")
        low, high = self.fractions
        if not (low > 0 and high > 0 and low + high < 1):
            raise UserError(
                f"fractions: validation and test must be positive and sum to less than 1, found {low}, {high}"
            )
        if self.clients is not None and not 1 <= self.clients <= 1_000_000:
            raise UserError(f"clients: must be at least 1 and at most 1000000, found {str(self.clients)[:40]}")
        dropouts(self.dropout)
        with named("newcomers"):
            arrivals(self.newcomers, self.rounds)
        check_parts(self)
        return self

    @property
    def personal(self) -> bool:
        """Whether a client's copy of the shared parameters may differ from the server's."""
        if self.agreement.active and not self.share:
            return False  # there are none
        # Under secure sums, what few clients carry stays at home.
        return self.coupling.personal or self.trains_copies or self.secure.active

    @property
    def trains_copies(self) -> bool:
        """Whether a client trains a personal model beside what is shared: by sums its private head is one."""
        return self.drift.personal != "none" and not self.by_sums

    @property
    def by_sums(self) -> bool:
        """Whether the clients learn by sums, and not by gradients."""
        return self.solves and not self.ties_users

    @property
    def solves(self) -> bool:
        """Whether the clients' models are solved for, without steps along gradients."""
        return by_sums(self.model)

    @property
    def ties_users(self) -> bool:
        """Whether clients keep their items' factors, and meet in those of the users that they have in common."""
        return ties_users(self.model, self.share)

    @property
    def alternates(self) -> bool:
        """Whether clients and server solve in turn: what is told of users is told anew in every round."""
        return "ials" in per_client(self.model).values()

    @property
    def adds_up(self) -> bool:
        """Whether the clients learn by sums whose total is all there is to know, so that it can be added to."""
        return self.by_sums and not self.alternates

    @property
    def weighs(self) -> bool:
        """Whether clients that learn by sums are sent weights, each its own, and not the total of the sums."""
        return self.by_sums and bool(self.share) and (not self.coupling.plain or self.budget.active)

    @property
    def has_heads(self) -> bool:
        """Whether clients that learn by sums have a private head around what is shared."""
        return self.by_sums and bool(self.share) and not covers(self.share, "heads")

    @property
    def chooses_heads(self) -> bool:
        """Whether such a client chooses the weight of its head: Ditto and APFL are given it."""
        return self.has_heads and not self.drift.second

    @property
    def given_head(self) -> float:
        """The weight of the private heads around sums that is given: w = 1 / lambda of Ditto, alpha of APFL, else 0."""
        if not (self.has_heads and self.drift.second):
            return 0.0
        return self.drift.weight if self.drift.personal == "apfl" else 1 / self.drift.weight

    @property
    def silent(self) -> bool:
        """Whether nothing that is made of a client's data may be told of it alone when it joins."""
        return self.privacy.active or self.secure.active

    @property
    def turnout(self) -> Turnout:
        """Who takes part in a round."""
        return Turnout(self.participation, self.dropout, self.deadline, self.quorum, self.seed)

    @property
    def arrivals(self) -> dict[str, int]:
        """The round in which a client joins, if it is a newcomer."""
        return arrivals(self.newcomers)

    @property
    def own_parts(self) -> list[tuple[str, str]]:
        """The parts of the user's own, as (field, text), each once."""
        texts = {field: str(value_of(self, field)) for field in SEAMS.keys() - SEVERAL}
        parts = [(field, str(part)) for field, text in texts.items() for part in parts_of(text) if part.own]
        parts += [("metrics", as_part(name)) for name in self.metrics if ":" in name]
        return list(dict.fromkeys([*parts, *(("tie", clause.own) for clause in self.coupling.clauses if clause.own)]))

    def recipe(self) -> Recipe:
        """Return how every client trains in one round."""
        return Recipe(
            self.local_epochs,
            self.batch_size,
            Optimiser(self.optimiser, self.lr, (*rates(self.lrs), *self.lora.rates)),
            self.phases,
            self.negatives,
            self.num_negatives,
            self.l2,
            hidden=self.content.dropout if self.content.active else 0.0,
            transforms=(make("transform", self.transform),) if read(self.transform).own else (),
            objective=(make("objective", self.objective),) if read(self.objective).own else (),
        )

    def sharing(self) -> Sharing:
        """Return the sharing contract; of the module lora its form says what is shared."""
        modules = [self.lora.shared if module == "lora" else (module,) for module in self.share]
        return Sharing(tuple(part for parts in modules for part in parts))

    def tasks(self, client: str) -> tuple[Task, ...]:
        """Return the tasks of a client."""
        return tasks_of(self.task, client)

    def recommender(self, client: str) -> Recommender:
        """Return the model of a client; a member of the pooled one has the pooled one's."""
        client = "pooled" if self.pool else client
        kinds, widths = per_client(self.model), per_client(str(self.dim))
        kind, width = kinds.get(client, kinds.get("*", "mf")), widths.get(client, widths.get("*", "32"))
        shape = (int(width), self.hidden, self.init_std, self.experts, self.calibration)
        if read(kind).own:
            return ModuleRecommender("mlp", *shape, module=make("model", kind))
        if kind == "ials":
            kept = UserFactorRecommender if self.ties_users else FactorRecommender
            return kept(kind, *shape, ials=self.ials)
        if kind in SUMMED:
            if self.privacy.summed:
                return NoisyRecommender(kind, *shape, quadratic=self.quadratic)
            if self.sums.active:
                return ProjectedRecommender(
                    kind, *shape, quadratic=self.quadratic, subspace=self.sums, weight=self.given_head
                )
            mixes = self.drift.personal == "apfl"
            return SummedRecommender(kind, *shape, quadratic=self.quadratic, weight=self.given_head, mixes=mixes)
        return Recommender(kind, *shape, sequence=self.sequence)


def by_sums(model: str) -> bool:
    """Return whether a client of this text learns by sums."""
    return not SUMMED_NAMES.isdisjoint(per_client(model).values())


def ties_users(model: str, share: object) -> bool:
    """Return whether clients of these texts share the factors of their users, and nothing else."""
    return "ials" in per_client(model).values() and share in ("user_factors", ("user_factors",), ["user_factors"])


def schedule_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rounds of a model that is solved for and how often it is evaluated, from the fields of an experiment.

    It is evaluated when it is exact, and after every sweep. Clients that meet in their users count alike, since what
    they minimise together is a sum. Of another model nothing is returned.
    """
    model = str(text_of(values.get("model", "mf")))
    if ties_users(model, values.get("share")):
        return {"rounds": MEETINGS, "eval_every": 1, "weights": "uniform"}
    if "ials" in per_client(model).values():
        return {"rounds": SWEEPS, "eval_every": 1}
    rounds = rounds_of(values) if by_sums(model) else 0
    return {"rounds": rounds, "eval_every": rounds} if rounds else {}


def rounds_of(values: Mapping[str, Any]) -> int:
    """Return after how many rounds a quadratic model is exact, from the fields of an experiment."""
    sums = values.get("sums", {})
    given = sums if isinstance(sums, Mapping) else sums.model_dump()
    passes = "0" if given.get("basis") else str(given.get("passes", Subspace().passes))  # which has not been checked
    finds = given.get("kind") == "subspace" and passes.isdecimal()
    private = adds_up_users(values)  # popularity, then what is made with it
    return (int(passes) if finds else 0) + 1 + private


def privacy_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the fields of an experiment say of privacy."""
    rule = values.get("privacy", {})
    return rule if isinstance(rule, Mapping) else dict(rule.model_dump())


def adds_up_users(values: Mapping[str, Any]) -> bool:
    """Return whether fields of an experiment ask for noise in sums over users, or over clients of one user each."""
    rule, single = privacy_of(values), values.get("partition") == "one-user"
    summed = by_sums(str(text_of(values.get("model", "mf"))))
    return summed and rule.get("where") == "sum" and rule.get("unit") in ("user", "client" if single else "user")


def nested(a: Any, b: Any) -> bool:
    """Return whether both are fields of a part."""
    return isinstance(a, Mapping) and isinstance(b, Mapping)


def measure(value: Any) -> Any:
    """Return the name of a metric that is given as a component or its mapping: its only field is a cut-off k."""
    text = text_of(value)
    if not isinstance(text, str):
        return text
    name, at, cut = text.partition("@")
    if ":" not in text and name not in (*RANKING, *POINTWISE):
        text = installed().get(name, name) + at + cut
    part = read(text)
    if set(part.fields) - {"k"}:
        raise UserError(f"metrics: {part.use} may have the field k alone, found {', '.join(part.fields)}")
    return f"{part.use}@{part.fields['k']}" if part.fields else part.use


def build(values: dict[str, Any]) -> Experiment:
    """Return the experiment that `values` describe; raises UserError with the nearest valid name for a wrong one."""
    for name in values:
        choose("option", name, Experiment.model_fields)
    try:
        e = Experiment(**values)
        in_range(e)
        return e
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            raise UserError(f"{where}: {cause}" if where else str(cause)) from None
        raise UserError(f"{where}: {first['msg'].lower()}, found {repr(first['input'])[:80]}") from None


def in_range(model: BaseModel, prefix: str = "") -> None:
    """Raise UserError for a finite number of a model, or of one in it, beyond `LARGEST`, or below `SMALLEST` and not 0.

    Such numbers are slips, and would end in an overflow, or an endless run, far from where they were given.
    """
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            in_range(value, f"{prefix}{name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float) or f"{prefix}{name}" == "seed" or abs(number) == math.inf:
                continue
            if abs(number) > LARGEST:
                raise UserError(f"{prefix}{name}: must be at most {LARGEST:g}, found {str(number)[:40]}")
            if 0 < abs(number) < SMALLEST:
                raise UserError(f"{prefix}{name}: must be 0 or at least {SMALLEST:g}, found {number:.6g}")
