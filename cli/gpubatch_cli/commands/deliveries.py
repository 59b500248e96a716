"""`gpubatch deliveries` and `gpubatch redeliver`: webhooks, and what became of them."""

from __future__ import annotations

import click

from gpubatch_cli.errors import WrongUse
from gpubatch_cli.options import all_namespaces, complete_jobs, connect, job, output, place


@click.command(short_help="List webhook deliveries.")
@place
@all_namespaces
@click.argument("job", metavar="[JOB]", required=False, shell_complete=complete_jobs)
@click.option("--dead", is_flag=True, help="Only those that were given up.")
@output("json", "yaml")
@click.pass_context
def deliveries(ctx: click.Context, everywhere: bool, job: str | None, dead: bool, form: str | None) -> None:
    """List webhook deliveries: of a job, or of all jobs; which arrived, which are tried again, which were given up."""
    from gpubatch_cli import hooks, lookup
    from gpubatch_cli.api import jobs_path
    from gpubatch_cli.console import console, document, say
    from gpubatch_cli.queueview import now

    if job and everywhere:
        raise WrongUse("-A and a job's name exclude each other", "Name the job with -n NAMESPACE, or leave it out.")
    api, namespace = connect(ctx)
    found = [lookup.find(api, namespace, job)] if job else api.list(jobs_path(None if everywhere else namespace))
    listed = [d for each in found for d in hooks.of(each) if not dead or d.state == hooks.DEAD]
    if form:
        document({"deliveries": [d.as_json() for d in listed]}, form)
    elif listed:
        console().print(hooks.table(listed, now(), everywhere))
    else:
        say("no deliveries" + (" were given up" if dead else ""))


@click.command(short_help="Send webhooks again.")
@place
@job
@click.argument("ids", metavar="[ID...]", nargs=-1)
@click.pass_context
def redeliver(ctx: click.Context, job: str, ids: tuple[str, ...]) -> None:
    """Send webhooks of a job again: those that were given up, or the ones with these ids, even if they arrived.

    Ids are listed by `deliveries`. The receiver gets the same id and body as before.
    """
    from gpubatch_cli import hooks, steering

    steering.one(*connect(ctx), job, lambda found: hooks.redeliver(found, ids))
