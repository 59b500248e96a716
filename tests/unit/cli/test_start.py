"""The command starts fast, since it imports what a command needs when it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEAVY = "kubernetes", "rich", "pydantic", "obstore", "yaml", "gpubatch_runner", "gpubatch_operator", "asyncio"
PROGRAM = """
import contextlib, io, sys
from gpubatch_cli.__main__ import main
with contextlib.redirect_stdout(io.StringIO()):
    main(sys.argv[1:])
print(*(name for name in {heavy!r} if name in sys.modules))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "--help"], ["completion", "bash"]], ids=" ".join)
def test_help_and_completion_import_nothing_heavy(arguments: list[str]) -> None:
    path = ":".join(str(ROOT / folder) for folder in ("cli", "operator", "runner"))
    program = [sys.executable, "-c", PROGRAM.format(heavy=HEAVY), *arguments]
    found = subprocess.run(program, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_every_command_explains_itself_and_its_options() -> None:
    import click

    from gpubatch_cli.app import gpubatch

    for name, command in gpubatch.commands.items():
        short = command.get_short_help_str(limit=60)
        assert short, name
        assert not short.endswith("..."), f"{name}: its line in --help is cut: {short}"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"
