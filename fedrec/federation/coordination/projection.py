"""The point nearest to V that meets any smooth constraints: an augmented Lagrangian with Gauss-Newton steps.

argmin_Z  h(Z) + 1/2 |Z - V|_M^2   subject to  g_j(Z) = 0 or g_j(Z) <= 0,  for a diagonal metric M = diag(rho p).

A step takes g at Z as straight, g + J D, and solves what that leaves. With K = M + the Hessian of h, H = 0 (Gauss and
Newton) or, where that is slow and K + H has an inverse, the Hessian of y'g, R = (K + H)^-1, and F = K (Z - Z0) for Z0
the least of h + 1/2 |.|^2: D = -R (F + J'y), with multipliers y = lambda + c (g + J D), at least 0 for an inequality.
That is stabilised sequential quadratic programming; of straight constraints one step is exact but for the 1/c that the
next multipliers take up. The penalty c is safeguarded: it grows only while constraints are not met faster
(arXiv 1610.02967, section 4).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedrec.errors import UserError

Map = Callable[[Tensor], Tensor]
DENSE = 2**24  # entries of J up to which it is laid out
SMALL = 128  # entries of Z up to which R is
TOLERANCE = 1e-11  # of a residual, on the scale of what makes it up
STEPS = 60
SLOW = 0.2  # of the last step
FAR = 1e3  # how far, in units of |Z - V|, a point must at least be that met what is called infeasible


@dataclass(frozen=True)
class Rows:
    """Constraints one below the other: g [N] -> [m], which rows are inequalities, and which are mere pulls.

    A row with a finite `strength` s is no constraint but the penalty s/2 g^2. `straight` says that g is affine.
    """

    g: Map
    inequality: Tensor  # [m], of bool
    strength: Tensor  # [m], infinite for a constraint
    straight: bool = False


@dataclass(frozen=True)
class Projection:
    """The point Z [N], the multipliers y [m], the residuals [m], and what proves that no point meets all.

    A residual is |g|, of an inequality max(0, g), of a pull 0. The `ray` [m] is None unless the constraints contradict
    each other: with weights w >= 0 of inequalities, w'g(Z) > 0 at a Z where its slope vanishes, which for convex g
    holds everywhere.
    """

    z: Tensor
    y: Tensor
    residual: Tensor
    ray: Tensor | None = None
    steps: int = 0


class _Slope:
    """g at a point: its value, and products with its Jacobian J [m, N]."""

    def __init__(self, g: Map, z: Tensor) -> None:
        self.z = z.detach().requires_grad_(True)
        value = g(self.z)
        self.value = value.detach()
        self.flat = not value.requires_grad
        if self.flat:
            return
        self._graph = value
        self._dummy = torch.zeros_like(value, requires_grad=True)
        (self._pulled,) = torch.autograd.grad(value, self.z, self._dummy, create_graph=True)

    def back(self, y: Tensor) -> Tensor:
        """Return J'y."""
        if self.flat:
            return torch.zeros_like(self.z)
        (found,) = torch.autograd.grad(self._graph, self.z, y, retain_graph=True)
        return found.detach()

    def along(self, d: Tensor) -> Tensor:
        """Return J d."""
        if self.flat or not self._pulled.requires_grad:
            return torch.zeros_like(self.value)
        (found,) = torch.autograd.grad(self._pulled, self._dummy, d, retain_graph=True)
        return found.detach()

    def bend(self, y: Tensor) -> Map:
        """Return d -> H d for the Hessian H of y'g."""
        if self.flat:
            return torch.zeros_like
        (slope,) = torch.autograd.grad(self._graph, self.z, y, create_graph=True)
        if not slope.requires_grad:
            return torch.zeros_like

        def times(d: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(slope, self.z, d, retain_graph=True, allow_unused=True)
            return torch.zeros_like(d) if found is None else found.detach()

        return times

    def dense(self) -> Tensor:
        """Return J."""
        eye = torch.eye(len(self.value), dtype=torch.float64)
        return torch.stack([self.back(row) for row in eye])


def inverse_of(metric: Tensor, resolve: Map | None) -> Map:
    """Return r -> K^-1 r, for the metric's diagonal [N] and the map `resolve` of `project`; laid out where it is small.

    It holds as long as both are what they are.
    """
    if resolve is None:
        return lambda r: r / metric
    origin = resolve(torch.zeros_like(metric))
    if len(metric) > SMALL:
        return lambda r: resolve(r / metric) - origin
    columns = torch.stack([resolve(unit / metric) - origin for unit in torch.eye(len(metric), dtype=torch.float64)])
    whole = (columns + columns.T) / 2
    return lambda r: whole @ r


def project(
    v: Tensor,
    metric: Tensor,
    rows: Rows,
    resolve: Map | None = None,
    start: Tensor | None = None,
    inverse: Map | None = None,
    steps: int = STEPS,
) -> Projection:
    """Return the point of min h(Z) + 1/2 |Z - V|_M^2 that meets the rows, for V [N] and the metric's diagonal [N].

    `resolve` is the affine map from V to argmin_Z of that without the rows; without it h = 0. `start` [m] are
    multipliers to begin with, `inverse` what `inverse_of` makes. Raises UserError where g is not finite.
    """
    inverse = inverse or inverse_of(metric, resolve)
    z0 = resolve(v) if resolve else v

    lam = torch.zeros(len(rows.inequality), dtype=torch.float64) if start is None else start.clone()
    pulls = rows.strength.isfinite()
    lam[pulls] = 0.0
    z, force = z0, torch.zeros_like(v)  # K (Z - Z0) = force, for K the inverse of R
    if start is not None and bool(lam.any()):
        force = -_slope(rows, z0).back(lam)
        z = z0 + inverse(force)
    at = _slope(rows, z)
    unit = max(_size_of(at, inverse), 1e-6 / float(metric.mean()))  # g may have no slope yet
    c = torch.where(pulls, rows.strength, 1e4 / unit)
    y, apart, step, last, bent = lam, math.inf, 0, math.inf, False
    for step in range(1, steps + 1):
        bend: Map = at.bend(y) if bent else torch.zeros_like
        y, d, inner = _stepped(at, bend, inverse, force, lam, c, rows, bent)
        new, new_force = z + d, -at.back(y) - bend(d) * inner
        t = 1.0 if rows.straight else _damp(rows, z, new, z0, force, new_force, lam, c)
        moved = float(d.abs().max()) * t
        # Without curvature steps shrink by what it is of K; where that is too slow it is worth its price.
        bent, last = not rows.straight and (bent or moved > SLOW * last), moved
        z, force = z + t * d, force + t * (new_force - force)
        at = _slope(rows, z)
        residual = residuals(rows, at.value)
        worst, scale = float(residual.max()), 1.0 + float(at.value.abs().max())
        loose = (
            float(torch.minimum(-at.value, y)[rows.inequality & ~pulls].abs().max())
            if bool((rows.inequality & ~pulls).any())
            else 0.0
        )
        lam = torch.where(pulls, torch.zeros_like(y), y) if t == 1.0 else lam
        small = TOLERANCE * (1 + float(z.abs().max()))
        if (
            worst <= TOLERANCE * scale
            and loose <= 1e-9 * scale
            and t == 1.0
            and (rows.straight or moved <= 1e2 * small)
        ):
            return Projection(z, y, residual, None, step)
        if t == 1.0:
            if worst > 0.25 * apart:
                ray = contradiction(at, inverse, residual, rows, z - v, metric)
                if ray is not None:
                    return Projection(z, y, residual, ray, step)
                c = torch.where(pulls, c, (c * 10).clamp(max=1e9 / unit))
            apart = worst
        elif moved <= small:  # it cannot be improved along what is straight there
            break
    ray = contradiction(at, inverse, residual, rows, z - v, metric)
    return Projection(z, lam if ray is None else y, residual, ray, step)


def _stepped(
    at: _Slope, bend: Map, inverse: Map, force: Tensor, lam: Tensor, c: Tensor, rows: Rows, bent: bool
) -> tuple[Tensor, Tensor, bool]:
    """Return the multipliers and the step, and whether it knows of the curvature of g."""
    for curved in (True, False) if bent else (False,):
        try:
            through = curved_inverse(bend, inverse, len(force)) if curved else inverse
            base = at.value - at.along(through(force))
            y = _multipliers(at, through, base, lam, c, rows)
            return y, -through(force + at.back(y)), curved
        except ArithmeticError:
            continue
    raise AssertionError


def curved_inverse(bend: Map, inverse: Map, n: int) -> Map:
    """Return r -> (K + H)^-1 r, laid out where it is small; raises ArithmeticError where it is not positive.

    (K + H)^-1 = R (1 + H R)^-1.
    """
    if n > SMALL:
        return partial(_curved, bend, inverse)
    eye = torch.eye(n, dtype=torch.float64)
    h, r = torch.stack([bend(unit) for unit in eye]), torch.stack([inverse(unit) for unit in eye])
    if float(torch.linalg.eigvals(eye + h @ r).real.min()) <= 1e-6:
        raise ArithmeticError
    whole = r @ torch.linalg.inv(eye + h @ r)
    return lambda x: whole @ x


def _curved(bend: Map, inverse: Map, r: Tensor) -> Tensor:
    """Return (K + H)^-1 r by conjugate gradients, K^-1 before it; raises ArithmeticError where it is not positive."""
    w, x = torch.zeros_like(r), torch.zeros_like(r)
    z = inverse(r)
    p, q = r.clone(), z.clone()  # q = K^-1 p
    size = first = float(r @ z)
    for _ in range(200):
        if size <= 1e-26 * first:
            break
        change = p + bend(q)  # (K + H) q
        bent = float(q @ change)
        if bent <= 1e-6 * size:
            raise ArithmeticError
        a = size / bent
        x, w = x + a * q, w + a * change
        z = inverse(r - w)
        new = float((r - w) @ z)
        p, q, size = r - w + new / size * p, z + new / size * q, new
    return x


def residuals(rows: Rows, value: Tensor) -> Tensor:
    """Return by how much each row is not met [m]."""
    found = torch.where(rows.inequality, value.clamp(min=0.0), value.abs())
    return torch.where(rows.strength.isfinite(), torch.zeros_like(found), found)


def contradiction(
    at: _Slope, inverse: Map, residual: Tensor, rows: Rows, gone: Tensor, metric: Tensor
) -> Tensor | None:
    """Return weights of the rows that prove that they cannot all be met near Z; None where they do not.

    The weights are the residuals: w'g(Z) = |w|^2, and its slope in the metric is so small that a point which meets all
    is `FAR` times as far from Z as Z is from V.
    """
    size = float(residual.norm())
    if size <= 1e-7 * (1.0 + float(at.value.abs().max())):
        return None
    w = residual * at.value.sign() / size
    back = at.back(w)
    slope = math.sqrt(max(float(back @ inverse(back)), 0.0))
    length = math.sqrt(float((gone.square() * metric).sum())) + math.sqrt(float(metric.mean()))
    return w if size > FAR * slope * length else None


def _slope(rows: Rows, z: Tensor) -> _Slope:
    at = _Slope(rows.g, z)
    if at.value.shape != rows.inequality.shape or not bool(at.value.isfinite().all()):
        raise UserError(f"tie: must be {len(rows.inequality)} finite numbers, found others")
    return at


def _size_of(at: _Slope, inverse: Map) -> float:
    """Return the size of a diagonal entry of S, by what it makes of one vector of signs."""
    g = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, at.value.shape, generator=g).double() * 2 - 1
    back = at.back(signs)
    return float(back @ inverse(back)) / max(len(signs), 1)


