"""The trainer's promises: exact resume after any kill, clean stops, frozen parts, schedules.

As a script this file trains and is killed, see `killed_runs`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

import nanoflux_mobile
from nanoflux_mobile.distill import run_files, trainer
from nanoflux_mobile.distill.learning import (
    TrainConfig,
    check_device,
    half_precision,
    learning_rate,
    make_optimizers,
)
from nanoflux_mobile.distill.run_files import check_identity, read_rows
from nanoflux_mobile.distill.trainer import averaged_state, train
from nanoflux_mobile.errors import CheckFailed, InputError
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.tiny_decoder import SeparableConv


class Small(nn.Module):
    """Something for each optimizer: matrices and a kernel in blocks, vectors, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.block = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.block_conv = nn.Conv1d(8, 8, 3, padding=1)
        self.out = nn.Linear(8, 1)

    def forward(self, ids_BS: Tensor) -> Tensor:
        x = self.block(self.embedding(ids_BS)).transpose(1, 2)
        return self.out(self.block_conv(x).transpose(1, 2))[..., 0]


SETTINGS = TrainConfig(steps=20, lr=0.02, warmup=5, ema=0.8, save_every_s=-1.0, log_every=1)
"""Saves and logs after every step."""
FROZEN = ("embedding", "block.0.")


class Lessons(Dataset[Tensor]):
    """Ids drawn from the seed and the step alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, step: int) -> Tensor:
        rng = torch.Generator().manual_seed(1000 * self.seed + step)
        return torch.randint(0, 10, (4, 6), generator=rng)


class Killed(Exception):
    """The process ends here."""


def kill_softly(loss: Tensor) -> Tensor:
    raise Killed


def new_small() -> Small:
    torch.manual_seed(0)
    return Small()


def run(
    out: Path,
    config: TrainConfig = SETTINGS,
    stop: int | None = None,
    seed: int = 1,
    frozen: Sequence[str] = (),
    at_stop: Callable[[Tensor], Tensor] = kill_softly,
) -> tuple[nn.Module, Small]:
    """Train, `at_stop` happening to the loss of step `stop`; returns the EMA weights and the model.

    The default is a kill.
    """
    model = new_small()

    def loss_of(lesson: tuple[Tensor, ...], step: int) -> tuple[Tensor, dict[str, float]]:
        (ids,) = lesson
        loss = (model(ids) - ids.float().cos()).square().mean()
        return at_stop(loss) if step == stop else loss, {"figure": float(step)}

    return train(model, Lessons(seed), loss_of, config, out, frozen=frozen), model


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    for (name, mine), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


def saved(out: Path) -> dict[str, Any]:
    return torch.load(out / "last.pt", weights_only=True)


@pytest.fixture(scope="module")
def ten_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ten")
    with pytest.raises(Killed):
        run(out, stop=10)
    return out


@pytest.fixture
def begun(ten_steps: Path, tmp_path: Path) -> Path:
    """The folder of a run that was stopped after ten steps."""
    return shutil.copytree(ten_steps, tmp_path / "begun")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, Small]:
    """A run that never stopped: its folder, the EMA weights, the model."""
    out = tmp_path_factory.mktemp("straight")
    return out, *run(out)


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_rows(out / "metrics.jsonl")]


def assert_as_straight(out: Path, straight: tuple[Path, nn.Module, Small]) -> None:
    """Go on in `out`, then everything is as if it had never stopped."""
    averaged, model = run(out)
    assert_equal(averaged, straight[1])
    assert_equal(model, straight[2])
    assert losses(out) == losses(straight[0])
    assert [step for step, _ in losses(out)] == list(range(1, 21))


def one_sentence(caught: pytest.ExceptionInfo[BaseException], *words: object) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


# Going on after a kill


@pytest.mark.parametrize("stops", [[1], [3, 4, 19]], ids=str)
def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(tmp_path, straight, stops):
    for stop in stops:
        with pytest.raises(Killed):
            run(tmp_path, stop=stop)
        assert saved(tmp_path)["step"] == stop
    assert_as_straight(tmp_path, straight)
    first, second = (saved(out)["optimizers"] for out in (straight[0], tmp_path))
    for mine, other in zip(first, second, strict=True):
        for key, state in mine["state"].items():
            assert all(torch.equal(v, other["state"][key][name]) for name, v in state.items())


def killed_with_lost_steps(out: Path) -> None:
    """Saves at step 7 only, logs every step, dies in step 12."""
    write = run_files.write_state

    def save_at_seven(path: Path, state: dict[str, Any]) -> None:
        if state["step"] == 7:
            write(path, state)

    trainer.write_state = save_at_seven  # type: ignore[assignment]
    run(out, stop=12, frozen=FROZEN, at_stop=kill_hard)


def killed_in_a_save(out: Path) -> None:
    """Dies with half of the ninth state on the disk."""
    whole = torch.save

    def half(state: dict[str, Any], file: Any) -> None:
        whole(state, file)
        if state["step"] == 9:
            file.flush()
            os.truncate(file.file.fileno(), file.file.tell() // 2)
            kill_hard(torch.zeros(()))

    run_files.torch.save = half  # type: ignore[assignment]
    run(out, frozen=FROZEN)


def kill_hard(loss: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return loss


CASES = (killed_with_lost_steps, killed_in_a_save)


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of CASES, left behind by a process that was killed with signal 9."""
    root = tmp_path_factory.mktemp("killed")
    paths = {"PYTHONPATH": str(Path(nanoflux_mobile.__file__).parents[1])}
    one = {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, root], env={**os.environ, **paths, **one}, check=True)
    return root


