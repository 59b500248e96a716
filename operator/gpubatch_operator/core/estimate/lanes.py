"""The nodes as the replay sees them: lanes, each of which runs one job at a time."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpubatch_operator.core.model import Job, Node, Shape
from gpubatch_operator.core.placement import misfit


@dataclass(frozen=True, slots=True)
class Lanes:
    """Lanes in classes, and who uses them.

    Attributes:
        classes: For each lane its class; the tightest lanes first.
        fits: For each class the kinds of jobs that fit it.
        busy: Jobs that run, by lane.
        kinds: For each shape of jobs its kind; a shape that isn't in it is of kind 0.
    """

    classes: Sequence[int]
    fits: Sequence[tuple[int, ...]]
    busy: Mapping[int, str]
    kinds: Mapping[Hashable, int]

    @staticmethod
    def alike(count: int, running: Sequence[str]) -> Lanes:
        """Nodes that each run one job of any kind at a time."""
        return Lanes([0] * count, [(0,)], dict(enumerate(running[:count])), {None: 0})

    @property
    def uniform(self) -> bool:
        """Whether each lane takes each job."""
        return len(self.fits) == 1 and len(self.fits[0]) == max(1, len(self.kinds))


def lanes_of(nodes: Iterable[Node], shapes_of: Iterable[Shape], active: Sequence[Job]) -> Lanes:
    """The slots of all nodes, for jobs of these shapes.

    A node with fewer GPUs than its slots could use has as many lanes as jobs of the smallest size find GPUs; that
    bigger jobs take the place of several isn't modelled.
    """
    shapes = {s: kind for kind, s in enumerate(dict.fromkeys([*shapes_of, *(j.shape for j in active)]))}
    of_class: dict[tuple[int, ...], int] = {}
    held: dict[str, list[str]] = {}
    for job in active:
        if job.attempt:
            held.setdefault(job.attempt.node, []).append(job.uid)
    asked = sorted({key for s in shapes for key, _ in s.selector})
    known: dict[tuple[object, ...], tuple[int, ...]] = {}
    lanes: list[tuple[int, int, str]] = []
    for node in nodes:
        like = (
            node.ready,
            node.unschedulable,
            node.slots > 0,
            tuple(node.labels.get(key) for key in asked),
            node.taints,
            tuple(sorted(node.capacity.items())),
        )
        fits = known.get(like)
        if fits is None:
            fits = known[like] = tuple(kind for shape, kind in shapes.items() if misfit(shape, node) is None)
        if not fits:
            continue
        most = max(node.capacity.get(s.resource, 0) // s.gpus for s, k in shapes.items() if k in fits)
        count = min(node.slots, most)
        tight = min(node.capacity.values(), default=0)
        lanes += [(tight, of_class.setdefault(fits, len(of_class)), node.name)] * count
    lanes.sort(key=lambda x: x[0])
    busy: dict[int, str] = {}
    for i, (_, _, name) in enumerate(lanes):
        if held.get(name):
            busy[i] = held[name].pop(0)
    return Lanes([c for _, c, _ in lanes], list(of_class), busy, dict[Hashable, int](shapes.items()))
