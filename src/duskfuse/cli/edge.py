"""The verbs that use a student: pictures, files for the device, timings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duskfuse.cli.application import app
from duskfuse.cli.options import Backbone, ForTask, Json, LiveCritic, Out, Overwrite, Steering
from duskfuse.cli.verb import EXIT_FAILED, choice, refuse, show, verb

if TYPE_CHECKING:
    from duskfuse.data.reading import Reading

PANEL = "Use"
_INFRARED = "How infrared is read"
_MOVING = "Videos, sequences and cameras"
_SHOWN = ("frames", "seconds", "fps", "paired", "alone", "unpaired", "dropped", "skew_ms")


@app.command("fuse", rich_help_panel=PANEL)
def fuse_command(
    ir: Annotated[
        str, typer.Option(help="Infrared: picture, folder, video, sequence, camera or URL.", show_default=False)
    ],
    vis: Annotated[str, typer.Option(help="Visible: the same.", show_default=False)],
    out: Annotated[
        list[str] | None,
        typer.Option(help="Picture, folder, .mp4 or .mkv to write, or RTSP URL; repeatable.", show_default=False),
    ] = None,
    model: Annotated[str, typer.Option(help="Zoo name, checkpoint or ONNX file.")] = "edge",
    steering: Steering = None,
    task: ForTask = None,
    critic: LiveCritic = None,
    backbone: Backbone = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    thermal_range: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Stored infrared values that become 0 and 1.",
            show_default=False,
            rich_help_panel=_INFRARED,
        ),
    ] = None,
    percentiles: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Scale each infrared picture by these, 0 to 100.",
            show_default=False,
            rich_help_panel=_INFRARED,
        ),
    ] = None,
    black_hot: Annotated[
        bool, typer.Option("--black-hot", help="The infrared camera shows heat dark.", rich_help_panel=_INFRARED)
    ] = False,
    resize_ir: Annotated[
        bool,
        typer.Option("--resize-ir", help="Resize infrared pictures to the visible size.", rich_help_panel=_INFRARED),
    ] = False,
    homography: Annotated[
        Path | None,
        typer.Option(
            help="JSON file that maps infrared to visible pixels.", show_default=False, rich_help_panel=_INFRARED
        ),
    ] = None,
    reading: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with these settings; options go before it.", show_default=False, rich_help_panel=_INFRARED
        ),
    ] = None,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Where one camera is capped or dead, show the other.")
    ] = False,
    max_skew: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Between the two frames of a pair at most; 0.06.",
            show_default=False,
            rich_help_panel=_MOVING,
        ),
    ] = None,
    offset: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Added to infrared times.", show_default=False, rich_help_panel=_MOVING),
    ] = None,
    show_window: Annotated[bool, typer.Option("--show", help="Show a window.", rich_help_panel=_MOVING)] = False,
    web: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Show a web page, on this machine only unless HOST says otherwise.",
            show_default=False,
            rich_help_panel=_MOVING,
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Infrared, visible and fused side by side.", rich_help_panel=_MOVING)
    ] = False,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Write rate and skew on the picture.", rich_help_panel=_MOVING)
    ] = False,
    stats: Annotated[
        Path | None,
        typer.Option(help="JSON file for the statistics.", show_default=False, rich_help_panel=_MOVING),
    ] = None,
) -> None:
    """Fuse one pair, two folders matched by name, or two videos, sequences, cameras or streams matched by time."""
    with verb(as_json):
        from duskfuse.export.fuse import fuse
        from duskfuse.export.fuse_live import fuse_live, wants_live

        how = _reading(reading, thermal_range, percentiles, black_hot, resize_ir, homography)
        places = out or []
        if wants_live(ir, vis, places, views=show_window or web is not None):
            times = {"max_skew": max_skew, "offset": offset}
            state = fuse_live(
                ir,
                vis,
                places,
                model=model,
                steering=steering,
                task=task,
                critic=critic,
                backbone=backbone,
                reading=how,
                show=show_window,
                web=web,
                stats=stats,
                compare=compare,
                overlay=overlay,
                fallback=fallback,
                overwrite=overwrite,
                quiet=as_json,
                **{name: value for name, value in times.items() if value is not None},
            )
            show(state if as_json else {key: state[key] for key in _SHOWN}, as_json)
            if state["interrupted"] and not state["live"]:
                raise KeyboardInterrupt
            return
        moving = {"--max-skew": max_skew, "--offset": offset, "--show": show_window, "--web": web, "--stats": stats}
        for name, value in {**moving, "--compare": compare, "--overlay": overlay}.items():
            if value not in (None, False):
                refuse(f"{name} with pictures", rule="it is for videos, sequences and cameras")
        if len(places) != 1:
            refuse(f"{len(places)} outputs", rule="pictures have one", remedy="give --out once")
        report = fuse(
            Path(ir),
            Path(vis),
            Path(places[0]),
            model=model,
            steering=steering,
            task=task,
            critic=critic,
            backbone=backbone,
            overwrite=overwrite,
            reading=how,
            fallback=fallback,
        )
        show(report.to_json(), as_json)


@app.command("calibrate", rich_help_panel=PANEL)
def calibrate_command(
    ir: Annotated[Path, typer.Option(help="Infrared picture, folder or video.", show_default=False)],
    vis: Annotated[Path, typer.Option(help="Visible picture, folder or video.", show_default=False)],
    out: Annotated[Path, typer.Option(help="JSON file to write; a picture goes beside it.", show_default=False)],
    points: Annotated[
        Path | None, typer.Option(help="CSV or JSON: x_ir, y_ir, x_vis, y_vis of each pair.", show_default=False)
    ] = None,
    click: Annotated[
        bool, typer.Option("--click", help="Click the pairs of points on a page of this machine.")
    ] = False,
    board: Annotated[
        str | None, typer.Option(help="A warm chessboard of so many inner corners, as 9x6.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(help="Of the page for clicking, on localhost.")] = 8770,
    frames: Annotated[int, typer.Option(help="Frames to use at most.")] = 16,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the homography of a rig from unregistered pairs, from points, or from a target."""
    with verb(as_json):
        from duskfuse.data.rig_calibration.calibrate import calibrate

        report = calibrate(
            ir, vis, out, points=points, click=click, board=board, port=port, frames=frames, overwrite=overwrite
        )
        show(report.to_json(), as_json, report.tables())


