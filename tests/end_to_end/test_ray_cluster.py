"""A study's runs on a Ray cluster of three nodes on this machine, one of which is lost."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from kdzoo.contract.execution import Executor
from kdzoo.errors import ExecutorError
from kdzoo.processes.local import LocalExecutor
from kdzoo.recipe.reading import load_recipe
from kdzoo.study import driver
from kdzoo.study.driver import run_all
from kdzoo.study.wanted import Overview, RunOutcome, Unwatched, WantedRun
from kdzoo.zoo.loading import load_zoo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
]

RECIPE = """\
version: 1
name: on-a-cluster
algorithm: {name: kd}
models: {teacher: {name: digits_cnn}, student: {name: digits_cnn_tiny}}
data: {name: digits, batch_size: 64, validation: 100}
train: {epochs: 40}
control: false
trackers: []
threads: 1
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of a core each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on the loopback alone
        patch.setenv("RAY_AUTH_MODE", "disabled")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            for _ in range(2):
                made.add_node(num_cpus=1)
            made.wait_for_nodes()
            patch.setenv("RAY_ADDRESS", made.address)
            yield made
        finally:
            made.shutdown()


@pytest.fixture
def on_ray(cluster: Any, tmp_path: Path) -> Iterator[Executor]:
    from kdzoo_ray.ray_executor import RayExecutor

    executor = RayExecutor("", None, tmp_path / "ray")
    executor.open()
    yield executor
    executor.close()


class Watch(Unwatched):
    """Keeps what is said, and does something once three tasks train at the same time."""

    def __init__(self, action: Any = lambda: None) -> None:
        self.notes: list[str] = []
        self.action = action

    def note(self, text: str, tone: str = "") -> None:
        self.notes.append(text)

    def overview(self, overview: Overview) -> None:
        if self.action is not None and sum("step" in going.told for going in overview.going) >= 3:
            self.action()
            self.action = None


def made(executor: Executor, place: Path, watch: Watch, seeds: int) -> list[RunOutcome]:
    place.mkdir()
    (place / "recipe.yaml").write_text(RECIPE)
    wanted = [WantedRun("kd", load_recipe(place / "recipe.yaml", [f"seed={seed}"])) for seed in range(seeds)]
    return run_all(wanted, executor, place / "runs", load_zoo(), watch=watch)


def lasting(outcomes: list[RunOutcome]) -> list[bytes]:
    files = []
    for outcome in outcomes:
        assert outcome.status == "finished", f"{outcome.error}\n{outcome.log}"
        assert outcome.folder is not None
        files += [(outcome.folder / name).read_bytes() for name in ("student.safetensors", "metrics.jsonl")]
    return files


def test_other_versions_and_a_missing_plugin_are_refused_by_the_worker(on_ray, tmp_path, monkeypatch):
    usual = driver.versions
    for name, theirs, problem in (
        ("torch", "1.0", "instead of 1.0"),
        ("plugin kdzoo-mine", "2.1", "plugin kdzoo-mine missing instead of 2.1"),
    ):
        monkeypatch.setattr(driver, "versions", lambda zoo, name=name, theirs=theirs: {**usual(zoo), name: theirs})
        watch = Watch()
        (outcome,) = made(on_ray, tmp_path / name, watch, 1)
        assert isinstance(outcome.error, ExecutorError)
        assert f"has {name} " in str(outcome.error)
        assert problem in str(outcome.error)
        assert str(outcome.error).endswith("; install the same versions on every machine")
        assert not [note for note in watch.notes if "tried again" in note], "it would fail again"


def test_a_node_that_is_lost_costs_its_task_and_the_bits_are_those_of_this_machine(on_ray, cluster, tmp_path):
    node = next(iter(cluster.worker_nodes))
    watch = Watch(lambda: cluster.remove_node(node, allow_graceful=False))
    elsewhere = made(on_ray, tmp_path / "ray", watch, 3)
    assert watch.action is None, "the node was not killed"
    again = [note for note in watch.notes if "tried again after" in note]
    assert len(again) == 1
    assert "its worker is gone" in again[0]
    local = LocalExecutor("", 2, tmp_path / "local")
    local.open()
    try:
        here = made(local, tmp_path / "here", Watch(None), 3)
    finally:
        local.close()
    assert lasting(elsewhere) == lasting(here)
