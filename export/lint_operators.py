"""Rules of TensorRT's ONNX parser about opsets, operators, number formats, constant inputs and Resize.

Sources: the tables of `tensorrt_releases`, and what NVIDIA's TensorRT-RTX parser was seen to refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import onnx

from duskfuse.export.lint_finding import Finding, Rule, Severity, unless_seen_built
from duskfuse.export.onnx_view import OnnxView, attributes
from duskfuse.export.tensorrt_releases import Release

PLUGIN_OPERATORS = frozenset({"DeformConv"})
"""In the tables of newer releases, but run by NVIDIA's plugin library, which has to be loaded into the builder."""
_COORDINATES = frozenset({"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"})
_OTHER_FIRST_INPUT = frozenset(
    {"If", "Loop", "Scan", "OneHot", "ConstantOfShape", "QuantizeLinear", "DequantizeLinear"}
)
"""Operators whose listed formats are not those of their first input; Q/DQ has rules of its own."""
_OF_SIZES = frozenset({"INT32", "INT64", "BOOL"})

_error = partial(Finding, severity=Severity.ERROR)
_warning = partial(Finding, severity=Severity.WARNING)


def check_opset(view: OnnxView, release: Release) -> Iterator[Finding]:
    """The opset lies in the documented range, and no local function stands in a file for 8.x.

    Parsers check neither bound: below it files are read with luck, above it single operators fail or are misread.
    """
    lowest, highest = release.lowest_opset, release.highest_opset
    if not lowest <= view.opset <= highest:
        yield Finding(
            Rule.OPSET,
            Severity.WARNING if view.opset < lowest else Severity.ERROR,
            node="",
            seen=f"opset {view.opset}; documented are {lowest} to {highest}",
            remedy="export with opset 17, which all releases from 8.5 on read",
        )
    if view.has_functions and release.version < (9,):
        yield _error(
            Rule.FUNCTION,
            node="",
            seen="the file has local functions, which are read from 9.0 on",
            remedy="inline them: onnx.inliner.inline_local_functions",
        )


def check_operators(view: OnnxView, release: Release) -> Iterator[Finding]:
    """Every operator is in the table, built in, and of the standard domain."""
    remedy = "build it from operators of the standard domain"
    for node in view.nodes:
        foreign = f"{node.domain}::" if node.domain not in ("", "ai.onnx") else ""
        if node.op_type not in release.operators:
            seen = f"operator {foreign}{node.op_type} is not supported"
            yield _error(Rule.OPERATOR, node=_name(node), seen=seen, remedy=remedy)
        elif node.op_type in PLUGIN_OPERATORS:
            seen = f"operator {node.op_type} is run by NVIDIA's plugin library, which is not loaded"
            yield _error(Rule.PLUGIN, node=_name(node), seen=seen, remedy=remedy)
        elif foreign:
            seen = (
                f"operator {foreign}{node.op_type} is read as the standard {node.op_type}: the parser ignores domains"
            )
            yield _warning(Rule.OPERATOR, node=_name(node), seen=seen, remedy=remedy)


def check_formats(view: OnnxView, release: Release) -> Iterator[Finding]:
    """Every value has a number format that the release knows, and that the operators using it list."""
    ends = {*view.inputs, *view.outputs}
    for name, element in view.types.items():
        if element and release.format(element) not in release.formats:
            place = "network input" if name in view.inputs else "network output" if name in view.outputs else "value"
            yield _error(
                Rule.FORMAT,
                node=name,
                seen=f"{place} of {release.format(element)}, a number format that TensorRT does not take",
                remedy="convert before the network (16-bit infrared: scale to float32 on the host)",
            )
    for node in view.nodes:
        listed = release.operators.get(node.op_type)
        if not listed or not node.input or node.op_type in _OTHER_FIRST_INPUT:
            continue
        judged = node.input[1] if node.op_type == "Where" else node.input[0]
        element = view.types.get(judged, 0)
        kind = release.format(element)
        if not element or kind not in release.formats or kind in listed:
            continue
        if kind == "UINT8" and node.op_type == "Cast" and judged in ends:
            continue
        # Tables are about pictures; sizes are integers and conditions, which parsers compute on the host.
        found = _warning if kind in _OF_SIZES else _error
        yield found(
            Rule.FORMAT,
            node=_name(node),
            seen=f"{node.op_type} on {kind}, which its table does not list",
            remedy="cast to a listed format before it",
        )


def check_constants(view: OnnxView, release: Release) -> Iterator[Finding]:
    """Inputs that must be constants of the file are."""
    for node in view.nodes:
        wanted = release.constants.get(node.op_type)
        if not wanted or not onnx.defs.has(node.op_type):
            continue
        formal = [value.name for value in onnx.defs.get_schema(node.op_type).inputs]
        for name, given in zip(formal, node.input, strict=False):
            if name in wanted and given and not view.is_constant(given):
                yield _error(
                    Rule.CONSTANT,
                    node=_name(node),
                    seen=f"{node.op_type} with a computed {name}, which must be a constant of the file",
                    remedy="export with a fixed size, or fold constants",
                )


def check_resize(view: OnnxView, release: Release) -> Iterator[Finding]:
    """Resize: nearest or linear, one of five coordinate modes, no antialiasing, stretched, all axes."""
    for node in view.nodes:
        if node.op_type != "Resize":
            continue
        given = attributes(node)
        mode, coordinates = given.get("mode", "nearest"), given.get("coordinate_transformation_mode", "half_pixel")
        faults = {
            "antialiasing": bool(given.get("antialias", 0)),
            f"aspect ratio policy {given.get('keep_aspect_ratio_policy')}": (
                given.get("keep_aspect_ratio_policy", "stretch") != "stretch"
            ),
            f"coordinate mode {coordinates}": coordinates not in _COORDINATES,
        }
        for seen in [seen for seen, found in faults.items() if found]:
            remedy = "use nearest or linear, half_pixel, with scales of all axes and no antialiasing"
            yield _error(
                Rule.RESIZE, node=_name(node), seen=f"Resize with {seen}, which is not supported", remedy=remedy
            )
        if _some_axes(given.get("axes"), len(view.shapes.get(node.input[0], ()))):
            yield Finding(
                Rule.RESIZE,
                unless_seen_built(release.version),
                _name(node),
                "Resize of some axes only; the tables list all axes in their order",
                "give the scales of all axes",
            )
        if mode not in ("nearest", "linear"):
            seen = f"Resize mode {mode}; the tables list nearest and linear, newer parsers take cubic"
            yield _warning(Rule.RESIZE, node=_name(node), seen=seen, remedy="try it on the device, or use linear")


def _some_axes(axes: object, rank: int) -> bool:
    return isinstance(axes, list) and bool(rank) and axes != list(range(rank))


def _name(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type} making {', '.join(node.output)}"
