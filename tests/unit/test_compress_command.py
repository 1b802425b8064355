"""`nanoflux compress` from the outside: a whole chain, going on after a stop, and bad input."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.cli import main
from nanoflux_mobile.distill import chain, progress, scoring, teaching
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux import FluxParts, Networks, PooledText, load, save
from nanoflux_mobile.models.clip import ClipConfig, ClipText
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.t5 import T5Config, T5Encoder
from nanoflux_mobile.models.vae import Autoencoder, VaeConfig
from nanoflux_mobile.safetensors_file import read_safetensors
from nanoflux_mobile.tokenizer import load_tokenizer
from nanoflux_mobile.weights import Network, network

ASSETS = Path(chain.__file__).parents[1] / "assets" / "tiny"
WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"
PLAN = """
schema = "compress/1"
family = "nanoflux"
summary = "Three cuts of the denoiser, a step or two each."
steps = 2
data = "scenes"
batch = 2
answers = 2

[[stages]]
cut = "heads"
heads = "2/3"
train = [{ steps = 2, lr = 1e-3, head_features = 1.0, features_share = 0.5 }]

[[stages]]
cut = "merging"
blocks = "2"
first = 0
train = [{ steps = 1, lr = 1e-3, teacher = "before" }, { steps = 1, lr = 1e-3 }]

[[stages]]
name = "static-ln"
cut = "static_ln"
prompts = ["a red circle", "two blue squares"]
"""
STAGES = ("heads", "merging", "static-ln")


def micro_parts(seed: int = 0, side: int = 64) -> FluxParts:
    """A teacher of random weights with the tiny family's tokenizers, as small as it goes."""
    torch.manual_seed(seed)
    unigram, bytepair = (load_tokenizer(ASSETS / part) for part in ("tokenizer_2", "tokenizer"))
    words = bytepair.get_vocab_size()
    clip = ClipConfig(words, 16, 32, 1, 2, 24, 1e-5, "quick_gelu", words - 1)
    t5 = T5Config(unigram.get_vocab_size(), 16, 8, 32, 1, 2, 8, 16, 1e-6, "gated-gelu")
    flux = FluxConfig(4, 1, 3, 8, 3, 16, 16, False, (2, 2, 4))
    vae = VaeConfig(3, 3, (4, 4, 4, 8), 1, 4, 4, 1.0, 0.0, False, False, False)
    denoiser = NanoFlux(flux)
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return FluxParts(
        Networks(network(denoiser), network(T5Encoder(t5)), network(Autoencoder(vae))),
        tokenizer=unigram,
        clip=PooledText(network(ClipText(clip)), bytepair),
        scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0},
        text_tokens=16,
        side=side,
    )


@dataclass(frozen=True)
class Ended:
    """How a call of the command line ended."""

    code: object
    out: str
    err: str

    def refused(self, *words: str) -> None:
        """Assert bad input told in one sentence that holds the words."""
        assert self.code == InputError.exit_code, self.err
        errors = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, self.err
        assert all(word in errors[0] for word in words), errors[0]


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls `nanoflux compress`; an exception other than the exit is a bug and passes through."""
    monkeypatch.setenv("COLUMNS", "160")
    # Four batches of 40 are what a score needs, and seconds of each test.
    cheap = functools.partial(scoring.velocity_db, batches=1, size=2)
    monkeypatch.setattr(scoring, "velocity_db", cheap)

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["compress", *map(str, arguments)])
        return Ended(end.value.code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a plan and, once it has run, the chain of both."""
    folder = tmp_path_factory.mktemp("micro")
    save(micro_parts(), folder / "teacher")
    (folder / "micro.toml").write_text(PLAN)
    return folder


@pytest.fixture
def teacher(root: Path) -> Path:
    return root / "teacher"


@pytest.fixture
def plan(root: Path) -> Path:
    return root / "micro.toml"


@pytest.fixture
def finished(run: Run, root: Path) -> tuple[Path, dict]:
    """The folder of a chain that ran to its end, once for all tests, and what it told machines."""
    out, told = root / "out", root / "told.json"
    if not told.exists():
        options = ("--plan", root / "micro.toml", "--out", out, "--prompts", 0, "--json")
        ended = run(root / "teacher", *options)
        assert ended.code == 0, ended.err
        assert all(f"stage {i} of 3  {name}" in ended.err for i, name in enumerate(STAGES, 1))
        told.write_text(ended.out)
    return out, json.loads(told.read_text())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: stored.read() for name, stored in read_safetensors(folder / WEIGHTS).items()}


