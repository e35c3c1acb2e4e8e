"""The packaged student keeps what its card promises, on held-out real pairs and on built-in scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from duskfuse.data.scenes import Condition, SceneClass, render_scene
from duskfuse.evaluate.evaluate import evaluate
from duskfuse.evaluate.fusers import open_fuser
from duskfuse.students.zoo import ModelName, load_student


@pytest.mark.parametrize("name", list(ModelName))
def test_the_card_names_its_data_and_scores(name: ModelName) -> None:
    _, card = load_student(name)
    assert card.training_data
    assert {"Qabf", "VIF", "SF", "SCD"} <= set(card.metrics)


@pytest.mark.parametrize("name", list(ModelName))
def test_people_stay_visible_at_night(name: ModelName) -> None:
    """Hot people that the visible camera hardly sees stand out in the fused picture."""
    fuser = open_fuser(name, threads=1)
    gains = []
    for seed in range(4):
        scene = render_scene(seed, size=(240, 320), condition=Condition.NIGHT)
        people = scene.seg == SceneClass.PERSON
        if people.sum() < 60:
            continue
        ir, vis_y = scene.ir.astype(np.float32) / 255, (scene.vis @ [0.299, 0.587, 0.114]).astype(np.float32) / 255
        fused = fuser.fuse(ir, vis_y)
        gains.append(_contrast(fused, people) - _contrast(vis_y, people))
    assert gains
    assert np.mean(gains) > 0.1


def _contrast(picture: np.ndarray, people: np.ndarray) -> float:
    return float(picture[people].mean() - picture[~people].mean())


@pytest.mark.realdata
@pytest.mark.slow
def test_held_out_scores_beat_the_trivial_rows(shared_data: Path, tmp_path: Path) -> None:
    evaluation = evaluate(shared_data / "val", model=list(ModelName), out=tmp_path / "scores")
    means = {row.name: {m.name: row.summary(m.name).mean for m in evaluation.metrics} for row in evaluation.rows}
    for name in ModelName:
        for metric in ("Qabf", "VIF", "SF"):
            assert means[name][metric] > means["average"][metric]
        assert means[name]["SCD"] > means["maximum"]["SCD"]
