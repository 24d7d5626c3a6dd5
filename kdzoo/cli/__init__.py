"""The command line: the only place that prints, and that catches what a user can mend.

Exit codes: 0 done; 1 not reproduced, undecided or not conforming; 2 recipe, names, needs; 3 damaged files; 4 output;
5 locked; 6 diverged; 7 memory; 8 data; 9 export rejected; 10 processes disagree; 11 executor; 130 and 143
interrupted, state saved.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Annotated

import typer

from kdzoo.cli import authoring, looking, run_folders, running, runs, studies, suggest, teacher
from kdzoo.terminal import say, warn

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning barriers are far slower beside a busy neighbour
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch takes large tensors in huge pages: far fewer page faults

app = typer.Typer(
    name="kdzoo",
    help="Distil a large model into a small one, and see whether it was worth it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from kdzoo.version import __version__

        say(f"kdzoo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="Write no colours; so does NO_COLOR=1.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


for module in (running, studies, suggest, teacher, looking, run_folders, runs, authoring):
    app.add_typer(module.commands)


def main() -> None:
    """Run the command line; a KdzooError is one clear message and its exit code."""
    debug = "--debug" in sys.argv or bool(os.environ.get("KDZOO_DEBUG"))
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
    if "--no-color" in sys.argv:  # anywhere, and for the processes that this one starts
        sys.argv.remove("--no-color")
        os.environ["NO_COLOR"] = "1"
    from kdzoo.errors import Interrupted, KdzooError, shown

    if hidden := [each for each in sys.argv[1:] if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", each)]:
        warn(f"error: {shown(hidden[0])}: an argument may not hold control characters")
        raise SystemExit(2)
    try:
        app(standalone_mode=True)
    except KdzooError as error:
        if debug:
            raise
        warn(error if isinstance(error, Interrupted) else f"error: {error}")
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        os._exit(1)
