"""What travelled between server and clients: the byte ledger of a run."""

from collections.abc import Iterator, Sequence
from itertools import takewhile

from fedrec.experiment.scores import Row

LEDGER = ["round", "client", "direction", "parameter", "rows", "bytes"]  # columns of `ledger.csv`
SUMMED = ["round", "direction", "parameter", "messages", "rows", "bytes"]  # where clients are many
MANY = 64  # clients from which what concerns each of them is kept together

Messages = tuple[tuple[str, ...], list[Row]]  # the clients of messages that are alike, and the parameters of one


class Traffic(list[Messages]):
    """The messages of a run in their order; where clients are many, of closed rounds counts and sums alone.

    A sum has no clients, and in the rows of its parameters the number of `messages`. `named` keeps the clients.
    """

    named = False

    def add(self, clients: Sequence[str], rows: list[Row]) -> None:
        """Add what a message held, once for each of the clients that sent or got such a message."""
        if rows:
            self.append((tuple(clients), rows))

    def close(self, number: object) -> dict[str, int]:
        """Return the bytes of a round's messages, down and up, and sum up what it and those before it left."""
        total = {"down": 0, "up": 0}
        for names, rows in takewhile(lambda one: one[1][0]["round"] == number, reversed(self)):
            for row in rows:
                total[str(row["direction"])] += int(row["bytes"]) * (len(names) or 1)
        if not self.named:
            self.fold()
        return total

    def many(self) -> bool:
        """Return whether clients are many, by those that the run began with."""
        first = takewhile(lambda one: one[1][0]["round"] == self[0][1][0]["round"], self)
        return bool(self) and (not self[0][0] or len({name for names, _ in first for name in names}) >= MANY)

    def fold(self, start: int | None = None) -> None:
        """Put counts and sums in the place of what single clients sent and got, where clients are many.

        From `start` on, or from what is not summed yet; what is told of a round twice becomes one.
        """
        if not self.many():
            return
        if start is None:
            start = next((place for place, (names, _) in enumerate(self) if names), len(self))
        sums: dict[int, dict[tuple[str, str], Row]] = {}  # by round
        for names, rows in self[start:]:
            for row in rows:
                key = str(row["direction"]), str(row["parameter"])
                into = sums.setdefault(int(row["round"]), {}).setdefault(
                    key,
                    {"round": row["round"], **dict(zip(SUMMED[1:3], key, strict=True)), **dict.fromkeys(SUMMED[3:], 0)},
                )
                each = {**row, "messages": 1} if names else row
                for what in SUMMED[3:]:
                    into[what] = int(into[what]) + int(each[what]) * (len(names) or 1)
        self[start:] = [((), [*rows.values()]) for rows in sums.values()]

    def rows(self) -> list[Row]:
        """Return a row for each parameter of each client's messages, or of each round where they are summed."""
        return list(self._rows())

    def _rows(self) -> Iterator[Row]:
        for names, rows in self:
            yield from rows if not names else ({**row, "client": name} for name in names for row in rows)
