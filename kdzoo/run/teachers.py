"""What a stage learns from: networks that answer batch by batch, the store, or folders of answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from kdzoo.contract.algorithm import Algorithm
from kdzoo.contract.stage import ModelSpec
from kdzoo.data.data_set import DataSet
from kdzoo.data.loader import Loader
from kdzoo.errors import NeedsError
from kdzoo.models.network import Network
from kdzoo.plan.stored_answers import why_not_logits, why_not_without_network
from kdzoo.recipe.sections import CacheRecipe, Recipe
from kdzoo.storage.store import Store
from kdzoo.training.device import Precision
from kdzoo.training.kept_logits import KeptLogits
from kdzoo.training.stored_answers import AnsweringTeacher, StoredAnswers
from kdzoo.training.teacher import CachedTeacher, Teacher

#: A teacher before it teaches: its network, or the folder of answers in its place.
Taught = Network | StoredAnswers


class Teachers:
    """Makes the teachers of a recipe's stages, and knows what question their answers belong to."""

    def __init__(
        self,
        recipe: Recipe,
        data: DataSet,
        loader: Loader,
        store: Store,
        device: torch.device,
        environment: Mapping[str, Any],
        data_identity: Callable[[], dict[str, Any]],
    ) -> None:
        self.recipe, self.data, self.loader, self.store = recipe, data, loader, store
        self.device, self.environment = device, environment
        self._data_identity = data_identity
        self._opened: list[StoredAnswers] = []

    def answers(self, spec: ModelSpec) -> StoredAnswers:
        """The folder of answers that ``spec`` names, after it was checked that it answers this recipe's question."""
        for opened in self._opened:
            if opened.spec == spec:
                return opened
        answers, keep = StoredAnswers(spec), self.recipe.cache.keep if self.recipe.cache else None
        answers.check(self.question(spec), self.recipe.views, keep.model_dump() if keep else None)
        answers.check_seen(self.loader, self.recipe.views)
        self._opened.append(answers)
        return answers

    def question(self, spec: ModelSpec) -> dict[str, Any]:
        """What decides which samples a teacher's answers belong to, by the names that a recipe has for it."""
        recipe, identity = self.recipe, self._data_identity()
        own = {name: value for name, value in identity.items() if name not in ("fingerprint", "batch_size")}
        asked = {
            "models.teacher.name": spec.name,
            "models.teacher.modality": spec.modality,
            "data.name": recipe.data.name,
            **{f"data.{name}": value for name, value in own.items()},
            "seed": recipe.seed,
            "number of classes": len(self.data.classes),
            "training samples": self.data.num_train,
            "data.preprocessing": None if self.data.preprocessing is None else self.data.preprocessing.record(),
            "content of the data": identity["fingerprint"],
        }
        return dict(json.loads(json.dumps(asked)))

    def make(
        self, taught: Taught, precision: Precision | None, levels: Sequence[int], cls: type[Algorithm], part: int
    ) -> Teacher | AnsweringTeacher:
        """The teacher of a stage that an algorithm trains; ``part`` is the number of samples in one forward pass."""
        cache, pre_logits = self.recipe.cache, cls.needs.pre_logits
        if isinstance(taught, StoredAnswers):
            if problem := why_not_without_network(cls) or why_not_logits(cls, taught.kept.top_k):
                raise NeedsError(f"models.teacher.weights: {taught.spec.weights}: {problem}")
            return AnsweringTeacher(taught, self.device)
        assert precision is not None
        if cache is None or cls.needs.data == "none":
            return Teacher(taught, levels, pre_logits, precision)
        kept = self._kept(cache, cls)
        if os.environ.get("KDZOO_CACHE") == "off":  # the same bits, computed live
            return Teacher(taught, levels, pre_logits, precision, kept)
        return self.cached(taught, precision, levels, pre_logits, kept, part)

    def cached(
        self,
        network: Network,
        precision: Precision,
        levels: Sequence[int],
        pre_logits: bool,
        kept: KeptLogits | None,
        part: int,
    ) -> CachedTeacher:
        """A teacher that answers from the store. Raises NeedsError where its answers take more room than they may."""
        cache = self.recipe.cache or CacheRecipe(views=self.recipe.views)
        teacher = CachedTeacher(
            network,
            levels,
            pre_logits,
            precision,
            store=self.store,
            loader=self.loader,
            identity={"data": self._data_identity(), "seed": self.recipe.seed, "environment": self.environment},
            verify_fraction=cache.verify_fraction,
            seed=self.recipe.seed,
            batch_size=part,
            kept=kept,
        )
        size = teacher.gib_of_a_view(self.data.num_train) * cache.views
        if size > cache.max_gib:
            raise NeedsError(
                f"cache: {cache.views} views of the teacher's outputs take {size:.3g} GiB, above cache.max_gib: "
                f"{cache.max_gib:g}; lower cache.views, raise cache.max_gib, or leave out the cache"
            )
        return teacher

    def _kept(self, cache: CacheRecipe, cls: type[Algorithm]) -> KeptLogits | None:
        """What the recipe keeps of a teacher's logits. Raises NeedsError where the algorithm needs more."""
        if cache.keep is None:
            return None
        if problem := why_not_logits(cls, cache.keep.top_k):
            raise NeedsError(f"cache.keep: {problem}; leave it out")
        return KeptLogits.of_recipe(cache.keep, len(self.data.classes))
