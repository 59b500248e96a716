"""Prometheus metrics of the operator. Labels are bounded: never a job's name.

Where Kueue has a metric of the same meaning, ours has its name, with `jobs` for its `workloads`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily

from gpubatch_operator.version import VERSION

HOURS = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800)  # from 1 s to a week


class Scraped(Gauge):
    """A gauge that is read at each scrape; without a reader it has no samples."""

    read: Callable[[], Mapping[tuple[str, ...], float]] | None = None

    def collect(self) -> Iterable[Metric]:
        """The family with a sample for each tuple of labels' values."""
        family = GaugeMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for labels, value in (self.read() if self.read else {}).items():
            family.add_metric(labels, value)
        return [family]


BUILD = Gauge("gpubatch_build_info", "1, with the operator's version.", ["version"])
BUILD.labels(VERSION).set(1)
LEADER = Gauge("gpubatch_leader", "1 on the replica that plans, 0 on the others.")
REVIEWS = Counter("gpubatch_admission_reviews_total", "Jobs reviewed by the admission webhook.", ["result"])
API_WRITES = Counter("gpubatch_api_writes_total", "Writes to the API server.", ["method", "resource"])
PENDING = Scraped("gpubatch_pending_jobs", "Jobs that wait for a slot.", ["namespace", "priority"])
HELD = Scraped("gpubatch_held_jobs", "Jobs that the queue has no room for.")
ACTIVE = Scraped("gpubatch_admitted_active_jobs", "Jobs that hold a slot.")
SLOTS = Scraped("gpubatch_slots", "Slots of the nodes that take jobs.")
REQUEST_RATE = Scraped("gpubatch_requests_per_second", "Requests a second of all inference jobs that run.")
ADMISSIONS = Counter("gpubatch_admitted_jobs_total", "Admissions, one for each attempt.")
ADMISSION_ATTEMPTS = Counter(
    "gpubatch_admission_attempts_total", "Plans while jobs waited: success if one got a slot.", ["result"]
)
ADMISSION_SECONDS = Histogram(
    "gpubatch_admission_duration_seconds",
    "From the decision that a job gets a slot until its pod exists.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
WAIT_SECONDS = Histogram(
    "gpubatch_admission_wait_time_seconds",
    "From the moment at which a job came into the queue until it got its slot.",
    ["priority"],
    buckets=HOURS,
)
RUN_SECONDS = Histogram(
    "gpubatch_run_time_seconds", "For how long jobs that ended had held slots.", ["phase"], buckets=HOURS
)
HANDOFF_SECONDS = Histogram(
    "gpubatch_handoff_gap_seconds",
    "From the end of a job, while others waited, until the next one's pod exists in its slot.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300),
)
IDLE_GPU_SECONDS = Counter(
    "gpubatch_idle_gpu_seconds_total", "GPU seconds that nobody used of nodes that a waiting job could run on."
)
EVICTED = Counter("gpubatch_evicted_jobs_total", "Jobs that went back to waiting from their slot.", ["reason"])
REQUESTS = Counter("gpubatch_requests_total", "Requests of jobs that ended.", ["result"])
TOKENS = Counter("gpubatch_tokens_total", "Tokens of jobs that ended.", ["kind"])
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
DELIVERIES = Counter(
    "gpubatch_webhook_attempts_total", "Attempts to deliver a webhook, and deliveries that were given up.", ["result"]
)
DELIVERY_SECONDS = Histogram(
    "gpubatch_webhook_attempt_duration_seconds",
    "Time of one attempt to deliver a webhook.",
    ["result"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
DELIVERY_DELAY = Histogram(
    "gpubatch_webhook_delivery_delay_seconds",
    "Time from an event to its delivery.",
    buckets=(1, 2, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400),
)
UNDELIVERED = Gauge("gpubatch_webhook_pending_jobs", "Jobs with webhooks that aren't delivered yet.")
EVENTS_DROPPED = Counter("gpubatch_events_dropped_total", "Events that were too many at a time to be written.")
