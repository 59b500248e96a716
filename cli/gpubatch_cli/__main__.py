"""Entry point of `gpubatch`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gpubatch_cli import inspect

COMMANDS = (inspect,)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="gpubatch", description="Jobs for GPUBatch, from a laptop.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    options = parser.parse_args(arguments)
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
