"""Build the documentation: ``python docs/build.py [OUTPUT]`` (default ``docs/_build``).

The pages of the reference that are made from code are written into a copy of this folder, so that nothing
generated is ever checked in or can be old.  A warning is an error.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))


def build(output: Path) -> int:
    """Write ``output/source`` and ``output/html``; Sphinx' exit code."""
    from sphinx.cmd.build import main as sphinx

    from docs import generate

    source = output / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(HERE, source, ignore=shutil.ignore_patterns("_build", "__pycache__", "*.py", "schema"))
    shutil.copy(HERE / "conf.py", source)
    made = generate.pages()
    for name, text in made.items():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    # What stands beside the generated pages: lists that other tools write, such as the capability matrix.
    kept = {*made, "reference/index.md"}
    beside = (
        str(path.relative_to(source)) for glob in ("capabilities*.md", "reference/*.md") for path in source.glob(glob)
    )
    listed = "\n".join(f"/{name.removesuffix('.md')}" for name in sorted(beside) if name not in kept)
    with (source / "reference/index.md").open("a") as index:
        index.write(f"\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n" if listed else "")
    arguments = ["-W", "--keep-going", "-q", "-E", "-b", "html", "-d", str(output / "doctrees")]
    return sphinx([*arguments, str(source), str(output / "html")])


def main() -> int:
    """Entry point."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "_build"
    code = build(output.resolve())
    sys.stdout.write("documentation: failed\n" if code else f"documentation: {output}/html/index.html\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
