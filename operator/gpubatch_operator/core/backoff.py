"""How long a job waits after attempts that were lost, so that a bad node can't make it spin."""

from __future__ import annotations

FIRST_SECONDS = 10.0
LAST_SECONDS = 300.0


def delay(lost_in_a_row: int) -> float:
    """Seconds from the end of a lost attempt to the next one: none after the first, then doubling from 10 to 300."""
    if lost_in_a_row < 2:
        return 0.0
    return float(min(LAST_SECONDS, FIRST_SECONDS * 2 ** (lost_in_a_row - 2)))
