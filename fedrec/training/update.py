"""Local training: the one loop, over steps of k >= 1 clients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedrec.data.types import Floats, Ints
from fedrec.keyed import TABLES
from fedrec.models import Recommender
from fedrec.params import Params, mix
from fedrec.rng import Streams, derive, generator, streams
from fedrec.sharing import Sharing
from fedrec.training.cohort import Cohort
from fedrec.training.draws import Ahead, Drawn, draw
from fedrec.training.gradients import At, by_whole_tables, first, gradients
from fedrec.training.kernels import handwritten
from fedrec.training.learner import Learner
from fedrec.training.losses import penalties, scores, task_losses, total, trainable
from fedrec.training.optimisers import Optimiser
from fedrec.training.recipe import Batch, Recipe, Reference, term
from fedrec.training.rows import Touched
from fedrec.training.stacks import NOTHING, Part, Stack, Terms
from fedrec.training.step import Grid, Past, Schedule, Step
from fedrec.training.transforms import Transform, chain

Scope = tuple[str | int, ...]

CELLS = 2**14  # rows in a step of a chunk
PADDING = 2**11  # cells of a step that may be empty
ROWS = 2**17  # stacked rows of a chunk
DRAWS = 2**23  # items that a chunk draws in all epochs and phases, before it trains: 40 bytes each


def train(
    cohort: Cohort,
    shared: Stack,
    private: Stack,
    recipe: Recipe,
    sharing: Sharing,
    *,
    seed: int,
    chosen: Ints,
    scopes: Sequence[Scope],
    terms: Terms = NOTHING,
    chunk: int | None = None,
) -> Iterator[Part]:
    """Yield what a round of training makes of the clients `chosen` (ascending positions in the cohort), in chunks.

    `scopes[j]` is the scope of client `chosen[j]`. Only the rows that a client's batches name are stacked, unless its
    others move too: under a shift, a pull to an anchor that is not the start, or a transform of the user's own. Clients
    without a row to train on are left out. `chunk` bounds the clients of a part, beside the bounds on the rows of a
    step and of a chunk's tables; with terms of the user's own, and with weights that pace it, each is alone.
    """
    size = cohort.sizes[chosen]
    pulled = recipe.mu and terms.anchor and terms.anchor is not shared
    moving = bool(terms.shift or pulled or terms.tie or recipe.transforms)
    sampled = recipe.num_negatives if cohort.taken else 0
    cells = np.minimum(size, recipe.batch_size) * (1 + sampled)
    items = np.diff(cohort.starts["item"])[chosen]
    rows = items if moving else np.minimum(items, size * recipe.epochs * (1 + sampled * len(recipe.phases)))
    draws = size * recipe.epochs * len(recipe.phases) * (1 + sampled)
    chunk = 1 if recipe.objective or terms.paced else chunk

    def seeds(number: int) -> Callable[[int], list[int]]:
        return lambda j: [derive(seed, "train", *scopes[j], number, epoch) for epoch in range(recipe.epochs)]

    ahead = [Ahead(cohort, chosen[size > 0], recipe, seeds(number)) for number in range(len(recipe.phases))]
    for start, stop in pairwise(cuts(cells[size > 0], rows[size > 0], draws[size > 0], chunk)):
        part = slice(start, stop)
        weight = None if terms.weight is None else terms.weight[part]
        group = Chunk(cohort, chosen[part], shared, private, recipe, sharing, moving, terms, weight)
        yield group.train(seed, scopes[part], [phase.of(start, stop) for phase in ahead])


def cuts(cells: Ints, rows: Ints, draws: Ints, chunk: int | None) -> list[int]:
    """Return the positions between chunks of clients: 0, ..., n.

    Given are every client's cells of a step, rows of its tables, and items that it draws.
    """
    ends, width, height, held, drawn = [0], 0, 0, 0, 0
    for position, (cell, row, pick) in enumerate(zip(cells.tolist(), rows.tolist(), draws.tolist(), strict=True)):
        count = position - ends[-1]
        width, height, held, drawn = max(width, cell), height + row, held + cell, drawn + pick
        total = (count + 1) * width
        wide = total > CELLS or total - held > PADDING
        if count and (wide or height > ROWS or drawn > DRAWS or count == chunk):
            ends.append(position)
            width, height, held, drawn = cell, row, cell, pick
    return [*ends, len(cells)] if len(cells) else [0]


@dataclass(frozen=True)
class Chunk:
    """Clients that are trained together, those with most training rows first; all have some."""

    cohort: Cohort
    clients: Ints
    shared: Stack
    private: Stack
    recipe: Recipe
    sharing: Sharing
    moving: bool  # whether untouched rows of tables move: of shared ones, or under a transform of one's own of all
    terms: Terms
    weight: Tensor | None

    def train(self, seed: int, scopes: Sequence[Scope], ahead: Sequence[tuple[Ints, Ints] | None]) -> Part:
        """Return the clients after the round; `ahead` has what they draw in every phase, where that was done."""
        cohort, recipe = self.cohort, self.recipe
        drawn = [] if self.whole else [self.draw(recipe, seed, scopes, n, ahead=each) for n, each in enumerate(ahead)]
        touched = self.touched(drawn)
        params, personal = self.params(touched), self.fixed(self.terms.personal, touched)
        loss = torch.zeros(len(self.clients), dtype=torch.float64, device=self.device)
        steps = -(-cohort.sizes[self.clients] // recipe.batch_size) * recipe.epochs
        count = 0
        for number, phase in enumerate(recipe.phases):
            names = trainable(sorted(params), cohort.tasks, self.sharing, phase, recipe.optimiser)
            moved, masks = self.terms.shift, self.terms.masks if phase == "private" else None
            names += [name for name in (moved.values if moved else {}) if name not in names]
            masked = masks.values if masks else {}
            names += [name for name in masked if name not in names and recipe.optimiser.rate(name)]
            if names:
                plans = self.plans(drawn, seed, scopes, number, touched)
                self.phase(params, personal, names, plans, touched, masks, loss)
                count += 1
        return Part(self.clients, touched, params, loss / torch.from_numpy(count * steps).to(loss.device), personal)

    @cached_property
    def model(self) -> Recommender:
        """The recommender, with what it reads of the items of the first client."""
        model = self.cohort.models[int(self.clients[0])]
        if model.side.encoder is None:
            return model
        return replace(model, side=model.side.held(self.starts[0]))

    @cached_property
    def starts(self) -> tuple[Params, Params]:
        """The parameters of the first client before the round, and their mixture with its personal ones."""
        touched = self.touched([])
        both = self.params(touched), self.fixed(self.terms.personal, touched)
        w, v = (first(p, {}, 1, alone=True) for p in both)
        return w, mix(self.terms.share, v, w)

    @cached_property
    def alone(self) -> bool:
        """Whether gradients are made by autograd on whole tables, as those of one client may be."""
        model = self.cohort.models[int(self.clients[0])]
        whole = self.terms.alone or bool(self.recipe.objective) or not handwritten(model, self.cohort.tasks)
        return len(self.clients) == 1 and whole

    @cached_property
    def whole(self) -> bool:
        """Whether one client has all rows of its tables, so that nothing is drawn before it is needed.

        One that draws as often as it has items touches most of them.
        """
        drawn = self.cohort.sizes[self.clients].sum() * self.recipe.epochs * (1 + self.recipe.num_negatives)
        return self.alone or (len(self.clients) == 1 and drawn >= len(self.cohort.datas[int(self.clients[0])].items))

    @property
    def optimiser(self) -> Optimiser:
        """The optimiser; where the terms are `paced`, a weight below 1 slows one that divides by the size of gradients.

        One above 1 does not hasten it: that learns rows by heart, and the loss that is tied is one of held-out rows.
        """
        rule = self.recipe.optimiser
        if self.weight is None or rule.kind == "sgd" or not self.terms.paced:
            return rule
        pace = min(*self.weight.tolist(), 1.0)
        return replace(rule, lr=pace * rule.lr, lrs=tuple((name, pace * lr) for name, lr in rule.lrs))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter({**self.shared.values, **self.private.values}.values())).device

    def stack(self, name: str) -> Stack:
        """Return where a parameter comes from."""
        return self.shared if name in self.shared.values else self.private

    def params(self, touched: Mapping[str, Touched]) -> Params:
        """Return the stacked parameters at the start."""
        names = sorted([*self.shared.values, *self.private.values])
        return {name: self.stack(name).take(name, self.cohort, self.clients, touched) for name in names}

    def fixed(self, stack: Stack | None, touched: Mapping[str, Touched]) -> Params:
        """Return the part of a stack that goes with the stacked rows."""
        names = sorted(stack.values) if stack else ()
        return {name: stack.take(name, self.cohort, self.clients, touched) for name in names if stack}

    def draw(
        self,
        recipe: Recipe,
        seed: int,
        scopes: Sequence[Scope],
        number: int,
        first: int = 0,
        ahead: tuple[Ints, Ints] | None = None,
    ) -> Drawn:
        """Return the batches of phase `number` from an epoch on."""

        @functools.cache  # of nobody where nothing is drawn
        def each() -> Sequence[np.random.Generator] | Streams:
            epochs = range(first, first + recipe.epochs)
            return streams([derive(seed, "train", *scope, number, epoch) for scope in scopes for epoch in epochs])

        one = recipe.epochs
        return draw(self.cohort, self.clients, recipe, lambda client, epoch: each()[client * one + epoch], ahead)

    def plans(
        self, drawn: Sequence[Drawn], seed: int, scopes: Sequence[Scope], number: int, touched: Mapping[str, Touched]
    ) -> Iterator[Schedule]:
        """Yield the steps of a phase: those of all epochs at once, or epoch by epoch where all rows are there."""
        recipe, weighers = self.recipe, [w for w in (self.terms.weigher, self.terms.second) if w]
        if not self.whole:
            yield self.schedule(drawn[number], touched, recipe.epochs)
            return
        for epoch in range(recipe.epochs):
            for weigher in weighers:
                weigher.epoch(generator(seed, "weights", *scopes[0], number, epoch), first=epoch == 0)
            sample = self.draw(replace(recipe, epochs=1), seed, scopes, number, epoch)
            yield self.schedule(sample, touched, 1)
            for weigher in weighers:
                weigher.ended()

    def touched(self, drawn: Sequence[Drawn]) -> dict[str, Touched]:
        """Return the rows that the phases name, by key space; all where untouched ones move, or nothing is drawn."""
        cohort = self.cohort
        among = {**self.shared.values, **(self.private.values if self.recipe.transforms else {})}
        whole = {TABLES[name] for name in among if name in TABLES} if self.moving else set()
        named = {
            "user": [(cohort.user[part.row], part.owner) for part in drawn[:1]],  # every epoch meets every row
            "item": [(part.item, part.owner[:, None]) for part in drawn],
        }
        if cohort.past and drawn:
            liked = cohort.past.take(drawn[0].row)
            row, column = np.nonzero(liked >= 0)
            named["item"].append((liked[row, column], drawn[0].owner[row]))
        return {
            space: Touched.of(cohort.starts[space], self.clients, None if space in whole or not drawn else pairs)
            for space, pairs in named.items()
        }

    def schedule(self, drawn: Drawn, touched: Mapping[str, Touched], epochs: int) -> Schedule:
        """Return the steps of drawn rows."""
        cohort, device, users = self.cohort, self.device, touched["user"]
        grid = Grid.of(cohort.sizes[self.clients], epochs, self.recipe.batch_size)
        alone = bool((np.diff(users.edge) == 1).all())
        at = torch.from_numpy(grid.index)

        def placed(values: Ints | Floats) -> Tensor:
            return torch.from_numpy(values).index_select(0, at).to(device)

        weights = {name: placed(weight[drawn.row]) for name, weight in cohort.weights.items()}
        scales = {n: torch.from_numpy(grid.scale(mask[drawn.row])).to(device) for n, (mask, _) in cohort.labels.items()}
        return Schedule(
            grid,
            None if alone else placed(users.find(cohort.user[drawn.row], drawn.owner)),
            placed(touched["item"].find(drawn.item, drawn.owner[:, None])),
            torch.from_numpy(grid.share).to(device),
            {
                name: (scale * weights[name] if weights else scale, placed(cohort.labels[name][1][drawn.row]))
                for name, scale in scales.items()
            },
            None if drawn.keep is None else placed(drawn.keep),
            Past.of(cohort.past, drawn, grid.index, touched["item"]) if cohort.past else None,
            weights,
        )

    def phase(
        self,
        params: Params,
        personal: Params,
        names: list[str],
        plans: Iterable[Schedule],
        touched: Mapping[str, Touched],
        masks: Stack | None,
        total: Tensor,
    ) -> None:
        """Train `names` in place, of the personal parameters too if there are any; add all losses to `total` [k].

        A client that has no batch left stands still: it and all behind it have no more steps, so that the others are
        the first rows of every tensor, all at the same step of the optimiser.
        """
        recipe, terms, content = self.recipe, self.terms, self.content(touched)
        lone = len(self.clients) == 1  # whose sums are those of a term of 0 beside them, too
        owner = {n: torch.from_numpy(touched[TABLES[n]].owner).to(self.device) for n in params if n in TABLES}
        dense = bool(lone or recipe.transforms)
        chain = self.chain(touched, recipe.mu, terms.anchor if recipe.mu else None, terms.shift, masks)
        w, v = Learner(params, names, self.optimiser, dense, chain, owner), None
        if personal:
            chain = self.chain(touched, terms.tie, terms.sent if terms.tie else None)
            v = Learner(personal, names, recipe.optimiser, dense, chain, owner)
        t, k = 0, len(self.clients)
        for schedule in plans:
            for step in schedule:
                t += 1
                if k != len(step.item):
                    k = len(step.item)
                    ends = {n: int(touched[TABLES[n]].edge[k]) if n in TABLES else k for n in params}
                    w.narrow(ends)
                    if v:
                        v.narrow(ends)
                if v:  # at the w of this step; see `fedrec.federation.personal`
                    mixed = mix(terms.share, v.view, w.view)
                    _, grads, at = self.gradients(mixed, step, names, t, content, plain=True)
                    v.step(at, {name: terms.share[name] * value for name, value in grads.items()}, t)
                loss, grads, at = self.gradients(w.view, step, names, t, content)
                total[:k] += loss
                w.step(at, grads, t)

    def chain(self, touched: Mapping[str, Touched], mu: float, *stacks: Stack | None) -> list[Transform]:
        """Return what is made of the gradients of the loss, in order: of an anchor, a shift, and masks."""
        return chain(self.recipe.transforms, mu, *(self.fixed(s, touched) for s in stacks))

    def content(self, touched: Mapping[str, Touched]) -> Tensor | None:
        """Return what the models read of the stacked rows of items, of several clients; None if that is nothing."""
        if self.alone or self.model.side.content is None:
            return None
        rows, starts = touched["item"], self.cohort.starts["item"]
        parts = []
        for place, client in enumerate(self.clients.tolist()):
            local = rows.flat[slice(*rows.edge[place : place + 2])] - starts[client]
            content = self.cohort.models[client].side.content
            assert content is not None
            parts.append(content[torch.from_numpy(local).to(content.device)].to(self.device))
        return torch.cat(parts)

    def gradients(
        self, params: Params, step: Step, names: list[str], t: int, content: Tensor | None, plain: bool = False
    ) -> tuple[Tensor, Params, At]:
        """Return what `fedrec.training.gradients` has, of what is minimised beside the proximal term and the shift.

        If `plain`, of the personal parameters, of the loss alone.
        """
        model, tasks, l2, terms = self.model, self.cohort.tasks, self.recipe.l2, self.terms
        pulls = [*map(term, self.recipe.objective)]
        reference = Reference(self.starts[plain], lambda p, batch: scores(model, p, tasks, batch)) if pulls else None
        beside = pulls if terms.pull is None or plain else [*pulls, terms.pull]
        weight = None if self.weight is None or plain else self.weight[: len(step.item)].to(self.device).float()
        if not self.alone:
            return gradients(model, params, tasks, step, l2, weight, names, content)

        def loss(view: Params, batch: Batch) -> tuple[Tensor, Tensor]:
            parts, rest = task_losses(model, view, tasks, batch), penalties(model, view, batch, l2)
            value = followed = total([*parts, *rest])
            if weigher := terms.second if plain else terms.weigher:
                seen = [bool(batch.labels[task.name][0].any()) for task in tasks]
                followed = total([weigher.loss(parts, seen, view, names, t), *rest])
            followed = followed if weight is None else weight[0] * followed
            for pull in beside:
                followed = followed + pull(view, batch, reference)
            return value, followed

        return by_whole_tables(loss, params, step, names)