def test_a_chain_leaves_a_student_its_stages_and_pages(finished):
    out, told = finished
    assert [stage["name"] for stage in told["stages"]] == list(STAGES)
    sizes = [told["teacher"], *told["stages"]]
    counts = [sum(one["parameters"].values()) for one in sizes]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 4
    for stage in told["stages"]:
        assert 0 < stage["untrained"]["velocity_db"] < 100
        assert 0 < stage["trained"]["velocity_db"] < 100
        assert stage["seconds"] > 0
        assert load(open_checkpoint(Path(stage["path"]) / "checkpoint")).side == 64
    student = load(open_checkpoint(Path(told["student"])))
    assert student.flux.static_steps == 2
    assert (student.flux.num_attention_heads, student.flux.num_single_layers) == (2, 2)
    assert {stored.dtype for stored in student.networks.denoiser.weights.values()} == {"float16"}
    assert student.networks.denoiser.count() == told["stages"][-1]["parameters"]["denoiser"]
    report = Path(told["report"]).read_text()
    assert all(name in report for name in STAGES)
    assert {page.parent.name for page in out.rglob("run.html")} == {"phase-1", "phase-2"}
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_the_student_is_the_last_checkpoint_in_half_precision(finished):
    out, _ = finished
    last, student = tensors(out / "03-static-ln" / "checkpoint"), tensors(out / "student")
    assert last.keys() == student.keys()
    assert all(torch.equal(last[name].half(), student[name]) for name in last)


def test_training_changed_what_the_cut_had_left(finished):
    out, _ = finished
    bare, trained = tensors(out / "01-heads" / "cut"), tensors(out / "01-heads" / "checkpoint")
    assert bare.keys() == trained.keys()
    assert not all(torch.equal(bare[name], trained[name]) for name in bare)


def test_a_stopped_chain_says_how_to_go_on_and_ends_alike(
    run, finished, teacher, plan, tmp_path, monkeypatch
):
    shown = progress._Shown.step

    def stop(self, what: str, done: int, total: int) -> None:
        if what == "phase-2":
            raise KeyboardInterrupt
        shown(self, what, done, total)

    words = (teacher, "--plan", plan, "--out", tmp_path / "out", "--prompts", 0)
    with monkeypatch.context() as patched:
        patched.setattr(progress._Shown, "step", stop)
        ended = run(*words)
    assert ended.code == 130
    assert "run the same command again" in ended.err
    assert not (tmp_path / "out" / "student").exists()
    first = tmp_path / "out" / "01-heads" / "scores.json"
    scored = first.stat().st_mtime_ns
    assert run(*words).code == 0
    assert first.stat().st_mtime_ns == scored
    straight, again = tensors(finished[0] / "student"), tensors(tmp_path / "out" / "student")
    assert all(torch.equal(straight[name], again[name]) for name in straight)


def test_a_finished_chain_is_not_run_again(run, finished, teacher, plan):
    out, told = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    ended = run(teacher, "--plan", plan, "--out", out, "--prompts", 0, "--json")
    assert ended.code == 0
    assert json.loads(ended.out) == told
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


def test_scenes_are_scored_and_drawn(run, teacher, plan, tmp_path):
    plan = tmp_path / "one.toml"
    plan.write_text(
        PLAN.partition('[[stages]]\ncut = "merging"')[0].replace("steps = 2", "steps = 1")
    )
    ended = run(teacher, "--plan", plan, "--out", tmp_path / "out", "--prompts", 6, "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    for found in (
        told["teacher"]["trained"],
        *(told["stages"][0][k] for k in ("untrained", "trained")),
    ):
        assert {"overall", "counting", "clean"} <= set(found["scenes"])
        assert all(0 <= value <= 1 for value in found["scenes"].values())
    assert (tmp_path / "out" / "01-heads" / "pictures.png").read_bytes()[1:4] == b"PNG"
    assert "data:image/png;base64," in (tmp_path / "out" / "report.html").read_text()


