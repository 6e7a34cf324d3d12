r"""Proximal maps, exact, for all groups at once.

For a step of size lr in the metric D = diag(d), the map of a penalty R is

    z = argmin_z  1/2 sum_j d_j (x_j - z_j)^2  +  lr R(z);

without a metric D is the identity, and the map is the plain one. If R has the slope lambda at zero, z depends on
the *shift* lr lambda / d alone, which the functions here take: a tensor like x, or a number for the plain map. They
take x in the shape (L, A, G, B), in which `x[l, :, g, :]` is one group (see `groups.py`), change x in place, and
return a mask of the groups that are not zero, shape (L, 1, G, 1). NaN counts as not zero, and stays NaN. Tensors of
shifts must be above zero.

Group lasso, R(z) = lambda ||z|| (Deleu & Bengio 2021). z = 0 iff ||x / shift|| <= 1. Else
z_j = r x_j / (r + shift_j), where r = ||z|| is the root of

    h(r) = 1 / ||u(r)|| = 1,   u_j = x_j / (r + shift_j).

h is increasing and concave (it is the power mean of exponent -2 of functions linear in r), and linear if all shifts are
equal: Newton's method that starts left of the root climbs to the root and never steps over it. At an approximate root
the optimality condition d (z - x) + lr lambda z / ||z|| = 0 holds up to a fraction h(r) - 1 of d x. That fraction is
made small: it is well conditioned at the threshold, where r itself is not.

Group MCP, R(z) = lambda ||z|| - ||z||^2 / (2 gamma) up to ||z|| = limit = gamma lambda and constant from there (Zhang
2010; Huang, Breheny & Ma 2012). Above, shift becomes shift (1 - r / limit): u is still 1 over a function linear in r,
and h still concave on [0, limit]. So the problem, though not convex, has at most two local minima: the smallest root
(or zero), and x itself if ||x|| > limit. We compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_MOST_STEPS = 100
"""Largest number of Newton steps; one is usual, and ten are rare."""
_CLEARLY = 0.01
"""Fraction of ||x|| beyond which a root exists, whatever the rounding."""
CACHED = 2**18
"""Number of entries that fit into a processor's cache together with intermediate results."""
_SHORT = 64
"""Length below which rows are too short for broadcasts by vector instructions, and for matrix products."""

Scratch = Callable[[str, Tensor], Tensor]
"""Name, tensor -> contiguous memory of the tensor's shape and dtype to compute in."""


class Reused:
    """Memory that is reused: on a CPU, fresh pages cost more time than the computation in them."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, like: Tensor) -> Tensor:
        """Return the same memory for the same name, in the shape, dtype and device of `like`."""
        buffer = self._buffers.get(name)
        size, kind = like.numel(), (like.dtype, like.device)
        if buffer is None or buffer.numel() < size or (buffer.dtype, buffer.device) != kind:
            buffer = self._buffers[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return buffer[:size].view(like.shape)


def fresh(name: str, like: Tensor) -> Tensor:
    """Return new memory at every call."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def sums(x: Tensor) -> Tensor:
    """Sum over every group: (L, A, G, B) -> (L, 1, G, 1)."""
    slabs, inner, groups, outer = x.shape
    if slabs == 1 and inner >= _SHORT and x.is_contiguous():
        x = x.view(inner, -1).mT.mv(x.new_ones(inner)).view(1, 1, groups, outer)  # faster than torch's sum
    elif inner > 1:
        x = x.sum(1, keepdim=True)
    if outer >= _SHORT and x.is_contiguous():
        return x.view(-1, outer).mv(x.new_ones(outer)).view(slabs, 1, groups, 1)
    return x.sum(3, keepdim=True) if outer > 1 or inner == 1 else x


