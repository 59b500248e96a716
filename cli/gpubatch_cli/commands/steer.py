"""Commands that change a job's wishes: its priority, suspension, end, and further runs."""

from __future__ import annotations

from typing import Any

import click

from gpubatch_cli.options import connect, job, jobs, place

JSON = dict[str, Any]
PRIORITIES = {"low": -1, "normal": 0, "high": 1}


class Priority(click.ParamType[int]):
    """-1000 to 1000, or low, normal, high."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        if value in PRIORITIES:
            return PRIORITIES[value]
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is no priority; expected -1000 to 1000, or low, normal, high", param, ctx)
        if not -1000 <= number <= 1000:
            self.fail(f"{number} is out of range; expected -1000 to 1000", param, ctx)
        return number


@click.command(context_settings={"ignore_unknown_options": True}, short_help="Change a job's priority.")
@place
@job
@click.argument("number", metavar="N", type=Priority())
@click.pass_context
def priority(ctx: click.Context, job: str, number: int) -> None:
    """Change a job's priority: -1 low, 0 normal, 1 high, any number from -1000 to 1000.

    A job that waits moves at once; one that runs goes on.
    """
    from gpubatch_cli import steering

    steering.priority(*connect(ctx), job, number)


@click.command(short_help="Take jobs out of the queue.")
@place
@jobs
@click.pass_context
def suspend(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Take jobs out of the queue; those that run save what they have and give their GPU up."""
    from gpubatch_cli import steering

    steering.each(*connect(ctx), names, steering.suspend)


@click.command(short_help="Let suspended jobs go on.")
@place
@jobs
@click.pass_context
def resume(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Let suspended jobs go on, from what they have saved, at the place that their creation gives them."""
    from gpubatch_cli import steering

    steering.each(*connect(ctx), names, steering.resume)


@click.command(short_help="End jobs, keeping what was answered.")
@place
@jobs
@click.pass_context
def cancel(ctx: click.Context, names: tuple[str, ...]) -> None:
    """End jobs. What was answered is published; `gpubatch rerun` runs one again."""
    from gpubatch_cli import steering

    steering.each(*connect(ctx), names, steering.cancel)


@click.command(short_help="Let failed jobs go on with what is saved.")
@place
@jobs
@click.pass_context
def retry(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Let failed jobs go on with what they have saved: one more attempt, at the end of the queue.

    What to do when the cause is mended (an expired URL, a Secret, an image).
    """
    from gpubatch_cli import steering

    steering.each(*connect(ctx), names, steering.retry)


@click.command(short_help="Run finished jobs again from the start.")
@place
@jobs
@click.option("--run-id", metavar="ID", help="The new spec.runId. Default: the next number, or the time.")
@click.pass_context
def rerun(ctx: click.Context, names: tuple[str, ...], run_id: str | None) -> None:
    """Run finished jobs again from the start, in place, by a new runId. The new results replace the old ones."""
    from gpubatch_cli import steering

    steering.each(*connect(ctx), names, lambda found: steering.rerun(found, run_id))
