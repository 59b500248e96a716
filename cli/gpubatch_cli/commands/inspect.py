"""`gpubatch inspect FILE`."""

from __future__ import annotations

import click

from gpubatch_cli.errors import Exit, WrongUse


@click.command(short_help="Check an input file, every line.")
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("--model", help="spec.inference.servedModelName, or model where that is not set. Default: that of the "
              "first line that names one.")  # fmt: skip
@click.option("--max-requests", type=click.IntRange(1), default=50_000, show_default=True, help="Limit of the cluster.")
@click.option("--tokenizer", metavar="FILE", type=click.Path(), help="A model's tokenizer.json, to count prompt tokens "
              "by. Without it they are estimated, 4 bytes a token.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with all errors.")
@click.option("--all", "everything", is_flag=True, help="Print all errors, not only the first 20.")
def inspect(
    file: str, model: str | None, max_requests: int, tokenizer: str | None, as_json: bool, everything: bool
) -> int:
    """Check an input file as the cluster would: every line, all errors.

    FILE is JSON Lines, also .gz or .zst; - reads standard input. The exit status is 0 if all lines are valid, 1 if
    some are not or the job would be refused, 2 if the file can't be read.
    """
    from gpubatch_cli import inspection
    from gpubatch_runner.failures import RunnerError

    try:
        with inspection.findings(file, model, tokenizer) as found:
            problem = found.problem(max_requests)
            if as_json:
                inspection.print_json(found, problem)
            else:
                inspection.print_text(found, problem, everything)
            return Exit.FAILED if found.invalid or problem else Exit.OK
    except (OSError, RunnerError, ValueError) as error:
        raise WrongUse(f"inspect: {error}") from None
