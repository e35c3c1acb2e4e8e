"""How many convolutions lie between each convolution and the two ends of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx


def convolution_depths(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Count, for each convolution by name, the fewest convolutions to an input and to the output, itself included."""
    nodes = list(model.graph.node)
    forward = _fewest(nodes, {value.name for value in model.graph.input}, lambda node: (node.input, node.output))
    backward = _fewest(
        nodes[::-1], {value.name for value in model.graph.output}, lambda node: (node.output, node.input)
    )
    return {node.name: (forward[node.output[0]], backward[node.input[0]]) for node in nodes if node.op_type == "Conv"}


def _fewest(
    nodes: Sequence[onnx.NodeProto],
    start: set[str],
    ends: Callable[[onnx.NodeProto], tuple[Sequence[str], Sequence[str]]],
) -> dict[str, int]:
    """Fewest convolutions between ``start`` and every value, over nodes sorted in the walking direction."""
    found = dict.fromkeys(start, 0)
    for node in nodes:
        if node.op_type == "Shape":  # a size says nothing of the picture
            continue
        behind, ahead = ends(node)
        reached = [found[name] for name in behind if name in found]
        if reached:
            steps = min(reached) + (node.op_type == "Conv")
            found |= {name: min(steps, found.get(name, steps)) for name in ahead}
    return found
