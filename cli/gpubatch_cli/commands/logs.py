"""`gpubatch logs JOB`."""

from __future__ import annotations

import click

from gpubatch_cli.options import Duration, connect, job, place


@click.command()
@place
@job
@click.option("-f", "--follow", is_flag=True, help="Stay until the job has ended, through all its attempts; the exit "
              "status is that of `wait`.")  # fmt: skip
@click.option("-c", "--container", metavar="NAME", help="runner (the default) or engine of an inference job; of a "
              "template job any of its containers, the first by default.")  # fmt: skip
@click.option("--attempt", type=click.IntRange(0), metavar="N", help="Of this attempt; 0 is the inspection of the "
              "input. Default: the newest.")  # fmt: skip
@click.option("-p", "--previous", is_flag=True, help="Of the container before its last restart.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
@click.option("--since", type=Duration(), help="Only what is newer than that: 90s, 10m, 1h.")
@click.option("--timestamps", is_flag=True, help="With the time of each line.")
@click.pass_context
def logs(
    ctx: click.Context,
    job: str,
    follow: bool,
    container: str | None,
    attempt: int | None,
    previous: bool,
    tail: int | None,
    since: float | None,
    timestamps: bool,
) -> int:
    """Print what a job's runner or engine has logged.

    Logs live as long as their pod. Where it is gone, what status kept of its end is printed.
    """
    from gpubatch_cli.podlogs import Logs, Wanted

    api, namespace = connect(ctx)
    wanted = Wanted(container, attempt, previous, tail, None if since is None else int(since), timestamps)
    reader = Logs(api, namespace, wanted)
    return reader.follow(job) if follow else reader.show(job)
