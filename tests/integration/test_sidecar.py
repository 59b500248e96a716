"""The sidecar of template pods as a process of its own: real files, real sockets, the operator's own poller."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpubatch_operator.core.progress import ProgressReport
from gpubatch_operator.kube import progress, templates
from gpubatch_operator.kube.store import Store
from gpubatch_runner.contract import Progress
from support.api import eventually
from unit.operator.build import pod

ROOT = Path(__file__).resolve().parents[2]


class Sidecar:
    """The process, as its container's command starts it."""

    def __init__(self, folder: Path, push_port: int = 0) -> None:
        self.file = folder / "progress" / "progress"
        self.file.parent.mkdir()
        self.last_words = folder / "termination-log"
        with socket.socket() as a, socket.socket() as b:
            a.bind(("127.0.0.1", 0))
            b.bind(("127.0.0.1", 0))
            self.port, self.push_port = a.getsockname()[1], push_port or b.getsockname()[1]
        env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "runner"),
            "GPUBATCH_PROGRESS_FILE": str(self.file),
            "GPUBATCH_PROGRESS_PORT": str(self.port),
            "GPUBATCH_PUSH_PORT": str(self.push_port),
            "GPUBATCH_TERMINATION_LOG": str(self.last_words),
        }
        self.process = subprocess.Popen(["sh", "-c", templates.COMMAND], env=env)

    def picture(self) -> Progress:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/progress", timeout=5) as response:
            return Progress.model_validate_json(response.read())

    def push(self, body: bytes) -> int:
        url = f"http://127.0.0.1:{self.push_port}/progress"
        request = urllib.request.Request(url, data=body, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    async def up(self) -> None:
        async def answers() -> bool:
            try:
                return bool(self.picture())
            except OSError:
                return False

        await eventually("the sidecar to answer", answers)

    async def shows(self, check: Callable[[Progress], bool]) -> Progress:
        """Wait until its picture is as it should be."""
        seen: list[Progress] = []

        async def there() -> bool:
            seen.append(self.picture())
            return check(seen[-1])

        await eventually("the picture to change", there, patience=20)
        return seen[-1]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    made = Sidecar(tmp_path)
    yield made
    if made.process.poll() is None:
        made.stop()


async def test_a_program_tells_its_progress_by_a_file(sidecar: Sidecar):
    await sidecar.up()
    assert sidecar.picture().percent is None
    sidecar.file.write_text("3/10")
    seen = await sidecar.shows(lambda p: p.completed == 3)
    assert (seen.total, seen.stage) == (10, "Processing")
    sidecar.file.write_text(json.dumps({"completed": 4, "stage": "Training", "metrics": {"loss": 0.5}}))
    seen = await sidecar.shows(lambda p: p.completed == 4)
    assert (seen.stage, seen.metrics) == ("Training", {"loss": 0.5})
    new = sidecar.file.with_suffix(".new")
    new.write_text('{"completed": 5, "total": 10, "message": "replaced"}')
    new.replace(sidecar.file)
    await sidecar.shows(lambda p: (p.completed, p.message) == (5, "replaced"))


async def test_a_program_tells_its_progress_by_http_in_either_form(sidecar: Sidecar):
    await sidecar.up()
    assert sidecar.push(b'{"percent": 10}') == 200
    assert sidecar.picture().percent == 10
    status = {"progressPercentage": 42, "metrics": [{"name": "loss", "value": "0.25"}]}
    assert sidecar.push(json.dumps({"trainerStatus": status}).encode()) == 200
    assert (sidecar.picture().percent, sidecar.picture().metrics) == (42, {"loss": 0.25})


async def test_what_is_not_understood_is_said_and_costs_nothing(sidecar: Sidecar):
    await sidecar.up()
    sidecar.file.write_text("3/10")
    await sidecar.shows(lambda p: p.completed == 3)
    sidecar.file.write_text("nearly there")
    seen = await sidecar.shows(lambda p: "found nearly there" in p.message)
    assert "GPUBATCH_PROGRESS_FILE: expected one JSON object or done/total" in seen.message
    assert seen.completed == 3
    assert sidecar.push(b'{"percent": 200}') == 422
    assert "percent is 200" in sidecar.picture().message
    assert sidecar.push(b"x" * 100_000) == 413
    sidecar.file.write_text("4/10")
    seen = await sidecar.shows(lambda p: p.completed == 4)
    assert seen.message == ""


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
async def test_what_is_no_file_cannot_hang_or_mislead_it(sidecar: Sidecar, tmp_path: Path, kind: str):
    await sidecar.up()
    (tmp_path / "secret").write_text('{"message": "secret"}')
    match kind:
        case "link":
            sidecar.file.symlink_to(tmp_path / "secret")
        case "pipe":
            os.mkfifo(sidecar.file)
        case "folder":
            sidecar.file.mkdir()
    seen = await sidecar.shows(lambda p: "GPUBATCH_PROGRESS_FILE" in p.message)
    assert "secret" not in seen.message
    assert sidecar.push(b'{"percent": 1}') == 200


async def test_told_to_stop_it_looks_a_last_time_and_leaves_its_last_picture(sidecar: Sidecar):
    await sidecar.up()
    sidecar.file.write_text('{"percent": 99.5, "metrics": {"loss": 0.1}}')
    assert sidecar.stop() == 0
    last = Progress.model_validate_json(sidecar.last_words.read_text())
    assert (last.percent, last.metrics) == (99.5, {"loss": 0.1})


def test_told_to_stop_before_it_is_up_it_ends_all_the_same(tmp_path: Path):
    for moment in range(10):  # in which there is no shell yet, no child, a child that is a copy of the shell...
        (tmp_path / str(moment)).mkdir()
        sidecar = Sidecar(tmp_path / str(moment))
        time.sleep(moment / 2500)
        assert sidecar.stop() in (0, -signal.SIGTERM)  # the latter: before the shell itself was up


async def test_its_last_words_fit_what_the_kubelet_keeps(sidecar: Sidecar):
    await sidecar.up()
    metrics = {f"{'é' * 60}{i:02}": -1.2345678901234567e-300 for i in range(16)}
    sidecar.file.write_text(json.dumps({"percent": 1, "message": "é" * 2000, "metrics": metrics}))
    await sidecar.shows(lambda p: p.percent == 1)
    assert sidecar.stop() == 0
    assert len(sidecar.last_words.read_bytes()) <= 4096
    assert Progress.model_validate_json(sidecar.last_words.read_text()).percent == 1


async def test_a_port_that_the_template_uses_itself_costs_only_that_way(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sidecar = Sidecar(tmp_path, push_port=taken.getsockname()[1])
        try:
            await sidecar.up()
            assert "is taken" in sidecar.picture().message
            sidecar.file.write_text("1/2")
            await sidecar.shows(lambda p: p.completed == 1)
        finally:
            assert sidecar.stop() == 0


async def test_the_operator_reads_it_as_it_reads_the_inference_runner(sidecar: Sidecar):
    await sidecar.up()
    sidecar.file.write_text('{"completed": 30, "total": 40, "stage": "Training"}')
    await sidecar.shows(lambda p: p.completed == 30)
    store = Store(1)
    running = pod(address=f"127.0.0.1:{sidecar.port}", started=True, phase="Running", node="node-a")
    store.pods[running.uid] = running
    polling = asyncio.create_task(progress.poll(store, 0.1, 60.0))

    async def reported() -> ProgressReport | None:
        return store.reports.get(running.uid)

    report = await eventually("the operator to know", reported)
    polling.cancel()
    assert (report.stage, report.percent) == ("Training", 75)
