"""kill -9 of all that a run consists of, at chosen moments of its life; and what it may cost to have been killed.

What dies with a container is what was in flight. What dies with a pod's volume, or a node's disk, is what wasn't in the
checkpoint yet. Nothing else may be asked of the engine for a second time.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from gpubatch_runner.contract import PROGRESS_PORT
from localcluster import node
from localcluster.settings import current
from localcluster.shell import run
from support.api import Api, eventually
from support.installation import Installation
from support.s3 import S3
from support.storeproxy import StoreProxy

JSON = dict[str, Any]
PATIENCE = 600.0  # of a wait that an engine has to start in
ANSWERED = re.compile(r'"POST /v1/chat/completions HTTP/1.1" 200')


class Kind(StrEnum):
    """What is killed."""

    RUNNER = "runner"
    ENGINE = "engine"
    POD = "pod"
    NODE = "node"


class Moment(StrEnum):
    """When."""

    LOADING = "while the model loads"
    ANSWERING = "between answers"
    UPLOADING = "during the upload"
    LAST_WORDS = "before the termination message"


WAYS = {
    Kind.RUNNER: ("its process",),
    Kind.ENGINE: ("its process",),
    Kind.POD: ("all its processes", "deleted by force"),
    Kind.NODE: ("power cut", "power cut and deleted"),
}
"""How each is killed. Only a pod whose processes were killed keeps its volume."""

STEPS = ("staged", "manifest", "move")
"""Of the publication: the results are sent, the run's winner is decided, the results get their name."""


@dataclass(frozen=True)
class Blow:
    """One kill: of what, how, when."""

    kind: Kind
    way: str
    moment: Moment
    answers: int
    """How many more answers to wait for, while there are answers."""
    pause: float
    """Seconds to wait then."""
    step: str
    """Which step of the upload is held up for it."""
    carried_out: bool
    """Whether the store has done that step, and only its answer is on the way."""

    def __str__(self) -> str:
        when = f"{self.step}, {'answered' if self.carried_out else 'sent'}" if self.moment is Moment.UPLOADING else ""
        return f"{self.kind} ({self.way}) {self.moment} {when}".strip()


def plan(chance: random.Random, more_runners: int) -> list[Blow]:
    """A round: one blow of each kind and some more to the runner, in an order and at moments that chance gives.

    Two kinds strike while there is work to do, the third during the upload, the fourth before the last words.
    """

    def blow(kind: Kind, moment: Moment) -> Blow:
        return Blow(
            kind,
            chance.choice(WAYS[kind]),
            moment,
            chance.randrange(1, 7),
            chance.uniform(0, 5 if moment is Moment.LOADING else 0.2),
            chance.choice(STEPS),
            chance.random() < 0.5,
        )

    kinds = list(Kind)
    chance.shuffle(kinds)
    first = blow(kinds[0], Moment.LOADING if chance.random() < 0.5 else Moment.ANSWERING)
    middle = [blow(kinds[1], Moment.ANSWERING)]
    middle += [blow(Kind.RUNNER, Moment.ANSWERING) for _ in range(more_runners)]
    chance.shuffle(middle)
    return [first, *middle, blow(kinds[2], Moment.UPLOADING), blow(kinds[3], Moment.LAST_WORDS)]


class Machine:
    """A node of the local cluster, as who can touch it sees it.

    Args:
        name: The node's.
    """

    def __init__(self, name: str) -> None:
        self._node = current().node(name)

    def kill(self, pod: JSON, container: str | None) -> bool:
        """SIGKILL to a container's main process, or to all of a pod and to what holds their namespaces.

        False if there is none now, since the kubelet is about to start it anew.
        """
        names = [f'labels."io.kubernetes.pod.uid"=={pod["metadata"]["uid"]}']
        if container:
            names = [f'{names[0]},labels."io.kubernetes.container.name"=={container}']
        ours = node.ctr(self._node, "containers", "ls", "-q", *names).split()
        tasks = (line.split() for line in node.ctr(self._node, "tasks", "ls").splitlines()[1:])
        processes = [words[1] for words in tasks if words[0] in ours and words[2] == "RUNNING"]
        if processes:
            run(*node.inside(self._node, ["kill", "-KILL", *processes]))
        return bool(processes)

    def answers(self) -> set[str]:
        """The engines' log lines of answers, as far as the kubelet keeps them, each with its pod and time."""
        files = (self._node.state / "log" / "pods").glob("*/engine/*.log")
        return {f"{file.parts[-3]} {line}" for file in files for line in _lines(file) if ANSWERED.search(line)}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:  # removed meanwhile
        return []