def be_killed(root: Path) -> None:
    """Every case in a child of its own, which must die of the signal."""
    importlib.import_module("torch._dynamo")  # optimizers load it, here once for all children

    for case in CASES:
        child = os.fork()
        if not child:
            case(root / case.__name__)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(("case", "left"), [(CASES[0], 7), (CASES[1], 8)], ids=["row", "save"])
def test_kill_9_changes_no_bit_of_the_curve_nor_of_the_weights(tmp_path, killed_runs, case, left):
    out = killed_runs / case.__name__
    assert saved(out)["step"] == left
    assert bool(list(out.glob(".*.partial"))) == (case is killed_in_a_save)
    # More rows than the state has steps: those were lost and come again.
    assert losses(out)[-1][0] > left
    straight, straight_model = run(tmp_path, frozen=FROZEN)
    resumed, resumed_model = run(out, frozen=FROZEN)
    assert losses(out) == losses(tmp_path)
    assert [step for step, _ in losses(out)] == list(range(1, 21))
    assert_equal(straight, resumed)
    assert_equal(straight_model, resumed_model)
    assert sorted(path.name for path in out.iterdir()) == ["last.pt", "metrics.jsonl", "run.json"]


def test_a_row_that_was_cut_off_comes_again(begun, straight):
    with (begun / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 11, "loss": 0.2\xff')
    assert_as_straight(begun, straight)


def test_a_finished_run_is_loaded_and_not_trained_further(straight):
    out, averaged, _ = straight
    rows = (out / "metrics.jsonl").read_bytes()
    assert_equal(averaged, run(out, stop=0)[0])
    assert (out / "metrics.jsonl").read_bytes() == rows


def test_runs_depend_on_their_data(tmp_path, straight):
    """Otherwise equal weights above would prove nothing."""
    other, _ = run(tmp_path, seed=2)
    assert not torch.equal(straight[1].block[0].weight, other.block[0].weight)


def test_batches_of_worker_processes_are_the_same(tmp_path, straight):
    config = dataclasses.replace(SETTINGS, workers=1, save_every_s=1e9)
    assert_equal(run(tmp_path, config)[0], straight[1])


def test_on_step_counts_from_where_a_run_goes_on(begun):
    seen: list[int] = []
    model = new_small()
    train(
        model,
        Lessons(1),
        lambda lesson, step: (model(*lesson).square().mean(), {}),
        SETTINGS,
        begun,
        on_step=seen.append,
    )
    assert seen == list(range(10, 21))


# What is written


def test_training_lowers_the_loss_and_logs_it(tmp_path):
    run(tmp_path, dataclasses.replace(SETTINGS, steps=60, log_every=5))
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(5, 65, 5))
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert [row["figure"] for row in rows] == [row["step"] - 1.0 for row in rows]
    assert {*rows[0]} == {"step", "loss", "figure", "gradient", "lr", "steps_per_s"}


