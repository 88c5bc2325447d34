"""Draws the dashboard, so that somebody can look at it where there is no Grafana.

    python tests/operations/look.py OUT.html [SECONDS]

Starts a real origin, a sidecar under load and Prometheus, asks every query of dashboard.json, and draws
each panel at its place: lines, values, titles. What Grafana adds (hovering, zooming) is not there.
"""

import html
import sys
import tempfile
import time
from pathlib import Path

import conftest
import harness
from observed import Observed, Prometheus
from test_metrics import dashboard

COLUMN, ROW = 58, 34
COLOURS = ["#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0"]


def filled(expression):
    for variable, value in {
        "$__rate_interval": "10s", "$__range": "2m", "$job": ".*", "$instance": ".*",
        "$price_gb": "0.09", "$price_requests": "0.0004",
    }.items():
        expression = expression.replace(variable, value)
    return expression


def said(value, unit):
    """A number as Grafana would say it, roughly."""
    if unit == "percentunit":
        return f"{value * 100:.0f} %"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s" if value < 3600 else f"{value / 86400:.1f} d"
    if unit in ("bytes", "Bps"):
        for factor, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if value >= factor:
                return f"{value / factor:.3g} {name}" + ("/s" if unit == "Bps" else "")
    if unit == "currencyUSD":
        return f"${value:.3g}"
    return f"{value:.3g}"


def legend(template, labels):
    for name, value in labels.items():
        template = template.replace("{{" + name + "}}", value)
    return template or ", ".join(labels.values())


def lines(panel, prometheus, begun):
    found = []
    for target in panel["targets"]:
        for one in prometheus.range(filled(target["expr"]), begun):
            points = [(at, float(value)) for at, value in one["values"] if value not in ("NaN", "+Inf")]
            if points:
                found.append((legend(target["legendFormat"], one["metric"]), points))
    return found


def drawn(panel, prometheus, begun, now):
    place, unit = panel["gridPos"], panel["fieldConfig"]["defaults"]["unit"]
    x, y, width, height = place["x"] * COLUMN, place["y"] * ROW, place["w"] * COLUMN - 8, place["h"] * ROW - 8
    out = [f'<g transform="translate({x},{y})"><rect width="{width}" height="{height}" fill="#181b1f"/>',
           f'<text x="8" y="18" fill="#ccc">{html.escape(panel["title"])}</text>']
    found = lines(panel, prometheus, begun)
    if panel["type"] == "stat":
        value = said(found[0][1][-1][1], unit) if found else "no data"
        out.append(f'<text x="10" y="{height * 0.75}" font-size="34" fill="#7eb26d">{value}</text>')
    elif not found:
        out.append(f'<text x="{width / 2 - 30}" y="{height / 2}" fill="#a66">no data</text>')
    else:
        top = max(value for _, points in found for _, value in points) or 1
        left, upper, lower = 64, 30, height - 44
        for step in (0, 0.5, 1):
            level = lower - (lower - upper) * step
            out.append(f'<line x1="{left}" x2="{width - 8}" y1="{level}" y2="{level}" stroke="#333"/>')
            out.append(f'<text x="4" y="{level + 4}" fill="#888" font-size="10">{said(top * step, unit)}</text>')
        for index, (_, points) in enumerate(found):
            path = " ".join(
                f"{left + (at - begun) / (now - begun) * (width - left - 8):.1f},{lower - value / top * (lower - upper):.1f}"
                for at, value in points
            )
            out.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[index % 8]}"/>')
        across = 8
        for index, (name, _) in enumerate(found[:8]):
            name = name[:26]
            out.append(
                f'<text x="{across}" y="{height - 8 - 14 * (index // 4)}" font-size="10" '
                f'fill="{COLOURS[index % 8]}">{html.escape(name)}</text>'
            )
            across = 8 if index % 4 == 3 else across + 12 + 6 * len(name)
    return "".join(out) + "</g>"


def page(prometheus, begun):
    now, parts, bottom = time.time(), [], 0
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        bottom = max(bottom, (place["y"] + place["h"]) * ROW)
        if panel["type"] == "row":
            parts.append(f'<text x="4" y="{place["y"] * ROW + 22}" font-size="17" fill="#fff">{panel["title"]}</text>')
        else:
            parts.append(drawn(panel, prometheus, begun, now))
    return (
        f'<html><body style="margin:0;background:#111217"><svg xmlns="http://www.w3.org/2000/svg" '
        f'width="{24 * COLUMN}" height="{bottom}" font-family="sans-serif" font-size="13">{"".join(parts)}</svg></body></html>'
    )


def main(out, seconds):
    origins = harness.Origins(["versitygw", "local"])
    observed = Observed(origins)
    with tempfile.TemporaryDirectory() as folder:
        rules = [conftest.ROOT / "examples/monitoring/alerts.yaml"]
        prometheus = Prometheus(folder, [("warpdrive", observed.metrics)], rules)
        try:
            begun = time.time()
            observed.start_load()
            time.sleep(seconds / 2)
            observed.kill_worker()
            observed.outage(6)
            time.sleep(seconds / 2)
            Path(out).write_text(page(prometheus, begun))
        finally:
            prometheus.close()
            observed.close()
            origins.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 40)
