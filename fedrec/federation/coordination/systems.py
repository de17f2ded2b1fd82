"""Linear systems of coupled quadratics: the minimiser of 1/2 <X, (D + Q) X> - <R, X> over X in the span of a coupling.

D_i [n, n] is one client's, Q = Q_m (x) 1 what a coupling pulls with, and X = X_0 + B Y the X_i that it allows, with
B [clients, r] and Y [r, n, q]. The columns of X are solved at once; nothing is inverted where a factor serves.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedrec.errors import UserError
from fedrec.federation.coordination.operators import (
    Clusters,
    Graph,
    Mean,
    MeanRegularised,
    Mixture,
    Operator,
    SumTo,
    Within,
)

Solve = Callable[[Tensor], Tensor]  # right-hand sides [r, n, q] -> Y [r, n, q]
DIRECT = 3000  # unknowns of a column up to which a coupled system is factored whole
ACCURACY = 1e-14  # of a residual to its right-hand side, where a system is solved by iterations


def inner(operator: Operator) -> Operator:
    """Return what ties the clients, without the set that each z_i lies in."""
    return operator.inner if isinstance(operator, Within) else operator


def span(operator: Operator, clients: int) -> Tensor:
    """Return B [clients, r] of full column rank, with X = X_0 + B Y; raises UserError for a coupling that has none."""
    tie, eye = inner(operator), torch.eye(clients, dtype=torch.float64)
    if isinstance(tie, Mean):
        return torch.ones(clients, 1, dtype=torch.float64)
    if isinstance(tie, Clusters):
        order = sorted(set(tie.groups), key=tie.groups.index)
        return torch.tensor([[float(g == group) for group in order] for g in tie.groups], dtype=torch.float64)
    if isinstance(tie, MeanRegularised | Graph):
        return eye
    if isinstance(tie, Mixture):
        return independent(torch.tensor(tie.mixing, dtype=torch.float64))
    if isinstance(tie, SumTo):
        return torch.cat([eye[:-1, :-1], -torch.ones(1, clients - 1, dtype=torch.float64)])
    raise UserError(
        "coupling.kind: must be mean, clusters, mean-regularised, graph, mixture or sum to be solved from sums, "
        f"found {type(tie).__name__}"
    )


def independent(b: Tensor) -> Tensor:
    """Return `b` if its columns are independent, else an orthonormal basis of its range."""
    u, s, _ = torch.linalg.svd(b, full_matrices=False)
    rank = int((s > 1e-12 * s[:1]).sum())
    basis: Tensor = u[:, :rank]
    return b if rank == b.shape[1] else basis


def pull(operator: Operator, p: Tensor) -> Tensor:
    """Return Q [clients, clients] of h(X) = 1/2 sum_ik Q_ik <X_i, X_k>, which does not see what all clients share."""
    tie = inner(operator)
    if isinstance(tie, MeanRegularised):
        return tie.strength * (torch.diag(p) - torch.outer(p, p) / p.sum())
    return tie.laplacian() if isinstance(tie, Graph) else torch.zeros(len(p), len(p), dtype=torch.float64)


def factor(operator: Operator, d: Sequence[Tensor], q: Tensor) -> Solve:
    """Return what solves B' (D + Q) B Y = R in Y, for positive definite D_i [n, n] and Q [clients, clients]."""
    tie, b = inner(operator), span(operator, len(d))
    if isinstance(tie, Mean | Clusters):
        factors = [positive(torch.stack([x for x, one in zip(d, row, strict=True) if one]).sum(0)) for row in b.T]
        return lambda r: torch.stack([torch.cholesky_solve(x, f) for x, f in zip(r, factors, strict=True)])
    if isinstance(tie, SumTo):
        return balanced(d)
    if isinstance(tie, Mixture):
        return whole(d, b, q)
    return pulled(d, q)


def positive(a: Tensor) -> Tensor:
    """Return the Cholesky factor of a matrix; raises UserError if it is not positive definite."""
    found, info = torch.linalg.cholesky_ex(a)
    if int(info):
        raise UserError("ridge: must make every system of the sums positive definite, found one that is not")
    lower: Tensor = found
    return lower


def whole(d: Sequence[Tensor], b: Tensor, q: Tensor) -> Solve:
    """Factor the system of all blocks as one matrix [r n, r n]."""
    n, r = len(d[0]), b.shape[1]
    blocks = torch.einsum("ir,is,ijk->rjsk", b, b, torch.stack(list(d)))
    blocks += torch.einsum("rs,jk->rjsk", b.T @ q @ b, torch.eye(n, dtype=torch.float64))
    chol = positive(blocks.reshape(r * n, r * n))
    return lambda x: torch.cholesky_solve(x.reshape(r * n, -1), chol).reshape(r, n, -1)


def balanced(d: Sequence[Tensor]) -> Solve:
    """Solve for X_i of sum zero: X_i = D_i^-1 (R_i - T), where the one price T makes the sum what it must be."""
    factors = [positive(x) for x in d]
    price = positive(torch.stack([torch.cholesky_inverse(x) for x in factors]).sum(0))

    def solve(r: Tensor) -> Tensor:
        x = torch.stack([torch.cholesky_solve(one, f) for one, f in zip(r, factors[:-1], strict=True)])
        t = torch.cholesky_solve(x.sum(0), price)
        return x - torch.stack([torch.cholesky_solve(t, f) for f in factors[:-1]])

    return solve


