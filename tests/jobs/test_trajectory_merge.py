"""`merge trajectory` as a user runs it: on the folders of other programs, several windows at once, on real
models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs.noisy import noisy_models

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest
from soupkit.merge import trajectory as along
from soupkit.stages.scoring import judges

Save = Callable[..., Path]
STEPS = (500, 1000, 1500, 3000)
PLAIN = ("--no-plots", "--out")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    code = run_command_line([str(argument) for argument in (*arguments, "--json", "--quiet")])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result: dict[str, Any] = json.loads(captured.out)
    return result


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    capsys.readouterr()
    assert run_command_line([str(argument) for argument in arguments]) == code
    return " ".join(capsys.readouterr().err.split())


def weights() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(STEPS), 300)).astype(np.float32)


@pytest.fixture
def training(save: Save, tmp_path: Path) -> Path:
    """What the Trainer of transformers leaves behind: steps, and the end of the training beside them."""
    for row, step in zip(weights(), STEPS):
        folder = save(f"run/checkpoint-{step}", {"w": row, "bn.num_batches_tracked": np.array(step)})
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (folder / "config.json").write_text("{}")
    save("end", {"w": row})
    (tmp_path / "end" / "model.safetensors").rename(tmp_path / "run" / "model.safetensors")
    return tmp_path / "run"


def soup(column: list[float], rows: list[int]) -> np.ndarray:
    return (np.array(column) @ weights()[rows].astype(np.float64)).astype(np.float32)


def test_a_run_folder_gives_its_checkpoints_in_order(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--window", "1000..", "--shape", "minus-sqrt", "--out", out)
    text = said(capsys, "merge", "trajectory", training, *options)
    assert "4 checkpoints at the steps 500 … 3000, read from trainer_state.json" in text
    assert "its 4 numbered checkpoints are taken, not model.safetensors" in text
    column = along.decayed(along.power(0.5), np.array([1000.0, 1500, 3000])).tolist()
    np.testing.assert_array_max_ulp(Checkpoint(out)["w"], soup(column, [1, 2, 3]), maxulp=1)
    assert Checkpoint(out)["bn.num_batches_tracked"] == 3000
    manifest = Manifest.read(out)
    assert manifest.notes["coefficients"] == column
    assert len(manifest.inputs) == 3
    assert {"coefficients.png", "config.json", "README.md"} <= {path.name for path in out.iterdir()}
    assert "the same bits" in said(capsys, "reproduce", out, "--out", tmp_path / "again")
    assert run_command_line(["verify", str(out), "--strict", "--quiet"]) == 0
    assert run_command_line(["report", str(out), "--quiet"]) == 0


def test_every_window_and_shape_from_one_read_is_what_each_is_alone(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = Checkpoint.read_into

    def counting(self: Checkpoint, name: str, start: int, out: np.ndarray) -> None:
        read.append(f"{self.reference} {name}")
        original(self, name, start, out)

    monkeypatch.setattr(Checkpoint, "read_into", counting)
    shapes = {"uniform": (), "cosine": (), "ema": ("--half-life", "400"), "bema": (), "power": ("--power", 2)}
    windows = ("..", "500..1500", "last2")
    asked = [word for shape in shapes for word in ("--shape", shape)]
    asked += [word for window in windows for word in ("--window", window)]
    options = [word for given in shapes.values() for word in given]
    out = tmp_path / "all"
    made = run(capsys, "merge", "trajectory", training, *asked, *options, "--write", "all", *PLAIN, out)
    assert sorted(each for each in read if each.endswith(" w")) == sorted(
        f"{training / f'checkpoint-{step}'} w" for step in STEPS
    )
    assert len(made["notes"]["members"]) == 15
    monkeypatch.undo()
    for number, (shape, given) in enumerate(shapes.items()):
        window = windows[number % 3]
        alone = tmp_path / shape
        own = ("--shape", shape, *given, "--window", window, "--no-plots", "--out", alone)
        one = run(capsys, "merge", "trajectory", training, *own)
        steps = one["notes"]["steps"]
        name = f"{shape}-{steps[0]:g}-{steps[-1]:g}"
        assert made["outputs"][name]["content"] == one["outputs"]["content"]
        run(capsys, "reproduce", out / name, "--out", tmp_path / f"{shape}-again")
    merged = run(capsys, "merge", "uniform", out, "--out", tmp_path / "of-all")
    assert len(merged["inputs"]) == 15


def test_a_plan_shows_members_steps_and_coefficients(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = run(
        capsys, "merge", "trajectory", training, "--shape", "linear", "--dry-run", "--out", tmp_path / "none"
    )
    assert [member["step"] for member in plan["members"]] == list(STEPS)
    assert plan["candidates"]["linear-500-3000"]["coefficients"] == pytest.approx([0.1, 0.2, 0.4, 0.3])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("names", [("epoch=9-step=90", "epoch=10-step=100"), ("step_90", "step_100")])
@pytest.mark.parametrize("inside", ["", "checkpoints/", "files"])
def test_folders_and_files_of_other_programs(
    names: tuple[str, str], inside: str, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, name in zip((1.0, 2.0), names):
        folder = save(
            f"run/{'' if inside == 'files' else inside}{name}", {"w": np.full(2, value, np.float32)}
        )
        if inside == "files":
            (folder / "model.safetensors").rename(tmp_path / "run" / f"{name}.safetensors")
            folder.rmdir()
    made = run(
        capsys, "merge", "trajectory", tmp_path / "run", "--window", "last1", "--out", tmp_path / "out"
    )
    assert made["notes"]["steps"] == [100.0]
    assert Checkpoint(tmp_path / "out")["w"][0] == 2


def test_what_is_no_one_training_is_refused(
    save: Save, training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("both/step-1", "both/step-2", "both/epoch_1", "bare/a", "twice/step-7", "twice2/step-7"):
        save(name, {"w": np.zeros(2, np.float32)})
    out = ("--out", tmp_path / "out")

    def refused(*arguments: object, code: int = 2) -> str:
        return said(capsys, "merge", "trajectory", *arguments, *out, code=code)

    assert "2 kinds, such as" in refused(tmp_path / "both", code=1)
    assert "of which step" in refused(tmp_path / "bare/a", tmp_path / "twice/step-7")
    assert "both of step 7" in refused(tmp_path / "twice/step-7", tmp_path / "twice2/step-7")
    assert "nothing says which is best" in refused(
        training, "--shape", "ema", "--shape", "linear", "--half-life", 9
    )
    assert "needs half_life" in refused(training, "--shape", "ema")
    assert "no --shape power" in refused(training, "--power", 2)
    assert "did you mean 'cosine'" in refused(training, "--shape", "cosin")
    assert "give the same checkpoints" in refused(
        training, "--window", "..", "--window", "last4", "--write", "all"
    )
    assert "no optimizer state" in refused(training, "--optimizer", code=1)
    assert not (tmp_path / "out").exists()


def test_swad_takes_its_window_from_losses(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = tmp_path / "losses.txt"
    losses.write_text("500 9\n1000 1\n1500 2\n3000 9\n3500 9\n")
    options = ("--window", "swad", "--losses", losses, "--swad", "2,2,2", "--out", tmp_path / "out")
    made = run(capsys, "merge", "trajectory", training, *options)
    assert made["notes"]["steps"] == [1000, 1500]
    np.testing.assert_array_max_ulp(Checkpoint(tmp_path / "out")["w"], soup([0.5, 0.5], [1, 2]), maxulp=1)


DATA = ("--data", "digits", "--num-train", "64", "--num-held-out", "200", "--num-test", "100")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy copies of one model, the first of them hopeless."""
    made = noisy_models(tmp_path_factory.mktemp("models"), "--epochs", "3", noises=(1.5, 0.1, 0.1))
    run_folder = made[0].parent / "run"
    run_folder.mkdir()
    for path, step in zip(made[1:], (10, 20, 30)):
        path.rename(run_folder / f"step-{step}")
    return run_folder


