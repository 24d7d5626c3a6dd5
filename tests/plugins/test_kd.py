"""kd: a value worked out by hand, and what a recipe may write. Its loss is tested in tests/core/test_losses.py."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from kdzoo.api import ModelShapes, Outputs, Shapes
from kdzoo_response.kd import KD

SHAPES = Shapes(ModelShapes((), 4, 2), (ModelShapes((), 4, 2),), (), 2, 100, (3, 8, 8))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_value_worked_out_by_hand(temperature: float) -> None:
    # Softened, the teacher answers (3/4, 1/4), the student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2), times T^2.
    teacher, student = torch.tensor([[temperature * math.log(3.0), 0.0]]), torch.zeros(1, 2)
    algorithm = KD(KD.Options(temperature=temperature), SHAPES)
    terms = algorithm.losses(SimpleNamespace(student=Outputs(student), teacher=Outputs(teacher)))
    expected = temperature**2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert {name: term.item() for name, term in terms.items()} == {"kd": pytest.approx(expected, rel=1e-5)}


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan, 1e30])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        KD.Options(temperature=temperature)
