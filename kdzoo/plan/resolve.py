"""From a recipe and the zoo to a plan: every name looked up, every plugin's options validated.

What a recipe gets wrong comes out at once, in one RecipeError with the recipe's lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from kdzoo.contract.declared import bounds
from kdzoo.contract.extension_points import DataSource, Exporter, Offer, OfferOptions, Quantizer, Tracker
from kdzoo.contract.stage import AlgorithmChoice, ModelSpec
from kdzoo.errors import KdzooError, PluginError, RecipeError, UnknownName, shown
from kdzoo.plan.schema import fits
from kdzoo.plan.stored_answers import why_not_logits, why_not_without_network
from kdzoo.recipe.problems import PREPROCESSING, RecipeProblems, explain, unknown_key
from kdzoo.recipe.reading import LoadedRecipe
from kdzoo.recipe.sections import AlgorithmRecipe, DataRecipe, ExportRecipe, ModelRecipe, Recipe
from kdzoo.zoo.cards import Card, plans_stages
from kdzoo.zoo.offered import Zoo

if TYPE_CHECKING:
    from kdzoo.contract.algorithm import Algorithm, AlgorithmOptions

Report = Callable[[str, str], None]  # path, message
Section = TypeVar("Section", bound=BaseModel)


@dataclass(frozen=True)
class ResolvedAlgorithm:
    """An algorithm ready to be built. ``loss_weights`` are complete, ``choice`` is what was asked for."""

    cls: type[Algorithm]
    options: AlgorithmOptions
    loss_weights: Mapping[str, float]
    choice: AlgorithmChoice
    offer: Offer


@dataclass(frozen=True)
class ResolvedTracker:
    """A tracker ready to be made."""

    cls: type[Tracker]
    options: OfferOptions


@dataclass(frozen=True)
class Plan:
    """A resolved recipe: everything a run needs that does not depend on data or device."""

    recipe: Recipe
    path: Path
    algorithm: ResolvedAlgorithm
    delegate: ResolvedAlgorithm | None  # the algorithm that ``Algorithm.delegate`` names
    student: ModelSpec
    teachers: tuple[ModelSpec, ...]
    assistants: tuple[ModelSpec, ...]
    peers: tuple[ModelSpec, ...]
    source: DataSource
    exporters: tuple[Exporter, ...]
    trackers: tuple[ResolvedTracker, ...]
    provenance: Mapping[str, Mapping[str, str]]  # plugin -> distribution and version
    quantizers: Mapping[str, type[Quantizer]] = field(default_factory=dict)  # every offered one, by name


def resolve(loaded: LoadedRecipe, zoo: Zoo) -> Plan:
    """Return the plan of a recipe; raise RecipeError with everything in it that no plugin meets."""
    recipe, problems = loaded.recipe, loaded.problems()
    chosen, source, exporters, trackers = _parts(recipe, zoo, problems)
    problems.raise_if_any()
    assert chosen is not None
    assert source is not None
    models = recipe.models
    return Plan(
        recipe=recipe,
        path=loaded.path,
        algorithm=chosen[0],
        delegate=chosen[1],
        student=spec_of(models.student),
        teachers=tuple(map(teacher_spec, models.all_teachers)),
        assistants=tuple(map(spec_of, models.assistants)),
        peers=tuple(map(spec_of, models.peers)),
        source=source,
        exporters=tuple(exporters),
        trackers=tuple(trackers),
        provenance=_provenance(recipe, chosen, zoo),
        quantizers={name: offer.thing for name, offer in zoo.quantizers.items()},
    )


def _parts(recipe: Recipe, zoo: Zoo, problems: RecipeProblems) -> Any:
    """Look up everything that a recipe names: the algorithm and its delegate, data set, exporters and trackers."""
    algorithm = recipe.algorithm
    chosen = _resolve(algorithm.name, algorithm.options, algorithm.loss_weights, zoo, _below("algorithm", problems))
    if algorithm.name in zoo.algorithms:
        for path, message in unmet_needs(zoo.algorithms[algorithm.name].thing, recipe):
            problems.add(path, message)
    if chosen and chosen[1]:
        for path, message in _unmet_batch(chosen[1].cls, recipe):
            problems.add(path, message)
    if chosen and recipe.cache and recipe.cache.keep:
        keep = recipe.cache.keep
        problem = why_not_logits((chosen[1] or chosen[0]).cls, keep.top_k)
        if problem:
            where = "cache.keep" if "only logits" in problem else "cache.keep.top_k"
            problems.add(where, f"{problem}; leave it out")
    for path, message in _without_network(chosen, recipe) if chosen else ():
        problems.add(path, message)
    source = _source(recipe.data, zoo, problems)
    exporters = _exporters(recipe, zoo, problems)
    return chosen, source, exporters, _trackers(recipe, zoo, problems)


# --- what the catalogue shows to be wrong ---------------------------------------------------------


def known_problems(loaded: LoadedRecipe, catalogue: Zoo) -> RecipeProblems:
    """Return what is wrong with a recipe as far as cards show it: names, their options and declared needs."""
    problems = loaded.problems()
    _parts(loaded.recipe, catalogue, problems)
    return problems


def further_problems(data: Mapping[str, Any], problems: RecipeProblems, zoo: Zoo) -> None:
    """Report what the plugins, or their cards, find wrong in a recipe that is invalid elsewhere, section by section."""
    algorithm, source = _section(AlgorithmRecipe, data.get("algorithm")), _section(DataRecipe, data.get("data"))
    if algorithm is not None:
        given = algorithm.name, algorithm.options, algorithm.loss_weights
        _resolve(*given, zoo, _below("algorithm", problems))
    if source is not None:
        _source(source, zoo, problems)


def doubtful(data: Mapping[str, Any], catalogue: Zoo) -> bool:
    """Whether only the plugins themselves can say what all is wrong with a recipe.

    So it is where the value of an option may be wrong, and where a plugin is remembered as broken, which it may be no
    more.
    """
    if any(plugin.status == "broken" for plugin in catalogue.plugins):
        return True
    algorithm, source = _section(AlgorithmRecipe, data.get("algorithm")), _section(DataRecipe, data.get("data"))
    pairs: list[tuple[Any, Mapping[str, Any]]] = []
    if algorithm is not None and algorithm.name in catalogue.algorithms:
        card, options = catalogue.algorithms[algorithm.name].thing, algorithm.options
        pairs.append((card, options))
        via = card.delegate and options.get(card.delegate, _default(card, card.delegate))
        if isinstance(via, str) and via in catalogue.algorithms:
            pairs.append((catalogue.algorithms[via].thing, options))
    if source is not None and source.name in catalogue.datasets:
        pairs.append((catalogue.datasets[source.name].thing, source.options))
    exports = data.get("export")
    for each in exports if isinstance(exports, list | tuple) else ():
        export = _section(ExportRecipe, each)
        if export is not None and export.format in catalogue.exporters:
            quantize = {} if export.quantize is None else {"quantize": export.quantize}
            pairs.append((catalogue.exporters[export.format].thing, {**export.options, **quantize}))
    return not all(_fit(card, options) for card, options in pairs)


def _default(card: Any, option: str) -> Any:
    return card.schema.get("properties", {}).get(option, {}).get("default")


def _fit(card: Any, options: Mapping[str, Any]) -> bool:
    properties = card.schema.get("properties", {})
    return not card.open and all(fits(value, properties.get(name, {})) for name, value in options.items())


def _section(model: type[Section], content: Any) -> Section | None:
    """A section that is valid by itself."""
    try:
        return model.model_validate(content)
    except ValidationError:
        return None  # what is wrong with it has been reported


# --- the algorithm --------------------------------------------------------------------------------


def resolve_choice(choice: AlgorithmChoice, zoo: Zoo) -> ResolvedAlgorithm:
    """Return the algorithm that a stage names; raises as ``resolve_algorithm``."""
    return resolve_algorithm(choice.name, choice.options, choice.loss_weights, zoo)[0]


def resolve_algorithm(
    name: str, options: Mapping[str, Any], loss_weights: Mapping[str, float], zoo: Zoo
) -> tuple[ResolvedAlgorithm, ResolvedAlgorithm | None]:
    """Return an algorithm and its delegate; raise UnknownName, PluginError, or RecipeError for options and weights."""
    zoo.algorithm(name)
    problems: list[str] = []
    resolved = _resolve(name, options, loss_weights, zoo, lambda path, message: problems.append(f"{path}: {message}"))
    if problems or resolved is None:
        raise RecipeError(f"algorithm '{name}': {'; '.join(problems)}")
    return resolved


def _resolve(
    name: str, options: Mapping[str, Any], loss_weights: Mapping[str, float], zoo: Zoo, report: Report
) -> tuple[ResolvedAlgorithm, ResolvedAlgorithm | None] | None:
    """Resolve an algorithm and its delegate, to which go the options and weights that are not its own."""
    cls = _lookup(zoo.algorithm, name, "name", report)
    if cls is None:
        return None
    own = {key: value for key, value in options.items() if key in cls.Options.model_fields}
    rest = {key: value for key, value in options.items() if key not in own}
    validated = _options(cls.Options, own, "options", report) if cls.delegate else None
    if cls.delegate and validated is None:
        return None
    via = getattr(validated, cls.delegate) if cls.delegate else None
    usual = cls.delegate_defaults.get(via or "", {})
    delegate = _lookup(zoo.algorithm, via, f"options.{cls.delegate}", report) if via is not None else None
    if via is not None and delegate is None:
        return None
    if delegate is not None and delegate.delegate is not None:
        report(f"options.{cls.delegate}", f"'{via}' hands its work to another algorithm itself; name that one")
        return None
    if delegate is not None and plans_stages(delegate):
        report(f"options.{cls.delegate}", f"'{via}' plans stages of its own; name one that is a single stage")
        return None
    known = [*cls.Options.model_fields, *(delegate.Options.model_fields if delegate else ())]
    for key in [key for key in rest if key not in known]:
        report(f"options.{key}", unknown_key(key, known))
        del rest[key]
    terms = {**(delegate.default_weights if delegate else {}), **cls.default_weights}
    for term in loss_weights:
        if term not in terms:
            report(f"loss_weights.{term}", unknown_key(term, list(terms), "loss term"))
    rest, loss_weights = usual.get("options", {}) | rest, {**usual.get("loss_weights", {}), **loss_weights}
    chosen = _bind(cls, own, loss_weights, zoo, report)
    delegated = _bind(delegate, rest, loss_weights, zoo, report) if delegate is not None else None
    if chosen is None or (delegate is not None and delegated is None):
        return None
    return chosen, delegated


def _bind(
    cls: type[Algorithm], options: Mapping[str, Any], loss_weights: Mapping[str, float], zoo: Zoo, report: Report
) -> ResolvedAlgorithm | None:
    validated = _options(cls.Options, options, "options", report)
    if validated is None:
        return None
    given = {term: weight for term, weight in loss_weights.items() if term in cls.default_weights}
    choice = AlgorithmChoice(cls.name, dict(options), given)
    return ResolvedAlgorithm(cls, validated, {**cls.default_weights, **given}, choice, zoo.algorithms[cls.name])


# --- needs ------------------------------------------------------------------------------------------


def unmet_needs(cls: type[Algorithm], recipe: Recipe) -> list[tuple[str, str]]:
    """Return (path, message) for each declared number, of models or of samples, that the recipe does not meet."""
    models, unmet = recipe.models, _unmet_batch(cls, recipe)
    for kind, group in (("teacher", models.all_teachers), ("assistant", models.assistants), ("peer", models.peers)):
        least, most = bounds(getattr(cls.needs, f"{kind}s"))
        if len(group) < least or (most is not None and len(group) > most):
            path = "models.teacher" if kind == "teacher" and models.teacher else f"models.{kind}s"
            names = f"the recipe names {len(group) or 'none'}"
            unmet.append((path, f"'{cls.name}' takes {_count(least, most, kind)}, {names}"))
    return unmet


def _without_network(chosen: Sequence[ResolvedAlgorithm | None], recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield (path, message) for a teacher that is known by its answers only, where an algorithm needs its network."""
    reasons = [why_not_without_network(each.cls) for each in chosen if each is not None]
    for path, model in recipe.models.each():
        if model.is_answers and path.startswith("teacher"):
            yield from ((f"models.{path}.weights", reason) for reason in dict.fromkeys(reasons) if reason)


