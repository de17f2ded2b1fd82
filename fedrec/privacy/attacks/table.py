"""The attacks as a list of values: what each is about, what its adversary knows, and how it is asked and scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from fedrec.components import make, parts_of
from fedrec.data.types import Bools, ClientData, Ints
from fedrec.errors import RunFailure, UserError, choose
from fedrec.experiment.config import Experiment
from fedrec.params import Params
from fedrec.privacy.attacks import attributes, imia, inversion, lira, membership, ratings, recovery, targets
from fedrec.privacy.attacks.membership import Held
from fedrec.privacy.attacks.scores import Result, Values, judge
from fedrec.privacy.transcript import Transcript
from fedrec.rng import generator

Clients = Literal["silos", "one-user"]
SAMPLE = 400  # targets of a client and a kind
Tasks = tuple[Literal["rank", "rating"], ...]
USERS = 60  # of a client and a kind, and one-user clients


@dataclass(frozen=True)
class Case:
    """All about a run, the truth included: for whoever asks and scores. No attack sees it."""

    experiment: Experiment
    parts: Sequence[ClientData]  # the rows that they learn from (`targets.used`)
    private: Mapping[str, Params]  # what every client kept to itself, at the end
    users: pd.DataFrame  # by global id, with their attributes
    prior: Values  # frequencies of the ratings 1 to 5 in public
    seed: int = 0

    def __post_init__(self) -> None:
        if self.experiment.content.active:
            raise UserError(
                "content: must be none for attacks, which compute scores from tables of ids alone, found "
                f"{self.experiment.content.kind}"
            )


@dataclass(frozen=True)
class Question:
    """What an attack is asked: its declared knowledge by argument; and apart from it the truth [n], and the groups."""

    known: Mapping[str, Any]
    truth: Bools
    groups: Ints | None = None


@dataclass(frozen=True)
class Attack:
    """An attack: `run(transcript, **known)` gives scores [n]. Its arguments beside the transcript are its knowledge.

    `unit` is what a target is: whether an interaction or a user was in, which puts the guarantee of that unit to the
    test (`scores.violates`), or an attribute, of which no guarantee speaks by itself. `released` tells that it reads no
    more than messages and what is known beforehand; an insider also reads what a client keeps, which nothing covers.
    """

    name: str
    unit: str
    clients: Clients
    tasks: Tasks
    run: Callable[..., Values]
    targets: Callable[[Case], Question]
    released: bool = True
    reads: tuple[str, ...] = ("item_table",)  # of what is shared
    about: str = ""  # an attribute of users, if it is after one

    def fits(self, case: Case) -> bool:
        """Return whether it is for the clients, the one task, the shared tables and the known attributes of a run."""
        e, client = case.experiment, case.parts[0].name
        (task, *others), alone = e.tasks(client), e.partition == "one-user"
        if self.about and self.about not in case.users:
            return False
        if e.sequence.active:  # an adversary fits rows of users, and there are none
            return False
        shared = e.sharing().split(e.recommender(client).shapes(1, 1, [task.name]))[0]
        fits = (self.clients == "one-user") == alone and task.kind in self.tasks and not others
        return fits and {*self.reads} <= shared.keys()

    def ask(self, case: Case) -> Question:
        """Return what it is asked, with what its arguments declare of what may be known of a run, and no more."""
        e, asked = case.experiment, self.targets(case)
        held = {part.name: Held(part.users, case.private[part.name]) for part in case.parts}
        facts = {"experiment": e, "tasks": e.tasks(case.parts[0].name), "held": held, "population": len(case.users)}
        facts |= {"prior": case.prior, "seed": case.seed, **asked.known}
        return replace(asked, known={name: facts[name] for name in signature(self.run).parameters if name in facts})

    def result(self, transcript: Transcript, case: Case) -> Result:
        """Ask, run and score; raises ValueError where there are no targets of both kinds."""
        question = self.ask(case)
        return judge(self.run(transcript, **question.known), question.truth, groups=question.groups)


def _some(case: Case) -> Sequence[ClientData]:
    return case.parts[:USERS]


def _catalogue(case: Case) -> Question:
    parts = _some(case)
    known = {"clients": [part.name for part in parts], "users": np.asarray([part.users[0] for part in parts])}
    truth = [targets.catalogue(part) for part in parts]
    groups = np.repeat(np.arange(len(parts)), [len(mask) for mask in truth])
    return Question(known, np.concatenate(truth), groups)


def _ratings(case: Case) -> Question:
    records, trained = targets.interactions(_some(case), per_client=SAMPLE, seed=case.seed)
    records = records.take(trained)
    return Question({"records": records.unrated()}, records.rating >= 4, records.of)


def _interactions(case: Case) -> Question:
    records, truth = targets.interactions(case.parts, per_client=SAMPLE, seed=case.seed)
    return Question({"records": records}, truth, records.user)


def _throughout(case: Case, ask: Callable[[Case], Question]) -> Question:
    asked = ask(case)
    return replace(asked, known={**asked.known, "rounds": case.experiment.rounds})


def _fitted(case: Case) -> Question:
    """Ask about all records of some users, for which their vectors can be fitted."""
    records, truth = targets.interactions(case.parts, per_client=10**9, seed=case.seed)
    first, group = records.profiles()
    order = generator(case.seed, "targets", "fitted").permutation(len(first))
    before = np.cumsum(np.bincount(group)[order]) <= 2 * SAMPLE * len(case.parts)
    chosen = np.isin(group, order[before])
    return Question({"records": records.take(chosen)}, truth[chosen], records.user[chosen])


def _lira(case: Case) -> Question:
    part = case.parts[0]
    records, truth = targets.interactions([part], per_client=5 * SAMPLE, seed=case.seed)
    return Question({"records": records, "pool": targets.pool_of(part)}, truth, records.user)


def _users(case: Case) -> Question:
    records, truth = targets.users(case.parts, per_client=USERS, seed=case.seed)
    return Question({"records": records}, truth)


def _attribute(case: Case, name: str) -> Question:
    """Ask half of the users for their gender (M), age (30 or more) or occupation; those of the other half are known."""
    ids = np.concatenate([part.users for part in case.parts])
    people = case.users.iloc[ids]
    if name == "occupation":
        values = attributes.one_hot(people["occupation"].tolist())
    else:
        values = (people["gender"] == "M" if name == "gender" else people["age"] >= 30).to_numpy()[:, None]
    known = generator(case.seed, "targets", "attributes").permutation(len(ids)) % 2 == 0
    asked = np.tile(np.flatnonzero(~known), values.shape[1])
    who = {"clients": [part.name for part in case.parts], "users": ids}
    return Question({**who, "known": known, "attributes": values[known]}, values[~known].T.ravel(), asked)


SOURCES: tuple[tuple[str, Clients, Callable[..., Values], bool], ...] = (
    ("item sets", "one-user", attributes.from_item_sets, True),
    ("updates", "one-user", attributes.from_updates, True),
    ("user vectors", "silos", attributes.from_vectors, False),
)
BOTH: Tasks = ("rank", "rating")
INSIDE: tuple[Literal["interaction"], Literal["silos"], Tasks] = ("interaction", "silos", BOTH)
FACTORISED = ("item_table", "item_bias")
ATTACKS: tuple[Attack, ...] = (
    Attack("item set", "interaction", "one-user", BOTH, recovery.catalogue_scores, _catalogue),
    Attack("shadow labels (IMIA)", "interaction", "one-user", ("rank",), imia.catalogue_imia, _catalogue),
    Attack("ratings", "attribute", "one-user", ("rating",), ratings.rating_scores, _ratings, reads=FACTORISED),
    Attack("loss, insider", *INSIDE, membership.insider_losses, _interactions, released=False),
    Attack("loss, fitted user", *INSIDE, membership.fitted_losses, _fitted),
    Attack("leaning", *INSIDE, membership.leanings, _interactions),
    Attack("leaning, all rounds", *INSIDE, membership.leanings, partial(_throughout, ask=_interactions)),
    Attack("likelihood ratio (LiRA)", *INSIDE, lira.likelihood_ratios, _lira),
    Attack("inversion", "interaction", "silos", ("rating",), inversion.membership, _interactions, reads=FACTORISED),
    Attack("user leaning", "user", "silos", BOTH, membership.user_leanings, _users),
    Attack(
        "user leaning, all rounds", "user", "silos", BOTH, membership.user_leanings, partial(_throughout, ask=_users)
    ),
    *(
        Attack(f"{name} from {what}", "attribute", clients, BOTH, run, partial(_attribute, name=name), out, about=name)
        for what, clients, run, out in SOURCES
        for name in ("gender", "age", "occupation")
    ),
)
ASKED: dict[Any, Callable[[Case], Question]] = {"interaction": _interactions, "user": _users}


def own_attacks(text: str) -> list[Attack]:
    """Return the attacks of the user's own that a text names, for both kinds of clients; none where it is "".

    Each is a component with `scores(transcript, records, experiment)`: of every record whether it was trained on, or,
    where its `unit` is user, of every one of `records.profiles()` whether the user took part. It may say which tables
    it `reads`, and that it is not `released`. Raises UserError.
    """
    attacks = []
    for part in parts_of(text) if text else ():
        attack, name = make("attack", str(part)), str(part)
        unit = choose(f"attack: unit of {part.use}", getattr(attack, "unit", "interaction"), ASKED)
        run, reads = partial(_attempted, attack, name, unit), tuple(getattr(attack, "reads", ("item_table",)))
        released = bool(getattr(attack, "released", True))
        attacks += [Attack(name, unit, who, BOTH, run, ASKED[unit], released, reads) for who in get_args(Clients)]
    return attacks


def _attempted(
    attack: Any, name: str, unit: str, transcript: Transcript, records: targets.Records, experiment: Experiment
) -> Values:
    """Return the scores of an attack of the user's own; raises RunFailure if it fails, or gives none to some target."""
    count = len(records) if unit == "interaction" else len(records.profiles()[0])
    try:
        scores = np.asarray(attack.scores(transcript, records=records, experiment=experiment), np.float64)
    except Exception as error:
        raise RunFailure(f"attack {name}: {type(error).__name__}: {error}") from error
    if scores.shape != (count,) or np.isnan(scores).any():
        fault = "NaN" if scores.shape == (count,) else list(scores.shape)
        raise RunFailure(f"attack {name}: scores must be a number for each of {count} targets, found {fault}")
    return scores
