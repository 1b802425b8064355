"""Pages of runs and of chains: whole, on their own, right in every state a folder can be in."""

from __future__ import annotations

import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nanoflux_mobile.distill import chain_page, curves, plan, run_page
from nanoflux_mobile.distill.chain_files import stages_of, write_scores
from nanoflux_mobile.distill.scoring import MOST_DB, Score, StageScores

VOID = {"meta", "link", "img"}
SETTINGS = {"steps": 100, "lr": 0.002, "phase": {"teacher": "before"}, "kinds": [1, 2.5]}


class Page(HTMLParser):
    """Elements of a page by name, and its words; every element must be closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"] and data.strip():
            self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def rows(steps: int = 100) -> list[dict[str, float]]:
    return [
        {
            "step": step,
            "loss": 2.0 / step,
            "velocity": 1.5 / step,
            "psnr_db": -3.0 + 0.1 * step,
            "gradient": 1.0 + 1.0 / step,
            "lr": 2e-3,
            "steps_per_s": 4.0,
        }
        for step in range(5, steps + 1, 5)
    ]


def write_run(folder: Path, lines: list[dict[str, float]], told: object = SETTINGS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps(told))
    return folder


def assert_alone(text: str) -> None:
    """Nothing that a page would fetch, and nothing that would run."""
    assert not re.search(r"(src|href)=\"(?!data:|#|\w[\w/.-]*\.html)", text)
    assert not re.search(r"<script|@import|url\(|\son\w+=", text)
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    assert "prefers-color-scheme: dark" in text


# Runs


def test_a_run_has_a_curve_for_every_figure_in_order(tmp_path):
    text = run_page.render(write_run(tmp_path / "01-heads" / "phase-1", rows()))
    assert_alone(text)
    page = Page(text)
    told = [(plot.get("aria-label") or "").partition(":")[0] for plot in page.all("svg")]
    names = ["loss", "velocity", "psnr db", "gradient norm", "learning rate", "steps per second"]
    assert [name for name in told if name] == names
    assert "01-heads, phase-1" in page.text
    assert "100 of 100 steps, finished" in page.text
    assert "phase.teacher before" in page.text
    assert "1, 2.5" in page.text


def test_a_run_under_way_says_how_far_it_is(tmp_path):
    page = Page(run_page.render(write_run(tmp_path / "run", rows(40))))
    assert "40 of 100 steps, not finished" in page.text
    assert "15 s to go" in page.text


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], SETTINGS),
        (rows(5), SETTINGS),
        (rows(), []),
        ([{**row, "loss": float("nan"), "extra": float("inf")} for row in rows()], SETTINGS),
        ([{**row, "loss": 0.0} for row in rows()], {}),
        ([{**row, "<b>": 1.0} for row in rows()], {"<script>": "<script>"}),
        ([{"step": 5}], {"steps": 10}),
    ],
    ids=["no rows", "one row", "odd settings", "no numbers", "zeros", "markup", "bare"],
)
def test_a_page_is_whole_whatever_the_run_left(tmp_path, lines, told):
    text = run_page.render(write_run(tmp_path / "run", lines, told))
    assert_alone(text)
    assert "nan" not in Page(text).text.lower()


def test_pages_are_written_where_figures_are_new(tmp_path):
    run = write_run(tmp_path / "01-heads" / "phase-1", rows(50))
    run_page.write_pages(tmp_path)
    page = run / "run.html"
    assert "50 of 100" in page.read_text()
    os.utime(page, ns=(2 * 10**18, 2 * 10**18))
    write_run(run, rows(75))
    run_page.write_pages(tmp_path)
    assert "50 of 100" in page.read_text(), "a page newer than its figures stays"
    os.utime(page, ns=(10**18, 10**18))
    run_page.write_pages(tmp_path)
    assert "75 of 100" in page.read_text()


# Curves


def plane(markup: str) -> list[tuple[float, float]]:
    """The points of a curve's strong line: x in thousandths of the width, y in pixels."""
    path = re.findall(r'd="M([^"]+)" class="means"', markup)[0]
    return [tuple(map(float, place.split())) for place in path.split("L")]


def test_a_falling_power_is_a_straight_line_on_the_log_scale():
    points = [(float(step), 10.0 ** (-step / 20)) for step in range(0, 101, 5)]
    drawn = plane(curves.curve("loss", "", points, 100.0, log=True, noisy=False))
    xs, ys = zip(*drawn, strict=True)
    assert xs == tuple(10.0 * step for step in range(0, 101, 5))
    gaps = np.diff(ys)
    assert gaps.min() > 0
    # Places are written with one digit behind the point, so gaps vary by 0.2 pixels.
    assert gaps.max() - gaps.min() <= 0.21
    assert (ys[0], ys[-1]) == (curves.TOP, curves.TOP + curves.HEIGHT)


def test_scales_have_round_ticks():
    scale = curves.scale_of([0.013, 4.2])
    assert scale.log
    assert scale.ticks == pytest.approx((0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0))
    even = curves.scale_of([-2.9, 7.1])
    assert not even.log
    assert even.ticks == pytest.approx((-5.0, -2.5, 0.0, 2.5, 5.0, 7.5))


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=30), st.sampled_from([None, True]))
def test_every_value_lies_inside_its_scale(values, log):
    scale = curves.scale_of(values, log)
    assert all(curves.TOP <= scale.y(value) <= curves.TOP + curves.HEIGHT for value in values)
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks)
    assert len(scale.ticks) <= 12
    assert scale.y(max(values)) <= scale.y(min(values))


