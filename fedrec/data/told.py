"""What the notes of a run tell of how clients' rows were divided."""

from collections.abc import Iterator
from dataclasses import dataclass

from fedrec.data.split import Split
from fedrec.data.types import Bools, Ints


@dataclass(frozen=True)
class Told:
    """What notes tell of how every client's rows were divided, as arrays [clients]."""

    split: Split
    merged: Ints  # rows that were merged with others
    users: Ints
    apart: Ints  # users who stand apart, see `split.divide`
    liked: Bools  # whether all rows are positives
    tested: Bools  # whether the test has a positive

    def take(self, clients: Bools) -> "Told":
        """Return what is told of some clients."""
        columns = {name: getattr(self, name)[clients] for name in ("merged", "users", "apart", "liked", "tested")}
        return Told(self.split, **columns)

    def notes(self, number: int, new: tuple[Bools, Bools] | None) -> Iterator[str]:
        """Yield the notes of a client, of whose items some are `new`."""
        if self.merged[number]:
            yield f"{self.merged[number]} interactions were merged with the same user's and item's of another platform"
        apart = int(self.apart[number])
        if self.split == "leave-one-out" and apart:
            what = "a single interaction" if self.liked[number] else "fewer than two positives"
            several = apart > 1
            yield f"{apart} user{'s' * several} with {what} {'are' if several else 'is'} kept for training only"
        if self.split == "new-users":
            yield f"{apart} of {self.users[number]} users are new: nothing of theirs is trained on"
        if not self.tested[number]:
            yield "no test item: this client is trained but not tested"
        if new is not None:
            count, tested = (int(mask.sum()) for mask in new)
            yield f"{count} of {len(new[0])} items are new at the validation, {tested} at the test, ranked among them"
