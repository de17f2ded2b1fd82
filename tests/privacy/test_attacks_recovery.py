import numpy as np
import pytest

from fedrec.data.types import Ints
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.models.tables import table_rows
from fedrec.privacy.attacks.inversion import gradient, pursuit
from fedrec.privacy.attacks.ratings import SCALE, fitting, recovered_ratings
from fedrec.privacy.attacks.recovery import STILL, distance, item_scores, item_set
from fedrec.privacy.attacks.scores import Values
from fedrec.privacy.attacks.targets import catalogue
from fedrec.privacy.transcript import Exchanged
from fedrec.training.local import local_update
from fedrec.training.recipe import Recipe
from tests.privacy.attacked import ATTACK, STEP, USERS, attacked, market, movies, real


def f1(guess: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (guess & truth).sum() / (guess.sum() + truth.sum()))


def item_set_f1(e: Experiment) -> float:
    """Return the mean F1 over one-user clients of the item set that their updates give away."""
    seen, case = attacked(e)
    sets = [(item_set(item_scores(seen.transcript, p.name, tasks=e.tasks(p.name))), catalogue(p)) for p in case.parts]
    return float(np.mean([f1(*one) for one in sets]))


def rating_recovery(e: Experiment, known: bool) -> float:
    """Return the fraction of ratings found exactly, over all one-user clients; the offset may be known."""
    seen, case = attacked(e)
    right = []
    for part in case.parts:
        offset = float(part.train.rating.mean(dtype=np.float64)) if known else None
        one = next(iter(seen.transcript.of(part.name)))
        item, rating = recovered_ratings(one, recipe=e.recipe(), offset=offset, prior=case.prior)
        assert set(item) == set(part.train.item)
        table = np.zeros(len(part.items))
        table[item] = rating
        right.append(table[part.train.item] == part.train.rating)
    return float(np.concatenate(right).mean())


SHARED_TABLE: dict[str, str] = {"task": "rank", "share": "item_table"}  # no bias tells positives from sampled items


@pytest.mark.parametrize("fields", [{"task": "rating"}, {"task": "rank"}, {"task": "rank-bce"}, SHARED_TABLE])
def test_the_update_of_one_user_tells_its_items(fields: dict[str, str]) -> None:
    assert item_set_f1(market(**USERS, **fields)) >= 0.99


@real
@pytest.mark.parametrize("fields", [{"task": "rating"}, {"task": "rank"}, SHARED_TABLE])
def test_the_update_of_one_movielens_user_tells_its_items(fields: dict[str, str]) -> None:
    assert item_set_f1(movies(**USERS, **fields)) >= 0.99


def test_the_update_of_one_user_tells_its_ratings() -> None:
    assert rating_recovery(market(**USERS, **STEP, task="rating"), known=True) >= 0.99
    # A user of few ratings rarely uses the whole scale: which of two shifts it is, is a guess.
    assert 0.6 <= rating_recovery(market(**USERS, **STEP, task="rating"), known=False) < 0.99


@real
def test_the_update_of_one_movielens_user_tells_its_ratings() -> None:
    assert rating_recovery(movies(**USERS, **STEP, task="rating"), known=True) >= 0.99
    # A head that is private hides the level of the ratings: found by what is frequent in public for most users.
    assert rating_recovery(movies(**USERS, **STEP, task="rating"), known=False) >= 0.94
    # A head that is shared is in the broadcast.
    assert rating_recovery(movies("fedavg", **USERS, **STEP, task="rating"), known=False) >= 0.99


@pytest.mark.parametrize("c", [2.9, 3.2, 3.7])
def test_only_one_level_makes_whole_ratings_of_the_scale(c: float) -> None:
    rating = np.asarray([1.0, 2.0, 5.0, 4.0])
    assert fitting(rating - c, None) == pytest.approx(c)


def test_a_prior_decides_between_levels_that_both_fit() -> None:
    rating = np.asarray([3.0, 4.0, 4.0])
    assert fitting(rating - 3.5, np.asarray([1, 2, 10, 20, 1])) == pytest.approx(3.5)
    assert fitting(rating - 3.5, np.asarray([1, 10, 20, 1, 1])) == pytest.approx(2.5)


