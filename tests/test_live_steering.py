"""The closed loop in use: a network that looks at every picture, in Python and as a file for a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from rtx_builder import build_all
from torch import Tensor, nn
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.class_conventions import convention_named, objects_named
from duskfuse.data.colour import luminance, recombine
from duskfuse.data.errors import InputError
from duskfuse.data.images import read_picture, write_picture
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.distill.closed_loop.live import LiveSteering, steer_live
from duskfuse.distill.closed_loop.loop_task import LoopTask, deepest_layer
from duskfuse.distill.critics import Critic
from duskfuse.export.export import export
from duskfuse.export.fuse import fuse
from duskfuse.export.fuse_live import fuse_live
from duskfuse.export.onnx_graph import DeployedStudent, build_graph, save_graph, set_properties
from duskfuse.export.tensorrt_lint import lint
from duskfuse.students.fold import fold_batchnorm
from duskfuse.students.steering.base_vectors import CONFIGURATIONS, BaseVectorBank
from duskfuse.students.steering.compensation import Compensation
from duskfuse.students.steering.description import Resolution, _averaged
from duskfuse.students.steering.live import LiveCompensation
from duskfuse.students.steering.steered import SteeredStudent, Steering
from duskfuse.students.steering.steering_file import save_steering
from duskfuse.students.steering.taps import taps_of
from duskfuse.students.zoo import build_student, load_student
from duskfuse.tasks.detector import Detector, new_detector
from duskfuse.tasks.fusion_blocks import FusionBlock
from duskfuse.tasks.open_segmenter import ARCHITECTURE, new_segmenter, segmenter_settings
from duskfuse.tasks.trunk import Trunk

CONVENTION = convention_named("targets-2")


def strangely(compensation: Compensation) -> Compensation:
    """Weights and statistics that are not those of the start, so that every part has a say."""
    for parameter in compensation.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert compensation.norm.running_mean is not None
    assert compensation.norm.running_var is not None
    nn.init.uniform_(compensation.norm.running_mean, -0.1, 0.1)
    nn.init.uniform_(compensation.norm.running_var, 0.5, 2)
    return compensation.eval()


def steered(name: str) -> SteeredStudent:
    """Compensations that can be seen in the picture."""
    torch.manual_seed(3)
    network = SteeredStudent(build_student(name, {}), Steering(taps_of(build_student(name, {})), ("segmentation",)))
    for tap in network.steering.taps:
        nn.init.normal_(network.steering.compensation(tap.module).leave.weight, std=0.3)
    return network.eval()


def segmenter() -> Critic:
    torch.manual_seed(1)
    return new_segmenter(CONVENTION).freeze()


def pictures(height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    smooth = torch.rand(1, 4, height // 8, width // 8, generator=generator)
    vis, ir = F.interpolate(smooth, (height, width), mode="bilinear").split([3, 1], dim=1)
    return vis, ir


@pytest.mark.parametrize("channels", [8, 16])
def test_a_live_compensation_equals_the_trained_one_whatever_it_chooses(channels: int) -> None:
    """Over many descriptors, among them branches that share a configuration and others that do not."""
    torch.manual_seed(0)
    bank, chosen = BaseVectorBank(), set()
    for _ in range(12):
        trained = strangely(Compensation(channels, resolution=Resolution(image=6, task=5)))
        maps, features = torch.randn(1, channels, 11, 14), torch.randn(1, 12, 7, 9)
        with torch.no_grad():
            expected, descriptor = trained(maps, features, bank)
            torch.testing.assert_close(LiveCompensation(trained, bank)(maps, features), expected, atol=2e-4, rtol=1e-4)
        chosen.add(tuple(choice.name for choice in trained.choices(descriptor)[0]))
    assert {name for names in chosen for name in names} == {choice.name for choice in CONFIGURATIONS}
    assert any(len(set(names)) < len(names) for names in chosen)


@pytest.mark.parametrize("size", [(16, 20), (17, 19), (5, 64), (8, 8)])
def test_descriptions_average_as_adaptive_pooling_does(size: tuple[int, int]) -> None:
    maps = torch.rand(2, 3, *size, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(maps, (min(size[0], 8), min(size[1], 8)))
    torch.testing.assert_close(_averaged(maps, 8), expected, atol=1e-6, rtol=0)


def test_looking_at_a_layer_computes_nothing_behind_it() -> None:
    critic = segmenter()
    task = LoopTask(critic, deepest_layer(critic))
    vis, ir = pictures(64, 96)
    with torch.no_grad():
        whole = task.see(vis, ir).features
        behind: list[str] = []
        last = [module for module in critic.modules() if isinstance(module, nn.Conv2d)][-1]
        last.register_forward_hook(lambda module, inputs, output: behind.append("prediction"))
        assert torch.equal(task.features(vis, ir), whole)
        assert behind == []
        task.see(vis, ir)
        assert behind == ["prediction"]


@pytest.mark.parametrize("name", ["nano", "unet", "mobile", "vfn"])
def test_the_live_form_is_one_turn_of_the_loop(name: str) -> None:
    """The student's own picture in colours, what the network sees in it, and the compensated one."""
    network, critic = steered(name), segmenter()
    vis, ir = pictures(64, 96)
    live = LiveSteering(network, critic).train()
    with torch.no_grad():
        y = luminance(vis)
        own = recombine(network.student(y, ir).y, vis)
        features = LoopTask(critic, deepest_layer(critic)).see(own, ir).features
        expected = network(y, ir, features).y
        made = live(vis, ir)
        torch.testing.assert_close(made.y, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(made.rgb, recombine(expected, vis), atol=1e-5, rtol=0)
        torch.testing.assert_close(fold_batchnorm(live)(vis, ir).y, expected, atol=1e-5, rtol=0)
        assert float((made.rgb - own).abs().max()) > 2e-4
        assert not live.training


def test_a_network_of_another_kind_may_look() -> None:
    """A detector of two cameras, which no steering here was trained for, with other numbers of channels and places."""
    torch.manual_seed(2)
    detector: Detector = new_detector(objects_named("LLVIP-1"), fusion=FusionBlock.CONCAT).freeze()
    live, vis = LiveSteering(steered("nano"), detector), pictures(64, 96)
    with torch.no_grad():
        made = live(*vis)
    assert live.task == "detection"
    assert made.rgb is not None
    assert bool(torch.isfinite(made.rgb).all())


@pytest.mark.parametrize("size", [(64, 96), (120, 152)])
def test_the_file_equals_the_live_form_and_every_release_reads_it(size: tuple[int, int]) -> None:
    live = LiveSteering(steered("nano"), segmenter())
    vis, ir = pictures(*size)
    with torch.no_grad():
        expected = live(vis, ir).rgb
    graph = build_graph(DeployedStudent(live), size=size)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (fused,) = session.run(["fused_rgb"], {"ir": ir.numpy(), "vis": vis.numpy()})
    np.testing.assert_allclose(fused, expected.numpy(), atol=1e-4)
    report = lint(graph, "live")
    assert {str(verdict) for verdict in report.verdicts.values()} == {"clean"}


def test_nvidias_builder_takes_the_loop(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="NVIDIA's builder is installed by the extra tensorrt-rtx")
    paths = []
    for precision in ("fp32", "fp16"):
        live = LiveSteering(steered("nano"), segmenter())
        graph = build_graph(DeployedStudent(live, half=precision == "fp16"), size=(64, 96))
        set_properties(graph, {"precision": precision})
        paths.append(tmp_path / f"live-{precision}.onnx")
        save_graph(graph, paths[-1])
    assert {path.name: verdict.get("error") for path, verdict in build_all(paths).items()} == dict.fromkeys(
        (path.name for path in paths), None
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A steering of nano, a critic, and two pairs."""
    folder = tmp_path_factory.mktemp("live")
    torch.manual_seed(0)
    student, _ = load_student("nano")
    network = SteeredStudent(student, Steering(taps_of(student), ("segmentation",)))
    for tap in network.steering.taps:
        nn.init.normal_(network.steering.compensation(tap.module).leave.weight, std=0.05)
    save_steering(folder / "steering.safetensors", network, punishment=5, training_data="nothing", metrics={})
    made = new_segmenter(CONVENTION)
    card = ModelCard(ARCHITECTURE, segmenter_settings(made, Trunk.RESIDUAL), "rgb", "0.1.0", "nothing")
    save_weights(folder / "segmenter.safetensors", made.network, card)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        for side, shape in (("ir", (48, 64)), ("vis", (48, 64, 3))):
            write_picture(folder / side / f"{seed}.png", rng.integers(0, 255, shape).astype(np.uint8))
    return folder / "steering.safetensors", folder / "segmenter.safetensors", folder


def test_the_command_fuses_live(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    steering, critic, folder = files
    words = [
        "fuse",
        "--ir",
        str(folder / "ir"),
        "--vis",
        str(folder / "vis"),
        "--out",
        str(tmp_path),
        "--model",
        "nano",
    ]
    done = CliRunner().invoke(app, [*words, "--steering", str(steering), "--critic", str(critic)])
    assert done.exit_code == 0, done.output
    assert "nano for segmentation, live" in done.output
    live = steer_live(load_student("nano")[0], steering, critic)
    ir, vis = (torch.from_numpy(read_picture(folder / side / "1.png")) / 255 for side in ("ir", "vis"))
    with torch.no_grad():
        expected = live(vis.permute(2, 0, 1)[None], ir.view(1, 1, 48, 64)).rgb[0].permute(1, 2, 0)
    written = torch.from_numpy(read_picture(tmp_path / "1.png")) / 255
    torch.testing.assert_close(written, expected, atol=0.51 / 255, rtol=0)


def test_a_live_bundle_is_written_and_verified(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    steering, critic, folder = files
    report = export("nano", out=tmp_path / "b", size=["64x48"], calibration=folder, steering=steering, critic=critic)
    assert report.model == "nano-live-segmentation"
    assert "live, after what" in str(report.card["notes"])
    assert [entry.precision for entry in report.files] == ["fp32", "fp16", "int8"]
    assert report.files[0].verification.largest_error < 1e-4
    fuse(folder / "ir", folder / "vis", tmp_path / "own", model=tmp_path / "b" / report.files[0].file)
    fuse(folder / "ir", folder / "vis", tmp_path / "live", model="nano", steering=steering, critic=critic)
    own, live = (read_picture(tmp_path / name / "0.png").astype(int) for name in ("own", "live"))
    assert np.abs(own - live).max() <= 1


@pytest.mark.parametrize("how", ["task", "critic"])
def test_sequences_are_fused_as_pictures_are(files: tuple[Path, Path, Path], tmp_path: Path, how: str) -> None:
    steering, critic, folder = files
    wanted = {"steering": steering, **({"critic": critic} if how == "critic" else {"task": "segmentation"})}
    fuse(folder / "ir", folder / "vis", tmp_path / "pictures", model="nano", **wanted)  # type: ignore[arg-type]
    sides = (str(folder / side / "%d.png") for side in ("ir", "vis"))
    state = fuse_live(*sides, [str(tmp_path / "sequence")], model="nano", quiet=True, **wanted)  # type: ignore[arg-type]
    assert (state["frames"], state["model"].startswith("nano for segmentation")) == (2, True)
    for number in range(2):
        picture = read_picture(tmp_path / "pictures" / f"{number}.png").astype(int)
        frame = read_picture(tmp_path / "sequence" / f"{number:06d}.png").astype(int)
        assert np.abs(picture - frame).max() <= 1


def test_what_does_not_go_together_is_refused(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    steering, critic, folder = files
    sides = (folder / "ir", folder / "vis", tmp_path / "out")
    for wanted in ({"critic": critic}, {"steering": steering, "critic": critic, "task": "segmentation"}):
        with pytest.raises(InputError, match="--steering FILE with --critic NETWORK, or with --for TASK"):
            fuse(*sides, model="nano", **wanted)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--backbone without --critic"):
        fuse(*sides, model="nano", steering=steering, task="segmentation", backbone=critic)
    with pytest.raises(InputError, match="only a 'slgdet"):
        fuse(*sides, model="nano", steering=steering, critic=critic, backbone=critic)
    with pytest.raises(InputError, match="made for one size"):
        export("nano", out=tmp_path / "b", dynamic=True, steering=steering, critic=critic)
    with pytest.raises(InputError, match="steering goes into a student"):
        fuse(*sides, model=tmp_path / "x.onnx", steering=steering, critic=critic)
