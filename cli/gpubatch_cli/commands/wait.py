"""`gpubatch wait JOB...`."""

from __future__ import annotations

import click

from gpubatch_cli.options import Duration, connect, jobs, place


@click.command()
@place
@jobs
@click.option("--timeout", type=Duration(), help="Give up after that: 90s, 10m, 1h30m. Default: never.")
@click.pass_context
def wait(ctx: click.Context, names: tuple[str, ...], timeout: float | None) -> int:
    """Wait until jobs have ended; the exit status says how.

    0 if all succeeded, 1 if one failed, 4 if one was cancelled and none failed, 124 if --timeout was over first.
    On a terminal it shows a bar, elsewhere a line at each change of phase.
    """
    from gpubatch_cli import lookup
    from gpubatch_cli.following import Follower, Limit, verdict

    api, namespace = connect(ctx)
    limit = Limit(timeout)
    follower = Follower(api, namespace)
    wanted = list(dict.fromkeys(lookup.bare(name) for name in names))
    return verdict(follower.ended(wanted, limit))
