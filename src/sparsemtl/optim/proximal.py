r"""Proximal maps, exact and for all groups at once.

For a step of size lr in the metric D = diag(d), the map of a penalty R is

    z = argmin_z  1/2 sum_j d_j (x_j - z_j)^2  +  lr R(z);

without a metric D is the identity, and the map the plain one. Every function here takes a tensor x of shape
(L, A, G, B), in which `x[l, :, g, :]` is one group (see `groups.py`), and d of the same shape; it changes x in place
and returns which groups survive, shape (L, 1, G, 1). NaN survives, and stays NaN.

Group lasso, R(z) = lambda ||z||, tau = lr lambda (METHODS.md §8; Deleu & Bengio 2021). z = 0 iff ||D x|| <= tau. Else
z_j = r x_j / (r + tau / d_j), where r = ||z|| is the root of

    h(r) = 1 / ||u(r)|| = 1,   u_j = x_j / (r + tau / d_j).

h is increasing and concave (it is the power mean of exponent -2 of functions linear in r), and linear if all d_j are
equal: Newton's method that starts left of the root climbs to it and never steps over it. At an approximate root the
optimality condition d (z - x) + tau z / ||z|| = 0 holds up to a fraction h(r) - 1 of d x, so that is what we make
small. It stays well conditioned at the threshold, where r itself does not.

Group MCP, R(z) = lambda ||z|| - ||z||^2 / (2 gamma) up to ||z|| = gamma lambda and constant from there (Zhang 2010;
Huang, Breheny & Ma 2012). With bend = lr / gamma and limit = gamma lambda = tau / bend, tau / d_j above becomes
(tau - bend r) / d_j. Then u is still 1 over a function linear in r, h still concave on [0, limit], and so the problem,
though not convex, has at most two local minima: the smallest root (or zero), and x itself if ||x|| > limit. We compare
the two.

Sums of squares are taken in the tensors' own precision: in float32 thresholds are exact down to tau = 1e-18.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MOST_STEPS = 100
"""Newton steps at most; two are usual, and ten rare."""
_SHORT = 64
"""Rows shorter than this are too short for vector instructions to be broadcast to."""


def sums(x: Tensor) -> Tensor:
    """Sum over every group: (L, A, G, B) -> (L, 1, G, 1)."""
    if x.shape[1] > 1:
        x = x.sum(1, keepdim=True)
    return x.sum(3, keepdim=True) if x.shape[3] > 1 else x


def norms(x: Tensor) -> Tensor:
    """Euclidean norm of every group: (L, A, G, B) -> (L, 1, G, 1)."""
    return sums(x.square()).sqrt_()


def lasso_pull(x: Tensor, tau: float, d: Tensor | None = None) -> Tensor:
    """||D x|| / tau, above 1 where group lasso lets the group live; shape (L, 1, G, 1)."""
    return norms(x if d is None else x * d).div_(tau)


def l1_pull(x: Tensor, tau: float, d: Tensor | None = None) -> Tensor:
    """d |x| / tau, above 1 where l1 lets the entry live; the shape of x."""
    return (x.abs() if d is None else (x * d).abs_()).div_(tau)


def mcp_pull(x: Tensor, tau: float, bend: float, d: Tensor | None = None) -> Tensor:
    """A number above 1 where group MCP lets the group live; shape (L, 1, G, 1)."""
    size, limit, pull = norms(x), tau / bend, lasso_pull(x, tau, d)
    energy = size.square() if d is None else sums(x.square().mul_(d))
    unbent = (energy / (tau * limit)).sqrt_()
    return torch.where(size > limit, torch.maximum(pull, unbent), pull)


def l1_(x: Tensor, tau: float, d: Tensor | None = None) -> Tensor:
    """Soft threshold, z_j = sign(x_j) max(0, |x_j| - tau / d_j) (METHODS.md §9)."""
    if tau == 0:
        return x != 0
    if d is None:
        x.sub_(x.clamp(-tau, tau))
    else:
        threshold = d.reciprocal().mul_(tau)
        x.sub_(x.clamp(-threshold, threshold))
    return x != 0


def group_lasso_(x: Tensor, tau: float, d: Tensor | None = None) -> Tensor:
    """Proximal map of tau ||z||."""
    if tau == 0:
        return ~(norms(x) <= 0)
    if d is None:
        factor = (1 - tau / norms(x)).clamp_(min=0)
        x.mul_(_spread(factor, x))
        return factor != 0
    pulled = _above_one(lasso_pull(x, tau, d))
    shift = d.reciprocal().mul_(tau)
    radius = _root(x, shift, torch.where(pulled, _left_of_root(x, shift), 0), pulled)
    spread = _spread(radius, x)
    x.mul_(spread).div_(shift.add_(spread))
    return ~(radius <= 0)


def group_mcp_(x: Tensor, tau: float, bend: float, d: Tensor | None = None) -> Tensor:
    """Proximal map of group MCP; see the module.

    Args:
        tau: step size times the penalty's slope at zero.
        bend: step size divided by gamma, > 0.
    """
    if tau == 0:
        return ~(norms(x) <= 0)
    if d is None:
        factor = _mcp_factor(norms(x), tau, bend)
        x.mul_(_spread(factor, x))
        return factor != 0
    limit = tau / bend
    size = norms(x)
    pulled = _above_one(lasso_pull(x, tau, d))
    shift = d.reciprocal().mul_(tau)
    radius = _root(x, shift, torch.where(pulled, _nearest(x, shift).clamp_(max=limit), 0), pulled, limit)
    spread = _spread(radius, x)
    factor = spread / shift.mul_(1 - spread / limit).add_(spread)
    energy = sums((x * (1 - factor)).square_().mul_(d)) / 2 + tau * radius - bend * radius.square() / 2
    unbent = (radius >= limit) | ((size > limit) & (energy > tau * limit / 2))
    x.mul_(factor.masked_fill_(unbent, 1))
    return ~(radius <= 0) | unbent


def _mcp_factor(size: Tensor, tau: float, bend: float) -> Tensor:
    """z / x of the plain map: firm thresholding, or hard where the penalty bends more than the parabola."""
    if bend < 1:
        return ((1 - tau / size) / (1 - bend)).clamp_(0, 1)
    return (~(size <= tau / math.sqrt(bend))).to(size.dtype)


def _left_of_root(x: Tensor, shift: Tensor) -> Tensor:
    """A start for group lasso: where h's asymptote, under which h lies, is 1; or `_nearest` if that is below zero."""
    squares = x.square()
    size = sums(squares).sqrt_()
    left = size - sums(squares.mul_(shift)) / size
    return left if bool((left > 0).all()) else torch.where(left > 0, left, _nearest(x, shift))


