"""The verbs about latency: arguments in, one call, words out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from nanoflux_mobile.strict_json import to_plain

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    device: Annotated[str, typer.Option(help="A shipped device's id, or a .toml file.")],
    as_json: AsJson = False,
) -> None:
    """A range of times on a phone nobody measured; no prediction passes a gate.

    Example: nanoflux predict build/tiny-small-coreml --device iphone-16-pro-max
    """
    from nanoflux_benchmarks.predict import predict_bundle
    from nanoflux_benchmarks.prediction_text import tables
    from nanoflux_mobile.device import load_device

    found = predict_bundle(bundle, load_device(device))
    screen = Console(stderr=True, highlight=False)
    for part in tables(found):
        screen.print(part)
    if as_json:
        typer.echo(json.dumps(to_plain(found), indent=2, allow_nan=False))


def gate(
    report: Annotated[Path, typer.Argument(help="A report, log, result zip or folder of a farm.")],
    budget: Annotated[
        str | None, typer.Option(help="A shipped budget's name, or a .toml file.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="The report of the version to compare with.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="The bundle that must have been measured.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with plots.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write Markdown.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML.")] = None,
    as_json: AsJson = False,
) -> None:
    """Pass (exit 0), fail (1) or no evidence (2) on measured latency.

    Without a budget and a baseline the budget is that of the mission, 512 px in 2.5 s.

    Example: nanoflux gate latency-report.json --baseline main.json --html gate.html
    """
    from nanoflux_benchmarks import render
    from nanoflux_benchmarks.session import evaluate
    from nanoflux_benchmarks.verdict import EXIT_CODES
    from nanoflux_mobile.storage import write_file

    screen = Console(stderr=True, highlight=False)
    with screen.status("judging"):
        found = evaluate(report, budget, baseline, bundle)
    for reason in found.verdict.reasons:
        screen.print(f"- {reason}", markup=False)
    screen.print(render.table(found.verdict))
    for power in found.verdict.power:
        screen.print(render.power_text(power), markup=False)
    if markdown:
        write_file(markdown, render.markdown(found.verdict, found.title))
    if junit:
        write_file(junit, render.junit(found.verdict, found.title))
    if html:
        from nanoflux_benchmarks.page import page
        from nanoflux_benchmarks.predict import foreseen

        expected = foreseen(bundle, found.report.device.model) if bundle else None
        write_file(html, page(found, expected))
    if as_json:
        typer.echo(json.dumps(to_plain(found.verdict), indent=2, allow_nan=False))
    raise typer.Exit(EXIT_CODES[found.verdict.outcome])


def bench(
    bundle: Annotated[Path, typer.Argument(help="The bundle to measure.")],
    device: Annotated[
        str, typer.Option(help="host, adb[:SERIAL], replay:RESULTS, or a farm's name.")
    ] = "host",
    baseline: Annotated[
        Path | None, typer.Option(help="A bundle to measure in turn with it, A B B A.")
    ] = None,
    app: Annotated[Path | None, typer.Option(help="The app to install first.")] = None,
    launches: Annotated[int, typer.Option(help="Processes started.", min=1, max=100)] = 8,
    images: Annotated[int, typer.Option(help="Pictures of each.", min=1, max=1000)] = 10,
    warmup: Annotated[int, typer.Option(help="Pictures before them.", min=0, max=100)] = 2,
    seed: Annotated[int, typer.Option(help="0 to 2**64 - 1.", min=0)] = 0,
    out: Annotated[
        Path, typer.Option(help="The report, or the folder of what a farm is handed.")
    ] = Path("latency-report.json"),
    as_json: AsJson = False,
) -> None:
    """Measure a bundle on this machine, on a phone or on a farm.

    Example: nanoflux bench build/tiny-small-litert --device host --out report.json
    """
    from nanoflux_benchmarks.farms import Job
    from nanoflux_benchmarks.measuring import measure

    screen = Console(stderr=True, highlight=False)
    job = Job(bundle, app, launches, images, warmup, seed, baseline)
    with screen.status("starting") as status:
        made = measure(job, device, out, lambda text: status.update(escape(text)))
    for file in made.files:
        screen.print(f"wrote {file}", markup=False)
    if made.commands:
        screen.print("run these, with the farm's credentials in the environment:")
    for command in made.commands:
        screen.print(f"  {command}", markup=False, soft_wrap=True)
    if as_json:
        told = {"files": [str(file) for file in made.files], "commands": list(made.commands)}
        typer.echo(json.dumps(told, indent=2))
