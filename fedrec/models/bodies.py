"""Multi-task bodies as values: which parameters they have, and what each task reads of x = [p_u, q_i].

A body is a pure function of named parameters to one representation h_t for each task. Layers are linear with ReLU. Of
the widths `hidden` the last is the tower's, except where the whole network is a task's own (cross-stitch, esmm). Paths,
so that the sharing contract can tell the parts from each other:

body.L                    shared-bottom, mtan: layer L of the shared network; star: of the centre's
body.experts.K.L          mmoe, ple: layer L of the shared expert K
body.gates.L, and .L.TASK  ple: the shared gate of level L over the shared experts, and over the task's
body.TASK.L               cross-stitch, aitm: layer L of the task's network, which other tasks read too
body.basis.K.L            task-embedding: layer L of the network K of the common basis
domain.L                  star: the platform's own factors and offsets of layer L
experts.TASK.K            ple: the task's expert K of the last level
gates.TASK                mmoe, ple: the task's softmax gate over its experts, in ple those of the last level
extraction.TASK.K.L       ple: the task's expert K of the level L below the last, which the other tasks read too
extraction.TASK.gate.L    ple: the task's gate of that level
attention.TASK.L          mtan: the two layers of the task's mask of layer L
stitch.L.TO.FROM          cross-stitch: one entry of the unit behind layer L
tasks.TASK                task-embedding: the task's vector, a coordinate for each network of the basis
transfer.TO.FROM.PART     aitm: what goes from a behaviour to the next one: carry, query, key, value
towers.TASK.L             all but cross-stitch: layer L of the task's tower
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import fedrec.models.experts as experts
import fedrec.models.transfer as transfer
from fedrec.models.layers import Sizes, depth, layers, linear, mlp, ordered, towers
from fedrec.params import Params
from fedrec.rng import generator

SPREAD = 0.1  # how far the tasks of a common basis start from one another


@dataclass(frozen=True)
class Body:
    """A multi-task body: the sizes of its parameters and the tasks' representations.

    `sizes(n, hidden, experts, tasks)` for x of width n; `represent(params, x, tasks)` returns h_t [B, width] for every
    one of `tasks`, which may be fewer than the parameters are for.
    """

    sizes: Callable[[int, tuple[int, ...], int, Sequence[str]], Sizes]
    represent: Callable[[Params, Tensor, Sequence[str]], list[Tensor]]
    widths: int  # how many `hidden` must have


def initial(seed: int, name: str, size: tuple[int, ...], tasks: int) -> Tensor:
    """Return the start of a body's parameter, a function of (seed, name, size), and for a unit of the number of tasks.

    Layers start as N(0, 2 / n_in), maps without a ReLU as N(0, 1 / n_in), biases as 0, a platform's own factors as 1,
    tasks of a basis of k near (1, ..., 1) / sqrt(k), which gives composed layers the variance of any other, and
    cross-stitch units with 0.9 on the diagonal and rows that sum to 1 (arXiv 1604.03539, sec. 4).
    """
    first, *path, kind = name.split(".")
    if first == "stitch":
        _, to, origin = path
        return torch.tensor([1.0 if tasks == 1 else 0.9 if to == origin else 0.1 / (tasks - 1)])
    if kind == "bias":
        return torch.zeros(size)
    if first == "domain":
        return torch.ones(size)
    rng = generator(seed, "init", *(int(part) if part.isdecimal() else part for part in (first, *path)))
    bare = {"gates", "gate"} & {first, *path} or path[-1] in transfer.MAPS  # without a ReLU
    mean, deviation = 0.0, ((1 if bare else 2) / size[-1]) ** 0.5
    if first == "tasks":
        mean, deviation = size[-1] ** -0.5, SPREAD * size[-1] ** -0.5
    return torch.from_numpy(rng.normal(mean, deviation, size).astype(np.float32))


def shared_bottom_sizes(n: int, hidden: tuple[int, ...], experts: int, tasks: Sequence[str]) -> Sizes:
    """See Body."""
    return layers("body", (n, *hidden[:-1])) | towers(hidden[-2], hidden[-1:], tasks)


def shared_bottom(params: Params, x: Tensor, tasks: Sequence[str]) -> list[Tensor]:
    """h_t = MLP(x), the same for all tasks."""
    return [mlp(params, "body", x)] * len(tasks)


def cross_stitch_sizes(n: int, hidden: tuple[int, ...], experts: int, tasks: Sequence[str]) -> Sizes:
    """See Body."""
    sizes: Sizes = {}
    for task in tasks:
        sizes |= layers(f"body.{task}", (n, *hidden))
        sizes |= {f"stitch.{layer}.{task}.{other}.weight": (1,) for layer in range(len(hidden)) for other in tasks}
    return sizes


def cross_stitch(params: Params, x: Tensor, tasks: Sequence[str]) -> list[Tensor]:
    """h_t <- sum_s a_ts h_s behind every layer of the tasks' networks (arXiv 1604.03539, eq. 1)."""
    names = ordered(params)
    h = dict.fromkeys(names, x)
    for layer in depth(params, f"body.{names[0]}"):
        z = {task: F.relu(linear(params, f"body.{task}.{layer}", h[task])) for task in names}
        for to in names:
            terms = [params[f"stitch.{layer}.{to}.{origin}.weight"] * z[origin] for origin in names]
            h[to] = torch.stack(terms).sum(0)
    return [h[task] for task in tasks]


