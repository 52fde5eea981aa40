"""Generate, lint and compare the API definition.

``python -m tests.tools.proto generate`` writes ``virtd/v1`` anew; ``lint`` runs ``buf lint``;
``breaking`` compares with ``proto/baseline.binpb``; ``baseline`` rewrites that file (do it with a
release, never to silence ``breaking``).

The imports from Google (``google/longrunning``, ``google/rpc`` ...) come from the installed
googleapis-common-protos, laid out in a temporary directory; nothing is downloaded.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"
BASELINE = PROTO / "baseline.binpb"


@contextmanager
def workspace() -> Iterator[Path]:
    """A directory that holds our protos, buf.yaml and Google's protos."""
    with tempfile.TemporaryDirectory(prefix="virtd-proto-") as name:
        root = Path(name)
        shutil.copytree(PROTO / "virtd", root / "virtd")
        shutil.copy(PROTO / "buf.yaml", root / "buf.yaml")
        for package in ("longrunning", "api", "rpc"):
            spec = find_spec(f"google.{package}")
            assert spec is not None and spec.submodule_search_locations
            (source,) = list(spec.submodule_search_locations)[:1]
            for file in Path(source).glob("*.proto"):
                # The wheel ships operations.proto under another name; its descriptor has the real one.
                target = "operations.proto" if file.name == "operations_proto.proto" else file.name
                destination = root / "google" / package / target
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, destination)
        yield root


def generate(output: Path) -> None:
    """Write the Python modules and stubs for ``virtd.v1`` below ``output``."""
    from grpc_tools import protoc

    spec = find_spec("grpc_tools")
    assert spec is not None and spec.origin is not None
    well_known = Path(spec.origin).parent / "_proto"
    with workspace() as root:
        files = sorted(str(p.relative_to(root)) for p in (root / "virtd").rglob("*.proto"))
        arguments = [
            "protoc",
            f"-I{root}",
            f"-I{well_known}",
            f"--python_out={output}",
            f"--grpc_python_out={output}",
            f"--mypy_out=quiet:{output}",
            f"--mypy_grpc_out=quiet:{output}",
            *files,
        ]
        code = protoc.main(arguments)
        if code:
            raise SystemExit(code)
    package = output / "virtd" / "v1" / "__init__.py"
    package.write_text('"""Generated from proto/virtd/v1; never edited by hand."""\n')


def buf(*arguments: str) -> int:
    """Run buf in a workspace; return its exit code."""
    with workspace() as root:
        return subprocess.run([_tool("buf"), *arguments], cwd=root, check=False).returncode


def _tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        message = f"{name} is not installed: run .ci/setup dev"
        raise SystemExit(message)
    return found


def main() -> int:
    """Entry point."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "generate":
        generate(ROOT)
        return 0
    if command == "lint":
        return buf("lint", "--path", "virtd")
    if command == "breaking":
        return buf("breaking", "--against", str(BASELINE), "--path", "virtd")
    if command == "baseline":
        return buf("build", "-o", str(BASELINE), "--path", "virtd")
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
