"""moba check and moba doctor."""

import json

import numpy
from safetensors.numpy import load_file, save_file


def test_check_finds_every_layer_right(moba, moba_model, text_file, tmp_path):
    for dtype in ("float32", "bfloat16"):
        out = moba.ok("check", "--model", moba_model, "--text", text_file, "--length", 500, "--dtype", dtype, "--json",
                      tmp_path / "c.json")
        result = json.loads((tmp_path / "c.json").read_text())
        assert result["passed"] and result["tokens"] == 500
        assert [row["block_size"] for row in result["layers"]] == [32, 64]
        for row in result["layers"]:
            assert max(row[key] for key in ("out", "lse", "dq", "dk", "dv")) <= result["tolerance"]
        assert "all layers agree" in out


def test_check_says_what_the_choice_catches(moba, moba_model, text_file, tmp_path):
    base = ["check", "--model", moba_model, "--text", text_file, "--length", 500, "--json", tmp_path / "c.json"]

    def shares(*flags):
        out = moba.ok(*base, *flags)
        assert "share of the full attention" in out
        return json.loads((tmp_path / "c.json").read_text())["layers"]

    own = shares()
    assert own[0]["choice"].startswith("moba(32,")
    for row in own:
        assert 0 < row["share_worst_row"] <= row["share"] <= 1
        assert abs(sum(row["share_of_heads"]) / len(row["share_of_heads"]) - row["share"]) < 1e-9
    every = shares("--top-k", 100, "--block-size", 16)
    assert all(row["share"] > 0.9999 for row in every)
    gate = ["--block-size", 16, "--top-k", 4, "--force-previous", "--sink-blocks", 1, "--share", "group",
            "--share-score", "max", "--representative-dtype", "float32"]
    some = shares(*gate)
    choice = "moba(16,4,previous,1 sinks,group max,float32 means)"
    assert [row["choice"] for row in some] == [choice, choice + " in the place of full"]
    assert all(row["share"] < 0.9999 for row in some)
    moba.fails(2, *base, "--block-size", 16, "--top-k", 2, "--force-previous", "--sink-blocks", 1, names=["sink-blocks"])


def test_check_fails_on_weights_that_give_no_numbers(moba, moba_model, text_file, broken):
    """A layer whose queries are NaN agrees with nothing."""
    model = broken(moba_model, lambda config: None)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"] = numpy.full_like(
        tensors["model.layers.1.self_attn.v_proj.weight"], numpy.nan)
    save_file(tensors, model / "model.safetensors")
    run = moba("check", "--model", model, "--text", text_file, "--length", 200)
    assert run.returncode == 1
    assert "WRONG" in run.stdout and "check" in run.stderr


def test_check_takes_a_text_shorter_than_a_block(moba, moba_model, tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert "all layers agree" in moba.ok("check", "--model", moba_model, "--text", tmp_path / "a.txt")


def test_doctor_says_what_is_there(moba):
    out = moba.ok("doctor")
    for text in ("moba", "torch", "compiler", "features", "threads", "reference", "cpu", "portable", "bfloat16",
                 "head dims 8 to 256", "choice options", "sum_prob", "GPU", "CUDA", "model", "self-check passed"):
        assert text in out, text


def test_doctor_counts_threads(moba):
    assert "1 threads used" in moba.ok("doctor", "--threads", 1)
