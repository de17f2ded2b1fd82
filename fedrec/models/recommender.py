"""Recommenders as pure functions of named parameters: tables, a shared body, one private head per task."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedrec.data.types import Floats, Keys
from fedrec.models.bodies import BODIES, initial, product, quotient
from fedrec.models.content import adapter, described, first_adapter
from fedrec.models.layers import layers, linear, mlp, ordered
from fedrec.models.sequences import UserSequence
from fedrec.models.side import Side
from fedrec.models.tables import table_rows
from fedrec.models.transfer import chain, excess
from fedrec.params import Params
from fedrec.rng import generator

KINDS = ("mf", "mlp", "item", *BODIES)
ITEMS = ("item_table", "item_bias")
PAIRS = 16_384  # (user, item) pairs of a multi-task body scored at a time, to bound memory


@dataclass(frozen=True)
class Recommender:
    """Matrix factorisation, an MLP over user and item tables, or an item table alone, with a linear head per task.

    mf:   h(u, i) = [p_u * q_i, b_u, b_i]   (the body is the product; it has no parameters; no b_u with a `sequence`)
    mlp:  h(u, i) = MLP([p_u, q_i]), ReLU between layers of the widths `hidden`
    item: h(u, i) = q_i, so that a client's head is its users' common taste (arXiv 2301.08143)
    score_t(u, i) = w_t . h(u, i) + c_t

    Any other kind is a multi-task body of `fedrec.models.bodies` over [p_u, q_i]: its h is one representation h_t(u, i)
    for each task, side by side, and the task's tower, of the last width of `hidden`, stands before its head.

    score_t(u, i) = w_t . tower_t(h_t(u, i)) + c_t
    esmm: the score of `buy` is the logit of P(click) P(buy | click), the two towers' factors (arXiv 1804.07931)

    A score is made in three stages: p_u (`users`), q_i (`items`, or `catalogue` for all of them), and the body over
    both (`features`). `side` is what the first two read beside the parameters: with content c_i there, every table of
    items has an adapter A, q_i = E_i + A c_i (`fedrec.models.content`), and so has mf's b_i.

    What is public of items is told by a linear head on q_i alone, `attributes.TASK`; the mapping `attributes` has the
    names of these tasks and the biases [C] that their heads start with. The head of a task in `classes` has so many
    scores, W_t h(u, i) + c_t.

    p_u is the user's row of a table, or what a `sequence` encoder makes of the q_i of the user's history
    (`fedrec.models.sequences`), and then no parameter is of a user.

    The tables start with the standard deviation `std`. `experts` is how many mmoe has; ple has as many shared ones, and
    as many of each task; task-embedding has as many networks in its basis. `calibration` weighs the calibrator of aitm.
    """

    kind: str  # one of KINDS
    dim: int
    hidden: tuple[int, ...] = (64, 32)
    std: float = 0.1
    experts: int = 4
    calibration: float = 0.6
    sequence: UserSequence = field(default=UserSequence())
    side: Side = field(default=Side(), compare=False, repr=False)
    attributes: Mapping[str, Floats] = field(default_factory=dict, compare=False, repr=False)
    classes: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def shapes(self, users: int, items: int, tasks: Iterable[str]) -> Params:
        """Return tensors without data (on the meta device) that have the names, shapes and dtypes of the parameters."""
        rows = {"user": users, "item": items}
        sizes: dict[str, tuple[int, ...]] = {n: (rows[space], self._wide(n)) for n, space in self.tables.items()}
        widths, tasks = (2 * self.dim, *self.hidden), sorted(set(tasks) - self.attributes.keys())
        if self.kind == "mlp":
            sizes |= layers("body", widths)
        elif self.kind in BODIES:
            sizes |= BODIES[self.kind].sizes(2 * self.dim, self.hidden, self.experts, tasks)
        if self.side.content is not None:
            d = self.side.content.shape[1]
            sizes |= {adapter(table): (sizes[table][1], d) for table in ITEMS if table in sizes}
        if self.side.encoder is not None:
            sizes |= self.side.encoder.lora.sizes()
        sizes |= self.sequence.sizes(self.dim)
        head = {"mf": self.dim + (2 if self.tabled else 1), "item": self.dim}.get(self.kind, widths[-1])
        for task in tasks:
            several = (self.classes[task],) if task in self.classes else ()
            sizes |= {f"heads.{task}.weight": (*several, head), f"heads.{task}.bias": several or (1,)}
        for task, bias in self.attributes.items():
            sizes |= {f"attributes.{task}.weight": (len(bias), self.dim), f"attributes.{task}.bias": (len(bias),)}
        return {name: torch.empty(sizes[name], device="meta") for name in sorted(sizes)}

    def init(self, seed: int, users: Keys, items: Keys, offsets: Mapping[str, float | Floats]) -> Params:
        """Return initial parameters for users and items by key; `offsets` gives the bias of every task's head.

        A row starts by the text of its key (`fedrec.models.tables`). Heads of attributes start with weights of 0.
        """
        like, encoder = self.shapes(len(users), len(items), offsets), self.side.encoder
        start = self.sequence.init(seed, self.dim) | ({} if encoder is None else encoder.lora.start(seed))
        keys = {"user": users, "item": items}
        for name in [name for name in like if name not in start and not name.startswith("heads.")]:
            start[name] = self._start(seed, name, tuple(like[name].shape), keys, len(offsets))
        for task, offset in offsets.items():
            start |= self._init_head(task, self._drawn_head(seed, task, like[f"heads.{task}.weight"].shape[-1]), offset)
        if self.kind == "esmm":  # the head is of P(buy | click), the offset of P(buy)
            start["heads.buy.bias"] = torch.tensor([quotient(float(offsets["buy"]), float(offsets["click"]))])
        return {name: start[name].to(value.dtype) for name, value in like.items()}

    def _start(self, seed: int, name: str, size: tuple[int, ...], keys: Mapping[str, Keys], tasks: int) -> Tensor:
        """Return a parameter's start: vectors are drawn, biases are 0; with content items are 0, and A is drawn."""
        first, _, rest = name.partition(".")
        if first not in (*self.tables, "adapter", "attributes"):
            return initial(seed, name, size, tasks)
        array = np.zeros(size, np.float32)
        if name == "user_table" or (name == "item_table" and self.side.content is None):
            array = table_rows(seed, name, keys[self.tables[name]], self.dim, self.std)
        elif name == adapter("item_table"):
            array = first_adapter(seed, "item_table", size[0], size[1], self.std)
        elif first == "attributes" and rest.endswith(".bias"):
            array = self.attributes[rest.removesuffix(".bias")].copy()
        return torch.from_numpy(array)

    def _drawn_head(self, seed: int, task: str, width: int) -> Floats:
        """Return the weights [width] that a head starts with; those of a multi-task body depend on the task alone."""
        if self.kind == "mf":
            return np.ones(width, np.float32)
        rng, std = generator(seed, "init", *(("heads", task) if self.kind in BODIES else ("head",))), width**-0.5
        drawn = rng.uniform(-std, std, width) if self.kind == "item" else rng.normal(0, std, width)
        return drawn.astype(np.float32)

    def _init_head(self, task: str, head: Floats, offset: float | Floats) -> Params:
        """Return the initial parameters of a task's head; several scores start with the same weights [width]."""
        count = self.classes.get(task, 0)
        bias = np.broadcast_to(np.asarray(offset, np.float32), (count or 1,))
        both = {"weight": np.tile(head, (count, 1)) if count else head.copy(), "bias": bias.copy()}
        return {f"heads.{task}.{name}": torch.from_numpy(array) for name, array in both.items()}

    @property
    def gathers(self) -> bool:
        """Whether it reads the rows of tables that a batch names, and no others."""
        return self.side.encoder is None

    @property
    def tabled(self) -> bool:
        """Whether every user has a row of a table."""
        return self.kind != "item" and not self.sequence.active

    @property
    def tables(self) -> Mapping[str, str]:
        """The parameters that have a row for each user or item; all others are dense."""
        kinds = ("table", "bias") if self.kind == "mf" else ("table",)
        return {f"{space}_{kind}": space for kind in kinds for space in ("user", "item")[not self.tabled :]}

    def users(self, params: Params, user: Tensor, history: Tensor | None = None) -> Tensor:
        """Return p_u [B, dim] for local rows `user` [B]; each liked `history` [B, L] before, or what its side says."""
        if not self.sequence.active:
            return params["user_table"].index_select(0, user)
        if history is None:
            assert self.side.history is not None, "a history must be bound (fedrec.experiment.holdings.reader)"
            history = self.side.history.index_select(0, user.to(self.side.history.device)).to(user.device)
        q = self.items(params, history.clamp(min=0).flatten())
        return self.sequence.encode(params, q.view(*history.shape, self.dim), history >= 0)

    def items(self, params: Params, item: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return q_i [B, dim] for local rows `item` [B]; where `keep` [B] is 0, without what is known by id alone."""
        return self._rows(params, "item_table", item, keep)

    def catalogue(self, params: Params) -> Tensor:
        """Return q_i [items, dim] of the whole catalogue."""
        return self._rows(params, "item_table")

    def features(
        self, params: Params, user: Tensor, item: Tensor, p: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Return h [B, width] for local row indices `user` [B] and `item` [B]; `p` [B, dim] is p_u if it is known."""
        q = self.items(params, item, keep)
        if self.kind == "item":
            return q
        p = self.users(params, user) if p is None else p
        if self.kind == "mf":
            b_u = [params["user_bias"].index_select(0, user)] if self.tabled else []
            return torch.cat([p * q, *b_u, self._rows(params, "item_bias", item, keep)], dim=1)
        if self.kind in BODIES:
            return self._represent(params, torch.cat([p, q], dim=1), ordered(params)).flatten(1)
        return mlp(params, "body", torch.cat([p, q], dim=1))

    def head(self, params: Params, task: str, features: Tensor) -> Tensor:
        """Return the scores [B] of a task's head for features [B, width]; [B, C] of a task in `classes`."""
        if self.kind not in BODIES:
            return self._read(params, task, features)
        tasks = ordered(params)
        return self._score(
            params, task, tasks, features.view(len(features), len(tasks), features.shape[1] // len(tasks))
        )

    def attribute(self, params: Params, task: str, item: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return what a head of `attributes` says [B, C] of local items [B]: logits, or a number; `keep` as `items`."""
        return linear(params, f"attributes.{task}", self.items(params, item, keep))

    def score_all(self, params: Params, task: str, user: Tensor) -> Tensor:
        """Return the scores [B, items] of every item of the catalogue for users [B]."""
        q = self.catalogue(params)
        if self.kind == "item":
            return self.head(params, task, q).expand(len(user), -1)
        p = self.users(params, user)
        if self.kind == "mf":
            w, c = params[f"heads.{task}.weight"], params[f"heads.{task}.bias"]
            b_i = self._rows(params, "item_bias")
            if not self.tabled:
                return (p * w[:-1]) @ q.T + w[-1] * b_i.T + c
            b_u = params["user_bias"].index_select(0, user)
            return (p * w[:-2]) @ q.T + w[-2] * b_u + w[-1] * b_i.T + c
        if self.kind in BODIES:
            needed = ["buy", "click"] if self.kind == "esmm" and task == "buy" else [task]
            scores = []
            for part in torch.split(p, max(1, PAIRS // max(len(q), 1))):
                x = torch.cat([part.repeat_interleave(len(q), 0), q.repeat(len(part), 1)], dim=1)
                scores.append(self._score(params, task, needed, self._represent(params, x, needed)))
            return torch.cat(scores).view(len(p), len(q)) if len(p) else p.new_zeros((0, len(q)))
        weight, bias = params["body.0.weight"], params["body.0.bias"]
        left, right = p @ weight[:, : self.dim].T, q @ weight[:, self.dim :].T + bias
        found = [p.new_zeros(0)]
        for part in torch.split(left, max(1, PAIRS // max(len(q), 1))):
            h = F.relu(part[:, None] + right).flatten(0, 1)
            found.append(self.head(params, task, mlp(params, "body", h, first=1)))
        return torch.cat(found).view(len(p), len(q))

    def penalty(self, params: Params, user: Tensor, item: Tensor) -> Tensor:
        """Return |p_u|^2 + |q_i|^2 (and the biases' squares) [B]: the L2 penalty of the rows that a batch touches."""
        row = {"user": user, "item": item}
        read = [params[name].index_select(0, row[space]) for name, space in self.tables.items()]
        return torch.stack([rows.flatten(1).square().sum(1) for rows in read]).sum(0)

    @property
    def calibrated(self) -> bool:
        """Whether training has a term for what is expected along a chain of behaviours, beside the tasks' losses."""
        return self.kind == "aitm" and self.calibration > 0

    def calibrator(self, params: Params, features: Tensor) -> Tensor:
        """Return what later behaviours exceed earlier ones by [B], for features [B, width].

        Behavioural expectation calibrator (arXiv 2105.08489, sec. 3), for parameters of two or more such tasks.
        """
        return excess([self.head(params, task, features) for task in chain(ordered(params))])

    def _rows(self, params: Params, table: str, item: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Return the rows of a table of items, all or [B], with what their content says."""
        content = self.side.read(params, item).content
        if content is not None:
            return described(params, table, content, item, keep)
        return params[table] if item is None else params[table].index_select(0, item)

    def _wide(self, table: str) -> int:
        """Return how wide the rows of a table are."""
        return self.dim if table.endswith("_table") else 1

    def read(self, params: Params, *items: Tensor | None) -> "Recommender":
        """Return the model that has read the content of some items, or of all: to score them reads nothing anew."""
        return self if self.side.encoder is None else replace(self, side=self.side.read(params, *items))

    def _read(self, params: Params, task: str, h: Tensor) -> Tensor:
        weight, bias = params[f"heads.{task}.weight"], params[f"heads.{task}.bias"]
        return h @ (weight.T if task in self.classes else weight) + bias

    def _represent(self, params: Params, x: Tensor, tasks: list[str]) -> Tensor:
        """Return h_t [B, tasks, width] of some tasks for x = [p_u, q_i]."""
        return torch.stack(BODIES[self.kind].represent(params, x, tasks), 1)

    def _score(self, params: Params, task: str, tasks: list[str], h: Tensor) -> Tensor:
        """Return the scores [B] or [B, C] of a task, one of `tasks`, for their h [B, tasks, width]."""

        def tower(t: str) -> Tensor:
            return self._read(params, t, mlp(params, f"towers.{t}", h[:, tasks.index(t)]))

        return product(tower("click"), tower("buy")) if self.kind == "esmm" and task == "buy" else tower(task)