def norms(x: Tensor, scratch: Scratch = fresh) -> Tensor:
    """Return the Euclidean norm of every group: (L, A, G, B) -> (L, 1, G, 1)."""
    rows = max(1, CACHED * x.shape[1] // max(1, x.numel())) if x.device.type == "cpu" else x.shape[1]
    squares = [sums(torch.mul(slab, slab, out=scratch("a", slab))) for slab in x.split(rows, 1)]
    return sum(squares[1:], start=squares[0]).sqrt_()


def l1_pull(x: Tensor, shift: Tensor | float) -> Tensor:
    """Return |x| / shift, above 1 where l1 does not make the entry zero; the shape of x."""
    return (x / shift).abs_()


def lasso_pull(x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
    """Return ||x / shift||, above 1 where group lasso does not make the group zero; (L, 1, G, 1)."""
    if isinstance(shift, Tensor):
        return sums(torch.div(x, shift, out=scratch("a", x)).square_()).sqrt_()
    return norms(x, scratch).div_(shift)


def mcp_pull(x: Tensor, shift: Tensor | float, limit: float, scratch: Scratch = fresh) -> Tensor:
    """Return a number above 1 where group MCP does not make the group zero; (L, 1, G, 1)."""
    size, pull = norms(x, scratch), lasso_pull(x, shift, scratch)
    unbent = (sums(torch.mul(x, x, out=scratch("a", x)).div_(shift)) / limit).sqrt_()
    return torch.where(size > limit, torch.maximum(pull, unbent), pull)


def mcp_critical_factor(x: Tensor, shift: Tensor | float, limit: float, scratch: Scratch = fresh) -> Tensor:
    """Return the least factor on shift and limit at which group MCP makes the group zero; (L, 1, G, 1).

    A factor f divides all three of `mcp_pull`'s numbers by f: the group becomes zero once the pull is below 1 and,
    unless the limit has grown to its size, the unbent one too.
    """
    size, pull = norms(x, scratch), lasso_pull(x, shift, scratch)
    unbent = (sums(torch.mul(x, x, out=scratch("a", x)).div_(shift)) / limit).sqrt_()
    return torch.maximum(pull, torch.minimum(size / limit, unbent))


def l1_(x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
    """Apply the soft threshold z_j = sign(x_j) max(0, |x_j| - shift_j)."""
    bounded = scratch("a", x)
    if isinstance(shift, Tensor):
        torch.clamp(x, torch.neg(shift, out=bounded), shift, out=bounded)
    else:
        torch.clamp(x, -shift, shift, out=bounded)
    return x.sub_(bounded) != 0


def group_lasso_(x: Tensor, shift: Tensor | float, scratch: Scratch = fresh) -> Tensor:
    """Apply the proximal map of group lasso; a tensor of shifts is changed."""
    if not isinstance(shift, Tensor):
        factor = (1 - _over(shift, norms(x, scratch))).clamp_(min=0)
        x.mul_(_spread(factor, x))
        return factor != 0
    radius = _lasso_radius(x, shift, scratch)
    spread = _spread(radius, x)
    x.mul_(torch.div(spread, shift.add_(spread), out=shift))
    return ~(radius <= 0)


def group_mcp_(x: Tensor, shift: Tensor | float, limit: float, scratch: Scratch = fresh) -> Tensor:
    """Apply the proximal map of group MCP; `limit` is the norm above which a group is not shrunk."""
    size = norms(x, scratch)
    if not isinstance(shift, Tensor):
        factor = _mcp_factor(size, shift, limit)
        x.mul_(_spread(factor, x))
        return factor != 0
    pulled = ~(lasso_pull(x, shift, scratch) <= 1)
    start = torch.where(pulled, _nearest(x, shift, scratch).clamp_(max=limit), 0)
    radius = _mcp_radius(x, shift, limit, start, pulled, scratch)
    spread = _spread(radius, x)
    factor = torch.mul(shift, 1 - spread / limit, out=scratch("b", x)).add_(spread)
    factor = torch.div(spread, factor, out=factor)
    lost = torch.mul(x, factor, out=scratch("a", x)).sub_(x).square_().div_(shift)
    cost = sums(lost) / 2 + radius - radius.square() / (2 * limit)
    unbent = (radius >= limit) | ((size > limit) & (cost > limit / 2))
    x.mul_(factor.masked_fill_(unbent, 1))
    return ~(radius <= 0) | unbent


def _mcp_factor(size: Tensor, shift: float, limit: float) -> Tensor:
    """Return z / x of the plain map: firm thresholding, or hard where the penalty bends more than the parabola."""
    if shift < limit:
        return ((1 - _over(shift, size)) / (1 - shift / limit)).clamp_(0, 1)
    return (~(size <= math.sqrt(shift * limit))).to(size.dtype)


def _over(shift: float, size: Tensor) -> Tensor:
    """Return shift / size; infinite for a group of zeros, even with a shift of zero."""
    return torch.where(size <= 0, torch.inf, shift / size)


def _lasso_radius(x: Tensor, shift: Tensor, scratch: Scratch) -> Tensor:
    """Return ||z|| of group lasso."""
    squares = torch.mul(x, x, out=scratch("a", x))
    square = sums(squares)
    reach = square.sqrt()
    left = reach - sums(squares.mul_(shift)) / square  # where h's asymptote is 1; h lies under it
    moving = left > _CLEARLY * reach
    if not bool(moving.all()):
        moving = ~(lasso_pull(x, shift, scratch) <= 1)
        left = torch.where(left > 0, left, _nearest(x, shift, scratch))
    return _lasso_root(x, shift, torch.where(moving, left, 0), moving, reach, scratch)


def _lasso_root(x: Tensor, shift: Tensor, r: Tensor, moving: Tensor, reach: Tensor, scratch: Scratch) -> Tensor:
    """Return the root of h.

    Args:
        x: (L, A, G, B).
        shift: like x.
        r: start of the search, at or left of the root; (L, 1, G, 1).
        moving: groups to find a root for; the others keep their start.
        reach: ||x||.
        scratch: returns memory.
    """
    rounding = 4 * torch.finfo(x.dtype).eps
    for _ in range(_MOST_STEPS):
        inverse = torch.add(shift, _spread(r, shift), out=scratch("b", shift)).reciprocal_()
        u = torch.mul(inverse, x, out=scratch("a", x)).square_()
        square = sums(u)
        size = square.sqrt()
        gap = 1 - 1 / size
        # r / h is left of the root as well, and nearer by r / ||x|| of the gap at least, as h' >= 1 / ||x||.
        if not bool((moving & ((r <= 0) | (gap * (1 - r / reach) > rounding))).any()):
            return torch.where(moving, r * size, r)
        slope = sums(u.mul_(inverse))
        new = torch.where(moving, r + (size - 1) * square / slope, r).clamp_(min=0)
        # The gap is at most 1.5 gap (new - r) / r there, as |h''| <= 3 h' / r and h' falls.
        moving = moving & (gap > rounding) & (1.5 * gap * (new - r) > rounding * r)
        r = new
        if not bool(moving.any()):
            break
    return r


def _mcp_radius(x: Tensor, shift: Tensor, limit: float, r: Tensor, moving: Tensor, scratch: Scratch) -> Tensor:
    """Return the smallest root of group MCP's h, or `limit` where there is none below; see `_lasso_root`."""
    rounding = 4 * torch.finfo(x.dtype).eps
    for _ in range(_MOST_STEPS):
        bent = torch.mul(shift, _spread(1 - r / limit, x), out=scratch("b", x))
        inverse = bent.add_(_spread(r, x)).reciprocal_()
        u = torch.mul(x, inverse, out=scratch("a", x)).square_()
        square, size = (total := sums(u)), total.sqrt()
        slope = (sums(u.mul_(inverse)) - square / limit) / (1 - r / limit)
        new = torch.where(slope > 0, r + (size - 1) * square / slope, limit)
        new = torch.where(moving, new, r).clamp_(0, limit)
        moving = moving & (1 - 1 / size > rounding) & (new < limit)
        r = new
        if not bool(moving.any()):
            break
    return r


def _nearest(x: Tensor, shift: Tensor, scratch: Scratch) -> Tensor:
    """Return the largest |x_j| - shift_j, at least 0: left of any root, and right enough that no u_j is above 1."""
    return torch.abs(x, out=scratch("a", x)).sub_(shift).amax((1, 3), keepdim=True).clamp_(min=0)


def _spread(per_group: Tensor, x: Tensor) -> Tensor:
    """Return (L, 1, G, 1) in a shape that broadcasts to x fast."""
    length = x.shape[3]
    return per_group if length == 1 or length >= _SHORT else per_group.expand(-1, -1, -1, length).contiguous()
