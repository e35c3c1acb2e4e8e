"""Built-in synthetic road scenes: aligned infrared and visible pictures with exact labels, boxes and masks."""

from duskfuse.data.scenes.kinds import BoxClass, Condition, SceneClass
from duskfuse.data.scenes.scene import Scene, render_scene
from duskfuse.data.scenes.write import write_scenes

__all__ = ["BoxClass", "Condition", "Scene", "SceneClass", "render_scene", "write_scenes"]
