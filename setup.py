"""Map the top-level folders to the import name ``duskfuse``; everything else is in pyproject.toml.

The folders stand at the top of the repository (``data/``, ``students/``, …) and are imported as
``duskfuse.data``, ``duskfuse.students``, …, so that no name as common as ``data`` reaches site-packages.
"""

from setuptools import find_packages, setup

FOLDERS = ("data", "teachers", "students", "tasks", "distill", "evaluate", "export")

packages = ["duskfuse", "duskfuse.cli"]
for folder in FOLDERS:
    packages += [f"duskfuse.{folder}", *(f"duskfuse.{folder}.{name}" for name in find_packages(folder))]

setup(
    packages=packages,
    package_dir={"duskfuse": "src/duskfuse", **{f"duskfuse.{folder}": folder for folder in FOLDERS}},
)
