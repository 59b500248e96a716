"""How long a job waits after attempts that ended badly, so that neither nodes nor jobs make the queue spin."""

from __future__ import annotations

FIRST_SECONDS = 10.0
LAST_SECONDS = 300.0


def delay(in_a_row: int, blameless: bool) -> float:
    """Seconds from the end of the last of some bad attempts to the next one: 10, then doubling up to 300.

    Args:
        in_a_row: Attempts since one ended well, at least one.
        blameless: The last one was lost by the cluster, and it may well be better at once: it begins with none.
    """
    doublings = in_a_row - 1 - blameless
    return 0.0 if doublings < 0 else float(min(LAST_SECONDS, FIRST_SECONDS * 2 ** min(doublings, 10)))
