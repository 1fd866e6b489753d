"""moba bench attend."""

import json

SMALL = ["--block-size", 64, "--heads", 4, "--head-dim", 32, "--repeats", 2, "--device", "cpu"]


def test_rows_have_the_keys_that_scripts_read(moba, tmp_path):
    out = moba.ok("bench", "attend", "--n", "300,512", "--pass", "fwd,fwdbwd,decode", *SMALL, "--kv-heads", 2, "--json",
                  tmp_path / "b.json")
    result = json.loads((tmp_path / "b.json").read_text())
    assert [(row["pass"], row["n"]) for row in result["rows"]] == [
        (name, n) for name in ("fwd", "fwdbwd", "decode") for n in (300, 512)]
    for row in result["rows"]:
        assert (row["heads"], row["kv_heads"], row["head_dim"], row["block_size"], row["top_k"]) == (4, 2, 32, 64, 3)
        assert row["dtype"] == "bf16" and row["baseline"] == "torch_sdpa"
        assert row["ms"] > 0 and row["baseline_ms"] > 0
        assert abs(row["ratio"] - row["baseline_ms"] / row["ms"]) < 1e-9
        assert row["reference_error"] < 0.03
    assert result["machine"]["threads"] >= 1
    assert "thread" in out and "ratio" in out


def test_every_dtype_is_right(moba):
    for dtype in ("fp32", "fp16", "bf16"):
        moba.ok("bench", "attend", "--n", 257, "--pass", "fwd,fwdbwd,decode", "--dtype", dtype, *SMALL)


def test_block_size_beyond_the_length(moba):
    moba.ok("bench", "attend", "--n", 100, *SMALL[2:], "--block-size", 4096)


def test_quick_is_one_row(moba, tmp_path):
    moba.ok("bench", "attend", "--quick", "--repeats", 1, "--heads", 2, "--json", tmp_path / "b.json")
    assert len(json.loads((tmp_path / "b.json").read_text())["rows"]) == 1


def test_threads_are_set(moba, tmp_path):
    moba.ok("bench", "attend", "--n", 256, "--threads", 1, *SMALL, "--json", tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text())["machine"]["threads"] == 1
