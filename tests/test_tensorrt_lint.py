"""The lint: what NVIDIA's builder was seen to take and refuse, the parsers' tables, and further rules one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_cases import (
    ACCEPTED,
    CHANNELS,
    REFUSED,
    SIDE,
    convolved,
    model_of,
    one_node,
    quantised_convolution,
    resized,
)

from duskfuse.data.errors import InputError
from duskfuse.export.lint_finding import Finding, Rule, Severity
from duskfuse.export.tensorrt_lint import LintReport, Verdict, lint, lint_file, lint_tables
from duskfuse.export.tensorrt_releases import releases

NAMES = [release.name for release in releases()]
RULES = {
    "int32_bias": {Rule.QUANTISED_FORMAT},
    "zero_point": {Rule.ZERO_POINT},
    "uint8": {Rule.ZERO_POINT},
    "computed_scale": {Rule.SCALE},
    "antialias": {Rule.RESIZE},
    "deform_conv": {Rule.PLUGIN},
    "unknown_operator": {Rule.OPERATOR},
    "uint16_input": {Rule.FORMAT},
}


def rules(report: LintReport, release: str = "11.4") -> set[Rule]:
    return {finding.rule for finding in report.errors if release in finding.releases}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_builder_refuses_is_refused_for_every_release_and_for_the_right_reason(case: str) -> None:
    report = lint(REFUSED[case]())
    assert set(report.verdicts.values()) == {Verdict.REFUSED}
    assert rules(report) == RULES[case]
    assert all(
        finding.remedy and finding.seen and (finding.node or finding.rule is Rule.OPSET) for finding in report.errors
    )


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_the_newest_builder_takes_is_not_refused_for_it(case: str) -> None:
    report = lint(ACCEPTED[case]())
    assert report.verdicts["11.4"] is (Verdict.WARNINGS if "cubic" in case else Verdict.CLEAN)
    if (opset := report_opset(case)) is not None:
        want = {r.name for r in releases() if r.lowest_opset <= opset <= r.highest_opset}
        assert {name for name, verdict in report.verdicts.items() if verdict is Verdict.CLEAN} == want


def report_opset(case: str) -> int | None:
    return int(case.removeprefix("opset_")) if case.startswith("opset_") else None


def test_older_releases_refuse_what_came_later() -> None:
    verdicts = lint(ACCEPTED["layer_norm"]()).verdicts
    assert [name for name in NAMES if verdicts[name] is Verdict.REFUSED] == ["8.5"]
    (error,) = [finding for finding in lint(ACCEPTED["gelu"]()).errors if finding.rule is Rule.OPERATOR]
    assert error.releases == ("8.5", "8.6")
    assert error.node == "the_Gelu"


@pytest.mark.realdata
def test_the_tables_are_those_of_the_parsers(shared_facts: Path) -> None:
    tables = json.loads((shared_facts / "onnx_tensorrt_ops_by_version.json").read_text())
    typing_errors = {"INF64": "INT64", "INT64 BOOL": "INT64 BOOL", "": ""}
    for release in releases():
        if release.name in ("8.5", "8.6", "10.0", "10.1"):
            table = tables[f"{release.name}-GA"]
            assert release.highest_opset == table["opset_max"]
            assert not release.inferred
            assert release.basis.endswith(table["commit"])
            assert release.operators == {
                name: frozenset(
                    kind for listed in row["types"] for kind in typing_errors.get(listed.strip(), listed).split()
                )
                for name, row in table["ops"].items()
                if row["supported"]
            }


def test_what_is_inferred_says_so() -> None:
    assert [release.name for release in releases() if release.inferred] == [
        "10.3",
        "10.7",
        "10.13",
        "10.16",
        "11.1",
        "11.4",
    ]
    older = {release.name: release for release in releases()}
    assert older["10.3"].operators == older["10.1"].operators
    assert older["10.3"].highest_opset == older["10.1"].highest_opset
    assert older["11.4"].operators == older["10.15"].operators


@pytest.mark.parametrize(
    ("model", "rule", "severity"),
    [
        (lambda: convolved(6), Rule.OPSET, Severity.WARNING),
        (lambda: resized("linear", "tf_crop_and_resize"), Rule.RESIZE, Severity.ERROR),
        (lambda: resized("cubic", "half_pixel"), Rule.RESIZE, Severity.WARNING),
        (lambda: one_node("Relu", domain="com.microsoft"), Rule.OPERATOR, Severity.WARNING),
        (lambda: one_node("FusedConv", domain="com.microsoft"), Rule.OPERATOR, Severity.ERROR),
        (lambda: computed_axes(), Rule.CONSTANT, Severity.ERROR),
        (lambda: ends_in_dequantise(), Rule.QUANTISED_OUTPUT, Severity.WARNING),
        (lambda: scaled(0.0), Rule.SCALE, Severity.ERROR),
        (lambda: scaled(float("nan")), Rule.SCALE, Severity.ERROR),
        (lambda: inside_a_branch("Unheard"), Rule.OPERATOR, Severity.ERROR),
    ],
)
def test_further_rules(model: Callable[[], onnx.ModelProto], rule: Rule, severity: Severity) -> None:
    found = [finding for finding in lint(model()).findings if finding.rule is rule]
    assert {finding.severity for finding in found} == {severity}
    assert "8.5" in found[0].releases


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        (lambda: quantised_convolution(per_channel_picture=True), Rule.PER_CHANNEL),
        (lambda: quantised_convolution(zero_point=np.array(0, np.uint8)), Rule.QUANTISED_FORMAT),
        (lambda: without_zero_point(), Rule.QUANTISED_FORMAT),
        (lambda: resized_sides(), Rule.RESIZE),
    ],
)
def test_what_only_the_newest_builder_takes_is_a_warning_from_11_on(
    model: Callable[[], onnx.ModelProto], rule: Rule
) -> None:
    verdicts = lint(model()).verdicts
    assert {verdicts[name] for name in NAMES if name < "11" or name[1] == "."} == {Verdict.REFUSED}
    assert verdicts["11.1"] is verdicts["11.4"] is Verdict.WARNINGS
    assert {finding.rule for finding in lint(model()).findings if "11.4" in finding.releases} == {rule}


def resized_sides() -> onnx.ModelProto:
    """Resize with the scales of height and width only, as opset 18 allows."""
    constants = {"scales": np.array([2, 2], np.float32)}
    out = (1, CHANNELS, 2 * SIDE, 2 * SIDE)
    return one_node("Resize", "", "scales", opset=18, constants=constants, out=out, mode="nearest", axes=[2, 3])


def computed_axes() -> onnx.ModelProto:
    """Slice whose axes depend on the picture."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], "most", keepdims=0),
        helper.make_node("Cast", ["most"], ["axis"], "whole", to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["axis", "zero"], ["axes"], "one"),
        helper.make_node("Slice", ["x", "zero", "one_more", "axes"], ["y"], "cut"),
    ]
    return model_of(nodes, {"zero": np.array([0]), "one_more": np.array([1])})


