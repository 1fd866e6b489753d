"""moba train, as far as the command line goes; training itself is tested beside lm/train."""

import json
import os
import re
import signal
import time

import pytest

from conftest import prose

CONFIG = """
[run]
device = "cpu"
dtype = "fp32"
log_every = 1
checkpoint_every = 2

[model]
vocab_size = 256
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
head_dim = 16

[data]
train = ["{text}"]
cache_dir = "{cache}"

[optimizer]
lr = 0.001

[schedule]
steps = 4
warmup = 1

[[phase]]
step = 0
sequence_length = 128
batch_tokens = 256
micro_batch_tokens = 256
attention = {{ kind = "moba", block_size = 32, top_k = 2, last_n_full = 1 }}
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "text.txt").write_text(prose(500))
    file = tmp_path / "tiny.toml"
    file.write_text(CONFIG.format(text=tmp_path / "text.txt", cache=tmp_path / "cache"))
    return file


def test_trains_and_the_model_runs(moba, config, tmp_path):
    out = moba.ok("train", "--config", config, "--out", tmp_path / "run")
    assert len(re.findall(r"^step \d+/", out, re.M)) >= 4 and "loss" in out
    model = tmp_path / "run" / "final"
    assert json.loads((model / "config.json").read_text())["moba"]["plan"]
    assert moba("generate", "--model", model, "--prompt", "The", "--max-new-tokens", 8).returncode == 0


def test_set_overrides_a_key(moba, config, tmp_path):
    out = moba.ok("train", "--config", config, "--out", tmp_path / "run", "--set", "schedule.steps=2", "--set",
                  "optimizer.lr=0.01")
    assert len(re.findall(r"^step \d+/", out, re.M)) == 2


def test_interrupt_stops_with_a_checkpoint_and_resume_goes_on(moba, config, tmp_path):
    process = moba.popen("train", "--config", config, "--out", tmp_path / "run", "--set", "schedule.steps=100000", "--set",
                         "run.checkpoint_every=100000", stdout=-1, stderr=-1)
    while not process.stdout.readline().startswith(b"step 3/"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    rest, errors = process.stdout.read(), process.stderr.read()
    assert process.wait(timeout=120) == 0, errors
    process.stdout.close()
    process.stderr.close()
    steps = re.findall(rb"^step (\d+)/", rest, re.M)
    done = int(steps[-1]) if steps else 3
    out = moba.ok("train", "--config", config, "--out", tmp_path / "run", "--resume", "--set",
                  "schedule.steps=100000", "--max-minutes", 0.2)
    assert int(re.search(r"^step (\d+)/", out, re.M).group(1)) > done


def test_max_minutes_stops_by_itself(moba, config, tmp_path):
    started = time.monotonic()
    moba.ok("train", "--config", config, "--out", tmp_path / "run", "--set", "schedule.steps=1000000",
            "--set", "run.log_every=1000", "--max-minutes", 0.1)
    assert time.monotonic() - started < 60
    assert os.listdir(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize(
    "change, names",
    [
        (lambda text: text.replace("[optimizer]", "[optimizer"), "tiny.toml"),
        (lambda text: text.replace("lr = 0.001", "learning_rate = 0.001"), "optimizer.learning_rate"),
        (lambda text: text.replace("hidden_size = 32", 'hidden_size = "wide"'), "hidden_size"),
        (lambda text: text.replace("steps = 4", "steps = -4"), "schedule.steps"),
        (lambda text: re.sub(r"train = .*", 'train = ["/no/such/text"]', text), "/no/such/text"),
    ],
)
def test_a_broken_config_is_named_and_nothing_is_written(moba, config, tmp_path, change, names):
    config.write_text(change(config.read_text()))
    before = sorted(os.listdir(tmp_path))
    moba.fails(1, "train", "--config", config, "--out", tmp_path / "run", names=names)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_missing_config_is_named(moba, tmp_path):
    moba.fails(1, "train", "--config", tmp_path / "no.toml", names="no.toml")
    moba.fails(1, "train", "--config", tmp_path, names=[str(tmp_path), "directory"])


def test_a_wrong_override_is_named(moba, config, tmp_path):
    for override in ("optimizer.lr", "optimizer.lrr=1", "nothing.at.all=2", "optimizer.lr=fast"):
        moba.fails(1, "train", "--config", config, "--out", tmp_path / "run", "--set", override,
                   names=override.split("=")[0].split(".")[-1])
    assert not (tmp_path / "run").exists()
