"""Collaborative gradient descent: weights for the clients' pseudo-gradients, their combination, the server's step.

Pseudo-gradients are g_i = z - x_i, stacked as G [K, P] in float64; every method needs only the Gramian G G^T [K, K].
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from quadprog import solve_qp
from torch import Tensor

from fedrec.errors import UserError, choose

Method = Literal["mean", "pcgrad", "mgda", "fedmgda", "cagrad", "imtlg", "upgrad"]
Kind = Literal["sgd", "momentum", "adam", "yogi", "adagrad"]
Floats = npt.NDArray[np.float64]
State = tuple[Tensor, ...]

JITTER = 1e-13  # on the diagonal of unit gradients' Gramian: lets a singular one be factorised, costs 1e-13 in |g|^2


def weights_of(
    gram: Tensor,
    method: Method,
    preference: Tensor,
    *,
    eps: float = 1.0,
    c: float = 0.5,
    order: np.random.Generator | None = None,
) -> Tensor:
    """Return the weights w [K] of the direction d = sum_i w_i g_i, from `gram` [K, K] and `preference` [K] >= 0.

    With p the preference divided by its sum, D the simplex and G_w = sum_i w_i g_i:

    - mean: w = p.
    - pcgrad (arXiv 2001.06782, Algorithm 1): w = sum_i p_i w^(i), where g_i loses its component along every g_j that
      it conflicts with, in an order drawn from `order` (needed for K > 2): equal preferences give the paper's sum / K.
    - mgda (Desideri 2012): argmin |G_w| over D.
    - fedmgda (FedMGDA+, arXiv 2006.11489): w_i = l_i / |g_i|, l = argmin |sum_i l_i g_i / |g_i|| over D with
      |l_i - p_i| <= eps. A client without a gradient counts as a zero row.
    - cagrad (arXiv 2110.14048): d maximises min_i <g_i, d> in the ball |d - g_0| <= c |g_0|, g_0 = G_p, so
      d = g_0 + c |g_0| G_v / |G_v| with v = argmin <G_v, g_0> + c |g_0| |G_v| over D; where that G_v = 0, d is the
      nearest such point to g_0; where the Gramian cannot tell g_0 from 0 (below 1e-6 of the g_i), d = g_0. Alone, a
      client moves by (1 + c) g. One without a gradient counts in g_0 only.
    - imtlg (Liu et al. 2021): d has the same inner product with every g_i / |g_i|. The sum of w is 1, or -1 where 1
      would climb every loss. Gradients that are dependent may allow d = 0 only: then least squares.
    - upgrad (arXiv 2406.16232): d = sum_i p_i times the projection of g_i on the cone {d : <g_j, d> >= 0 for all j}.

    When every g_i is scaled by s > 0, w stays (d scales with s), but for fedmgda, where d stays. When each g_i has a
    scale s_i of its own, the d of fedmgda stays, that of imtlg keeps its direction, and that of upgrad is linear in s.
    Raises UserError for shapes, signs or numbers out of range, and if `gram` is no Gramian.
    """
    choose("gradients", method, get_args(Method))
    p = _checked(gram, preference, eps, c)
    gramian = gram.detach().cpu().double().numpy()
    norms = np.sqrt(np.diag(gramian))
    live = norms > 0
    if method in ("mean", "pcgrad") or not live.any():
        return torch.from_numpy(_pcgrad(gramian, p, order) if method == "pcgrad" else p)
    if method == "mgda" and not live.all():
        return torch.from_numpy(~live / np.sum(~live))
    d = np.where(live, norms, 1.0)
    unit = _unit_gramian(gramian, d)
    if method == "mgda":
        return torch.from_numpy(_mgda(unit, d))
    if method == "fedmgda":
        boxed = p if eps < 1e-12 else _least_norm(unit, np.maximum(p - eps, 0), p + eps)
        return torch.from_numpy(live * boxed / d)
    w = np.where(live, 0.0, 0.0 if method == "imtlg" else p)
    unit, d, p = unit[np.ix_(live, live)], d[live], p[live]
    if method == "cagrad":
        w[live] = _cagrad(unit, d, p, c)
    else:
        w[live] = _imtlg(unit, d) if method == "imtlg" else _upgrad(unit, d, p)
    return torch.from_numpy(w)


def _checked(gram: Tensor, preference: Tensor, eps: float, c: float) -> Floats:
    k = len(preference)
    if k == 0 or tuple(gram.shape) != (k, k):
        raise UserError(f"gram: must be [K, K] for the K = {k} > 0 preferences, found {list(gram.shape)}")
    if not bool(torch.isfinite(gram).all()) or bool((gram.diagonal() < 0).any()):
        raise UserError("gram: must be finite with a diagonal >= 0, found another entry")
    p = preference.detach().cpu().double().numpy()
    if not np.isfinite(p).all() or p.min() < 0 or p.sum() <= 0:
        raise UserError(f"preference: must be finite, >= 0 and not all zero, found {p.tolist()}")
    for name, value, top in (("eps", eps, 1.0), ("c", c, 1e6)):
        if not 0 <= value <= top:
            raise UserError(f"{name}: must be in [0, {top:g}], found {value}")
    return np.asarray(p / p.sum())


def _unit_gramian(gramian: Floats, d: Floats) -> Floats:
    """Return the Gramian of g_i / |g_i|, positive definite: in this frame no scale of a gradient is lost."""
    unit = (gramian + gramian.T) / 2 / d[:, None] / d[None, :]
    lowest = float(np.linalg.eigvalsh(unit)[0])
    if lowest < -1e-6:
        raise UserError(f"gram: must be positive semi-definite, found an eigenvalue {lowest:.3g} of unit gradients")
    return np.asarray(unit + (JITTER + 2 * max(0.0, -lowest)) * np.eye(len(unit)))


def _rows(unit: Floats) -> Floats:
    """Return the unit gradients [K, rank] in an orthonormal basis of their span."""
    values, vectors = np.linalg.eigh(unit)
    kept = values > 10 * JITTER
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def _least_norm(unit: Floats, lower: Floats, upper: Floats) -> Floats:
    """Return argmin a^T unit a over the simplex with lower <= a <= upper."""
    columns = np.vstack([np.ones_like(lower), np.eye(len(unit)), -np.eye(len(unit))]).T
    a: Floats = solve_qp(unit, np.zeros_like(lower), columns, np.concatenate([[1.0], lower, -upper]), 1)[0]
    return np.clip(a, lower, upper)


def _mgda(unit: Floats, d: Floats) -> Floats:
    """Return argmin |sum_i w_i g_i| over the simplex.

    If 0 is no such sum, the shortest one is along the shortest x with <g_i, x> >= 1 for all i: no scale is lost.
    """
    a = _least_norm(unit, np.zeros_like(d), np.ones_like(d))
    if a @ unit @ a > 1e-12:
        g = _rows(unit)
        a = solve_qp(np.eye(g.shape[1]), np.zeros(g.shape[1]), g.T, d.min() / d)[4]
    return np.asarray(a / d / np.sum(a / d))


def _pcgrad(gramian: Floats, p: Floats, order: np.random.Generator | None) -> Floats:
    k, total = len(p), np.zeros_like(p)
    if k > 2 and order is None:
        raise UserError("order: pcgrad needs a generator for more than two clients, found None")
    for i in range(k):
        w = np.eye(k)[i]
        for j in range(k) if order is None else order.permutation(k):
            conflict = gramian[j] @ w
            if j != i and conflict < 0 and gramian[j, j] > 0:
                w[j] -= conflict / gramian[j, j]
        total += p[i] * w
    return total


def _cagrad(unit: Floats, d: Floats, p: Floats, c: float) -> Floats:
    """Return w of the best t for which {x : <g_i, x> >= t for all i} meets the ball: bisection over t.

    x(t), that set's point nearest to g_0, is g_0 plus a sum of the g_i with the multipliers as weights; its distance
    to g_0 grows with t. Lengths are in units of |g_0|.

    Of nearly opposite gradients a Gramian tells the length of a sum only up to its rounding. The step from g_0 is cut
    to be inside the ball for all that it may be, and is none where g_0 may be 0.
    """
    g, rounding = _rows(unit), float(unit.diagonal().max()) - 1  # what was added to make the Gramian definite
    centre = p * d
    start = centre @ g
    length = float(np.linalg.norm(start))
    least = math.sqrt(max(float(centre @ unit @ centre - 2 * rounding * centre @ centre), 0.0))
    if c == 0 or least == 0:
        return p
    start = start / length
    low, high = float((d * (g @ start)).min()), float((d * (g @ start + c)).min())
    extra, middle = np.zeros_like(d), 0.0 if low < 0 < high else (low + high) / 2
    for _ in range(100):
        try:
            qp = solve_qp(np.eye(len(start)), start, g.T, middle / d)
            inside = float(np.linalg.norm(qp[0] - start)) <= c
        except ValueError:  # quadprog's word for an empty set
            inside = False
        low, high, extra = (middle, high, qp[4]) if inside else (low, middle, extra)
        if (middle := (low + high) / 2) in (low, high):
            break
    step = extra * length
    most = math.sqrt(float(step @ unit @ step))
    return np.asarray(p + step / d * min(1.0, c * least / most if most else 1.0))


def _imtlg(unit: Floats, d: Floats) -> Floats:
    v = np.linalg.pinv(unit, rcond=1e-10, hermitian=True).sum(axis=1)
    total = abs(np.sum(v / d))
    vanishes = v.sum() < 1e-9 or total < 1e-12 * np.sum(np.abs(v) / d)
    return np.zeros_like(d) if vanishes else np.asarray(v / d / total)


def _upgrad(unit: Floats, d: Floats, p: Floats) -> Floats:
    # torchjd loads scipy, over a second; the other methods do without.
    from torchjd.linalg import QuadprogProjector

    # The cone is that of the unit gradients too, so each is projected at length 1: a short one is not lost.
    projector, u = QuadprogProjector(norm_eps=0.0, reg_eps=0.0), torch.eye(len(d), dtype=torch.float64)
    rows = projector(u, torch.from_numpy(unit))  # type: ignore[arg-type]
    return np.asarray((p * d) @ rows.numpy() / d)


def combine(updates: Tensor, weights: Tensor, carries: Tensor | None = None) -> Tensor:
    """Return d = sum_i w_i g_i [P] from `updates` [K, P]; entries outside the bool mask `carries` [K, P] do not count.

    An entry that only some clients carry is scaled by sum_i |w_i| / sum_{i carries it} |w_i|, so that it is not
    diluted: with the mean's weights it is the weighted mean over its carriers, and |d| <= sum_i |w_i| max_i |g_i|
    entry by entry. What a method promises of d (no conflict, least norm) it promises without the mask.
    """
    w, g = weights.double(), updates.double()
    if carries is None:
        return w @ g
    total = w @ torch.where(carries, g, 0.0)
    mass = w.abs() @ carries.double()
    return torch.where(mass > 0, total * (w.abs().sum() / mass), total)


@dataclass(frozen=True)
class ServerOptimiser:
    """The server's step along d (FedOpt, arXiv 2003.00295, Algorithm 2), with m_0 = 0, v_0 = tau^2, no bias correction.

    - sgd: z - lr d (FedAvg with lr = 1 and the mean). momentum (FedAvgM, arXiv 1909.06335): m = beta1 m + d; z - lr m.
    - adam, yogi, adagrad: m = beta1 m + (1 - beta1) d; z - lr m / (sqrt(v) + tau), where v is
      beta2 v + (1 - beta2) d^2, v - (1 - beta2) d^2 sign(v - d^2), v + d^2 respectively.

    Raises UserError for a kind or a number out of range.
    """

    kind: Kind = "sgd"
    lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        choose("server optimiser", self.kind, get_args(Kind))
        for name, value in (("lr", self.lr), ("tau", self.tau)):
            if not 0 < value < float("inf"):
                raise UserError(f"{name}: must be finite and > 0, found {value}")
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise UserError(f"{name}: must be in [0, 1), found {value}")

    def start(self, z: Tensor) -> State:
        """Return the state before the first step: () for sgd, (m,) for momentum, else (m, v), each like z [P]."""
        m, v = torch.zeros_like(z, dtype=torch.float64), torch.full_like(z, self.tau**2, dtype=torch.float64)
        return {"sgd": (), "momentum": (m,)}.get(self.kind, (m, v))

    def step(self, z: Tensor, d: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the new z [P] in float64 and the new state; changes neither argument."""
        z, d = z.double(), d.double()
        if self.kind == "sgd":
            return z - self.lr * d, ()
        if self.kind == "momentum":
            m = self.beta1 * state[0] + d
            return z - self.lr * m, (m,)
        m, v, square = self.beta1 * state[0] + (1 - self.beta1) * d, state[1], d.square()
        if self.kind == "adam":
            v = self.beta2 * v + (1 - self.beta2) * square
        elif self.kind == "yogi":
            v = v - (1 - self.beta2) * square * torch.sign(v - square)
        else:
            v = v + square
        return z - self.lr * m / (v.sqrt() + self.tau), (m, v)
