from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from duskfuse.data.errors import InputError
from duskfuse.data.weights import ModelCard, load_weights, read_card, read_state_dict, save_weights
from duskfuse.students import zoo
from duskfuse.students.unet import OutputHead, UNetStudent
from duskfuse.students.zoo import ModelName, build_student, list_models, load_student
from duskfuse.teachers import main_network
from duskfuse.teachers.main_network import MainNetwork, load_main_network

CARD = ModelCard(
    architecture="unet",
    settings={"head": "sigmoid"},
    colour="luma",
    version="0.1.0",
    training_data="120 synthetic pairs",
    metrics={"psnr": 31.5, "undefined": float("inf")},
    notes="größer",
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "student.safetensors"
    save_weights(path, UNetStudent(), CARD)
    return path


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "student.safetensors"
    student = UNetStudent().to(memory_format=torch.channels_last)
    save_weights(path, student, CARD)
    save_weights(path, student, CARD)  # over an existing file
    other = UNetStudent()
    assert load_weights(path, other, "unet") == CARD == read_card(path)
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in student.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == ["student.safetensors"]


def test_a_failed_write_leaves_the_old_file(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = checkpoint.read_bytes()

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_weights(checkpoint, UNetStudent(), CARD)
    assert checkpoint.read_bytes() == before
    assert len(list(checkpoint.parent.iterdir())) == 1


def test_missing_foreign_and_truncated_files(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.safetensors: no such weights file"):
        read_card(tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match="not a safetensors file"):
        read_card(tmp_path)
    content = checkpoint.read_bytes()
    for name, part in (("foreign", b"\x80\x02}q\x00."), ("half", content[: len(content) // 2]), ("empty", b"")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(part)
        with pytest.raises(InputError, match=rf"{name}\.safetensors: not a safetensors file, or only a part of one"):
            load_weights(path, UNetStudent(), "unet")


def test_card_is_wanted_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file(UNetStudent().state_dict(), path, metadata=metadata)
        with pytest.raises(InputError, match=r"bare\.safetensors: safetensors file without a model card"):
            read_card(path)
    for text, message in (("{", "model card"), ('{"architecture": "unet"}', "settings: Field required")):
        save_file({}, path, metadata={"duskfuse": text})
        with pytest.raises(InputError, match=message):
            read_card(path)


def test_another_architecture_is_named(checkpoint: Path) -> None:
    message = "student.safetensors: checkpoint of another architecture: 'unet'; 'sage-main' is wanted here; give"
    with pytest.raises(InputError, match=message):
        load_weights(checkpoint, UNetStudent(), "sage-main")
    with pytest.raises(InputError, match=message):
        load_main_network(checkpoint)


def test_wrong_tensors_leave_the_module_alone(tmp_path: Path) -> None:
    path = tmp_path / "wrong.safetensors"
    student = UNetStudent()
    before = {key: tensor.clone() for key, tensor in student.state_dict().items()}

    class Edited(nn.Module):
        def __init__(self, **changes: torch.Tensor | None) -> None:
            super().__init__()
            self.changes = {key.replace("__", "."): tensor for key, tensor in changes.items()}

        def state_dict(self, *_: object, **__: object) -> dict[str, torch.Tensor]:  # type: ignore[override]
            merged = UNetStudent().state_dict() | self.changes
            return {key: tensor for key, tensor in merged.items() if tensor is not None}

    for edited, message in (
        (Edited(last__bias=None), "last.bias is missing"),
        (Edited(extra=torch.zeros(2)), "extra is unexpected"),
        (Edited(last__bias=torch.zeros(3)), r"last.bias is \(3,\) and should be \(1,\)"),
        (Edited(last__bias=torch.tensor([float("nan")])), "last.bias has NaN or infinite"),
    ):
        save_weights(path, edited, CARD)
        with pytest.raises(InputError, match=message):
            load_weights(path, student, "unet")
    assert all(torch.equal(tensor, before[key]) for key, tensor in student.state_dict().items())


def test_load_student_from_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "tanh.safetensors"
    student = UNetStudent(OutputHead.TANH).eval()
    card = dataclasses.replace(CARD, settings=student.settings)
    save_weights(path, student, card)
    for given in (path, str(path)):
        loaded, read = load_student(given)
        assert isinstance(loaded, UNetStudent)
        assert loaded.head is OutputHead.TANH
        assert not loaded.training
        assert read == card
    x = torch.rand(1, 1, 8, 8)
    assert torch.equal(loaded(x, x).y, student(x, x).y)


def test_load_student_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    with pytest.raises(InputError, match=r"'unet' are not in this installation \(unet.safetensors is missing\).*train"):
        load_student("unet")
    assert list_models() == {name: {"installed": False} for name in ModelName}
    save_weights(tmp_path / "unet.safetensors", UNetStudent(), CARD)
    assert load_student("unet")[1] == load_student(ModelName.UNET)[1] == CARD
    described = list_models()["unet"]
    assert (described["parameters"], described["training_data"]) == (135_617, "120 synthetic pairs")
    said = "'unett' is neither a model nor a file; models are edge, nano, unet, mobile; the path of a check"
    with pytest.raises(InputError, match=said):
        load_student("unett")


def test_build_student_refuses_teachers_strangers_and_wrong_settings() -> None:
    assert isinstance(build_student("unet", {}), UNetStudent)
    with pytest.raises(InputError, match="'sage-main' is a teacher"):
        build_student(main_network.ARCHITECTURE, {})
    with pytest.raises(
        InputError, match="unknown student architecture 'resnet'; this version knows unet, mobile, edge, nano"
    ):
        build_student("resnet", {})
    for settings in ({"head": "relu"}, {"head": "tanh", "width": 8}, {"head": 3}):
        with pytest.raises(InputError, match=r"it has head \(sigmoid or tanh\)"):
            build_student("unet", settings)


def test_main_network_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    network = MainNetwork(masks=2, compat=True)
    card = ModelCard(main_network.ARCHITECTURE, network.settings, "luma", "0.1.0", "none")
    save_weights(path, network, card)
    loaded, read = load_main_network(path)
    assert (loaded.masks, loaded.compat, loaded.training, read) == (2, True, False, card)
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in network.state_dict().items())
    with pytest.raises(InputError, match=r"teacher\.safetensors: 'sage-main' is a teacher, not a student"):
        load_student(path)
    for settings in ({"masks": 0}, {"compat": 3}, {"depth": 2}):
        save_weights(path, network, dataclasses.replace(card, settings=settings))
        with pytest.raises(InputError, match="a main network has masks"):
            load_main_network(path)


def test_a_foreign_state_dict_is_read_in_both_formats(tmp_path: Path) -> None:
    state = {"a.weight": torch.rand(2, 3), "b": torch.arange(4)}
    torch.save(state, tmp_path / "state.pt")
    save_file(state, tmp_path / "state.safetensors")
    for name in ("state.pt", "state.safetensors"):
        read = read_state_dict(tmp_path / name, rule="", remedy="")
        assert read.keys() == state.keys()
        assert all(torch.equal(read[key], state[key]) for key in state)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_foreign_file_without_tensors_is_refused_without_running_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"state{suffix}"
    with pytest.raises(InputError, match=r"no such file.*the rule.*the remedy"):
        read_state_dict(path, rule="the rule", remedy="the remedy")
    for content in (b"", b"half of a file", zlib.compress(b"0" * 100)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="plain tensors"):
            read_state_dict(path, rule="", remedy="")
    torch.save(Path("an object of a class"), tmp_path / "object.pt")
    with pytest.raises(InputError, match="plain tensors"):
        read_state_dict(tmp_path / "object.pt", rule="", remedy="")
    torch.save({"state": {"a": torch.ones(1)}}, tmp_path / "nested.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        read_state_dict(tmp_path / "nested.pt", rule="", remedy="")
