"""Draws the panels of a Grafana dashboard with what Prometheus answers to their queries.

The grid, titles, legends, units, thresholds and colours are those of the JSON; fonts and shades are ours. Of Grafana it knows only
what deploy/monitoring/dashboard.json uses.
"""

import datetime
import io
import json
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates
import matplotlib.pyplot
from PIL import Image

COLUMNS, WIDTH_INCHES, UNIT_INCHES, DPI = 24, 15.0, 0.30, 100
COLORS = 256  # of the picture: keeps it small
STEPS = 240
BACKGROUND, PANEL, TEXT, FAINT = "#111217", "#181b1f", "#d5d7de", "#8e8e8e"
NAMED = {"green": "#73bf69", "yellow": "#f2cc0c", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2", "purple": "#b877d9"}
PALETTE = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ffb357", "#96d98d", "#c8f2c2"]


def color(name):
    return NAMED.get(name, name)


def human(value, unit):
    """A number as Grafana would write it."""
    if unit == "percentunit":
        return f"{value * 100:.0f} %"
    if unit == "s":
        for size, word in [(86400, "d"), (3600, "h"), (60, "min")]:
            if value >= size:
                return f"{value / size:.3g} {word}"
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{value * 1000:.3g} ms"
    if unit == "bytes":
        for size, word in [(2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")]:
            if value >= size:
                return f"{value / size:.3g} {word}"
        return f"{value:.0f} B"
    if unit == "cpm":
        return f"{value:.3g} /min"
    return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.2g}"


class Prometheus:
    def __init__(self, address, begin, end):
        self.address, self.begin, self.end = address, begin, end

    def ask(self, path, **parameters):
        # four scrapes, as Grafana takes it
        query = parameters["query"].replace("$node", ".*").replace("$__rate_interval", "30s")
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters | {'query': query})}"
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)["data"]["result"]

    def last(self, query):
        found = self.ask("query", query=query, time=self.end)
        return float(found[0]["value"][1]) if found else None

    def range(self, query, legend):
        """(Legend, times, values) of each series."""
        step = max(1, (self.end - self.begin) / STEPS)
        for series in self.ask("query_range", query=query, start=self.begin, end=self.end, step=step):
            name = legend
            for label in series["metric"] | {"": ""}:
                name = name.replace("{{" + label + "}}", series["metric"].get(label, ""))
            answered = {round((float(at) - self.begin) / step): float(value) for at, value in series["values"]}
            whole = range(min(answered), max(answered) + 1)
            # a gap stays one: NaN is not drawn
            yield name, [self.begin + at * step for at in whole], [answered.get(at, float("nan")) for at in whole]


def stat(figure, place, panel, prometheus):
    value = prometheus.last(panel["targets"][0]["expr"])
    defaults = panel["fieldConfig"]["defaults"]
    shade = FAINT
    for step in defaults["thresholds"]["steps"]:
        if value is not None and (step["value"] is None or value >= step["value"]):
            shade = color(step["color"])
    axes = figure.add_axes(place, facecolor=shade)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.05, 0.93, panel["title"], transform=axes.transAxes, fontsize=8, color="#111217", va="top")
    text = "no data" if value is None else human(round(value, defaults["decimals"]) if defaults["unit"] == "short" else value, defaults["unit"])
    axes.text(0.5, 0.4, text, transform=axes.transAxes, fontsize=20, color="#111217", ha="center", va="center", weight="bold")
    return axes


