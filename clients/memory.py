"""A client's private memory: what stays in Flower's Context.state from round to round, and never in a message."""

from dataclasses import dataclass

from flwr.app import Context, MetricRecord

from fedrec.parameters import Params
from fedrec.wire import pack, unpack


@dataclass
class Memory:
    """A view of one client's state; nothing here leaves the client."""

    context: Context

    @property
    def private(self) -> Params:
        """The private parameters as the last training left them."""
        return unpack(self.context.state.array_records["private"])

    @private.setter
    def private(self, params: Params) -> None:
        self.context.state["private"] = pack(params)

    def keep(self) -> None:
        """Remember the private parameters as those of the best round; the state evaluated last is the best so far."""
        self.context.state["kept"] = self.context.state.array_records["private"]

    def trained(self, params: Params) -> None:
        """Remember what a training left; it has not been evaluated yet."""
        self.private = params
        self.context.state.pop("progress", None)

    def evaluated(self, number: int) -> None:
        """Remember that the present private parameters were evaluated in a round."""
        self.context.state["progress"] = MetricRecord({"round": number})

    def at(self, number: int) -> Params:
        """Return the private parameters of a round: the one evaluated last, or else the best."""
        progress = self.context.state.metric_records.get("progress", MetricRecord())
        current = progress.get("round") == number or "kept" not in self.context.state.array_records
        return self.private if current else unpack(self.context.state.array_records["kept"])
