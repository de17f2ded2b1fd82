"""Personal models: what a client trains beside the shared model, keeps to itself, and recommends with.

A personal model v is trained in lockstep with w, at the mixture a v + (1 - a) w with a share a of each parameter: a
step goes along d f(mixture) / dv = a grad f(mixture), on the batch and at the w of the shared model's own step, and
along lambda (v - z) (`fedrec.training.update`). Ditto's copy has a = 1 (arXiv 2012.04221, Alg. 1, line 7), that of
adaptive personalised learning a = alpha, lambda = 0 (arXiv 2003.13461, Alg. 1). Under SGD the step moves the mixture by
a^2 lr times its gradient. Adam and Adagrad get the same gradient, but their steps do not depend on its scale, so that
they move the mixture by a lr.
"""

from fedrec.federation.coordination import Drift, Own
from fedrec.params import Params, mix


def personal_model(drift: Drift, own: Own, model: Params) -> Params:
    """Return the parameters that a client recommends with, given those of the shared model and its private part.

    Those are the mixture with the personal model. Tuned has x_i in the place of z_i, the shared parameters as the
    client's last training left them (dual personalisation, arXiv 2301.08143).
    """
    if own.personal is None:
        return model
    if drift.personal == "tuned":
        return {**model, **own.personal}
    return mix(drift.shares(own.personal), own.personal, model)
