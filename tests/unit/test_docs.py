"""The documentation says what the code says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter
from pydantic.alias_generators import to_camel

from gpubatch_cli.app import gpubatch
from gpubatch_gateway import metrics as gateway_metrics
from gpubatch_gateway import settings as gateway
from gpubatch_operator import metrics
from gpubatch_operator.api.crd import crd
from gpubatch_operator.api.spec import JobSpec
from gpubatch_operator.core import reasons
from gpubatch_operator.core.phases import CHANGES, Phase
from gpubatch_operator.settings import Settings
from gpubatch_runner import contract

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *ROOT.glob("examples/webhooks/*.md"),
    *ROOT.glob("*.md"),
    *DOCS.glob("*.md"),
    *(ROOT / folder / "README.md" for folder in ("charts/gpubatch", "examples", "examples/gitops", "hack")),
]
README = (ROOT / "README.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language; indented ones lose their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading, by their first cell without backticks."""
    section = re.split(rf"^#+ {heading}$", page, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, flags=re.MULTILINE)[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    return {name.strip("`"): rest for name, *rest in cells[2:]}


def unknown_fields(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    """The fields of a manifest that the CRD doesn't have, and kubectl would refuse."""
    if isinstance(value, list):
        return [f for item in value for f in unknown_fields(item, schema["items"], path)]
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    found = []
    for key, item in value.items():
        below = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
        found += unknown_fields(item, below, f"{path}.{key}") if below else [f"{path}.{key}"]
    return found


# --- the API


def test_the_readmes_job_is_valid_to_the_last_field() -> None:
    [manifest] = [doc for text in blocks(README, "yaml") if "kind" in (doc := yaml.safe_load(text))]
    assert manifest["apiVersion"] == "gpubatch.dev/v1alpha1"
    JobSpec.model_validate(manifest["spec"])
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert unknown_fields(manifest["spec"], schema, "spec") == []


def test_an_unknown_field_would_be_found() -> None:
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert unknown_fields({"webhooks": [{"uri": "x"}]}, schema, "spec") == ["spec.webhooks.uri"]


def test_the_api_reference_is_fresh() -> None:
    check = subprocess.run([sys.executable, ROOT / "hack" / "apidocs", "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


def test_the_diagram_of_phases_shows_every_change_and_no_other() -> None:
    [diagram] = [text for text in blocks((DOCS / "design.md").read_text(), "mermaid") if "stateDiagram" in text]
    arrows = re.findall(r"^ *(\S+) --> (\w+)", diagram, re.MULTILINE)
    drawn = {(None if before == "[*]" else Phase(before), Phase(after)) for before, after in arrows}
    assert len(drawn) == len(arrows), "an arrow is drawn twice"
    assert drawn == {(before, after) for before, all_after in CHANGES.items() for after in all_after}


# --- what goes wrong


@pytest.mark.parametrize("reason", [*reasons.Reason, *contract.Reason], ids=str)
def test_every_reason_is_explained(reason: StrEnum) -> None:
    lines = (DOCS / "errors.md").read_text().splitlines()
    explained = [line for line in lines if line.startswith("|") and f"`{reason.value}`" in line]
    assert explained, f"docs/errors.md has no row about {reason.value}"


def test_every_explained_reason_exists() -> None:
    text = (DOCS / "errors.md").read_text()
    first_cells = {name for line in text.splitlines() if (m := re.match(r"\| (`[^|]*`) \|", line)) for name in [m[1]]}
    named = {name for cell in first_cells for name in re.findall(r"`([A-Z]\w+)`", cell)}
    assert named - {r.value for r in (*reasons.Reason, *contract.Reason)} == set()


# --- operation


def test_every_setting_is_in_the_operations_manual_with_its_default() -> None:
    table = rows((DOCS / "operations.md").read_text(), "Settings")
    defaults = {to_camel(name): field.default for name, field in Settings.model_fields.items()}
    assert {name: cells[0].strip("`") for name, cells in table.items()} == {n: str(d) for n, d in defaults.items()}
    assert all(cells[1] for cells in table.values()), "a setting without a word"


def test_every_metric_is_in_the_operations_manual_with_its_type() -> None:
    table = rows((DOCS / "operations.md").read_text(), "Metrics")
    found = {}
    for metric in vars(metrics).values():
        if hasattr(metric, "collect") and not isinstance(metric, (type, CollectorRegistry)):
            [family] = metric.collect()
            name = f"{family.name}_total" if isinstance(metric, Counter) else family.name
            found[name] = ", ".join([family.type, *(f"`{label}`" for label in metric._labelnames)])
    assert found, "no metrics found: has their module changed?"
    assert {name: cells[0] for name, cells in table.items()} == found


def test_every_setting_and_metric_of_the_gateway_is_in_its_page() -> None:
    page = (DOCS / "gateway.md").read_text()
    fields = {to_camel(name): field for name, field in gateway.Settings.model_fields.items()}
    assert rows(page, "Settings") == {name: [f"`{field.default}`", field.description] for name, field in fields.items()}
    families = [family for family in gateway_metrics.REGISTRY.collect() if family.name.startswith("gpubatch_")]
    counted = {f"{f.name}_total" if f.type == "counter" else f.name for f in families}
    assert rows(page, "Metrics").keys() == counted


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_called_json_is_json(page: Path) -> None:
    for text in blocks(page.read_text(), "json"):
        json.loads(text)


# --- links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = re.findall(r"`make ([^`]*)`", page.read_text()) + re.findall(r"^make (.*)$", page.read_text(), re.MULTILINE)
    for line in code:
        words = [w for w in line.partition("#")[0].split() if not w.startswith("-") and "=" not in w]
        assert set(words) <= targets, f"make {line}"


# --- commands


def shell_lines(page: Path) -> list[str]:
    """What a reader types: the lines of shell blocks, those with a backslash joined, and commands between backticks."""
    text = page.read_text()
    lines = [line for block in blocks(text, "sh") for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return lines + [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose) if " " in code]


def words_after(line: str, program: str) -> list[list[str]]:
    """The arguments of each call of a program in a line, up to a pipe, a comment or the end of a substitution."""
    calls = re.findall(rf"(?:^|\$\(|[|;] |\b(?:if|do|then) |kubectl ){program} ([a-z-][^|;#)]*)", line)
    return [shlex.split(re.sub(r"<\w+>|\[[^]]*\]", "x", call)) for call in calls]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_call_of_the_command_line_is_one_that_it_takes(page: Path) -> None:
    for line in shell_lines(page):
        for name, *arguments in words_after(line.strip(), "gpubatch"):
            if name.startswith("-"):
                continue
            for one in name.split("|"):
                assert one in gpubatch.commands, f"{line}: no command {one}"
                command = gpubatch.commands[one]
                with click.Context(command) as ctx:
                    command.make_parser(ctx).parse_args(list(arguments))  # raises for an option that there isn't


def test_a_call_with_an_option_that_there_is_not_would_be_found() -> None:
    [[name, *arguments]] = words_after("job=$(gpubatch wait --foo x)", "gpubatch")
    command = gpubatch.commands[name]
    with click.Context(command) as ctx, pytest.raises(click.NoSuchOption):
        command.make_parser(ctx).parse_args(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_patch_of_a_job_names_fields_that_there_are(page: Path) -> None:
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for line in shell_lines(page):
        if patch := re.search(r"kubectl .*patch gbj .*-p '([^']*)'", line):
            assert unknown_fields(json.loads(patch[1])["spec"], schema, "spec") == [], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_value_that_helm_is_told_to_set_exists(page: Path) -> None:
    values = yaml.safe_load((ROOT / "charts" / "gpubatch" / "values.yaml").read_text())
    for line in shell_lines(page):
        for key in re.findall(r"--set(?:-json|-string)? '?([A-Za-z.]+)=", line) if "helm" in line else []:
            found: Any = values
            for part in key.split("."):
                assert isinstance(found, dict) and part in found, f"{line}: the chart has no value {key}"  # noqa: PT018
                found = found[part]


def test_the_reference_of_the_command_line_is_fresh() -> None:
    check = subprocess.run([sys.executable, ROOT / "hack" / "clidocs", "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_status_of_openais_batches_is_in_the_migration_guide() -> None:
    table = rows((DOCS / "migration.md").read_text(), "A batch server with OpenAI's API")
    statuses = {name.split("`")[0] for name in table}
    known = {"validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"}
    assert known <= statuses
    phases = {phase.value for phase in Phase}
    assert phases - {word for cells in table.values() for word in re.findall(r"`(\w+)`", cells[0])} == set()


def test_every_field_of_a_job_in_the_migration_guide_exists() -> None:
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]

    def names(part: dict[str, Any]) -> set[str]:
        below = [*part.get("properties", {}).values(), *([part["items"]] if "items" in part else [])]
        return set(part.get("properties", {})).union(*(names(each) for each in below))

    fields = names(schema["spec"]) | names(schema["status"])
    text = (DOCS / "migration.md").read_text()
    for path in re.findall(r"`(?:spec|status)\.([A-Za-z.]+)", text):
        assert set(path.strip(".").split(".")) <= fields, path
