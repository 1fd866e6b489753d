"""Every command in a real terminal: colours and progress appear there, and only there."""

import re

import pytest

from conftest import plain, write_checkpoint


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory):
    """Large enough that reading takes a few seconds on any machine."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "slow", layers=6, hidden=384, heads=6, head_dim=64)


def test_generate(moba, plain_model):
    run = moba.in_terminal("generate", "--model", plain_model, "--prompt", "abc", "--max-new-tokens", 10)
    assert run.returncode == 0 and run.output


def test_generate_shows_progress_while_it_reads_a_long_prompt(moba, slow_model, text_file, tmp_path):
    prompt = tmp_path / "long.txt"
    prompt.write_text(text_file.read_text())
    run = moba.in_terminal("generate", "--model", slow_model, "--dtype", "float32", "--threads", 1, "--prompt-file", prompt,
                           "--max-new-tokens", 1)
    assert run.returncode == 0
    assert "reading the prompt" in run.output and re.search(r"\d+%", run.output)
    assert "\r\x1b[K" in run.output  # and wiped again
    quiet = moba("generate", "--model", slow_model, "--dtype", "float32", "--prompt-file", prompt, "--max-new-tokens", 1)
    assert quiet.stderr == ""


def test_needle(moba, moba_model, text_file):
    run = moba.in_terminal("needle", "--model", moba_model, "--text", text_file, "--lengths", 3000, "--depths", 2,
                           "--needles", 2)
    assert run.returncode == 0
    assert "\x1b[3" in run.output  # colour
    table = plain(run.output)
    assert re.search(r"full +3,000 +\d/4 ", table) and re.search(r"moba +3,000 +\d/4 .*x\n", table)


def test_eval(moba, moba_model, text_file):
    run = moba.in_terminal("eval", "--model", moba_model, "--text", text_file, "--length", 1024)
    assert run.returncode == 0 and "nats per token" in run.output


def test_check(moba, moba_model, text_file):
    run = moba.in_terminal("check", "--model", moba_model, "--text", text_file, "--length", 256)
    assert run.returncode == 0 and "all layers agree" in plain(run.output)


def test_bench(moba):
    run = moba.in_terminal("bench", "attend", "--n", 512, "--block-size", 64, "--heads", 2, "--head-dim", 32, "--repeats",
                           1)
    assert run.returncode == 0 and re.search(r"fwd +512 .*\d\.\d\dx", plain(run.output))


def test_doctor(moba):
    run = moba.in_terminal("doctor")
    assert run.returncode == 0 and "self-check passed" in run.output


def test_train_says_what_is_wrong(moba, tmp_path):
    run = moba.in_terminal("train", "--config", tmp_path / "missing.toml")
    assert run.returncode == 1 and "missing.toml" in run.output


def test_errors_stand_on_a_clean_line(moba, tmp_path):
    run = moba.in_terminal("generate", "--model", tmp_path / "nowhere", "--prompt", "a")
    assert run.returncode == 1
    assert plain(run.output).startswith("moba: ")


def test_help_fits_a_terminal(moba):
    for command in ("generate", "needle", "eval", "train", "check", "doctor"):
        run = moba.in_terminal(command, "--help")
        assert run.returncode == 0
        assert max(map(len, plain(run.output).splitlines())) <= 130
