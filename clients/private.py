"""The client half of privacy: noisy training or a noisy update, and what is measured without being told."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from clients.client import Client
from fedrec.errors import UserError
from fedrec.experiment.records import add_failure, add_measured
from fedrec.params import Params
from fedrec.privacy.books import Books
from fedrec.privacy.central import clipped, noisy
from fedrec.privacy.guarantee import guarantees
from fedrec.privacy.secret import digest
from fedrec.sharing import Broadcast

Measure = tuple[str, str, str]  # client, task, metric


def books(client: Client) -> Books | None:
    """Return a client's books; None if it adds no noise."""
    guarantee = guarantees(client.experiment).get(client.data.name)
    if guarantee is None:
        return None
    if client.home is None:
        raise UserError("privacy: a client needs a folder for its ledger, found none")
    return Books(guarantee, client.home, client.experiment.seed)


def protected(client: Client, number: int, x: Params, z: Params) -> Params:
    """Return what a client sends in the place of x: z + clip(x - z) + noise, if it adds noise to its own update."""
    rule, ledger = client.experiment.privacy, books(client)
    if rule.unit != "client" or rule.where == "sum" or ledger is None:
        return x
    source = ledger.open(number, digest(*client.setting, number, x, z))
    return noisy(clipped(x, z, rule.clip), z, ledger.guarantee.std, source)


def open_loss(client: Client, loss: float) -> dict[str, float]:
    """Return the training loss as a client tells it: not at all under a promise of privacy, which it would break.

    Nor has a model by sums one: it sends its sums before there is anything to lose by.
    """
    return {} if client.experiment.privacy.active or client.experiment.by_sums else {"loss": loss}


def measured(client: Client, broadcast: Broadcast, metrics: Mapping[Measure, float]) -> None:
    """Write what a client measured into its own folder, since it may not tell.

    The simulation, who sees everything, gathers these files for the report; nobody that takes part does.
    """
    if client.home is not None:
        add_measured(client.home, client.data.name, broadcast.round, broadcast.split, metrics, client.device)


@contextmanager
def unsaid(client: Client, broadcast: Broadcast) -> Iterator[None]:
    """Keep what fails in a client that adds noise to its own log: that it failed would tell of its data.

    After the final test, whatever came of it, the client has no secret any more: it trains no further in this run.
    """
    ledger = books(client)
    try:
        yield
    except Exception:
        if ledger is None:
            raise
        text = f"the {broadcast.split} of round {broadcast.round} failed"
        logging.getLogger(__name__).exception(text)
        if client.home is not None:
            add_failure(client.home, client.data.name, f"{text}; its log says why")
    finally:
        if ledger is not None and broadcast.split == "test":
            ledger.secret.forget()
