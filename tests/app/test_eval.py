"""moba eval."""

import json
import math

import pytest


def evaluate(moba, model, out, *arguments):
    moba.ok("eval", "--model", model, "--dtype", "float32", "--json", out, *arguments)
    return json.loads(out.read_text())


def test_reads_every_whole_window(moba, plain_model, text_file, tmp_path):
    result = evaluate(moba, plain_model, tmp_path / "loss.json", "--text", text_file, "--length", 512)
    windows = text_file.stat().st_size // 512
    assert result["windows"] == windows > 10
    assert result["tokens"] == windows * 511
    assert result["length"] == 512
    assert result["attention"] == "model"
    assert 3 < result["loss"] < 12  # random weights: ln 256 = 5.5 and more
    assert len(result["by_position"]) == 16
    assert math.isclose(sum(result["by_position"]) / 16, result["loss"], rel_tol=0.05)
    assert result["trailing"] == 128 and result["trailing_loss"] > 0


def test_loss_is_that_of_the_model(moba, plain_model, tmp_path):
    """The mean over one window, computed by transformers from the same weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    text = ("Nobody sold three green bottles at the harbour. " * 12).encode()[:400]
    (tmp_path / "window.txt").write_bytes(text)
    result = evaluate(moba, plain_model, tmp_path / "loss.json", "--text", tmp_path / "window.txt", "--length", 400)
    model = transformers.AutoModelForCausalLM.from_pretrained(plain_model, dtype=torch.float32)
    ids = torch.tensor([list(text)])
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss.item()
    assert math.isclose(result["loss"], expected, rel_tol=1e-4)


def test_documents_are_cut_one_by_one(moba, plain_model, text_file, tmp_path):
    (tmp_path / "short.txt").write_text("x" * 130)
    result = evaluate(moba, plain_model, tmp_path / "loss.json", "--text", tmp_path / "short.txt", tmp_path / "short.txt",
                      "--length", 100)
    assert result["windows"] == 2


def test_every_block_chosen_is_full_attention(moba, plain_model, moba_model, text_file, tmp_path):
    common = ["--text", text_file, "--length", 1024]
    full = evaluate(moba, moba_model, tmp_path / "a.json", *common, "--attention", "full")
    all_blocks = evaluate(moba, plain_model, tmp_path / "b.json", *common, "--attention", "moba", "--block-size", 64,
                          "--top-k", 16)
    plan = evaluate(moba, moba_model, tmp_path / "c.json", *common)
    assert math.isclose(full["loss"], all_blocks["loss"], rel_tol=1e-5)
    assert not math.isclose(full["loss"], plan["loss"], rel_tol=1e-5)
    assert plan["plan"] == "moba(32,2) + full" or "moba(32,2)" in plan["plan"]


def test_works_with_sentencepiece(moba, sentencepiece_model, text_file, tmp_path):
    result = evaluate(moba, sentencepiece_model, tmp_path / "loss.json", "--text", text_file, "--length", 256)
    assert result["tokens"] == result["windows"] * 255


def test_without_json_it_prints(moba, plain_model, text_file):
    out = moba.ok("eval", "--model", plain_model, "--text", text_file, "--length", 2048)
    assert "nats per token" in out and "2048" in out


@pytest.mark.parametrize("command", ["eval", "needle", "check"])
def test_text_that_is_none_is_named(moba, plain_model, sentencepiece_model, tmp_path, command):
    size = ["--lengths", "4096", "--attention", "full"] if command == "needle" else ["--length", "64"]
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"abc\xfe" * 100)
    for text, names in [("empty.txt", "empty"), ("missing.txt", "missing.txt"), (".", "directory")]:
        moba.fails(1, command, "--model", plain_model, "--text", tmp_path / text, *size, names=[str(tmp_path), names])
    moba.fails(1, command, "--model", sentencepiece_model, "--text", tmp_path / "binary.txt", *size,
               names=["binary.txt", "UTF-8"])


def test_text_shorter_than_a_window_is_said(moba, plain_model, tmp_path):
    (tmp_path / "short.txt").write_text("only this")
    moba.fails(1, "eval", "--model", plain_model, "--text", tmp_path / "short.txt", "--length", "64", names=["64", "9"])
