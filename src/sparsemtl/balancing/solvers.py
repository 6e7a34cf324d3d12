"""Weights of gradients as solutions of small problems: T unknowns, T being the number of tasks, exact to rounding.

The Gramian (T, T) of the tasks' gradients stands for the gradients themselves. On the simplex the minimum is found by
active sets (Wolfe 1976): the set of unknowns above zero grows by the one that lowers the value most, and loses those
that reach zero on the way to the minimum over the set. The number of steps is finite; there is no tolerance to choose.
"""

from __future__ import annotations

from math import copysign, inf, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_STATIONARY = 1e-4
"""Length of a combined gradient, over the root of the sum of all squared entries, below which CAGrad takes no step."""

_ROUNDING = 1e-14


def min_norm_weights(gramian: Array) -> Array:
    """Return the weights (T,) of the shortest vector in the convex hull of the gradients.

    Args:
        gramian: G (T, T), the gradients' inner products; the weights w minimize w'Gw on the simplex.
    """
    return _minimum(gramian, np.zeros(len(gramian)), 0.0)[0]


def cagrad_weights(gramian: Array, c: float) -> Array:
    """Return the weights (T,) of the conflict-averse gradient (Liu et al. 2021).

    It is the mean of the gradients plus a vector of length c ||mean|| in the direction of the combination w on the
    simplex that minimizes w'b + c ||mean|| sqrt(w'Gw), with b = G 1/T. At the minimum, w also minimizes
    w'Gw / 2 + s w'b for s = sqrt(w'Gw) / (c ||mean||). This s is found by Newton steps, exact once the active set is
    the right one, inside of bounds that close in on s.

    Args:
        gramian: G (T, T), the gradients' inner products.
        c: radius of the ball around the mean, over the mean's length. A single gradient stays as it is.
    """
    tasks = len(gramian)
    mean, trace = np.full(tasks, 1 / tasks), gramian.trace()
    if tasks == 1 or trace <= 0:
        return mean
    gramian = gramian / trace
    linear = gramian @ mean
    radius = c * sqrt(max(0.0, float(linear @ mean)))
    if radius == 0:
        return mean
    low, high, s = 0.0, inf, 1 / c
    for _ in range(100):
        w, line = _minimum(gramian, linear, s)
        length = sqrt(max(0.0, float(w @ gramian @ w)))
        if length > radius * s:
            low = s
        else:
            high = s
        if radius * high < _STATIONARY:
            return np.zeros(tasks)  # the length grows with s, so the one at the minimum is smaller still
        better = _crossing(gramian, line, radius, near=s)
        if abs(better - s) <= 1e-12 * s:
            break
        s = better if low < better < high else min(2 * low, (low + high) / 2)
    return mean + radius / length * w if length >= _STATIONARY else np.zeros(tasks)


def nash_weights(gramian: Array, rounding: float) -> Array:
    """Return the weights w (T,) of the Nash bargaining solution, Gw = 1/w (Navon et al. 2022).

    They are where w'Gw / 2 - sum log(w), which is convex, has its minimum. Damped Newton steps find it from anywhere.
    A gradient of zero has the weight zero; a single gradient stays as it is. Gradients that cancel have no solution:
    their weights become so large that the combined gradient is zero to rounding.

    Args:
        gramian: G (T, T), the gradients' inner products.
        rounding: relative error of the inner products.
    """
    if len(gramian) == 1:
        return np.ones(1)
    lengths = np.sqrt(gramian.diagonal().clip(min=0))
    some = lengths > 0
    scale = lengths[some]
    cosines = gramian[np.ix_(some, some)] / np.outer(scale, scale)
    cosines += len(scale) * rounding * np.eye(len(scale))
    w = np.ones(len(scale))
    for _ in range(200):
        gradient = cosines @ w - 1 / w
        step = np.linalg.solve(cosines + np.diag(w**-2), gradient)
        decrement = sqrt(max(0.0, float(gradient @ step)))
        w = w - step / (1 + decrement if decrement > 0.25 else 1)
        if decrement < 1e-9:  # the next one would be its square
            break
    weights = np.zeros(len(gramian))
    weights[some] = w / scale
    return weights


class _Line(NamedTuple):
    """Minimizers start + s direction of w'Gw / 2 + s w'b over the affine hull of an active set, for every s."""

    start: Array
    direction: Array


def _minimum(gramian: Array, linear: Array, s: float) -> tuple[Array, _Line]:
    """Minimize w'Gw / 2 + s w'b on the simplex; return w, and the minimizers for other s with the same active set."""
    sizes = np.abs(gramian)
    active = [int(np.argmin(gramian.diagonal() / 2 + s * linear))]
    line = _stationary(gramian, linear, active)
    w = line.start
    for _ in range(50 * len(gramian)):
        if len(active) == len(gramian):
            break
        slopes = gramian @ w + s * linear
        new = int(np.argmin(slopes))
        if new in active:
            break
        rounding = _ROUNDING * (sizes @ w + s * np.abs(linear))
        if slopes[new] >= w @ slopes - rounding[new] - w @ rounding:
            break
        active.append(new)
        while True:
            line = _stationary(gramian, linear, active)
            goal = line.start + s * line.direction
            if (goal[active] > 0).all():
                w = goal
                break
            part, first = min((w[i] / (w[i] - goal[i]), i) for i in active if goal[i] <= 0)
            w = (w + part * (goal - w)).clip(min=0)
            w[first] = 0.0
            active = [i for i in active if w[i] > 0]
        if new not in active:  # rounding
            break
    return w, line


def _stationary(gramian: Array, linear: Array, active: list[int]) -> _Line:
    """Return the minimizers over the affine hull of an active set, whose gradients are affinely independent.

    The unknowns are the differences from the shortest gradient, scaled, so that gradients of any lengths are exact.
    """
    start, direction = np.zeros(len(gramian)), np.zeros(len(gramian))
    base = min(active, key=lambda i: gramian[i, i])
    start[base] = 1.0
    others = [i for i in active if i != base]
    if others:
        to_base = gramian[others, base]
        inner = gramian[others][:, others] - to_base - to_base[:, None] + gramian[base, base]
        right = np.stack([gramian[base, base] - to_base, linear[base] - linear[others]], axis=1)
        scale = np.sqrt(inner.diagonal().clip(min=np.finfo(float).tiny))
        solution = np.linalg.lstsq(inner / (scale[:, None] * scale), right / scale[:, None], rcond=None)[0]
        start[others], direction[others] = (solution / scale[:, None]).T
        start[base], direction[base] = 1 - start[others].sum(), -direction[others].sum()
    return _Line(start, direction)


def _crossing(gramian: Array, line: _Line, radius: float, *, near: float) -> float:
    """Return the s > 0 next to `near` at which the vector of a line has the length s radius; NaN if there is none."""
    p, q = line
    a, half, c = float(q @ gramian @ q) - radius**2, float(p @ gramian @ q), float(p @ gramian @ p)
    square = half**2 - a * c
    if square < 0:
        return np.nan
    sum_ = -half - copysign(sqrt(square), half)
    roots = [sum_ / a if a else np.nan, c / sum_ if sum_ else np.nan]
    return min((s for s in roots if s > 0), key=lambda s: abs(s - near), default=np.nan)
