"""Bodies of experts under softmax gates: MMoE, and the levels of PLE, of which one is CGC.

Their values are in `fedrec.models.bodies`, with the paths of their parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedrec.models.layers import Sizes, depth, layers, linear, mlp, networks, ordered, towers
from fedrec.params import Params


def mixture(logits: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """Return sum_k softmax(logits)_k E_k [B, width], for logits [B, experts] of a gate."""
    mixed: Tensor = (logits.softmax(1).unsqueeze(2) * torch.stack(list(experts), 1)).sum(1)
    return mixed


def mmoe_sizes(n: int, hidden: tuple[int, ...], experts: int, tasks: Sequence[str]) -> Sizes:
    """See Body."""
    sizes = towers(hidden[-2], hidden[-1:], tasks) | {f"gates.{task}.weight": (experts, n) for task in tasks}
    for k in range(experts):
        sizes |= layers(f"body.experts.{k}", (n, *hidden[:-1]))
    return sizes


def mmoe(params: Params, x: Tensor, tasks: Sequence[str]) -> list[Tensor]:
    """h_t = sum_k softmax(G_t x)_k E_k(x) (Ma et al., KDD 2018, eq. 6 and 7)."""
    experts = [mlp(params, path, x) for path in networks(params, "body.experts")]
    return [mixture(x @ params[f"gates.{task}.weight"].T, experts) for task in tasks]


def ple_sizes(n: int, hidden: tuple[int, ...], experts: int, tasks: Sequence[str]) -> Sizes:
    """See Body."""
    widths = (n, *hidden[:-1])
    sizes = towers(hidden[-2], hidden[-1:], tasks) | {f"gates.{t}.weight": (2 * experts, widths[-2]) for t in tasks}
    for k in range(experts):
        sizes |= layers(f"body.experts.{k}", widths)
        for task in tasks:
            sizes |= layers(f"extraction.{task}.{k}", widths[:-1]) | layers(f"experts.{task}.{k}", widths[-2:])
    for level, width in enumerate(widths[:-2]):
        sizes |= {f"extraction.{task}.gate.{level}.weight": (2 * experts, width) for task in tasks}
        sizes |= {f"body.gates.{level}.{task}.weight": (experts, width) for task in tasks}
        sizes[f"body.gates.{level}.weight"] = (experts, width)
    return sizes


def ple(params: Params, x: Tensor, tasks: Sequence[str]) -> list[Tensor]:
    """h_t <- sum_k softmax(G_t h_t)_k S_tk, level by level; S_t are the task's own experts of h_t and the shared of h.

    Progressive layered extraction (Tang et al., RecSys 2020, eq. 1 to 6): a level for every width, each expert a layer
    with ReLU; below the last the shared h <- sum_k softmax(G h)_k E_k over all experts there are, whatever their task.
    One level is CGC. The shared gate's rows go by the task whose experts they weigh, so that clients with unlike tasks
    share the rest.
    """
    names, shared = ordered(params), networks(params, "body.experts")
    h, states, last = x, dict.fromkeys(names, x), len(depth(params, shared[0])) - 1
    for level in range(last):
        common = [F.relu(linear(params, f"{path}.{level}", h)) for path in shared]
        own = {
            t: [F.relu(linear(params, f"{path}.{level}", states[t])) for path in networks(params, f"extraction.{t}")]
            for t in names
        }
        rows = [params[f"body.gates.{level}.{t}.weight"] for t in names] + [params[f"body.gates.{level}.weight"]]
        gates = {t: states[t] @ params[f"extraction.{t}.gate.{level}.weight"].T for t in names}
        states = {t: mixture(gates[t], [*own[t], *common]) for t in names}
        h = mixture(h @ torch.cat(rows).T, [expert for t in names for expert in own[t]] + common)
    common = [F.relu(linear(params, f"{path}.{last}", h)) for path in shared]
    own = {t: [mlp(params, path, states[t]) for path in networks(params, f"experts.{t}")] for t in tasks}
    return [mixture(states[t] @ params[f"gates.{t}.weight"].T, [*own[t], *common]) for t in tasks]
