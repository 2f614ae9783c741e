"""Draws what `bench.run` and `bench.growth` saved: `plots.py FIGURES.json PICTURE.svg`."""

import json
import sys
from math import nan
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

OURS, PLAIN = "this service", "plain list"
# The floor does not do the work, and a service that is measured twice is drawn once.
LEFT_OUT = {"one statement", "bare route", "Fastify, no log"}
MARKERS = "sD^v<>P"
Table = dict[str, dict[str, float]]


def draw_services(tables: dict[str, Table]) -> Figure:
    """A line for each operation, with a mark for each service."""
    table = tables["CPU"]
    names = [name for name in table["get"] if name not in LEFT_OUT]
    figure = Figure(figsize=(8, 1 + 0.32 * len(table)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(table))
    for n, name in enumerate(names):
        ours = name == OURS
        axes.plot(
            [found.get(name, nan) for found in table.values()],
            rows,
            "o" if ours else MARKERS[n - 1],
            color="black" if ours else f"C{n - 1}",
            markersize=8 if ours else 5,
            zorder=3 if ours else 2,
            label=name,
        )
    axes.set_yticks(rows, list(table))
    axes.invert_yaxis()
    axes.set_xscale("log")
    label_axis(axes.xaxis)
    axes.minorticks_off()
    axes.grid(color="0.88")
    axes.set_xlabel("CPU of server and PostgreSQL, µs per request (logarithmic; less is better)")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def draw_growth(tables: dict[str, Table]) -> Figure:
    """Reads of larger and larger tables; then each filter and each sort key of longer lists."""
    whole, lists, *_ = tables.values()
    filters = {name: found for name, found in lists.items() if not name.startswith("sort")}
    sorts = {name: found for name, found in lists.items() if name == PLAIN or name not in filters}
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    draw_lines(panels[0], whole, "One task, and a page of 20", "tasks in the table")
    draw_lines(panels[1], filters, "100 tasks, filtered", "tasks of the user")
    draw_lines(panels[2], sorts, "100 tasks, sorted", "tasks of the user")
    panels[0].set_ylabel("CPU, µs per request")
    return figure


def draw_lines(axes: Axes, table: Table, title: str, unit: str) -> None:
    for name, found in table.items():
        sizes = [int(column.split()[0].replace(",", "")) for column in found]
        color = "black" if name == PLAIN else None
        axes.plot(sizes, list(found.values()), "o-", markersize=4, color=color, label=name)
    axes.set(xscale="log", yscale="log", title=title, xlabel=unit)
    label_axis(axes.yaxis)
    axes.minorticks_off()
    axes.grid(color="0.88")
    axes.legend(frameon=False, fontsize="small")


def label_axis(axis: Axis) -> None:
    """Plain numbers: 1, 2 and 5 times each power of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,.0f}")


def main() -> None:
    figures, picture = map(Path, sys.argv[1:])
    # Text stays text, and the same figures give the same file.
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "bench",
            "font.size": 9,
            "font.sans-serif": ["DejaVu Sans"],
        }
    )
    tables = json.loads(figures.read_text())
    figure = draw_services(tables) if "CPU" in tables else draw_growth(tables)
    figure.savefig(picture, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
