"""A presigned URL that expires before the results are there: from the job to the store, and back through the status.

The operator, the API server, the runner and the S3 server are real; the test plays the kubelet and starts the runner's
process with what the pod says.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from aiohttp import web
from obstore.store import S3Store

from gpubatch_operator.kube import convert
from gpubatch_runner.contract import SECRETS_DIR, SPEC_ENV
from integration.conftest import AddNode
from support.api import Api, eventually, inference_job
from support.process import OperatorProcess
from support.s3 import KEYS, S3, lines
from support.story import condition, run_spec
from unit.runner.fake_engine import FakeEngine
from unit.runner.jobs import RUNNER_PATH

JSON = dict[str, Any]
COUNT = 20


@dataclass
class Node:
    """Runs the runner's container of a pod as the kubelet would.

    Args:
        api: The jobs' namespace.
        folder: Of the pods' volumes.
        engine: Where the pod's engine would listen.
    """

    api: Api
    folder: Path
    engine: FakeEngine

    def secrets(self, pod: JSON) -> Path:
        """Where the runner sees the job's Secrets."""
        return self.folder / pod["metadata"]["name"] / "secrets"

    async def mount(self, pod: JSON) -> None:
        """The pod's Secrets as they are now, as the kubelet brings them up to date."""
        for volume in pod["spec"]["volumes"]:
            if name := volume.get("secret", {}).get("secretName"):
                found = await self.api.client.get(f"/api/v1/namespaces/{self.api.namespace}/secrets/{name}")
                mounts = {m["name"]: m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"]}
                if not mounts[volume["name"]].startswith(SECRETS_DIR):
                    continue
                (self.secrets(pod) / name).mkdir(parents=True, exist_ok=True)
                for key, value in found["data"].items():
                    (self.secrets(pod) / name / key).write_bytes(base64.b64decode(value))

    async def run(self, pod: JSON) -> None:
        """The container from its start to its last word."""
        await self.mount(pod)
        await self.api.play_running(pod)
        spec = run_spec(pod) | {"engineUrl": self.engine.url}
        spec["upload"] |= {"attempts": 2, "backoffSeconds": 0.01}
        place = self.folder / pod["metadata"]["name"]
        environ = KEYS | {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": RUNNER_PATH,
            SPEC_ENV: json.dumps(spec),
            "GPUBATCH_JOURNAL_DIR": str(place / "journal"),
            "GPUBATCH_SECRETS_DIR": str(self.secrets(pod)),
            "GPUBATCH_TERMINATION_LOG": str(place / "termination-log"),
            "GPUBATCH_PROGRESS_PORT": "0",
            "TMPDIR": str(place),
        }
        command = pod["spec"]["containers"][0]["args"]
        with (self.folder / "runner.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gpubatch_runner", *command, env=environ, stderr=log
            )
            assert await process.wait() == 0, (self.folder / "runner.log").read_text()[-3000:]
        await self.api.play_end(pod, message=(place / "termination-log").read_text())


def presigned(s3: S3, key: str, seconds: float) -> str:
    """A URL that takes one file for so long."""
    store = S3Store(
        "batches",
        endpoint=s3.endpoint,
        region="us-east-1",
        access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    return obstore.sign(store, "PUT", key, timedelta(seconds=seconds))


async def test_an_expired_url_keeps_the_results_and_a_new_one_with_a_retry_uploads_them_without_computing_again(
    api: Api, add_node: AddNode, operator: OperatorProcess, s3: S3, tmp_path: Path
) -> None:
    await add_node()
    s3.put("in.jsonl", lines(COUNT))
    urls = f"/api/v1/namespaces/{api.namespace}/secrets"

    async def renew(seconds: float) -> None:
        data = {"output": presigned(s3, "out.jsonl", seconds)}
        await api.client.patch(f"{urls}/urls", {"stringData": data})

    await api.client.create(urls, {"metadata": {"name": "urls"}, "stringData": {"output": "later"}})
    await renew(3600)
    job = inference_job("presigned")
    job["spec"]["inference"] |= {
        "model": "tiny",
        "input": {"url": "s3://batches/in.jsonl"},
        "output": {"urlFrom": {"secretKeyRef": {"name": "urls", "key": "output"}}},
        "checkpoint": {"url": "s3://batches/kept"},
        "storage": {"endpoint": s3.endpoint, "region": "us-east-1"},
    }
    may_answer = asyncio.Event()

    async def when_allowed(_: str, before: int) -> web.Response | None:
        await may_answer.wait()
        return None

    async with FakeEngine(when_allowed) as engine:
        node = Node(api, tmp_path, engine)
        await api.create(job)
        await node.run(await api.pod_of("presigned", "inspect"))
        pod = await api.bound("presigned")
        running = asyncio.create_task(node.run(pod))
        await engine.has_seen(1)
        await renew(1)  # while the engine works the URL comes to its end
        await node.mount(pod)
        await asyncio.sleep(2)
        may_answer.set()
        await running
        status = (await api.phase("presigned", "Failed"))["status"]
        said = condition({"status": status}, "Failed")
        assert said["reason"] == "OutputExpired"
        for word in ("HTTP 403", "put a fresh presigned URL into the key 'output' of the Secret 'urls'", "kept beside"):
            assert word in said["message"]
        assert "X-Amz-Signature" not in json.dumps(await api.job("presigned"))
        assert "out.jsonl" not in s3.names()
        assert any(name.startswith("kept.") for name in s3.names())
        assert sum(engine.seen.values()) == COUNT

        await engine.stop()  # what is computed again would fail
        await renew(3600)
        path = f"{api.jobs_path}/presigned"
        await api.client.patch(path, {"metadata": {"annotations": {convert.RETRY: "1"}}})
        await eventually("another attempt", lambda: _begun(api, 2))
        await node.run(await api.bound("presigned"))
        status = (await api.phase("presigned", "Succeeded"))["status"]
    assert s3.ids("out.jsonl") == sorted(f"r{n}" for n in range(COUNT))
    assert (status["results"]["completed"], status["results"]["failed"]) == (COUNT, 0)
    assert [attempt["state"] for attempt in status["attempts"]] == ["Failed", "Succeeded"]
    assert sum(engine.seen.values()) == COUNT
    assert [name for name in s3.names() if "manifest" not in name] == ["in.jsonl", "out.jsonl"]


async def _begun(api: Api, attempt: int) -> bool:
    return len((await api.job("presigned"))["status"].get("attempts", [])) >= attempt
