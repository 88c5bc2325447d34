"""Every metric that alerts and dashboard name exists in a running program, and every query answers."""

import json
import re
import time

import conftest
import harness
import pytest
import yaml
from observed import ORIGIN, Observed, Prometheus

MONITORING = conftest.ROOT / "examples/monitoring"
# Series that come to be when something happens that a test cannot count on.
UNSEEN = {
    "warpdrive_cache_dropped_total": "a disk that is slower than the network, or full",
}
# Series of the other two programs of the cluster; their names are compared with what these export.
ELSEWHERE = ("warpdrive_webhook_", "warpdrive_csi_")


def dashboard():
    return json.loads((MONITORING / "dashboard.json").read_text())


def panels():
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries():
    """Title and expression of each query, with the dashboard's variables filled in."""
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in {
                "$__rate_interval": "10s", "$__range": "5m", "$job": ".*", "$instance": ".*",
                "$price_gb": "0.09", "$price_requests": "0.0004",
            }.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression, expression
            yield panel["title"], expression


def alert_expressions():
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def named(expression):
    """Families that an expression names: a histogram's series are one family."""
    without_values = re.sub(r'"[^"]*"', "", expression)
    found = re.findall(r"\b(?:warpdrive|process)_\w+", without_values)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def families(text):
    return set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


@pytest.fixture(scope="module")
def prometheus_and_sidecar(origins, tmp_path_factory):
    conftest.need(("prometheus", "prometheus"))
    reason = harness.can_mount()
    if reason:
        pytest.skip(reason)
    if ORIGIN in origins.skipped:
        if harness.REQUIRED:
            pytest.fail(f"required but not available: {origins.skipped[ORIGIN]}")
        pytest.skip(origins.skipped[ORIGIN])
    observed = Observed(origins)
    prometheus = None
    try:
        prometheus = Prometheus(
            tmp_path_factory.mktemp("prometheus"),
            [("warpdrive", observed.metrics)],
            [MONITORING / "alerts.yaml"],
        )
        begun = time.time()
        observed.start_load()
        time.sleep(12)
        observed.kill_worker()
        time.sleep(5)
        observed.outage(8)
        time.sleep(8)
        yield prometheus, observed, begun
    finally:
        if prometheus:
            prometheus.close()
        observed.close()


def test_every_metric_of_a_sidecar_that_is_named_exists(prometheus_and_sidecar):
    _, observed, _ = prometheus_and_sidecar
    there = families(observed.exposition())
    expressions = alert_expressions() + [expression for _, expression in queries()]
    wanted = set().union(*map(named, expressions))
    wanted = {name for name in wanted if not name.startswith(ELSEWHERE)}
    assert wanted - there - set(UNSEEN) == set()
    assert len(wanted) > 40, wanted


def test_every_query_of_the_dashboard_answers(prometheus_and_sidecar):
    prometheus, observed, begun = prometheus_and_sidecar
    silent = []
    for title, expression in queries():
        if any(name.startswith(ELSEWHERE) for name in named(expression)):
            prometheus.range(expression, begun)  # it is a valid query
            continue
        if named(expression) & set(UNSEEN):
            continue
        series = prometheus.range(expression, begun)
        # Reading ahead gives way to everything else, so on a busy machine there may be nothing to divide.
        nothing = () if "warpdrive_readahead_" in expression else ("NaN", "+Inf")
        values = [value for one in series for _, value in one["values"] if value not in nothing]
        if not values:
            silent.append(f"{title}: {expression}")
    assert not silent, "\n".join(silent) + "\n" + observed.log()


def test_the_queries_say_what_happened(prometheus_and_sidecar):
    """Not only some data: the restart, the outage and the refused clients are seen."""
    prometheus, _, begun = prometheus_and_sidecar

    def most(expression):
        series = prometheus.range(expression, begun)
        values = [float(value) for one in series for _, value in one["values"] if value != "NaN"]
        return max(values, default=0)

    assert most("warpdrive_worker_restarts_total") == 1
    assert most("warpdrive_mount_resumed") == 1
    assert most("warpdrive_mount_up") == 1
    assert most("warpdrive_ready") == 1
    assert most("warpdrive_backend_breaker_state") == 2
    assert most('rate(warpdrive_s3_auth_failures_total{reason="wrong_signature"}[10s])') > 0
    assert most('rate(warpdrive_fuse_errors_total{errno!="ENOENT"}[10s])') > 0, "the outage"
    # What is leased for a moment may be gone at each scrape; the bound is always there.
    assert most("warpdrive_memory_lease_bound_bytes") > 0
    assert most("warpdrive_memory_leased_bytes / warpdrive_memory_lease_bound_bytes") <= 1


def test_alerts_are_loaded_and_see_the_outage(prometheus_and_sidecar):
    prometheus, _, begun = prometheus_and_sidecar
    loaded = prometheus.ask("rules", type="alert")["groups"]
    rules = [rule for group in loaded for rule in group["rules"]]
    assert rules and all(rule["health"] in ("ok", "unknown") for rule in rules), rules
    seen = {one["metric"]["alertname"] for one in prometheus.range("ALERTS", begun)}
    assert {"WarpDriveOriginDown", "WarpDriveReadErrors"} <= seen, seen


def test_the_dashboard_is_one_that_grafana_can_load():
    found = dashboard()
    identities = [panel["id"] for panel in found["panels"]]
    assert len(identities) == len(set(identities))
    taken = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies over another panel"
                taken.add((x, y))
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
    variables = {variable["name"] for variable in found["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(found["panels"])))
    assert {name for name in used if not name.startswith("__")} <= variables


def test_a_sidecar_names_every_metric_with_help_and_type(prometheus_and_sidecar):
    """What `promtool check metrics` wants of an exposition."""
    import subprocess

    conftest.need(("promtool", "prometheus"))
    _, observed, _ = prometheus_and_sidecar
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=observed.exposition(), capture_output=True, text=True, timeout=30
    )
    # Exit status 3: remarks about style, such as a name that could be shorter. No error.
    assert done.returncode in (0, 3), done.stderr
    assert "error" not in done.stderr.lower().replace("errors", ""), done.stderr


def test_the_runbook_names_what_there_is(prometheus_and_sidecar):
    """Its metrics exist, and so do the keys of `stats --json` that it has people look at."""
    _, observed, _ = prometheus_and_sidecar
    text = (conftest.ROOT / "docs/runbook.md").read_text()
    there = families(observed.exposition())
    wanted = {name for name in named(text) if name.startswith("warpdrive_") and not name.startswith(ELSEWHERE)}
    assert wanted - there - set(UNSEEN) == set()
    status = observed.status()
    paths = [path.strip() for found in re.findall(r"jq '?([^`'\n]+)", text) for path in found.split(",")]
    assert len(paths) >= 5
    for path in paths:
        value = status
        for key in path.removeprefix(".").split("."):
            assert key in value, f"the runbook names {path}, which `stats --json` has not"
            value = value[key] or {}
