"""The live jobs that there are, as the watch tells of them, by the model that they serve.

Of those whose keys are in a Secret of their own nothing is kept: the gateway can't know what to show to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpubatch_operator.core import conditions
from gpubatch_operator.core.clock import seconds
from gpubatch_operator.core.phases import FINISHED, Phase

JSON = dict[str, Any]
Served = tuple[str, str]
"""Namespace and model."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a job has failed; `at` in seconds since the epoch."""

    at: float
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class LiveJob:
    """One live job.

    Attributes:
        version: Of the job; a later one is larger.
        created: Seconds since the epoch.
        url: Its base URL; empty: it can't be reached now.
        wanted: It serves, or it will: it hasn't ended, and nobody has said that it is to stop.
        doing: What it does, for people.
    """

    uid: str
    namespace: str
    name: str
    model: str
    version: int
    created: float
    url: str
    wanted: bool
    suspended: bool
    doing: str
    failure: Failure | None

    @property
    def served(self) -> Served:
        """What it is looked for by."""
        return self.namespace, self.model


def live_job(job: Mapping[str, Any]) -> LiveJob | None:
    """The live job that a job is; None: it is none, or none whose key the gateway knows."""
    meta, spec, state = job["metadata"], job["spec"], job.get("status") or {}
    work = spec.get("inference") or {}
    live = (work.get("input") or {}).get("live")
    if live is None or "keyFrom" in live:
        return None
    ended = state.get("phase") in FINISHED
    stops = bool(spec.get("suspend") or spec.get("cancel") or "deletionTimestamp" in meta)
    return LiveJob(
        uid=meta["uid"],
        namespace=meta["namespace"],
        name=meta["name"],
        model=work.get("servedModelName") or work["model"],
        version=int(meta["resourceVersion"]),
        created=seconds(meta["creationTimestamp"]),
        url=(state.get("live") or {}).get("url", ""),
        wanted=not ended and not stops,
        suspended=bool(spec.get("suspend")) and not ended,
        doing=_doing(state),
        failure=_failure(state),
    )


def _doing(state: Mapping[str, Any]) -> str:
    phase = state.get("phase") or "new"
    text = str(phase)
    if phase == Phase.QUEUED and (position := state.get("queuePosition")):
        text += f" at position {position}"
        if start := state.get("estimatedStartTime"):
            text += f", estimated start {start}"
    elif stage := (state.get("progress") or {}).get("stage"):
        text += f", {stage}"
    return f"{text} ({waits['message']})" if (waits := state.get("pending")) else text


def _failure(state: Mapping[str, Any]) -> Failure | None:
    failed = conditions.find(state, "Failed")
    if state.get("phase") != Phase.FAILED or failed is None:
        return None
    return Failure(seconds(failed["lastTransitionTime"]), failed["reason"], failed["message"])


class Lives:
    """Holds them. What comes late, of an older version, changes nothing."""

    def __init__(self) -> None:
        self._by_uid: dict[str, LiveJob] = {}
        self._served: dict[Served, dict[str, LiveJob]] = {}
        self._changes: dict[Served, asyncio.Event] = {}

    def put(self, job: JSON) -> LiveJob | None:
        """Take a job as it is; what is known of it then. None: it isn't one."""
        uid = job["metadata"]["uid"]
        held = self._by_uid.get(uid)
        if held and int(job["metadata"]["resourceVersion"]) <= held.version:
            return held
        new = live_job(job)
        if held and (new is None or held.served != new.served):
            self.lose(uid)
        if new is not None:
            self._by_uid[uid] = self._served.setdefault(new.served, {})[uid] = new
            self._tell(new.served)
        return new

    def lose(self, uid: str) -> None:
        """It is gone."""
        if (held := self._by_uid.pop(uid, None)) is None:
            return
        there = self._served[held.served]
        del there[uid]
        if not there:
            del self._served[held.served]
        self._tell(held.served)

    def held(self, namespace: str = "") -> set[str]:
        """The uids, of one namespace or of all."""
        return {uid for uid, each in self._by_uid.items() if namespace in ("", each.namespace)}

    def of(self, namespace: str, model: str) -> Iterable[LiveJob]:
        """Those of a model, ended ones too."""
        return self._served.get((namespace, model), {}).values()

    def wanted(self, namespace: str) -> list[LiveJob]:
        """Those of a namespace that serve or will."""
        return [each for each in self._by_uid.values() if each.namespace == namespace and each.wanted]

    def changed(self, namespace: str, model: str) -> asyncio.Event:
        """Is set when the next thing is heard of a job of this model."""
        return self._changes.setdefault((namespace, model), asyncio.Event())

    def _tell(self, served: Served) -> None:
        if event := self._changes.pop(served, None):
            event.set()
