"""The attacks on a run by sums as a list of values: on the sums of each client, or on a noisy total of all.

The server of a run without a promise has every client's sums; that of private sums their total with noise, and of no
client anything: it says the same of all. Scores are higher for what is more likely in.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array

from fedrec.data.history import Sequences
from fedrec.data.types import Bools, ClientData, Ints
from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import item_classes, ordered, reader
from fedrec.models import SummedRecommender
from fedrec.models.contributions import GRID, popularity
from fedrec.models.noisy import BETWEEN, PAIRS, POPULARITY, released
from fedrec.params import Params
from fedrec.privacy.attacks import targets
from fedrec.privacy.attacks.scores import Values
from fedrec.privacy.attacks.table import BOTH, SAMPLE, Attack, Case, Question
from fedrec.privacy.attacks.targets import Records
from fedrec.privacy.guarantee import sums_plan
from fedrec.privacy.transcript import Transcript
from fedrec.rng import generator
from fedrec.sharing import GRAM
from fedrec.subspace import square

PEOPLE = 100  # users of a kind


def seen_of(transcript: Transcript, client: str) -> Params:
    """Return what the server saw of a client's sums: what it sent last, else the total of all."""
    rounds = list(transcript.of(client))
    return rounds[-1].x if rounds else transcript.total


def matrix(sums: Params, experiment: Experiment) -> Values:
    """Return what sums say of all pairs [n, n] of items, on the diagonal of items; a noisy total of its head."""
    if GRAM in sums:
        return np.asarray(square(sums[GRAM].numpy()), np.float64)
    seen = released(sums, item_classes(experiment), ordered(experiment))
    result, block = np.zeros((len(seen.popularity), len(seen.popularity))), np.ix_(seen.head, seen.head)
    result[block] = seen.pairs + seen.pairs.T
    np.fill_diagonal(result, seen.popularity)
    return result


def pairs_held(
    transcript: Transcript, *, experiment: Experiment, clients: Sequence[str], pairs: Ints, of: Ints
) -> Values:
    """Return how sure it is, for pairs [n, 2] of items (twice the same: an item), that a user of a client has both.

    `of` [n] are the places of their clients among `clients`.
    """
    scores = np.zeros(len(pairs))
    for place in np.unique(of):
        mine = of == place
        scores[mine] = matrix(seen_of(transcript, clients[place]), experiment)[tuple(pairs[mine].T)]
    return scores


def users_in(transcript: Transcript, *, experiment: Experiment, records: Records) -> Values:
    """Return how sure it is, for every profile [k] of `records`, that the user is one of the client's.

    It is the share of the pairs of the user's items that the sums have: who is in a sum has all of them in it.
    """
    first, group = records.profiles()
    scores, of = np.zeros(len(first)), records.of[first]
    for place in np.unique(of):
        found = matrix(seen_of(transcript, records.client[place]), experiment)
        for user in np.flatnonzero(of == place):
            items = np.unique(records.item[group == user])
            scores[user] = float((found[np.ix_(items, items)] > 0).mean())
    return scores


def known_others(
    transcript: Transcript,
    *,
    experiment: Experiment,
    everybody: Sequences,
    people: Sequence[Sequences],
    present: Bools,
) -> Values:
    """Return how sure it is, for each of some `people`, that what a total holds beside all that is known is theirs.

    The adversary of the promise knows every user's data but one's: of a target that is `present` among `everybody` it
    is taken from what is known, of any other there is nothing left but noise. The score is the likelihood ratio's, over
    all releases, which no attack exceeds.
    """
    plan, total = sums_plan(experiment), transcript.total
    first = np.rint(total[POPULARITY].numpy() * GRID).astype(np.int64)
    m, k = plan.recipe.items, plan.count

    def parts(own: Sequences) -> Iterator[Values]:
        yield popularity(own, len(plan.classes)) / GRID
        for one in plan.exact(own, first):
            yield one / GRID

    between, pairs = total[BETWEEN].numpy()[:k, :k], total[PAIRS].numpy()[:m, :m]
    seen = [first / GRID, *([between.ravel()] if plan.recipe.classes else [])]
    if plan.recipe.pairs:
        seen.append(pairs.ravel() if plan.ordered else pairs[np.triu_indices(m)])
    weights = [GRID**2 / release.variance for release in (plan.first, *plan.second)]
    left = [one - known for one, known in zip(seen, parts(everybody), strict=True)]
    scores = np.zeros(len(people))
    for place, (own, inside) in enumerate(zip(people, present, strict=True)):
        for weight, rest, mine in zip(weights, left, parts(own), strict=True):
            scores[place] += weight * float((rest + inside * mine - mine / 2) @ mine)
    return scores