def _multipliers(at: _Slope, inverse: Map, base: Tensor, lam: Tensor, c: Tensor, rows: Rows) -> Tensor:
    """Return y = lambda + c (base - S y), at least 0 for inequalities, by active sets."""
    m, n = len(base), len(at.z)
    s: Tensor | None = None
    if m * n <= DENSE:
        j = at.dense()
        s = j @ torch.stack([inverse(row) for row in j]).T
    active = ~rows.inequality | (lam + c * base > 0)
    y = torch.zeros_like(base)
    seen: set[bytes] = set()
    for _ in range(100):
        y = _solve(at, inverse, s, base + lam / c, c, active)
        pushed = lam + c * (base - (s @ y if s is not None else at.along(inverse(at.back(y)))))
        # An active row's y is its own push, so that its sign tells both.
        new = ~rows.inequality | torch.where(active, y > 0, pushed > 0)
        if torch.equal(new, active):
            break
        key = new.numpy().tobytes()
        if key in seen:  # a circle: let go of one at a time
            changed = (new != active).nonzero().reshape(-1)
            new = active.clone()
            new[changed[-1]] = ~active[changed[-1]]
        seen.add(key)
        active = new
    return torch.where(rows.inequality, y.clamp(min=0.0), y)


def _solve(at: _Slope, inverse: Map, s: Tensor | None, rhs: Tensor, c: Tensor, active: Tensor) -> Tensor:
    """Return y with (1/c + S) y = rhs on the active rows, 0 elsewhere."""
    y = torch.zeros_like(rhs)
    if not bool(active.any()):
        return y
    if s is not None:
        inside = s[active][:, active] + torch.diag(1 / c[active])
        y[active] = torch.linalg.solve(inside, rhs[active])
        return y
    mask = active.double()
    r = rhs * mask
    p, norm = r.clone(), float(r @ r)
    first = norm
    for _ in range(2000):
        if norm <= 1e-26 * first:
            break
        q = (at.along(inverse(at.back(p))) + p / c) * mask
        a = norm / float(p @ q)
        y, r = y + a * p, r - a * q
        new = float(r @ r)
        p, norm = r + new / norm * p, new
    return y