def _count(least: int, most: int | None, kind: str) -> str:
    if most is None:
        return f"at least {least} {kind}{'s' if least != 1 else ''}"
    if least == most:
        return f"exactly {least} {kind}{'s' if least != 1 else ''}" if least else f"no {kind}s"
    return f"{least} to {most} {kind}s"


def _unmet_batch(cls: type[Algorithm], recipe: Recipe) -> list[tuple[str, str]]:
    least, size = cls.needs.min_batch, recipe.data.batch_size
    message = f"'{cls.name}' needs at least {least} samples in a batch, got {size}"
    return [("data.batch_size", message)] if size < least else []


# --- the rest -----------------------------------------------------------------------------------------


def _source(data: DataRecipe, zoo: Zoo, problems: RecipeProblems) -> DataSource | None:
    cls = _lookup(zoo.dataset, data.name, "data.name", problems.add)
    if cls is None:
        return None
    options = dict(data.options)
    if cls.encoded:
        for key in PREPROCESSING:
            if key in options and key not in cls.Options.model_fields:
                problems.add(f"data.options.{key}", f"is 'data.preprocessing.{key}' now")
                del options[key]
    elif data.preprocessing is not None:
        problems.add("data.preprocessing", f"is for image files, and '{data.name}' has none")
    return _made(cls, options, _below("data", problems))


