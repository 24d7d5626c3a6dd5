"""What kdzoo refuses, in which words and with which exit code; and that it leaves everything as it was."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from command_line import CommandLine, Ended, Trained, lasting, newest_step, results, run_folder, stock
from test_signals import begun, said

from kdzoo.storage.owner import TEMPORARY

PLUGINS = Path(__file__).parent.parent / "fixtures" / "plugins"


def refused(ended: Ended, code: int, message: str) -> None:
    """The command ended with this exit code and these last words, without a traceback."""
    assert ended.code == code, ended
    assert "Traceback" not in ended.err
    assert ended.err.endswith(f"error: {message}\n"), ended.err


def content(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, but for the record of who has it locked."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


# --- what cannot be resumed ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    """A place with a run that was interrupted in the student's second epoch, two checkpoints in its folder."""
    cli = CommandLine(tmp_path_factory.mktemp("interrupted"))
    _, running = begun(cli, trained, "slow_steps")
    said(running, "student epoch 1/2")
    time.sleep(0.2)
    running.signal(15)
    assert running.wait(20).code == 143
    assert 28 < newest_step(run_folder(cli.place / "out"), "student") < 56
    return cli.place


@pytest.fixture
def waiting(cli: CommandLine, interrupted: Path) -> Path:
    """A copy of the interrupted run for this test alone; returns its folder."""
    shutil.copytree(interrupted / "out", cli.place / "out")
    return run_folder(cli.place / "out")


def test_another_recipe_is_not_resumed(cli: CommandLine, waiting: Path) -> None:
    before = content(waiting)
    changed = {"train": {"optimizer": {"lr": 0.1}, "epochs": 3}, "algorithm": {"options": {"temperature": 2.0}}}
    ended = cli("run", cli.recipe(changed), "--out", "out")
    refused(
        ended,
        2,
        "out/tiny/0001-seed0: begun with another recipe, so it cannot be resumed\n"
        "  algorithm.options.temperature 4.0 -> 2.0\n"
        "  train.epochs 2 -> 3\n"
        "  train.optimizer.lr 0.05 -> 0.1\n"
        "undo the change, or start a new run with --new",
    )
    assert content(waiting) == before


def test_there_is_nothing_to_resume(cli: CommandLine) -> None:
    ended = cli("run", cli.recipe(), "--out", "out", "--resume")
    refused(ended, 2, "nothing to resume: no run of 'tiny' with seed 0 in out; start one without --resume")
    assert not list((cli.place / "out" / "tiny").iterdir())


def test_new_and_resume_exclude_each_other(cli: CommandLine) -> None:
    refused(cli("run", cli.recipe(), "--new", "--resume"), 2, "--new and --resume exclude each other")


def test_a_finished_run_is_left_alone(cli: CommandLine, trained: Trained) -> None:
    folder = trained.folder
    before = content(folder)
    for options in ((), ("--resume",)):
        ended = cli("run", cli.recipe(), "--out", folder.parent.parent, *options)
        assert ended.code == 0, ended
        assert ended.err == f"{folder} has finished; comparing its data, code and versions with those of now\n"
        assert ended.out.startswith(f"already finished: {folder}; --new starts another run\n")
        assert "The distilled student reaches" in ended.out
        assert f"{results(folder)['student']['top1_percent']:.2f}" in ended.out
        assert content(folder) == before
    assert run_folder(folder.parent.parent) == folder


def test_a_finished_recipe_is_noticed_before_torch_is_imported(cli: CommandLine, trained: Trained) -> None:
    assert cli.cold("list").code == 0  # the catalogue is there from now on
    code = (
        "import sys; from pathlib import Path; from kdzoo.cli.running import note_finished\n"
        "note_finished(Path(sys.argv[1]), sys.argv[3:], Path(sys.argv[2])); assert 'torch' not in sys.modules"
    )
    out = trained.folder.parent.parent
    for overrides, known in (((), True), (("seed=1",), False), (("train.epochs=3",), False)):
        ended = cli.shell(sys.executable, "-c", code, cli.recipe(), out, *overrides).wait()
        assert ended.code == 0, ended
        assert ended.err.startswith(f"{trained.folder} has finished; ") is known
        assert bool(ended.err) is known


def test_two_processes_do_not_share_a_run(cli: CommandLine, trained: Trained) -> None:
    command, running = begun(cli, trained, "endless_step")
    said(running, "endless")
    ended = cli(*command)
    assert ended.code == 5, ended
    assert "Traceback" not in ended.err
    folder = run_folder(cli.place / "out")
    last = ended.err.splitlines()[-1]
    assert last.startswith(f"error: {folder}: in use by process {running.pid} on host '")
    assert last.endswith("; wait for it to end, or start another run with --new")
    running.kill()
    ended = cli(*command)
    assert ended.code == 0, f"a dead owner's run is taken over\n{ended}"
    assert lasting(run_folder(cli.place / "out")) == lasting(trained.folder)


