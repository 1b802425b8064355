"""The verbs about bundles: arguments in, one call, words out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from nanoflux_export.console import (
    console,
    gpu_remarks,
    gpu_table,
    parity_table,
    rows_table,
    watched,
)
from nanoflux_export.findings import explain_finding, explain_unused, lint_errors, told
from nanoflux_mobile.strict_json import to_plain

if TYPE_CHECKING:
    from nanoflux_export.inspecting import Inspection
    from nanoflux_mobile.manifest import Finding

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(to_plain(value), indent=2, ensure_ascii=False))


def demo(
    out: Annotated[Path, typer.Option(help="Folder for bundles, pictures and report.")] = Path(
        "build/demo"
    ),
    as_json: AsJson = False,
) -> None:
    """The whole way on the shipped tiny checkpoint.

    Example: nanoflux demo --out build/demo
    """
    from nanoflux_export import demo as whole_way

    screen = console()
    with screen.status("starting") as status:
        made = whole_way.run(out, watched(screen, status))
    for bundle in made.bundles:
        screen.print(parity_table(bundle.path.name, bundle.manifest.parity))
    screen.print(f"[bold]report[/bold]    {made.report}\n[bold]pictures[/bold]  {made.grid}")
    if as_json:
        _print_json(made_plain(made.bundles, report=str(made.report), pictures=str(made.grid)))


def made_plain(bundles: Iterable[Any], **more: str) -> dict[str, Any]:
    """Paths, digests and parity of finished bundles, for --json."""
    rows = [
        {"path": str(b.path), "digest": b.manifest.digest, "parity": to_plain(b.manifest.parity)}
        for b in bundles
    ]
    return {"bundles": rows, **more}


def list_all(as_json: AsJson = False) -> None:
    """Families, variants, plans, recipes and targets.

    Example: nanoflux list --json
    """
    from nanoflux_export.inspecting import OVERVIEW_COLUMNS, overview, overview_row
    from nanoflux_export.recipe import load_recipe, shipped
    from nanoflux_mobile import plugins, variants
    from nanoflux_mobile.distill import plan

    screen = console()
    with screen.status("counting"):
        sizes = {name: overview(name) for name in variants.names()}
    plans = {name: plan.load(name) for name in plan.names()}
    recipes = {name: load_recipe(name) for name in shipped()}
    families = plugins.names("nanoflux_mobile.families")
    targets = plugins.names("nanoflux_export.targets")
    if as_json:
        found = {"families": families, "variants": sizes, "targets": targets, "recipes": recipes}
        _print_json({**found, "plans": plans})
        return
    rows = [
        (name, recipe.family, ", ".join(sorted(recipe.targets)), recipe.summary)
        for name, recipe in recipes.items()
    ]
    screen.print(f"families  {', '.join(families)}\ntargets   {', '.join(targets)}")
    table = rows_table(OVERVIEW_COLUMNS, [overview_row(*entry) for entry in sizes.items()])
    table.columns[0].no_wrap = True
    screen.print(table)
    screen.print(rows_table(("recipe", "family", "targets", "what it is"), rows))
    chains = [
        (name, chain.family, str(len(chain.stages)), chain.summary) for name, chain in plans.items()
    ]
    screen.print(rows_table(("plan", "family", "stages", "what it is"), chains))


def doctor(as_json: AsJson = False) -> None:
    """What is installed, what is missing, and the command that mends it.

    Example: nanoflux doctor
    """
    from nanoflux_export.doctor import examine

    checks = examine()
    if as_json:
        _print_json(checks)
    else:
        rows = [(c.area, c.name, c.found, "ok" if c.good else c.mend) for c in checks]
        console().print(rows_table(("for", "what", "found", "mend it with"), rows))
    if not all(check.good for check in checks):
        raise typer.Exit(1)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder in diffusers' layout.")],
    recipe: Annotated[str, typer.Option(help="A shipped recipe's name, or a .toml file.")],
    out: Annotated[Path, typer.Option(help="Folder for the bundles.")] = Path("build"),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="One-off change of a recipe value: key.sub=value."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="Fuse this LoRA first: FILE, or FILE=STRENGTH; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A checkpoint into one verified bundle per target; run again to resume.

    Example: nanoflux export my-flux --recipe tiny-small --out build
    """
    from nanoflux_export.export_report import write_report
    from nanoflux_export.pipeline import export as run_export
    from nanoflux_export.recipe import load_recipe, with_loras
    from nanoflux_export.remarks import fit_sentence, remarks

    wanted = with_loras(load_recipe(recipe, tuple(overrides or ())), tuple(lora or ()))
    screen = console()
    with screen.status("starting") as status:
        journal = watched(screen, status)
        bundles = run_export(checkpoint, wanted, out, journal)
        report = write_report(wanted, bundles, out, journal)
    for bundle in bundles:
        screen.print(parity_table(str(bundle.path), bundle.manifest.parity))
        for sentence in (*map(fit_sentence, bundle.fits), *remarks(bundle.manifest)):
            screen.print(f"[yellow]note[/yellow] {escape(sentence)}")
    screen.print(f"[bold]report[/bold]  {report}")
    if as_json:
        _print_json(made_plain(bundles, report=str(report)))


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    gpu: Annotated[
        bool,
        typer.Option("--gpu", help="Also run LiteRT files on its GPU delegate, over Vulkan."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hashes, lint, and parity of the saved files against the recipe's floors.

    Example: nanoflux verify build/tiny-small-coreml
    """
    from nanoflux_export.bundle import open_bundle
    from nanoflux_export.verify import gpu_checker, on_gpu
    from nanoflux_export.verify import verify as run_verify

    screen = console()
    with screen.status("checking hashes") as status:
        opened, journal = open_bundle(bundle), watched(screen, status)
        checker = gpu_checker(opened) if gpu else None
        found = run_verify(opened, journal)
        if checker:
            found = replace(found, gpu=on_gpu(opened, checker, journal))
    if as_json:
        _print_json(found)
    else:
        screen.print(parity_table(str(bundle), found.parity))
        _print_lint(screen, found.lint)
        for item in found.unused:
            screen.print(f"[yellow]note[/yellow] {escape(explain_unused(item))}")
        if found.gpu:
            screen.print(gpu_table(found.gpu))
        for sentence in gpu_remarks(found.gpu):
            screen.print(f"[yellow]note[/yellow] {escape(sentence)}")
    if found.failed or found.errors or not all(figure.holds for figure in found.gpu):
        raise typer.Exit(1)


def generate(
    path: Annotated[Path, typer.Argument(help="A checkpoint (PyTorch) or a bundle (its files).")],
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    seed: Annotated[int, typer.Option(help="0 to 2**64 - 1.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Euler steps.", min=1, max=100)] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The PNG to write.")] = Path("out.png"),
    as_json: AsJson = False,
) -> None:
    """A picture from a prompt, by PyTorch or by a bundle's saved files.

    Example: nanoflux generate build/tiny-small-litert --prompt "a red circle" -o out.png
    """
    from nanoflux_export.pictures import open_painter, paint, save_png

    screen = console()
    with screen.status("loading"):
        painter = open_painter(path)
    with Progress(console=screen, transient=True) as progress:
        task = progress.add_task("drawing", total=steps or painter.steps or 10)
        picture = paint(painter, prompt, seed, steps, lambda step: progress.advance(task))
    save_png(picture, painter, out)
    screen.print(f"wrote {out}")
    if as_json:
        told = {"out": str(out), "prompt": prompt, "seed": seed, "steps": picture.steps}
        _print_json({**told, "digest": painter.digest})


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A checkpoint, bundle, .mlpackage, .tflite or variant's name.")
    ],
    lint: Annotated[
        bool,
        typer.Option("--lint", help="Also what would leave the accelerator; an error ends with 1."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Sizes, ops, schemes, inputs and memory plan of a model file; sizes of a variant by block.

    Example: nanoflux inspect build/tiny-small-litert --lint
    """
    from nanoflux_export.inspecting import inspect as look

    found = look(path, lint)
    if as_json:
        _print_json(found)
    else:
        _print_inspection(path, found, lint)
    if found.errors:
        raise typer.Exit(1)


def _print_inspection(path: Path, found: Inspection, lint: bool) -> None:
    from nanoflux_export.inspecting import SIZE_COLUMNS, facts, size_rows

    screen = console()
    if sizes := found.variant:
        title = f"{path}: {sizes.side} px, {sizes.text_tokens} text tokens, {sizes.steps} steps"
        table = rows_table(SIZE_COLUMNS, size_rows(sizes), title)
        table.columns[0].no_wrap = True
        screen.print(table)
        return
    screen.print(rows_table(("", found.kind), facts(found), title=str(path)))
    if lint:
        _print_lint(screen, found.lint)


def _print_lint(screen: Console, findings: Sequence[Finding]) -> None:
    """A list of all, then the errors in words."""
    for finding in findings:
        line, below = told(finding)
        screen.print(f"{escape(line)}\n  [dim]{escape(below)}[/dim]")
    for error in lint_errors(findings):
        screen.print(f"[red]error[/red] {escape(explain_finding(error))}")
