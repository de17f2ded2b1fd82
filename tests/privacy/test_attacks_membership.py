from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from fedrec.experiment.config import Experiment, build
from fedrec.privacy.attacks.membership import leanings, user_leanings
from fedrec.privacy.attacks.scores import judge, violates
from fedrec.privacy.attacks.targets import interactions, pool_of, users
from simulations.witness import case_of, witness
from tests.privacy.attacked import ATTACK, SILOS, attacked, market, movies, real

INTERACTIONS = {
    "loss, insider": 0.55,
    "loss, fitted user": 0.52,
    "leaning": 0.6,
    "leaning, all rounds": 0.55,
    "likelihood ratio (LiRA)": 0.65,
}


@pytest.mark.parametrize("task", ["rating", "rank"])
@pytest.mark.parametrize("name", INTERACTIONS)
def test_members_of_an_unprotected_silo_are_told(task: str, name: str) -> None:
    seen, case = attacked(market(**SILOS, task=task, rounds=6))
    assert ATTACK[name].result(seen.transcript, case).auc >= INTERACTIONS[name]


@pytest.mark.parametrize("task", ["rating", "rank"])
def test_users_of_an_unprotected_silo_are_told(task: str) -> None:
    seen, case = attacked(market(**SILOS, task=task, rounds=6))
    found = ATTACK["user leaning"].result(seen.transcript, case)
    assert found.auc >= 0.9
    assert violates(found, 1.0, 1e-5)


@real
def test_members_of_movielens_are_told_by_an_insider() -> None:
    seen, case = attacked(movies(partition="users", clients=5, task="rank", rounds=3))
    assert ATTACK["loss, insider"].result(seen.transcript, case).auc_low >= 0.65


@real
def test_members_and_users_of_movielens_are_told_from_the_update_alone() -> None:
    seen, case = attacked(movies(partition="users", clients=5, task="rating", rounds=3))
    for name, least in (("loss, insider", 0.75), ("leaning", 0.65), ("likelihood ratio (LiRA)", 0.73)):
        assert ATTACK[name].result(seen.transcript, case).auc_low >= least, name
    found = ATTACK["user leaning"].result(seen.transcript, case)
    assert found.auc_low >= 0.95 and found.tpr_low >= 0.8 and violates(found, 1.0, 1e-5)


def test_what_another_silo_trained_on_is_not_told() -> None:
    # Members and held-out records of one silo alike were in no update of another. Of 6 pairs two miss a band of 95 %
    # with 3 %, three with 0.2 %.
    e = market(**SILOS, task="rating", rounds=6)
    seen, case = attacked(e)
    missed = 0
    for mine, other in permutations(case.parts, 2):
        records, truth = interactions([other], per_client=10**6, seed=0)
        scores = leanings(seen.transcript, replace(records, client=(mine.name,)), experiment=e)
        missed += not judge(scores, truth, groups=records.user).chance
    assert missed <= 2


def test_a_leaning_is_standard_normal_for_who_has_no_part_in_the_update() -> None:
    e = market(**SILOS, task="rating", rounds=6)
    seen, case = attacked(e)
    records, truth = users(case.parts, per_client=10**6, seed=0)
    out = user_leanings(seen.transcript, records, experiment=e)[~truth]
    assert abs(out.mean()) < 4 / np.sqrt(len(out))
    assert 0.7 < out.std() < 1.3


def test_questions_tell_nothing_of_the_truth() -> None:
    _, case = attacked(market(**SILOS, task="rating", rounds=6))
    records, truth = interactions(case.parts, per_client=100, seed=0)
    order = np.lexsort((records.item, records.user, records.of))
    assert (order == np.arange(len(order))).all()
    assert truth.sum() * 2 == len(truth)
    pool = pool_of(case.parts[0])
    assert len(pool.train) == sum(len(getattr(case.parts[0], name)) for name in ("train", "validation", "test"))
    assert len(pool.validation) == len(pool.test) == 0
    pairs = pool.train.user * 10**6 + pool.train.item
    assert (np.diff(pairs) > 0).all()


def test_profiles_hold_what_a_user_trains_on_wherever_that_is() -> None:
    _, case = attacked(market(**SILOS, task="rating", rounds=6))
    records, truth = users(case.parts, per_client=5, seed=0)
    first, group = records.profiles()
    assert len(first) == len(truth) == 30
    for k, row in enumerate(first):
        client, user = records.of[row], records.user[row]
        home = next(part for part in case.parts if user in part.users)
        assert (home is case.parts[client]) == truth[k]
        mine = home.items[home.train.item[home.users[home.train.user] == user]]
        assert sorted(records.item[group == k]) == sorted(mine)


def test_noise_hides_a_user_in_one_round_before_it_does_in_all(tmp_path: Path) -> None:
    # Noise of a budget that is far too large to protect: it must not be the training with clipping that stops attacks.
    fields = {"optimiser": "sgd", "lr": 0.5, "local_epochs": 1, "weights": "uniform", "rounds": 8, "task": "rating"}
    e = market(**{**SILOS, **fields}, privacy={"unit": "user", "epsilon": "1000", "replay": True})
    seen = witness(e, tmp_path)
    case = case_of(e, seen)
    once, often = (ATTACK[name].result(seen.transcript, case) for name in ("user leaning", "user leaning, all rounds"))
    assert often.auc_low > 0.6
    assert often.auc > once.auc


def left_of_membership(silos: Experiment, home: Path) -> tuple[int, int]:
    """Return how many membership attacks that read what is released still know something, and how many there are.

    Asserts that none shows that epsilon 1 does not hold.
    """
    e = build(silos.model_dump() | {"weights": "uniform", "privacy": {"unit": "user", "epsilon": "1", "replay": True}})
    seen = witness(e, home)
    case = case_of(e, seen)
    found = [
        attack.result(seen.transcript, case)
        for attack in ATTACK.values()
        if attack.fits(case) and attack.released and attack.unit != "attribute"
    ]
    assert not any(violates(one, 1.0, e.privacy.delta) for one in found)
    return sum(not one.chance for one in found), len(found)


def test_user_level_privacy_leaves_chance(tmp_path: Path) -> None:
    # Of 13 attacks two fall outside their band of 95 % by chance with 11 %, three with 2 %; the noise is replayed.
    rating = left_of_membership(market(**SILOS, task="rating"), tmp_path / "rating")
    rank = left_of_membership(market(**SILOS, task="rank"), tmp_path / "rank")
    assert rating[1] + rank[1] == 13
    assert rating[0] + rank[0] <= 2


@real
def test_user_level_privacy_leaves_chance_of_movielens(tmp_path: Path) -> None:
    left, attacks = left_of_membership(movies(partition="users", clients=5, task="rating", rounds=3), tmp_path)
    assert attacks == 7 and left <= 1
