"""`gpubatch why JOB`."""

from __future__ import annotations

import click

from gpubatch_cli.options import connect, job, output, place


@click.command(short_help="Tell why a job waits, runs or failed.")
@place
@job
@output("json", "yaml")
@click.pass_context
def why(ctx: click.Context, job: str, form: str | None) -> None:
    """Tell why a job waits, runs or failed: its place, who is before it, what to do, each attempt.

    -o json and -o yaml print its whole status.
    """
    from gpubatch_cli import lookup
    from gpubatch_cli.console import document, out
    from gpubatch_cli.place import ahead_of
    from gpubatch_cli.queueview import now
    from gpubatch_cli.render import standing

    api, namespace = connect(ctx)
    found = lookup.find(api, namespace, job)
    if form:
        document(found.get("status") or {}, form)
        return
    for line in standing(found, now(), ahead_of(api, found)):
        out(line)