@given(st.integers(1, 3000))
def test_thinning_keeps_the_mean_and_the_order(count):
    points = [(float(i), float(i % 7)) for i in range(count)]
    few = curves.thinned(points, 50)
    assert len(few) <= 50
    assert [x for x, _ in few] == sorted(x for x, _ in few)
    if count % len(few) == 0:
        assert np.mean([y for _, y in few]) == pytest.approx(np.mean([y for _, y in points]))


def test_smoothing_leaves_a_constant_and_calms_what_jumps():
    assert curves.smoothed([(i, 3.0) for i in range(100)]) == [(i, 3.0) for i in range(100)]
    jumping = [(i, float(i % 2)) for i in range(400)]
    calm = [y for _, y in curves.smoothed(jumping)]
    assert len(calm) == 400
    assert np.std(calm) < np.std([y for _, y in jumping]) / 5


# Chains


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


def scores(size: int, velocity: float, overall: float | None = None) -> StageScores:
    scenes = None if overall is None else {"overall": overall, "two": overall / 2}
    after = Score(velocity, scenes)
    before = Score(velocity - 5, scenes and {name: value / 4 for name, value in scenes.items()})
    return StageScores({"denoiser": size, "decoder": 10_000}, before, after, 75.0)


STAGES = len(plan.load("tiny").stages)


def write_chain(out: Path, finished: int, drawn: bool = True) -> plan.Plan:
    """A folder in which so many stages of the tiny plan are finished and one has begun."""
    found = plan.load("tiny")
    whole = Score(MOST_DB, {"overall": 0.95, "two": 0.9} if drawn else None)
    write_scores(out, StageScores({"denoiser": 990_000, "decoder": 10_000}, None, whole, 0.0))
    stages = stages_of(out, found)
    for one in stages[:finished]:
        run = write_run(one.folder / "phase-1", rows())
        (run / "run.html").write_text(run_page.render(run))
        (one.folder / "figures.json").write_text('{"shift": [0.5, -0.25], "gap": {"db": 31.5}}')
        (one.folder / "pictures.png").write_bytes(png())
        share = 0.8 if drawn else None
        write_scores(one.folder, scores(490_000 - 10_000 * one.number, 30.0, share))
    if finished < len(stages):
        write_run(stages[finished].folder / "phase-1", rows(20))
    return found


@pytest.mark.parametrize("finished", [0, 2, STAGES])
def test_a_chain_tells_every_stage(tmp_path, finished):
    found = write_chain(tmp_path, finished)
    text = chain_page.write_report(tmp_path, found).read_text()
    assert_alone(text)
    page = Page(text)
    assert f"{finished} of {STAGES} stages" in page.text
    assert page.text.count("not finished") == STAGES - finished
    for stage in found.stages:
        assert stage.name in page.text
    assert len(page.all("img")) == finished
    assert len(page.all("details")) == finished
    runs = [link["href"] for link in page.all("a") if not (link["href"] or "").startswith("#")]
    assert len(runs) == finished
    assert all((tmp_path / str(place)).is_file() for place in runs)


def test_the_page_tells_of_how_many_prompts_its_scores_are(tmp_path):
    found = write_chain(tmp_path, 2)
    assert "the share of held-out prompts" in Page(chain_page.render(tmp_path, found)).text
    for one, prompts in zip(stages_of(tmp_path, found), (500, 120), strict=False):
        whole = Score(30.0, {"overall": 0.8}, prompts)
        write_scores(one.folder, StageScores({"denoiser": 1000}, None, whole, 1.0))
    assert (
        "the share of 120 or 500 held-out prompts" in Page(chain_page.render(tmp_path, found)).text
    )


def test_figures_of_the_table_are_those_of_the_scores(tmp_path):
    found = write_chain(tmp_path, 5)
    page = Page(chain_page.render(tmp_path, found))
    assert f"2.2 times smaller after 5 of {STAGES} stages" in page.text  # 1 M to 450 K
    assert "30.0 dB" in page.text
    assert "teacher 1 M equal 95.0 %" in page.text
    assert "heads 490 K 25.0 30.0 20.0 % 80.0 % 75 s" in page.text
    assert "after the cut 20.0 % 10.0 %" in page.text
    assert "gap.db 31.5" in page.text
    assert "0.5, -0.25" in page.text
    assert "100 steps, loss 0.02" in page.text


def test_a_chain_without_scenes_or_teacher_has_a_page(tmp_path):
    found = write_chain(tmp_path, 2, drawn=False)
    assert "scenes" not in [
        dt for dt in re.findall(r"<dt>(\w+)", chain_page.render(tmp_path, found))
    ]
    (tmp_path / "scores.json").unlink()
    assert f"2 of {STAGES} stages" in Page(chain_page.render(tmp_path, found)).text


def test_stages_that_were_only_cut_have_sizes_alone(tmp_path):
    found = plan.load("tiny")
    for one in stages_of(tmp_path, found):
        write_scores(one.folder, StageScores({"denoiser": 1_950_000_000}, None, None, 0.5))
    page = Page(chain_page.render(tmp_path, found))
    assert "1.95 B" in page.text
    assert "not finished" not in page.text
