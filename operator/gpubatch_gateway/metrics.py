"""Prometheus metrics of the gateway, in a registry of its own. Labels are bounded: never a namespace, never a file."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

REQUESTS = Counter(
    "gpubatch_gateway_requests_total",
    "Requests that were answered; 499: the client of a live request went away.",
    ["route", "status"],
    registry=REGISTRY,
)
SECONDS = Histogram(
    "gpubatch_gateway_request_seconds",
    "Seconds until a request was answered, content of files included.",
    ["route"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
    registry=REGISTRY,
)
RECEIVED = Counter("gpubatch_gateway_received_bytes_total", "Bytes of files that were uploaded.", registry=REGISTRY)
SENT = Counter("gpubatch_gateway_sent_bytes_total", "Bytes of files that were downloaded.", registry=REGISTRY)
UPLOADS = Gauge("gpubatch_gateway_uploads", "Uploads under way.", registry=REGISTRY)
BATCHES = Gauge("gpubatch_gateway_batches", "Batches that are known.", registry=REGISTRY)
CREATED = Counter(
    "gpubatch_gateway_batches_created_total",
    "Requests for a batch: new, known (there was such a batch), refused.",
    ["result"],
    registry=REGISTRY,
)
LIVE_IN_FLIGHT = Gauge("gpubatch_gateway_live_in_flight", "Live requests that are at a job.", registry=REGISTRY)
LIVE_WAITING = Gauge(
    "gpubatch_gateway_live_waiting", "Live requests that wait for a job that isn't up yet.", registry=REGISTRY
)
LIVE_REROUTED = Counter(
    "gpubatch_gateway_live_rerouted_total",
    "Times that a job didn't take a live request, so that it went to another one or waited.",
    registry=REGISTRY,
)
LIVE_STARTED = Counter(
    "gpubatch_gateway_live_started_total",
    "Live jobs that were wanted: new, known (another replica had made it), refused.",
    ["result"],
    registry=REGISTRY,
)
TRANSCRIPTIONS = Counter(
    "gpubatch_gateway_transcriptions_total",
    "Transcriptions: waited (for by their clients), accepted, taken_over (from another replica), completed, failed.",
    ["event"],
    registry=REGISTRY,
)
TRANSCRIBING = Gauge(
    "gpubatch_gateway_transcribing", "Transcriptions in the background that this replica works on.", registry=REGISTRY
)
UNFINISHED = Gauge(
    "gpubatch_gateway_transcriptions_unfinished",
    "Transcriptions in the background that aren't finished, of all replicas.",
    registry=REGISTRY,
)
