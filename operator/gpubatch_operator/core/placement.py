"""Which node a job may use, and which one it gets: the tightest free one."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from gpubatch_operator.core.model import Node, Occupant, Shape, Taint, Toleration


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    """Kubernetes' rule for one toleration and one taint."""
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if not toleration.key:
        return toleration.operator == "Exists"
    if toleration.key != taint.key:
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == taint.value


def misfit(shape: Shape, node: Node) -> str | None:
    """Why a job of this shape could never run on this node as it is, or None if it could once a slot is free."""
    if node.capacity.get(shape.resource, 0) == 0:
        return f"no {shape.resource}"
    if not node.ready:
        return "not ready"
    if node.unschedulable:
        return "cordoned"
    if not node.slots:
        return "no slots"
    for key, value in shape.selector:
        if node.labels.get(key) != value:
            return f"label {key} is not {value}"
    for taint in node.taints:
        # A GPU node is often tainted with the name of its own resource: runner pods tolerate that by themselves.
        if taint.effect == "PreferNoSchedule" or taint.key == shape.resource:
            continue
        if not any(tolerates(t, taint) for t in shape.tolerations):
            return f"taint {taint.key} is not tolerated"
    if node.capacity[shape.resource] < shape.gpus:
        return f"has {node.capacity[shape.resource]} of {shape.gpus} GPUs"
    return None


@dataclass(slots=True)
class _Room:
    """What is left of a node while a plan is made."""

    node: Node
    slots: list[int]  # free slot indices, the lowest last
    gpus: dict[str, int]


class Rooms:
    """The free slots of all nodes, given away one by one.

    A heap of candidates for each shape, tightest first, so that a place costs O(log nodes). An entry is stale when
    its number isn't what the room has left; each use of a room that still has slots pushes fresh entries.
    """

    def __init__(self, nodes: Iterable[Node], occupied: Iterable[Occupant]) -> None:
        self._rooms: dict[str, _Room] = {}
        used: dict[str, list[Occupant]] = {}
        for o in occupied:
            used.setdefault(o.node, []).append(o)
        for node in nodes:
            there = used.get(node.name, ())
            taken = {o.slot for o in there}
            slots = [i for i in range(node.slots - 1, -1, -1) if i not in taken]
            del slots[: sum(i >= node.slots for i in taken)]  # it had more slots once: who still runs there counts
            if not slots:  # as most are in a busy cluster: not worth a room
                continue
            room = self._rooms[node.name] = _Room(node, slots, dict(node.capacity))
            for o in there:
                room.gpus[o.resource] = room.gpus.get(o.resource, 0) - o.gpus
        self._heaps: dict[Shape, list[tuple[int, str]]] = {}
        self.free = sum(len(r.slots) for r in self._rooms.values())

    def take(self, shape: Shape, avoid: Collection[str] = ()) -> tuple[str, int] | None:
        """Give away the tightest slot that fits: (node, slot), or None if no free slot fits.

        Nodes to avoid come after all others.
        """
        if avoid and (name := self._elsewhere(shape, avoid)):
            return self._give(shape, name)
        heap = self._heaps.get(shape)
        if heap is None:
            heap = [
                (room.gpus.get(shape.resource, 0), name)
                for name, room in self._rooms.items()
                if room.slots and misfit(shape, room.node) is None
            ]
            heapq.heapify(heap)
            self._heaps[shape] = heap
        while heap:
            gpus, name = heap[0]
            room = self._rooms[name]
            left = room.gpus.get(shape.resource, 0)
            if not room.slots or left < shape.gpus or left != gpus:
                heapq.heappop(heap)
                continue
            return self._give(shape, name)
        return None

    def _elsewhere(self, shape: Shape, avoid: Collection[str]) -> str | None:
        """The tightest of the other nodes with a free slot that fits. Few jobs avoid nodes: no heap for them."""
        fitting = (
            (left, name)
            for name, room in self._rooms.items()
            if room.slots
            and name not in avoid
            and (left := room.gpus.get(shape.resource, 0)) >= shape.gpus
            and misfit(shape, room.node) is None
        )
        return min(fitting, default=(0, None))[1]

    def _give(self, shape: Shape, name: str) -> tuple[str, int]:
        room = self._rooms[name]
        slot = room.slots.pop()
        room.gpus[shape.resource] -= shape.gpus
        self.free -= 1
        if room.slots:
            self._refresh(room, shape.resource)
        return name, slot

    def _refresh(self, room: _Room, resource: str) -> None:
        for shape, heap in self._heaps.items():
            if shape.resource == resource and misfit(shape, room.node) is None:
                heapq.heappush(heap, (room.gpus[resource], room.node.name))


def matching(shape: Shape, nodes: Sequence[Node]) -> int:
    """How many nodes could run a job of this shape, busy or not."""
    return sum(misfit(shape, n) is None for n in nodes)


def misfits(shape: Shape, nodes: Sequence[Node]) -> str:
    """Why no node matches, the most frequent cause first: `2 nodes: label a is not b; 1 node: cordoned`."""
    causes = Counter(m for n in nodes if (m := misfit(shape, n)))
    return "; ".join(f"{count} node{'s' if count > 1 else ''}: {cause}" for cause, count in causes.most_common(5))
