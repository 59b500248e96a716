"""Completion: the scripts for shells, and `kubectl_complete-gpubatch`, which kubectl asks for the words of a plugin."""

from __future__ import annotations

import sys
from collections.abc import Sequence

NO_FILES = 4
"""What kubectl (cobra) takes for "offer these, and no names of files"."""

FILES = 0


def script(shell: str) -> str:
    """For a shell to source."""
    from click.shell_completion import get_completion_class

    from gpubatch_cli.app import gpubatch

    found = get_completion_class(shell)
    assert found is not None, "click knows all that the command offers"
    # Asked for its source only: click's bash class would start a bash to look at its version.
    completer = found(gpubatch, {}, "gpubatch", "_GPUBATCH_COMPLETE")
    return str(completer.source_template % completer.source_vars())


def candidates(words: Sequence[str]) -> tuple[list[str], int]:
    """The last word's continuations, each with a tab and its help where it has one, and cobra's directive."""
    from click.shell_completion import ShellComplete

    from gpubatch_cli.app import gpubatch

    *before, incomplete = words or [""]
    found = ShellComplete(gpubatch, {}, "gpubatch", "_GPUBATCH_COMPLETE").get_completions(list(before), incomplete)
    if any(item.type in ("file", "dir") for item in found):
        return [], FILES
    return [f"{item.value}\t{item.help}" if item.help else str(item.value) for item in found], NO_FILES


def main() -> int:
    """As kubectl wants it: a candidate a line, then a colon and the directive."""
    try:
        lines, directive = candidates(sys.argv[1:])
    except Exception:  # a shell has no place for an error
        return 1
    print(*lines, f":{directive}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