def pulled(d: Sequence[Tensor], q: Tensor) -> Solve:
    """Solve (D + Q) X = R for a Laplacian Q: each connected part by itself."""
    parts = connected(q)
    solvers = [one_pulled([d[i] for i in part], q[part][:, part]) for part in parts]

    def solve(r: Tensor) -> Tensor:
        x = torch.zeros_like(r)
        for part, by in zip(parts, solvers, strict=True):
            x[part] = by(r[part])
        return x

    return solve


def connected(q: Tensor) -> list[list[int]]:
    """Return the positions of every connected part of a Laplacian."""
    part = list(range(len(q)))
    for i, k in q.nonzero().tolist():
        old, new = part[i], part[k]
        part = [new if x == old else x for x in part]
    return [[i for i, x in enumerate(part) if x == group] for group in dict.fromkeys(part)]


def one_pulled(d: Sequence[Tensor], q: Tensor) -> Solve:
    """Solve one connected part: alone, as a star around the mean where Q allows, whole where small, else iterated."""
    if len(d) == 1:
        chol = positive(d[0])
        return lambda r: torch.cholesky_solve(r[0], chol)[None]
    u = star(q)
    if u is not None:
        return around(d, u)
    if len(d) * len(d[0]) <= DIRECT:
        return whole(d, torch.eye(len(d), dtype=torch.float64), q)
    values = torch.linalg.eigvalsh(q)
    near = around(d, torch.full((len(d),), float((values[1] * values[-1]).sqrt().sqrt()) / len(d) ** 0.5).double())
    return lambda r: conjugate(lambda x: applied(d, q, x), near, r)


def star(q: Tensor) -> Tensor | None:
    """Return u with Q = diag(u sum u) - u u', a pull towards one weighted mean; None if Q is no such."""
    size = float(q.diagonal().max())
    product = q[0, 1] * q[0, -1] / q[1, -1] if len(q) > 2 and float(q[1, -1]) else q[0, 1]
    first = (-product).clamp(min=0).sqrt()
    if not float(first):
        return None
    u = torch.cat([first[None], -q[0, 1:] / first])
    made = torch.diag(u * u.sum()) - torch.outer(u, u)
    return u if float((made - q).abs().max()) <= 1e-14 * size else None


def around(d: Sequence[Tensor], u: Tensor) -> Solve:
    """Solve (D + diag(c) - u u') X = R, c = u sum u: X_i = E_i^-1 (R_i + u_i M), E_i = D_i + c_i, M = sum_i u_i X_i.

    M solves sum_i (u_i / sum u) E_i^-1 D_i M = sum_i u_i E_i^-1 R_i, written so that nothing cancels for strong pulls.
    """
    c = u * u.sum()
    factors = [positive(x + one * torch.eye(len(x), dtype=torch.float64)) for x, one in zip(d, c, strict=True)]
    parts = [share * torch.cholesky_solve(x, f) for share, x, f in zip(u / u.sum(), d, factors, strict=True)]
    centre = torch.stack(parts).sum(0)
    chol = positive((centre + centre.T) / 2)

    def solve(r: Tensor) -> Tensor:
        x = torch.stack([torch.cholesky_solve(one, f) for one, f in zip(r, factors, strict=True)])
        m = torch.cholesky_solve(torch.tensordot(u, x, 1), chol)
        x += torch.stack([w * torch.cholesky_solve(m, f) for w, f in zip(u, factors, strict=True)])
        return x

    return solve


def applied(d: Sequence[Tensor], q: Tensor, x: Tensor) -> Tensor:
    """Return (D + Q) X."""
    own: Tensor = torch.stack([a @ one for a, one in zip(d, x, strict=True)])
    return own.add(torch.tensordot(q, x, 1))


def conjugate(by: Solve, near: Solve, r: Tensor, most: int = 500) -> Tensor:
    """Return X with by(X) = R by conjugate gradients, each column with its own steps, preconditioned by `near`."""
    x, left = torch.zeros_like(r), r.clone()
    z = near(left)
    p, rz = z, (left * z).sum((0, 1))
    goal = ACCURACY * r.square().sum((0, 1)).sqrt()
    for _ in range(most):
        moved = by(p)
        step = rz / (p * moved).sum((0, 1)).clamp(min=1e-300)
        x, left = x + step * p, left - step * moved
        if bool((left.square().sum((0, 1)).sqrt() <= goal).all()):
            break
        z = near(left)
        new = (left * z).sum((0, 1))
        p, rz = z + new / rz.clamp(min=1e-300) * p, new
    return x


def hollow(solve: Solve, r: int, n: int) -> Solve:
    """Return the solver under Y_k[j, j] = 0: a price of each column's diagonal entries makes them zero, as in EASE."""
    eye = torch.eye(n, dtype=torch.float64)
    answers = []
    for k in range(r):
        one = torch.zeros(r, n, n, dtype=torch.float64)
        one[k] = eye
        answers.append(solve(one))
    met = torch.stack([x.diagonal(dim1=1, dim2=2) for x in answers])  # [k, r, n]

    def inside(rhs: Tensor) -> Tensor:
        y = solve(rhs)
        price = torch.linalg.solve(met.permute(2, 1, 0), y.diagonal(dim1=1, dim2=2).T)  # [n, r]
        for k, answer in enumerate(answers):
            y = y - answer * price[:, k]
        y.diagonal(dim1=1, dim2=2).zero_()
        return y

    return inside
