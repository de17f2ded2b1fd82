"""The methods, as values. A method is what its fields say; composing them needs no new class."""

from fedrec.agreement import Agreement
from fedrec.coordination import BudgetRule, Coupling, Descent, Drift
from fedrec.experiment import Experiment, Method
from fedrec.robust import Robust
from fedrec.sharing import SHARINGS

BODY, ALL = SHARINGS["shared-body"], SHARINGS["all-but-users"]
ADMM = 1e-4  # rho on the scale of the mean loss, in which an item that few rows touch has little curvature

METHODS: dict[str, Method] = {
    m.method: m
    for m in (
        Method(method="local", share=()),
        Method(method="pooled", share=(), pool=True),
        Method(method="fedavg", share=ALL),  # arXiv 1602.05629
        Method(method="fedper", share=BODY),  # arXiv 1912.00818
        Method(method="fedrep", share=BODY, phases=("private", "shared")),  # arXiv 2102.07078
        Method(method="fedprox", share=ALL, coupling=Coupling(rho=1e-4)),  # arXiv 1812.06127
        Method(method="admm", share=BODY, coupling=Coupling(rho=ADMM, duals=True)),  # arXiv 2110.15318
        Method(method="mr-mtl", share=BODY, coupling=Coupling(kind="mean-regularised", rho=ADMM, strength=ADMM)),
        Method(method="graph", share=BODY, coupling=Coupling(kind="graph", rho=ADMM, strength=ADMM)),
        Method(
            method="no-harm",
            share=BODY,
            coupling=Coupling(kind="mean-regularised", rho=ADMM, strength=ADMM, duals=True),
            budget=BudgetRule(margin=0.02),
        ),
        # Logits alone travel (arXiv 1910.03581) and teach a student (arXiv 2006.07242); needs volunteers.
        Method(method="agreement", share=(), coupling=Coupling(rho=ADMM), agreement=Agreement(items=100)),
        Method(method="scaffold", share=BODY, drift=Drift(correction="scaffold")),  # arXiv 1910.06378; needs sgd
        Method(method="fednova", share=BODY, drift=Drift(normalise=True)),  # arXiv 2007.07481
        Method(method="ditto", share=BODY, drift=Drift(personal="ditto", weight=ADMM)),  # arXiv 2012.04221
        Method(method="apfl", share=BODY, drift=Drift(personal="apfl", weight=0.5)),  # arXiv 2003.13461
        Method(method="pfedrec", share=("item_table",), drift=Drift(personal="tuned")),  # arXiv 2301.08143
        Method(method="fedmgda", share=BODY, descent=Descent(aggregator="fedmgda", eps=0.1, lr=10.0)),
        Method(method="pcgrad", share=BODY, descent=Descent(aggregator="pcgrad")),  # arXiv 2001.06782
        Method(method="mgda", share=BODY, descent=Descent(aggregator="mgda")),
        Method(method="cagrad", share=BODY, descent=Descent(aggregator="cagrad")),  # arXiv 2110.14048
        Method(method="imtl-g", share=BODY, descent=Descent(aggregator="imtlg")),
        Method(method="upgrad", share=BODY, descent=Descent(aggregator="upgrad")),  # arXiv 2406.16232
        Method(method="fedadam", share=BODY, descent=Descent(optimiser="adam", lr=0.1)),  # arXiv 2003.00295
        Method(method="fedyogi", share=BODY, descent=Descent(optimiser="yogi", lr=0.1)),
        Method(method="fedadagrad", share=BODY, descent=Descent(optimiser="adagrad", lr=0.3)),
        Method(method="fedavgm", share=BODY, descent=Descent(optimiser="momentum", lr=0.5)),  # arXiv 1909.06335
        Method(method="median", share=BODY, robust=Robust(kind="median")),  # arXiv 1803.01498
        Method(method="trimmed-mean", share=BODY, robust=Robust(kind="trimmed-mean")),
        Method(method="krum", share=BODY, robust=Robust(kind="krum")),  # arXiv 1703.02757
        Method(method="multi-krum", share=BODY, robust=Robust(kind="multi-krum")),
        Method(method="clipped", share=BODY, robust=Robust(kind="clip")),
    )
}


def usual(experiment: Experiment) -> Method:
    """Return the method that an experiment names: what its values say is no option that somebody gave."""
    return METHODS.get(experiment.method, Method())
