"""Draws drills as an SVG: each end's link over time, the fault, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from linkd.drill.report import EndReport, Report, seconds

WIDTH: Final = 960
_LEFT: Final = 130
_RIGHT: Final = 20
_ROW: Final = 26
_GAP: Final = 12
_TOP: Final = 44
_AXIS: Final = 40
_SKIPPED: Final = 56
_LETTER: Final = 6.2
_COLOURS: Final = {
    "up": "#2e9e5b",
    "waiting": "#d64545",
    "rejected": "#8e2f6b",
    "diverged": "#8e2f6b",
    "connecting": "#e8a33d",
    "opening": "#e8a33d",
    "resuming": "#e8c53d",
    "stopped": "#888888",
    "gone": "#444444",
}
_LEGEND: Final = (
    ("up", "up"),
    ("waiting", "waiting"),
    ("connecting", "connecting"),
    ("rejected", "rejected"),
    ("gone", "no answer from the daemon"),
)
_STEPS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)


def draw(reports: Sequence[Report]) -> str:
    """Return one SVG document with a picture of every report, one below the other."""
    pieces: list[str] = []
    y = 16
    for report in reports:
        body, height = _skipped(report) if not report.ends else _picture(report)
        pieces.append(f'<g transform="translate(0 {y})">{body}</g>')
        y += height + _GAP
    pieces.append(f'<g transform="translate({_LEFT} {y})">{_legend()}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 30}" '
        f'viewBox="0 0 {WIDTH} {y + 30}" font-family="sans-serif" font-size="12" role="img">'
        "<title>linkd drill</title>"
        f'<rect width="{WIDTH}" height="{y + 30}" fill="#ffffff"/>' + "".join(pieces) + "</svg>\n"
    )


def _skipped(report: Report) -> tuple[str, int]:
    """Return the picture of a drill that did not take place."""
    return _head(report) + _text(_LEFT, _TOP, f"{report.verdict}: {report.why}", "#666666"), (
        _SKIPPED
    )


def _picture(report: Report) -> tuple[str, int]:
    """Return the picture of a drill, and its height."""
    end = max((state.ended for one in report.ends for state in one.states), default=1.0)
    scale = (WIDTH - _LEFT - _RIGHT) / max(end, report.fault_ended, 1.0)
    bottom = _TOP + len(report.ends) * _ROW
    left = _LEFT + report.fault_began * scale
    width = max(1.0, (report.fault_ended - report.fault_began) * scale)
    pieces = [
        _head(report),
        f'<rect x="{left:.1f}" y="{_TOP - 14}" width="{width:.1f}" '
        f'height="{bottom - _TOP + 18}" fill="#d64545" fill-opacity="0.13"/>',
        _text(left + 3, _TOP - 3, f"fault, {report.fault_ended - report.fault_began:.1f} s"),
    ]
    for index, one in enumerate(report.ends):
        pieces.append(_row(one, _TOP + 4 + index * _ROW, scale))
        pieces.append(_marks(one, report, _TOP + 4 + index * _ROW, scale))
    pieces.append(_axis(max(end, report.fault_ended), bottom + 8, scale))
    return "".join(pieces), bottom + _AXIS


def _head(report: Report) -> str:
    """Return the line above a picture."""
    colour = {"pass": "#2e9e5b", "fail": "#d64545", "skipped": "#666666"}[report.verdict]
    counted = list(report.messages.values())
    lost = (
        f"lost {sum(one.lost for one in counted)}, twice {sum(one.twice for one in counted)}, "
        f"out of order {sum(one.out_of_order for one in counted)}"
        if counted
        else "messages not checked"
    )
    title = f'<text x="8" y="12" font-weight="bold">{escape(report.drill)}</text>'
    caption = f"{report.about}; {lost}" if report.verdict != "skipped" else report.about
    verdict = (
        f'<text x="{WIDTH - _RIGHT}" y="12" text-anchor="end" font-weight="bold" '
        f'fill="{colour}">{report.verdict.upper()}</text>'
    )
    return title + _text(_LEFT, 12, caption) + verdict


def _row(end: EndReport, y: float, scale: float) -> str:
    """Return one end's states as a bar."""
    pieces = [_text(8, y + 13, f"{end.name} ({end.role or 'never reached'})")]
    for state in end.states:
        width = (state.ended - state.began) * scale
        pieces.append(
            f'<rect x="{_LEFT + state.began * scale:.1f}" y="{y}" width="{max(width, 0.8):.1f}" '
            f'height="{_ROW - 8}" fill="{_COLOURS.get(state.state, "#888888")}">'
            f"<title>{escape(end.name)}: {escape(state.state)} from {state.began:.2f} s to "
            f"{state.ended:.2f} s</title></rect>"
        )
    return "".join(pieces)


def _marks(end: EndReport, report: Report, y: float, scale: float) -> str:
    """Return the marks on an end's bar: when it noticed, and when it was back."""
    pieces = []
    down = next(
        (
            state.began
            for before, state in zip(end.states, end.states[1:], strict=False)
            if before.state == "up" and state.state != "up"
        ),
        None,
    )
    if down is not None:
        label = f"noticed, {seconds(end.noticed)} {end.reasons}" if end.noticed else end.reasons
        pieces.append(_mark(_LEFT + down * scale, y, label))
    if end.back_seconds is not None:
        back = report.fault_ended + end.back_seconds
        pieces.append(_mark(_LEFT + back * scale, y, f"back, {seconds(end.back_seconds)}"))
    return "".join(pieces)


def _mark(x: float, y: float, label: str) -> str:
    """Return a mark with a few words, to its left where there is no room to its right."""
    before = x + _LETTER * len(label) > WIDTH
    anchor, shift = ("end", -4) if before else ("start", 4)
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + _ROW - 5}" stroke="#000000"/>'
        f'<text x="{x + shift:.1f}" y="{y + 13}" text-anchor="{anchor}" font-size="11" '
        f'fill="#ffffff" stroke="#000000" stroke-width="2.5" paint-order="stroke">'
        f"{escape(label)}</text>"
    )


def _axis(end: float, y: float, scale: float) -> str:
    """Return the axis of time."""
    step = next((each for each in _STEPS if end / each <= 16), 120.0)
    pieces = [
        f'<line x1="{_LEFT}" x2="{_LEFT + end * scale:.1f}" y1="{y}" y2="{y}" stroke="#999999"/>'
    ]
    for index in range(int(end / step) + 1):
        x = _LEFT + index * step * scale
        pieces.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}" stroke="#999999"/>'
            f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle" fill="#666666" font-size="11">'
            f"{index * step:.0f} s</text>"
        )
    return "".join(pieces)


def _legend() -> str:
    """Return what the colours mean."""
    pieces, x = [], 0.0
    for state, words in _LEGEND:
        pieces.append(f'<rect x="{x}" y="0" width="12" height="12" fill="{_COLOURS[state]}"/>')
        pieces.append(_text(x + 17, 10, words))
        x += 50 + 6.5 * len(words)
    return "".join(pieces)


def _text(x: float, y: float, words: str, colour: str = "#222222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}">{escape(words)}</text>'
