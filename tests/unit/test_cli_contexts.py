"""The file of contexts: strict to read, safe to write, never half written."""

from __future__ import annotations

import stat
import threading
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtd.cli.ctl import contexts
from virtd.cli.ctl.contexts import Context, ContextError, Contexts


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def write(text: str) -> None:
    contexts.path().parent.mkdir(parents=True, exist_ok=True)
    contexts.path().write_text(text)


def test_where_the_file_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert contexts.path() == home / "virtd" / "guestctl.toml"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(home))
    assert contexts.path() == home / ".config" / "virtd" / "guestctl.toml"


def test_no_file_is_no_contexts() -> None:
    assert contexts.load() == Contexts()


def test_what_is_written_is_read_back_and_private() -> None:
    made = contexts.change(lambda c: contexts.set_entry(c, "lab", {"target": "unix:/a b", "timeout": "30s"}))
    assert contexts.load() == made == Contexts("lab", {"lab": Context("unix:/a b", "", "30s")})
    assert stat.S_IMODE(contexts.path().stat().st_mode) == 0o600
    assert list(contexts.path().parent.glob(".guestctl-*")) == []


_PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z"))).map(lambda text: text + " x")


@given(st.dictionaries(st.from_regex(contexts.NAME, fullmatch=True), st.tuples(_PRINTABLE, _PRINTABLE)))
def test_any_values_survive_the_file(entries: dict[str, tuple[str, str]]) -> None:
    known = Contexts("", {name: Context(target, host) for name, (target, host) in entries.items()})
    document = tomllib.loads(contexts.dump(known))
    assert {n: (t.get("target"), t.get("host")) for n, t in document.get("contexts", {}).items()} == entries


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "guestctl.toml"),
        ("current_contxt = 'a'", "did you mean 'current_context'?"),
        ("[contexts.a]\ntraget = 'x'", "unknown key contexts.a.traget; did you mean 'target'?"),
        ("[contexts.a]\ntimeout = 'soon'", "contexts.a.timeout: 'soon' is not a duration"),
        ("[contexts.a]\ntarget = 5", "contexts.a.target must be a text"),
        ("current_context = 'b'\n[contexts.a]", "'b' is not one of the contexts"),
        ("contexts = 3", "contexts a table"),
        ("[contexts]\na = 3", "contexts.a must be a table"),
        ("\udcff", "guestctl.toml"),
    ],
)
def test_a_wrong_file_is_refused_and_left_as_it_is(text: str, said: str) -> None:
    contexts.path().parent.mkdir(parents=True)
    contexts.path().write_bytes(text.encode(errors="surrogateescape"))
    before = contexts.path().read_bytes()
    with pytest.raises(ContextError) as caught:
        contexts.change(lambda c: contexts.set_entry(c, "x", {}))
    assert said in str(caught.value)
    assert contexts.path().read_bytes() == before


def test_an_edit_that_fails_changes_nothing() -> None:
    contexts.change(lambda c: contexts.set_entry(c, "a", {"target": "unix:/a"}))
    before = contexts.path().read_text()

    def edit(known: Contexts) -> Contexts:
        known.get("b")
        return known

    with pytest.raises(ContextError, match="there is no context 'b'"):
        contexts.change(edit)
    assert contexts.path().read_text() == before


def test_a_full_disk_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts.change(lambda c: contexts.set_entry(c, "a", {"target": "unix:/a"}))
    before = contexts.path().read_text()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ContextError, match="No space left"):
        contexts.change(lambda c: contexts.set_entry(c, "b", {}))
    assert contexts.path().read_text() == before
    assert list(contexts.path().parent.glob(".guestctl-*")) == []


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "guestctl.toml"
    real.parent.mkdir()
    real.write_text("")
    contexts.path().parent.mkdir(parents=True)
    contexts.path().symlink_to(real)
    contexts.change(lambda c: contexts.set_entry(c, "a", {"target": "unix:/a"}))
    assert contexts.path().is_symlink()
    assert "unix:/a" in real.read_text()


def test_changes_side_by_side_lose_nothing() -> None:
    def add(index: int) -> None:
        contexts.change(lambda c: contexts.set_entry(c, f"c{index}", {"target": f"unix:/{index}"}))

    threads = [threading.Thread(target=add, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(contexts.load().entries) == {f"c{index}" for index in range(12)}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("a/b", {}, "not a name of a context"),
        ("", {}, "not a name of a context"),
        ("a", {"target": "unix:/a\nb"}, "cannot be printed"),
        ("a", {"timeout": "soon"}, "--timeout: 'soon' is not a duration"),
    ],
)
def test_values_that_cannot_be_used_are_refused(name: str, changes: dict[str, str], said: str) -> None:
    with pytest.raises(ContextError, match=said):
        contexts.set_entry(Contexts(), name, changes)
