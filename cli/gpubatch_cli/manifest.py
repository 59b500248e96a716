"""A job's manifest out of the options of `submit`: pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gpubatch_cli.api import API_VERSION, KIND
from gpubatch_cli.errors import WrongUse

JSON = dict[str, Any]
LONGEST = 57  # of a name, so that six more characters make no more than 63
PACKED = (".gz", ".zst")


def job_name(file: str, suffix: str) -> str:
    """A name made of a file's, and letters that make it unique."""
    stem = file.rstrip("/").rpartition("/")[2].lower()
    for end in (*PACKED, ".jsonl", ".json", ".ndjson", ".txt"):
        stem = stem.removesuffix(end)
    stem = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:LONGEST].rstrip("-")
    return f"{stem or 'batch'}-{suffix}"


def beside(output: str, file: str) -> str:
    """Where an input goes: the output's URL with `.input.jsonl`, and the file's compression."""
    packed = next((end for end in PACKED if file.endswith(end)), "")
    return f"{output}.input.jsonl{packed}"


def labels(given: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE pairs.

    Raises:
        WrongUse: One is none.
    """
    found = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise WrongUse(f"--node-selector: {text!r} is no KEY=VALUE")
        found[key] = value
    return found


def inference_job(name: str, namespace: str | None, wishes: JSON, input_url: str, served: str | None) -> JSON:
    """The job; only what was asked for, so that the defaults stay the cluster's."""
    storage = {"endpoint": wishes["endpoint"], "region": wishes["region"], "secretName": wishes["secret"]}
    engine = {"image": wishes["engine_image"], "args": list(wishes["engine_arg"])}
    work = {
        "model": wishes["model"],
        "servedModelName": served if served != wishes["model"] else None,
        "engine": _kept(engine),
        "input": {"url": input_url},
        "output": {"url": wishes["target"]},
        "errors": {"url": wishes["errors"]} if wishes["errors"] else None,
        "storage": _kept(storage),
    }
    hooks = [_kept({"url": url, "secretName": wishes["webhook_secret"]}) for url in wishes["webhook"]]
    window = wishes["completion_window"]
    spec = {
        "priority": wishes["priority"],
        "gpus": wishes["gpus"],
        "nodeSelector": labels(wishes["node_selector"]),
        "completionWindowSeconds": int(window) if window else None,
        "inference": _kept(work),
        "webhooks": hooks,
    }
    metadata = _kept({"name": name, "namespace": namespace})
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": _kept(spec)}


def _kept(fields: JSON) -> JSON:
    return {key: value for key, value in fields.items() if value not in (None, {}, [])}


def documents(text: str, file: str) -> list[JSON]:
    """The jobs of a manifest.

    Raises:
        WrongUse: It isn't YAML, or holds something else.
    """
    import yaml

    try:
        found = [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.YAMLError as error:
        raise WrongUse(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not found:
        raise WrongUse(f"{file} holds no job")
    for document in found:
        said = document.get("kind") if isinstance(document, dict) else None
        if said != KIND or document.get("apiVersion") != API_VERSION:
            what = f"{document.get('apiVersion')} {said}" if isinstance(document, dict) else "something else"
            raise WrongUse(
                f"{file} holds {what}; expected {API_VERSION} {KIND}",
                "Apply other objects by kubectl. A file of requests must end in .jsonl, .jsonl.gz or .jsonl.zst.",
            )
        if not (document.get("metadata") or {}).get("name"):
            raise WrongUse(f"{file}: metadata.name is missing", "Give the job a name.")
    return found


def check(document: JSON, file: str) -> None:
    """Judges a manifest without a cluster, by the models that the CRD is made from.

    Raises:
        WrongUse: A field is wrong.
    """
    from pydantic import ValidationError

    from gpubatch_operator.api.spec import JobSpec

    name = document["metadata"]["name"]
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", str(name)):
        raise WrongUse(
            f"{file}: metadata.name is {name!r}; expected lower-case letters, digits, '-' and '.'",
            "Choose another name.",
        )
    try:
        JobSpec.model_validate(document.get("spec") or {})
    except ValidationError as error:
        found = error.errors()[0]
        field = ".".join(["spec", *(str(part) for part in found["loc"])])
        raise WrongUse(f"{file}: {field}: {found['msg']}", "docs/api.md explains each field.") from None
