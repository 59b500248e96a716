"""The chart as Helm itself sees it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpubatch_gateway import models
from gpubatch_gateway import settings as gateway
from gpubatch_operator.settings import Settings, load

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "gpubatch"
KUBERNETES = ("1.33.0", "1.35.0")
GATEWAY = ("--set", "gateway.enabled=true")


@pytest.fixture(scope="session")
def helm() -> str:
    return subprocess.check_output([ROOT / "hack" / "cluster", "tool", "helm"], text=True).strip()


def render(helm: str, *arguments: str, kubernetes: str = KUBERNETES[0]) -> list[dict[str, Any]]:
    """The objects of a release, each with apiVersion and kind.

    Raises:
        ValueError: Helm refuses, with what it says.
    """
    command = [helm, "template", "gpubatch", CHART, "--namespace", "gpubatch-system", "--kube-version", kubernetes]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr)
    return [o for o in yaml.safe_load_all(done.stdout) if o]


def only(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The one object of a kind."""
    [found] = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(name)]
    return found


def operator_env(objects: list[dict[str, Any]]) -> dict[str, str]:
    """The variables of the operator's container."""
    [container] = only(objects, "Deployment", "gpubatch")["spec"]["template"]["spec"]["containers"]
    return {e["name"]: e.get("value", "") for e in container["env"]}


def allowed(role: dict[str, Any]) -> set[tuple[str, str]]:
    """(resource, verb) for each right of a role."""
    return {(r, v) for rule in role["rules"] for r in rule["resources"] for v in rule["verbs"]}