def ends_in_dequantise() -> onnx.ModelProto:
    model = quantised_convolution()
    (convolution,) = [node for node in model.graph.node if node.op_type == "Conv"]
    convolution.output[0] = "c"
    model.graph.node.append(helper.make_node("QuantizeLinear", ["c", "c_scale", "c_zero"], ["c_q"], "quantise_y"))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["c_q", "c_scale", "c_zero"], ["y"], "dequantise_y"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.1, np.float32), "c_scale"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int8), "c_zero"))
    return model


def without_zero_point() -> onnx.ModelProto:
    """By ONNX's rule the quantised values are then uint8."""
    model = quantised_convolution()
    for node in model.graph.node[:2]:
        del node.input[2]
    return model


def scaled(scale: float) -> onnx.ModelProto:
    model = quantised_convolution()
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "x_scale"]
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(scale, np.float32), "x_scale"))
    return model


def inside_a_branch(operator: str) -> onnx.ModelProto:
    shape = (1, CHANNELS, SIDE, SIDE)
    branches = [
        helper.make_graph(
            [helper.make_node(name, ["x"], [out], f"inner_{name}")],
            name,
            [],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, shape)],
        )
        for name, out in (("Relu", "a"), (operator, "b"))
    ]
    node = helper.make_node("If", ["yes"], ["y"], "choose", then_branch=branches[0], else_branch=branches[1])
    return model_of([node], {"yes": np.array(True)})


