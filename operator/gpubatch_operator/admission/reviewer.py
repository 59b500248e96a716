"""One AdmissionReview and its answer (admission.k8s.io/v1).

A refusal never says when to try again: clients would obey a Retry-After in silence, and look as if they hung.
"""

from __future__ import annotations

import time
from typing import Any

from pydantic import ValidationError

from gpubatch_operator.admission.advice import Sightings, warnings
from gpubatch_operator.admission.ledger import Ledger
from gpubatch_operator.api.spec import JobSpec
from gpubatch_operator.core.limits import QueueLimits
from gpubatch_operator.core.room import Ask
from gpubatch_operator.kube.convert import shape_of
from gpubatch_operator.kube.store import Store
from gpubatch_operator.metrics import REVIEWS

JSON = dict[str, Any]


class Reviewer:
    """Answers reviews of jobs.

    Args:
        store: What is known of nodes.
        limits: Caps.
        ledger: Gives places in the queue; None: any number may wait.
        sightings: When nodes were last seen.
    """

    def __init__(self, store: Store, limits: QueueLimits, ledger: Ledger | None, sightings: Sightings) -> None:
        self._store, self._limits, self._ledger, self._sightings = store, limits, ledger, sightings

    async def review(self, request: JSON) -> JSON:
        """The response to a request.

        Raises:
            ApiError: Whether there is room can't be told.
        """
        new, old = request["object"], request.get("oldObject") or {}
        priority = new["spec"].get("priority", 0)
        highest = self._limits.caps(request["namespace"]).max_priority
        raised = request["operation"] == "CREATE" or priority > old.get("spec", {}).get("priority", 0)
        if highest is not None and raised and priority > highest:
            return _refuse(request, 403, "Forbidden", _too_high(priority, highest, request["namespace"]), "priority")
        if request["operation"] != "CREATE":
            return _allow(request, [])
        if self._ledger and not request.get("dryRun") and not new["spec"].get("suspend"):
            meta = new["metadata"]
            full = await self._ledger.reserve(Ask(meta["uid"], request["namespace"], meta["name"]))
            if full:
                return _refuse(request, 429, "TooManyRequests", full, "full")
        return _allow(request, self._advice(new["spec"]))

    def _advice(self, spec: JSON) -> list[str]:
        if not self._store.scope.nodes:
            return []
        try:
            shape = shape_of(JobSpec.model_validate(spec))
        except ValidationError:  # the CRD has another version than we: no reason to refuse it
            return []
        nodes, now = self._store.nodes.values(), time.time()
        self._sightings.note(nodes, now)  # a node may be ready for less than the time between two looks
        return warnings(shape, nodes, self._sightings, now)


def _too_high(priority: int, highest: int, namespace: str) -> str:
    return (
        f"spec.priority is {priority}, and jobs in namespace {namespace} may have at most {highest}: lower it, or ask "
        "an administrator to raise maxPriority in the operator's namespaceCaps"
    )


def _allow(request: JSON, said: list[str]) -> JSON:
    REVIEWS.labels("allowed").inc()
    return {"uid": request["uid"], "allowed": True, **({"warnings": said} if said else {})}


def _refuse(request: JSON, code: int, reason: str, message: str, result: str) -> JSON:
    REVIEWS.labels(result).inc()
    status = {"code": code, "reason": reason, "message": message}
    return {"uid": request["uid"], "allowed": False, "status": status}
