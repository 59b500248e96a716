"""Prometheus metrics of the operator. Labels are bounded: never a job's name."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

LEADER = Gauge("gpubatch_leader", "1 on the replica that plans, 0 on the others.")
REVIEWS = Counter("gpubatch_admission_reviews_total", "Jobs reviewed by the admission webhook.", ["result"])
API_WRITES = Counter("gpubatch_api_writes_total", "Writes to the API server.", ["method", "resource"])
PENDING = Gauge("gpubatch_pending_jobs", "Jobs that wait for a slot.")
ACTIVE = Gauge("gpubatch_admitted_active_jobs", "Jobs that hold a slot.")
ADMISSIONS = Counter("gpubatch_admitted_jobs_total", "Admissions, one for each attempt.")
FINISHED = Counter("gpubatch_finished_jobs_total", "Jobs that ended.", ["phase"])
PLAN_SECONDS = Histogram(
    "gpubatch_plan_duration_seconds", "Time of one plan.", buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
)
ESTIMATE_ERROR = Histogram(
    "gpubatch_estimate_error_ratio",
    "Error of the median estimated at submission, as a share of the time that it really took to that event.",
    ["event"],
    buckets=(0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5),
)
ESTIMATE_BOUNDS = Counter(
    "gpubatch_estimate_bounds_total",
    "Upper bounds (p90) estimated at submission, by whether they held.",
    ["event", "held"],
)
ESTIMATE_SECONDS = Histogram(
    "gpubatch_estimate_duration_seconds", "CPU time of estimating all jobs once.", buckets=(0.01, 0.03, 0.1, 0.3, 1, 3)
)
DELIVERIES = Counter("gpubatch_webhook_attempts_total", "Attempts to deliver a webhook.", ["result"])
EVENTS_DROPPED = Counter("gpubatch_events_dropped_total", "Events that were too many at a time to be written.")
