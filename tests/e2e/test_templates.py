"""Pods of the users' own, by examples/templates: a training that is killed and resumed, Hugging Face's Trainer with its
own callback, and ten transcriptions at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from obstore.store import S3Store

from demo_lib.queue import Job, Watcher
from demo_lib.tools import ROOT
from gpubatch_operator.kube.client import ApiError
from support.api import Api, eventually
from support.installation import NAMESPACE, Installation
from support.podwatch import PodWatch
from support.speech import SENTENCES, recall
from support.workloads import ENDPOINT, on, script

JSON = dict[str, Any]
Say = Callable[[str], None]
PATIENCE = 240.0


def example(installation: Installation, file: str, name: str, **env: str) -> JSON:
    """A job of examples/templates under another name, with the image that was built and more environment."""
    job: JSON = yaml.safe_load((ROOT / "examples" / "templates" / f"{file}.yaml").read_text())
    job["metadata"]["name"] = name
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["image"] = installation.images[container["image"].removeprefix("gpubatch.dev/")]
    container["imagePullPolicy"] = "IfNotPresent"
    kept = [e for e in container.get("env", []) if e["name"] not in env]
    container["env"] = [*kept, *({"name": k, "value": v} for k, v in env.items())]
    return job


def training(installation: Installation, name: str, node: str, epochs: int) -> JSON:
    env = {"CHECKPOINTS": f"s3://batches/{name}", "AWS_ENDPOINT_URL": ENDPOINT, "EPOCHS": str(epochs)}
    job = example(installation, "training-checkpoints", name, **env)
    job["spec"] |= on(node)
    return job


async def test_a_training_that_is_killed_twice_ends_with_the_weights_of_an_uninterrupted_one(
    api: Api, installation: Installation, bucket: S3Store, say: Say
) -> None:
    epochs = 300
    await api.create(training(installation, "uninterrupted", "gpu-a", epochs))
    await api.create(training(installation, "killed", "gpu-b", epochs))
    seen: list[JSON] = []

    async def progressed(least: int) -> JSON | None:
        status = (await api.job("killed")).get("status", {})
        seen.append(status.get("progress") or {})
        assert status.get("phase") not in ("Failed", "Succeeded"), status
        return status if seen[-1].get("percent", 0) >= least else None

    # Told to stop, it saves. Frozen, it hears nothing and is killed: what counts then is its last checkpoint.
    for least, frozen in ((10, False), (40, True)):
        status = await eventually(f"{least}% of the training", lambda least=least: progressed(least), PATIENCE)
        say(f"killed at {status['progress']['summary']}, {status['progress'].get('metrics')}")
        path = f"{api.pods_path}/{status['podName']}"
        if frozen:
            await asyncio.to_thread(installation.kill, await api.client.get(path), "train", "STOP")
        await api.client.request("DELETE", path, {"gracePeriodSeconds": 1 if frozen else 60})
        attempts = len(status["attempts"])

        async def lost(attempts: int = attempts) -> bool:
            return (await api.job("killed"))["status"]["attempts"][attempts - 1]["state"] == "Lost"

        await eventually("the attempt to be lost", lost, PATIENCE)
    results = {}
    for name in ("killed", "uninterrupted"):
        job = await api.phase(name, "Succeeded", "Failed", patience=PATIENCE)
        assert job["status"]["phase"] == "Succeeded", job["status"]
        assert job["status"]["progress"]["stage"] == "Done"
        assert job["status"]["progress"]["summary"] == f"{epochs}/{epochs} (100%)"
        assert job["status"]["progress"]["metrics"]["accuracy"] > 0.9, "the last words are not lost"
        results[name] = json.loads(bytes(bucket.get(f"{name}/result.json").bytes()))
    say(f"attempts began after epochs {results['killed']['startedAfter']}")
    assert results["killed"]["weights"] == results["uninterrupted"]["weights"]
    begun = results["killed"]["startedAfter"]
    assert len(begun) == 3
    assert begun == sorted(begun)
    assert begun[1] > 0
    assert begun[2] > begun[1]
    assert begun[2] % 20 == 0, "a checkpoint of every 20th epoch: it had no time to save another one"
    assert {p["stage"] for p in seen if "percent" in p} == {"Training"}
    assert all(p.get("metrics", {}).get("loss") for p in seen if "percent" in p)


async def test_hugging_faces_own_callback_tells_how_far_it_is(api: Api, installation: Installation, say: Say) -> None:
    # It reports every five seconds, no oftener.
    await api.create(example(installation, "finetuning", "finetuning", PAUSE="0.15"))
    seen: dict[int, JSON] = {}

    async def ended() -> bool:
        status = (await api.job("finetuning")).get("status", {})
        if "percent" in (progress := status.get("progress") or {}):
            seen.setdefault(progress["percent"], progress)
        await asyncio.sleep(0.2)
        return status.get("phase") in ("Succeeded", "Failed")

    await eventually("it to end", ended, PATIENCE)
    job = Job("", await api.job("finetuning"))
    say(f"told: {', '.join(f'{p}%' for p in seen)}")
    assert job.phase == "Succeeded", job.condition("Failed")
    assert len(seen) >= 3, "told at its begin and at its end at least, and between"
    between = [p for percent, p in seen.items() if 0 < percent < 100]
    assert all("loss" in p["metrics"] and "remainingSeconds" in p for p in between[1:])
    assert job.status["progress"]["summary"] == "100%"
    assert "train_loss" in job.status["progress"]["metrics"]


async def put_secret(api: Api, name: str, url: str) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/secrets"
    with contextlib.suppress(ApiError):  # there is none of an earlier run
        await api.client.request("DELETE", f"{path}/{name}")
    await api.client.create(path, {"metadata": {"name": name}, "stringData": {"RESULT_URL": url}})


async def test_ten_transcriptions_at_once_all_end_one_at_a_time_on_each_node_and_none_is_silent(
    api: Api, installation: Installation, bucket: S3Store, say: Say
) -> None:
    names = [f"speech-{i}" for i in range(10)]
    jobs = []
    for i, name in enumerate([*names, "speech-refused"]):
        url = installation.presigned("PUT", f"{name}.json")
        # One has a URL that the server refuses: expired, say, or copied without its end.
        await put_secret(api, name, url if name in names else url[:-4] + "beef")
        job = example(installation, "transcription", name)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        container["args"] = [f"/samples/{i % 10}.wav", f"/samples/{(i + 1) % 10}.wav"]
        container["envFrom"] = [{"secretRef": {"name": name}}]
        jobs.append(job)
    watcher, told = Watcher(), dict[str, set[str]]()
    with PodWatch(installation.kube, NAMESPACE) as watch:
        for job in jobs:
            await api.create(job)

        async def ended() -> bool:
            found = [Job(name, raw) for name, raw in (await api.jobs()).items()]
            watcher.look(found)
            for job in found:
                if stage := (job.status.get("progress") or {}).get("stage"):
                    told.setdefault(job.name, set()).add(stage)
            await asyncio.sleep(0.2)
            return watcher.finished

        await eventually("all to end", ended, PATIENCE)
    assert not watch.overlaps()
    assert not watcher.crowded
    refused = watcher.jobs.pop("speech-refused")
    assert {name: job.phase for name, job in watcher.jobs.items()} == dict.fromkeys(names, "Succeeded")
    understood = []
    for i, name in enumerate(names):
        assert watcher.jobs[name].status["progress"]["summary"] == "2/2 (100%)"
        assert told[name] - {"PullingImages"}, f"{name} was silent"
        result = json.loads(bytes(bucket.get(f"{name}.json").bytes()))
        assert result["succeeded"]
        understood += [
            recall(SENTENCES[(i + k) % 10], transcript["text"]) for k, transcript in enumerate(result["transcripts"])
        ]
    say(f"words understood: {100 * sum(understood) / len(understood):.0f}%")
    assert sum(understood) / len(understood) > 0.7
    assert refused.phase == "Failed"
    message = refused.condition("Failed")["message"]
    assert "HTTP 403" in message, message
    assert "SignatureDoesNotMatch" in message, "the server's own words"
    say(f"the one whose URL was refused: {message[-200:]}")


@pytest.mark.parametrize("ending", ["succeeds", "fails in an init container"])
async def test_the_sidecar_changes_nothing_about_a_pods_end(
    api: Api, installation: Installation, image: str, ending: str
) -> None:
    job = script("short", image, "import time; time.sleep(5)")
    pod = job["spec"]["template"]["spec"]
    if ending == "succeeds":
        # A sidecar of the user's own, under the name that the engine has elsewhere, which fails again and again.
        crash = ["sh", "-c", "sleep 3; exit 1"]
        broken = {"name": "engine", "image": image, "restartPolicy": "Always", "command": crash}
        pod["initContainers"] = [broken | {"securityContext": pod["containers"][0]["securityContext"]}]
    else:
        code = "import sys; sys.exit('no such bucket')"
        pod["initContainers"] = [pod["containers"][0] | {"name": "fetch", "command": ["python", "-S", "-c", code]}]
    with PodWatch(installation.kube, NAMESPACE) as watch:
        await api.create(job)
        done = Job("", await api.phase("short", "Succeeded", "Failed"))
    if ending == "succeeds":
        assert done.phase == "Succeeded", done.status
    else:
        assert done.phase == "Failed"
        assert "container fetch exited with code 1" in done.condition("Failed")["message"]
        assert "no such bucket" in done.condition("Failed")["message"]
    assert len(watch.runs_seen()) == 1
