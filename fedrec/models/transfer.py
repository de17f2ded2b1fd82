"""Bodies that carry what is learned over: along a chain of behaviours, from a centre to platforms, from a common basis.

Their values are in `fedrec.models.bodies`, with the paths of their parameters.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from fedrec.models.layers import Sizes, depth, layers, linear, mlp, networks, ordered, towers
from fedrec.params import Params

CHAIN = ("view", "click", "like", "buy")  # behaviours, in the order in which users come to them
MAPS = ("query", "key", "value")


def chain(tasks: Iterable[str]) -> list[str]:
    """Return the tasks that are of the chain of behaviours, in its order."""
    there = set(tasks)
    return [task for task in CHAIN if task in there]


def aitm_sizes(n: int, hidden: tuple[int, ...], experts: int, tasks: Sequence[str]) -> Sizes:
    """See Body."""
    k = hidden[-2]
    sizes = towers(k, hidden[-1:], tasks)
    for task in tasks:
        sizes |= layers(f"body.{task}", (n, *hidden[:-1]))
    for origin, to in pairwise(chain(tasks)):
        path = f"transfer.{to}.{origin}"
        sizes |= {f"{path}.carry.weight": (k, k), f"{path}.carry.bias": (k,)}
        sizes |= {f"{path}.{part}.weight": (k, k) for part in MAPS}
    return sizes


def attend(params: Params, path: str, p: Tensor, q: Tensor) -> Tensor:
    """Return z = sum_u w_u h_1(u) [B, k] over u in {p, q}, w = softmax(h_2(u) . h_3(u) / sqrt(k)): AITM's attention.

    h_1, h_2, h_3 are the linear maps value, query and key at a path.
    """
    u = torch.stack([p, q], 1)
    query, key, value = (u @ params[f"{path}.{part}.weight"].T for part in MAPS)
    w = ((query * key).sum(2) / u.shape[2] ** 0.5).softmax(1)
    z: Tensor = (w.unsqueeze(2) * value).sum(1)
    return z


def aitm(params: Params, x: Tensor, tasks: Sequence[str]) -> list[Tensor]:
    """h_t = z_t = AIT(g(z_(t-1)), q_t) along the chain of behaviours, q_t = MLP_t(x); h_t = q_t for all other tasks.

    Adaptive information transfer (arXiv 2105.08489, sec. 3), g a layer with ReLU. The first task of the chain has no
    other before it: its z is its q. The maps of a link are named after both of its ends, since clients that have not
    the same tasks may go to one task from different ones.
    """
    line = chain(ordered(params))
    line = line[: max((line.index(task) + 1 for task in chain(tasks)), default=0)]
    h = {task: mlp(params, f"body.{task}", x) for task in dict.fromkeys([*line, *tasks])}
    for origin, to in pairwise(line):
        path = f"transfer.{to}.{origin}"
        p = F.relu(linear(params, f"{path}.carry", h[origin]))
        h[to] = attend(params, path, p, h[to])
    return [h[task] for task in tasks]


def excess(logits: Sequence[Tensor]) -> Tensor:
    """Return sum_t max(P_t - P_(t-1), 0) [B] of the probabilities along a chain of two or more logits, each [B].

    AITM's behavioural expectation calibrator (arXiv 2105.08489, sec. 3): who buys has clicked, so that what is expected
    of a later behaviour is no more than what is expected of the one before.
    """
    chances = [logit.sigmoid() for logit in logits]
    return torch.stack([F.relu(later - earlier) for earlier, later in pairwise(chances)]).sum(0)


def star_sizes(n: int, hidden: tuple[int, ...], experts: int, tasks: Sequence[str]) -> Sizes:
    """See Body."""
    widths = (n, *hidden[:-1])
    return layers("body", widths) | layers("domain", widths) | towers(hidden[-2], hidden[-1:], tasks)


def star(params: Params, x: Tensor, tasks: Sequence[str]) -> list[Tensor]:
    """h_t = h, the same for all tasks, h <- relu((W * W_own) h + b + b_own) in every layer.

    Star topology (arXiv 2101.11427, sec. 3): the centre's W, b times and plus those of the platform, which is the
    client. The platform's own start at 1 and 0, where the network is the centre's. Left out are partitioned
    normalisation, since no body here normalises over a batch, and the auxiliary network, which reads the number of the
    domain to tell domains apart: it is a constant at a client, and the towers and heads are the client's already. A
    pooled client is one domain.
    """
    h = x
    for layer in depth(params, "body"):
        weight = params[f"body.{layer}.weight"] * params[f"domain.{layer}.weight"]
        h = F.relu(F.linear(h, weight, params[f"body.{layer}.bias"] + params[f"domain.{layer}.bias"]))
    return [h] * len(tasks)


def task_embedding_sizes(n: int, hidden: tuple[int, ...], experts: int, tasks: Sequence[str]) -> Sizes:
    """See Body."""
    sizes = towers(hidden[-2], hidden[-1:], tasks) | {f"tasks.{task}.weight": (experts,) for task in tasks}
    for k in range(experts):
        sizes |= layers(f"body.basis.{k}", (n, *hidden[:-1]))
    return sizes


def task_embedding(params: Params, x: Tensor, tasks: Sequence[str]) -> list[Tensor]:
    """h_t <- relu((sum_k s_tk L_k) h_t + sum_k s_tk b_k) in every layer: a task is a point s_t in the space of a basis.

    GO-MTL (arXiv 1206.6417, sec. 3: W = L S) for the layers of a network in place of one linear model, with the one s_t
    in all layers, and without the penalties that make S sparse and L small.
    """
    basis = networks(params, "body.basis")
    h = dict.fromkeys(tasks, x)
    for layer in depth(params, basis[0]):
        weight, bias = (torch.stack([params[f"{at}.{layer}.{part}"] for at in basis]) for part in ("weight", "bias"))
        for task in h:
            s = params[f"tasks.{task}.weight"]
            h[task] = F.relu(F.linear(h[task], torch.tensordot(s, weight, 1), s @ bias))
    return [h[task] for task in tasks]
