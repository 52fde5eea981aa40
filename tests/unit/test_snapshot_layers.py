"""The images of external snapshots: whatever is taken, reverted to and deleted, nobody's content changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from virtd.libvirt.snapshot_layers import Forest, InUseError, Merge, after, deletion, faults

TARGETS = ("vda", "vdb")


class World:
    """Images with content, as QEMU would treat them."""

    def __init__(self) -> None:
        self.content: dict[str, dict[int, int]] = {f"base-{t}": {} for t in TARGETS}
        self.backing = dict.fromkeys(self.content, "")
        self.active = {t: f"base-{t}" for t in TARGETS}
        self.frozen: dict[str, dict[str, str]] = {}
        self.over: dict[str, dict[str, str]] = {}
        self.parents: dict[str, str] = {}
        self.current = ""
        self.seen: dict[str, dict[str, dict[int, int]]] = {}
        self.number = 0

    def forest(self) -> Forest:
        overlays = frozenset(path for path in self.backing if path.startswith("over"))
        return Forest(
            dict(self.backing),
            dict(self.active),
            {name: dict(images) for name, images in self.frozen.items()},
            dict(self.parents),
            self.current,
            overlays,
            {},
            {n: {t: p for t, p in images.items() if p in self.backing} for n, images in self.over.items()},
        )

    def view(self, path: str) -> dict[int, int]:
        below = self.view(self.backing[path]) if self.backing[path] else {}
        return below | self.content[path]

    def put_over(self, snapshot: str) -> None:
        self.over[snapshot] = {}
        for target, path in self.frozen[snapshot].items():
            self.number += 1
            new = f"over-{target}-{self.number}"
            self.content[new], self.backing[new] = {}, path
            self.active[target] = self.over[snapshot][target] = new
        self.current = snapshot

    def take(self) -> None:
        self.number += 1
        name = f"s{self.number}"
        self.frozen[name], self.parents[name] = dict(self.active), self.current
        self.seen[name] = {target: self.view(path) for target, path in self.active.items()}
        self.put_over(name)

    def revert(self, name: str) -> None:
        dropped = [path for path in self.active.values() if path.startswith("over")]
        self.put_over(name)
        for path in dropped:
            del self.content[path], self.backing[path]

    def delete(self, name: str) -> None:
        forest = self.forest()
        done = deletion(forest, name)
        for merge in done.merges:
            assert self.backing[merge.top] == merge.base
            over = {path for path, below in self.backing.items() if below == merge.top}
            assert set(merge.children) <= over
            # Nobody reads any more what the same deletion removes in its end.
            assert over - set(merge.children) <= set(done.removed)
            self.content[merge.base] |= self.content.pop(merge.top)
            del self.backing[merge.top]
            for child in merge.children:
                self.backing[child] = merge.base
        for path in done.removed:
            assert path not in self.backing.values(), "something lies over a removed image"
            del self.content[path], self.backing[path]
        now = done.renamed
        self.active = {target: now.get(path, path) for target, path in self.active.items()}
        parent = self.parents.pop(name)
        del self.frozen[name], self.seen[name]
        self.over.pop(name)
        self.frozen = {n: {t: now.get(p, p) for t, p in images.items()} for n, images in self.frozen.items()}
        self.parents = {n: parent if above == name else above for n, above in self.parents.items()}
        self.current = parent if self.current == name else self.current
        expected = after(forest, name, done)
        assert expected == self.forest()

    def check(self) -> None:
        assert faults(self.forest()) == []
        for name, views in self.seen.items():
            for target, view in views.items():
                assert self.view(self.frozen[name][target]) == view, f"{name} has lost its content"


@settings(max_examples=300, deadline=None)
@example([("t", 0), ("t", 0), ("r", 0), ("d", 0), ("r", 0), ("t", 0), ("r", 1)])
@given(st.lists(st.tuples(st.sampled_from("wtttrrdd"), st.integers(0, 99)), max_size=40))
def test_no_content_is_ever_lost(steps: list[tuple[str, int]]) -> None:
    world = World()
    for what, number in steps:
        names = sorted(world.frozen)
        if what == "w":
            for target in TARGETS:
                world.content[world.active[target]][number % 4] = number
        elif what == "t":
            world.take()
        elif names:
            name = names[number % len(names)]
            before = {target: world.view(path) for target, path in world.active.items()}
            if what == "r":
                world.revert(name)
                assert {t: world.view(p) for t, p in world.active.items()} == world.seen[name]
            else:
                world.delete(name)
                assert {t: world.view(p) for t, p in world.active.items()} == before, "the guest's disks changed"
        world.check()
    for name in sorted(world.frozen):
        world.delete(name)
        world.check()
    assert set(world.backing) == set(world.active.values()), "images are left that nothing needs"


CHAIN = Forest(
    backing={"a": "", "b": "a", "c": "b"},
    active={"vda": "c"},
    frozen={"one": {"vda": "a"}, "two": {"vda": "b"}},
    parents={"one": "", "two": "one"},
    current="two",
    overlays=frozenset({"b", "c"}),
    over={"one": {"vda": "b"}, "two": {"vda": "c"}},
)


def test_a_plain_chain() -> None:
    assert faults(CHAIN, {"vda": ("c", "b", "a")}) == []
    assert deletion(CHAIN, "one").merges == (Merge("a", "b", ("c",)),)
    assert deletion(CHAIN, "two").merges == (Merge("b", "c"),)
    assert deletion(CHAIN, "two").renamed == {"c": "b"}


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (replace(CHAIN, backing={"a": "", "b": "", "c": "b"}), "does not lie over a of its parent"),
        (replace(CHAIN, backing={"a": "", "b": "a", "c": "a"}), "does not lie over b of two"),
        (replace(CHAIN, backing={"b": "a", "c": "b"}), "cannot be read"),
        (replace(CHAIN, active={"vda": "b"}), "the guest writes to it"),
        (replace(CHAIN, backing={"a": "", "b": "a", "c": "b", "x": "b"}, over={"one": {"vda": "x"}}), "not over a"),
        (replace(CHAIN, backing={"a": "c", "b": "a", "c": "b"}), ""),
    ],
    ids=["parent", "active", "missing", "written", "record", "ring"],
)
def test_a_broken_chain_is_seen(broken: Forest, says: str) -> None:
    found = faults(broken)
    if says:
        assert any(says in fault for fault in found), found
    else:
        broken.below("a")  # a ring ends


def test_a_running_guest_on_other_images_is_seen() -> None:
    assert "the files say" in faults(CHAIN, {"vda": ("c", "a")})[0]


def test_what_others_use_is_never_changed() -> None:
    for image in ("a", "b"):
        with pytest.raises(InUseError) as refused:
            deletion(replace(CHAIN, users={image: ("guest other",)}), "one")
        assert (refused.value.path, refused.value.users) == (image, ("guest other",))
    assert deletion(replace(CHAIN, users={"a": ("guest other",)}), "two").merges


def test_an_image_that_no_snapshot_made_is_never_removed() -> None:
    # A catalogue image below two disks, and a disk that was detached after its snapshot.
    forest = Forest(
        {"image": "", "d1": "image", "d2": "image", "o1": "d1"},
        {"vda": "o1"},
        {"s": {"vda": "d1", "vdb": "d2"}},
        {"s": ""},
        "s",
        frozenset({"o1"}),
    )
    done = deletion(forest, "s")
    assert (done.merges, done.removed) == ((Merge("d1", "o1"),), ())
