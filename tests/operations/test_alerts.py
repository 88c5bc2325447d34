"""The alert rules: well formed, explained in the runbook, firing when they should and only then."""

import re
import subprocess

import conftest
import pytest
import yaml
from alert_cases import AT, CASES, LATER

RULES = conftest.ROOT / "examples/monitoring/alerts.yaml"
RUNBOOK = conftest.ROOT / "docs/runbook.md"


def rules():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*arguments):
    conftest.need(("promtool", "prometheus"))
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_well_formed():
    promtool("check", "rules", "--lint-fatal", str(RULES))


def anchors(path):
    """The names that a heading can be linked by."""
    found = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_alert_says_what_to_do():
    known = anchors(RUNBOOK)
    for rule in rules():
        name, annotations = rule["alert"], rule["annotations"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert annotations["summary"] and annotations["description"], name
        path, _, anchor = annotations["runbook"].partition("#")
        assert conftest.ROOT / path == RUNBOOK, name
        assert anchor == name.lower() and anchor in known, f"{name}: no section `{anchor}` in {path}"
        # An alert over a state waits; one over an increase has happened already.
        assert "for" in rule or "increase(" in rule["expr"], f"{name}: fires at the first sample"


def test_the_runbook_has_no_section_of_an_alert_that_is_gone():
    sections = re.findall(r"^### (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(rule["alert"] for rule in rules())


def test_every_section_of_the_runbook_fits_a_screen_and_says_what_to_look_at():
    sections = re.split(r"^### ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
    for section in sections:
        name = section.splitlines()[0]
        assert "\n- Look" in section and ("- Do:" in section or "Look and do" in section), name
        assert len(section.splitlines()) <= 25, name


def with_labels(series, labels):
    """A selector with more labels."""
    name, brace, rest = series.partition("{")
    rest = rest.rstrip("}")
    return f"{name}{{{labels}{',' + rest if brace and rest else ''}}}"


def case(alert, series, fires):
    count = 1 if fires else 0
    minutes = LATER.get(alert, AT)
    values = {}
    for selector, samples in series.items():
        # As long as the case is.
        samples = re.sub(r"x55$", f"x{minutes + 5}", samples)
        values[with_labels(selector, 'job="warpdrive",instance="a"')] = samples
    return {
        "interval": "1m",
        "name": f"{alert} {'fires' if fires else 'is quiet'}",
        "input_series": [{"series": selector, "values": samples} for selector, samples in values.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": "{}", "value": count}],
            }
        ],
    }


@pytest.mark.parametrize("alert", [rule["alert"] for rule in rules()])
def test_it_fires_when_it_should_and_only_then(alert, tmp_path):
    assert alert in CASES, f"tests/operations/alert_cases.py has no case of {alert}"
    fires, quiet = CASES[alert]
    file = tmp_path / "cases.yaml"
    cases = [case(alert, fires, True), case(alert, quiet, False), case(alert, {}, False)]
    file.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": cases})
    )
    promtool("test", "rules", str(file))


def test_no_case_is_left_over():
    assert set(CASES) == {rule["alert"] for rule in rules()}


@pytest.mark.parametrize("name", ["alerts.yaml", "dashboard.json"])
def test_the_chart_has_the_same(name):
    """Helm packages what lies in the chart's own directory only, so there is a copy."""
    copy = conftest.ROOT / "charts/warpdrive/files" / name
    assert copy.read_text() == (RULES.parent / name).read_text(), f"cp examples/monitoring/{name} {copy}"
