"""The commands. Their modules import nothing but click; what a command needs, it imports when it runs."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import click

from gpubatch_cli.commands.completion import completion
from gpubatch_cli.commands.deliveries import deliveries, redeliver
from gpubatch_cli.commands.inspect import inspect
from gpubatch_cli.commands.logs import logs
from gpubatch_cli.commands.queue import queue
from gpubatch_cli.commands.results import results
from gpubatch_cli.commands.steer import cancel, priority, rerun, resume, retry, suspend
from gpubatch_cli.commands.submit import submit
from gpubatch_cli.commands.wait import wait
from gpubatch_cli.commands.why import why
from gpubatch_cli.options import place


class Commands(click.Group):
    """Commands in the order of a job's life, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they were added."""
        return list(self.commands)


def _version(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        try:
            click.echo(f"gpubatch {metadata.version('gpubatch')}")
        except metadata.PackageNotFoundError:
            click.echo("gpubatch, from a checkout")
        ctx.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Each command has --help. All of it, and the exit statuses: docs/cli.md.",
)
@place
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print it.")
def gpubatch() -> None:
    """GPU batch jobs: submit them, see when they run and why they wait, fetch what they made."""


for command in (
    inspect, submit, queue, why, logs, wait, results, priority, suspend, resume, cancel, retry, rerun,
    deliveries, redeliver, completion,
):  # fmt: skip
    gpubatch.add_command(command)