@app.command("export", rich_help_panel=PANEL)
def export_command(
    model: Annotated[str, typer.Argument(help="Zoo name or checkpoint.", show_default=False)],
    out: Out,
    precision: Annotated[str, typer.Option(help="Comma-separated: fp32, fp16, int8.")] = "fp32,fp16,int8",
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="WIDTHxHEIGHT of the pictures; repeatable, one file each; default: 640x480.", show_default=False
        ),
    ] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="One file for any size; engines cover the range of the sizes given.")
    ] = False,
    dla: Annotated[
        bool, typer.Option("--dla", help="Experiment: no DepthToSpace, and what a DLA would leave to the GPU.")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Pairs to calibrate and verify on; default: built-in scenes.", show_default=False),
    ] = None,
    reading: Annotated[
        Path | None,
        typer.Option(help="YAML: how their infrared is read; default: their duskfuse.yaml.", show_default=False),
    ] = None,
    steering: Steering = None,
    task: ForTask = None,
    critic: LiveCritic = None,
    backbone: Backbone = None,
    archive: Annotated[bool, typer.Option("--archive", help="Write OUT.tar.gz, too.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a bundle for the device: ONNX files, checked for TensorRT 8.5 to 11, and what runs them."""
    with verb(as_json):
        from duskfuse.export.export import export
        from duskfuse.export.onnx_graph import Precision

        precisions = [choice(Precision, text.strip(), "--precision") for text in precision.split(",")]
        report = export(
            model,
            out=out,
            precision=precisions,
            size=size or (),
            dynamic=dynamic,
            dla=dla,
            calibration=calibration,
            reading=reading,
            overwrite=overwrite,
            archive=archive,
            steering=steering,
            task=task,
            critic=critic,
            backbone=backbone,
        )
        show(report.to_json(), as_json, [report.table(), *report.findings_tables()])


@app.command("lint", rich_help_panel=PANEL)
def lint_command(
    files: Annotated[list[Path], typer.Argument(help="ONNX files, of any program.", show_default=False)],
    dla: Annotated[bool, typer.Option("--dla", help="Experiment: also what a DLA would leave to the GPU.")] = False,
    as_json: Json = False,
) -> None:
    """Say which TensorRT releases read ONNX files; exit code 1 where one refuses a file."""
    with verb(as_json):
        from duskfuse.export.tensorrt_lint import lint_file, lint_tables

        reports = [lint_file(path, dla=dla) for path in files]
        show([report.to_json() for report in reports], as_json, lint_tables(reports))
        if any(report.errors for report in reports):
            raise typer.Exit(EXIT_FAILED)


@app.command("estimate", rich_help_panel=PANEL)
def estimate_command(
    model: Annotated[list[str], typer.Argument(help="Models or ONNX files.", show_default=False)],
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT; default: 640x480, or a file's own.", show_default=False)
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(help="Jetson module, e.g. orin-nx-16gb; repeatable; default: five usual.", show_default=False),
    ] = None,
    precision: Annotated[str, typer.Option(help="Comma-separated: fp16, int8.", show_default=False)] = "",
    measured: Annotated[
        Path | None, typer.Option(help="JSON of trtexec or `bench` from the module, or of --save.", show_default=False)
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="File for the constants fitted to --measured.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate, before you own the device, how long models take on it."""
    with verb(as_json):
        from duskfuse.export.estimate.estimate import estimate

        precisions = [text.strip() for text in precision.split(",") if text.strip()]
        report = estimate(model, size=size, module=module or (), precision=precisions, measured=measured, save=save)
        show(report.to_json(), as_json, report.tables())


@app.command("models", rich_help_panel=PANEL)
def models_command(as_json: Json = False) -> None:
    """List the packaged students with what they cost and how good their pictures are."""
    with verb(as_json):
        from duskfuse.students.zoo import list_models, models_table

        models = list_models()
        show(models, as_json, [models_table(models)])


def _reading(
    file: Path | None,
    thermal_range: str | None,
    percentiles: str | None,
    black_hot: bool,
    resize_ir: bool,
    homography: Path | None,
) -> Reading:
    """The settings of a file, replaced by those of the options."""
    from duskfuse.data.homography import load_homography
    from duskfuse.data.images import ThermalRange
    from duskfuse.data.reading import AS_STORED, load_reading

    changes: dict[str, Any] = {}
    if thermal_range is not None or percentiles is not None:
        changes["thermal_range"] = (
            None if thermal_range is None else ThermalRange(*_span("--thermal-range", thermal_range))
        )
        changes["percentiles"] = None if percentiles is None else _span("--percentiles", percentiles)
    if black_hot:
        changes["black_hot"] = True
    if resize_ir or homography is not None:
        changes |= {"resize_ir": resize_ir, "homography": load_homography(homography) if homography else None}
    return replace(AS_STORED if file is None else load_reading(file), **changes)


def _span(option: str, text: str) -> tuple[float, float]:
    from duskfuse.data.errors import InputError

    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise InputError(
            f"{option} {text}", rule="two numbers, written LOW:HIGH", remedy=f"e.g. {option} 0.5:99.5"
        ) from None
    return low, high
