"""Many jobs and nodes as the operator would see them in a busy cluster: for benchmarks, tests and pictures."""

from __future__ import annotations

import random
from typing import Any

from gpubatch_operator.core.clock import iso
from gpubatch_operator.core.model import Job, Node
from gpubatch_operator.kube.convert import job_of

JSON = dict[str, Any]
GPU = "nvidia.com/gpu"
MODELS = (
    "meta-llama/Llama-3.3-70B-Instruct",
    "Qwen/Qwen3-30B-A3B",
    "sentence-transformers/all-MiniLM-L6-v2",
    "openai/whisper-large-v3",
    "BAAI/bge-reranker-v2-m3",
)
NAMES = (
    "review-embeddings",
    "nightly-summaries",
    "call-transcripts",
    "eval-suite",
    "rerank-catalogue",
    "label-tickets",
)


def crowd(jobs: int, nodes: int, now: float, namespaces: int = 5, seed: int = 0) -> tuple[list[Job], list[Node]]:
    """Jobs: each node runs one, a fifth has ended, a few are held, suspended or validated, all others wait."""
    rng = random.Random(seed)
    machines = [
        Node(f"gpu-{i:03}", ready=i % 17 != 16, unschedulable=i % 11 == 10, labels={}, taints=(), capacity={GPU: 8})
        for i in range(nodes)
    ]
    usable = [n for n in machines if n.ready and not n.unschedulable]
    ended, others = jobs // 5, max(1, jobs // 50) if jobs > 20 else 0
    free_since = {n.name: now for n in usable}  # back in time, attempt by attempt
    raws: list[JSON] = []
    for i in range(jobs):
        raw = _job(i, f"team-{rng.randrange(namespaces):02}", rng, now)
        if i < min(len(usable), jobs // 2):
            free_since[usable[i].name] = _running(raw, usable[i].name, rng, now)
        elif i < len(usable) + ended:
            node = rng.choice(usable).name
            free_since[node] = _ended(raw, node, rng, free_since[node] - rng.randrange(5, 90))
        elif i < len(usable) + ended + others:
            _parked(raw, rng.choice(("Held", "Suspended", "Validating")))
        raws.append(raw)
    everyone = [job_of(raw) for raw in raws]
    waiting = sorted((j for j in everyone if j.phase and j.phase.value == "Queued"), key=lambda j: j.rank)
    places = {job.uid: place for place, job in enumerate(waiting, 1)}
    for raw in raws:
        if place := places.get(raw["metadata"]["uid"]):
            _waiting(raw, place, len(usable), now)
    return [job_of(raw) for raw in raws], machines


def _job(i: int, namespace: str, rng: random.Random, now: float) -> JSON:
    kind, model = rng.choice(NAMES), rng.choice(MODELS)
    created, priority = now - rng.randrange(60, 36_000), rng.choice((-1, 0, 0, 0, 0, 1))
    # Specs that look alike, as in real life: each is parsed once.
    places = {"input": {"url": f"s3://batches/{kind}.jsonl"}, "output": {"url": f"s3://batches/{kind}.out.jsonl"}}
    work = {"model": model, **places}
    spec: JSON = {"priority": priority, "gpus": rng.choice((1, 1, 2, 4, 8)), "inference": work}
    if i % 7 == 6:
        container = {"name": "train", "image": "registry.example.com/training/finetune:2.1"}
        spec = {k: v for k, v in spec.items() if k != "inference"} | {"template": {"spec": {"containers": [container]}}}
    uid = f"{rng.getrandbits(32):08x}-0000-4000-8000-{i:012x}"
    return {
        "metadata": {
            "name": f"{kind}-{i:05}", "namespace": namespace, "uid": uid, "resourceVersion": str(1000 + i),
            "generation": 1, "creationTimestamp": iso(created),
        },
        "spec": spec,
        "status": {
            "phase": "Queued", "queuedAt": iso(created), "queueTicket": str(1000 + i), "waitingSince": iso(created),
            "observedGeneration": 1,
        },
    }  # fmt: skip


def _attempt(node: str, start: float) -> JSON:
    return {"number": 1, "node": node, "slot": 0, "podName": "runner", "startTime": iso(start), "state": "Active"}


def _running(raw: JSON, node: str, rng: random.Random, now: float) -> float:
    start, total, percent = now - rng.randrange(120, 5000), rng.choice((2_000, 10_000, 50_000)), rng.randrange(100)
    left, done = rng.randrange(60, 6000), total * percent // 100
    progress = {
        "stage": "Processing", "total": total, "completed": done, "failed": done // 500, "percent": percent,
        "summary": f"{done}/{total} ({percent}%)", "rate": round(rng.uniform(2, 40), 2),
        "lastHeartbeatTime": iso(now - 4),
    }  # fmt: skip
    raw["status"] |= {
        "phase": "Running", "nodeName": node, "startTime": iso(start), "firstStartTime": iso(start), "queuePosition": 0,
        "estimatedCompletionTime": iso(now + left), "estimatedCompletionTimeP90": iso(now + 1.6 * left),
        "progress": progress, "attempts": [_attempt(node, start)],
    }  # fmt: skip
    return start


def _ended(raw: JSON, node: str, rng: random.Random, end: float) -> float:
    start, phase = end - rng.randrange(300, 5000), rng.choices(("Succeeded", "Failed", "Cancelled"), (9, 2, 1))[0]
    state = {"Succeeded": "Succeeded", "Failed": "Failed", "Cancelled": "Stopped"}[phase]
    message = {
        "Succeeded": "all 2000 requests answered",
        "Failed": "the engine ended 5 times without an answer between: CUDA out of memory",
        "Cancelled": "cancelled while it ran",
    }[phase]
    condition = {
        "type": "Complete" if phase == "Succeeded" else "Failed", "status": "True", "message": message,
        "reason": {"Succeeded": "Succeeded", "Failed": "EngineFailed", "Cancelled": "Cancelled"}[phase],
        "lastTransitionTime": iso(end),
    }  # fmt: skip
    raw["status"] |= {
        "phase": phase, "nodeName": node, "startTime": iso(start), "firstStartTime": iso(start),
        "completionTime": iso(end), "conditions": [condition],
        "attempts": [_attempt(node, start) | {"endTime": iso(end), "state": state}],
    }  # fmt: skip
    return start


def _parked(raw: JSON, phase: str) -> None:
    why = {
        "Held": ("QueueFull", "Queue full (20/20 jobs)"),
        "Suspended": ("Suspended", "spec.suspend is true"),
        "Validating": ("Validating", "The input is being read and checked."),
    }[phase]
    raw["status"] |= {"phase": phase, "pending": {"reason": why[0], "message": why[1]}}


def _waiting(raw: JSON, place: int, slots: int, now: float) -> None:
    """With estimates that grow along the queue, and grow apart."""
    start, length = 120 + 1500 * place / max(slots, 1), 1500
    raw["status"] |= {
        "queuePosition": place,
        "estimatedStartTime": iso(now + start), "estimatedStartTimeP90": iso(now + 1.3 * start),
        "estimatedCompletionTime": iso(now + start + length),
        "estimatedCompletionTimeP90": iso(now + 1.3 * start + 1.6 * length),
        "pending": {
            "reason": "NodesBusy", "message": f"position {place}: all {slots} matching nodes are busy",
            "nextStep": "Wait, or raise spec.priority if it must go first.",
        },
    }  # fmt: skip
