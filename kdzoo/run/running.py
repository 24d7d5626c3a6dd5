"""A run from its folder to its report, or to the place where it is resumed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from kdzoo.errors import Interrupted, KdzooError
from kdzoo.plan.filled import filled
from kdzoo.plan.resolve import Plan
from kdzoo.recipe.reading import dump_recipe, recipe_hash
from kdzoo.report.writing import write_report
from kdzoo.run.builder import Builder
from kdzoo.run.result_key import result_key, training_key
from kdzoo.run.runner import Display, Runner
from kdzoo.storage.run_folder import RunFolder
from kdzoo.storage.store import Store
from kdzoo.training.parallel import Ranks
from kdzoo.zoo.offered import Zoo


class LiveDisplay(Display, AbstractContextManager[Any], Protocol):
    """A display that is on the screen between its enter and its exit."""


def run_plan(
    plan: Plan,
    zoo: Zoo,
    out: Path,
    ranks: Ranks,
    display: LiveDisplay,
    stop: Callable[[], int],
    *,
    new: bool,
    resume: bool,
) -> tuple[Path, dict[str, Any] | None, bool]:
    """Run a plan in a folder below ``out``: a new one, or one that waits to be resumed.

    Returns the folder, the results (None on every process but the first), and whether the run was finished before.
    ``stop`` returns the number of the signal that asked the process to stop, or 0; Interrupted is raised once it has.
    """
    recipe = filled(plan.recipe, zoo)
    ranks.agree("the recipe", recipe_hash(recipe))
    folder = None
    if ranks.first:
        folder = RunFolder.start(
            out,
            name=recipe.name,
            seed=recipe.seed,
            recipe_text=dump_recipe(recipe),
            recipe_hash=recipe_hash(recipe),
            recipe_fields=recipe.model_dump(mode="json"),
            new=new,
            resume=resume,
            result_key=lambda: result_key(Builder(plan, Store(out / ".store"), ranks)),
            training_key=lambda: training_key(Builder(plan, Store(out / ".store"), ranks)),
            warn=display.note,
        )
    place = ranks.broadcast(str(folder.root) if folder else "")
    folder = folder or RunFolder.view(Path(place))
    ranks.barrier()  # before the first one may abandon it
    with folder:
        if folder.finished:
            return folder.root, folder.read_json("results.json") if ranks.first else None, True
        if folder.resumed:
            display.note(f"resuming {folder.root}")
        try:
            store = Store(out / ".store", folder.uses if ranks.first else None)
            runner = Runner(plan, zoo, folder, store, ranks, display, stop)
            runner.rehearse()
            # Now, as an edit during the run is not what ran.
            keys = (result_key(runner.build), training_key(runner.build)) if ranks.first else ()
        except KdzooError:
            folder.abandon()  # nothing was trained, so the mended recipe need not be a new run
            raise
        with display, runner.log.until_the_end():
            results = runner.run()
            if not ranks.first:
                return folder.root, None, False
            write_report(folder.root)
            folder.finish(*keys)
            runner.log.finish(results)
    ranks.close()
    if stop():  # too late to stop anything, but whoever asked must not take it for a run that was left alone
        raise Interrupted(f"the run had finished when it was asked to stop: {folder.root}", 128 + stop())
    return folder.root, results, False
