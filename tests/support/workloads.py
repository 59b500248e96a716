"""Jobs that really run on the cluster of the tests: small programs, and requests for a real vLLM."""

from __future__ import annotations

from typing import Any

from gpubatch_operator.api.crd import API_VERSION, KIND

JSON = dict[str, Any]
BUCKET = "s3://batches"
ENDPOINT = "http://s3.gpubatch-e2e.svc:7070"
MODELS = {"chat": "/models/tiny-llama", "minilm": "/models/all-minilm-l6-v2"}
LOCKED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def job(name: str, **spec: Any) -> JSON:
    """A job."""
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}


def on(node: str) -> JSON:
    """What keeps a job on one node."""
    return {"nodeSelector": {"kubernetes.io/hostname": node}}


def script(name: str, image: str, code: str, **spec: Any) -> JSON:
    """A job that runs a little Python on the GPU node."""
    container = {
        "name": "main",
        "image": image,
        "command": ["python", "-S", "-c", code],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": LOCKED,
    }
    pod = {
        "containers": [container],
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    return job(name, template={"spec": pod}, **spec)


def sleeper(name: str, image: str, seconds: float = 2.0, **spec: Any) -> JSON:
    """A job that takes about so long."""
    return script(name, image, f"import time; time.sleep({seconds})", **spec)


def batch(
    name: str, model: str = "chat", engine: JSON | None = None, inference: JSON | None = None, **spec: Any
) -> JSON:
    """A job that answers s3://batches/NAME.jsonl by a real vLLM on the CPU.

    Args:
        name: Of the job and of its files.
        model: What the requests call it, see `MODELS`.
        engine: More of spec.inference.engine.
        inference: More of spec.inference.
        spec: More of spec.
    """
    work = {
        **_engine(model, engine),
        "input": {"url": f"{BUCKET}/{name}.jsonl"},
        "output": {"url": f"{BUCKET}/{name}.out.jsonl"},
        "errors": {"url": f"{BUCKET}/{name}.errors.jsonl"},
        "storage": {"endpoint": ENDPOINT, "secretName": "s3-credentials"},
        **(inference or {}),
    }
    return job(name, inference=work, **spec)


def live(name: str, live: JSON, inference: JSON | None = None, **spec: Any) -> JSON:
    """A job that takes chats over HTTP and has them answered by a real vLLM on the CPU.

    Args:
        name: Of the job.
        live: Of spec.inference.input.live.
        inference: More of spec.inference.
        spec: More of spec.
    """
    work = {**_engine("chat", None), "input": {"live": live}, **(inference or {})}
    return job(name, inference=work, **spec)


def template(model: str) -> JSON:
    """What an administrator tells the gateway of a model."""
    work = _engine(model, None) | {"requestTimeoutSeconds": 600}
    del work["servedModelName"]
    return {"inference": work}


def whisper(image: str) -> JSON:
    """The same of a model that hears: an engine on the CPU that isn't vLLM."""
    resources = {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}
    engine = {"image": image, "resources": resources}
    return {"inference": {"model": "/models/tiny.en", "engine": engine, "maxConcurrentRequests": 2}}


def _engine(model: str, more: JSON | None) -> JSON:
    """What a job with a real vLLM says of model and engine."""
    return {
        "model": MODELS[model],
        "servedModelName": model,
        "engine": {
            "args": ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256" if model == "minilm" else "512"],
            "env": [
                {"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"},
                {"name": "HF_HUB_OFFLINE", "value": "1"},
                {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},  # two engines that spin leave the cluster no processor
            ],
            "resources": {"requests": {"cpu": "250m", "memory": "2Gi"}, "limits": {"memory": "3Gi"}},
            **(more or {}),
        },
    }
