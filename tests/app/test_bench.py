"""moba bench attend, decode and model."""

import json
import xml.etree.ElementTree
from pathlib import Path

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


def test_stages_say_each_verbs_share_of_the_ceilings(moba, tmp_path):
    out = moba.ok("bench", "attend", "--n", 600, "--pass", "fwdbwd,decode", "--stages", *SMALL, "--json", tmp_path / "b.json")
    result = json.loads((tmp_path / "b.json").read_text())
    assert result["gemm_gflops"] > 0 and result["read_gbs"] > 0
    verbs = [[stage["verb"] for stage in row["stages"]] for row in result["rows"]]
    assert verbs == [["pool", "select", "attend", "attend_backward"], ["select", "attend"]]
    for row in result["rows"]:
        for stage in row["stages"]:
            assert stage["ms"] > 0
            assert abs(stage["gemm_share"] - stage["gflops"] / result["gemm_gflops"]) < 1e-9
            assert abs(stage["read_share"] - stage["gbs"] / result["read_gbs"]) < 1e-9
    assert "of the matrix rate" in out and "of the read rate" in out


def test_the_picture_is_svg_with_a_bar_for_each_row_in_light_and_dark(moba, tmp_path):
    moba.ok("bench", "attend", "--n", "200,300", *SMALL, "--svg", tmp_path / "b.svg")
    text = (tmp_path / "b.svg").read_text()
    root = xml.etree.ElementTree.fromstring(text)
    bars = [element for element in root.iter("{http://www.w3.org/2000/svg}rect") if element.get("class") == "bar"]
    assert len(bars) == 2 and all(float(bar.get("width")) >= 0 for bar in bars)
    assert "prefers-color-scheme: dark" in text
    assert 'class="goal"' not in text and "asked for" not in text  # no goals in this run


HAS_AMX = "amx_bf16" in Path("/proc/cpuinfo").read_text()


def test_amx_of_torch_is_named_with_its_remedy(moba, tmp_path):
    quick = ["bench", "attend", "--n", 100, *SMALL, "--json", tmp_path / "b.json"]
    names = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
    for values in ((), ("AVX512_CORE_BF16",), ("AVX512_CORE_BF16", "AVX512_E3"), ("AVX512_CORE_AMX", "AVX512_E3"),
                   ("AVX512_CORE_BF16", "AVX512_E4")):
        env = {name: value for name, value in moba.env.items() if name not in names}
        env |= dict(zip(names, values))
        out = moba.ok(*quick, env=env)
        doctor = moba.ok("doctor", env=env)
        machine = json.loads((tmp_path / "b.json").read_text())["machine"]
        if not HAS_AMX:
            assert "AMX" not in out and "torch_amx" not in machine
            continue
        without = values == ("AVX512_CORE_BF16", "AVX512_E3")
        assert machine["torch_amx"] is not without
        assert machine["moba_amx"] and ("only libmoba with AMX" in out) is without
        for text in (out, doctor):
            assert ("not like with like" in text) is without
            assert ("ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 MKL_ENABLE_INSTRUCTIONS=AVX512_E3" in text) is not without
            assert "--simd-level AVX-512-BF16" in text
        out = moba.ok(*quick, "--simd-level", "AVX-512-BF16", env=env)
        assert not json.loads((tmp_path / "b.json").read_text())["machine"]["moba_amx"]
        assert ("both without AMX" in out) is without and ("the goals apply" in out) is without


MODEL = ["--lengths", "300,500", "--new-tokens", 3, "--repeats", 2, "--device", "cpu"]


def test_model_compares_its_plan_with_full_attention(moba, moba_model, text_file, tmp_path):
    for prompt in ([], ["--text", text_file]):
        for dtype in ("float32", "bfloat16"):
            out = moba.ok("bench", "model", "--model", moba_model, *prompt, "--dtype", dtype, *MODEL, "--json",
                          tmp_path / "m.json")
            result = json.loads((tmp_path / "m.json").read_text())
            assert result["plan"] == "moba(32,2) x1 + full x1" and result["new_tokens"] == 3
            assert [row["length"] for row in result["rows"]] == [300, 500]
            for row in result["rows"]:
                for side in (row["full"], row["moba"]):
                    assert 0 < side["read_s_min"] <= side["read_s"] <= side["read_s_max"]
                    assert 0 < side["token_ms_min"] <= side["token_ms"] <= side["token_ms_max"]
                assert abs(row["read_ratio"] - row["full"]["read_s"] / row["moba"]["read_s"]) < 1e-9
                assert abs(row["token_ratio"] - row["full"]["token_ms"] / row["moba"]["token_ms"]) < 1e-9
                assert row["logit_difference"] < (1e-4 if dtype == "float32" else 0.03)
            assert "faster" in out


def test_model_takes_a_plan_for_a_plain_checkpoint(moba, plain_model, text_file):
    moba.fails(2, "bench", "model", "--model", plain_model, *MODEL, names=["--block-size"])
    moba.ok("bench", "model", "--model", plain_model, "--block-size", 16, "--top-k", 2, *MODEL)
    moba.fails(1, "bench", "model", "--model", plain_model, "--block-size", 16, "--top-k", 2, "--text", text_file,
               *MODEL[2:], "--lengths", 10**7, names=["--text", "10000000"])


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