@dataclass
class Adversary:
    """Strikes at one job.

    Args:
        api: The jobs' namespace.
        installation: The cluster.
        proxy: Between the job and its store.
        s3: The store.
        job: The job's name, and that of its files.
        node: Where it runs.
        at_once: Requests that it has in flight.
        say: Told of each blow.
    """

    api: Api
    installation: Installation
    proxy: StoreProxy
    s3: S3
    job: str
    node: str
    at_once: int
    say: Callable[[str], None]
    may_repeat: int = 0
    """Requests that the engine may have been asked for a second time, by what was killed so far."""
    asked: set[str] = field(default_factory=set)
    """What the engines have answered, by their logs."""

    async def strike(self, blow: Blow) -> None:
        """Waits for the blow's moment, and kills."""
        held = _Hold(self.proxy, self._is_step(blow), blow.carried_out)
        try:
            match blow.moment:
                case Moment.LOADING:
                    await eventually(f"{self.job} to load its model", self._loads, PATIENCE)
                case Moment.ANSWERING:
                    await self._some_more(blow.answers)
                case _:
                    self.proxy.fault = held
                    await asyncio.wait_for(held.reached.wait(), PATIENCE)
            await asyncio.sleep(blow.pause)
            await self._kill(blow)
        finally:
            self.proxy.fault = None
            held.release(alive=blow.kind is Kind.ENGINE)

    def listen(self) -> None:
        """Takes note of what the job's engine has answered so far."""
        self.asked |= {line for line in Machine(self.node).answers() if f"_{self.job}-" in line}

    # --- moments

    async def _progress(self) -> JSON | None:
        """What the runner says now; None if there is none, or it doesn't answer."""
        timeout = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for pod in await self.api.pods():
                labels, told = pod["metadata"]["labels"], pod["metadata"].get("annotations", {})
                if labels.get("gpubatch.dev/kind") != "run" or told["gpubatch.dev/job"] != self.job:
                    continue
                try:
                    url = f"http://{pod['status']['podIP']}:{PROGRESS_PORT}/progress"
                    async with session.get(url) as response:
                        found: JSON = await response.json()
                        return found
                except (aiohttp.ClientError, TimeoutError, KeyError):
                    continue
        return None

    async def _loads(self) -> bool:
        progress = await self._progress()
        return progress is not None and progress["stage"] == "LoadingModel"

    async def _some_more(self, answers: int) -> None:
        begin: int | None = None

        async def there() -> bool:
            nonlocal begin
            phase = (await self.api.job(self.job))["status"].get("phase")
            progress = await self._progress()
            done = phase == "Succeeded" or (progress is not None and progress["stage"] in ("Uploading", "Done"))
            assert not done, f"{self.job} was done before it was disturbed: more requests!"
            if progress is None or progress["stage"] != "Processing":
                return False
            begin = progress["completed"] if begin is None else begin
            return bool(progress["completed"] >= begin + answers)

        await eventually(f"{self.job} to have {answers} more answers", there, PATIENCE)

    def _is_step(self, blow: Blow) -> Callable[[web.Request], bool]:
        output = f"{self.job}.out.jsonl"

        def matches(request: web.Request) -> bool:
            name, query = request.path.rpartition("/")[2], request.query
            if blow.moment is Moment.LAST_WORDS:
                return request.method == "DELETE" and name == f"{output}.partial" and output in self.s3.names()
            if not name.startswith(output) or request.method not in ("PUT", "POST"):
                return False
            if blow.step == "staged":
                return name.endswith(".staged") and "uploads" not in query and "partNumber" not in query
            return name.endswith(".manifest.json") if blow.step == "manifest" else name == output

        return matches

    # --- kills

    async def _kill(self, blow: Blow) -> None:
        keeps_volume = blow.kind in (Kind.RUNNER, Kind.ENGINE) or blow.way == WAYS[Kind.POD][0]
        self.listen()
        if keeps_volume:
            progress = await self._progress() or {"completed": 0}
        else:  # what is lost with the volume can be told only if it is known: a runner that is down comes back
            progress = await eventually(f"{self.job} to say how far it is", self._progress, PATIENCE)
        done, saved = progress["completed"], self._saved()
        if not self._decided():
            self.may_repeat += self.at_once + (0 if keeps_volume else max(0, done - saved))
        if blow.kind is Kind.NODE:
            await asyncio.to_thread(self.installation.cut_power, self.node, blow.way == WAYS[Kind.NODE][1])
        elif keeps_volume:
            await eventually(f"the {blow.kind} to be killed", lambda: self._processes(blow.kind))
        else:
            pod = await self.api.pod_of(self.job)
            path = f"{self.api.pods_path}/{pod['metadata']['name']}"
            await self.api.client.request("DELETE", path, {"gracePeriodSeconds": 0})
            await asyncio.to_thread(Machine(self.node).kill, pod, None)  # before the kubelet's SIGTERM is heard
        self.say(f"{self.job}: {done} answered, {saved} saved; kill -9: {blow}")
        if blow.kind is Kind.NODE:
            await asyncio.to_thread(self.installation.bring_back)

    async def _processes(self, kind: Kind) -> bool:
        container = None if kind is Kind.POD else kind.value
        return await asyncio.to_thread(Machine(self.node).kill, await self.api.pod_of(self.job), container)

    def _decided(self) -> bool:
        """Whether the results have a manifest: nothing may be computed again then."""
        names = self.s3.names()
        return any(name.startswith(f"{self.job}.out.jsonl.") and name.endswith(".manifest.json") for name in names)

    def _saved(self) -> int:
        """Answers in the checkpoint."""
        found = list((self.s3.root / "batches").glob(f"{self.job}.out.jsonl.*.checkpoint"))
        return max(0, found[0].read_bytes().count(b"\n") - 1) if found else 0


class _Hold:
    """Lets the first request that matches wait at the proxy until it is released."""

    def __init__(self, proxy: StoreProxy, matches: Callable[[web.Request], bool], carried_out: bool) -> None:
        self._proxy, self._matches, self._carried_out = proxy, matches, carried_out
        self.reached, self._over, self._alive = asyncio.Event(), asyncio.Event(), False

    async def __call__(self, request: web.Request) -> web.StreamResponse | None:
        if self.reached.is_set() or not self._matches(request):
            return None
        answer = await self._proxy.answer(request, await request.read()) if self._carried_out else None
        self.reached.set()
        await self._over.wait()
        return answer or (None if self._alive else web.Response(status=503))

    def release(self, alive: bool) -> None:
        """It may go on; if whoever sent it is dead, it never arrives."""
        self._alive = alive
        self._over.set()
