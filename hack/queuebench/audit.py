"""What happened, read from the API server's audit log: every write, by whom, when; one clock for all figures."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

JSON = dict[str, Any]


@dataclass(frozen=True)
class Write:
    """A write that the API server took; `at` is when it had answered, seconds since the epoch."""

    at: float
    user: str
    verb: str
    resource: str  # with its subresource: pods/binding
    namespace: str
    name: str  # empty if the API server drew it


class Log:
    """The audit log, read on from where it was left."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._rest = path, 0, b""

    def read(self) -> list[Write]:
        """The writes since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [w for line in lines if line and (w := _write(json.loads(line)))]


def _write(event: JSON) -> Write | None:
    if not 200 <= event.get("responseStatus", {}).get("code", 0) < 300:
        return None
    ref = event.get("objectRef") or {}
    return Write(
        at=datetime.fromisoformat(event["stageTimestamp"]).timestamp(),
        user=event["user"]["username"],
        verb=event["verb"],
        resource="/".join(filter(None, (ref.get("resource", ""), ref.get("subresource", "")))),
        namespace=ref.get("namespace", ""),
        name=ref.get("name", ""),
    )


@dataclass
class Pods:
    """The moments of runner pods' lives, by name."""

    created: dict[str, float] = field(default_factory=dict)
    bound: dict[str, float] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)


def pods(writes: Iterable[Write]) -> Pods:
    """The moments of all pods. KWOK writes a pod's status twice: it runs, it has ended."""
    out = Pods()
    for w in writes:
        if w.resource == "pods" and w.verb == "create":
            out.created[w.name] = w.at
        elif w.resource == "pods/binding":
            out.bound[w.name] = w.at
        elif w.resource == "pods/status" and w.user == "kwok":
            (out.ended if w.name in out.started else out.started).setdefault(w.name, w.at)
    return out


def gaps(pods: Pods, nodes: Mapping[str, str], moments: Mapping[str, float]) -> list[float]:
    """Seconds from a pod's end to its node's next pod, `moments` being when that was created (or bound)."""
    on: dict[str, list[str]] = defaultdict(list)
    for name, node in nodes.items():
        if name in moments:
            on[node].append(name)
    out = []
    for names in on.values():
        names.sort(key=lambda n: moments[n])
        out += [moments[after] - pods.ended[before] for before, after in itertools.pairwise(names)]
    return out


def occupancy(pods: Pods, nodes: int, begin: float, end: float) -> float:
    """The mean share of the nodes on which a pod ran, between two moments."""
    spans = ((pods.started[n], pods.ended.get(n, end)) for n in pods.started)
    return sum(max(0.0, min(b, end) - max(a, begin)) for a, b in spans) / (nodes * (end - begin))


def by_kind(writes: Iterable[Write]) -> dict[str, int]:
    """How many writes of each kind by each author, the most frequent first."""
    return dict(Counter(f"{w.user}: {w.verb} {w.resource}" for w in writes).most_common())


def quantile(values: list[float], share: float) -> float | None:
    """The value that a share of the values don't exceed."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None
