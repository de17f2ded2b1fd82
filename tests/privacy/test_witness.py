from typing import Any

import pytest
import torch

from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data
from fedrec.experiment.records import natural
from fedrec.federation.coordination import Link
from fedrec.privacy.attacks.recovery import item_scores, item_set
from fedrec.privacy.attacks.targets import catalogue
from fedrec.privacy.transcript import Transcript
from fedrec.sharing import Broadcast, Contribution
from simulations.witness import witness
from tests.helpers import fit
from tests.privacy.attacked import SILOS, USERS, attacked, market


@pytest.mark.parametrize("fields", [SILOS, {**USERS, "clients": 5}])
def test_what_is_witnessed_is_what_the_server_got_and_the_run_is_the_same(fields: dict[str, Any]) -> None:
    e = market(**{**fields, "rounds": 2, "task": "rating"})
    seen, (record, _) = witness(e), fit(e)
    names = sorted((part.name for part in clients_data(e)), key=natural)
    assert [(one.round, one.client) for one in seen.transcript.rounds] == [(k, name) for k in (1, 2) for name in names]
    assert all(torch.equal(seen.record.shared[name], record.shared[name]) for name in record.shared)
    for one in seen.transcript.rounds:
        assert one.x.keys() == one.z.keys() == {"item_table", "item_bias"}
        assert one.metrics.keys() == {"loss"}
    mean = torch.stack(
        [one.x["item_bias"].double() * weight(e, one.client) for one in seen.transcript.rounds[: len(names)]]
    )
    torch.testing.assert_close(seen.transcript.rounds[-1].z["item_bias"].double(), mean.sum(0), atol=1e-6, rtol=1e-5)
    assert set(seen.private) == set(names)
    assert all(
        set(own) == {"heads.rating.bias", "heads.rating.weight", "user_bias", "user_table"}
        for own in seen.private.values()
    )


def weight(e: Experiment, client: str) -> float:
    sizes = {part.name: len(part.train) for part in clients_data(e)}
    return sizes[client] / sum(sizes.values())


def test_what_many_are_sent_is_kept_once() -> None:
    seen = witness(market(**USERS, task="rating"))
    assert len({id(one.z["item_table"]) for one in seen.transcript.rounds}) == 1


def test_increments_tell_what_clients_trained_to() -> None:
    rng = torch.Generator().manual_seed(0)
    start = {"item_table": torch.randn(4, 3, generator=rng)}
    link, transcript = Link.start(start, 1.0), Transcript({"a": Contribution("a", start)})
    trained = []
    for number in (1, 2, 3):
        z, x = ({"item_table": torch.randn(4, 3, generator=rng)} for _ in range(2))
        increment, link = link.answer(x, z)
        transcript.train({"a": Broadcast(number, z)}, [Contribution("a", increment)])
        trained.append(x)
    for one, x in zip(transcript.without_duals().rounds, trained, strict=True):
        torch.testing.assert_close(one.x, x, atol=1e-5, rtol=1e-5)


def test_the_item_set_of_a_user_is_told_by_increments_too() -> None:
    e = market("admm", **USERS, task="rating")
    seen, case = attacked(e)
    for part in case.parts:
        assert (item_set(item_scores(seen.transcript, part.name, tasks=e.tasks(part.name))) == catalogue(part)).all()
