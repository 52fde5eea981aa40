"""``completion``: the script that a shell loads."""

from __future__ import annotations

import sys

import click

from virtd.cli.ctl.lazy import command


@command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    r"""Print the completion script of a shell; names of guests and hosts come from the daemon.

    \b
    bash:  source <(guestctl completion bash)
    zsh:   source <(guestctl completion zsh)
    fish:  guestctl completion fish | source
    """
    from click.shell_completion import get_completion_class

    from virtd.cli.ctl.app import cli

    found = get_completion_class(shell)
    assert found is not None
    complete = found(cli, {}, "guestctl", "_GUESTCTL_COMPLETE")
    # Not source(): for bash it would first start a bash, to look at its version.
    sys.stdout.write(complete.source_template % complete.source_vars() + "\n")
