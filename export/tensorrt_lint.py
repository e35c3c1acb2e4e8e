"""Whether TensorRT 8.5 to 11 reads an ONNX file, told without TensorRT: the file against what each release documents.

A clean verdict says that nothing in the file breaks a documented or observed rule of that release. It is no proof that
an engine builds, nor how fast it runs; that is for the builder on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from duskfuse.data.errors import InputError
from duskfuse.export.lint_dla import check_dla
from duskfuse.export.lint_finding import Finding, Severity
from duskfuse.export.lint_operators import (
    check_constants,
    check_formats,
    check_operators,
    check_opset,
    check_resize,
)
from duskfuse.export.lint_quantisation import check_quantisation
from duskfuse.export.onnx_view import OnnxView
from duskfuse.export.tensorrt_releases import Release, releases

if TYPE_CHECKING:
    from rich.table import Table

Check = Callable[[OnnxView, Release], Iterator[Finding]]
_CHECKS: tuple[Check, ...] = (
    check_opset,
    check_operators,
    check_formats,
    check_constants,
    check_resize,
    check_quantisation,
)


class Verdict(StrEnum):
    """What a release makes of a file."""

    CLEAN = "clean"
    WARNINGS = "warnings"
    REFUSED = "refused"


@dataclass(frozen=True)
class LintReport:
    """What was found in one file."""

    file: str
    findings: tuple[Finding, ...]
    dla: tuple[Finding, ...] = ()
    """An experiment: what the DLA of a Jetson would leave to its GPU, where asked for."""

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict of every release, by its name."""
        return {release.name: self._verdict(release.name) for release in releases()}

    @property
    def errors(self) -> list[Finding]:
        """The findings for which a release refuses the file."""
        return [finding for finding in self.findings if finding.severity is Severity.ERROR]

    def _verdict(self, release: str) -> Verdict:
        found = {finding.severity for finding in self.findings if release in finding.releases}
        if Severity.ERROR in found:
            return Verdict.REFUSED
        return Verdict.WARNINGS if found else Verdict.CLEAN

    def summary(self) -> str:
        """Return the verdicts in one line.

        >>> LintReport("m.onnx", ()).summary()
        '8.5–11.4 clean'
        """
        by_verdict: dict[Verdict, list[str]] = {}
        for release, verdict in self.verdicts.items():
            by_verdict.setdefault(verdict, []).append(release)
        return "; ".join(f"{_span(tuple(names))} {verdict.value}" for verdict, names in by_verdict.items())

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "file": self.file,
            "verdicts": self.verdicts,
            **_plain("findings", self.findings),
            **_plain("dla", self.dla),
        }


def lint(model: onnx.ModelProto, file: str = "", *, dla: bool = False) -> LintReport:
    """Check any ONNX model against every release of TensorRT from 8.5 on.

    ``file`` names it in the report; ``dla`` also looks for what a DLA would leave to the GPU, as an experiment.
    """
    view = OnnxView(model)
    found: dict[Finding, list[str]] = {}
    for release in releases():
        for check in _CHECKS:
            for finding in check(view, release):
                found.setdefault(finding, []).append(release.name)
    findings = tuple(replace(finding, releases=tuple(names)) for finding, names in found.items())
    return LintReport(file, findings, tuple(check_dla(view)) if dla else ())


def lint_file(path: Path, *, dla: bool = False) -> LintReport:
    """Check an ONNX file; raises InputError where it cannot be read."""
    if not path.is_file():
        raise InputError(f"{path} is not there", rule="the file to check must exist", remedy="check the path")
    try:
        model = onnx.load(path)
        if not model.graph.node:
            raise ValueError("it holds no nodes")
        return lint(model, path.name, dla=dla)
    except Exception as error:  # damage shows as errors of protobuf, ONNX, NumPy or of unpacking, which share no class
        raise InputError(
            f"{path} cannot be read as an ONNX model ({(str(error).splitlines() or ['damaged'])[0]})",
            rule="an .onnx file must be complete, with its external data beside it",
            remedy="copy it again, or write it anew",
        ) from error


def lint_tables(reports: Iterable[LintReport]) -> list[Table]:
    """Return one table of verdicts for several files, and their findings, for a terminal."""
    reports = list(reports)
    found = [table for report in reports for table in findings_tables(report.file, report.findings, report.dla)]
    return [_verdict_table(reports), *found]


def findings_tables(file: str, findings: Iterable[Finding], dla: Iterable[Finding] = ()) -> list[Table]:
    """Return what was found in a file, for a terminal; no table where nothing was."""
    return [
        *_findings_table(findings, f"Findings in {file}"),
        *_findings_table(dla, f"{file} on a DLA (experiment)"),
    ]


def _plain(name: str, findings: Iterable[Finding]) -> dict[str, list[dict[str, Any]]]:
    return {name: [asdict(finding) for finding in findings]}


def _verdict_table(reports: list[LintReport]) -> Table:
    from rich.table import Table

    table = Table(
        title="TensorRT",
        caption="* inferred from an older release; the builder on the device has the last word",
    )
    for name in ("release", "JetPack", "opsets", *(report.file for report in reports)):
        table.add_column(name, overflow="fold")
    for release in releases():
        opsets = f"{release.lowest_opset}–{release.highest_opset}"
        verdicts = [report.verdicts[release.name].value for report in reports]
        table.add_row(f"{release.name}{'*' if release.inferred else ''}", release.jetpack, opsets, *verdicts)
    return table


def _findings_table(findings: Iterable[Finding], title: str) -> list[Table]:
    """One row for findings that differ in their nodes only."""
    from rich.table import Table

    rows: dict[Finding, list[str]] = {}
    for finding in findings:
        rows.setdefault(replace(finding, node=""), []).append(finding.node)
    if not rows:
        return []
    table = Table("severity", "releases", "where", "what", "remedy", title=title)
    for finding, nodes in rows.items():
        where = nodes[0] + (f" and {len(nodes) - 1} more" if len(nodes) > 1 else "")
        table.add_row(finding.severity.value, _span(finding.releases), where, finding.seen, finding.remedy)
    return [table]


def _span(names: tuple[str, ...]) -> str:
    """Write releases that follow each other as a range.

    >>> _span(("8.5", "8.6", "10.0"))
    '8.5–10.0'
    """
    known = [release.name for release in releases()]
    if len(names) < 3 or known[known.index(names[0]) :][: len(names)] != list(names):
        return ", ".join(names)
    return f"{names[0]}–{names[-1]}"
