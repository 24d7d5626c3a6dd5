from __future__ import annotations

from kdzoo.contract.waiting import WaitingTasks


class Task:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.over = name, log, False

    def start(self) -> None:
        self.log.append(self.name)

    def ended(self) -> bool:
        return self.over


def test_so_many_tasks_run_at_once_in_their_order():
    log: list[str] = []
    tasks, waiting = [Task(name, log) for name in "abcd"], WaitingTasks(2)
    for task in tasks:
        waiting.add(task)
    assert log == ["a", "b"]
    waiting.start()
    assert log == ["a", "b"]
    tasks[1].over = True
    waiting.start()
    assert log == ["a", "b", "c"]
    tasks[0].over = tasks[2].over = True
    waiting.start()
    assert log == ["a", "b", "c", "d"]


def test_without_a_limit_nothing_waits_and_what_is_dropped_never_starts():
    log: list[str] = []
    unlimited, limited = WaitingTasks(None), WaitingTasks(1)
    for name in "abc":
        unlimited.add(Task(name, log))
        limited.add(Task(name.upper(), log))
    limited.drop()
    limited.started.clear()
    limited.start()
    assert log == ["a", "A", "b", "c"]
