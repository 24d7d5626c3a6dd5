"""What a run needs of the process that it runs in, from Python: a screen, signals, and torch as it was before."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from kdzoo.errors import KdzooError, NeedsError

if TYPE_CHECKING:
    import pandas

    from kdzoo.terminal import Screen

# As the command line has it; both matter only where torch is not imported yet.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning barriers are far slower beside a busy neighbour
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch takes large tensors in huge pages: far fewer page faults

S = TypeVar("S", bound="Screen")


def screen(kind: type[S], progress: bool) -> S:
    """Return what shows progress: in a notebook lines below the cell, else as the command line does, on stderr."""
    from rich.console import Console

    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if progress and hasattr(shell, "kernel"):
        # A kernel asks libraries for a terminal's colours, and shows a live line as many.
        return kind(console=Console(file=sys.stdout, force_jupyter=False, force_terminal=False))
    return kind(silent=not progress)


@contextlib.contextmanager
def stop_asked() -> Iterator[Callable[[], int]]:
    """Turn Ctrl-C into a flag, where Python lets it: signals arrive in the main thread alone."""
    from kdzoo.terminal import stop_signals

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    with stop_signals(exits=False) as asked:
        yield asked


@contextlib.contextmanager
def process_as_before() -> Iterator[None]:
    """Afterwards torch's switches, threads and random state are the caller's again."""
    import torch  # so that its switches are watched  # noqa: F401

    from kdzoo.zoo.process_state import given_back

    with given_back([]):
        yield


def check_alone(function: str) -> None:
    """Raise NeedsError in one of several processes that torchrun started."""
    if "WORLD_SIZE" in os.environ:
        raise NeedsError(
            f"{function}: this is one of {os.environ['WORLD_SIZE']} processes that torchrun started (WORLD_SIZE is "
            "set); start several processes with kdzoo run --processes"
        )


def data_frame(rows: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    """Return rows as a DataFrame; KdzooError without pandas."""
    try:
        import pandas
    except ImportError:
        raise KdzooError('a DataFrame needs pandas: pip install "kdzoo[pandas]"') from None
    return pandas.DataFrame(rows)
