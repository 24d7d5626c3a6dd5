"""Things that go wrong, or are slowed down, in a process under test: each is called before the command starts."""

from __future__ import annotations

import time
from typing import Any

from kdzoo import engine


def slow_steps() -> None:
    """Every optimizer step takes 20 ms longer, so that a signal can meet one."""
    whole = engine.Engine._train_step

    def slow(self: Any, *arguments: Any) -> None:
        time.sleep(0.02)
        whole(self, *arguments)

    engine.Engine._train_step = slow


def forget_the_optimizer() -> None:
    """A resumed stage starts with fresh momenta."""
    restore = engine.Engine.restore

    def forgetful(self: Any, tensors: Any, state: Any) -> None:
        kept = {name: value for name, value in tensors.items() if not name.startswith("optimizer/")}
        restore(self, kept, state)

    engine.Engine.restore = forgetful


def order_by_the_clock() -> None:
    """Samples come in another order each time the program is started."""
    from kdzoo.data import Loader

    order, started = Loader.order, time.time_ns()
    Loader.order = lambda self, epoch: order(self, epoch + started % 1_000_003)


def slow_delivery() -> None:
    """Say that the evaluation has begun, and wait a second before it ends."""
    import sys

    from kdzoo.delivery import Delivery

    whole = Delivery._latency

    def slow(self: Any, *arguments: Any) -> None:
        print("measuring", file=sys.stderr)
        time.sleep(1)
        whole(self, *arguments)

    Delivery._latency = slow


def slow_data() -> None:
    """Opening the data set takes a second."""
    import sys

    from kdzoo import building

    whole = building.open_data

    def slow(*arguments: Any) -> Any:
        print("opening", file=sys.stderr)
        time.sleep(1)
        return whole(*arguments)

    building.open_data = slow


def endless_step() -> None:
    """The fortieth optimizer step takes a minute, and says so."""
    import sys

    whole = engine.Engine._train_step

    def slow(self: Any, *arguments: Any) -> None:
        if self.step == 40:
            print("endless", file=sys.stderr)
            time.sleep(60)
        whole(self, *arguments)

    engine.Engine._train_step = slow
