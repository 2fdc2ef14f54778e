"""The table on screen and the picture: medians, ranges, and crnode's ratio to each peer, pair by pair."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bench.limits import NAME
from bench.run import Result, percentile

OURS = "crnode"
MANY = 100  # times of which a hundredth is one


def _range(values: Sequence[float], unit: str = "") -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    digits = 3 if middle < 0.1 else 2
    return f"{middle:.{digits}f}{unit} [{low:.{digits}f}-{high:.{digits}f}]"


def distance(results: Sequence[Result], workload: str) -> list[float]:
    """How many times longer crnode took than the machine's limit, run by run."""
    floor = {r.run: r.seconds for r in results if (r.workload, r.tool) == (_whose(workload), NAME)}
    mine = [r for r in results if (r.workload, r.tool) == (workload, OURS)]
    return [r.seconds / floor[r.run] for r in mine if floor.get(r.run)]


def _whose(workload: str) -> str:
    return workload.split()[0]


def ratios(results: Sequence[Result], workload: str, tool: str) -> list[float]:
    """How many times longer `tool` took than crnode, run by run."""
    times: dict[int, dict[str, float]] = defaultdict(dict)
    for result in results:
        if result.workload == workload:
            times[result.run][result.tool] = result.seconds
    return [t[tool] / t[OURS] for t in times.values() if tool in t and OURS in t and t[OURS] > 0]


def tail(times: list[float]) -> str:
    """The slow end of the single files of all runs together; a percentile only where it is one."""
    if not times:
        return ""
    name, share = "most", 1.0
    if len(times) >= MANY:
        name, share = "p99", 0.99
    elif len(times) >= MANY // 10:
        name, share = "p90", 0.9
    return f", {name} {1e3 * percentile(times, share):.1f} ms of {len(times)}"


def table(results: Sequence[Result], titles: dict[str, str]) -> Table:
    """One row a workload and tool."""
    out = Table(
        title="Side by side: median \\[least-most]; ratio over 1.00: crnode is sooner",
        caption="Seconds: from the last write to visible and complete at the target. CPU, wire, peak private"
        " memory of all processes of a tool until then. Percentiles: single files of all runs together.",
    )
    for column in (
        "work",
        "tool",
        "seconds",
        "ratio",
        "CPU s",
        "there MiB",
        "back MiB",
        "memory MiB",
        "limit s",
        "times limit",
    ):
        out.add_column(column, justify="left" if column in ("work", "tool") else "right")
    for workload in dict.fromkeys(r.workload for r in results if r.tool != NAME):
        rows = [r for r in results if r.workload == workload and r.tool != NAME]
        for tool in dict.fromkeys(r.tool for r in sorted(rows, key=lambda r: r.tool != OURS)):
            mine = [r for r in rows if r.tool == tool]
            pairs = ratios(results, workload, tool)
            limit = [r.seconds for r in results if (r.workload, r.tool) == (_whose(workload), NAME)]
            away = distance(results, workload)
            seconds = _range([r.seconds for r in mine])
            if stores := [r.more["store_mib"] for r in mine if "store_mib" in r.more]:
                seconds += f", store {statistics.median(stores):,.0f} MiB"
            seconds += tail([time for r in mine for time in r.times])
            out.add_row(
                f"{workload} {titles.get(workload.split()[0], '')}" if tool == OURS else "",
                tool,
                seconds,
                _range(pairs) if pairs and tool != OURS else "",
                f"{statistics.median(r.cpu for r in mine):.2f}",
                f"{statistics.median(r.there for r in mine) / 2**20:.2f}",
                f"{statistics.median(r.back for r in mine) / 2**20:.2f}",
                f"{statistics.median(r.memory for r in mine) / 2**20:.0f}",
                f"{statistics.median(limit):.4f}" if tool == OURS and limit else "",
                _range(away) if tool == OURS and away else "",
            )
        out.add_section()
    return out


def show(results: Sequence[Result], titles: dict[str, str]) -> None:
    """Print the table."""
    Console(width=190).print(table(results, titles))


def picture(results: Sequence[Result], titles: dict[str, str]) -> str:
    """An SVG of how many times longer each peer takes, on a logarithmic scale."""
    from math import log10

    rows: list[tuple[str, str, float]] = []
    for workload in dict.fromkeys(r.workload for r in results):
        peers = (r.tool for r in results if r.workload == workload and r.tool not in (OURS, NAME))
        for tool in dict.fromkeys(peers):
            pairs = ratios(results, workload, tool)
            if pairs:
                rows.append((workload, tool, statistics.median(pairs)))
    height, left, width = 22, 260, 520
    scale = width / 4  # from a tenth to a thousand times
    size = f'width="{left + width + 90}" height="{height * (len(rows) + 3)}"'
    title = f"Times longer than {OURS} (right of the line: {OURS} is sooner)"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<text x="8" y="16" font-weight="bold">{title}</text>',
    ]
    line = left + scale
    for exponent in range(-1, 4):
        x = left + scale * (exponent + 1)
        out.append(f'<text x="{x}" y="36" text-anchor="middle" fill="#666">{10.0**exponent:g}x</text>')
    for number, (workload, tool, ratio) in enumerate(rows):
        y = 44 + number * height
        x = left + scale * (min(max(log10(ratio), -1), 3) + 1)
        colour = "#2a7" if ratio >= 1 else "#c55"
        begin, wide = min(line, x), max(abs(line - x), 1)
        out.append(f'<text x="8" y="{y + 13}">{workload}</text><text x="80" y="{y + 13}">{tool}</text>')
        out.append(f'<rect x="{begin:.1f}" y="{y + 3}" width="{wide:.1f}" height="12" fill="{colour}"/>')
        out.append(f'<text x="{left + width + 8}" y="{y + 13}">{ratio:.2f}</text>')
    bottom = 44 + len(rows) * height
    out.append(f'<line x1="{line}" y1="40" x2="{line}" y2="{bottom}" stroke="#333"/></svg>')
    return "\n".join(out) + "\n"