def test_the_loss_is_logged_to_its_last_bit(tmp_path):
    told: list[float] = []
    model = new_small()

    def loss_of(lesson: tuple[Tensor, ...], step: int) -> tuple[Tensor, dict[str, float]]:
        loss = (model(*lesson) - 0.5).square().mean()
        told.append(loss.item())
        return loss, {}

    train(model, Lessons(1), loss_of, SETTINGS, tmp_path)
    assert [loss for _, loss in losses(tmp_path)] == told


def test_the_returned_weights_are_the_running_mean_of_the_trained_ones(tmp_path, straight):
    assert_equal(*run(tmp_path, dataclasses.replace(SETTINGS, ema=0.0)))
    out, averaged, model = straight
    assert not torch.equal(averaged.out.weight, model.out.weight)
    stored = averaged_state(out)
    assert stored.keys() == averaged.state_dict().keys()
    assert all(torch.equal(stored[k], v) for k, v in averaged.state_dict().items())


# Parts that stay


def test_frozen_parts_stay_to_the_bit_and_need_no_gradient(tmp_path):
    start = new_small().state_dict()
    averaged, model = run(tmp_path, frozen=FROZEN)
    for trained in (averaged, model):
        for name, p in trained.named_parameters():
            stays = name.startswith(FROZEN)
            assert torch.equal(p, start[name]) == stays, name
            assert p.requires_grad != stays
            assert not stays or p.grad is None
    held = sum(len(stored["param_groups"][0]["params"]) for stored in saved(tmp_path)["optimizers"])
    assert held == sum(p.requires_grad for p in model.parameters())


def test_a_part_to_freeze_that_is_not_there_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="'blocks'"):
        run(tmp_path, frozen=("embedding", "blocks"))


def test_a_gradient_from_before_is_not_learned(tmp_path):
    model, fresh = new_small(), new_small()
    model(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
    for i, trained in enumerate((model, fresh)):
        train(
            trained,
            Lessons(1),
            lambda lesson, step, m=trained: (m(*lesson).square().mean(), {}),
            SETTINGS,
            tmp_path / str(i),
        )
    assert_equal(model, fresh)


# Clean stops


def with_infinite_gradient(loss: Tensor) -> Tensor:
    doubled = 2 * loss
    doubled.register_hook(lambda g: torch.full_like(g, torch.inf))
    return doubled


NOT_FINITE: dict[str, Callable[[Tensor], Tensor]] = {
    "nan loss": lambda loss: loss * torch.nan,
    "infinite loss": lambda loss: loss / 0,
    "nan beside the gradient": lambda loss: loss + torch.tensor(torch.nan),
    "infinite gradient": with_infinite_gradient,
}


@pytest.mark.parametrize("wrong", NOT_FINITE.values(), ids=NOT_FINITE)
def test_what_is_no_number_stops_the_run_and_leaves_the_last_state(begun, straight, wrong):
    before = (begun / "last.pt").read_bytes()
    for _ in range(2):
        with pytest.raises(CheckFailed) as caught:
            run(begun, dataclasses.replace(SETTINGS, save_every_s=1e9), 12, at_stop=wrong)
        one_sentence(caught, "step 13 of", "lower the learning rate")
        one_sentence(caught, f"the state after step 10 is whole in {begun / 'last.pt'}")
        assert (begun / "last.pt").read_bytes() == before
    assert_as_straight(begun, straight)


def test_a_run_that_fails_at_once_says_that_nothing_was_saved(tmp_path):
    with pytest.raises(CheckFailed) as caught:
        run(tmp_path, stop=0, at_stop=NOT_FINITE["nan loss"])
    one_sentence(caught, "step 1 of", "no state was saved")
    assert not (tmp_path / "last.pt").exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: how this process meets a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.97, 0.9999])
def test_no_room_for_a_state_keeps_the_last_one(begun, straight, share):
    before = (begun / "last.pt").read_bytes()
    room = int(share * len(before))
    assert room > (begun / "metrics.jsonl").stat().st_size + 300  # a row more
    with largest_file(room), pytest.raises(InputError) as caught:
        run(begun)
    one_sentence(caught, "cannot write", "last.pt", "the state after step 10 is whole")
    assert (begun / "last.pt").read_bytes() == before
    assert not list(begun.glob(".*"))
    assert_as_straight(begun, straight)


