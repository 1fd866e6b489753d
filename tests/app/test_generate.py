"""moba generate."""

import json
import os
import subprocess

import pytest

from conftest import write_checkpoint


def generate(moba, model, *arguments, **options):
    return moba.ok("generate", "--model", model, "--dtype", "float32", *arguments, **options)


def test_writes_the_continuation_alone_and_the_same_again(moba, plain_model):
    first = moba("generate", "--model", plain_model, "--prompt", "Once upon a time", "--max-new-tokens", 40,
                 "--temperature", 0, text=False)
    assert first.returncode == 0 and first.stderr == ""
    assert "Once upon" not in first.stdout
    again = moba("generate", "--model", plain_model, "--prompt", "Once upon a time", "--max-new-tokens", 40)
    assert again.stdout == first.stdout and first.stdout


def test_the_default_temperature_is_zero(moba, plain_model):
    assert generate(moba, plain_model, "--prompt", "ab") == generate(moba, plain_model, "--prompt", "ab",
                                                                    "--temperature", 0)


def test_prompt_file_equals_prompt(moba, plain_model, tmp_path):
    (tmp_path / "prompt.txt").write_text("some words\n")
    from_file = generate(moba, plain_model, "--prompt-file", tmp_path / "prompt.txt", "--max-new-tokens", 20)
    assert from_file == generate(moba, plain_model, "--prompt", "some words\n", "--max-new-tokens", 20)


def test_an_empty_prompt_is_a_newline_for_bytes(moba, plain_model, tmp_path):
    (tmp_path / "empty").write_text("")
    empty = generate(moba, plain_model, "--prompt", "", "--max-new-tokens", 12)
    assert empty == generate(moba, plain_model, "--prompt", "\n", "--max-new-tokens", 12)
    assert empty == generate(moba, plain_model, "--prompt-file", tmp_path / "empty", "--max-new-tokens", 12)


def test_an_empty_prompt_is_allowed_with_sentencepiece(moba, sentencepiece_model):
    assert moba("generate", "--model", sentencepiece_model, "--prompt", "", "--max-new-tokens", 4).returncode == 0


@pytest.mark.parametrize("prompt", ["--help", "-v", "[a, b]", "'quoted'", "a=b", "%%", "täglich", "new\nline"])
def test_any_text_can_be_a_prompt(moba, plain_model, tmp_path, prompt):
    (tmp_path / "prompt.txt").write_text(prompt)
    expected = generate(moba, plain_model, "--prompt-file", tmp_path / "prompt.txt", "--max-new-tokens", 8)
    assert generate(moba, plain_model, f"--prompt={prompt}", "--max-new-tokens", 8) == expected


