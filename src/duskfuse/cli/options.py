"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path, typer.Argument(help="Folder of pairs in any recognised layout.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Folder to write to.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
Cache = Annotated[Path | None, typer.Option(help="Prior cache; default $DUSKFUSE_HOME/cache.", show_default=False)]
Store = Annotated[str | None, typer.Option(help="One store only, named by its folder.", show_default=False)]
Split = Annotated[str | None, typer.Option(help="Use one split of DATA only, e.g. train.", show_default=False)]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one number: key.path=value; repeatable.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run of this command wrote.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: all cores.", show_default=False)]
EngineName = Annotated[str, typer.Option("--engine", help="Where to compute: local, or ray (a cluster).")]
Workers = Annotated[int | None, typer.Option(help="Processes that compute; default: one per core.", show_default=False)]
ReadingFile = Annotated[
    Path | None,
    typer.Option(
        "--reading", help="YAML: how infrared pictures are read; default: duskfuse.yaml in DATA.", show_default=False
    ),
]
Masks = Annotated[
    str | None, typer.Option(help="Which cached masks to use: sam, regions, labels, ….", show_default=False)
]
Backbone = Annotated[
    Path | None,
    typer.Option(
        help="Frozen transformer of an SLGNet detector: weights of a ViT in timm's names.", show_default=False
    ),
]
Steering = Annotated[
    Path | None,
    typer.Option(help="What `duskfuse steer` trained around the student; with --for or --critic.", show_default=False),
]
ForTask = Annotated[
    str | None, typer.Option("--for", help="Task that pictures are made for, of --steering.", show_default=False)
]
LiveCritic = Annotated[
    Path | None,
    typer.Option(
        "--critic", help="Task network that looks at every picture first; with --steering.", show_default=False
    ),
]
