"""The C++ decoder against transformers: the same weights, the same logits, in and out of a Hugging Face directory."""

import pathlib
import subprocess

import pytest
import torch

transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4

# 256 tokens: the byte tokenizer, so that no tokenizer.model is needed.
COMMON = dict(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=3, max_position_embeddings=256)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)

CONFIGS = {
    "mha": lambda: transformers.LlamaConfig(**COMMON, num_attention_heads=4),
    "gqa": lambda: transformers.LlamaConfig(**COMMON, num_attention_heads=4, num_key_value_heads=2,
                                            rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    "mqa_wide_heads": lambda: transformers.LlamaConfig(**COMMON, num_attention_heads=4, num_key_value_heads=1, head_dim=24),
    "tied": lambda: transformers.LlamaConfig(**COMMON, num_attention_heads=4, tie_word_embeddings=True),
    "linear_rope": lambda: transformers.LlamaConfig(
        **COMMON, num_attention_heads=4, rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=4.0)),
    "llama3_rope": lambda: transformers.LlamaConfig(**COMMON, num_attention_heads=4, num_key_value_heads=2,
                                                    rope_parameters=dict(LLAMA3)),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON, num_attention_heads=4, num_key_value_heads=2, head_dim=32),
    "qwen3_tied": lambda: transformers.Qwen3Config(**COMMON, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                                                   tie_word_embeddings=True),
}


def dump_logits_program():
    """The newest build of the program, wherever the build folder is."""
    found = sorted(ROOT.glob("build*/tests/dump_logits"), key=lambda path: path.stat().st_mtime)
    if not found:
        pytest.skip("dump_logits is not built; run `make build` with tests on")
    return found[-1]


def make_model(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # all ones would hide a norm that is left out
                parameter.uniform_(0.5, 1.5)
            else:  # large enough that attention is far from uniform
                parameter.normal_(0.0, 0.15)
    return model


def run_ours(folder, lengths, tmp_path):
    torch.manual_seed(1)
    tokens = torch.randint(0, COMMON["vocab_size"], (sum(lengths),))
    offsets = torch.tensor([0] + lengths).cumsum(0).int()
    safetensors_torch.save_file({"tokens": tokens, "cu_seqlens": offsets}, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    subprocess.run([dump_logits_program(), folder, tmp_path / "in.safetensors", out], check=True)
    return tokens.split(lengths), safetensors_torch.load_file(out), pathlib.Path(f"{out}.saved")


def reference(model, sequences):
    with torch.no_grad():
        return torch.cat([model(tokens[None]).logits[0] for tokens in sequences if len(tokens)])


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_agree(name, tmp_path):
    model = make_model(CONFIGS[name]())
    model.save_pretrained(tmp_path / "model")
    sequences, ours, saved = run_ours(tmp_path / "model", [150, 0, 1, 33], tmp_path)
    expected = reference(model, sequences)
    assert expected.std() > 0.1  # a model that says something
    for way in ("packed", "cached"):
        assert (ours[way] - expected).abs().max() <= TOLERANCE, way

    # What we write, transformers reads: the same weights, split into parts, and the same logits.
    assert len(list(saved.glob("model-*-of-*.safetensors"))) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    assert (reference(again, sequences) - expected).abs().max() <= TOLERANCE


def test_sharded_checkpoint(tmp_path):
    model = make_model(CONFIGS["gqa"]())
    model.save_pretrained(tmp_path / "model", max_shard_size="50KB")
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    sequences, ours, _ = run_ours(tmp_path / "model", [40], tmp_path)
    assert (ours["packed"] - reference(model, sequences)).abs().max() <= TOLERANCE


def test_config_of_older_transformers(tmp_path):
    """rope_theta and rope_scaling at the top level, as transformers 4 wrote them."""
    import json

    model = make_model(CONFIGS["llama3_rope"]())
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    file.write_text(json.dumps(config))
    sequences, ours, _ = run_ours(tmp_path / "model", [150], tmp_path)
    assert (ours["packed"] - reference(model, sequences)).abs().max() <= TOLERANCE
