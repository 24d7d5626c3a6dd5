"""What decides the results of a whole run, as hashes."""

from __future__ import annotations

from kdzoo.contract.stage import Stage
from kdzoo.run.builder import Builder
from kdzoo.run.keys import source_hash
from kdzoo.run.stage_key import stage_key
from kdzoo.types import stable_hash


def result_key(build: Builder) -> str:
    """Hash what decides the results of a plan besides its recipe: data, weights, code, versions, machine.

    A finished run with another key is no answer to the same recipe: it would be answered differently today.
    """
    plan = build.plan
    return stable_hash(
        {
            "stages": _stage_keys(build),
            "exporters": [source_hash(type(exporter)) for exporter in plan.exporters],
            "plugins": plan.provenance,
        }
    )


def training_key(build: Builder) -> str:
    """Hash what decides the trained networks of a plan; what is exported is not among it."""
    return stable_hash(_stage_keys(build))


def _stage_keys(build: Builder) -> list[str]:
    plan = build.plan
    stages = [(Stage("alone", spec), None) for spec in (*plan.teachers, *plan.assistants, *plan.peers, plan.student)]
    chosen = [choice for choice in (plan.algorithm, plan.delegate) if choice is not None]
    taught = [(Stage("taught", plan.student, choice.choice), choice) for choice in chosen]
    return [stage_key(build, s, choice, build.train_section(s)) for s, choice in [*stages, *taught]]
