"""Flags, help, exit codes, standard output."""

import os
import subprocess

import pytest

COMMANDS = ["train", "eval", "generate", "needle", "bench", "check", "doctor"]


def test_version(moba):
    out = moba.ok("--version")
    assert out.startswith("moba ") and "torch" in out


def test_help_lists_every_command(moba):
    out = moba.ok("--help")
    for command in COMMANDS:
        assert f"\n  {command} " in out


@pytest.mark.parametrize("command", [[name] for name in COMMANDS] + [["bench", name] for name in ("attend", "decode", "model")])
def test_help_of_each_command(moba, command):
    out = moba.ok(*command, "--help")
    assert "Usage: moba " + " ".join(command) in out
    if command not in (["bench"], ["doctor"]):
        assert "Example" in out


def test_help_shows_the_flags_that_scripts_use(moba):
    flags = {
        "train": ["--config", "--set", "--out", "--resume", "--max-minutes"],
        "generate": ["--model", "--prompt", "--prompt-file", "--max-new-tokens", "--temperature", "--attention",
                     "--device", "--block-size", "--top-k", "--last-n-full", "--seed", "--stop"],
        "needle": ["--model", "--text", "--lengths", "--depths", "--needles", "--attention", "--json", "--html", "--png"],
        "eval": ["--model", "--text", "--length", "--attention", "--json"],
        "check": ["--model", "--text"],
    }
    for command, names in flags.items():
        out = moba.ok(command, "--help")
        for name in names:
            assert name in out, (command, name)


@pytest.mark.parametrize(
    "arguments, name",
    [
        ([], "subcommand"),
        (["sing"], "sing"),
        (["generate", "--prompt", "a", "--colour", "red"], "--colour"),
        (["generate"], "--prompt"),
        (["generate", "--prompt", "a", "--prompt-file", "b"], "--prompt"),
        (["generate", "--prompt", "a", "--attention", "half"], "--attention"),
        (["generate", "--prompt", "a", "--device", "toaster"], "--device"),
        (["generate", "--prompt", "a", "--max-new-tokens", "many"], "--max-new-tokens"),
        (["generate", "--prompt", "a", "--max-new-tokens", "-1"], "max_new_tokens"),
        (["generate", "--prompt", "a", "--temperature", "-1"], "temperature"),
        (["generate", "--prompt", "a", "--top-p", "0"], "top_p"),
        (["generate", "--prompt", "a", "--stop", ""], "stop"),
        (["generate", "--prompt", "a", "--threads", "0"], "--threads"),
        (["eval"], "--text"),
        (["eval", "--text", "a", "--length", "1"], "--length"),
        (["eval", "--text", "a", "--length", "8", "--trailing", "8"], "--trailing"),
        (["needle", "--text", "a", "--lengths", "4096,x"], "--lengths"),
        (["needle", "--text", "a", "--lengths", "0"], "--lengths"),
        (["needle", "--text", "a", "--depths", "0"], "--depths"),
        (["needle", "--text", "a", "--needles", "-2"], "--needles"),
        (["needle", "--text", "a", "--attention", "full,half"], "--attention"),
        (["needle"], "--text"),
        (["train"], "--config"),
        (["train", "--config", "a", "--max-minutes", "0"], "--max-minutes"),
        (["bench"], "subcommand"),
        (["bench", "attend", "--dtype", "int4"], "--dtype"),
        (["bench", "attend", "--heads", "6", "--kv-heads", "4"], "--kv-heads"),
        (["bench", "attend", "--head-dim", "7"], "--head-dim"),
        (["check"], "--text"),
        (["doctor", "--verbose"], "--verbose"),
    ],
)
def test_wrong_usage_is_exit_2_and_names_the_flag(moba, arguments, name):
    moba.fails(2, *arguments, names=name)


def test_moba_of_a_plain_checkpoint_needs_a_plan(moba, plain_model, text_file):
    for arguments in (
        ["generate", "--prompt", "a"],
        ["generate", "--prompt", "a", "--block-size", "16"],
        ["eval", "--text", text_file, "--length", "64"],
        ["needle", "--text", text_file, "--lengths", "4096"],
    ):
        moba.fails(2, *arguments, "--model", plain_model, "--attention", "moba", names=["--block-size", "--top-k"])
    moba.fails(
        2, "generate", "--prompt", "a", "--model", plain_model, "--attention", "moba", "--block-size", "16", "--top-k",
        "2", "--last-n-full", "3", names="--last-n-full",
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["doctor"]])
def test_a_reader_that_went_away_is_exit_1(moba, arguments):
    read_end, write_end = os.pipe()
    os.close(read_end)
    run = moba(*arguments, stdout=write_end)
    os.close(write_end)
    assert run.returncode == 1
    assert "standard output" in run.stderr


def test_a_full_disk_behind_standard_output_is_exit_1(moba):
    with open("/dev/full", "w") as full:
        run = moba("--help", stdout=full)
    assert run.returncode == 1
    assert "standard output" in run.stderr and "space" in run.stderr


def test_closed_standard_output_is_exit_1(moba):
    run = subprocess.run(["sh", "-c", '"$0" --help >&-', moba.path], stderr=subprocess.PIPE, env=moba.env)
    assert run.returncode == 1
    assert b"standard output" in run.stderr


def test_closed_standard_error_changes_nothing(moba):
    run = subprocess.run(["sh", "-c", '"$0" --version 2>&-', moba.path], stdout=subprocess.PIPE, env=moba.env)
    assert run.returncode == 0 and run.stdout.startswith(b"moba ")
    run = subprocess.run(["sh", "-c", '"$0" sing 2>&-', moba.path], stdout=subprocess.PIPE, env=moba.env)
    assert run.returncode == 2


def test_the_shipped_model_is_named_when_it_is_missing(moba, tmp_path):
    """A copy of the program far from its sources still says where it looked, unless the sources are where they were."""
    run = moba("generate", "--prompt", "a", "--model", tmp_path / "nowhere")
    assert run.returncode == 1
    assert "nowhere" in run.stderr
