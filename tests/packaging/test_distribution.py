"""The wheel and the sdist: built from here without a network, whole, and usable without the daemon's extras."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(300)


def build(source: Path, target: Path, kind: str) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(target)],
        cwd=source, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def metadata(wheel: Path, file: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(f".dist-info/{file}")]
        return archive.read(name).decode()


def sources() -> set[str]:
    """What has to be in the wheel, from the tree."""
    found = set()
    for base, package in ((ROOT, "virtd"), (ROOT / "clients/python", "virtd_client")):
        for path in (base / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                found.add(str(path.relative_to(base)))
    return found


def test_the_wheel_has_all_of_the_packages_and_nothing_else(wheel: Path) -> None:
    assert names(wheel) == sources()


@pytest.mark.parametrize(
    "name",
    [
        "virtd/py.typed", "virtd_client/py.typed", "virtd/v1/guest_pb2.py", "virtd/v1/guest_pb2.pyi",
        "virtd/v1/guest_service_pb2_grpc.py", "virtd/data/systemd/virtd.service", "virtd/data/systemd/virtd.socket",
        "virtd/data/systemd/virtd.tmpfiles.conf", "virtd/cli/daemon.py",
    ],
)  # fmt: skip
def test_what_must_not_be_missing(wheel: Path, name: str) -> None:
    assert name in names(wheel)


def test_metadata(wheel: Path) -> None:
    fields: Message = HeaderParser().parsestr(metadata(wheel, "METADATA"))
    assert fields["Name"] == "virtd"
    assert fields["License-Expression"] == "Apache-2.0"
    assert {"daemon", "libvirt", "conformance", "tracing"} <= set(fields.get_all("Provides-Extra", []))
    scripts = metadata(wheel, "entry_points.txt")
    assert "virtd = virtd.cli.daemon:main" in scripts
    assert "guestctl = virtd.cli.guestctl:main" in scripts
    assert "[virtd.backends]" in scripts


def test_the_client_needs_none_of_the_daemons_packages(wheel: Path) -> None:
    fields = HeaderParser().parsestr(metadata(wheel, "METADATA"))
    base = {re.split(r"[\s<>=;\[]", line)[0] for line in fields.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert not base & {"pydantic", "structlog", "pluggy", "prometheus-client", "libvirt-python", "lxml"}


def test_the_wheel_that_the_sdist_gives_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        # Debian 12's Python 3.11.2 has no filters yet; the archive is our own.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = tmp_path.iterdir()
    assert (source / "proto/virtd/v1/guest.proto").is_file()
    assert (source / "LICENSE").is_file()
    assert not (source / "tests").exists()
    again = build(source, tmp_path / "again", "wheel")
    assert names(again) == names(wheel)


def test_nothing_names_this_machine(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            assert str(ROOT).encode() not in archive.read(name), name


# ------------------------------------------------------------------------------------- installation


def closure(name: str, seen: set[str]) -> set[str]:
    """The distributions that ``name`` needs without any extra, by their names."""
    for line in distribution(name).requires or []:
        requirement, _, marker = line.partition(";")
        needed = re.split(r"[\s<>=!~\[(]", requirement.strip())[0].lower()
        if "extra" not in marker and "python_version <" not in marker.replace('"', "") and needed not in seen:
            try:
                distribution(needed)
            except Exception:
                continue
            seen.add(needed)
            closure(needed, seen)
    return seen


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and what a client needs, linked from here; none of the extras."""
    place = tmp_path_factory.mktemp("installation")
    venv.create(place, with_pip=True, symlinks=True)
    pip = [str(place / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(wheel)], check=True, timeout=200)
    (packages,) = (place / "lib").glob("python3*/site-packages")
    for name in closure("virtd", set()):
        found = distribution(name)
        tops = {path.parts[0] for path in found.files or [] if path.parts[0] not in {"..", "__pycache__"}}
        for top in tops:
            # Namespace packages (google) belong to several distributions: linking them once is enough.
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(found.locate_file(top))))
    return place


def command(installation: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program, *rest = arguments
    return subprocess.run(
        [str(installation / "bin" / program), *rest],
        capture_output=True, text=True, check=False, timeout=60, cwd=installation, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [("guestctl", "--help"), ("virtd", "--help"), ("virtd", "version")])
def test_the_commands_run(installation: Path, arguments: tuple[str, ...]) -> None:
    done = command(installation, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_clients_installation_imports_the_api(installation: Path) -> None:
    code = "import virtd, virtd_client, virtd.v1.guest_service_pb2_grpc as g; print(virtd.__file__, g.GuestServiceStub)"
    done = command(installation, "python", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(installation) in done.stdout


def test_a_clients_installation_says_what_the_daemon_needs(installation: Path) -> None:
    done = command(installation, "virtd", "serve", "--socket", "/nonexistent/socket")
    assert done.returncode == 1
    assert "pip install 'virtd[daemon]'" in done.stderr
    assert "Traceback" not in done.stderr
