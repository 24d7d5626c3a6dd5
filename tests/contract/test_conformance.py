"""The public conformance suite over every registered algorithm."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdzoo.testing import checks
from kdzoo.zoo.loading import load_zoo

ROOT = Path(__file__).resolve().parents[2]
ZOO = load_zoo()
ALGORITHMS = sorted(ZOO.algorithms)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("conformance")


def test_every_family_of_algorithms_is_here():
    with_a_recipe = {path.stem for path in (ROOT / "recipes" / "digits").glob("*.yaml")}
    assert with_a_recipe, "the recipes of the algorithms were not found"
    assert set(ALGORITHMS) == with_a_recipe
    assert [plugin.cause for plugin in ZOO.plugins if plugin.status == "broken"] == []


@pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_keeps_the_contract(name, check, root):
    outcome = checks.run_check(check, ZOO.algorithm(name), ZOO, root)
    assert outcome.status != "failed", outcome.text


@pytest.mark.parametrize("name", ALGORITHMS)
def test_exemptions_name_checks_and_give_reasons(name):
    known = {check.__name__ for check in checks.ALL}
    for check, reason in ZOO.algorithm(name).skip_checks.items():
        assert check in known
        assert len(reason.split()) >= 4, f"{check}: '{reason}' is no reason"
