"""A search over a student's arguments; a killed run repeats it step by step.

Proposals depend on the seed and on the scores so far. The scores come from the store of stages, so a repeated search
asks the same again. It writes its journal again each time, so the journal cannot disagree; other tools may read it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdzoo.api import KdzooError, ModelSpec

#: Optuna's file in the run's own folder; `optuna-dashboard` and others read it while the search goes on.
JOURNAL = "journal.log"

Point = tuple[int, ...]  # a place in the space: which value of each dimension


def load_optuna() -> Any:
    """Import optuna, which is optional; KdzooError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise KdzooError(
            "algorithm 'nas_kd': optuna is not installed; pip install \"kdzoo[search]\" would be right"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(frozen=True)
class Dimension:
    """One dimension of the space: an argument of the model, or its input size if ``arg`` is None."""

    name: str
    arg: str | None
    values: tuple[Any, ...]

    def put(self, spec: ModelSpec, index: int) -> ModelSpec:
        value = self.values[index]
        return replace(spec, size=value) if self.arg is None else replace(spec, args={**spec.args, self.arg: value})


@dataclass(frozen=True)
class Trial:
    """A candidate to train."""

    number: int  # of the journal, which also numbers candidates that were not trained
    point: Point
    spec: ModelSpec = field(compare=False)


class Search:
    """Proposes candidates within a budget, batch by batch, and receives the score of each.

    ``budget`` maps a cost to its limit, ``cost`` computes a candidate's: params_m, macs_g or latency_ms. The same calls
    and answers give the same proposals. The journal is written to ``folder``; None keeps it in memory.
    """

    def __init__(
        self,
        student: ModelSpec,
        space: Sequence[Dimension],
        budget: Mapping[str, float],
        cost: Callable[[ModelSpec, str], float],
        *,
        trials: int,
        random_trials: int,
        seed: int,
        folder: Path | None = None,
    ) -> None:
        self.student, self.space, self.budget, self.cost = student, tuple(space), dict(budget), cost
        self.left = trials
        self.seen: dict[Point, int] = {}  # every point asked for -> the number of its trial
        self.scores: dict[Trial, float] = {}
        self._optuna = load_optuna()
        self._draw = random.Random(seed)
        sampler = self._optuna.samplers.TPESampler(n_startup_trials=random_trials, seed=seed % 2**32)
        distribution = self._optuna.distributions.IntDistribution
        # Places in the list, not values: neighbours in the recipe's list count as similar.
        self._distributions = {d.name: distribution(0, len(d.values) - 1) for d in self.space}
        self._study = self._optuna.create_study(
            storage=self._storage(folder), sampler=sampler, study_name="search", direction="maximize"
        )

    def _storage(self, folder: Path | None) -> Any:
        if folder is None:
            return None
        for left in folder.glob(f"{JOURNAL}*"):  # a killed run's journal, and its lock
            left.unlink()
        storages = self._optuna.storages
        return storages.JournalStorage(storages.journal.JournalFileBackend(str(folder / JOURNAL)))

    # --- asking -------------------------------------------------------------------------------

    def ask(self, most: int) -> list[Trial]:
        """Return the next batch of candidates to train, ``most`` at most; empty when the search is over."""
        batch: list[Trial] = []
        while self.left > 0 and len(batch) < most:
            trial = self._next()
            if trial is None:
                self.left = 0  # every point of the space was asked for
            else:
                batch.append(trial)
                self.left -= 1
        return batch

    def _next(self) -> Trial | None:
        """The next new candidate within the budget; the sampler learns of those over it, but they are not trained."""
        size = 1
        for dimension in self.space:
            size *= len(dimension.values)
        while len(self.seen) < size:
            asked, point = self._propose(None)
            if point in self.seen:
                self._leave(asked, "FAIL", f"repeats trial {self.seen[point]}")
                asked, point = self._propose(self._unseen())
            self.seen[point] = asked.number
            spec = self.spec(point)
            over = self.over_budget(spec)
            if not over:
                return Trial(asked.number, point, spec)
            self._leave(asked, "PRUNED", over)
        return None

    def _propose(self, point: Point | None) -> tuple[Any, Point]:
        """One more trial of the journal: the sampler's choice, or ``point``."""
        if point is not None:
            self._study.enqueue_trial({d.name: index for d, index in zip(self.space, point, strict=True)})
        asked = self._study.ask(self._distributions)
        return asked, tuple(asked.params[dimension.name] for dimension in self.space)

    def _unseen(self) -> Point:
        while True:
            point = tuple(self._draw.randrange(len(dimension.values)) for dimension in self.space)
            if point not in self.seen:
                return point

    def _leave(self, asked: Any, state: str, why: str) -> None:
        asked.set_user_attr("why", why)
        self._study.tell(asked, state=self._optuna.trial.TrialState[state])

    def spec(self, point: Point) -> ModelSpec:
        """The student at a point of the space."""
        spec = self.student
        for dimension, index in zip(self.space, point, strict=True):
            spec = dimension.put(spec, index)
        return spec

    def over_budget(self, spec: ModelSpec) -> str:
        """The limits that a model exceeds, in words; empty if none."""
        for name, limit in self.budget.items():
            cost = self.cost(spec, name)
            if cost > limit:
                return f"{name} is {cost:.4g}, over {limit:.4g}"
        return ""

    # --- telling ------------------------------------------------------------------------------

    def tell(self, trial: Trial, top1_percent: float) -> None:
        """Record a candidate's accuracy on the validation split, in percent."""
        self.scores[trial] = top1_percent
        self._study.tell(trial.number, top1_percent)

    def best(self) -> Trial:
        """The best candidate; of equals the one with fewer parameters, then the earlier one."""
        return min(self.scores, key=lambda t: (-self.scores[t], self.cost(t.spec, "params_m"), t.number))