def _held(case: Case, single: bool) -> Question:
    """Ask for items, or pairs of items, as often of a client that has them as of one that has not."""
    rng, parts = generator(case.seed, "targets", "sums", int(single)), case.parts
    size, rows = 1 + max(int(part.items.max(initial=-1)) for part in parts), list[tuple[int, ...]]()
    held = [_together(part, size, single) for part in parts]
    for place, own in enumerate(held):
        some = own[rng.permutation(len(own))[:SAMPLE]]
        lacking = np.stack([~np.isin(some, other) for other in held])  # [clients, pairs]
        for at in np.flatnonzero(lacking.any(0)):
            pair, other = divmod(int(some[at]), size), int(rng.choice(np.flatnonzero(lacking[:, at])))
            rows += [(*pair, place, 1), (*pair, other, 0)]
    table = np.array(rows, np.int64).reshape(-1, 4)[rng.permutation(len(rows))]
    known = {"clients": [part.name for part in parts], "pairs": table[:, :2], "of": table[:, 2]}
    return Question(known, table[:, 3] == 1)


def _together(part: ClientData, size: int, single: bool) -> Ints:
    """Return the pairs of items, left * size + right, that some user of a client has; or single items, twice each."""
    row, column = part.train.user, part.items[part.train.item]
    x = csr_array((np.ones(len(row)), (row, column)), shape=(len(part.users), size))
    left, right = csr_array(x.T @ x).nonzero()
    asked = left == right if single else left < right
    return np.asarray(left[asked].astype(np.int64) * size + right[asked])


def _items(case: Case) -> Question:
    return _held(case, single=True)


def _pairs(case: Case) -> Question:
    return _held(case, single=False)


def _users(case: Case) -> Question:
    records, truth = targets.users(case.parts, per_client=PEOPLE, seed=case.seed)
    return Question({"records": records}, truth)


def _known(case: Case) -> Question:
    """Ask for users, half of them in the sums: of the other half there is the same history, known already."""
    own = []
    for part in case.parts:
        model = reader(case.experiment, part, "train")
        assert isinstance(model, SummedRecommender)
        own.append(model.placed(model.past))
    histories = [one.item[a:b] for one in own for a, b in zip(one.start[:-1], one.start[1:], strict=True)]
    chosen = generator(case.seed, "targets", "known").permutation(len(histories))[: 2 * PEOPLE]
    present = np.arange(len(chosen)) % 2 == 0
    people = [Sequences(histories[n], np.array([0, len(histories[n])])) for n in chosen]
    start = np.concatenate([[0], np.cumsum([len(one) for one in histories])])
    everybody = Sequences(np.concatenate(histories), start)
    return Question({"everybody": everybody, "people": people, "present": present}, present)


def _on(reads: str) -> list[Attack]:
    """Return the attacks of which a server with some sums is capable; they have the same names on all sums."""
    return [
        Attack("items of a client", "attribute", "silos", BOTH, pairs_held, _items, reads=(reads,)),
        Attack("pairs of a client", "attribute", "silos", BOTH, pairs_held, _pairs, reads=(reads,)),
        Attack("user of a client", "user", "silos", BOTH, users_in, _users, reads=(reads,)),
    ]


ATTACKS: tuple[Attack, ...] = (
    *_on(GRAM),
    *_on(POPULARITY),
    Attack("user, all others known", "user", "silos", BOTH, known_others, _known, reads=(POPULARITY,)),
)
