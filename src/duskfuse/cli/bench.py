"""The verb that measures: models on this machine, bundles on devices over ssh, and the comparison of what they gave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duskfuse.cli.application import app
from duskfuse.cli.edge import PANEL
from duskfuse.cli.options import Json, Threads
from duskfuse.cli.verb import EXIT_FAILED, choice, refuse, show, verb

if TYPE_CHECKING:
    from duskfuse.export.device_bench import DeviceOptions
    from duskfuse.export.device_runs import DeviceRun

_USUAL_SIZE = "640x480"


@app.command("bench", rich_help_panel=PANEL)
def bench_command(
    model: Annotated[
        list[str], typer.Argument(help="Models, ONNX files, bundles, or results of devices.", show_default=False)
    ],
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT; default: 640x480, or a file's own.", show_default=False)
    ] = None,
    threads: Threads = None,
    backend: Annotated[str | None, typer.Option(help="onnxruntime or torch.", show_default=False)] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="Measure on user@device over ssh; repeatable.", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option(help="On devices: how long each network is measured.")] = 10.0,
    build: Annotated[bool, typer.Option("--build", help="On devices: build TensorRT engines first.")] = False,
    trtexec: Annotated[bool, typer.Option("--trtexec", help="On devices: measure with trtexec as well.")] = False,
    clean: Annotated[bool, typer.Option("--clean", help="On devices: remove the copied bundle afterwards.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results of devices.")] = Path("bench"),
    page: Annotated[
        Path | None, typer.Option(help="Page to write that compares results of devices.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Time models on this machine, bundles on devices (--host), and compare (--page).

    Without --host: batch 1, warm-up, median, p90, p99. With it: power, temperatures and clocks as well.
    """
    with verb(as_json):
        from duskfuse.export.device_bench import DeviceOptions

        results = [item for item in model if item.endswith(".json")]
        if host:
            options = DeviceOptions(size, seconds, threads, build, trtexec, clean)
            _on_devices([Path(item) for item in model], host, out, options, page, as_json)
        elif build or trtexec or clean:
            refuse("--build, --trtexec or --clean without --host", rule="they are for devices")
        elif results:
            if len(results) < len(model):
                refuse("models and results of devices together", rule="results are compared with results")
            _compare([Path(item) for item in results], page, as_json)
        elif page is not None:
            refuse("--page without --host", rule="a page compares results of devices", remedy="name their .json files")
        else:
            _on_this_machine(model, size or _USUAL_SIZE, threads, backend, as_json)


def _on_this_machine(models: Sequence[str], size: str, threads: int | None, backend: str | None, as_json: bool) -> None:
    from duskfuse.export.bench import Backend, bench

    chosen = None if backend is None else choice(Backend, backend, "--backend")
    report = bench(list(models), size=size, threads=threads, backend=chosen)
    show(report.to_json(), as_json, [report.table()])


def _on_devices(
    models: Sequence[Path], hosts: Sequence[str], out: Path, options: DeviceOptions, page: Path | None, as_json: bool
) -> None:
    from duskfuse.export.device_bench import bench_devices

    runs, failures = bench_devices(models, hosts, out, options)
    failed: list[dict[str, Any]] = [{"host": failure.host, "reason": failure.reason} for failure in failures]
    if runs:
        _show(runs, page, as_json, failed)
    if failures:
        text = "; ".join(f"{failure.host}: {failure.reason}" for failure in failures) if as_json else ""
        if text:
            typer.echo(f"duskfuse: {text}", err=True)
        raise typer.Exit(EXIT_FAILED)


def _compare(paths: Sequence[Path], page: Path | None, as_json: bool) -> None:
    from duskfuse.export.device_runs import read_run

    _show([read_run(path) for path in paths], page, as_json, [])


def _show(runs: Sequence[DeviceRun], page: Path | None, as_json: bool, failures: list[dict[str, Any]]) -> None:
    from duskfuse.data.progress import say
    from duskfuse.export.bench_page import bench_page
    from duskfuse.export.device_runs import incomparable

    if page is not None:
        bench_page(runs).write(page)
        say(f"The comparison is in {page}")
    warnings = incomparable(runs)
    documents = [{**run.document, "file": None if run.path is None else str(run.path)} for run in runs]
    show({"runs": documents, "warnings": warnings, "failures": failures}, as_json, [run.table() for run in runs])
    for warning in warnings:
        say(f"Not comparable as they stand: {warning}")
