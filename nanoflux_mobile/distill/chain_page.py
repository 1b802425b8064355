"""The report of a chain: what every cut took and cost, what training won back, as one page.

It holds its pictures and its style, asks nothing of the network and runs no script. All of it is
read from the folders of the stages, so it can be made at any time.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanoflux_mobile.distill.chain_files import (
    PICTURES,
    REPORT,
    SCORES,
    Finished,
    read_scores,
    stages_of,
)
from nanoflux_mobile.distill.plan import Plan
from nanoflux_mobile.distill.run_files import METRICS, RUN, read_rows
from nanoflux_mobile.distill.run_page import PAGE, duration, fact_list, flat, settings_list, style
from nanoflux_mobile.distill.scoring import MOST_DB, Score, StageScores
from nanoflux_mobile.markup import Markup, bar, document, element, head, join, scroller, spaced
from nanoflux_mobile.storage import write_file
from nanoflux_mobile.strict_json import to_plain

OVERALL = "overall"
COLUMNS = ("stage", "parameters", "velocity, cut", "trained", "scenes, cut", "trained", "time")


def write_report(out: Path, plan: Plan) -> Path:
    """Write OUT/report.html from what the finished stages left; returns its path."""
    path = out / REPORT
    write_file(path, render(out, plan))
    return path


def render(out: Path, plan: Plan) -> str:
    """The page as one HTML document."""
    stages, teacher = stages_of(out, plan), read_scores(out)
    done = [one for one in stages if one.scores is not None]
    body = element(
        "body",
        _header(plan, teacher, stages, done),
        element(
            "main",
            _table(teacher, stages),
            *(_stage(out, one) for one in stages if one.folder.exists()),
        ),
    )
    return document(f"{plan.name}: {len(done)} of {len(stages)} stages", style(), body)


def _header(
    plan: Plan,
    teacher: StageScores | None,
    stages: Sequence[Finished],
    done: Sequence[Finished],
) -> Markup:
    facts: list[tuple[str, str, str]] = []
    last, smaller = done[-1].scores if done else None, ""
    if teacher and last:
        were, are = total(teacher), total(last)
        smaller = f"{were / are:.1f} times smaller after "
        facts.append(("parameters", count(are), f"the teacher {count(were)}"))
        before, after = scenes(teacher.trained), scenes(last.trained)
        if after is not None:
            note = "" if before is None else f"the teacher {share(before)}"
            facts.append(("scenes", share(after), note))
        if last.trained:
            note = "against the teacher's"
            facts.append(("velocity", f"{_decibels(last.trained)} dB", note))
        seconds = sum(one.scores.seconds for one in done if one.scores)
        facts.append(("time", duration(seconds), "of all stages"))
    return element(
        "header",
        element("p", f"compress, plan {plan.name}", class_="title"),
        element("h1", f"{smaller}{len(done)} of {len(stages)} stages"),
        element("p", plan.summary, class_="summary"),
        fact_list(facts) if facts else "",
    )


def _table(teacher: StageScores | None, stages: Sequence[Finished]) -> Markup:
    """A row for the teacher and one for each stage."""
    most = total(teacher) if teacher else 0
    rows = [_row(element("th", "teacher", scope="row"), teacher, most)] if teacher else []
    for one in stages:
        name = element("a", one.stage.name, href=f"#{one.stage.name}")
        shown = name if one.folder.exists() else one.stage.name
        rows.append(_row(element("th", shown, scope="row"), one.scores, most))
    table = element("table", head(COLUMNS, COLUMNS[2:]), element("tbody", *rows))
    lead = (
        "Velocity is the PSNR of the student's velocity against the teacher's on held-out batches, "
        f"in dB. Scenes is the share of {_prompts(teacher, stages)}held-out prompts drawn right, "
        "the mean of GenEval's columns."
    )
    return element(
        "section",
        element("h2", "Stage by stage"),
        element("p", lead, class_="lead"),
        scroller("Stage by stage", table),
    )


def _prompts(teacher: StageScores | None, stages: Sequence[Finished]) -> str:
    """How many prompts scores are of, "120 or 500 " where calls of the chain differed."""
    found = [teacher, *(one.scores for one in stages)]
    counts = sorted({one.trained.prompts for one in found if one and one.trained} - {0})
    return f"{' or '.join(map(str, counts))} " if counts else ""


def _row(name: Markup, scores: StageScores | None, most: int) -> Markup:
    if scores is None:
        return element("tr", name, element("td", "not finished", colspan=str(len(COLUMNS) - 1)))
    own = total(scores)
    sizes = spaced(element("span", count(own)), bar(own / max(most, 1)))
    pair = (scores.untrained, scores.trained)
    figures = [_decibels(score) for score in pair] + [_percent(score) for score in pair]
    figures.append(duration(scores.seconds) if scores.seconds else "")
    cells = [element("td", figure, class_="number") for figure in figures]
    return element("tr", name, element("td", sizes), *cells)


def _decibels(score: Score | None) -> str:
    if score is None:
        return ""
    return "equal" if score.velocity_db >= MOST_DB else f"{score.velocity_db:.1f}"


def _percent(score: Score | None) -> str:
    found = scenes(score)
    return "" if found is None else share(found)


def total(scores: StageScores) -> int:
    """Parameters of all parts."""
    return sum(scores.parameters.values())


def scenes(score: Score | None) -> float | None:
    """The share of scenes drawn right, if any were drawn."""
    return score.scenes[OVERALL] if score and score.scenes else None


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.1f} %"


def count(parameters: int) -> str:
    """How many parameters, as papers say it."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)


