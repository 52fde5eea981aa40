"""Queues: what is worked on one at a time.

A task stands in one queue as a rule (its guest's), and in several where it works on several guests (a
clone reads one and makes another).  It takes its places in all of them at the same moment, and works
when it is the first in each: places are in one order everywhere, so that no two wait for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from virtd.operations.task import Task

_SEPARATOR: Final = "\n"
"""Between the names of queues in a journal row; no resource name has it."""


def joined(*names: str) -> str:
    """The queue of an operation that works on several resources."""
    return _SEPARATOR.join(dict.fromkeys(names))


def names_of(queue: str) -> list[str]:
    """The names that were :func:`joined`."""
    return queue.split(_SEPARATOR)


class Queues:
    """All queues of an engine."""

    def __init__(self) -> None:
        self._tasks: dict[str, deque[Task]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._tasks))

    def join(self, task: Task) -> None:
        """Take the last place in each of its queues."""
        for name in names_of(task.queue):
            self._tasks.setdefault(name, deque()).append(task)

    def leave(self, task: Task) -> None:
        """Give the places up."""
        for name in names_of(task.queue):
            self._tasks[name].remove(task)
            if not self._tasks[name]:
                del self._tasks[name]

    def of(self, queue: str) -> list[Task]:
        """Who stands in any of these queues, in order."""
        return list(dict.fromkeys(task for name in names_of(queue) for task in self._tasks.get(name, ())))

    def ready(self, queue: str) -> list[Task]:
        """The first of each of these queues, where it is the first in all of its own."""
        heads = dict.fromkeys(self._tasks[name][0] for name in names_of(queue) if name in self._tasks)
        return [task for task in heads if all(self._tasks[name][0] is task for name in names_of(task.queue))]

    def before(self, task: Task) -> list[Task]:
        """Who came before it, in any of its queues."""
        found: dict[Task, None] = {}
        for name in names_of(task.queue):
            for other in self._tasks.get(name, ()):
                if other is task:
                    break
                found[other] = None
        return list(found)