def _exporters(recipe: Recipe, zoo: Zoo, problems: RecipeProblems) -> list[Exporter]:
    exporters: list[Exporter] = []
    chosen = zoo.algorithms.get(recipe.algorithm.name)
    floats = chosen is not None and chosen.thing.quantizer is None
    files: dict[str, str] = {}
    for index, wanted in enumerate(recipe.export):
        path = f"export.{index}"
        cls = _lookup(zoo.exporter, wanted.format, f"{path}.format", problems.add)
        if cls is None:
            continue
        options = dict(wanted.options)
        if "quantize" in options:
            problems.add(f"{path}.options.quantize", f"belongs one level up, at {path}.quantize")
            continue
        if wanted.quantize is not None and "quantize" not in cls.Options.model_fields:
            problems.add(f"{path}.quantize", f"'{wanted.format}' does not quantize")
            continue
        if wanted.quantize is not None:
            options["quantize"] = wanted.quantize
        exporter = _made(cls, options, _below_export(path, problems))
        if exporter is None:
            continue
        names = exporter.file_names("")
        if other := next((files[name] for name in names if name in files), None):
            problems.add(path, f"writes the same file as {other}")
        files = {**dict.fromkeys(names, path), **files}
        if exporter.needs_quantizer and floats:
            able = ", ".join(sorted(name for name, offer in zoo.algorithms.items() if offer.thing.quantizer))
            problems.add(
                path,
                f"writes the quantizer that the student was trained in, and '{recipe.algorithm.name}' trains it in "
                f"floats; algorithms that do not: {able or 'none'}",
            )
        exporters.append(exporter)
    return exporters


