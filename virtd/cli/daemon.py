"""The command ``virtd``: run the daemon, look at its configuration.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.  Every failure is one clear line on standard error.
Imports are inside the functions: ``virtd version`` and ``--help`` must not wait for what only the daemon needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

if TYPE_CHECKING:
    from virtd.config import Config
    from virtd.errors import VirtdError

FAILED: Final = 1
WRONG: Final = 2

_config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file, instead of $VIRTD_CONFIG and the usual places.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """One gRPC guest-management API over KVM, Xen and VirtualBox."""


@cli.command()
@_config_option
@click.option("--state-dir", metavar="DIR", help="Keep all state, and the sockets, in DIR.")
@click.option("--socket", metavar="PATH", help="Serve the API on this unix socket.")
@click.option("--tcp", metavar="ADDRESS:PORT", help="Serve it on this loopback address as well; needs --insecure.")
@click.option("--insecure", is_flag=True, help="Allow TCP without TLS: all users of this machine can then use the API.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What is logged.")
@click.option("--log-format", type=click.Choice(["auto", "json", "console"]), help="How it is logged.")
def serve(
    path: Path | None,
    *,
    state_dir: str | None,
    socket: str | None,
    tcp: str | None,
    insecure: bool,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run the daemon in the foreground until SIGTERM.

    Without any configuration it finds the hypervisors of this machine; where none answers, it runs a private
    libvirt daemon.
    """
    given = {
        "state.directory": _absolute(state_dir),
        "state.runtime_directory": _absolute(state_dir and f"{state_dir}/run"),
        "server.socket": _absolute(socket),
        "server.tcp_listen": tcp,
        "server.insecure": insecure or None,
        "log.level": log_level,
        "log.format": log_format,
    }
    with _plain_errors():
        config = _load(path, {name: value for name, value in given.items() if value is not None})
        sys.exit(_run(config))


@cli.group("config")
def config_group() -> None:
    """Look at the configuration."""


@config_group.command()
@_config_option
def check(path: Path | None) -> None:
    """Check the configuration file; tell every defect with its line. Exit code 0 or 2."""
    with _plain_errors():
        config = _load(path, {})
        print(f"{config.source}: good" if config.source else "no configuration file: all defaults hold")


@config_group.command()
@_config_option
def show(path: Path | None) -> None:
    """Print the configuration that holds in the end, as TOML."""
    with _plain_errors():
        config = _load(path, {})
        from virtd.config.reference import to_toml

        print(f"# from {config.source}" if config.source else "# no configuration file: all defaults")
        print(to_toml(config), end="")


@config_group.command()
@click.option("--toml", is_flag=True, help="A configuration file with all options commented out, to start from.")
def reference(toml: bool) -> None:
    """Print the reference of all options (Markdown)."""
    with _plain_errors():
        from virtd.config.reference import example, markdown

        print(example() if toml else markdown(), end="")


@cli.command()
def version() -> None:
    """Print the version."""
    from virtd import __version__

    print(f"virtd {__version__}")


def main() -> NoReturn:
    """Entry point of the command."""
    try:
        cli(prog_name="virtd", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as shown:
        shown.show()
        sys.exit(WRONG)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone; nothing is left to say, and Python must not say it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    sys.exit(0)


def _absolute(path: str | None) -> str | None:
    return str(Path(path).absolute()) if path else None


def _load(path: Path | None, overrides: dict[str, object]) -> Config:
    from virtd.config import load

    return load(path, overrides=overrides)


def _run(config: Config) -> int:
    # gRPC's handlers around fork() can deadlock; virtd never forks without exec.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import asyncio

    from virtd.daemon import serve as run
    from virtd.obs import logging

    logging.configure(config.log)
    return asyncio.run(run(config))


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn errors into one line each, and an exit code."""
    try:
        yield
    except (SystemExit, click.ClickException, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "virtd":
            raise
        _fail(f"{error.name} is not installed: this is a client's installation; pip install 'virtd[daemon]'", FAILED)
    except Exception as error:
        from virtd.errors import VirtdError

        if isinstance(error, VirtdError):
            _fail_with(error)
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror or error}", FAILED)
        raise  # a defect: the traceback is the report


def _fail_with(error: VirtdError) -> NoReturn:
    from virtd.errors import CONFIG_INVALID

    code = WRONG if error.reason is CONFIG_INVALID else FAILED
    if code == WRONG and error.record.violations:
        for violation in error.record.violations:
            print(f"virtd: {violation.field}: {violation.description}", file=sys.stderr)
        sys.exit(code)
    hint = "" if code == WRONG else f" {error.reason.remedy}"
    _fail(f"{error.message}.{hint}" if hint else error.message, code)


def _fail(message: str, code: int) -> NoReturn:
    print(f"virtd: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
