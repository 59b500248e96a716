"""What `kubectl apply` prints beside "created": that the job will wait, and why, before anybody asks."""

from __future__ import annotations

from collections.abc import Iterable

from gpubatch_operator.core.model import Node, Shape
from gpubatch_operator.core.placement import matching, misfit, misfits
from gpubatch_operator.kube.convert import SLOTS

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
        return [_short(f"no node can take the job, it will wait: {misfits(shape, with_gpus)}")]
    return _wasteful(shape, with_gpus)


def _wasteful(shape: Shape, nodes: Iterable[Node]) -> list[str]:
    """A job takes a slot, whatever it leaves of the node's GPUs: nobody else gets them."""
    best: tuple[int, Node] | None = None  # GPUs that stay idle on the node that suits it best
    for node in nodes:
        if misfit(shape, node) is None:
            idle = node.capacity[shape.resource] - node.slots * shape.gpus
            best = min(best or (idle, node), (idle, node), key=lambda found: found[0])
    if best is None or best[0] <= 0:
        return []
    idle, node = best
    count, slots = node.capacity[shape.resource], f"{node.slots} slot{'s' if node.slots > 1 else ''}"
    said = (
        f"the job asks for {shape.gpus} of the {count} GPUs of a node such as {node.name[:63]}, which has {slots}: the "
        f"others stay idle; ask for more, or let an administrator label it {SLOTS}={count // shape.gpus}"
    )
    return [_short(said)]


def _short(text: str) -> str:
    return text if len(text) <= MAX else text[: MAX - 3] + "..."
