"""The server half of client-level privacy: who is drawn, and the noisy mean that is released of what they sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedrec.keyed import Carrier
from fedrec.params import Params
from fedrec.privacy.books import Books
from fedrec.privacy.central import clipped, noisy_mean
from fedrec.privacy.secret import digest


@dataclass(frozen=True)
class Release:
    """Releases the mean change of the clients of a round under a guarantee for each client as a whole."""

    books: Books

    def drawn(self, clients: Sequence[str], number: int) -> list[str]:
        """Return the clients of a round, each drawn by itself with the probability that the accountant counts on.

        Nobody may know who was drawn: the draw comes from the secret, and only the server sees it.
        """
        g = self.books.guarantee
        source = self.books.quiet(number, digest("drawn", number))
        return [name for name, u in zip(clients, source.uniform(len(clients)), strict=True) if u <= g.event.rate]

    def change(
        self,
        number: int,
        answers: Mapping[str, Params],
        z: Mapping[str, Params],
        carriers: Mapping[str, Carrier],
        like: Params,
    ) -> Params:
        """Return the noisy mean of the clipped x_i - z_i, booked before it is sent; raises OverBudget."""
        g = self.books.guarantee
        changes = {name: clipped(x, z[name], g.rule.clip) for name, x in answers.items()}
        inputs = digest(
            "mean", g.rule.model_dump_json(), number, like, *(part for name, x in answers.items() for part in (name, x))
        )
        # The draw of a round is made once: another mean of the same draw is not amplified by it a second time, and with
        # what the first one told, it is no worse than a mechanism that everybody is in.
        source = self.books.open(number, inputs, replace(g.event, rate=1.0))
        return noisy_mean(changes, carriers, like, g.std, g.event.rate, source)
