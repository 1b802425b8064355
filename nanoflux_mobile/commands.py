"""The verb about students: arguments in, one call, words out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from nanoflux_mobile.distill.plan import Plan


def compress(
    teacher: Annotated[Path, typer.Argument(help="Checkpoint folder in diffusers' layout.")],
    plan: Annotated[str, typer.Option(help="A shipped plan's name, or a .toml file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for stages, student and report: build/PLAN if none.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="What is learned from: scenes, or a folder; over the plan's own.")
    ] = "",
    device: Annotated[str, typer.Option(help="Where training runs: cpu or cuda.")] = "cpu",
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Steps by torch.compile: slow to begin, then faster."),
    ] = False,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Make the cuts alone; nothing is learned.")
    ] = False,
    prompts: Annotated[
        int, typer.Option(help="Pictures behind each scene score; 0 for none.", min=0, max=10_000)
    ] = 120,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="One-off change of the plan: batch=20, heads.choose=first."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """A teacher into a student, cut by cut; run again to go on where it was stopped.

    Example: nanoflux compress my-flux --plan nanoflux --out build/nanoflux
    """
    from nanoflux_mobile.distill.chain import Choices
    from nanoflux_mobile.distill.chain import compress as carry_out
    from nanoflux_mobile.distill.chain_files import REPORT, STUDENT
    from nanoflux_mobile.distill.plan import load
    from nanoflux_mobile.distill.progress import watched

    wanted = load(plan, tuple(overrides or ()))
    place = out or Path("build") / wanted.name
    screen = Console(stderr=True, highlight=False)
    try:
        with watched(screen) as watch:
            choices = Choices(data, device, untrained, prompts, compiled)
            carry_out(teacher, wanted, place, choices, watch)
    except KeyboardInterrupt:
        screen.print("stopped; run the same command again to go on from the last save")
        raise
    screen.print(f"[bold]student[/bold]  {place / STUDENT}\n[bold]report[/bold]   {place / REPORT}")
    if as_json:
        typer.echo(json.dumps(_told(wanted, place), indent=2, ensure_ascii=False))


def _told(plan: Plan, out: Path) -> dict[str, Any]:
    """Paths and scores of a finished chain, for --json."""
    from nanoflux_mobile.distill.chain_files import REPORT, STUDENT, read_scores, stages_of
    from nanoflux_mobile.strict_json import to_plain

    stages = [
        {"name": one.stage.name, "path": str(one.folder), **(to_plain(one.scores) or {})}
        for one in stages_of(out, plan)
    ]
    return {
        "plan": plan.name,
        "student": str(out / STUDENT),
        "report": str(out / REPORT),
        "teacher": to_plain(read_scores(out)),
        "stages": stages,
    }