def test_local_functions_are_looked_into_and_refused_for_8_x() -> None:
    model = one_node("Smooth", domain="mine")
    body = [helper.make_node("Sigmoid", ["a"], ["b"]), helper.make_node("Mul", ["a", "b"], ["c"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Smooth", ["a"], ["c"], body, opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    report = lint(model)
    assert {finding.rule for finding in report.findings} == {Rule.FUNCTION}
    assert {name for name, verdict in report.verdicts.items() if verdict is Verdict.REFUSED} == {"8.5", "8.6"}


def test_the_dla_lint_warns_and_changes_no_verdict() -> None:
    def dla(model: onnx.ModelProto) -> list[str]:
        report = lint(model, dla=True)
        assert {finding.severity for finding in report.dla} <= {Severity.WARNING}
        assert report.verdicts == lint(model).verdicts
        assert lint(model).dla == ()
        return [finding.seen for finding in report.dla]

    assert "a DLA has no DepthToSpace" in dla(ACCEPTED["depth_to_space_CRD"]())
    assert "a DLA has no Pad" in dla(ACCEPTED["pad_reflect"]())
    assert "a DLA resizes bilinearly with half_pixel only" in dla(ACCEPTED["resize_linear_align_corners"]())
    assert "a DLA resizes bilinearly with half_pixel only" not in dla(ACCEPTED["resize_nearest_align_corners"]())
    assert "a DLA before TensorRT 11.4 takes no Q/DQ nodes" in dla(quantised_convolution())
    assert dla(ACCEPTED["opset_17"]()) == ["the file is float32 and a DLA computes in half precision"]
    free = ACCEPTED["opset_17"]()
    free.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    assert any("fixed shapes" in seen for seen in dla(free))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        lint_file(tmp_path / "none.onnx")
    for content in (b"", b"no protobuf at all", REFUSED["uint8"]().SerializeToString()[:-200]):
        path = tmp_path / "broken.onnx"
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as an ONNX model"):
            lint_file(path)


def test_damage_is_told_and_never_a_traceback(tmp_path: Path) -> None:
    random, path = np.random.default_rng(0), tmp_path / "damaged.onnx"
    whole = [REFUSED["int32_bias"](), ACCEPTED["resize_linear_half_pixel"](), inside_a_branch("Sigmoid")]
    refused = 0
    for index in range(240):
        content = bytearray(whole[index % 3].SerializeToString())
        for place in random.integers(len(content), size=2):
            content[place] = random.integers(256)
        path.write_bytes(content)
        try:
            lint_tables([lint_file(path, dla=True)])
        except InputError:
            refused += 1
    assert 0 < refused < 240


def test_reports_as_data_and_as_tables(tmp_path: Path) -> None:
    path = tmp_path / "old.onnx"
    path.write_bytes(ACCEPTED["gelu"]().SerializeToString())
    report = lint_file(path)
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["file"] == "old.onnx"
    assert plain["verdicts"]["8.5"] == "refused"
    assert plain["verdicts"]["10.3"] == "clean"
    assert plain["findings"][0] == {
        "rule": "opset",
        "severity": "error",
        "node": "",
        "seen": "opset 20; documented are 7 to 17",
        "remedy": "export with opset 17, which all releases from 8.5 on read",
        "releases": ["8.5", "8.6"],
    }
    verdicts, findings = lint_tables([report, lint(ACCEPTED["opset_17"](), "new.onnx")])
    columns: list[Any] = [list(column.cells) for column in verdicts.columns]
    assert columns[0][:5] == ["8.5", "8.6", "10.0", "10.1", "10.3*"]
    assert columns[3][:3] == ["refused", "refused", "clean"]
    assert set(columns[4]) == {"clean"}
    assert findings.row_count == 2


def test_findings_of_many_nodes_are_one_row() -> None:
    found = [Finding(Rule.OPERATOR, Severity.ERROR, f"n{index}", "seen", "remedy", ("8.5",)) for index in range(40)]
    _, table = lint_tables([LintReport("f", tuple(found))])
    assert list(table.columns[2].cells) == ["n0 and 39 more"]