def mtan_sizes(n: int, hidden: tuple[int, ...], experts: int, tasks: Sequence[str]) -> Sizes:
    """See Body."""
    sizes = shared_bottom_sizes(n, hidden, experts, tasks)
    for task in tasks:
        for layer, (n_in, n_out) in enumerate(pairwise((n, *hidden[:-1]))):
            seen = n_in if layer == 0 else 2 * n_in
            sizes |= layers(f"attention.{task}.{layer}", (seen, n_out, n_out))
    return sizes


def attended(params: Params, task: str, x: Tensor, levels: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return a task's masks a^l [B, width_l] of the shared layers p^l, and what it reads of the last one."""
    masks: list[Tensor] = []
    seen = x
    for layer, p in enumerate(levels):
        path = f"attention.{task}.{layer}"
        masks.append(linear(params, f"{path}.1", F.relu(linear(params, f"{path}.0", seen))).sigmoid())
        read = masks[-1] * p
        seen = torch.cat([p, read], 1)
    return masks, read


def mtan(params: Params, x: Tensor, tasks: Sequence[str]) -> list[Tensor]:
    """h_t = a^L * p^L, a^l = sigmoid(H relu(G [p^(l-1), a^(l-1) * p^(l-1)])), with [x] alone for the first layer.

    Task attention (arXiv 1803.10704, eq. 1 and 2) on the layers p^l of an MLP in place of convolutions: without batch
    normalisation, and without the convolution f, since no pooling stands between the layers.
    """
    levels = [x]
    for layer in depth(params, "body"):
        levels.append(F.relu(linear(params, f"body.{layer}", levels[-1])))
    return [attended(params, task, x, levels[1:])[1] for task in tasks]


def esmm(params: Params, x: Tensor, tasks: Sequence[str]) -> list[Tensor]:
    """h_t = x: the tasks share the tables alone (arXiv 1804.07931, fig. 2)."""
    return [x] * len(tasks)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the logit of sigmoid(a) sigmoid(b), elementwise.

    1 / P - 1 = (1 + e^-a) (1 + e^-b) - 1, so that the logit is -log(e^-a + e^-b + e^(-a - b)), which nothing overflows.
    """
    return -torch.stack([-a, -b, -a - b]).logsumexp(0)


def quotient(whole: float, factor: float) -> float:
    """Return b for which `product(factor, b)` is `whole`; 0, a probability of one half, where there is none."""
    ratio = (1 + math.exp(-factor)) / (1 + math.exp(-whole))
    return math.log(ratio / (1 - ratio)) if ratio < 1 else 0.0


BODIES: dict[str, Body] = {
    "shared-bottom": Body(shared_bottom_sizes, shared_bottom, 2),
    "mmoe": Body(experts.mmoe_sizes, experts.mmoe, 2),
    "ple": Body(experts.ple_sizes, experts.ple, 2),
    "cross-stitch": Body(cross_stitch_sizes, cross_stitch, 1),
    "mtan": Body(mtan_sizes, mtan, 2),
    "esmm": Body(lambda n, hidden, _, tasks: towers(n, hidden, tasks), esmm, 1),
    "aitm": Body(transfer.aitm_sizes, transfer.aitm, 2),
    "star": Body(transfer.star_sizes, transfer.star, 2),
    "task-embedding": Body(transfer.task_embedding_sizes, transfer.task_embedding, 2),
}