def test_no_room_for_a_row_keeps_the_last_state(begun, straight):
    before = (begun / "last.pt").read_bytes()
    room = (begun / "metrics.jsonl").stat().st_size + 300
    with largest_file(room), pytest.raises(InputError) as caught:
        run(begun, dataclasses.replace(SETTINGS, save_every_s=1e9))
    one_sentence(caught, "metrics.jsonl", "run again", "the state after step 10 is whole")
    assert (begun / "last.pt").read_bytes() == before
    assert_as_straight(begun, straight)


class OneIsBad(Lessons):
    """Lessons of which one cannot be read."""

    def __getitem__(self, step: int) -> Tensor:
        if step == 6:
            raise InputError("cat.png is damaged")
        return super().__getitem__(step)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lesson_that_cannot_be_read_is_one_sentence(tmp_path, workers):
    model, config = new_small(), dataclasses.replace(SETTINGS, workers=workers)
    with pytest.raises(InputError) as caught:
        train(
            model,
            OneIsBad(1),
            lambda lesson, step: (model(*lesson).square().mean(), {}),
            config,
            tmp_path,
        )
    one_sentence(caught)
    assert str(caught.value).startswith("cat.png is damaged; the state after step 6 is whole")


# What a folder holds


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "a few bytes": lambda data: data[:10],
    "half": lambda data: data[: len(data) // 2],
    "the end missing": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"hello\n" * 100,
    "one bit": lambda data: data[: len(data) // 2] + b"\xff\x00\xff" + data[len(data) // 2 + 3 :],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_one_sentence(begun, damage):
    path = begun / "last.pt"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    rows = (begun / "metrics.jsonl").read_bytes()
    for go_on in (run, averaged_state):
        with pytest.raises(InputError) as caught:
            go_on(begun)
        one_sentence(caught, path, "is damaged", f"remove {begun}")
    assert (begun / "metrics.jsonl").read_bytes() == rows


@pytest.mark.parametrize("foreign", [[1, 2], {"step": 3}], ids=str)
def test_a_state_of_something_else_is_one_sentence(tmp_path, foreign):
    torch.save(foreign, tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"last\.pt is damaged"):
        run(tmp_path)


def test_a_state_of_another_model_is_one_sentence(begun):
    state = saved(begun)
    other = {"model": {"weight": torch.zeros(3)}}, {"optimizers": state["optimizers"][:1]}
    for change in other:
        torch.save({**state, **change}, begun / "last.pt")
        with pytest.raises(InputError) as caught:
            run(begun)
        one_sentence(caught, "last.pt is the state of another model")


def test_a_state_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"last\.pt is missing"):
        averaged_state(tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"), [("steps", 25), ("steps", 10), ("lr", 0.01), ("cooling", "cosine")]
)
def test_a_folder_of_other_settings_is_refused_before_any_work(begun, setting, value):
    before = {path.name: path.read_bytes() for path in begun.iterdir()}
    with pytest.raises(InputError) as caught:
        run(begun, dataclasses.replace(SETTINGS, **{setting: value}))
    ours = json.dumps(getattr(SETTINGS, setting))
    one_sentence(caught, f"a run with {setting} {ours}, this one has {json.dumps(value)}")
    assert {path.name: path.read_bytes() for path in begun.iterdir()} == before


def test_a_setting_inside_a_table_is_named(tmp_path):
    phase = {"lr": 0.1, "teacher": "source", "words": ["many"] * 20}
    check_identity(tmp_path, {"seed": 1, "phase": phase})
    check_identity(tmp_path, {"phase": phase, "seed": 1, "device": "cuda"})
    with pytest.raises(InputError, match=r"a run with phase\.lr 0\.1, this one has 0\.2"):
        check_identity(tmp_path, {"seed": 1, "phase": {**phase, "lr": 0.2}})
    with pytest.raises(InputError, match=r"a run with seed 1, this one has null"):
        check_identity(tmp_path, {"phase": phase})


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_a_damaged_identity_is_one_sentence(tmp_path, text):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"run\.json is damaged") as caught:
        run(tmp_path)
    one_sentence(caught)


# Devices


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "meta", "phone"])
def test_a_device_that_is_not_there_is_refused(tmp_path, monkeypatch, device):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(InputError, match=device) as caught:
        run(tmp_path / "out", dataclasses.replace(SETTINGS, device=device))
    one_sentence(caught, "cpu")
    assert not (tmp_path / "out").exists()


