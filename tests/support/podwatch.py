"""Every pod that the jobs of a namespace ever had, and when something was first true of it."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from types import TracebackType
from typing import Any

from demo_lib.tools import Kube

JSON = dict[str, Any]


@dataclass
class Sighting:
    """One pod; times are seconds of the monotonic clock at which the watch told of it."""

    raw: JSON
    created: float
    bound: float | None = None
    ended: float | None = None

    @property
    def job(self) -> str:
        """The name of its job."""
        return str(self.raw["metadata"]["annotations"]["gpubatch.dev/job"])

    @property
    def kind(self) -> str:
        """run or inspect."""
        return str(self.raw["metadata"]["labels"]["gpubatch.dev/kind"])

    @property
    def node(self) -> str:
        """Where kube-scheduler bound it; '' before."""
        return str(self.raw["spec"].get("nodeName", ""))

    @property
    def interval(self) -> tuple[datetime, datetime]:
        """When its main container started and ended, as the kubelet says, to the second."""
        state = self.raw["status"]["containerStatuses"][0]["state"]["terminated"]
        return datetime.fromisoformat(state["startedAt"]), datetime.fromisoformat(state["finishedAt"])


@dataclass
class PodWatch:
    """A watch of the jobs' pods that lasts as long as the context: none is missed, however short its life."""

    kube: Kube
    namespace: str
    pods: dict[str, Sighting] = field(default_factory=dict)

    def __enter__(self) -> PodWatch:
        words = ["-n", self.namespace, "get", "pods", "-l", "app.kubernetes.io/managed-by=gpubatch"]
        watch = ["--watch", "--output-watch-events", "-o", "json"]
        command = [str(self.kube.kubectl_path), "--kubeconfig", str(self.kube.kubeconfig), *words, *watch]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        end = time.monotonic() + 10
        while error is None and any(p.ended is None for p in self.runs_seen()) and time.monotonic() < end:
            time.sleep(0.05)  # status may be ahead of what kubectl has printed
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:  # one event
            now, pod = time.monotonic(), json.loads(line)["object"]
            seen = self.pods.setdefault(pod["metadata"]["uid"], Sighting(pod, now))
            seen.raw = pod
            if seen.bound is None and pod["spec"].get("nodeName"):
                seen.bound = now
            if seen.ended is None and pod["status"].get("phase") in ("Succeeded", "Failed"):
                seen.ended = now

    def runs_seen(self) -> list[Sighting]:
        """The runner pods that ever existed."""
        return [p for p in list(self.pods.values()) if p.kind == "run"]

    def runs(self) -> list[Sighting]:
        """The runner pods, which have all ended, in the order in which their main containers started."""
        return sorted(self.runs_seen(), key=lambda p: (p.interval[0], p.created))

    def overlaps(self) -> list[str]:
        """Pairs of pods that ran on the same node at the same time; a slot allows none."""
        by_start = self.runs()
        return [
            f"{a.job} and {b.job} on {a.node}"
            for i, a in enumerate(by_start)
            for b in by_start[i + 1 :]
            if a.node == b.node and b.interval[0] < a.interval[1]
        ]

    def times(self) -> str:
        """How quick admission was: from a pod's creation to its binding, and from a pod's end to the next one's."""
        runs = sorted((p for p in self.runs_seen() if p.bound), key=lambda p: p.bound or 0)
        bound = [p.bound - p.created for p in runs if p.bound]
        handoffs = [
            later.bound - first.ended
            for node in sorted({p.node for p in runs})
            for first, later in pairwise(p for p in runs if p.node == node)
            if first.ended and later.bound
        ]
        return f"pod created -> bound: {_ms(bound)}; end of a pod -> next pod bound: {_ms(handoffs)}"


def _ms(seconds: list[float]) -> str:
    return ", ".join(f"{1000 * s:.0f}" for s in seconds) + " ms" if seconds else "none"
