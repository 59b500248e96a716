"""The models' cache of engines: a volume that outlives the pod, so that not each job downloads its weights."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gpubatch_operator.settings import Settings

JSON = dict[str, Any]
VOLUME = "gpubatch-models"
FOLDER = "/var/cache/huggingface"
TOKEN_KEY = "token"


def add_to(body: JSON, engine: JSON, own: Collection[str], settings: Settings) -> None:
    """Give the engine of a pod's spec the cache as its HF_HOME, and the hub's token.

    Args:
        body: The pod's spec; changed in place, as is `engine`, its container.
        engine: With `env`, `volumeMounts`.
        own: Names of the variables that the job itself sets: they count.
        settings: Which cache there is.
    """
    if (name := settings.model_token_secret) and "HF_TOKEN" not in own:
        # Optional: models that are anybody's need none, and not each namespace has it.
        ref = {"name": name, "key": TOKEN_KEY, "optional": True}
        engine["env"].append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": ref}})
    if settings.model_cache_claim:
        volume: JSON = {"persistentVolumeClaim": {"claimName": settings.model_cache_claim}}
        # The volume's group is changed to the pod's once, and not at each start, file by file.
        body["securityContext"]["fsGroupChangePolicy"] = "OnRootMismatch"
    elif settings.model_cache_path:
        # It must be there: one that the kubelet made would be root's, and no engine could write to it.
        volume = {"hostPath": {"path": settings.model_cache_path, "type": "Directory"}}
    else:
        return
    if "HF_HOME" in own or any(m["mountPath"].rstrip("/") == FOLDER for m in engine["volumeMounts"]):
        return
    body["volumes"].append({"name": VOLUME, **volume})
    engine["volumeMounts"].append({"name": VOLUME, "mountPath": FOLDER})
    engine["env"] = [e for e in engine["env"] if e["name"] != "HF_HOME"] + [{"name": "HF_HOME", "value": FOLDER}]
