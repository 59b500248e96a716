"""`gpubatch results JOB`."""

from __future__ import annotations

import click

from gpubatch_cli.errors import WrongUse
from gpubatch_cli.options import connect, job, output, place


@click.command(short_help="Show or fetch what a job made.")
@place
@job
@click.option("--fetch", "folder", metavar="FOLDER", type=click.Path(file_okay=False), help="Download the output and "
              "the error file into this folder.")  # fmt: skip
@click.option("--cat", is_flag=True, help="Print the output file.")
@click.option("--endpoint", metavar="URL", help="The store as this machine reaches it. Default: as the job does.")
@output("json", "yaml")
@click.pass_context
def results(ctx: click.Context, job: str, folder: str | None, cat: bool, endpoint: str | None, form: str | None) -> int:
    """Show where a job's results are, how many requests were answered, tokens and times; or fetch them.

    The keys of the store come from the environment (AWS_*, GOOGLE_*, AZURE_*), else from the Secret that the job
    names, if you may read it. The exit status is 1 if the job failed, 4 if it was cancelled: it may have results
    nevertheless.
    """
    from gpubatch_cli import lookup, outcome

    if cat and (folder or form):
        raise WrongUse("--cat excludes --fetch and -o", "It prints the output file itself.")
    api, namespace = connect(ctx)
    found = lookup.find(api, namespace, job)
    if folder or cat:
        outcome.fetch(api, found, folder, endpoint)
    else:
        outcome.show(found, form)
    return outcome.status(found)
