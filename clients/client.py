"""One client as its own configuration describes it: what it shares, how it trains, how it measures."""

import logging
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from secrets import token_hex

import torch

from clients.drift import follow, lockstep
from clients.newcomer import fitted
from clients.private import books, protected
from fedrec.channel import Channel, Mapped, channel_of, whatever_the_batch
from fedrec.coordination import Link, Own
from fedrec.data import ClientData
from fedrec.errors import UserError
from fedrec.evaluation import Evaluation, Split, evaluate, held_out, members
from fedrec.experiment import Experiment
from fedrec.folding import folded
from fedrec.holdings import reader, tasks_for
from fedrec.models import Recommender
from fedrec.parameters import Params, finite, to
from fedrec.privacy.differential import private_update
from fedrec.privacy.secret import digest
from fedrec.scorers import ModelScorer
from fedrec.seeds import generator
from fedrec.sharing import Broadcast, ContractError, admit, admit_round
from fedrec.tasks import Task
from fedrec.training import Beside, local_update
from fedrec.weighting import Weigher


@dataclass(frozen=True)
class Client:
    """One client as its own configuration describes it."""

    experiment: Experiment
    data: ClientData
    device: str
    home: Path | None  # where it keeps its private files at the end

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of this client."""
        return tasks_for(self.experiment, self.data)

    @cached_property
    def model(self) -> Recommender:
        """The recommender of this client."""
        return reader(self.experiment, self.data, "train")

    @cached_property
    def channel(self) -> Channel:
        """What this client exchanges, and how."""
        return channel_of(self.experiment, self.data)

    @property
    def newcomer(self) -> bool:
        """Whether it joins later, to be taught alone."""
        return self.data.name in self.experiment.arrivals

    @cached_property
    def setting(self) -> tuple[str, ...]:
        """All that decides a round beside its inputs: noise may be made again only where nothing differs.

        The same sums are the same to the bit on one kind of processor and under one version alone.
        """
        arithmetic = (torch.__version__, torch.backends.cpu.get_cpu_capability())
        return self.experiment.model_dump_json(), self.device, *arithmetic

    @property
    def noisy(self) -> bool:
        """Whether it adds the noise that lets its own answers leave."""
        return self.experiment.privacy.active and not self.experiment.privacy.trusting

    def start(self) -> Params:
        """Return its initial parameters."""
        private = self.experiment.silent  # the mean of a client's ratings is about its users
        tasks = [task for task in self.tasks if not task.attribute]
        offsets = {task.name: task.prior if private else task.start(self.data.train) for task in tasks}
        return self.model.init(self.experiment.seed, self.data.users, self.data.items, offsets)

    def first(self) -> tuple[Params, Params]:
        """Return (shared, private) as it joins; whoever agrees on logits trains alone first, as in FedMD."""
        start = self.start()  # nobody knows anything yet, and standardised noise is as loud as knowledge
        if self.newcomer or not self.experiment.agreement.active:
            return self.channel.split(start)
        return self.channel.split(self.update(start, 0, {}, 0.0, weigher=self.weigher())[0])

    def weigher(self, state: Params | None = None) -> Weigher | None:
        """Return its loss weighting in a state, else in the first one; None with fixed weights."""
        rule = self.experiment.weighting
        start = state or rule.start(len(self.tasks))
        return Weigher(rule, self.experiment.recipe().optimiser, start) if rule.active else None

    def shared_like(self) -> Params:
        """Return the names, shapes and dtypes of what it shares, without data."""
        names = [task.name for task in self.tasks]
        shapes = self.model.shapes(len(self.data.users), len(self.data.items), names)
        return self.channel.split(shapes)[0]

    def receive(self, broadcast: Broadcast) -> Broadcast:
        """Return the server's message, admitted against this client's own contract."""
        admit_round(broadcast.round, self.experiment.rounds)
        if self.newcomer:
            return fitted(self, broadcast)
        if broadcast.rows:
            raise ContractError(f"record rows: must not be sent but to newcomers, found {', '.join(broadcast.rows)}")
        if self.experiment.coupling.balance and not 0 < broadcast.rho < math.inf:
            raise ContractError(f"rho: must be above 0 and finite where it adapts, found {broadcast.rho}")
        like, c = self.shared_like(), broadcast.control
        return replace(broadcast, values=admit(broadcast.values, like), control=None if c is None else admit(c, like))

    def link(self, shared: Params) -> Link | None:
        """Return the link of a client that joins with its shared parameters; None without duals."""
        return Link.start(shared, self.experiment.coupling.rho) if self.experiment.coupling.duals else None

    def train(
        self, broadcast: Broadcast, private: Params, anchor: Params, rho: float, own: Own, price: float = 0.0
    ) -> tuple[Params, Params, float, Own]:
        """Return (shared, private, loss, own) after the local training of a round; raises UserError if it diverged.

        It starts from the broadcast and minimises (1 + price) f_i + rho/2 |x_i - anchor|^2.
        """
        number = broadcast.round
        start = self.channel.join(broadcast.values, private)
        apfl, shift, weigher = lockstep(self, own), own.shift(broadcast.control), self.weigher(own.weighting)
        if self.experiment.privacy.inside:
            params, loss = self.released(start, number, anchor, rho, shift)
        else:
            beside = apfl.step if apfl else None
            params, loss = self.update(start, number, anchor, rho, beside, shift, price, weigher)
        if weigher:
            own = replace(own, weighting=self.finite(weigher.state, number, own.weighting) or None)
        shared, private = self.channel.split(self.experiment.lora.folded(params))
        own = follow(self, broadcast, shared, own, apfl)
        return protected(self, number, shared, broadcast.values), private, loss, own

    def update(
        self,
        start: Params,
        number: int,
        anchor: Params,
        mu: float,
        beside: Beside | None = None,
        shift: Params | None = None,
        price: float = 0.0,
        weigher: Weigher | None = None,
    ) -> tuple[Params, float]:
        """Return the parameters after the local training of a round, and the loss; raises UserError if it diverged."""
        e, anchor = self.experiment, to(anchor, self.device)
        pull = None
        if mu and isinstance(self.channel, Mapped):
            tie = self.channel.pull(anchor, mu, generator(e.seed, "pull", self.data.name, number))
            pull = whatever_the_batch(tie)
        params, loss = local_update(
            self.model,
            to(start, self.device),
            self.data,
            self.tasks,
            replace(e.recipe(), mu=0.0 if pull else mu),
            e.sharing(),
            seed=e.seed,
            scope=(self.data.name, number),
            anchor=None if pull else anchor,
            weight=1.0 + price,
            beside=beside,
            shift=shift and to(shift, self.device),
            pull=pull,
            weigher=weigher,
        )
        return self.finite(to(params, "cpu"), number, start), loss

    def released(
        self, start: Params, number: int, anchor: Params, mu: float, shift: Params | None
    ) -> tuple[Params, float]:
        """Return what `update` does, trained with the noise that lets the shared parameters leave.

        Raises OverBudget, before any training, if the round would exceed what was promised.
        """
        e, own = self.experiment, books(self)
        assert own is not None
        data = (self.data.train, self.data.validation, self.data.test)
        # An accelerator never sums twice alike: what it makes again is another answer, and has noise of its own.
        again = "" if self.device == "cpu" else token_hex()
        source = own.open(number, digest(*self.setting, again, number, start, anchor, f"{mu!r}", shift or {}, *data))
        params, loss = private_update(
            self.model,
            to(start, self.device),
            self.data,
            self.tasks,
            replace(e.recipe(), mu=mu),
            e.sharing(),
            own.guarantee.mechanism,
            source,
            seed=e.seed,
            scope=(self.data.name, number),
            anchor=to(anchor, self.device),
            shift=shift and to(shift, self.device),
        )
        params = to(params, "cpu")
        released = own.guarantee.mechanism.noisy(list(params), e.sharing())
        kept = self.finite({n: v for n, v in params.items() if n not in released}, number, start)
        return {**params, **kept, **self.finite({n: params[n] for n in released}, number)}, loss

    def finite(self, params: Params, number: int, before: Params | None = None) -> Params:
        """Return the parameters; raises UserError if training diverged.

        Where the client adds the noise, a refusal would tell of its data without any: of what is made of them without
        noise, that which diverged is as `before`, and only its own log says so.
        """
        lost = [name for name, value in params.items() if not finite(value)]
        text = f"lr: must be small enough for finite parameters, found {self.experiment.lr} in round {number}"
        if lost and (before is None or not self.noisy):
            raise UserError(text)
        if lost:
            logging.getLogger(__name__).warning("%s: %s is as before", text, ", ".join(lost))
        return {name: before[name] if before and name in lost else value for name, value in params.items()}

    def evaluate(self, shared: Params, private: Params, split: Split) -> Evaluation:
        """Return the metrics of this client's model, or of every member's if it is a pooled one."""
        e, params = self.experiment, to(self.experiment.sharing().join(shared, private), self.device)
        found = [
            evaluate(
                ModelScorer(reader(e, data, split), folded(e, part, data, split, held_out(data, split).user)),
                data,
                e.tasks(data.name),
                split,
                metrics=e.metrics,
                candidates=e.candidates,
                seed=e.seed,
            )
            for data, part in members(self.data, params)
        ]
        return Evaluation(
            {key: value for one in found for key, value in one.metrics.items()},
            tuple(part for one in found for part in one.per_user),
        )
