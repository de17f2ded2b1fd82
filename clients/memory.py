"""A client's private memory: what stays in Flower's Context.state from round to round, and never in a message."""

from dataclasses import dataclass
from typing import cast

from flwr.app import ArrayRecord, Context, MetricRecord

from fedrec.coordination import Link, Own
from fedrec.parameters import Params
from fedrec.sharing import ContractError
from fedrec.wire import pack, unpack

# The state after the last contribution; `before.*` is that of the one before.
NOW = ("private", "dual", "sent", "personal", "control", "weighting", "mark")
NOTHING = Own()


@dataclass
class Memory:
    """A view of one client's state: private parameters, the link of its tie, its own model, those of the best round.

    A contribution may be lost on its way. The server says in every message which one it took last (`seen`), and the
    client goes back to the state before a lost one, so that both sides always agree on the duals.
    """

    context: Context

    def begin(self, private: Params, link: Link | None, own: Own = NOTHING) -> None:
        """Remember the state with which the client joined, as that of round 0.

        One that joins again begins again, but not with the keys of secure sums: no round gets a second pair.
        """
        used = self.context.state.config_records.get("secure.last")
        self.context.state.clear()
        if used is not None:
            self.context.state["secure.last"] = used
        self._write(0, private, link, own)

    def settle(self, seen: int) -> None:
        """Go back to the state before the last contribution if the server did not take it.

        Raises ContractError if the server has seen neither of the two.
        """
        if "mark" not in self.context.state:
            raise ContractError("join: must come before training and evaluation, found a client that has not joined")
        if self.round == seen:
            return
        before = self.context.state.metric_records.get("before.mark")
        if before is None or before["round"] != seen:
            raise ContractError(f"seen: must be one of the last two contributions, found {seen} in round {self.round}")
        for name in NOW:
            self.context.state.pop(name, None)
            if f"before.{name}" in self.context.state:
                self.context.state[name] = self.context.state.pop(f"before.{name}")

    def trained(self, number: int, private: Params, link: Link | None, own: Own = NOTHING, mu: float = 0.0) -> None:
        """Remember the state after the contribution of a round, and the one before it."""
        for name in NOW:
            self.context.state.pop(f"before.{name}", None)
            if name in self.context.state:
                self.context.state[f"before.{name}"] = self.context.state.pop(name)
        self._write(number, private, link, own, mu)

    def keep(self) -> None:
        """Remember the present private parameters and personal model as those of the best round."""
        for name in ("private", "personal"):
            if name in self.context.state:
                self.context.state[f"kept.{name}"] = self.context.state[name]

    @property
    def round(self) -> int:
        """The round of the last contribution."""
        return int(self._mark("round"))

    @property
    def private(self) -> Params:
        """The private parameters as the last training left them."""
        return self._params("private")

    @property
    def best(self) -> Params:
        """The private parameters of the best round; the present ones if none has been kept."""
        return self._params("kept.private" if "kept.private" in self.context.state else "private")

    def own(self, best: bool = False) -> Own:
        """Return what the client keeps beside its private parameters after the last training or the best round."""
        state, kept = self.context.state, "kept.personal"
        personal = kept if best and kept in state else "personal"
        return Own(*(self._params(name) if name in state else None for name in (personal, "control", "weighting")))

    @property
    def link(self) -> Link:
        """The client's tie: its dual, what the server holds of it, and the rho of the dual."""
        return Link(self._params("dual"), self._params("sent"), self._mark("rho"))

    @property
    def mu(self) -> float:
        """The multiplier of the client's budget."""
        return self._mark("mu")

    @property
    def limits(self) -> list[float]:
        """The client's budget b_i for every round, once it is known."""
        found = self.context.state.metric_records.get("limits")
        return [] if found is None else list(cast(list[float], found["b"]))

    @limits.setter
    def limits(self, values: list[float]) -> None:
        self.context.state["limits"] = MetricRecord({"b": values})

    def _params(self, name: str) -> Params:
        # Not through `array_records`, which sorts through the whole state at every access.
        record = self.context.state[name]
        if not isinstance(record, ArrayRecord):
            raise KeyError(name)
        return unpack(record)

    def _mark(self, name: str) -> float:
        value = cast(MetricRecord, self.context.state["mark"])[name]
        assert isinstance(value, int | float)
        return float(value)

    def _write(self, number: int, private: Params, link: Link | None, own: Own, mu: float = 0.0) -> None:
        self.context.state["private"] = pack(private)
        self.context.state["mark"] = MetricRecord({"round": number, "rho": link.rho if link else 0.0, "mu": mu})
        if link is not None:
            self.context.state["dual"] = pack(link.dual)
            self.context.state["sent"] = pack(link.sent)
        if own.personal is not None:
            self.context.state["personal"] = pack(own.personal)
        if own.control is not None:
            self.context.state["control"] = pack(own.control)
        if own.weighting is not None:
            self.context.state["weighting"] = pack(own.weighting)