def test_a_device_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:0", "cuda:1"):
        check_device(device)
    for device in ("cuda:2", "mps"):
        with pytest.raises(InputError, match=device):
            check_device(device)


@pytest.mark.parametrize("supported", [True, False])
def test_half_precision_only_where_the_hardware_has_bfloat16(monkeypatch, supported):
    def asked(including_emulation: bool) -> bool:
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", asked)
    assert half_precision("cuda") is supported
    assert not half_precision("cpu")


# The learning rate


LINEAR = TrainConfig(steps=1000, lr=0.02, warmup=50, decay=0.3)
COSINE = dataclasses.replace(LINEAR, cooling="cosine")


def test_the_linear_rate_rises_rests_and_falls():
    rates = [learning_rate(LINEAR, step) for step in range(LINEAR.steps)]
    assert rates[0] == pytest.approx(0.02 / 50)
    assert all(a < b for a, b in pairwise(rates[:50]))
    assert set(rates[49:700]) == {0.02}
    steps_down = [a - b for a, b in pairwise(rates[700:991])]
    assert steps_down == pytest.approx([0.02 / 300] * 290)
    assert rates[-1] == pytest.approx(0.02 / 100)


def test_the_cosine_rate_is_that_of_torch_after_the_warm_up():
    rates = [learning_rate(COSINE, step) for step in range(COSINE.steps)]
    assert rates[:50] == pytest.approx([0.02 * (i + 1) / 50 for i in range(50)])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], COSINE.lr)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 950, eta_min=0.02 / 100)
    for rate in rates[50:]:
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()
    assert all(a > b for a, b in pairwise(rates[50:]))
    assert rates[-1] == pytest.approx(0.02 / 100, rel=1e-3)


@given(
    steps=st.integers(1, 500),
    warmup=st.integers(0, 600),
    decay=st.floats(0, 1),
    cooling=st.sampled_from(["linear", "cosine"]),
    data=st.data(),
)
def test_the_learning_rate_is_never_above_the_peak_nor_zero(steps, warmup, decay, cooling, data):
    config = TrainConfig(steps=steps, lr=0.1, warmup=warmup, decay=decay, cooling=cooling)
    step = data.draw(st.integers(0, steps - 1))
    assert 0 < learning_rate(config, step) <= 0.1


def test_the_rate_is_what_the_rows_say(tmp_path):
    config = dataclasses.replace(SETTINGS, cooling="cosine")
    run(tmp_path, config)
    rates = [row["lr"] for row in read_rows(tmp_path / "metrics.jsonl")]
    assert rates == [learning_rate(config, step) for step in range(20)]


# Optimizers


def names_in(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def test_every_parameter_has_exactly_one_optimizer():
    model = new_small()
    adam, muon = make_optimizers(model, SETTINGS)
    held = names_in(model, adam) + names_in(model, muon)
    assert sorted(held) == sorted(name for name, _ in model.named_parameters())
    assert names_in(model, muon) == ["block.0.weight", "block.2.weight", "block_conv.weight"]


def test_of_a_student_only_maps_between_states_are_orthogonalised():
    sizes = FluxConfig(8, 1, 2, 8, 2, 12, 6, False, (2, 2, 4), 4, (0, 1))
    model = NanoFlux(sizes)
    adam, muon = make_optimizers(model, SETTINGS)
    inner = ("transformer_blocks.", "single_transformer_blocks.")
    assert all(name.startswith(inner) for name in names_in(model, muon))
    others = {name for name, _ in model.named_parameters() if not name.startswith(inner)}
    assert {"step_table", "x_embedder.weight", "upsampler.conv.weight"} <= others
    vectors = {n for n, p in model.named_parameters() if n.startswith(inner) and p.ndim == 1}
    assert {*names_in(model, adam)} == others | vectors


def test_a_depthwise_kernel_is_no_matrix():
    model = nn.ModuleDict({"block": SeparableConv(4)})
    adam, muon = make_optimizers(model, SETTINGS)
    assert names_in(model, muon) == ["block.pointwise.weight"]
    assert "block.depthwise.weight" in names_in(model, adam)


if __name__ == "__main__":
    be_killed(Path(sys.argv[1]))
