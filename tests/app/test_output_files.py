"""Output files appear whole or not at all, and their paths are checked before any work is done."""

import json
import os
import resource
import signal
import subprocess
import time

import pytest


@pytest.fixture(params=["eval", "needle-json", "needle-html", "needle-png", "check", "bench"])
def writes(request, plain_model, text_file):
    """A command line that ends where the output path follows."""
    needle = ["needle", "--model", plain_model, "--text", text_file, "--lengths", 3000, "--depths", 1, "--needles", 1,
              "--attention", "full"]
    return {
        "eval": ["eval", "--model", plain_model, "--text", text_file, "--length", 4096, "--json"],
        "needle-json": [*needle, "--json"],
        "needle-html": [*needle, "--html"],
        "needle-png": [*needle, "--png"],
        "check": ["check", "--model", plain_model, "--text", text_file, "--length", 64, "--json"],
        "bench": ["bench", "attend", "--device", "cpu", "--n", 128, "--head-dim", 16, "--heads", 2, "--block-size", 32,
                  "--repeats", 1, "--json"],
    }[request.param]


def test_missing_folders_are_made(moba, writes, tmp_path):
    out = tmp_path / "new" / "folders" / "out"
    moba.ok(*writes, out)
    assert out.stat().st_size > 50
    assert os.listdir(out.parent) == ["out"]


def test_a_device_is_no_output_file(moba, writes):
    before = os.stat("/dev/full")
    moba.fails(1, *writes, "/dev/full", names="/dev/full")
    after = os.stat("/dev/full")
    assert (before.st_mode, before.st_rdev) == (after.st_mode, after.st_rdev)


def test_a_folder_or_a_file_in_the_way_is_named(moba, writes, tmp_path):
    (tmp_path / "file").write_text("here")
    moba.fails(1, *writes, tmp_path, names=str(tmp_path))
    moba.fails(1, *writes, tmp_path / "file" / "out", names=str(tmp_path / "file"))
    assert os.listdir(tmp_path) == ["file"]


def test_paths_are_checked_before_the_model_is_read(moba, text_file, tmp_path):
    """Both the model and the path are wrong: the path is what is reported, since it comes first."""
    for command, flag in [(["eval", "--length", 64], "--json"), (["needle"], "--json"), (["needle"], "--html"),
                          (["needle"], "--png"), (["check"], "--json")]:
        moba.fails(1, *command, "--model", tmp_path / "no-model", "--text", text_file, flag, tmp_path,
                   names=[str(tmp_path), "directory"])


def test_a_folder_without_permission_is_named(moba, writes, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder / "probe", os.W_OK) or os.geteuid() == 0:
        pytest.skip("the superuser may write anywhere")
    moba.fails(1, *writes, folder / "out", names=str(folder / "out"))


def test_a_full_disk_leaves_nothing(moba, writes, tmp_path):
    """A limit on the size of files stands for the full disk: writing beyond it fails in the same place."""
    out = tmp_path / "out"
    out.write_text("the old result")

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))

    run = moba(*writes, out, preexec_fn=small_files)
    assert run.returncode == 1
    assert str(out) in run.stderr
    assert out.read_text() == "the old result"
    assert os.listdir(tmp_path) == ["out"]


def test_an_interrupted_command_leaves_nothing(moba, plain_model, text_file, tmp_path):
    # A job in the background of a shell inherits an ignored SIGINT, and would hand it on.
    process = moba.popen("needle", "--model", plain_model, "--text", text_file, "--lengths", 200000, "--attention", "full",
                         "--json", tmp_path / "out.json", stderr=subprocess.PIPE,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    process.stderr.close()
    assert os.listdir(tmp_path) == []


def test_an_old_result_is_replaced(moba, plain_model, text_file, tmp_path):
    out = tmp_path / "loss.json"
    out.write_text("old")
    moba.ok("eval", "--model", plain_model, "--text", text_file, "--length", 4096, "--json", out)
    assert json.loads(out.read_text())["windows"] >= 1
