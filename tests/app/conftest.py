"""Drives the built program `moba` as its users do: as a process, with files, pipes and terminals."""

import json
import os
import pty
import re
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]


def pytest_addoption(parser):
    parser.addoption("--moba", default=str(ROOT / "build" / "moba"), help="the program to test (default: build/moba)")


@dataclass
class TerminalRun:
    """What a process wrote to a terminal, and how it ended."""

    returncode: int
    output: str


class Program:
    def __init__(self, path):
        self.path = str(path)
        self.env = {**os.environ, "OMP_NUM_THREADS": "2"}

    def __call__(self, *arguments, **options):
        """Runs it with both outputs captured as text; `options` go to subprocess.run."""
        options.setdefault("timeout", 300)
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("env", self.env)
        run = subprocess.run([self.path, *map(str, arguments)], **options)
        for stream in ("stdout", "stderr"):
            if isinstance(getattr(run, stream), bytes):
                setattr(run, stream, getattr(run, stream).decode("utf-8", errors="replace"))
        return run

    def ok(self, *arguments, **options):
        """Runs it, expects success and silence on standard error; returns standard output."""
        run = self(*arguments, **options)
        assert run.returncode == 0, run.stderr
        assert run.stderr == ""
        return run.stdout

    def fails(self, code, *arguments, names, **options):
        """Runs it, expects that exit code, nothing on standard output, and a message with every one of `names`."""
        run = self(*arguments, **options)
        assert run.returncode == code, (run.returncode, run.stdout, run.stderr)
        assert not run.stdout
        assert run.stderr.startswith("moba: "), run.stderr
        for name in [names] if isinstance(names, str) else names:
            assert name in run.stderr, run.stderr
        return run.stderr

    def popen(self, *arguments, **options):
        options.setdefault("env", self.env)
        return subprocess.Popen([self.path, *map(str, arguments)], **options)

    def in_terminal(self, *arguments, timeout=300):
        """Runs it with a terminal for standard input, output and error."""
        process_id, descriptor = pty.fork()
        if process_id == 0:
            os.execve(self.path, [self.path, *map(str, arguments)], self.env)
        output, deadline = b"", time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not select.select([descriptor], [], [], 1)[0]:
                continue
            try:
                piece = os.read(descriptor, 65536)
            except OSError:  # Linux: the other end of the terminal is closed
                break
            if not piece:
                break
            output += piece
        else:
            os.kill(process_id, 9)
            pytest.fail("timed out: " + output.decode(errors="replace"))
        os.close(descriptor)
        status = os.waitpid(process_id, 0)[1]
        return TerminalRun(os.waitstatus_to_exitcode(status), output.decode("utf-8", errors="replace"))


@pytest.fixture(scope="session")
def moba(request):
    path = Path(request.config.getoption("--moba")).resolve()
    if not os.access(path, os.X_OK):
        pytest.exit(f"{path} is not there; build it first (make build), or name the program with --moba", returncode=2)
    return Program(path)


def write_checkpoint(folder, *, layers=2, hidden=32, heads=2, head_dim=16, vocab=256, seed=0, plan=None, **config):
    """A Llama of random weights in Hugging Face's format; `plan` is the list of layers under our own key."""
    folder.mkdir(parents=True, exist_ok=True)
    random = numpy.random.default_rng(seed)
    inner = 3 * hidden // 2
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        for name, shape in {
            "self_attn.q_proj": (heads * head_dim, hidden),
            "self_attn.k_proj": (heads * head_dim, hidden),
            "self_attn.v_proj": (heads * head_dim, hidden),
            "self_attn.o_proj": (hidden, heads * head_dim),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            shapes[f"{layer}{name}.weight"] = shape
    tensors = {name: random.normal(0, 0.2, shape).astype(numpy.float32) for name, shape in shapes.items()}
    for i in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{norm}.weight"] = numpy.ones(hidden, numpy.float32)
    tensors["model.norm.weight"] = numpy.ones(hidden, numpy.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        **config,
    }
    if plan is not None:
        settings["moba"] = {"tokenizer": "bytes", "plan": {"layers": plan}}
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    return folder


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory):
    """A checkpoint as others make them: no plan, every layer full."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="session")
def moba_model(tmp_path_factory):
    """The same weights with MoBA in the first layer."""
    plan = [{"kind": "moba", "block_size": 32, "top_k": 2}, {"kind": "full"}]
    return write_checkpoint(tmp_path_factory.mktemp("models") / "moba", plan=plan)


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory):
    """A checkpoint with a SentencePiece tokenizer, trained on the project's own licence-free words."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("models") / "sentencepiece"
    vocab = 300
    folder.mkdir()
    with open(folder / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(prose(400).split(". ")),
            model_writer=file,
            vocab_size=vocab,
            character_coverage=1.0,
            byte_fallback=True,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    return write_checkpoint(folder, vocab=max(pieces, 257))


def prose(sentences):
    """Text with sentence ends, made up here."""
    subjects = ["The miller", "A sailor", "Her sister", "The old clerk", "Nobody", "My neighbour", "The gardener"]
    verbs = ["carried", "painted", "forgot", "repaired", "sold", "described", "found"]
    things = ["the wooden chest", "a letter", "three green bottles", "the garden wall", "a map of the coast"]
    places = ["near the river", "before winter came", "in the market", "without saying a word", "at the harbour"]
    parts = []
    for i in range(sentences):
        words = (subjects[i * 5 % 7], verbs[i * 3 % 7], things[i * 7 % 5], places[(i * 11 + i // 5) % 5])
        parts.append(" ".join(words) + (".\n\n" if i % 9 == 8 else ". "))
    return "".join(parts)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "prose.txt"
    file.write_text(prose(600))
    return file


@pytest.fixture
def broken(tmp_path):
    """Makes a copy of a checkpoint with its config.json changed by a function."""

    def make(model, change):
        folder = tmp_path / "broken"
        folder.mkdir()
        for file in model.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def plain(terminal_text):
    """Terminal output without colours and cursor movements, line ends as in a file."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", terminal_text).replace("\r\n", "\n")
