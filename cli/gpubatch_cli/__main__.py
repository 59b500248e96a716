"""Entry point of `gpubatch` and of `kubectl gpubatch`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from gpubatch_cli.app import gpubatch
from gpubatch_cli.errors import CliError, Exit

PLUGIN = "kubectl-gpubatch"
DEBUG = "GPUBATCH_DEBUG"


def program() -> str:
    """What its user has typed."""
    return "kubectl gpubatch" if Path(sys.argv[0]).name == PLUGIN else "gpubatch"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    try:
        status = gpubatch.main(args=arguments, prog_name=program(), standalone_mode=False)
        sys.stdout.flush()
        return int(status or Exit.OK)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return int(Exit.USAGE)
    except (click.Abort, KeyboardInterrupt):
        return int(Exit.INTERRUPTED)
    except CliError as error:
        _tell(f"{program()}: {error.text}", error.advice)
        return int(error.code)
    except BrokenPipeError:  # `gpubatch queue | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(Exit.OK)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        what = f"{type(error).__name__}: {error}"
        _tell(f"{program()}: unexpected: {what}", f"This is a bug; please report it with what {DEBUG}=1 prints.")
        return int(Exit.CLUSTER)


def _tell(text: str, advice: str) -> None:
    click.echo(text, err=True)
    for line in advice.splitlines():
        click.echo(f"  {line}", err=True)


if __name__ == "__main__":
    sys.exit(main())
