"""The images of external snapshots as a forest, and what deleting one does to it.  Pure: no I/O.

An external snapshot *freezes* the image that each disk had; a new image over it takes what is written
from then on.  Reverting puts another new image over the frozen one.  So images form trees:

* an image is **frozen** while a snapshot names it: nothing may be written to it;
* the **active** images are what the guest writes to;
* an **overlay** is an image that a snapshot or a revert has put there: it may be merged and removed.
  Others (the guest's first disks, catalogue images below them) are never removed from here.

Deleting a snapshot thaws its images.  One that nothing lies over any more is removed; one with a single
overlay takes that one's content in; one with several stays, because each of them needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Forest:
    """The images of one guest.  Paths are real paths; snapshots are named by their ids.

    :param backing: image -> the one below it, ``""`` at the end.  Holds every image of every chain.
    :param active: target -> what the guest writes to.
    :param frozen: snapshot -> target -> the image that it keeps.
    :param parents: snapshot -> its parent, ``""`` for a root.
    :param current: the snapshot that the active images descend from, or ``""``.
    :param overlays: the images that snapshots and reverts have made.
    :param over: snapshot -> target -> the image that was put over the kept one last, where it still exists.
    :param users: image -> who else uses it: other guests, images that are not this guest's.
    """

    backing: Mapping[str, str]
    active: Mapping[str, str]
    frozen: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    current: str = ""
    overlays: frozenset[str] = frozenset()
    users: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    over: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def below(self, path: str) -> tuple[str, ...]:
        """The images strictly below one, from the top down; ends where nothing is known, or at a ring."""
        found: list[str] = []
        path = self.backing.get(path, "")
        while path and path not in found:
            found.append(path)
            path = self.backing.get(path, "")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Merge:
    """``top``'s content goes into ``base``, the image right below it, and ``top`` is removed.

    ``children`` lie over ``top`` and are put over ``base``.
    """

    base: str
    top: str
    children: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deletion:
    """What deleting a snapshot does, in order.

    :param removed: images that nothing needs, besides the merged ones.
    :param shared: images that stay, because several others lie over them.
    """

    merges: tuple[Merge, ...] = ()
    removed: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def renamed(self) -> dict[str, str]:
        """Merged image -> the image that has its content in the end."""
        final: dict[str, str] = {}
        for merge in self.merges:
            final = {top: merge.base if base == merge.top else base for top, base in final.items()}
            final[merge.top] = merge.base
        return final

    @property
    def gone(self) -> tuple[str, ...]:
        """Every image that does not exist any more in the end."""
        return (*(merge.top for merge in self.merges), *self.removed)


class InUseError(Exception):
    """An image that would change is used by somebody else.

    :ivar path: the image.
    :ivar users: who.
    """

    def __init__(self, path: str, users: tuple[str, ...]) -> None:
        super().__init__(path)
        self.path = path
        self.users = users


def faults(forest: Forest, live: Mapping[str, tuple[str, ...]] | None = None) -> list[str]:
    """Where the images are not what the records say; empty: all is well.

    :param live: target -> chain, as the running guest has it.
    """
    found = [
        fault
        for snapshot, images in forest.frozen.items()
        for target, path in images.items()
        for fault in _faults_of(forest, snapshot, target, path)
    ]
    for target, path in forest.frozen.get(forest.current, {}).items():
        active = forest.active.get(target)
        if active is not None and path not in forest.below(active):
            found.append(f"{active}, which the guest has as {target}, does not lie over {path} of {forest.current}")
    for target, chain in (live or {}).items():
        active = forest.active.get(target)
        if active is not None and (actual := (active, *forest.below(active))) != chain:
            found.append(f"{target} runs on {' -> '.join(chain)}, but the files say {' -> '.join(actual)}")
    return found


def _faults_of(forest: Forest, snapshot: str, target: str, path: str) -> Iterator[str]:
    if path not in forest.backing:
        yield f"snapshot {snapshot} keeps {path} for {target}, which cannot be read"
    elif path in forest.active.values():
        yield f"snapshot {snapshot} keeps {path} for {target}, but the guest writes to it"
    over = forest.over.get(snapshot, {}).get(target, "")
    if forest.backing.get(over, path) != path:
        yield f"{over} of snapshot {snapshot} lies over {forest.backing[over]}, not over {path}"
    above = forest.frozen.get(forest.parents.get(snapshot, ""), {}).get(target)
    if above is not None and above not in forest.below(path):
        yield f"{path} of snapshot {snapshot} does not lie over {above} of its parent"


def deletion(forest: Forest, snapshot: str) -> Deletion:
    """Plan the deletion of one snapshot.

    :raises InUseError: an image that would change is used by somebody else.
    """
    return _Planner(forest, snapshot).plan()


class _Planner:
    def __init__(self, forest: Forest, snapshot: str) -> None:
        self._forest = forest
        self._backing = dict(forest.backing)
        self._over: dict[str, list[str]] = {}
        for path, below in sorted(self._backing.items()):
            self._over.setdefault(below, []).append(path)
        kept = [path for name, images in forest.frozen.items() if name != snapshot for path in images.values()]
        self._needed = {*kept, *forest.active.values()}
        self._thawed = list(forest.frozen.get(snapshot, {}).values())
        # Images that an earlier deletion had to leave, because two lay over them, may have one left now.
        self._left = [below for path in self._thawed for below in forest.below(path)]
        self._merges: list[Merge] = []
        self._removed: list[str] = []
        self._shared: list[str] = []

    def plan(self) -> Deletion:
        self._work()
        self._thawed = [path for path in self._left if not self._used(path)]
        self._work()
        return Deletion(tuple(self._merges), tuple(self._removed), tuple(self._shared))

    def _used(self, path: str) -> bool:
        return any(self._forest.users.get(image) for image in (path, *self._over.get(path, [])))

    def _work(self) -> None:
        while self._thawed:
            path = self._thawed.pop(0)
            over = self._over.get(path, [])
            if path in self._needed or path in self._removed:
                continue
            if not over:
                self._remove(path)
            elif len(over) == 1:
                self._merge(path, over[0])
            elif path not in self._shared and any(child in self._forest.overlays for child in over):
                self._shared.append(path)

    def _remove(self, path: str) -> None:
        # Only what a snapshot has made goes; the guest's own disk stays, also where nothing uses it now.
        if path not in self._forest.overlays or self._forest.users.get(path):
            return
        self._removed.append(path)
        below = self._backing[path]
        self._over.get(below, []).remove(path)
        self._thawed.append(below)

    def _merge(self, base: str, top: str) -> None:
        if top not in self._forest.overlays:
            return  # not of a snapshot's making: an image that another disk is based on
        for image in (base, top):
            if self._forest.users.get(image):
                raise InUseError(image, self._forest.users[image])
        children = self._over.pop(top, [])
        self._merges.append(Merge(base, top, tuple(children)))
        self._over[base] = children
        for child in children:
            self._backing[child] = base
        if top in self._needed:
            self._needed.add(base)
        else:
            self._thawed.append(base)


def after(forest: Forest, snapshot: str, done: Deletion) -> Forest:
    """The forest as it must be when a deletion is complete."""
    renamed, gone = done.renamed, set(done.gone)

    def now(path: str) -> str:
        return renamed.get(path, path)

    backing = {path: below for path, below in forest.backing.items() if path not in gone}
    for merge in done.merges:
        for child in merge.children:
            if child in backing:
                backing[child] = now(merge.base)
    parent = forest.parents.get(snapshot, "")
    return Forest(
        backing=backing,
        active={target: now(path) for target, path in forest.active.items()},
        frozen={
            name: {target: now(path) for target, path in images.items()}
            for name, images in forest.frozen.items()
            if name != snapshot
        },
        parents={
            name: parent if above == snapshot else above for name, above in forest.parents.items() if name != snapshot
        },
        current=parent if forest.current == snapshot else forest.current,
        overlays=frozenset(path for path in forest.overlays if path not in gone),
        users=forest.users,
        over={
            name: {target: now(path) for target, path in images.items() if path not in gone}
            for name, images in forest.over.items()
            if name != snapshot
        },
    )
