"""The tool that finds, runs and compares the commands of the documentation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tools.console import Session, commands, matches, rewritten
from tests.tools.playground import end_processes, home
from tests.tools.tour import scene

PAGE = """\
# Title

```sh
not run
```

```console
$ one \\
> two
first
second
$ three
```

- in a list

  ```console
  $ four
  out
  ```
"""


def test_commands_and_their_outputs_are_found() -> None:
    found = commands(PAGE)
    assert [command.text for command in found] == ["one \\\ntwo", "three", "four"]
    assert [command.expected for command in found] == ["first\nsecond", "", "out"]
    assert [PAGE.splitlines()[command.line - 1].strip() for command in found] == ["$ one \\", "$ three", "$ four"]


@pytest.mark.parametrize("page", ["```console\noutput\n```\n", "```console\n$ one\n"])
def test_broken_pages_are_errors(page: str) -> None:
    with pytest.raises(ValueError, match=r"line [12]"):
        commands(page)


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ("", "", True),
        ("", "something", False),
        ("a", "a\n", True),
        ("a", "a  ", True),
        ("a", "b", False),
        ("a.c", "abc", False),
        ("...", "", True),
        ("...", "a\nb", True),
        ("a\n...\nz", "a\nz", True),
        ("a\n...\nz", "a\nb\nc\nz", True),
        ("a\n...\nz", "a\nb", False),
        ("took ... s", "took 1.5 s", True),
        ("took ... s", "took 1\n5 s", False),
        ("a b...", "a b and more", True),
        ("a", "a\nb", False),
    ],
)
def test_matches(expected: str, actual: str, same: bool) -> None:
    assert matches(expected, actual) is same


def test_outputs_are_rewritten_in_place() -> None:
    one, three, four = commands(PAGE)
    again = rewritten(PAGE, {one: "new\n", three: "x\ny", four: ""})
    assert [command.expected for command in commands(again)] == ["new", "x\ny", ""]
    assert [command.text for command in commands(again)] == [command.text for command in commands(PAGE)]
    assert "not run" in again
    assert rewritten(PAGE, {}) == PAGE


def test_a_session_keeps_folder_variables_and_jobs(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with Session(tmp_path, {"PATH": os.environ["PATH"]}) as session:
        assert session.run("cd sub; X=5") == ("", 0)
        assert session.run("echo $X; pwd") == (f"5\n{tmp_path}/sub\n", 0)
        assert session.run("printf 'no end of line'; false") == ("no end of line", 1)
        assert session.run("cat; echo error >&2") == ("error\n", 0)
        assert session.run("echo a \\\nb") == ("a b\n", 0)
        assert session.run("sleep 100 &") == ("", 0)
        assert session.run("kill %1 && wait")[1] in {0, 143}
        with pytest.raises(TimeoutError, match="did not end in time"):
            session.run("echo before; sleep 100", timeout_s=0.5)


def test_a_command_that_ends_the_shell_is_an_error(tmp_path: Path) -> None:
    with Session(tmp_path, {}) as session, pytest.raises(TimeoutError, match="ended the shell"):
        session.run("exit 3")


def test_what_a_home_leaves_running_is_ended() -> None:
    with home() as (place, environ), Session(place, environ) as session:
        # In a session of its own, as a private libvirt daemon is: ending the shell's group does not reach it.
        output, code = session.run(f"setsid python -c 'import time; time.sleep(1000)' {place}/x & echo $!")
        assert code == 0
        pid = int(output)
        os.kill(pid, 0)
        end_processes(place)
        session.run("wait")  # the shell is its parent and reaps it
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not place.exists()


def test_the_scene_is_read_from_its_comment() -> None:
    assert scene("text\n<!-- tour:\none\n\ntwo & x\n-->\n") == ["one", "two & x"]
    assert scene("nothing") == []
