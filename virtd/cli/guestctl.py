"""Entry point of guestctl: run the command, turn every ending into an exit code."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import NoReturn

from virtd.cli.ctl.exits import Exit


def main() -> NoReturn:
    """Run guestctl with the arguments of the process."""
    # Most of a command's life is imports, which make no garbage: collecting rarely saves 5 % of it.
    gc.set_threshold(50_000, 20, 20)
    code = run(sys.argv[1:])
    sys.stderr.flush()
    # gRPC's threads and the interpreter's teardown take tens of milliseconds and change nothing:
    # everything is written and closed here.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; never raises."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`): as quiet as a death by SIGPIPE.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"error: reading or writing failed: {error.strerror}\n")
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    return code


def _run(arguments: list[str]) -> int:
    if "_GUESTCTL_COMPLETE" in os.environ:
        from click.shell_completion import shell_complete

        from virtd.cli.ctl.app import cli

        return shell_complete(cli, {}, "guestctl", "_GUESTCTL_COMPLETE", os.environ["_GUESTCTL_COMPLETE"])
    import click

    from virtd.cli.ctl.app import cli
    from virtd.cli.ctl.errors import CtlError, UsageError, explain, report
    from virtd.cli.ctl.session import Session

    session = Session()
    try:
        with cli.make_context("guestctl", list(arguments), obj=session) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "guestctl"
        problem: CtlError = UsageError(error.format_message(), next=f"{path} --help")
    except click.ClickException as error:
        problem = CtlError(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("interrupted\n")
        return Exit.INTERRUPTED
    except Exception as error:
        # An I/O error that names no file is one of the standard streams.
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise
        problem = explain(error, verbose=session.verbose)
    else:
        return session.exit_code
    finally:
        session.close()
    from virtd.cli.ctl.text import wants_color

    report(problem, color=wants_color(sys.stderr, off=session.no_color))
    return problem.exit_code


if __name__ == "__main__":
    main()