def _nearest(x: Tensor, shift: Tensor) -> Tensor:
    """The largest |x_j| - shift_j, at least 0: left of any root, and right enough that no u_j is above 1."""
    return (x.abs() - shift).amax((1, 3), keepdim=True).clamp_(min=0)


def _root(x: Tensor, shift: Tensor, start: Tensor, moving: Tensor, limit: float | None = None) -> Tensor:
    """Smallest r with ||x / (r + shift (1 - r / limit))|| = 1, or `limit` where there is none below.

    Args:
        x: (L, A, G, B).
        shift: tau / d, like x.
        start: (L, 1, G, 1), at or left of the root.
        moving: the groups to find a root for; others keep their start.
        limit: None is infinity.
    """
    eps = torch.finfo(x.dtype).eps
    r, moving = start, moving.clone()
    for _ in range(_MOST_STEPS):
        line = shift if limit is None else shift * _spread(1 - r / limit, x)
        inverse = torch.add(line, _spread(r, x)).reciprocal_()
        u = (x * inverse).square_()
        square, slope = sums(u), sums(u.mul_(inverse))
        if limit is not None:
            slope = (slope * limit - square) / (limit - r)
        size = square.sqrt()
        new = r + (size - 1) * square / slope
        if limit is not None:
            new = torch.where(slope > 0, new, limit)
        new = torch.where(moving, new, r).clamp_(0, limit)
        moving &= _unsettled(1 - 1 / size, new - r, r, eps, limit)
        r = new
        if not bool(moving.any()):
            break
    return r


def _unsettled(gap: Tensor, step: Tensor, r: Tensor, eps: float, limit: float | None) -> Tensor:
    """Tell where 1 - h may still be above rounding after a step from r, where it was `gap`.

    Without a limit it is at most 1.5 gap * step / r then, for |h''| <= 3 h' / r and h' falls.
    """
    unsettled = gap > 8 * eps
    return unsettled & (1.5 * gap * step > eps * r) if limit is None else unsettled & (r + step < limit)


def _above_one(pull: Tensor) -> Tensor:
    """Above 1, or NaN."""
    return ~(pull <= 1)


def _spread(per_group: Tensor, x: Tensor) -> Tensor:
    """(L, 1, G, 1) in a shape that broadcasts to x fast."""
    length = x.shape[3]
    return per_group if length == 1 or length >= _SHORT else per_group.expand(-1, -1, -1, length).contiguous()