SWEEP = ("--window", "..", "--window", "20..", "--shape", "uniform", "--shape", "linear")


@pytest.mark.parametrize("bn", ["average", "refresh"])
def test_the_best_on_held_out_is_written_and_test_only_reports(
    bn: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    made = run(capsys, "merge", "trajectory", models, *SWEEP, *DATA, "--bn", bn, "--out", out)
    scores = {name: score["value"] for name, score in made["notes"]["scores"].items()}
    best = made["notes"]["best"]
    assert scores[best] == max(scores.values())
    assert best.endswith("-20-30")
    assert made["metrics"]["held_out"]["top1"]["value"] == scores[best]
    assert made["metrics"]["test"]["top1"]["num_examples"] == 100
    assert made["notes"]["selected_on"]["num_examples"] == 200
    assert run(capsys, "evaluate", out, *DATA)["metrics"] == made["metrics"]
    assert not [path for path in out.iterdir() if path.is_dir()]
    assert (out / "windows.png").is_file()
    run(capsys, "reproduce", out, "--out", tmp_path / "again")


def test_scores_are_remembered(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(capsys, "merge", "trajectory", models, *SWEEP, *DATA, *PLAIN, tmp_path / "a")
    monkeypatch.setattr(judges.HeldOutScorer, "of_written", lambda *_: pytest.fail("scored again"))
    again = run(capsys, "merge", "trajectory", models, *SWEEP, *DATA, *PLAIN, tmp_path / "b")
    assert again["notes"]["scores"] == first["notes"]["scores"]
    assert again["outputs"]["content"] == first["outputs"]["content"]


def test_a_command_chooses_and_a_worse_average_is_said(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last checkpoint's first weight is what the command likes best: no average comes near it."""
    script = tmp_path / "score.py"
    script.write_text(
        "import sys\nfrom safetensors.numpy import load_file\n"
        "w = load_file(sys.argv[1] + '/model.safetensors')['w']\n"
        f"print(abs(float(w[0]) - {float(weights()[-1][0])}))\n"
    )
    command = f"{sys.executable} {script} {{checkpoint}}"
    options = ("--score-command", command, "--metric", "loss", "--window", "..", "--window", "last2")
    text = said(capsys, "merge", "trajectory", training, *options, "--out", tmp_path / "out")
    assert "no average is better on held-out than the last checkpoint" in text
    scores = Manifest.read(tmp_path / "out").notes["scores"]
    assert {name: round(score["value"], 4) for name, score in scores.items()} == {
        f"uniform-{STEPS[-n]}-3000": round(
            abs(float(soup([1 / n] * n, list(range(4 - n, 4)))[0] - weights()[-1][0])), 4
        )
        for n in (4, 2)
    }


def test_optimizer_states_are_merged_and_training_goes_on(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    moments = []
    for number, step in enumerate(STEPS):
        parameter = torch.nn.Parameter(torch.zeros(300))
        optimizer = torch.optim.AdamW([parameter], lr=0.1 / (number + 1))
        for batch in range(number + 1):
            generator = torch.Generator().manual_seed(10 * number + batch)
            parameter.grad = torch.randn(300, generator=generator)
            optimizer.step()
        moments.append(optimizer.state[parameter]["exp_avg_sq"].double())
        torch.save(optimizer.state_dict(), training / f"checkpoint-{step}" / "optimizer.pt")
        torch.save({"last_epoch": step}, training / f"checkpoint-{step}" / "scheduler.pt")
    out = tmp_path / "out"
    text = said(capsys, "merge", "trajectory", training, "--window", "last2", "--optimizer", *PLAIN, out)
    assert "training can go on: optimizer.pt, trainer_state.json, scheduler.pt" in text
    state = torch.load(out / "optimizer.pt", weights_only=True)
    assert state["param_groups"][0]["lr"] == 0.025
    assert state["state"][0]["step"] == 4
    torch.testing.assert_close(state["state"][0]["exp_avg_sq"].double(), (moments[2] + moments[3]) / 2)
    again = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(300))])
    again.load_state_dict(state)
    assert torch.load(out / "scheduler.pt", weights_only=True) == {"last_epoch": 3000}
    options = ("--shape", "bema", "--bema", "0.01,0.01,1", "--optimizer", "--out", tmp_path / "negative")
    assert "comes out negative" in said(capsys, "merge", "trajectory", training, *options, code=1)
    torch.save({"lr": 0.1}, training / "checkpoint-3000" / "optimizer.pt")
    assert "is no state of a torch optimizer" in said(
        capsys, "merge", "trajectory", training, "--optimizer", *PLAIN, tmp_path / "none", code=1
    )


def test_converted_pickles_keep_their_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Lightning and open_clip leave them: what is counted stands beside the weights."""
    import torch

    for epoch, step in ((9, 90), (10, 250)):
        state = {"epoch": epoch, "global_step": step, "state_dict": {"w": torch.full((2,), float(step))}}
        torch.save(state, tmp_path / f"epoch={epoch}-last.ckpt")
    text = said(capsys, "merge", "trajectory", tmp_path, "--out", tmp_path / "none", code=1)
    assert "holds 2 pickles" in text
    assert f"soupkit convert '{tmp_path}/*.ckpt' --out DIR, then merge DIR" in text
    run(capsys, "convert", tmp_path / "epoch=*.ckpt", "--out", tmp_path / "run")
    made = run(capsys, "merge", "trajectory", tmp_path / "run", "--out", tmp_path / "out")
    assert made["notes"]["steps"] == [90, 250]
    assert Checkpoint(tmp_path / "out")["w"][0] == 170
