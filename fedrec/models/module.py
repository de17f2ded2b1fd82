"""Recommenders of a user's own: any torch module that makes h(u, i) of users and items, with our heads behind it."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedrec.data.types import Floats, Keys
from fedrec.errors import UserError
from fedrec.models.recommender import PAIRS, Recommender
from fedrec.models.tables import table_rows
from fedrec.params import Params
from fedrec.rng import derive, generator

RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)


class Meta(NamedTuple):
    """What a network is made for: the numbers of users and items whose rows its tables have."""

    users: int
    items: int


@dataclass(frozen=True)
class Module:
    """A recommender of one's own: subclass it as a frozen dataclass, with fields for what may be chosen.

    `network(meta)` returns a torch module whose forward takes local users [B] and items [B] (int64) and returns h [B,
    width]; for each task a private head w . h + c stands behind it. `tables` says which of its parameters are tables
    with a row for each user or item: {"user.weight": "user"}. All others are dense and must have shapes that depend on
    no number of users or items. In the sharing contract a table NAME of items is `item_table.NAME`, one of users
    `user_table.NAME`, and a dense parameter `body.NAME`.

    Rows of tables start as N(0, std^2) and are functions of the seed and the row's key; dense parameters start as the
    module starts them, from a generator of their own. A module may have no buffers and draw nothing (no dropout), and
    may read nothing but users and items: no content, no sequence, no tasks about items.
    """

    tables: ClassVar[Mapping[str, str]] = {}
    std: float = 0.1

    def network(self, meta: Meta) -> nn.Module:
        """Return the module for a number of users and items."""
        raise NotImplementedError


@dataclass(frozen=True)
class ModuleRecommender(Recommender):
    """The recommender that a `Module` makes."""

    module: Module = field(default=Module(), kw_only=True)

    def shapes(self, users: int, items: int, tasks: Iterable[str]) -> Params:
        """See Recommender."""
        like = {
            self._named(name): torch.empty(value.shape, device="meta")
            for name, value in skeleton(self.module, users, items).named_parameters()
        }
        width = width_of(self.module)
        for task in tasks:
            several = (self.classes[task],) if task in self.classes else ()
            like[f"heads.{task}.weight"] = torch.empty((*several, width), device="meta")
            like[f"heads.{task}.bias"] = torch.empty(several or (1,), device="meta")
        return {name: like[name] for name in sorted(like)}

    def init(self, seed: int, users: Keys, items: Keys, offsets: Mapping[str, float | Floats]) -> Params:
        """See Recommender."""
        width, keys = width_of(self.module), {"user": users, "item": items}
        params: Params = {}
        for name, value in start_params(self.module, seed).items():
            space = self.module.tables.get(name)
            if space is None:
                params[self._named(name)] = value.clone()
                continue
            wide = value.shape[1:].numel()
            rows = table_rows(seed, self._named(name), keys[space], wide, self.module.std)
            params[self._named(name)] = torch.from_numpy(rows).view(len(rows), *value.shape[1:])
        for task, offset in offsets.items():
            head = np.full(width, width**-0.5, np.float32)
            if any(name.startswith("body.") for name in params):
                head = generator(seed, "init", "head").normal(0, width**-0.5, width).astype(np.float32)
            params |= self._init_head(task, head, offset)
        return {name: params[name] for name in sorted(params)}

    @property
    def gathers(self) -> bool:
        """See Recommender; nobody knows what a module reads."""
        return False

    @property
    def tabled(self) -> bool:
        """See Recommender."""
        return "user" in self.module.tables.values()

    @property
    def tables(self) -> Mapping[str, str]:
        """See Recommender."""
        return {self._named(name): space for name, space in self.module.tables.items()}

    def features(
        self, params: Params, user: Tensor, item: Tensor, p: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """See Recommender."""
        network = skeleton(self.module, *self._sizes(params))
        given = {name: params[self._named(name)] for name, _ in network.named_parameters()}
        h: Tensor = functional_call(network, given, (user, item))
        return h

    def head(self, params: Params, task: str, features: Tensor) -> Tensor:
        """See Recommender."""
        return self._read(params, task, features)

    def score_all(self, params: Params, task: str, user: Tensor) -> Tensor:
        """See Recommender."""
        count = self._sizes(params)[1]
        items = torch.arange(count, device=user.device)
        scores = []
        for part in torch.split(user, max(1, PAIRS // max(count, 1))):
            h = self.features(params, part.repeat_interleave(count), items.repeat(len(part)))
            scores.append(self.head(params, task, h).view(len(part), count))
        return torch.cat(scores) if scores else torch.zeros((0, count), device=user.device)

    def _named(self, name: str) -> str:
        """Return what the sharing contract calls a parameter of the network."""
        return f"{self.module.tables[name]}_table.{name}" if name in self.module.tables else f"body.{name}"

    def _sizes(self, params: Params) -> tuple[int, int]:
        """Return the numbers of users and items that parameters have rows for; 1 where no table tells."""
        sizes = {space: len(params[name]) for name, space in self.tables.items()}
        return sizes.get("user", 1), sizes.get("item", 1)


@functools.lru_cache(maxsize=256)
def skeleton(module: Module, users: int, items: int) -> nn.Module:
    """Return the network for so many users and items, without numbers (on the meta device), checked."""
    with torch.device("meta"):
        network = module.network(Meta(users, items)).eval()
    check(module, network, users, items)
    return network


def check(module: Module, network: nn.Module, users: int, items: int) -> None:
    """Raise UserError for a network that no recommender can be made of."""
    name, shapes = type(module).__qualname__, {key: value.shape for key, value in network.named_parameters()}
    buffers = [key for key, _ in network.named_buffers()]
    if buffers:
        raise UserError(f"model: {name} must have no buffers, which are neither trained nor shared, found {buffers[0]}")
    random = [type(layer).__name__ for layer in network.modules() if isinstance(layer, RANDOM)]
    if random:
        raise UserError(f"model: {name} must draw nothing while it is trained, found {random[0]}")
    if "item" not in module.tables.values():
        raise UserError(f"model: {name}.tables must name a table of items, found {dict(module.tables)}")
    for key, space in module.tables.items():
        rows = {"user": users, "item": items}.get(space)
        if rows is None:
            raise UserError(f"model: {name}.tables must say user or item, found {space!r} for {key}")
        if key not in shapes:
            raise UserError(f"model: {name}.tables must name parameters, found {key!r} beside {', '.join(shapes)}")
        if len(shapes[key]) < 2 or shapes[key][0] != rows:
            raise UserError(f"model: {name}: {key} must have a row for each {space}, found {list(shapes[key])}")


@functools.lru_cache(maxsize=64)
def start_params(module: Module, seed: int) -> Params:
    """Return the parameters that a module of one user and one item starts with: dense ones are drawn by the seed."""
    skeleton(module, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "init", "module"))
        network = module.network(Meta(1, 1))
    return {name: value.detach() for name, value in network.named_parameters()}


@functools.lru_cache(maxsize=64)
def width_of(module: Module) -> int:
    """Return the width of h; raises UserError if it is no matrix [B, width] of numbers."""
    ids = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        h = module.network(Meta(1, 1)).eval()(ids, ids)
    if not isinstance(h, Tensor) or h.dim() != 2 or len(h) != 2 or not h.is_floating_point():
        kind = list(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise UserError(f"model: {type(module).__qualname__} must return h [B, width] for 2 rows, found {kind}")
    return int(h.shape[1])
