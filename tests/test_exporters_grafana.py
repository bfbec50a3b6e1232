"""The dashboard, the alert rules and the metrics table in the examples ask for what is exported, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from smcache import SecretCache
from smcache.exporters.prometheus import CacheCollector

if TYPE_CHECKING:
    from smcache.testing import PostgreSQL, SecretsManager

GRAFANA = Path(__file__).parent.parent / "examples" / "grafana"
# PromQL as far as these files use it; whatever is left over is a slip of the pen.
TOKEN = re.compile(
    r"""
    (?P<matchers> \{ (?: \w+ (?:=~|!~|!=|=) "[^"]*" ,?\s* )* \} )
    | (?P<range> \[ (?: \$__rate_interval | \$__range | \d+[smhd] ) \] (?: \s offset \s \d+[smhd] )? )
    | (?P<labels> \bby\s* \( [\w\s,]+ \) )
    | (?P<function> \b (?: sum | rate | increase | last_over_time | histogram_quantile ) \b )
    | (?P<metric> \b smcache_\w+ )
    | (?P<number> \b [\d.]+ )
    | (?P<operator> [-+*/>,] | \b (?: or | unless ) \b )
    | (?P<bracket> [()] )
    """,
    re.VERBOSE,
)


def dashboard() -> dict[str, Any]:
    text = (GRAFANA / "dashboard.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((GRAFANA / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return panels + [rule["expr"] for rule in rules()]


def tokens(expression: str) -> list[tuple[str, str]]:
    """Return the kinds and texts of an expression's tokens."""
    assert TOKEN.sub("", expression).strip() == ""
    return [(str(match.lastgroup), match.group()) for match in TOKEN.finditer(expression)]


def exported() -> dict[str, str]:
    """Return the types of all series that there are, by name, before anything has happened."""
    registry = CollectorRegistry()
    registry.register(CacheCollector({"app": SecretCache()}))
    types = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        names = {sample.name for sample in family.samples} or {f"{family.name}_total"}  # none yet of its label
        types.update(dict.fromkeys(names, family.type))
    return types


def asked() -> set[str]:
    """Return the metrics that panels and alerts ask for."""
    return {text for each in expressions() for kind, text in tokens(each) if kind == "metric"}


def test_every_metric_asked_for_is_exported() -> None:
    variables = json.dumps(dashboard()["templating"])
    assert asked() | set(re.findall(r"smcache_\w+", variables)) <= set(exported())


def test_the_dashboard_shows_all_that_is_exported_but_for_details() -> None:
    details = {"smcache_backoff_seconds_total", "smcache_answers_total"}
    details |= {f"smcache_api_call_duration_seconds_{part}" for part in ("count", "sum")}
    assert set(exported()) - asked() == details


@pytest.mark.parametrize("expression", expressions())
def test_expressions_are_well_formed(expression: str) -> None:
    """Brackets match, counters are read over a range, but for those of new processes, and gauges are not."""
    found = tokens(expression)
    depth = 0
    for _, text in found:
        depth += {"(": 1, ")": -1}.get(text, 0)
        assert depth >= 0
    assert depth == 0
    types = exported()
    for place, (kind, text) in enumerate(found):
        if kind != "metric":
            continue
        following = [kind for kind, _ in found[place + 1 : place + 3] if kind in {"matchers", "range"}]
        over_time = place > 1 and found[place - 2][1] in {"rate", "increase", "last_over_time"}
        is_new = found[place + 1][1:] == ("unless",)
        assert over_time == ("range" in following) == (types[text] in {"counter", "histogram"} and not is_new), text


def test_the_panels_have_titles_units_and_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["title"] for panel in panels}) == len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_what_is_counted_over_the_whole_time_shown_is_asked_for_once() -> None:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            assert target.get("instant", False) == ("[$__range]" in target["expr"])


def test_there_are_three_alerts_and_each_says_what_to_do() -> None:
    found = rules()
    assert [rule["alert"] for rule in found] == [
        "SmcacheServesStaleValues",
        "SmcacheThrottled",
        "SmcacheLoginsDoNotRecover",
    ]
    for rule in found:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"warning", "critical"}


needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments: str) -> None:
    subprocess.run(["promtool", *arguments], check=True, timeout=60)  # noqa: S603, S607 - whichever is installed


@needs_promtool
def test_prometheus_itself_takes_the_rules() -> None:
    promtool("check", "rules", str(GRAFANA / "alerts.yml"))


@needs_promtool
@pytest.mark.parametrize(
    ("alert", "counter", "scrapes", "firing"),
    [
        ("SmcacheServesStaleValues", "smcache_stale_served_total", "0 0 1+1x8 9x30", {5: False, 8: True, 20: False}),
        ("SmcacheServesStaleValues", "smcache_stale_served_total", "0 0 1x40", {4: False, 7: False, 20: False}),
        ("SmcacheLoginsDoNotRecover", "smcache_auth_unrecovered_total", "0 0 1x40", {2: True, 30: False}),
        ("SmcacheLoginsDoNotRecover", "smcache_auth_unrecovered_total", "_ _ 1x40", {2: True, 30: False}),
        ("SmcacheLoginsDoNotRecover", "smcache_auth_unrecovered_total", "_ _ 0x40", {2: False, 30: False}),
        ("SmcacheLoginsDoNotRecover", "smcache_auth_unrecovered_total", "1x9 _x30 1x40", {30: False, 45: False}),
    ],
)
def test_an_alert_fires_as_long_as_there_is_reason_to(
    tmp_path: Path, alert: str, counter: str, scrapes: str, firing: dict[int, bool]
) -> None:
    """Prometheus itself decides, minute by minute."""
    labels = '{job="api", instance="a:1", cache="app"}'
    fired = [{"labels": f'{{alertname="{alert}"}}', "value": 1}]
    expected = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{minute}m",
            "exp_samples": fired if fires else [],
        }
        for minute, fires in firing.items()
    ]
    series = [{"series": counter + labels, "values": scrapes}]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": expected}
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(GRAFANA / "alerts.yml")], "tests": [test]}), encoding="utf-8")
    promtool("test", "rules", str(file))


def test_the_table_shows_a_run_in_which_everything_happens(aws: SecretsManager, pg: PostgreSQL) -> None:
    spec = importlib.util.spec_from_file_location("table", GRAFANA / "table.py")
    assert spec is not None
    assert spec.loader is not None
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.READS = 100
    with SecretCache(aws.client()) as cache:
        example.serve(cache, aws, pg)
        shown = dict(line.rsplit(maxsplit=1) for line in example.table(example.scrape(cache)).splitlines())
    assert shown["smcache_hits_total"] != "0"
    assert shown["smcache_throttles_total"] == "2"
    assert shown["smcache_rotations_seen_total"] == shown["smcache_auth_recoveries_total"] == "1"
    assert shown["smcache_auth_unrecovered_total"] == "0"
    assert shown['smcache_api_calls_total{operation="GetSecretValue"}'] != "0"
