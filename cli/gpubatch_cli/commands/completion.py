"""`gpubatch completion SHELL`."""

from __future__ import annotations

import click

SHELLS = "bash", "zsh", "fish"


@click.command(short_help="Print the completion for a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options and the names of jobs.

    \b
    bash:  source <(gpubatch completion bash)         in ~/.bashrc (bash 4.4 or newer)
    zsh:   source <(gpubatch completion zsh)          in ~/.zshrc, after compinit
    fish:  gpubatch completion fish | source          in ~/.config/fish/config.fish

    kubectl completes `kubectl gpubatch` by itself, if its own completion is set up and
    kubectl_complete-gpubatch is on the PATH, as pip puts it.
    """
    from gpubatch_cli.completion import script

    click.echo(script(shell))