def test_a_changed_last_stage_is_made_again_and_the_student_with_it(
    run, finished, teacher, plan, tmp_path
):
    out = Path(shutil.copytree(finished[0], tmp_path / "out"))
    words = (teacher, "--plan", plan, "--out", out, "--prompts", 0)
    changed = ("--set", 'static-ln.prompts=["an orange square"]')
    run(*words, *changed).refused("static-ln.prompts")
    shutil.rmtree(out / "03-static-ln")
    earlier = (out / "02-merging" / "scores.json").stat().st_mtime_ns
    assert run(*words, *changed).code == 0
    assert (out / "02-merging" / "scores.json").stat().st_mtime_ns == earlier
    tables = [tensors(folder / "student")["step_table"] for folder in (finished[0], out)]
    assert not torch.equal(*tables)


# The cuts alone


def test_cuts_alone_need_no_data_and_no_whole_network(run, teacher, plan, tmp_path, monkeypatch):
    whole: list[str] = []
    piece = Network.piece

    def watched(self, path: str):
        whole.append(type(self.skeleton).__name__) if not path else None
        return piece(self, path)

    monkeypatch.setattr(Network, "piece", watched)
    out = tmp_path / "out"
    ended = run(teacher, "--plan", plan, "--out", out, "--untrained", "--data", "nothing", "--json")
    assert ended.code == 0, ended.err
    assert whole == ["ClipText"], "pooled text of the prompts needs the tower, nothing else does"
    told = json.loads(ended.out)
    assert [stage["trained"] for stage in told["stages"]] == [None] * 3
    student, source = tensors(out / "student"), micro_parts().networks.denoiser
    assert load(open_checkpoint(out / "student")).flux.static_steps == 2
    first = source.tensor("x_embedder.weight")[:16].half()
    assert torch.equal(student["x_embedder.weight"], first)
    blocks = [source.tensor(f"single_transformer_blocks.{i}.attn.to_q.weight") for i in (0, 1)]
    mean = (sum(block[:16, :16] for block in blocks) / 2).half()
    name = "single_transformer_blocks.0.attn.to_q.weight"
    assert torch.equal(student[name], mean)
    assert "Not finished" not in (out / "report.html").read_text()


def test_a_cut_that_would_measure_takes_what_comes_first(run, teacher, plan, tmp_path):
    students = [tmp_path / kind / "student" for kind in ("first", "importance")]
    for student in students:
        choice = f"heads.choose={student.parent.name}"
        options = ("--out", student.parent, "--untrained", "--set", choice)
        assert run(teacher, "--plan", plan, *options).code == 0
    one, other = map(tensors, students)
    assert all(torch.equal(one[name], other[name]) for name in one)


# Bad input, told before any work


def changed(old: str, new: str) -> str:
    assert old in PLAN
    return PLAN.replace(old, new, 1)


BAD_PLANS = {
    "a share that is not whole": (changed('"2/3"', '"1/2"'), "heads is 1/2 of 3", "not whole"),
    "a share of nothing": (changed('"2/3"', '"2/0"'), "heads is '2/0'", '"2/3"'),
    "no share": (changed('"2/3"', '"many"'), "heads is 'many'"),
    "all heads": (changed('"2/3"', '"3"'), "heads are to become 3", "give 1 to 2"),
    "more merges than blocks": (changed('"2"', '"0"'), "blocks are to become 0", "give 1 to 2"),
    "a run beyond the last": (changed("first = 0", "first = 2"), "blocks 2 to 4", "merging"),
    "an unknown cut": (changed('"heads"', '"legs"'), "'legs'", "heads", "merging"),
    "an unknown setting": (changed("heads = ", "arms = "), "'arms'", "heads, choose, train"),
    "an unknown choice": (changed('"2/3"', '"2/3"\nchoose = "last"'), "'last'", "importance"),
    "steps of none": (changed("steps = 2, lr", "steps = 0, lr"), "steps 0", "from 1"),
    "a schedule of none": (changed("steps = 2\n", "steps = 0\n"), "steps 0", "from 1"),
    "another family": (
        changed('"nanoflux"', '"snapgen"'),
        "family is 'snapgen'",
        "known: nanoflux",
    ),
    "no stages": (PLAN.partition("[[stages]]")[0], "at least one [[stages]]"),
    "two of one name": (changed('name = "static-ln"', 'name = "heads"'), "two stages of one name"),
    "cut twice": (
        PLAN + '[[stages]]\nname = "again"\ncut = "static_ln"\nprompts = ["a square"]\n',
        "stage 4",
        "again",
        "step table already",
    ),
    "a decoder of other latents": (
        PLAN
        + '[[stages]]\ncut = "decoder"\nblock_out_channels = [16, 16]\nlayers_per_block = [1, 1]\n',
        "stage 4",
        "block_out_channels has 2 entries",
    ),
    "no TOML": ("stages = [", "not valid TOML"),
}


