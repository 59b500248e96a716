"""The alerts and the dashboard as Prometheus itself reads them: `promtool` checks the chart's rendering."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpubatch_operator import metrics

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "gpubatch"
CASES = ROOT / "tests" / "support" / "alerts" / "alerts_test.yaml"
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def tool(name: str) -> str:
    return subprocess.check_output([ROOT / "hack" / "cluster", "tool", name], text=True).strip()


@pytest.fixture(scope="module")
def promtool() -> str:
    return tool("promtool")


@pytest.fixture(scope="module")
def rule() -> dict[str, Any]:
    """The PrometheusRule as Helm renders it."""
    command = [tool("helm"), "template", "gpubatch", CHART, "--kube-version", "1.35.0", "--set"]
    out = subprocess.check_output([*command, "metrics.rules.enabled=true,metrics.rules.alertLabels.team=ml"])
    [found] = [o for o in yaml.safe_load_all(out) if o and o["kind"] == "PrometheusRule"]
    return dict(found)


def series() -> set[str]:
    """The names of all series that the operator may expose."""
    names: set[str] = set()
    for metric in vars(metrics).values():
        if hasattr(metric, "collect") and not isinstance(metric, type):
            [family] = metric.collect()
            ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            names |= {family.name + end for end in ends}
    return names


def alerts(rule: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(alert) for group in rule["spec"]["groups"] for alert in group["rules"]]


def test_prometheus_takes_the_rules(promtool: str, rule: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    subprocess.run([promtool, "check", "rules", "--lint-fatal", tmp_path / "rules.yaml"], check=True)


def test_each_alert_fires_when_it_should_and_stays_silent_in_good_times(
    promtool: str, rule: dict[str, Any], tmp_path: Path
) -> None:
    bare = copy.deepcopy(rule["spec"])
    for alert in bare["groups"][0]["rules"]:
        del alert["annotations"]  # sentences with numbers in them; `check rules` has parsed their templates
        del alert["labels"]["team"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(bare))
    (tmp_path / "test.yaml").write_text(CASES.read_text())
    done = subprocess.run([promtool, "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = {
        case["alertname"] for t in yaml.safe_load(CASES.read_text())["tests"] for case in t.get("alert_rule_test", [])
    }
    assert tested == {alert["alert"] for alert in alerts(rule)}


def test_each_alert_leads_to_its_runbook(rule: dict[str, Any]) -> None:
    headings = re.findall(r"^#+ (GPUBatch\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert headings == [alert["alert"] for alert in alerts(rule)]
    for alert in alerts(rule):
        page, _, anchor = alert["annotations"]["runbook_url"].rpartition("#")
        assert page.endswith("docs/operations.md")
        assert anchor == alert["alert"].lower()
        assert alert["labels"] == {"severity": alert["labels"]["severity"], "team": "ml"}


def test_prometheus_takes_each_query_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    plain = [query.replace("$__rate_interval", "5m") for query in QUERIES]
    rules = [{"record": f"panel:{i}", "expr": query} for i, query in enumerate(plain)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    subprocess.run([promtool, "check", "rules", "--lint=none", tmp_path / "rules.yaml"], check=True)


def test_alerts_and_dashboard_ask_for_series_that_there_are(rule: dict[str, Any]) -> None:
    asked = {
        name for text in [*QUERIES, *(a["expr"] for a in alerts(rule))] for name in re.findall(r"gpubatch_\w+", text)
    }
    assert asked - series() == set()


def test_the_dashboards_panels_dont_overlap() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for p in [panel["gridPos"]]
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