def test_pursuit_finds_the_few_terms_of_a_sum() -> None:
    rng = np.random.default_rng(0)
    atoms, each = rng.normal(size=(500, 32)), 0.01 * rng.normal(size=32)
    terms = {7: 1.5, 99: -0.4, 311: 0.8}
    chosen, e = pursuit(sum(v * atoms[k] for k, v in terms.items()) + 3 * each, atoms, each)
    assert dict(zip(chosen.tolist(), np.round(e, 6).tolist(), strict=True)) == pytest.approx(terms)


def inverted(
    one: Exchanged,
    *,
    recipe: Recipe,
    size: int,
    vectors: Values,
    offset: float | None,
) -> tuple[Ints, Ints, Values]:
    """Return (user, item, rating), each [n], of the records that a client's step was made on.

    `user` are rows of `vectors` [users, d], `item` positions among the client's items. Every e_k of the pursuit gives a
    rating; the head's `offset` is known, or fitted.
    """
    z, g = gradient(one, recipe=recipe, size=size)
    far = distance(one)
    users, items, known = [], [], []
    for item in np.flatnonzero(far > STILL * float(far.max(initial=0.0))):
        q = z["item_table"][item]
        chosen, e = pursuit(g["item_table"][item], vectors, recipe.l2 * q)
        users.append(chosen)
        items.append(np.full(len(chosen), item))
        known.append(vectors[chosen] @ q + z["item_bias"][item, 0] - e)
    if not users:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    r = np.concatenate(known)
    c = fitting(r, None) if offset is None else offset
    return np.concatenate(users), np.concatenate(items), np.clip(np.rint(r + c), SCALE[0], SCALE[-1])


def inversion(e: Experiment, size: int, offset: bool) -> float:
    """Return the fraction of a batch of a silo's records, one step of SGD, that is found with user, item and rating."""
    part = clients_data(e)[0]
    model, sharing, tasks = e.recommender(part.name), e.sharing(), e.tasks(part.name)
    rows = part.train.take(np.isfinite(part.train.rating))
    rows = rows.take(np.sort(np.random.default_rng(0).permutation(len(rows))[:size]))
    start = model.init(e.seed, part.users, part.items, {"rating": tasks[0].offset(rows)})
    data = type(part)(part.name, part.users, part.items, rows, part.validation, part.test)
    after, _ = local_update(model, start, data, tasks, e.recipe(), sharing, seed=e.seed, scope=("batch",))
    one = Exchanged(1, part.name, sharing.split(start)[0], sharing.split(after)[0], {})
    people = np.arange(1000)
    found = inverted(
        one,
        recipe=e.recipe(),
        size=len(rows),
        vectors=table_rows(e.seed, "user_table", people, model.dim, model.std).astype(np.float64),
        offset=tasks[0].offset(rows) if offset else None,
    )
    known = set(zip(*(column.tolist() for column in found), strict=True))
    truth = set(zip(part.users[rows.user].tolist(), rows.item.tolist(), rows.rating.tolist(), strict=True))
    return len(known & truth) / len(truth)


@pytest.mark.parametrize(("size", "least"), [(4, 1.0), (32, 1.0), (128, 0.95)])
def test_a_small_batch_is_told_by_its_gradient(size: int, least: float) -> None:
    e = market(task="rating", partition="users", clients=1, **{**STEP, "dim": 32})
    assert inversion(e, size, offset=True) >= least


@real
def test_a_batch_of_movielens_is_told_by_its_gradient_less_and_less() -> None:
    e = movies(task="rating", partition="users", clients=5, **STEP)
    found = [inversion(e, size, offset=False) for size in (128, 512, 2048, 4096)]
    assert found[0] == 1.0 and found[1] >= 0.95 and found[2] >= 0.7
    assert found == sorted(found, reverse=True)


@real
def test_shadow_labels_tell_positives_from_sampled_items() -> None:
    seen, case = attacked(movies(**USERS, task="rank-bce"))
    assert ATTACK["shadow labels (IMIA)"].result(seen.transcript, case).auc >= 0.98


@pytest.mark.parametrize("task", ["rank-bce", "rank"])
def test_shadow_labels_tell_positives_from_sampled_items_of_a_market(task: str) -> None:
    seen, case = attacked(market(**USERS, task=task))
    assert ATTACK["shadow labels (IMIA)"].result(seen.transcript, case).auc >= 0.95
