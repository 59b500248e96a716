"""The run's picture of itself, in memory: what `GET /progress` and `/metrics` show."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, Metric

from gpubatch_runner.contract import Progress, Stage, Timings, Usage

RATE_WINDOW_SECONDS = 60.0


class RunProgress:
    """Stage, counts and times of one run.

    Args:
        seconds: Seconds spent in each stage by earlier containers of this attempt; kept up to date in place.
    """

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.stage = Stage.LOADING_MODEL
        self.message = ""
        self.note = ""
        """What is to be said beside the message of any stage."""
        self.total: int | None = None
        self.completed = 0
        self.failed = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.engine_proven = False
        self.live: Callable[[], str] | None = None
        """Of a live run: says what it is doing at this moment."""
        self.seconds: dict[str, float] = seconds if seconds is not None else {}
        self.metrics = Metrics()
        self.metrics.registry.register(_Counts(self))
        self._since = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque()

    def enter(self, stage: Stage, message: str = "") -> None:
        """Changes the stage."""
        self.tick()
        if stage is not self.stage:
            self._samples.clear()
        self.stage, self.message = stage, message

    def engine_changed(self, up: bool, answered_before: bool) -> None:
        """The engine came up or went down; one that had answered a request has died."""
        self.metrics.engine_up.set(up)
        self.engine_proven = False
        if not up and answered_before:
            self.metrics.engine_deaths.inc()

    def adopt(self, seconds: dict[str, float]) -> None:
        """Goes on counting from what earlier containers spent."""
        for stage, spent in self.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
        self.seconds = seconds

    def tick(self) -> None:
        """Brings times and rate up to now; called every second or so."""
        now = time.monotonic()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self._since
        self._since = now
        if self.stage is Stage.PROCESSING:
            self._samples.append((now, self.completed + self.failed))
            while now - self._samples[0][0] > RATE_WINDOW_SECONDS:
                self._samples.popleft()

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(input_tokens=self.input_tokens, output_tokens=self.output_tokens)

    @property
    def timings(self) -> Timings:
        """Seconds so far."""
        self.tick()
        return Timings(
            loading_model=round(self.seconds.get(Stage.LOADING_MODEL, 0.0), 3),
            processing=round(self.seconds.get(Stage.PROCESSING, 0.0), 3),
            uploading=round(self.seconds.get(Stage.UPLOADING, 0.0), 3),
        )

    def picture(self) -> Progress:
        """The contract's picture of this moment."""
        self.tick()
        now = self.live() if self.live is not None and self.stage is Stage.PROCESSING else ""
        return Progress(
            stage=self.stage,
            message=" ".join(filter(None, (self.message, now, self.note))),
            total=self.total,
            completed=self.completed,
            failed=self.failed,
            rate=self._rate(),
            usage=self.usage,
            processing_seconds=round(self.seconds.get(Stage.PROCESSING, 0.0), 3),
            engine_proven=self.engine_proven,
            live=self.live is not None,
            time=datetime.now(UTC),
        )

    def _rate(self) -> float | None:
        if len(self._samples) < 2 or self._samples[-1][0] - self._samples[0][0] < 1.0:
            return None
        (begin, before), (end, after) = self._samples[0], self._samples[-1]
        return round((after - before) / (end - begin), 3)


class _Counts:
    """The counts of a run as metrics, made when they are asked for: they change with each request."""

    def __init__(self, progress: RunProgress) -> None:
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        progress = self._progress
        requests = CounterMetricFamily(
            "gpubatch_runner_requests", "Requests with a result, over all restarts of the run.", labels=["result"]
        )
        requests.add_metric(["completed"], progress.completed)
        requests.add_metric(["failed"], progress.failed)
        tokens = CounterMetricFamily("gpubatch_runner_tokens", "Tokens that the engine reported.", labels=["kind"])
        tokens.add_metric(["input"], progress.input_tokens)
        tokens.add_metric(["output"], progress.output_tokens)
        yield from (requests, tokens)


class Metrics:
    """The runner's Prometheus metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.retries = Counter(
            "gpubatch_runner_retries", "Requests sent again (429, 5xx, broken connection).", registry=self.registry
        )
        self.refused = Counter(
            "gpubatch_runner_refused_requests", "Live requests that came to a full queue.", registry=self.registry
        )
        self.engine_deaths = Counter(
            "gpubatch_runner_engine_deaths", "Times that the engine died.", registry=self.registry
        )
        self.engine_up = Gauge("gpubatch_runner_engine_up", "1 while the engine answers.", registry=self.registry)
        self.in_flight = Gauge(
            "gpubatch_runner_in_flight_requests", "Requests being worked on by the engine.", registry=self.registry
        )
        self.total = Gauge("gpubatch_runner_input_requests", "Requests in the input.", registry=self.registry)