# --- damage -------------------------------------------------------------------------------------


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints" / "student").glob("[0-9]*"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["student", "student/0*"])
def test_lost_checkpoints_are_never_a_fresh_start(cli: CommandLine, waiting: Path, what: str) -> None:
    lost = list((waiting / "checkpoints").glob(what))
    assert lost
    for path in lost:
        shutil.rmtree(path)
    ended = cli("run", cli.recipe(), "--out", "out")
    assert ended.code == 3, ended
    assert "Traceback" not in ended.err
    assert "checkpoints/student: no checkpoint can be used" in ended.err
    assert ended.err.endswith("put the files back, or start a new run with --new\n")


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_flipped_bit_in_the_newest_checkpoint_falls_back_aloud(
    cli: CommandLine, trained: Trained, waiting: Path, file: str
) -> None:
    older, newer = checkpoints(waiting)
    flip(newer / file)
    ended = cli("run", cli.recipe(), "--out", "out")
    assert ended.code == 0, ended
    text = f"checkpoint {int(older.name)} is used, because others are not as saved\n  out/tiny/0001-seed0"
    assert text in ended.err
    assert f"{newer.relative_to(cli.place) / file}: damaged" in ended.err
    assert "stage 'student' resumed at step 28" in ended.err
    one, other = lasting(waiting), lasting(trained.folder)
    assert any("is used, because others are not as saved" in warning for warning in results(waiting)["warnings"])
    assert (one["student"], one["metrics"]) == (other["student"], other["metrics"])


def test_flipped_bits_in_all_checkpoints_end_the_run(cli: CommandLine, waiting: Path) -> None:
    for place in checkpoints(waiting):
        flip(place / "tensors.safetensors")
    ended = cli("run", cli.recipe(), "--out", "out")
    assert ended.code == 3, ended
    assert "no checkpoint can be used" in ended.err
    for place in checkpoints(waiting):
        assert (
            f"{place.relative_to(cli.place)}/tensors.safetensors: damaged: its sha256 is not the recorded one"
            in ended.err
        )


@pytest.mark.parametrize("file", ["student.safetensors", "result.json", "manifest.json"])
def test_a_flipped_bit_in_the_stored_teacher_is_found(cli: CommandLine, trained: Trained, file: str) -> None:
    stock(cli.place / "out", trained.folder, "teacher")
    (path,) = (cli.place / "out" / ".store" / "stage").glob(f"*/{file}")
    flip(path)
    ended = cli("run", cli.recipe(), "--out", "out")
    place = path.relative_to(cli.place)
    what = "its content does not match its seal" if file == "manifest.json" else "its sha256 is not the recorded one"
    refused(ended, 3, f"stored stage: damaged\n  {place}: damaged: {what}\ndelete {place.parent} and run again")
    shutil.rmtree(path.parent)
    ended = cli("run", cli.recipe(), "--out", "out")
    assert ended.code == 0, ended
    assert "teacher: training" in ended.err


