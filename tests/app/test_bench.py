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


DECODE = ["--n", 700, "--head-dim", 32, "--block-size", 32, "--top-k", 4, "--page-size", 16, "--repeats", 2, "--device",
          "cpu"]


def test_decode_shows_what_sharing_keeps(moba, tmp_path):
    out = moba.ok("bench", "decode", "--heads", 8, "--sequences", 2, *DECODE, "--json", tmp_path / "d.json")
    rows = json.loads((tmp_path / "d.json").read_text())["rows"]
    assert [(row["grouping"], row["kv_heads"], row["choice"]) for row in rows] == [
        ("MHA", 8, "all keys"), ("MHA", 8, "per head"),
        ("GQA", 2, "all keys"), ("GQA", 2, "per head"), ("GQA", 2, "shared"),
        ("MQA", 1, "all keys"), ("MQA", 1, "per head"), ("MQA", 1, "shared")]
    for row in rows:
        assert row["ms"] > 0 and row["reference_error"] < 0.03
        group = row["heads"] // row["kv_heads"]
        if row["choice"] == "all keys":
            assert row["share_of_keys_read"] == 1.0 and row["ratio_to_all_keys"] == 1.0
            continue
        assert row["blocks_chosen_per_kv_head"] == 4 * group
        assert abs(row["io_ratio"] - row["blocks_read_per_kv_head"] / (4 * group)) < 1e-9
        if row["choice"] == "shared" or group == 1:
            assert row["blocks_read_per_kv_head"] == 4
        else:
            assert 4 < row["blocks_read_per_kv_head"] <= 4 * group
    assert "MQA" in out and "shared" in out


def test_decode_heads_that_agree_share_all(moba, tmp_path):
    moba.ok("bench", "decode", "--heads", 4, "--alike", 1, *DECODE, "--json", tmp_path / "d.json")
    for row in json.loads((tmp_path / "d.json").read_text())["rows"]:
        if row["choice"] != "all keys":
            assert row["blocks_read_per_kv_head"] == 4


def test_decode_every_dtype_and_uneven_sizes(moba):
    for dtype in ("fp32", "fp16", "bf16"):
        moba.ok("bench", "decode", "--heads", 6, "--kv-heads", 3, "--dtype", dtype, *DECODE)
    moba.ok("bench", "decode", "--heads", 1, *DECODE)


def test_decode_refuses_pages_that_do_not_divide_the_block(moba):
    moba.fails(2, "bench", "decode", *DECODE[:6], "--page-size", 24, names=["24 does not divide --block-size 32"])
