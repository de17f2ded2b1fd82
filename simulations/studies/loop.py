"""A plain sequential loop in PyTorch, as one would write it without a framework: what the engines are compared with."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fedrec.experiment.config import Experiment
from fedrec.experiment.holdings import clients_data, initial
from fedrec.experiment.records import Row, write_csv
from fedrec.params import Params
from fedrec.rng import generator


@dataclass(frozen=True)
class Silo:
    """One client: its private parameters, which training changes, and its training rows as tensors."""

    name: str
    private: Params
    user: Tensor
    item: Tensor
    target: Tensor


def run_loop(experiment: Experiment, home: Path, on_round: Callable[[Row], None]) -> None:
    """Train an experiment with one task, one local epoch and the method fedper, one client after the other.

    Start and batches are those of every engine, so that the results agree up to the rounding of the optimiser. It
    writes what the study reads of a run: `rounds.csv` and the shared parameters of the last round.
    """
    (z, silos), rows = start(experiment), []
    for number in range(1, experiment.rounds + 1):
        started = time.perf_counter()
        z, loss = one_round(experiment, silos, z, number)
        row: Row = {"round": number, "seconds": time.perf_counter() - started, "train_loss": loss}
        rows.append(row | {"bytes_down": math.nan, "bytes_up": math.nan})  # nothing travels
        on_round(row)
    (home / "model").mkdir()
    write_csv(home / "rounds.csv", rows)
    save_file(z, home / "model" / "shared.safetensors")


def start(e: Experiment) -> tuple[Params, list[Silo]]:
    """Return the shared parameters and the clients, as every engine starts them."""
    silos = []
    for data in clients_data(e):
        (task,) = e.tasks(data.name)
        params = initial(e, e.recommender(data.name), data.users, data.items, {task.name: task.offset(data.train)})
        shared, private = e.sharing().split(params)
        user, item, target = map(torch.from_numpy, (data.train.user, data.train.item, task.target(data.train)))
        silos.append(Silo(data.name, private, user, item, target.to(torch.get_default_dtype())))
    return shared, silos


def one_round(e: Experiment, silos: list[Silo], z: Params, number: int) -> tuple[Params, float]:
    """Return the mean of the shared parameters over all rows, and the mean training loss of the clients."""
    everyone = sum(len(silo.user) for silo in silos)
    total, losses = {name: torch.zeros_like(value) for name, value in z.items()}, []
    for silo in silos:
        params = {name: value.clone() for name, value in z.items()} | silo.private
        losses.append(train(e, silo, params, number))
        for name, value in total.items():
            value.add_(params[name].detach(), alpha=len(silo.user) / everyone)
    return total, sum(losses) / len(losses)


def train(e: Experiment, silo: Silo, params: Params, number: int) -> float:
    """Train `params` in place for one epoch over the rows of a client; return the mean loss of its batches."""
    values = [value.requires_grad_() for value in params.values()]
    adam = torch.optim.Adam(values, e.lr, fused=True) if e.optimiser == "adam" else None
    criterion = F.mse_loss if e.task == "rating" else F.binary_cross_entropy_with_logits
    order = torch.from_numpy(generator(e.seed, "train", silo.name, number, 0, 0).permutation(len(silo.user)))
    losses = []
    for batch in torch.split(order, e.batch_size):
        loss = criterion(score(params, e.task, silo.user[batch], silo.item[batch]), silo.target[batch])
        if adam:
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
        else:  # by hand, as an SGD object for each of many clients costs a third of their round
            gradients = torch.autograd.grad(loss, values)
            with torch.no_grad():
                for value, gradient in zip(values, gradients, strict=True):
                    value.sub_(gradient, alpha=e.lr)
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def score(params: Params, task: str, user: Tensor, item: Tensor) -> Tensor:
    """Return the scores [B] of a linear head on an MLP of (p_u, q_i), or on their product and both biases."""
    p, q = F.embedding(user, params["user_table"]), F.embedding(item, params["item_table"])
    if "body.0.weight" in params:
        h = torch.cat([p, q], 1)
        for layer in range(sum(name.startswith("body.") for name in params) // 2):
            h = F.relu(F.linear(h, params[f"body.{layer}.weight"], params[f"body.{layer}.bias"]))
    else:
        h = torch.cat([p * q, F.embedding(user, params["user_bias"]), F.embedding(item, params["item_bias"])], 1)
    return h @ params[f"heads.{task}.weight"] + params[f"heads.{task}.bias"]
