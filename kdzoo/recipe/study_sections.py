"""What a study holds: a recipe, or several, and what varies. Needs neither torch nor any plugin."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from kdzoo.errors import plain
from kdzoo.recipe.budget_section import BudgetRecipe
from kdzoo.recipe.problems import Positions, RecipeProblems, misfits
from kdzoo.recipe.reading import file_content, mapping_in
from kdzoo.recipe.values import Line, Name, Options, PathText, Real, Section, Text, Whole

Seed = Annotated[Whole, Field(ge=0, le=2**63 - 1)]


class StudyAlgorithm(Section):
    """An algorithm with options and weights; of the recipe's own algorithm those of the recipe stay otherwise."""

    name: Line = Field(description="Name of the algorithm.")
    options: Options = Field({}, description="Options of the algorithm.")
    loss_weights: dict[Line, Annotated[Real, Field(ge=0, le=1e6)]] = Field({}, description="Weights of loss terms.")
    label: Line | None = Field(None, description="What to call it; null: its name.")


class StudyStudent(Section):
    """A student; its train section and its preprocessing are those of the recipe's student."""

    name: Line = Field(description="Name of the model, or a pattern such as mobilenetv3_*.")
    args: Options = Field({}, description="Arguments of the model.")
    space: dict[Line, Annotated[tuple[Any, ...], Field(min_length=1, max_length=256)]] = Field(
        {}, description="Values of further arguments, e.g. of its width; every combination is a student."
    )
    weights: PathText | None = Field(None, description="As in a recipe; null: as the recipe's, or train for a file.")
    label: Line | None = Field(None, description="What to call it; null: its name.")


def _by_name(written: Any) -> Any:
    """A name alone stands for a section with nothing else."""
    return {"name": written} if isinstance(written, str) else written


class StudyRecipe(Section):
    """A whole study."""

    version: Literal[1] = Field(description="Version of the study format.")
    name: Name = Field(description="Name of the study and its folder.")
    description: Text = Field("", description="What the study is to find out.")
    recipe: PathText | None = Field(None, description="The recipe that is varied; relative to the study's file.")
    recipes: tuple[PathText, ...] = Field(
        (), max_length=256, description="Several recipes, or patterns such as ../digits/*.yaml, instead of recipe."
    )
    seeds: Annotated[Whole, Field(ge=1, le=10_000)] | tuple[Seed, ...] = Field(
        3, description="How many seeds, from 0 on, or a list of them."
    )
    algorithms: tuple[Annotated[StudyAlgorithm, BeforeValidator(_by_name)], ...] = Field(
        (), max_length=256, description="The algorithms to compare; empty: the recipe's."
    )
    students: tuple[Annotated[StudyStudent, BeforeValidator(_by_name)], ...] = Field(
        (), max_length=256, description="The students to compare, also patterns of timm's names; empty: the recipe's."
    )
    vary: dict[Line, Annotated[tuple[Any, ...], Field(min_length=1, max_length=256)]] = Field(
        {}, description="Values of keys of the recipe, e.g. train.epochs; every combination is an arm."
    )
    baseline: Line | None = Field(
        None, description="Label of the arm that others are compared with; null: that of the recipe as it is."
    )
    budget: BudgetRecipe | None = Field(None, description="Limits of the student; it is chosen among those within.")

    @model_validator(mode="after")
    def _parts_fit(self) -> StudyRecipe:
        problems = []
        if self.recipe is not None and self.recipes:
            problems.append(("recipes", "recipe and recipes exclude each other; list them all under recipes"))
        if self.recipe is None and not self.recipes:
            problems.append(("recipe", "required, but missing"))
        if isinstance(self.seeds, tuple):
            if not self.seeds:
                problems.append(("seeds", "must be a list of at least 1, got []"))
            for index, seed in enumerate(self.seeds):
                if seed in self.seeds[:index]:
                    problems.append((f"seeds.{index}", f"repeats seed {seed}"))
        for key in {"seed", "name"} & self.vary.keys():
            instead = "seeds" if key == "seed" else "label"
            problems.append((f"vary.{key}", f"cannot be varied; it is what '{instead}' is for"))
        if problems:
            raise misfits(*problems)
        return self

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def all_recipes(self) -> tuple[str, ...]:
        return self.recipes if self.recipe is None else (self.recipe,)


@dataclass(frozen=True)
class LoadedStudy:
    """A valid study, with where it was written. What its names mean only the zoo can say."""

    study: StudyRecipe
    path: Path
    positions: Positions = field(compare=False)

    def problems(self) -> RecipeProblems:
        """Return an empty collector for what is found wrong later."""
        return RecipeProblems(self.path, self.positions)


def load_study(path: Path) -> LoadedStudy:
    """Read a study; raise RecipeError with every problem in it."""
    return parse_study_file(file_content(path), path)


def parse_study_file(content: bytes, path: Path, in_file: bool = True) -> LoadedStudy:
    """Read a study from the bytes of the file at ``path``; as ``load_study``. ``in_file`` is that of Positions."""
    problems = RecipeProblems(path, Positions(in_file=in_file))
    data = mapping_in(content, problems)
    if "algorithm" in data and "models" in data and "recipe" not in data:
        problems.add("", f"is a recipe and no study; `kdzoo run {plain(str(path), 200)}` runs it")
        problems.raise_if_any()
    try:
        study = StudyRecipe.model_validate(data)
    except ValidationError as error:
        problems.add_invalid(error, StudyRecipe, data)
    problems.raise_if_any()
    return LoadedStudy(study, path, problems.positions)
