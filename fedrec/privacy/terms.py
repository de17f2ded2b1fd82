"""What clients and server of a run agree on before anything is summed in secret, each from its own configuration."""

import functools

from fedrec.experiment import Experiment
from fedrec.holdings import clients_data
from fedrec.privacy.discrete import Distributed
from fedrec.privacy.encoding import Encoding
from fedrec.privacy.guarantee import guarantees
from fedrec.privacy.secure_sum import Terms


@functools.lru_cache(maxsize=2)
def terms(experiment: Experiment) -> Terms:
    """Return the terms of an experiment's secure sums; raises UserError where they cannot hold."""
    e = experiment
    clients = len(e.turnout.drawn([data.name for data in clients_data(e)], 1))
    threshold = e.secure.needed(clients)
    encoding = Encoding(e.secure.bound, clients, 1) if e.weights == "uniform" else Encoding(e.secure.bound, clients)
    noise = None
    if e.privacy.unit == "client" and e.privacy.where == "sum":
        sigma = min(guarantee.event.sigma for guarantee in guarantees(e).values())
        noise = Distributed(e.privacy.clip, sigma, threshold)
    return Terms(clients, threshold, e.secure.carriers, encoding, noise)