def _damp(
    rows: Rows, z: Tensor, new: Tensor, z0: Tensor, force: Tensor, new_force: Tensor, lam: Tensor, c: Tensor
) -> float:
    """Return the length t of a step from Z that lessens the augmented Lagrangian (Armijo)."""

    def merit(t: float) -> float:
        """Return h + 1/2 |Z - V|^2, above its least, plus 1/2c (|max(0, lambda + c g)|^2 - |lambda|^2)."""
        point, pull = z + t * (new - z), force + t * (new_force - force)
        value = rows.g(point)
        if not bool(value.isfinite().all()):
            return math.inf
        pushed = lam + c * value
        pushed = torch.where(rows.inequality, pushed.clamp(min=0.0), pushed)
        return 0.5 * float((point - z0) @ pull) + 0.5 * float(((pushed.square() - lam.square()) / c).sum())

    before = merit(0.0)
    at = _Slope(rows.g, z)
    pushed = lam + c * at.value
    pushed = torch.where(rows.inequality, pushed.clamp(min=0.0), pushed)
    slope = float((force + at.back(pushed)) @ (new - z))
    t = 1.0
    while t > 1e-8 and merit(t) > before + 1e-4 * t * min(slope, 0.0) + 1e-13 * (1 + abs(before)):
        t /= 2
    return t
