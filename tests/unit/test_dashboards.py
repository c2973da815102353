"""ops/prometheus and ops/grafana ask for what workers export, in PromQL that parses, and say what they show.

Expressions are parsed by promql-parser. What the alerts do over time is in ops/prometheus/rules_test.yml,
which promtool runs where it is installed.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import prometheus_client
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import AggregateExpr, BinaryExpr, Expr, VectorSelector

from jobs.settings import Settings
from tests.unit.worker.test_metrics import exercised
from worker.metrics import Metrics

ROOT = Path(__file__).parents[2]
PROMETHEUS, GRAFANA = ROOT / "ops" / "prometheus", ROOT / "ops" / "grafana"
CONFIG = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
GROUPS = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
DASHBOARD = json.loads((GRAFANA / "dashboards" / "longhaul.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

#: What Prometheus adds to every series that it reads.
TARGET = {"job", "instance"}
#: What Prometheus makes of the alerts themselves.
OWN_SERIES = {"ALERTS": {"alertname", "alertstate", "severity"}}


#: Each expression with the place where it stands.
EXPRESSIONS = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in RULES] + [
    (panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]
]


def parsed(text: str) -> Expr:
    """As Grafana would ask: with a range for its variable."""
    expr: Expr = promql_parser.parse(text.replace("$__rate_interval", "5m"))
    return expr


def nodes(expr: Expr) -> list[Expr]:
    found: list[Expr] = []
    promql_parser.walk(expr, found.append)
    return found


def selected(expr: Expr) -> list[str]:
    """The names of the series that an expression asks for."""
    return [str(node.name) for node in nodes(expr) if isinstance(node, VectorSelector)]


def family(name: str) -> str:
    """A series without what a histogram appends to its name."""
    return re.sub(r"_(sum|count|bucket)$", "", name)


def exported() -> dict[str, set[str]]:
    """Every series that a worker exports, with its labels."""
    metrics = exercised(Metrics(model="m", group="cpu:0"))
    text = prometheus_client.generate_latest(metrics.registry).decode()
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def known() -> dict[str, set[str]]:
    """What can be asked for."""
    records = {rule["record"]: {"model"} for rule in RULES if "record" in rule}
    return {name: labels | TARGET for name, labels in exported().items()} | records | OWN_SERIES


def mistakes(text: str) -> list[str]:
    """What an expression asks for that is not there."""
    labels = known()
    found: list[str] = []
    for node in nodes(parsed(text)):
        if isinstance(node, VectorSelector):
            found += [] if node.name in labels else [str(node.name)]
            asked = {matcher.name for matcher in node.matchers.matchers}
        elif isinstance(node, AggregateExpr) and node.modifier is not None:
            asked = set(node.modifier.labels)
        elif (
            isinstance(node, BinaryExpr) and node.modifier is not None and node.modifier.matching is not None
        ):
            asked = set(node.modifier.matching.labels)
        else:
            continue
        found += sorted(asked.difference(*(labels.get(name, set()) for name in selected(node))))
    return found


def aggregated(text: str) -> set[str]:
    """The labels that an expression's aggregations keep; none where it has none."""
    kept: set[str] = set()
    for node in nodes(parsed(text)):
        if isinstance(node, AggregateExpr) and node.modifier is not None:
            kept.update(node.modifier.labels)
    return kept


@pytest.mark.parametrize("text", [text for _, text in EXPRESSIONS], ids=[place for place, _ in EXPRESSIONS])
def test_every_series_and_label_asked_for_is_exported(text: str) -> None:
    assert mistakes(text) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("sum(rate(longhaul_line_total[5m]))", ["longhaul_line_total"]),
        ('sum(rate(longhaul_lines_total{result="x"}[5m]))', ["result"]),
        ("sum by (job, outcom) (longhaul_lines_total)", ["outcom"]),
        ("longhaul_leases_held / on (model, how) longhaul_kv_cache_used_ratio", ["how"]),
    ],
)
def test_a_mistake_would_be_seen(text: str, wrong: list[str]) -> None:
    assert mistakes(text) == wrong


def test_every_series_exported_is_looked_at() -> None:
    asked = {family(name) for _, text in EXPRESSIONS for name in selected(parsed(text))}
    assert {family(name) for name in exported()} - asked == set()


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_every_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert target["legendFormat"]
        variables = set(re.findall(r"\$(\w+)", target["expr"]))
        named = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
        assert variables <= named | {"__rate_interval"}


def test_panels_have_their_own_numbers_and_places() -> None:
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert cells.isdisjoint(taken), panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_rules_have_the_form_of_rules() -> None:
    names = [rule.get("alert") or rule["record"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule.keys() <= {"alert", "record", "expr", "for", "labels", "annotations"}
        if "for" in rule:
            promql_parser.parse_duration(rule["for"])


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_every_alert_says_what_it_saw_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["alert"].startswith("Longhaul")
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    summary, description = alert["annotations"]["summary"], alert["annotations"]["description"]
    assert "$value" in description
    assert description.count(".") >= 2, "what is, and what to do about it"
    kept = aggregated(alert["expr"]) or set.intersection(
        *(known()[name] for name in selected(parsed(alert["expr"])))
    )
    assert set(re.findall(r"\$labels\.(\w+)", summary + description)) <= kept
    for name in re.findall(r"LONGHAUL_(\w+)", description):
        assert name.lower() in Settings.model_fields, name


def test_every_alert_is_tried() -> None:
    text = (PROMETHEUS / "rules_test.yml").read_text()
    assert set(re.findall(r"\bLonghaul\w+", text)) == {alert["alert"] for alert in ALERTS}


def test_promtool_agrees() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; on Debian it comes with the package prometheus")
    for arguments in (("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")):
        done = subprocess.run(
            [promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_finds_every_group_of_every_composed_worker() -> None:
    (scrape,) = CONFIG["scrape_configs"]
    workers = {name for name in COMPOSE if name.startswith("worker-")}
    ports = [found["port"] for found in scrape["dns_sd_configs"]]
    for found in scrape["dns_sd_configs"]:
        assert set(found["names"]) == workers
    for name in workers:
        environment = COMPOSE[name]["environment"]
        groups = environment["LONGHAUL_DEVICE_GROUPS"].count(";") + 1
        first = int(environment["LONGHAUL_METRICS_PORT"])
        assert ports == list(range(first, first + 8))
        assert groups <= len(ports)
        assert environment["LONGHAUL_METRICS_HOST"] == "0.0.0.0"  # noqa: S104 - inside a container


def test_the_files_that_prometheus_reads_are_there() -> None:
    (scrape,) = CONFIG["scrape_configs"]
    others = [file for found in scrape["file_sd_configs"] for file in found["files"]]
    for name in [*CONFIG["rule_files"], *others]:
        assert (PROMETHEUS / name).is_file(), name
    assert "./ops/prometheus:/etc/prometheus:ro" in COMPOSE["prometheus"]["volumes"]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert COMPOSE["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    assert source["jsonData"]["timeInterval"] == CONFIG["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "longhaul.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in COMPOSE["grafana"]["volumes"])
    assert mounts["./ops/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./ops/grafana/provisioning"] == "/etc/grafana/provisioning"
    home = COMPOSE["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/longhaul.json"


def test_the_guide_lists_every_series_and_every_alert() -> None:
    text = (ROOT / "docs" / "how-to" / "monitor.md").read_text()
    listed = re.findall(r"^\| `(longhaul_\w+)", text, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    assert set(listed) == {family(name) for name in exported()}
    assert re.findall(r"^\| `(Longhaul\w+)`", text, re.MULTILINE) == [alert["alert"] for alert in ALERTS]
