"""The models' cache: the engine's, and only where it is wanted."""

from __future__ import annotations

from typing import Any

import pytest

from gpubatch_operator.kube import pods
from gpubatch_operator.settings import Settings, SettingsError, load
from unit.operator.build import attempt, inference_spec, raw_job, spec_of, template_spec

JSON = dict[str, Any]
CLAIM = {"persistentVolumeClaim": {"claimName": "models"}}


def pod(settings: Settings, spec: JSON | None = None) -> JSON:
    raw = raw_job(spec=spec)
    return pods.runner_pod(raw, spec_of(raw), attempt(), settings)["spec"]  # type: ignore[no-any-return]


def engine_of(body: JSON) -> tuple[dict[str, JSON], dict[str, str]]:
    """The engine's variables, and its mounts: the path of each volume."""
    [engine] = body["initContainers"]
    return {e["name"]: e for e in engine["env"]}, {m["name"]: m["mountPath"] for m in engine["volumeMounts"]}


def volumes_of(body: JSON) -> dict[str, JSON]:
    return {v["name"]: {k: val for k, val in v.items() if k != "name"} for v in body["volumes"]}


def own(**engine: Any) -> JSON:
    return inference_spec(inference=inference_spec()["inference"] | {"engine": engine})


@pytest.mark.parametrize(
    ("settings", "volume"),
    [
        (Settings(model_cache_claim="models"), CLAIM),
        (Settings(model_cache_path="/models"), {"hostPath": {"path": "/models", "type": "Directory"}}),
    ],
    ids=["claim", "folder"],
)
def test_the_engine_keeps_its_models_in_the_cache(settings: Settings, volume: JSON) -> None:
    body = pod(settings)
    env, mounts = engine_of(body)
    assert volumes_of(body)["gpubatch-models"] == volume
    assert mounts["gpubatch-models"] == env["HF_HOME"]["value"]
    [runner] = body["containers"]
    assert "gpubatch-models" not in {m["name"] for m in runner["volumeMounts"]}, "the runner has no business there"


def test_a_large_claim_isnt_walked_through_at_each_start() -> None:
    assert pod(Settings(model_cache_claim="models"))["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_without_a_cache_nothing_is_mounted() -> None:
    body = pod(Settings())
    assert "gpubatch-models" not in volumes_of(body)
    assert engine_of(body)[0]["HF_HOME"]["value"].startswith("/tmp/")


def test_what_the_job_says_of_its_cache_counts() -> None:
    settings = Settings(model_cache_claim="models", model_token_secret="hub")
    env, _ = engine_of(body := pod(settings, own(env=[{"name": "HF_HOME", "value": "/mine"}])))
    assert env["HF_HOME"]["value"] == "/mine"
    assert "gpubatch-models" not in volumes_of(body)
    mine = {"name": "mine", "emptyDir": {}}
    spec = own(volumes=[mine], volumeMounts=[{"name": "mine", "mountPath": "/var/cache/huggingface"}])
    assert "gpubatch-models" not in volumes_of(pod(settings, spec))
    env, _ = engine_of(pod(settings, own(env=[{"name": "HF_TOKEN", "value": "mine"}])))
    assert env["HF_TOKEN"] == {"name": "HF_TOKEN", "value": "mine"}


def test_the_hubs_token_comes_from_a_secret_that_may_be_missing() -> None:
    env, _ = engine_of(pod(Settings(model_token_secret="hub")))
    ref = {"name": "hub", "key": "token", "optional": True}
    assert env["HF_TOKEN"] == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": ref}}


def test_two_caches_are_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match="set one of them"):
        load({"GPUBATCH_MODEL_CACHE_CLAIM": "a", "GPUBATCH_MODEL_CACHE_PATH": "/b"})


@pytest.mark.parametrize("spec", [inference_spec(), template_spec()], ids=["inference", "template"])
def test_all_pods_may_pull_with_the_installations_secrets(spec: JSON) -> None:
    settings = Settings(image_pull_secrets="registry, mirror")
    names = [{"name": "own"}, {"name": "registry"}, {"name": "mirror"}]
    assert pod(settings, spec | {"imagePullSecrets": [{"name": "own"}]})["imagePullSecrets"] == names
    assert pod(settings, spec)["imagePullSecrets"] == names[1:]
    assert "imagePullSecrets" not in pod(Settings(), spec)