@pytest.mark.parametrize(("text", "words"), [(t, w) for t, *w in BAD_PLANS.values()], ids=BAD_PLANS)
def test_a_plan_that_cannot_apply_is_refused(run, teacher, tmp_path, text, words):
    (tmp_path / "bad.toml").write_text(text)
    out = tmp_path / "out"
    run(teacher, "--plan", tmp_path / "bad.toml", "--out", out).refused(*words)
    assert not out.exists()


BAD_WORDS = {
    "an unknown plan": (("--plan", "nano"), "unknown plan 'nano'", "nanoflux, tiny"),
    "a plan that is not there": (("--plan", "gone.toml"), "gone.toml", "cannot be read"),
    "unknown data": (("--data", "clouds"), "clouds", "scenes"),
    "an unknown device": (("--device", "tpu"), "'tpu'", "cpu"),
    "a device that is not there": (("--device", "cuda:99"), "cuda:99", "cpu"),
    "fewer pictures than none": (("--prompts", "-1"), "--prompts"),
    "no value": (("--set", "batch"), "'batch' is not key=value"),
    "a value of no stage": (("--set", "legs.train=1"), "'legs.train'", "heads, merging, static-ln"),
    "a value of no phase": (("--set", "heads.train.2.lr=1"), "'heads.train.2.lr'"),
    "a value of another type": (("--set", "batch=many"), "batch must be int"),
    "an unknown value": (("--set", "heads.legs=1"), "'legs'", "heads, choose, train"),
}


@pytest.mark.parametrize(
    ("options", "words"), [(o, w) for o, *w in BAD_WORDS.values()], ids=BAD_WORDS
)
def test_words_that_mean_nothing_are_refused(run, teacher, plan, tmp_path, options, words):
    given = ("--plan", plan) if "--plan" not in options else ()
    run(teacher, *given, "--out", tmp_path / "out", *options).refused(*words)
    assert not (tmp_path / "out").exists()


def test_teachers_that_do_not_fit_are_refused(run, finished, plan, tmp_path):
    out = ("--plan", plan, "--out", tmp_path / "out")
    run(tmp_path / "nowhere", *out).refused("nowhere")
    run(finished[0] / "student", *out).refused("Static-LN student", "AdaLN")
    save(micro_parts(side=512), tmp_path / "wide")
    run(tmp_path / "wide", *out).refused("64 pixels", "512", "--data")
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_hold_a_chain_are_refused(run, teacher, plan, tmp_path):
    (tmp_path / "file").write_text("kept")
    run(teacher, "--plan", plan, "--out", tmp_path / "file").refused("is a file")
    assert (tmp_path / "file").read_text() == "kept"
    run(teacher, "--plan", plan, "--out", teacher / "out").refused("teacher's own folder")
    assert not (teacher / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "heads.train.1.lr=1e-2"), ("heads.train.1.lr 0.001", "0.01")),
        (("--set", "merging.how=delete"), ("merging.how", "average", "delete")),
        (("--set", "batch=3"), ("batch 2", "3")),
        (("--set", "steps=3"), ("euler_steps 2", "3")),
        (("--untrained",), ("with data", "scenes")),
    ],
)
def test_going_on_with_other_settings_is_refused(run, finished, teacher, plan, options, words):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run(teacher, "--plan", plan, "--out", out, *options).refused(*words, "another folder")
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_going_on_with_another_teacher_is_refused(run, finished, plan, tmp_path):
    save(micro_parts(seed=1), tmp_path / "other")
    run(tmp_path / "other", "--plan", plan, "--out", finished[0]).refused("with teacher")


def test_teacher_and_student_of_different_latents_are_refused():
    teacher = micro_parts()
    wider = dataclasses.replace(teacher.flux, in_channels=8)
    with torch.device("meta"):
        student = teaching.with_network(teacher, network(NanoFlux(wider)))
    with pytest.raises(InputError, match="differ in latent channels: 4 and 8"):
        teaching.check_latents(teacher, student)