def _trackers(recipe: Recipe, zoo: Zoo, problems: RecipeProblems) -> list[ResolvedTracker]:
    trackers = []
    for index, wanted in enumerate(recipe.all_trackers):
        path = f"trackers.{index}"
        named = path if isinstance(recipe.trackers[index], str) else f"{path}.name"
        cls = _lookup(zoo.tracker, wanted.name, named, problems.add)
        options = None if cls is None else _options(cls.Options, wanted.options, f"{path}.options", problems.add)
        if options is None or isinstance(cls, Card):
            continue
        try:
            cls.check(options)
        except KdzooError as error:
            problems.add(named, str(error))
        else:
            trackers.append(ResolvedTracker(cls, options))
    return trackers


def _made(cls: type[Any], options: Mapping[str, Any], report: Report) -> Any:
    """Return an instance of a data set or an export format; what its constructor refuses is a problem too."""
    validated = _options(cls.Options, options, "options", report)
    if validated is None or isinstance(cls, Card):
        return None
    try:
        return cls(validated)
    except KdzooError as error:
        report("options", str(error))
        return None


def _lookup(find: Callable[[str], Any], name: str, path: str, report: Report) -> Any:
    try:
        return find(name)
    except (UnknownName, PluginError) as error:
        report(path, str(error))
        return None


def _options(model: type[BaseModel], options: Mapping[str, Any], path: str, report: Report) -> Any:
    """Validate a plugin's options as strictly as the recipe itself: true is no number, "0.1" is none either.

    They go through JSON because pydantic's strict mode takes a list for a tuple, and text for a path, only there.
    """
    try:
        return model.model_validate_json(json.dumps(dict(options)), strict=True)
    except ValidationError as error:
        for below, message in explain(error, model, options):
            report(f"{path}.{below}".strip("."), message)
    except TypeError as error:  # only a plugin's stage can hand over what no recipe holds
        report(path, f"must be plain values, got {shown(dict(options))}: {error}")
    return None


def _below(prefix: str, problems: RecipeProblems) -> Report:
    return lambda path, message: problems.add(f"{prefix}.{path}", message)


def _below_export(path: str, problems: RecipeProblems) -> Report:
    """Report below an export, whose quantize is an option that is written beside the others."""
    return lambda below, message: problems.add(f"{path}.{below.replace('options.quantize', 'quantize')}", message)


def spec_of(model: ModelRecipe) -> ModelSpec:
    """A recipe's model as stages and algorithms know it."""
    steps = model.preprocessing.given() if model.preprocessing else {}
    return ModelSpec(
        model.name,
        model.weights,
        model.args,
        model.train or {},
        mean=steps.pop("mean", None),
        std=steps.pop("std", None),
        size=steps.pop("size", None),
        finetune=model.finetune,
        modality=model.modality,
        weights_key=model.weights_key,
        preprocessing=steps,
    )


def teacher_spec(model: ModelRecipe) -> ModelSpec:
    """A recipe's teacher as stages and algorithms know it."""
    return replace(spec_of(model), as_is=model.weights != "train" and not model.finetune)


def _provenance(recipe: Recipe, chosen: tuple[ResolvedAlgorithm | None, ...], zoo: Zoo) -> dict[str, dict[str, str]]:
    offers = [resolved.offer for resolved in chosen if resolved is not None]
    offers += [zoo.models[model.name] for _, model in recipe.models.each() if model.name in zoo.models]
    offers.append(zoo.datasets[recipe.data.name])
    offers += [zoo.exporters[wanted.format] for wanted in recipe.export]
    offers += [zoo.trackers[wanted.name] for wanted in recipe.all_trackers]
    return {offer.plugin: {"distribution": offer.distribution, "version": offer.version} for offer in offers}