def test_bytes_take_any_bytes(moba, plain_model, tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    assert moba("generate", "--model", plain_model, "--prompt-file", tmp_path / "binary", "--max-new-tokens",
                4).returncode == 0


def test_sentencepiece_refuses_invalid_utf8(moba, sentencepiece_model, tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"good \xff bad")
    moba.fails(1, "generate", "--model", sentencepiece_model, "--prompt-file", tmp_path / "binary.txt",
               names=["binary.txt", "UTF-8", "5"])
    moba.fails(1, "generate", "--model", sentencepiece_model, "--prompt", b"\xff".decode(errors="surrogateescape"),
               names=["--prompt", "UTF-8"])


def test_seed_decides_a_random_continuation(moba, plain_model):
    def draw(seed):
        return moba("generate", "--model", plain_model, "--prompt", "a", "--temperature", 1.5, "--max-new-tokens", 30,
                    "--seed", seed).stdout

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_stop_strings_end_the_continuation(moba, plain_model):
    whole = generate(moba, plain_model, "--prompt", "abc", "--max-new-tokens", 40, encoding="latin-1")
    stop = whole[10:13]
    cut = generate(moba, plain_model, "--prompt", "abc", "--max-new-tokens", 40, "--stop", "never seen", f"--stop={stop}",
                   encoding="latin-1") if stop.isascii() and stop.isprintable() else whole[: whole.find(stop)]
    assert cut == whole[: whole.find(stop)]


def test_no_new_tokens_is_no_output(moba, plain_model):
    assert generate(moba, plain_model, "--prompt", "abc", "--max-new-tokens", 0) == ""


def test_attention_names(moba, plain_model, moba_model):
    prompt = ["--prompt", "The miller carried the wooden chest near the river. " * 8, "--max-new-tokens", 24]
    full = generate(moba, moba_model, *prompt, "--attention", "full")
    assert full == generate(moba, plain_model, *prompt)  # the same weights
    plan = generate(moba, moba_model, *prompt, "--attention", "model")
    assert plan == generate(moba, moba_model, *prompt)
    assert plan == generate(moba, moba_model, *prompt, "--attention", "moba")
    flags = ["--attention", "moba", "--block-size", 32, "--top-k", 2, "--last-n-full", 1]
    assert plan == generate(moba, plain_model, *prompt, *flags)
    # Every block chosen is full attention.
    assert full == generate(moba, plain_model, *prompt, "--attention", "moba", "--block-size", 64, "--top-k", 1000)
    assert moba("generate", "--model", moba_model, *prompt, "--decode-attention", "full").returncode == 0


def test_the_choice_of_blocks_matters(moba, plain_model):
    prompt = ["--prompt", "The miller carried the wooden chest near the river. " * 40, "--max-new-tokens", 40]
    full = moba("generate", "--model", plain_model, *prompt).stdout
    narrow = moba("generate", "--model", plain_model, *prompt, "--attention", "moba", "--block-size", 4, "--top-k", 1)
    assert narrow.stdout != full


def test_streams_as_it_comes(moba, plain_model):
    """The first byte arrives long before the last: with a pipe nobody reads to the end, the program ends by itself."""
    process = moba.popen("generate", "--model", plain_model, "--prompt", "a", "--max-new-tokens", 100000,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert b"standard output" in process.stderr.read()
    process.stderr.close()


def test_threads_do_not_change_the_words(moba, plain_model):
    prompt = ["--prompt", "The miller carried a letter. " * 30, "--max-new-tokens", 20]
    assert generate(moba, plain_model, *prompt, "--threads", 1) == generate(moba, plain_model, *prompt, "--threads", 2)


def test_missing_files_are_named(moba, plain_model, tmp_path):
    moba.fails(1, "generate", "--model", tmp_path / "nowhere", "--prompt", "a", names="nowhere")
    moba.fails(1, "generate", "--model", plain_model, "--prompt-file", tmp_path / "no.txt", names="no.txt")
    moba.fails(1, "generate", "--model", plain_model, "--prompt-file", tmp_path, names=[str(tmp_path), "directory"])
    moba.fails(1, "generate", "--model", plain_model / "config.json", "--prompt", "a", names="config.json")


def test_an_unknown_model_type_is_named(moba, plain_model, broken):
    folder = broken(plain_model, lambda config: config.update(model_type="wavenet"))
    moba.fails(1, "generate", "--model", folder, "--prompt", "a", names=["model_type", "wavenet"])


def test_broken_checkpoints_are_named(moba, plain_model, broken):
    folder = broken(plain_model, lambda config: config.update(hidden_size=-32))
    moba.fails(1, "generate", "--model", folder, "--prompt", "a", names=["config.json", "hidden_size"])
    (folder / "config.json").write_text("{")
    moba.fails(1, "generate", "--model", folder, "--prompt", "a", names="config.json")
    (folder / "config.json").write_bytes((plain_model / "config.json").read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    moba.fails(1, "generate", "--model", folder, "--prompt", "a", names="model.safetensors")
    weights.unlink()
    moba.fails(1, "generate", "--model", folder, "--prompt", "a", names=str(folder))


def test_a_missing_or_broken_tokenizer_is_named(moba, sentencepiece_model, broken):
    folder = broken(sentencepiece_model, lambda config: None)
    (folder / "tokenizer.model").write_bytes(b"not a model")
    moba.fails(1, "generate", "--model", folder, "--prompt", "a", names="tokenizer.model")
    (folder / "tokenizer.model").unlink()
    moba.fails(1, "generate", "--model", folder, "--prompt", "a", names="tokenizer.model")


def test_no_cuda_is_said(moba, plain_model):
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has a GPU")
    moba.fails(1, "generate", "--model", plain_model, "--prompt", "a", "--device", "cuda", names="cuda")


def test_a_checkpoint_with_a_window_plan_has_no_moba(moba, tmp_path):
    model = write_checkpoint(tmp_path / "window", plan=[{"kind": "window", "window": 8}, {"kind": "full"}])
    moba.fails(2, "generate", "--model", model, "--prompt", "a", "--attention", "moba", names="--block-size")
    assert json.loads((model / "config.json").read_text())["moba"]["plan"]


def test_the_options_of_the_choice_are_flags(moba, plain_model):
    base = ["generate", "--model", plain_model, "--prompt", "abc" * 40, "--max-new-tokens", 12, "--temperature", 0]
    plan = ["--attention", "moba", "--block-size", 8]
    gate = ["--force-previous", "--sink-blocks", 1, "--share", "group", "--share-score", "sum_prob",
            "--representative-dtype", "float32"]
    full = moba.ok(*base, "--attention", "full")
    # With room for every block no option makes a difference; with less room they run, cached representatives and all.
    assert moba.ok(*base, *plan, "--top-k", 100, *gate) == full
    moba.ok(*base, *plan, "--top-k", 4, *gate)
    moba.fails(2, *base, *plan, "--top-k", 2, *gate, names=["--sink-blocks", "--top-k 2"])
    moba.fails(2, *base, *plan, "--top-k", 2, "--share", "row", names=["--share"])
    moba.fails(2, *base, "--attention", "moba", *gate, names=["--block-size"])