def _stage(out: Path, one: Finished) -> Markup:
    """What a stage did, drew and left."""
    told = ", ".join(f"{name} {value}" for name, value in _own_settings(one))
    return element(
        "section",
        element("h2", f"{one.number}. {one.stage.name}", id=one.stage.name),
        element("p", told, class_="lead"),
        _parts_of(one.scores),
        _columns(one.scores),
        _pictures(one),
        _links(out, one),
        *_figures(one.folder),
        id=f"stage-{one.number}",
    )


def _own_settings(one: Finished) -> list[tuple[str, str]]:
    plain = to_plain(one.stage.settings)
    short = {k: v for k, v in plain.items() if not isinstance(v, dict | list) and v != ""}
    return [("cut", one.stage.cut), *flat(short)]


def _parts_of(scores: StageScores | None) -> Markup:
    if scores is None:
        return element("p", "Not finished.", class_="none")
    told = [f"{name.replace('_', ' ')} {count(n)}" for name, n in scores.parameters.items() if n]
    return element("p", f"Parameters: {', '.join(told)}.")


def _columns(scores: StageScores | None) -> Markup:
    """GenEval's columns before and after training."""
    if scores is None or not (scores.trained and scores.trained.scenes):
        return Markup("")
    names = list(scores.trained.scenes)
    rows = [
        element(
            "tr",
            element("th", title, scope="row"),
            *(element("td", share(found.scenes[name]), class_="number") for name in names),
        )
        for title, found in (("after the cut", scores.untrained), ("trained", scores.trained))
        if found and found.scenes
    ]
    table = element("table", head(["", *names], names), element("tbody", *rows))
    return scroller("Scene scores", table)


def _pictures(one: Finished) -> Markup:
    path = one.folder / PICTURES
    if not path.exists():
        return Markup("")
    data = base64.b64encode(path.read_bytes()).decode()
    told = f"What teacher and students of {one.stage.name} draw for held-out prompts"
    caption = spaced(
        element("b", "The same prompts and seeds"),
        element("span", "One prompt of each column of the scene score."),
    )
    image = element("img", src=f"data:image/png;base64,{data}", alt=told)
    return element("figure", element("figcaption", caption), image)


def _links(out: Path, one: Finished) -> Markup:
    """Every page below the stage's folder, runs with their length and latest loss."""
    links = []
    for page in sorted(one.folder.rglob("*.html")):
        where = page.relative_to(out).as_posix()
        name = page.parent.name if page.name == PAGE else page.stem
        note = _run_note(page.parent / METRICS) if page.name == PAGE else ""
        links.append(element("li", spaced(element("a", name, href=where), element("small", note))))
    if not links:
        return Markup("")
    heading = element("h3", "Runs and pages")
    return join((heading, element("ul", *links, class_="links")))


def _run_note(metrics: Path) -> str:
    rows = read_rows(metrics) if metrics.exists() else []
    return f"{rows[-1]['step']:,} steps, loss {rows[-1].get('loss', 0):.4g}" if rows else ""


def _figures(folder: Path) -> Iterator[Markup]:
    """JSON that a stage left beside its scores, as a list to unfold."""
    for path in sorted(folder.glob("*.json")):
        if path.name in (RUN, SCORES):
            continue
        try:
            found = json.loads(path.read_text())
        except ValueError:
            continue
        if isinstance(found, Mapping):
            yield _unfolding(path.name, found)


def _unfolding(name: str, found: Mapping[str, Any]) -> Markup:
    return element("details", element("summary", name), settings_list(found))