# --- where nothing can be written ---------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_refused_before_torch_is_imported(cli: CommandLine) -> None:
    (cli.place / "out").write_text("a file, no folder")
    begin = time.monotonic()
    ended = cli.cold("run", cli.recipe(), "--out", "out", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert time.monotonic() - begin < 5
    assert "| kdzoo.cli" in ended.err
    assert "| torch" not in ended.err
    message = (
        "out: cannot be written: File exists; what was there before is unchanged; choose a folder that can be written"
    )
    refused(ended, 4, message)


def test_a_read_only_folder_is_refused(cli: CommandLine) -> None:
    ended = cli("run", cli.recipe(), "--out", "out", fault="read_only_disk")
    if ended.code == 1 and "no mounts" in ended.err:
        ended = cli("run", cli.recipe(), "--out", "/proc")
        assert ended.code == 4, ended
        return
    refused(
        ended,
        4,
        "out: cannot be written: Read-only file system; what was there before is unchanged; "
        "choose a folder that can be written",
    )


def test_a_full_disk_ends_the_run_and_it_goes_on_once_there_is_room(cli: CommandLine, trained: Trained) -> None:
    ended = cli("run", cli.recipe(), "--out", "out", fault="full_disk")
    assert ended.code == 0, ended
    assert "Traceback" not in ended.err
    first, _, second = ended.err.partition("first: exit code 4, ")
    assert second, ended
    assert "No space left on device" in first or "File too large" in first
    assert "MiB needed, " in first
    assert "MiB free); " in first
    assert "is unchanged; make room, or choose another folder" in first
    assert "resuming out/tiny/0001-seed0" in second
    entry = results(trained.folder)["student"]
    assert f"{entry['top1_percent']:.2f}" in ended.out


# --- recipes ------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_refused(cli: CommandLine) -> None:
    ended = cli("run", cli.recipe(), "--out", "out", "--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""})
    refused(ended, 2, "device: 'cuda' asked for, but torch sees no CUDA device; use 'cpu' or 'auto'")
    ended = cli("run", cli.recipe(), "--out", "out", fault="no_steps")
    assert "AssertionError: a step was taken" in ended.err
    assert "begun with another recipe" not in ended.err, "a run that could not even be built is not in the way"


def test_a_typo_is_refused_with_its_line(cli: CommandLine) -> None:
    path = cli.place / "typo.yaml"
    path.write_text(
        "version: 1\nname: typo\nalgorithm:\n  name: kd\n  options: {tempreature: 2.0}\n"
        "models:\n  teacher: {name: digits_cnn_small}\n  student: {name: digits_cnn_tiny}\n"
        "data: {name: digit}\n"
    )
    ended = cli("run", "typo.yaml", "--out", "out")
    refused(
        ended,
        2,
        "typo.yaml: 2 problems\n"
        "  line 5 algorithm.options.tempreature: unknown key; did you mean 'temperature'?\n"
        "  line 9 data.name: unknown data set 'digit'; did you mean 'digits'? known: arrays, cifar10, cifar100, "
        "clinc150, digits, fashion_mnist, hf_dataset, image_folder ...",
    )
    assert not (cli.place / "out" / "typo").exists()


def test_missing_data_says_both_ways_out(cli: CommandLine) -> None:
    ended = cli("run", cli.recipe({"data": {"name": "cifar10", "root": "nowhere"}}), "--out", "out")
    refused(
        ended,
        8,
        "data set 'cifar10': not found below 'nowhere' (Dataset not found or corrupted. You can use download=True to "
        "download it). Set data.options.download: true to let torchvision fetch it, or data.root or $KDZOO_DATA to the "
        "folder that holds torchvision's files or cifar10/train_images.npy",
    )


@pytest.mark.parametrize(
    ("how", "what"),
    [("loss", "loss term 'hint' is nan"), ("gradient", "the gradient norm of 'student' is nan")],
)
def test_what_is_not_finite_is_named_and_its_samples_are_kept(
    cli: CommandLine, trained: Trained, how: str, what: str
) -> None:
    stock(cli.place / "out", trained.folder, "teacher")
    path = cli.recipe({"algorithm": {"name": "exploding", "options": {"how": how, "step": 30}}})
    ended = cli("run", path, "--out", "out", env={"PYTHONPATH": str(PLUGINS / "exploding")})
    refused(
        ended,
        6,
        f"stage 'student', step 30: {what}; no update was made. Lower train.optimizer.lr, set train.grad_clip_norm, or "
        "lower the weight of the term. The batch's sample indices are in nan_dump.json",
    )
    folder = run_folder(cli.place / "out")
    dump = json.loads((folder / "nan_dump.json").read_text())
    assert (dump["stage"], dump["step"], dump["view"], dump["what"]) == ("student", 30, 1, what)
    assert len(set(dump["sample_indices"])) == 32
    assert newest_step(folder, "student") == 28, "the checkpoint before it is still there"


def test_a_teacher_that_is_too_weak_is_refused(cli: CommandLine, trained: Trained) -> None:
    stock(cli.place / "out", trained.folder, "teacher")
    ended = cli("run", cli.recipe({"min_teacher_top1_percent": 99.5}), "--out", "out")
    refused(
        ended,
        2,
        "teacher 'digits_cnn_small': 64.00 % on the validation split, below min_teacher_top1_percent: 99.5; "
        "check its weights and its input normalisation (mean, std, size)",
    )
    assert "student" not in ended.err


def test_needs_that_are_not_met_are_refused_before_any_training(cli: CommandLine) -> None:
    changes = {"algorithm": {"name": "rkd"}, "data": {"batch_size": 4}, "train": {"accumulate": 2}}
    ended = cli("run", cli.recipe(changes), "--out", "out")
    assert "training" not in ended.err
    refused(
        ended,
        2,
        "algorithm 'rkd': needs at least 3 samples at a time, got 2 (data.batch_size 4, 1 processes, "
        "train.accumulate 2)",
    )


HARMFUL = {"PYTHONPATH": str(PLUGINS / "harmful")}


def test_a_teacher_that_changed_is_found(cli: CommandLine, trained: Trained) -> None:
    stock(cli.place / "out", trained.folder, "teacher")
    ended = cli("run", cli.recipe({"algorithm": {"name": "meddling"}}), "--out", "out", env=HARMFUL)
    refused(ended, 3, "stage 'student': the teacher's weights or buffers changed during training")
    assert not (run_folder(cli.place / "out") / "results.json").exists()


def test_too_little_memory_is_told_with_what_helps(cli: CommandLine, trained: Trained) -> None:
    stock(cli.place / "out", trained.folder, "teacher")
    ended = cli("run", cli.recipe({"algorithm": {"name": "greedy"}}), "--out", "out", env=HARMFUL)
    assert ended.code == 7, ended
    assert "Traceback" not in ended.err
    assert (
        "error: stage 'student': out of memory at batch size 32; lower data.batch_size, raise train.accumulate (same "
        "batch in smaller parts), or choose precision: bf16\n" in ended.err
    )


def test_an_exported_file_that_is_not_the_student_is_rejected(cli: CommandLine, trained: Trained) -> None:
    stock(cli.place / "out", trained.folder, "teacher", "student")
    ended = cli("run", cli.recipe({"export": [{"format": "swapped"}]}), "--out", "out", env=HARMFUL)
    assert ended.code == 9, ended
    assert "Traceback" not in ended.err
    assert (
        "error: 1 of 1 exported files rejected; everything else is finished\n"
        "  swapped: is not the student, kept as export/student.npz.rejected\n" in ended.err
    )
    folder = run_folder(cli.place / "out")
    (entry,) = json.loads((folder / "results.json").read_text())["exports"]
    assert "logits" in entry["rejected"][0]
    assert [path.name for path in (folder / "export").iterdir()] == ["student.npz.rejected"]
    assert {"report.html", "README.md", "student.safetensors"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("command", [["list"], ["show"], ["check"], ["report"], ["new", "algorithm"], []])
def test_control_characters_never_reach_the_terminal(cli: CommandLine, command: list[str]) -> None:
    ended = cli(*command, "\x1b[2J\x9b1m")
    refused(ended, 2, "'\\x1b[2J\\x9b1m': an argument may not hold control characters")
    assert ended.out == ""


def test_control_characters_of_a_class_never_reach_the_terminal(cli: CommandLine) -> None:
    for folder in ("train/a\x1b[31m", "train/b", "test/a\x1b[31m", "test/b"):
        (cli.place / "images" / folder).mkdir(parents=True)
    data = {"name": "image_folder", "root": str(cli.place / "images"), "preprocessing": {"size": 8}}
    ended = cli("check", cli.recipe({"data": data}))
    assert ended.code == 8, ended
    assert "\x1b" not in ended.out + ended.err


LONG = "a" * 256


@pytest.mark.parametrize(
    "command",
    [
        ["check", LONG],
        ["show", f"some/{LONG}.yaml"],
        ["report", LONG],
        ["compare", "x", LONG],
        ["export", LONG],
        ["run", "quickstart", "--out", LONG],
        ["new", "recipe", "x", "--in", LONG],
    ],
    ids=str,
)
def test_a_name_that_no_file_can_have_is_refused(cli: CommandLine, command: list[str]) -> None:
    ended = cli(*command)
    assert ended.code == 2, ended
    assert ended.err.endswith(": a file's name has at most 255 bytes, got 256\n") or ".yaml" in command[-1], ended
    assert "Traceback" not in ended.err


def test_what_is_found_wrong_later_has_file_and_line(cli: CommandLine) -> None:
    for change, says in (
        (
            {"train": {"epochs": 1, "optimizer": {"name": "sdg"}}},
            "train.optimizer.name: unknown optimizer 'sdg'; did you mean 'sgd'?",
        ),
        (
            {"models": {"student": {"name": "digits_cnn_tinny"}}},
            "models.student.name: unknown model 'digits_cnn_tinny'; did you mean 'digits_cnn_tiny'?",
        ),
        (
            {"data": {"batch_size": 5000}},
            "data.batch_size: 5000 is more than the 900 training samples that 'digits' has after",
        ),
    ):
        path = cli.recipe(change)
        key = says.partition(":")[0].rpartition(".")[2]
        value = {"optimizer": "sdg", "student": "digits_cnn_tinny"}.get(says.split(":")[0].split(".")[1], "5000")
        lines = path.read_text().splitlines()
        line = 1 + next(i for i, text in enumerate(lines) if f'"{key}"' in text and value in text)
        ended = cli("check", path)
        assert ended.code == (8 if "data" in change else 2), ended
        assert ended.err.startswith(f"error: {path}: 1 problem\n  line {line} {says}"), ended


def test_no_temporary_file_outlives_a_refusal(cli: CommandLine) -> None:
    cli("run", cli.recipe(), "--out", "out", "--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""})
    assert not [path for path in (cli.place / "out").rglob("*") if TEMPORARY.fullmatch(path.name)]
