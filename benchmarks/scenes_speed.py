"""Images per second of the renderer of `scenes`.

    python benchmarks/scenes_speed.py [--quick]

Images of 64x64. The renderer uses one core.
"""

from __future__ import annotations

from collections.abc import Iterator

from common import Measure, main, seconds, spread

from sparsemtl.data.scenes import render

SIDE, COUNT = 64, 256
GOAL = 200


def measures(quick: bool) -> Iterator[Measure]:
    repeats = 2 if quick else 7

    def rate() -> float:
        return COUNT / seconds(lambda: render(0, range(COUNT), SIDE, SIDE))

    rate()
    yield Measure("rendered rooms", spread(rate, repeats), GOAL, "images/s", at_least=True)


if __name__ == "__main__":
    main(measures, __doc__)
