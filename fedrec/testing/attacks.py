"""What every attack must satisfy, as tests to inherit."""

from typing import ClassVar, cast

import numpy as np
import torch

from fedrec.components import text_of
from fedrec.data.types import Ints
from fedrec.experiment.config import Experiment
from fedrec.params import Params
from fedrec.privacy.attacks.scores import Values
from fedrec.privacy.attacks.table import Attack, own_attacks
from fedrec.privacy.attacks.targets import Records
from fedrec.privacy.transcript import Exchanged, Transcript
from fedrec.rng import generator
from fedrec.sharing import Contribution
from fedrec.testing.contracts import Rebuilt


class AttackContract(Rebuilt):
    """An attack: `scores(transcript, records, experiment)`, or one of ours that knows as much.

    It is asked of two clients that share item tables, after two rounds.
    """

    field = "attack"
    experiment: ClassVar[Experiment] = Experiment(task="rating", dim=4)
    records: ClassVar[Records] = Records(
        ("films", "shop"),
        np.array([0, 0, 0, 1, 1, 1]),
        np.array([0, 0, 2, 1, 1, 3]),
        np.array([5, 9, 5, 7, 8, 8]),
        np.array([4, 1, 3, 5, 2, 3], np.float32),
    )

    def transcript(self) -> Transcript:
        """Return what a server saw: every client's rows, and how it moved them."""
        rng = generator(0, "contract")
        found, items = Transcript(), {"films": np.arange(4, 10), "shop": np.arange(6, 12)}
        shapes = {"item_table": 4, "item_bias": 1}

        def rows(ids: Ints) -> Params:
            drawn = {name: rng.normal(0, 0.1, (len(ids), width)) for name, width in shapes.items()}
            return {name: torch.from_numpy(value.astype(np.float32)) for name, value in drawn.items()}

        found.join([Contribution(name, rows(ids), rows={"item": ids}) for name, ids in items.items()])
        for number in (1, 2):
            found.rounds += [Exchanged(number, name, rows(ids), rows(ids), {}) for name, ids in items.items()]
        return found

    def scored(self, transcript: Transcript, records: Records) -> Values:
        """Return its scores, which are refused unless there is a number for every target."""
        made = self.component
        attack = made if isinstance(made, Attack) else own_attacks(cast(str, text_of(made)))[0]
        return attack.run(transcript, records=records, experiment=self.experiment)

    def test_it_gives_every_target_a_number_and_the_same_twice(self) -> None:
        """And changes nothing of what it reads."""
        seen, fresh = self.transcript(), self.transcript()
        scores = self.scored(seen, self.records)
        assert np.isfinite(scores).all() and np.array_equal(scores, self.scored(seen, self.records))
        for one, other in zip(seen.rounds, fresh.rounds, strict=True):
            assert all(torch.equal(one.z[name], other.z[name]) for name in one.z)
            assert all(torch.equal(one.x[name], other.x[name]) for name in one.x)

    def test_it_reads_what_was_sent(self) -> None:
        """Where no client moved anything, its scores are other ones."""
        seen = self.transcript()
        still = Transcript(seen.joined, [Exchanged(one.round, one.client, one.z, one.z, {}) for one in seen.rounds])
        assert not np.array_equal(self.scored(seen, self.records), self.scored(still, self.records))

    def test_targets_are_scored_alike_in_any_order(self) -> None:
        """Of records each its own score; of users those of `profiles()`, whose order is fixed."""
        scores, order = self.scored(self.transcript(), self.records), np.array([5, 2, 0, 4, 1, 3])
        shuffled = self.scored(self.transcript(), self.records.take(order))
        expected = scores if getattr(self.component, "unit", "") == "user" else scores[order]
        np.testing.assert_allclose(shuffled, expected, rtol=1e-9)
