"""Whether there is a node that could answer a batch."""

from __future__ import annotations

from typing import Any

from gpubatch_operator.admission.advice import Sightings
from gpubatch_operator.core.model import Node
from gpubatch_operator.kube.convert import node_of

JSON = dict[str, Any]


class Workers:
    """The nodes that there are.

    Args:
        since: Seconds since the epoch: when this began to look.
    """

    def __init__(self, since: float) -> None:
        self._nodes: dict[str, Node] = {}
        self._sightings, self._since = Sightings(), since

    def put(self, raw: JSON) -> None:
        """Take a node as it is."""
        node = node_of(raw, 1)
        self._nodes[node.name] = node

    def lose(self, name: str) -> None:
        """It is gone."""
        self._nodes.pop(name, None)

    def held(self) -> set[str]:
        """Their names."""
        return set(self._nodes)

    def look(self, now: float) -> None:
        """Note who is there; to be called every second or so."""
        self._sightings.note(self._nodes.values(), now)

    def silent(self, resource: str, now: float) -> float | None:
        """For how many seconds no node with this GPU resource has been ready; None: one is."""
        self.look(now)
        last = self._sightings.last(resource)
        if last == now:
            return None
        return now - (last or self._since)