def test_lint_finds_nothing(helm: str) -> None:
    done = subprocess.run([helm, "lint", "--strict", CHART], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_it_renders_for_every_supported_kubernetes(helm: str, kubernetes: str) -> None:
    kinds = {o["kind"] for o in render(helm, kubernetes=kubernetes)}
    assert kinds >= {"Deployment", "CustomResourceDefinition", "ClusterRole", "PriorityClass", "Service"}


def test_an_older_kubernetes_is_refused(helm: str) -> None:
    with pytest.raises(ValueError, match="incompatible"):
        render(helm, kubernetes="1.32.9")


def test_every_setting_reaches_the_operator(helm: str) -> None:
    assert operator_env(render(helm)).keys() == {f"GPUBATCH_{name.upper()}" for name in Settings.model_fields}


def test_a_large_number_stays_a_number(helm: str, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text("settings: {maxRequestsPerJob: 1000000, progressSeconds: 0.5}")
    env = operator_env(render(helm, "--values", str(tmp_path / "values.yaml")))
    assert env["GPUBATCH_MAX_REQUESTS_PER_JOB"] == "1000000"
    assert env["GPUBATCH_PROGRESS_SECONDS"] == "0.5"


def test_caps_of_namespaces_reach_the_operator(helm: str, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text('settings: {namespaceCaps: {team-a: {maxSlots: 2}, "*": {maxPriority: 10}}}')
    settings = load(operator_env(render(helm, "--values", str(tmp_path / "values.yaml"))))
    assert settings.queue_limits().caps("team-a").max_slots == 2
    assert settings.queue_limits().caps("team-b").max_priority == 10


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("settings.slotPerNode=2", "slotPerNode"),
        ("replica=2", "replica"),
        ("replicas=0", "replicas"),
        ("settings.slotsPerNode=0", "slotsPerNode"),
        ("settings.logFormat=xml", "logFormat"),
        ("settings.namespaceCaps.team-a.maxSlot=2", "maxSlot"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm: str, value: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        render(helm, "--set", value)


def test_the_crd_is_the_generated_one_and_outlives_the_release(helm: str) -> None:
    crd = only(render(helm), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert crd["spec"] == yaml.safe_load((ROOT / "crds" / "gpubatchjobs.yaml").read_text())["spec"]
    assert not [o for o in render(helm, "--set", "crds.install=false") if o["kind"] == "CustomResourceDefinition"]


def test_the_operator_runs_locked_down(helm: str) -> None:
    pod = only(render(helm), "Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_operator_may_do_what_it_does_and_no_more(helm: str) -> None:
    assert allowed(only(render(helm), "ClusterRole", "-operator")) == {
        *(("gpubatchjobs", verb) for verb in ("get", "list", "watch")),
        *(("gpubatchjobs/status", verb) for verb in ("get", "patch")),
        *(("pods", verb) for verb in ("get", "list", "watch", "create", "delete", "patch")),
        *(("nodes", verb) for verb in ("list", "watch")),
        ("events", "create"),
        ("tokenreviews", "create"),
        ("subjectaccessreviews", "create"),
        ("secrets", "get"),
        *(("validatingwebhookconfigurations", verb) for verb in ("get", "patch")),
    }


def test_of_its_own_objects_it_touches_only_those_with_its_name(helm: str) -> None:
    role = only(render(helm, "--set", "settings.instance=ours"), "Role", "-operator")
    assert role["metadata"]["namespace"] == "gpubatch-system"
    assert {r["resources"][0] for r in role["rules"] if "resourceNames" not in r and r["verbs"] != ["create"]} == set()
    named = {(r["resources"][0], *r["resourceNames"]) for r in role["rules"] if "resourceNames" in r}
    maps = {("configmaps", "ours-queue"), ("configmaps", "ours-totals")}
    assert named == {("leases", "ours"), ("secrets", "ours-admission"), ("secrets", "ours-live"), *maps}
    [cluster] = [r for r in only(render(helm), "ClusterRole", "-operator")["rules"] if "resourceNames" in r]
    assert cluster["resourceNames"] == [only(render(helm), "ValidatingWebhookConfiguration")["metadata"]["name"]]


def test_the_replicas_and_the_lease_have_names(helm: str) -> None:
    objects = render(helm)
    env = operator_env(objects)
    assert (env["GPUBATCH_INSTANCE"], env["GPUBATCH_NAMESPACE"]) == ("gpubatch", "gpubatch-system")
    [container] = only(objects, "Deployment", "gpubatch")["spec"]["template"]["spec"]["containers"]
    [replica] = [e for e in container["env"] if e["name"] == "GPUBATCH_REPLICA"]
    assert replica["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"


def test_an_upgrade_and_a_drain_leave_a_replica_up(helm: str) -> None:
    objects = render(helm)
    deployment = only(objects, "Deployment")["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    labels = deployment["selector"]["matchLabels"]
    assert only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    [spread] = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
    assert "PodDisruptionBudget" not in {o["kind"] for o in render(helm, "--set", "replicas=1")}


def test_reading_secrets_can_be_narrowed_or_switched_off(helm: str) -> None:
    narrowed = render(helm, "--set", "rbac.webhookSecrets.namespaces={search}")
    assert ("secrets", "get") not in allowed(only(narrowed, "ClusterRole", "-operator"))
    role = only(narrowed, "Role", "-webhook-secrets")
    assert role["metadata"]["namespace"] == "search"
    assert allowed(role) == {("secrets", "get")}
    off = render(helm, "--set", "rbac.webhookSecrets.enabled=false,rbac.webhookSecrets.namespaces={search}")
    others = [o for o in off if o["kind"] in ("Role", "ClusterRole")]
    reads = [r for o in others for r in o["rules"] if "secrets" in r["resources"] and "get" in r["verbs"]]
    assert [r.get("resourceNames") for r in reads] == [["gpubatch-admission"], ["gpubatch-live"]], "only its own"


def test_runners_never_preempt(helm: str) -> None:
    objects = render(helm, "--set", "settings.priorityClass=batch")
    priority_class = only(objects, "PriorityClass")
    assert priority_class["metadata"]["name"] == "batch" == operator_env(objects)["GPUBATCH_PRIORITY_CLASS"]
    assert priority_class["preemptionPolicy"] == "Never"


def test_a_namespace_that_denies_traffic_can_let_the_operator_in(helm: str) -> None:
    policy = only(render(helm, "--set", "networkPolicy.runnerNamespaces={search}"), "NetworkPolicy", "-runners")
    assert policy["metadata"]["namespace"] == "search"
    [rule] = policy["spec"]["ingress"]
    assert rule["ports"] == [{"port": 9808}]
    clients = "networkPolicy.liveFrom[0].podSelector.matchLabels.app=chat"
    more = render(helm, "--set", f"networkPolicy.runnerNamespaces={{search}},{clients}")
    peers = [{"podSelector": {"matchLabels": {"app": "chat"}}}]
    assert only(more, "NetworkPolicy", "-runners")["spec"]["ingress"] == [
        rule,
        {"from": peers, "ports": [{"port": 9808}]},
    ]


def test_a_namespace_that_denies_traffic_can_let_the_gateway_in(helm: str) -> None:
    objects = render(helm, *GATEWAY, "--set", "networkPolicy.runnerNamespaces={search}")
    _, rule = only(objects, "NetworkPolicy", "-runners")["spec"]["ingress"]
    assert rule["ports"] == [{"port": 9808}]
    [peer] = rule["from"]
    labels = only(objects, "Deployment", "-gateway")["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()


def test_ports_that_serve_nothing_disappear(helm: str) -> None:
    names = ("metricsPort", "healthPort", "admissionPort", "httpPort", "loopbackPort")
    objects = render(helm, "--set", ",".join(f"settings.{name}=0" for name in names))
    [container] = only(objects, "Deployment", "gpubatch")["spec"]["template"]["spec"]["containers"]
    assert not container.keys() & {"ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"}
    assert not {"Service", "ValidatingWebhookConfiguration"} & {o["kind"] for o in objects}
    rights = [r for o in objects if o["kind"] in ("Role", "ClusterRole") for r in allowed(o)]
    none = {"configmaps", "validatingwebhookconfigurations", "tokenreviews", "subjectaccessreviews"}
    assert not none & {resource for resource, _ in rights}


def test_the_http_endpoints_have_a_service_and_may_be_shut_off_for_others(helm: str) -> None:
    objects = render(helm, "--set", "networkPolicy.enabled=true,networkPolicy.httpFrom[0].podSelector.matchLabels.a=b")
    [port] = next(o for o in objects if (o["kind"], o["metadata"]["name"]) == ("Service", "gpubatch"))["spec"]["ports"]
    [container] = only(objects, "Deployment", "gpubatch")["spec"]["template"]["spec"]["containers"]
    assert {"name": port["targetPort"], "containerPort": 8081} in container["ports"]
    assert 8000 not in {p["containerPort"] for p in container["ports"]}, "the loopback is nobody's but port-forward's"
    [rule] = [r for r in only(objects, "NetworkPolicy")["spec"]["ingress"] if r["ports"] == [{"port": "http"}]]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"a": "b"}}}]


def test_the_webhook_is_asked_for_new_jobs_and_new_priorities_and_doesnt_stand_in_the_way(helm: str) -> None:
    objects = render(helm)
    [webhook] = only(objects, "ValidatingWebhookConfiguration")["webhooks"]
    [rule] = webhook["rules"]
    assert (rule["operations"], rule["resources"]) == (["CREATE", "UPDATE"], ["gpubatchjobs"])
    assert webhook["failurePolicy"] == "Ignore"
    assert webhook["timeoutSeconds"] <= 3
    assert webhook["sideEffects"] == "NoneOnDryRun"
    service = only(objects, "Service", webhook["clientConfig"]["service"]["name"])
    [container] = only(objects, "Deployment", "gpubatch")["spec"]["template"]["spec"]["containers"]
    assert service["spec"]["ports"][0]["targetPort"] in {p["name"] for p in container["ports"]}
    fail = render(helm, "--set", "admission.failurePolicy=Fail")
    assert only(fail, "ValidatingWebhookConfiguration")["webhooks"][0]["failurePolicy"] == "Fail"


def test_the_certificate_may_come_from_cert_manager(helm: str) -> None:
    inject = r"admission.annotations.cert-manager\.io/inject-ca-from=gpubatch-system/admission"
    objects = render(helm, "--set", f"admission.certificateSecret=admission-tls,{inject}")
    configuration = only(objects, "ValidatingWebhookConfiguration")
    assert configuration["metadata"]["annotations"] == {"cert-manager.io/inject-ca-from": "gpubatch-system/admission"}
    pod = only(objects, "Deployment")["spec"]["template"]["spec"]
    [volume] = [v for v in pod["volumes"] if v["name"] == "admission"]
    [mount] = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "admission"]
    assert volume["secret"] == {"secretName": "admission-tls"}
    assert operator_env(objects)["GPUBATCH_ADMISSION_CERTIFICATE_FOLDER"] == mount["mountPath"]
    names = [n for o in objects if o["kind"] in ("Role", "ClusterRole") for r in o["rules"] for n in r["resources"]]
    assert "validatingwebhookconfigurations" not in names


# --- namespaced mode

WATCHED = "settings.watchNamespaces=search\\,ads"


def test_in_namespaced_mode_the_only_right_in_the_cluster_is_to_read_nodes(helm: str) -> None:
    objects = render(helm, "--set", f"{WATCHED},settings.admissionPort=0")
    assert allowed(only(objects, "ClusterRole", "-operator")) == {("nodes", "list"), ("nodes", "watch")}
    everywhere = render(helm, "--set", "settings.admissionPort=0,settings.httpPort=0")
    rights = {(r, v) for r, v in allowed(only(everywhere, "ClusterRole", "-operator")) if r != "nodes"}
    roles = {
        o["metadata"]["namespace"]: o
        for o in objects
        if o["kind"] == "Role" and o["metadata"]["name"].endswith("-jobs")
    }
    assert roles.keys() == {"search", "ads"}
    for role in roles.values():
        assert allowed(role) == rights
    bound = {o["metadata"]["namespace"] for o in objects if o["kind"] == "RoleBinding"}
    assert bound == {"search", "ads", "gpubatch-system"}
    assert operator_env(objects)["GPUBATCH_WATCH_NAMESPACES"] == "search,ads"


def test_the_operator_can_do_without_any_cluster_role(helm: str) -> None:
    for webhook in ("settings.admissionPort=0", "admission.certificateSecret=tls"):
        objects = render(helm, "--set", f"{WATCHED},settings.readNodes=false,{webhook}")
        assert not [o for o in objects if o["kind"] == "ClusterRoleBinding"]
        assert operator_env(objects)["GPUBATCH_READ_NODES"] == "false"
    with pytest.raises(ValueError, match="watchNamespaces"):
        render(helm, "--set", "settings.readNodes=false")


def test_the_webhook_is_asked_only_about_namespaces_that_are_watched(helm: str) -> None:
    [webhook] = only(render(helm, "--set", WATCHED), "ValidatingWebhookConfiguration")["webhooks"]
    [expression] = webhook["namespaceSelector"]["matchExpressions"]
    assert expression["values"] == ["search", "ads"]


# --- optional parts

EVERYTHING = (
    "metrics.serviceMonitor.enabled=true,metrics.rules.enabled=true,metrics.dashboard.enabled=true,"
    "networkPolicy.enabled=true,networkPolicy.runnerNamespaces={search},networkPolicy.metricsFrom[0].podSelector.a=null,"
    "settings.modelCacheClaim=models,modelCache.namespaces={search},crds.annotations.a=b"
)


def test_it_renders_the_same_bytes_each_time(helm: str) -> None:
    command = [helm, "template", "gpubatch", CHART, "--kube-version", KUBERNETES[0], "--set", EVERYTHING]
    first, second = (subprocess.check_output(command) for _ in range(2))
    assert first == second
    assert b"kind: ServiceMonitor" in first


def test_a_service_monitor_finds_the_metrics_service_and_no_other(helm: str) -> None:
    objects = render(helm, "--set", "metrics.serviceMonitor.enabled=true,metrics.serviceMonitor.labels.release=prom")
    monitor = only(objects, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    found = [o for o in objects if o["kind"] == "Service" and wanted <= o["metadata"]["labels"].items()]
    assert [o["metadata"]["name"] for o in found] == ["gpubatch-metrics"]
    assert monitor["spec"]["endpoints"][0]["port"] in {p["name"] for p in found[0]["spec"]["ports"]}
    assert monitor["metadata"]["labels"]["release"] == "prom"
    with pytest.raises(ValueError, match=r"metrics\.service\.enabled"):
        render(helm, "--set", "metrics.serviceMonitor.enabled=true,metrics.service.enabled=false")


def test_the_claim_of_the_model_cache_outlives_the_release(helm: str) -> None:
    claim = only(render(helm, "--set", EVERYTHING), "PersistentVolumeClaim")
    assert (claim["metadata"]["name"], claim["metadata"]["namespace"]) == ("models", "search")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    with pytest.raises(ValueError, match="modelCacheClaim"):
        render(helm, "--set", "modelCache.namespaces={search}")


def test_the_test_pod_is_locked_down_and_let_in_where_metrics_are_restricted(helm: str) -> None:
    objects = render(helm, "--set", EVERYTHING)
    pod = only(objects, "Pod", "-test")
    [container] = pod["spec"]["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not pod["spec"]["automountServiceAccountToken"]
    rule = next(r for r in only(objects, "NetworkPolicy", "gpubatch")["spec"]["ingress"] if "from" in r)
    assert any(peer.get("podSelector", {}).get("matchLabels") == pod["metadata"]["labels"] for peer in rule["from"])
    off = render(helm, "--set", "metrics.service.enabled=false,settings.admissionPort=0")
    assert not [o for o in off if o["kind"] == "Pod"]


# --- the gateway


def test_without_the_gateway_nothing_of_it_is_there(helm: str) -> None:
    assert "gateway" not in json.dumps([o for o in render(helm) if o["kind"] != "CustomResourceDefinition"])


def test_the_gateway_runs_locked_down_and_gets_its_settings(helm: str) -> None:
    pod = only(render(helm, *GATEWAY), "Deployment", "-gateway")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    environ = {e["name"]: e["value"] for e in container["env"]}
    assert gateway.load(environ) == gateway.Settings(namespace="gpubatch-system")
    named = render(helm, *GATEWAY, "--set", "settings.instance=ours")
    [container] = only(named, "Deployment", "-gateway")["spec"]["template"]["spec"]["containers"]
    assert {"name": "GPUBATCH_GATEWAY_LIVE_SECRET_NAME", "value": "ours-live"} in container["env"]
    assert environ.keys() == {f"GPUBATCH_GATEWAY_{name.upper()}" for name in gateway.Settings.model_fields}
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert claims == ["gpubatch-gateway"]


def test_the_gateway_may_do_what_it_does_and_reads_the_one_secret_of_live_jobs(helm: str) -> None:
    objects = render(helm, *GATEWAY, "--set", "settings.instance=ours")
    keys = only(objects, "Role", "-gateway-keys")
    assert keys["metadata"]["namespace"] == "gpubatch-system"
    assert keys["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["ours-live"], "verbs": ["get"]}
    ]
    assert allowed(only(objects, "ClusterRole", "-gateway")) == {
        *(("gpubatchjobs", verb) for verb in ("get", "list", "watch", "create", "patch")),
        *(("nodes", verb) for verb in ("list", "watch")),
        ("tokenreviews", "create"),
        ("subjectaccessreviews", "create"),
    }


def test_the_gateway_of_chosen_namespaces_has_rights_in_these_only(helm: str) -> None:
    objects = render(
        helm, *GATEWAY, "--set", "settings.watchNamespaces=a\\,b", "--set", "gateway.settings.readNodes=false"
    )
    assert allowed(only(objects, "ClusterRole", "-gateway")) == {
        ("tokenreviews", "create"),
        ("subjectaccessreviews", "create"),
    }
    roles = [o for o in objects if o["kind"] == "Role" and o["metadata"]["name"].endswith("-gateway")]
    assert [r["metadata"]["namespace"] for r in roles] == ["a", "b"]
    [container] = only(objects, "Deployment", "-gateway")["spec"]["template"]["spec"]["containers"]
    environ = {e["name"]: e["value"] for e in container["env"]}
    assert gateway.load(environ).namespaces_watched() == ("a", "b")


def test_the_gateway_with_a_bucket_has_keys_and_no_claim(helm: str) -> None:
    bucket = ("gateway.settings.storageUrl=s3://batches/x", "gateway.storageSecret=s3", "gateway.keysSecret=keys")
    objects = render(helm, *GATEWAY, *(word for value in bucket for word in ("--set", value)))
    assert not [o for o in objects if o["kind"] == "PersistentVolumeClaim"]
    pod = only(objects, "Deployment", "-gateway")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert mounted["credentials"] == "/gpubatch/credentials"
    assert mounted["keys"] == gateway.Settings().keys_folder
    assert {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v} == {
        "keys": "keys",
        "credentials": "s3",
    }


def test_the_models_of_the_chart_can_be_used(helm: str, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("gateway: {enabled: true, models: {minilm: {gpus: 1, inference: {model: a/b}}}}\n")
    found = only(render(helm, "-f", str(values)), "ConfigMap", "-models")
    assert set(models.read(found["data"]["models.yaml"]).templates) == {"minilm"}


def test_users_may_use_files_and_live_requests_of_the_gateway_where_there_is_one(helm: str) -> None:
    for arguments, there in (((), False), (GATEWAY, True)):
        edit, view = (allowed(only(render(helm, *arguments), "ClusterRole", name)) for name in ("-edit", "-view"))
        assert (("gpubatchjobs/files", "create") in edit) is there
        assert ({("gpubatchjobs/requests", verb) for verb in ("get", "list", "create")} <= edit) is there
        assert "gpubatchjobs/requests" not in {resource for resource, _ in view}
