#!/usr/bin/env python3
"""Writes the Grafana dashboard: deploy/monitoring/dashboard.py > deploy/monitoring/dashboard.json

The rows below are the dashboard. `tests/run monitoring` fails when the JSON is not what this prints.
"""

import json
import sys

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
NODE = 'instance=~"$node"'
GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "#8e8e8e"
STATES = {
    "fresh": GREEN,
    "adopted": BLUE,
    "waiting_for_token": "purple",
    "stale": YELLOW,
    "denied": "orange",
    "lost": RED,
}


def thresholds(*steps):
    """Colours from a value on; the first has none."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}


def target(ref, expr, legend):
    return {"datasource": DATASOURCE, "editorMode": "code", "expr": expr, "legendFormat": legend, "range": True, "refId": ref}


def panel(kind, title, description, width, height, queries, defaults, options, overrides=()):
    """`queries`: (expression, legend) each. Where it stands is decided by `placed`."""
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"h": height, "w": width, "x": 0, "y": 0},
        "targets": [target(chr(ord("A") + at), expr, legend) for at, (expr, legend) in enumerate(queries)],
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": options,
    }


def stat(title, description, expr, unit, steps):
    options = {
        "colorMode": "background",
        "graphMode": "none",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value",
    }
    defaults = {"unit": unit, "decimals": 0, "thresholds": thresholds(*steps)}
    return panel("stat", title, description, 3, 4, [(expr, "")], defaults, options)


def series(title, description, width, queries, unit, stacked=False, colors=None, legend=True):
    custom = {
        "drawStyle": "line",
        "fillOpacity": 40 if stacked else 8,
        "lineWidth": 1,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": legend},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    overrides = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"fixedColor": color, "mode": "fixed"}}],
        }
        for name, color in (colors or {}).items()
    ]
    defaults = {"unit": unit, "min": 0, "custom": custom}
    return panel("timeseries", title, description, width, 8, queries, defaults, options, overrides)


def quantiles(metric, labels, by=""):
    """p50 and p99 of a histogram."""
    selector = ", ".join(filter(None, [labels, NODE]))
    legend = "".join(f" {{{{{label}}}}}" for label in filter(None, by.split(", ")))
    groups = ", ".join(filter(None, ["le", by]))
    return [
        (f"histogram_quantile({q}, sum by ({groups}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))", f"p{q * 100:.0f}{legend}")
        for q in (0.5, 0.99)
    ]


ROWS = [
    ("At a glance", [
        stat("Nodes that answer", "Node plugins that could be scraped.",
             f'sum(up{{job="secretfs", {NODE}}})', "short", [(GREEN, None)]),
        stat("Nodes that do not", "Scraped in vain, or not registered with the kubelet: no pod with secrets starts there.",
             f'(count(up{{job="secretfs", {NODE}}} == 0) or vector(0)) + (count(secretfs_kubelet_registered{{{NODE}}} == 0) or vector(0))',
             "short", [(GREEN, None), (RED, 1)]),
        stat("Volumes", "Mounted now.", f"sum(secretfs_volumes{{{NODE}}})", "short", [(BLUE, None)]),
        stat("Volumes not fresh", "In any other state; the next row says which.",
             f'sum(secretfs_volumes{{state!="fresh", {NODE}}})', "short", [(GREEN, None), (YELLOW, 1)]),
        stat("Oldest content", "Since a store last confirmed the content that was confirmed longest ago.",
             f"max(time() - secretfs_oldest_content_timestamp_seconds{{{NODE}}})", "s", [(GREEN, None), (YELLOW, 3600), (RED, 21600)]),
        stat("Publishes that failed", "In the last hour. Those pods wait in ContainerCreating.",
             f'sum(increase(secretfs_rpc_duration_seconds_count{{method="NodePublishVolume", code!="OK", {NODE}}}[1h])) or vector(0)',
             "short", [(GREEN, None), (YELLOW, 1)]),
        stat("Fullest node", "What volumes were promised, of bytesPerNode. At 100 % new volumes are refused.",
             f'max(secretfs_memory_bytes{{kind="tmpfs_promised", {NODE}}} / ignoring (kind) secretfs_memory_bytes{{kind="limit", {NODE}}})',
             "percentunit", [(GREEN, None), (YELLOW, 0.7), (RED, 0.9)]),
        stat("Audit lost, panics", "Audit records that were dropped, and panics, in the last day.",
             f"sum(increase(secretfs_audit_records_dropped_total{{{NODE}}}[1d])) + sum(increase(secretfs_panics_total{{{NODE}}}[1d]))",
             "short", [(GREEN, None), (RED, 1)]),
    ]),
    ("Volumes and freshness", [
        series("Volumes by state", "See docs/monitoring.md for what each means and what to do.", 8,
               [(f"sum by (state) (secretfs_volumes{{{NODE}}})", "{{state}}")], "short", stacked=True, colors=STATES),
        series("Volumes not fresh, by node", "", 8,
               [(f'sum by (instance, state) (secretfs_volumes{{state!="fresh", {NODE}}}) > 0', "{{instance}} {{state}}")], "short"),
        series("Age of the oldest content, by node", "Grows while a store does not answer. With long refresh intervals it is long on good days too.", 8,
               [(f"time() - secretfs_oldest_content_timestamp_seconds{{{NODE}}}", "{{instance}}")], "s"),
    ]),
    ("Rotation", [
        series("Rotations", "ok: new files. unchanged: a source changed, the files did not. failed: the files could not be swapped.", 12,
               [(f"sum by (result) (rate(secretfs_rotations_total{{{NODE}}}[$__rate_interval])) * 60", "{{result}}")], "cpm",
               colors={"ok": GREEN, "unchanged": GREY, "failed": RED}),
        series("From a known change to the files", "", 12, quantiles("secretfs_rotation_duration_seconds", ""), "s"),
    ]),
    ("CSI calls", [
        series("Calls", "", 8,
               [(f"sum by (method) (rate(secretfs_rpc_duration_seconds_count{{{NODE}}}[$__rate_interval])) * 60 > 0", "{{method}}")], "cpm"),
        series("Calls that failed", "By method and gRPC code.", 8,
               [(f'sum by (method, code) (rate(secretfs_rpc_duration_seconds_count{{code!="OK", {NODE}}}[$__rate_interval])) * 60', "{{method}} {{code}}")], "cpm"),
        series("Duration of publish and unpublish", "Of a first publish and of the kubelet's repetitions together.", 8,
               quantiles("secretfs_rpc_duration_seconds", 'method=~"NodePublishVolume|NodeUnpublishVolume"', "method"), "s"),
    ]),
    ("Backends", [
        series("Requests", "", 8,
               [(f"sum by (backend, operation) (rate(secretfs_backend_requests_total{{{NODE}}}[$__rate_interval])) * 60 > 0", "{{backend}} {{operation}}")], "cpm"),
        series("Requests that failed", "By error code.", 8,
               [(f'sum by (backend, result) (rate(secretfs_backend_requests_total{{result!~"ok|not_modified", {NODE}}}[$__rate_interval])) * 60',
                 "{{backend}} {{result}}")], "cpm"),
        series("Duration of a request", "", 8, quantiles("secretfs_backend_request_duration_seconds", "", "backend"), "s"),
        series("Who needed no request", "Of what volumes asked for: known already (hit), or asked for by another volume at that moment (shared).", 8,
               [(f"sum by (result) (rate(secretfs_cache_requests_total{{{NODE}}}[$__rate_interval])) * 60", "{{result}}")], "cpm", stacked=True,
               colors={"hit": GREEN, "shared": BLUE, "miss": YELLOW}),
        series("Secrets removed", "From mounted volumes, in an hour: refused or deleted for longer than onDenied says.", 8,
               [(f"sum by (backend, reason) (increase(secretfs_secrets_removed_total{{{NODE}}}[1h]))", "{{backend}} {{reason}}")], "short"),
        series("Leases", "", 8, [(f"sum by (backend) (secretfs_leases{{{NODE}}})", "{{backend}}")], "short"),
    ]),
    ("Memory", [
        series("Files of volumes, fullest node", "Used: pages in use. Promised: what the volumes may grow to. Limit: bytesPerNode.", 12,
               [(f'max by (kind) (secretfs_memory_bytes{{kind=~"tmpfs_used|tmpfs_promised|limit", {NODE}}})', "{{kind}}")], "bytes",
               colors={"limit": RED}),
        series("The container, fullest node", "The files are charged to it and stay when it is killed.", 12,
               [(f'max by (kind) (secretfs_memory_bytes{{kind=~"resident|cgroup_used|cgroup_limit", {NODE}}})', "{{kind}}")], "bytes",
               colors={"cgroup_limit": RED}),
    ]),
    ("Errors", [
        series("Errors by code", "docs/reference/errors.md has cause and fix of each.", 12,
               [(f"sum by (code) (rate(secretfs_errors_total{{{NODE}}}[$__rate_interval])) * 60 > 0", "{{code}}")], "cpm"),
        series("Configuration refused", "Nodes that refused their file. They go on with the one before.", 4,
               [(f"count(secretfs_config_last_reload_successful{{{NODE}}} == 0) or vector(0)", "nodes")], "short", colors={"nodes": RED}, legend=False),
        series("Configuration's age", "Of the one in force. Nodes that miss a change stand out.", 4,
               [(f"time() - secretfs_config_last_reload_success_timestamp_seconds{{{NODE}}}", "{{instance}}")], "s", legend=False),
        series("Versions", "More than one for long: an update is stuck.", 4,
               [(f"count by (version) (secretfs_build_info{{{NODE}}})", "{{version}}")], "short", stacked=True),
    ]),
]


def placed():
    """The panels with their ids and places: rows from top to bottom, panels from left to right."""
    y = 0
    panels = []
    for title, row in ROWS:
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})
        y += 1
        x = height = 0
        for one in row:
            width = one["gridPos"]["w"]
            if x + width > 24:
                x, y, height = 0, y + height, 0
            one["gridPos"] |= {"x": x, "y": y}
            x, height = x + width, max(height, one["gridPos"]["h"])
            panels.append(one)
        y += height
    return [{"id": at} | one for at, one in enumerate(panels, start=1)]


def variable(kind, name, label, **rest):
    return {"type": kind, "name": name, "label": label, "hide": 0, "refresh": 2, "skipUrlSync": False} | rest


NODES = "label_values(secretfs_build_info, instance)"
DASHBOARD = {
    "uid": "secretfs",
    "title": "secretfs",
    "description": "Secrets as files that rotate: what is mounted, how fresh it is, and why not.",
    "tags": ["kubernetes", "csi", "secrets"],
    "schemaVersion": 41,
    "version": 1,
    "editable": True,
    "graphTooltip": 1,
    "refresh": "30s",
    "time": {"from": "now-3h", "to": "now"},
    "timezone": "browser",
    "annotations": {"list": []},
    "links": [],
    "templating": {"list": [
        variable("datasource", "datasource", "Data source", query="prometheus", current={}, multi=False, includeAll=False, options=[], regex=""),
        variable("query", "node", "Node", datasource=DATASOURCE, definition=NODES, query={"query": NODES, "refId": "node"},
                 current={"text": ["All"], "value": ["$__all"]}, multi=True, includeAll=True, allValue=".*", options=[], regex="", sort=1),
    ]},
    "panels": placed(),
}

json.dump(DASHBOARD, sys.stdout, indent=1)
print()
