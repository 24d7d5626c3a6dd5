"""Time a call on a machine that may be busy with other work, and say whether it was.

A fixed computation runs between the calls. On a quiet machine it takes the same time each time, so the spread of its
times is the machine's and not the call's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from kdzoo.evaluation.measuring import measure_latency

#: Largest spread of the reference on a quiet machine, and most that its median may differ between two timings.
QUIET_SPREAD = 0.2
#: Rows and columns of the matrices whose product is the reference. It takes a millisecond or two on one core: a call
#: that is much shorter than a time slice would rarely meet the other work.
REFERENCE_SIDE = 224
#: Calls of one timing: as many as fit into the time, within these bounds.
TIMED_S, LEAST_CALLS, MOST_CALLS, WARMUP = 1.0, 20, 400, 5
#: How often a timing is tried on a busy machine before its quietest try counts.
TRIES = 3


@dataclass(frozen=True)
class Timing:
    """Times of a call, and of the reference between the calls, in milliseconds.

    ``spread`` is how far the reference's 95th percentile lies above its 10th, as a share of the latter.
    """

    p50_ms: float
    p95_ms: float
    reference_ms: float
    spread: float

    @property
    def quiet(self) -> bool:
        """Whether the machine did nothing else in the meantime, as far as the reference shows."""
        return self.spread <= QUIET_SPREAD

    def record(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Timing:
        return cls(**{name: float(record[name]) for name in cls.__dataclass_fields__})


def reference() -> Callable[[], Any]:
    """Return the fixed computation: a matrix product on one core, without a library that may use several."""
    side = np.linspace(-1.0, 1.0, REFERENCE_SIDE**2, dtype=np.float32).reshape(REFERENCE_SIDE, -1)
    return partial(np.einsum, "ij,jk->ik", side, side, optimize=False)


def timed(
    call: Callable[[], Any], tries: int = TRIES, beside: Callable[[], Any] | None = None, calls: int | None = None
) -> Timing:
    """Time a call between calls of the reference; on a busy machine again, at most ``tries`` times.

    The quietest try counts. ``beside`` is another reference and ``calls`` their number. The call must not return before
    its work is done.
    """
    beside = beside or reference()
    call()
    begin = time.perf_counter()
    call()
    beside()
    once = max(time.perf_counter() - begin, 1e-9)
    calls = calls or int(min(max(TIMED_S / once, LEAST_CALLS), MOST_CALLS))
    best = _one_timing(call, beside, calls)
    for _ in range(tries - 1):
        if best.quiet:
            break
        best = min(best, _one_timing(call, beside, calls), key=lambda found: found.spread)
    return best


def _one_timing(call: Callable[[], Any], beside: Callable[[], Any], calls: int) -> Timing:
    spent: list[float] = []

    def noted() -> None:
        begin = time.perf_counter_ns()
        beside()
        spent.append((time.perf_counter_ns() - begin) / 1e6)

    times = measure_latency({"call": call, "reference": noted}, calls, WARMUP)["call"]
    low, high = np.percentile(spent[WARMUP:], (10, 95))
    return Timing(times["p50"], times["p95"], float(np.median(spent[WARMUP:])), float(high / low - 1))


def alike(timings: Sequence[Timing]) -> bool:
    """Whether the reference took as long in all timings, so that they can be compared."""
    if not timings:
        return True
    middle = statistics.median(each.reference_ms for each in timings)
    return all(abs(each.reference_ms / middle - 1) <= QUIET_SPREAD for each in timings)
