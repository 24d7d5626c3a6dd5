"""The conformance suite under its public name; see ``kdzoo.testing.checks``."""

from kdzoo.testing.checks import ALL, run_check, run_checks
from kdzoo.testing.harness import CheckFailed, Outcome
from kdzoo.testing.tiny import STUDENT, TEACHER, TINY, Stripes, bare_plan, tiny_recipe, tiny_runner

__all__ = [
    "ALL",
    "STUDENT",
    "TEACHER",
    "TINY",
    "CheckFailed",
    "Outcome",
    "Stripes",
    "bare_plan",
    "run_check",
    "run_checks",
    "tiny_recipe",
    "tiny_runner",
]
