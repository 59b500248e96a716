"""What `kubectl apply` prints beside "created": that the job will wait, and why, before anybody asks."""

from __future__ import annotations

from collections.abc import Iterable

from gpubatch_operator.core.model import Node, Shape
from gpubatch_operator.core.placement import matching, misfits

MAX = 250  # characters; the API server cuts what is longer than 256


class Sightings:
    """When a ready node with a GPU resource was last seen."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def note(self, nodes: Iterable[Node], now: float) -> None:
        """To be told every second or so."""
        for node in nodes:
            if node.ready:
                self._last.update({resource: now for resource, count in node.capacity.items() if count})

    def last(self, resource: str) -> float | None:
        """None: never since this replica started."""
        return self._last.get(resource)


def warnings(shape: Shape, nodes: Iterable[Node], sightings: Sightings, now: float) -> list[str]:
    """Why no node could take a job of this shape, as far as one can tell now."""
    with_gpus = [n for n in nodes if n.capacity.get(shape.resource)]
    if not any(n.ready for n in with_gpus):
        last = sightings.last(shape.resource)
        ago = "" if last is None else f" (last seen {now - last:.0f} s ago)"
        kind = "GPU node" if shape.resource == "nvidia.com/gpu" else f"node with {shape.resource}"
        return [f"no {kind} is ready{ago}; the job will wait"]
    if not matching(shape, with_gpus):
        why = f"no node can take the job, it will wait: {misfits(shape, with_gpus)}"
        return [why if len(why) <= MAX else why[: MAX - 3] + "..."]
    return []
