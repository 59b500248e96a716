"""The CRD: generated, bounded everywhere, and it explains itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpubatch_operator.api.crd import FROZEN_ONCE_ADMITTED, crd
from gpubatch_operator.api.spec import JobSpec
from gpubatch_operator.core.phases import Phase
from unit.operator.build import inference_spec, template_spec
from unit.operator.schema import ROOT, violations

JSON = dict[str, Any]
FILE = Path(__file__).parents[3] / "crds" / "gpubatchjobs.yaml"
VERSION = crd()["spec"]["versions"][0]
SPEC = ROOT["spec"]


def parts(schema: JSON, path: str) -> Iterator[tuple[str, JSON]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from parts(below, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            yield from parts(schema[word], f"{path}[]")


EVERYTHING = [*parts(SPEC, "spec"), *parts(ROOT["status"], "status")]


def rules(schema: JSON) -> list[str]:
    return [r["rule"] for r in schema.get("x-kubernetes-validations", [])]


def test_the_file_is_what_the_generator_writes():
    assert yaml.safe_load(FILE.read_text()) == crd(), "run `make generate`"


@pytest.mark.parametrize(("path", "schema"), EVERYTHING, ids=[p for p, _ in EVERYTHING])
def test_every_string_list_and_map_is_bounded(path: str, schema: JSON):
    if schema.get("type") == "string":
        assert "maxLength" in schema or "enum" in schema
    if schema.get("type") == "array":
        assert "maxItems" in schema
        assert "x-kubernetes-list-type" in schema
    if "additionalProperties" in schema:
        assert "maxProperties" in schema


@pytest.mark.parametrize(("path", "schema"), EVERYTHING, ids=[p for p, _ in EVERYTHING])
def test_the_schema_is_structural(path: str, schema: JSON):
    assert not {"$ref", "$defs", "anyOf", "oneOf", "allOf", "title", "const", "nullable"} & schema.keys()
    assert "type" in schema or schema.get("x-kubernetes-int-or-string"), f"{path} has no type"


@pytest.mark.parametrize("name", sorted(SPEC["properties"]))
def test_kubectl_explain_says_something_about_each_field_of_spec(name: str):
    assert len(SPEC["properties"][name].get("description", "")) > 10


@pytest.mark.parametrize("name", sorted(SPEC["properties"]["inference"]["properties"]))
def test_and_about_each_field_of_an_inference_job(name: str):
    assert len(SPEC["properties"]["inference"]["properties"][name].get("description", "")) > 10


def test_a_job_has_exactly_one_workload_that_cannot_be_swapped():
    assert "has(self.inference) != has(self.template)" in rules(SPEC)
    assert any("has(self.inference) == has(oldSelf.inference)" in r for r in rules(SPEC))
    root = rules(VERSION["schema"]["openAPIV3Schema"])
    assert any("self.spec.inference == oldSelf.spec.inference" in r for r in root)


@pytest.mark.parametrize("field", FROZEN_ONCE_ADMITTED)
def test_what_placement_depends_on_is_frozen_once_the_job_is_admitted(field: str):
    assert field in SPEC["properties"]
    assert any(f"self.spec.{field} == oldSelf.spec.{field}" in r for r in rules(VERSION["schema"]["openAPIV3Schema"]))


@pytest.mark.parametrize("field", ["priorityClassName", "nodeName", "schedulerName", "restartPolicy"])
def test_a_template_may_not_set_what_the_operator_sets(field: str):
    assert f"!has(self.{field})" in rules(SPEC["properties"]["template"]["properties"]["spec"])


def test_every_rule_has_a_sentence_for_the_user():
    for _, schema in [*EVERYTHING, ("root", VERSION["schema"]["openAPIV3Schema"])]:
        for rule in schema.get("x-kubernetes-validations", []):
            assert len(rule["message"]) > 10


def test_kubectl_get_shows_what_people_ask_for():
    columns = {c["name"]: c for c in VERSION["additionalPrinterColumns"]}
    wanted = ["Phase", "Priority", "Position", "Progress", "Start", "Finish", "Node", "Age"]
    assert [n for n, c in columns.items() if c["priority"] == 0] == wanted
    assert {"Start-P90", "Finish-P90"} <= {n for n, c in columns.items() if c["priority"] == 1}
    assert {columns[n]["type"] for n in ("Start", "Finish", "Start-P90", "Finish-P90")} == {"string"}, (
        "kubectl prints future dates as <invalid>"
    )
    for c in columns.values():
        here: JSON = {"properties": ROOT | {"metadata": {"properties": {"creationTimestamp": {}}}}}
        for step in c["jsonPath"].strip(".").split("."):
            here = here["properties"][step]


def test_names_scope_and_status():
    spec = crd()["spec"]
    assert (spec["group"], spec["scope"], spec["names"]["shortNames"]) == ("gpubatch.dev", "Namespaced", ["gbj"])
    assert VERSION["subresources"] == {"status": {}}
    assert VERSION["schema"]["openAPIV3Schema"]["required"] == ["spec"]
    assert ROOT["status"]["properties"]["phase"]["enum"] == [p.value for p in Phase]
    conditions = ROOT["status"]["properties"]["conditions"]
    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])


@pytest.mark.parametrize("spec", [inference_spec(), template_spec(), inference_spec(priority=-1000, gpus=64)])
def test_good_manifests_are_taken(spec: JSON):
    assert violations(spec, SPEC, "spec") == []
    JobSpec.model_validate(spec)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (inference_spec(inference={}), "spec.inference: model"),
        (inference_spec(nodeSelector={"a": "x" * 64}), "spec.nodeSelector.a"),
        (inference_spec(gpuResource="no spaces"), "spec.gpuResource"),
        (inference_spec(webhooks=[{"url": "ftp://example.com"}]), "spec.webhooks[0].url"),
        (inference_spec(webhooks=[{"url": "https://example.com", "events": ["begun"]}]), "spec.webhooks[0].events"),
        (inference_spec(tolerations=[{"operator": "Maybe"}]), "spec.tolerations[0].operator"),
        ({"template": {"spec": {}}}, "spec.template.spec: containers"),
    ],
)
def test_bad_manifests_are_refused_with_the_field(spec: JSON, field: str):
    assert any(v.startswith(field) for v in violations(spec, SPEC, "spec"))


@pytest.mark.parametrize(
    "url", ["s3://bucket", "file:///etc/passwd", "gs://b", "az://c/", "", "configmap://only-a-name", "pvc://x/"]
)
def test_inputs_that_cannot_be_read_are_refused(url: str):
    spec = inference_spec()
    assert violations(spec | {"inference": spec["inference"] | {"input": {"url": url}}}, SPEC, "spec")


def test_the_longest_urls_of_a_job_fit_its_results():
    """Without `errors` the error file's URL is the output's and a suffix; it comes back in status."""
    longest = "s3://b/" + "x" * (4096 - len("s3://b/"))
    assert (
        violations(
            {"output": longest, "errors": f"{longest}.errors.jsonl"}, ROOT["status"]["properties"]["results"], ""
        )
        == []
    )
