"""Personal models: what a client trains beside the shared model, keeps to itself, and recommends with.

The personal half v of adaptive personalised learning is trained in lockstep with w (arXiv 2003.13461, Alg. 1): a step
goes along d f(alpha v + (1 - alpha) w) / dv = alpha grad f at the mixture, on the batch and at the w of the shared
model's own step (`fedrec.training.update`). Under SGD the step moves the mixture by alpha^2 lr times its gradient.
Adam and Adagrad get the same gradient, but their steps do not depend on its scale, so that they move the mixture by
alpha lr.
"""

from fedrec.coordination import Drift, Own
from fedrec.parameters import Params, mix


def personal_model(drift: Drift, own: Own, model: Params) -> Params:
    """Return the parameters that a client recommends with, given those of the shared model and its private part.

    Ditto's is the personal copy itself, APFL's the mixture alpha v + (1 - alpha) w. Tuned has x_i in the place of z_i,
    the shared parameters as the client's last training left them (dual personalisation, arXiv 2301.08143).
    """
    if own.personal is None:
        return model
    if drift.personal == "tuned":
        return {**model, **own.personal}
    return dict(own.personal) if drift.personal == "ditto" else mix(drift.weight, own.personal, model)