def timeseries(figure, place, panel, prometheus):
    x, y, width, height = place
    frame = figure.add_axes(place, facecolor=PANEL)
    frame.set_xticks([])
    frame.set_yticks([])
    axes = figure.add_axes((x + 0.16 * width, y + 0.26 * height, 0.81 * width, 0.58 * height), facecolor=PANEL)
    frame.text(0.02, 0.97, panel["title"], transform=frame.transAxes, fontsize=9, color=TEXT, va="top", weight="bold")
    defaults = panel["fieldConfig"]["defaults"]
    fixed = {one["matcher"]["options"]: one["properties"][0]["value"]["fixedColor"] for one in panel["fieldConfig"]["overrides"]}
    found = [line for target in panel["targets"] for line in prometheus.range(target["expr"], target["legendFormat"])]
    shades = [color(fixed.get(name, PALETTE[at % len(PALETTE)])) for at, (name, _, _) in enumerate(found)]
    clock = datetime.datetime.fromtimestamp

    if defaults["custom"]["stacking"]["mode"] == "normal" and found:
        times = sorted({at for _, when, _ in found for at in when})
        rows = [[dict(zip(when, values)).get(at, 0.0) for at in times] for _, when, values in found]
        axes.stackplot([clock(at) for at in times], rows, colors=shades, alpha=0.75, labels=[name for name, _, _ in found])
    else:
        for (name, when, values), shade in zip(found, shades):
            axes.plot([clock(at) for at in when], values, color=shade, linewidth=1.1, label=name, marker="." if len(when) < 4 else None)
    axes.set_xlim(clock(prometheus.begin), clock(prometheus.end))
    axes.set_ylim(bottom=0)
    if not found:
        axes.text(0.5, 0.5, "nothing", transform=axes.transAxes, fontsize=9, color=FAINT, ha="center")
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=defaults["unit"] == "short"))
    axes.yaxis.set_major_formatter(lambda value, _: human(value, defaults["unit"]))
    minutes = (prometheus.end - prometheus.begin) / 60
    axes.xaxis.set_major_locator(matplotlib.dates.MinuteLocator(interval=max(1, round(minutes / 5))))
    axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%H:%M"))
    axes.tick_params(colors=FAINT, labelsize=7, length=0)
    axes.grid(color="#2c3038", linewidth=0.6)
    for side in axes.spines.values():
        side.set_visible(False)
    if found and panel["options"]["legend"]["showLegend"]:
        entries = {name: shade for (name, _, _), shade in zip(found, shades)}
        marks = [matplotlib.patches.Patch(color=shade, label=name) for name, shade in entries.items()]
        columns = 2 if max(map(len, entries)) > 22 else 3 if width < 0.4 else 6
        frame.legend(
            handles=marks[:columns * 2], loc="lower left", ncols=columns, fontsize=6.5, frameon=False, labelcolor=TEXT,
            handlelength=0.9, handleheight=0.5, columnspacing=1.0, borderaxespad=0.4,
        )
    return frame


def dashboard(path, address, begin, end, output):
    board = json.loads(path.read_text("utf-8"))
    prometheus = Prometheus(address, begin, end)
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]) + 1
    figure = matplotlib.pyplot.figure(figsize=(WIDTH_INCHES, rows * UNIT_INCHES), facecolor=BACKGROUND)
    gap = (0.004, 0.003)
    figure.text(gap[0] * 2, 1 - 0.5 / rows, f"{board['title']}   Node: All", color=TEXT, fontsize=12, va="center", weight="bold")
    for panel in board["panels"]:
        at = panel["gridPos"]
        x, y = at["x"] / COLUMNS, 1 - (at["y"] + 1 + at["h"]) / rows
        place = (x + gap[0] / 2, y + gap[1] / 2, at["w"] / COLUMNS - gap[0], at["h"] / rows - gap[1])
        if panel["type"] == "row":
            figure.text(place[0] + gap[0], place[1] + place[3] / 2, panel["title"], color=TEXT, fontsize=10, va="center")
            continue
        axes = {"stat": stat, "timeseries": timeseries}[panel["type"]](figure, place, panel, prometheus)
        for side in axes.spines.values():
            side.set_color("#2c3038")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, facecolor=BACKGROUND)
    Image.open(drawn).convert("RGB").quantize(COLORS).save(output, optimize=True)
    print(f"{output}: {output.stat().st_size} bytes")
