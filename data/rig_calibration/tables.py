"""The report of a calibration as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from duskfuse.data.rig_calibration.evidence import Evidence, Residuals
from duskfuse.data.rig_calibration.points import PointFit

if TYPE_CHECKING:
    from duskfuse.data.rig_calibration.calibrate import CalibrationReport


def tables(report: CalibrationReport) -> list[Table]:
    """A summary, and one row per frame or pair of points."""
    summary = Table("what", "value", title=f"homography in {report.written}, picture in {report.picture}")
    summary.add_row("infrared covers", f"{report.covers:.0%} of the visible picture")
    if report.points is not None:
        return [_add_points(summary, report.points), _points(report.points)]
    if report.evidence is None:
        return [summary]
    return [_add_evidence(summary, report.evidence, report.given), _frames(report.evidence)]


def _add_evidence(summary: Table, evidence: Evidence, given: int) -> Table:
    used = sum(row.used for row in evidence.frames)
    summary.add_row("frames used", f"{used} of {len(evidence.frames)} matched, {given} given")
    summary.add_row("places that agree", _agreeing(evidence.residuals))
    summary.add_row("distance, visible pixels", _distance(evidence.residuals))
    if evidence.held_out is not None:
        summary.add_row("on frames held out", f"{_distance(evidence.held_out)}; {_agreeing(evidence.held_out)} agree")
    if evidence.held_out_shift_px is not None:
        summary.add_row("moved by the frames held out", f"{evidence.held_out_shift_px:.2f} pixels")
    summary.add_row("moved by redrawn matches", f"{evidence.doubt_px:.2f} pixels (nine of ten draws)")
    return summary


def _agreeing(found: Residuals) -> str:
    return f"{found.following} of {found.matches}"


def _distance(found: Residuals) -> str:
    if found.median_px is None or found.p95_px is None:
        return "none"
    return f"median {found.median_px:.2f}, p95 {found.p95_px:.2f}"


def _frames(evidence: Evidence) -> Table:
    table = Table("frame", "places", "agree", "median, pixels", "used")
    for row in evidence.frames:
        median = "–" if row.median_px is None else f"{row.median_px:.2f}"
        table.add_row(row.name, str(row.matches), str(row.following), median, "yes" if row.used else "no")
    return table


def _add_points(summary: Table, fit: PointFit) -> Table:
    summary.add_row("pairs kept", f"{sum(fit.kept)} of {len(fit.kept)}")
    summary.add_row("distance, visible pixels", f"median {fit.median_px:.2f}, p95 {fit.p95_px:.2f}")
    return summary


def _points(fit: PointFit) -> Table:
    table = Table("pair", "distance, pixels", "kept")
    for number, (distance, kept) in enumerate(zip(fit.distances_px, fit.kept, strict=True), start=1):
        table.add_row(str(number), f"{distance:.2f}", "yes" if kept else "no")
    return table
