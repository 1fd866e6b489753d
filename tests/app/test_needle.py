"""moba needle: results, table, page and picture."""

import base64
import html.parser
import json
import re
import shutil
import struct
import subprocess
import zlib

import pytest

SIZE = ["--lengths", "3000,4096", "--depths", 3, "--needles", 2]


@pytest.fixture(scope="module")
def run(moba, moba_model, text_file, tmp_path_factory):
    """One run that writes all three files."""
    folder = tmp_path_factory.mktemp("needle")
    out = moba.ok("needle", "--model", moba_model, "--text", text_file, text_file, *SIZE, "--attention", "full,moba",
                  "--json", folder / "n.json", "--html", folder / "n.html", "--png", folder / "n.png")
    return {"folder": folder, "out": out, "json": json.loads((folder / "n.json").read_text()),
            "html": (folder / "n.html").read_text(), "png": (folder / "n.png").read_bytes()}


def test_results_have_a_row_for_each_attention_length_and_depth(run):
    rows = run["json"]["results"]
    cells = {(row["attention"], row["length"], row["depth"]) for row in rows}
    assert cells == {(a, n, d) for a in ("full", "moba") for n in (3000, 4096) for d in (0.0, 0.5, 1.0)}
    for row in rows:
        assert row["trials"] == 2
        assert 0 <= row["correct"] <= 2
        assert row["seconds"] > 0
        assert len(row["misses"]) == row["trials"] - row["correct"]


def test_templates_and_settings_are_reported(run):
    templates = run["json"]["templates"]
    for attention in ("full", "moba"):
        assert sum(row["trials"] for row in templates if row["attention"] == attention) == 2 * 2 * 3
    settings = run["json"]["settings"]
    assert settings["lengths"] == [3000, 4096] and settings["distractors"] == 3
    assert settings["command"].startswith("moba needle --model ")
    assert run["json"]["machine"]["threads"] >= 1


def test_both_attentions_are_asked_the_same(run):
    def asked(attention):
        return sorted(re.match(r"asked '(.*)' expected '(.*?)'", miss).groups()
                      for row in run["json"]["results"] if row["attention"] == attention for miss in row["misses"])

    assert len(asked("full")) >= 10
    assert asked("full") == asked("moba")


def test_the_table_has_every_length(run):
    for text in ("3,000", "4,096", "full", "moba", "speed-up"):
        assert text in run["out"]
    assert "n.html" in run["out"] and "n.png" in run["out"]
    assert "\x1b" not in run["out"]  # not a terminal


def test_the_same_again(moba, moba_model, text_file, tmp_path, run):
    def answers(seed):
        moba.ok("needle", "--model", moba_model, "--text", text_file, text_file, *SIZE, "--seed", seed, "--json",
                tmp_path / "n.json")
        return [row["misses"] for row in json.loads((tmp_path / "n.json").read_text())["results"]]

    assert answers(0) == [row["misses"] for row in run["json"]["results"]]
    assert answers(1) != answers(0)


class Page(html.parser.HTMLParser):
    VOID = {"meta", "br", "hr", "img", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.urls = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.urls += [value for name, value in attributes if name in ("src", "href", "data", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


def test_the_page_is_whole_and_fetches_nothing(run):
    page = Page(run["html"])
    assert page.open == []
    assert page.tags.count("svg") == 3  # two maps and the curve
    assert page.tags.count("table") >= 2
    assert page.urls == [] and "url(" not in run["html"] and "@import" not in run["html"]
    assert "script" not in page.tags
    assert "prefers-color-scheme: dark" in run["html"] and "width=device-width" in run["html"]
    assert run["html"].count('role="img"') == 3 == run["html"].count("aria-labelledby")
    assert "moba needle --model" in run["html"]


def test_file_names_are_escaped_in_the_page(moba, moba_model, text_file, tmp_path):
    odd = tmp_path / "<b>&\"odd'.txt"
    odd.write_bytes(text_file.read_bytes())
    moba.ok("needle", "--model", moba_model, "--text", odd, "--lengths", 3000, "--depths", 1, "--needles", 1,
            "--attention", "moba", "--html", tmp_path / "n.html", "--json", tmp_path / "n.json")
    text = (tmp_path / "n.html").read_text()
    assert "<b>&" not in text and "&lt;b&gt;&amp;" in text
    Page(text)
    assert json.loads((tmp_path / "n.json").read_text())["settings"]["texts"] == [str(odd)]


def test_the_picture_is_a_png_with_something_on_it(run):
    data = run["png"]
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    assert (width, depth, colour) == (1400, 8, 2) and height > 600
    pixels, at = b"", 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IDAT":
            pixels += data[at + 8 : at + 8 + length]
        at += 12 + length
    rows = zlib.decompress(pixels)
    assert len(rows) == height * (1 + 3 * width)
    assert len(set(rows[i : i + 8] for i in range(0, len(rows) - 8, 997))) > 20


def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on this machine (apt install chromium)")


def browse(arguments, timeout=120):
    run = subprocess.run([chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                          *arguments], capture_output=True, timeout=timeout)
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    return run.stdout.decode()


def test_the_page_renders_in_chromium(run, tmp_path):
    """Opened in a real browser through a frame of our own, which measures what it drew."""
    page = base64.b64encode(run["html"].encode()).decode()
    (tmp_path / "frame.html").write_text(
        "<!DOCTYPE html><meta charset=utf-8><iframe id=f style='width:{width}px;height:4000px;border:0'></iframe><pre id=r>"
        "</pre><script>f.onload=()=>{const d=f.contentDocument,b=e=>e.getBoundingClientRect();"
        "r.textContent=JSON.stringify({title:d.title,width:d.documentElement.scrollWidth,"
        "cells:[...d.querySelectorAll('svg .cell')].map(e=>[e.textContent,Math.round(b(e).width)]),"
        "boxes:[...d.querySelectorAll('svg')].map(e=>[b(e).width,b(e).height].map(Math.round)),"
        "lines:d.querySelectorAll('polyline').length,"
        "fetched:d.defaultView.performance.getEntriesByType('resource').length})};"
        "f.srcdoc=new TextDecoder().decode(Uint8Array.from(atob('" + page + "'),c=>c.charCodeAt(0)))</script>")
    for width in (1100, 360):
        frame = tmp_path / f"frame-{width}.html"
        frame.write_text((tmp_path / "frame.html").read_text().replace("{width}", str(width)))
        dom = browse(["--dump-dom", "--virtual-time-budget=5000", f"--window-size={width + 40},4200", frame.as_uri()])
        seen = json.loads(html.unescape(re.search(r'<pre id="r">(.*?)</pre>', dom, re.S).group(1)))
        assert seen["title"] == "Needles in 4,096 tokens of text"
        assert len(seen["cells"]) == 12 and all(text.endswith("/2") and size > 5 for text, size in seen["cells"])
        assert len(seen["boxes"]) == 3 and all(w > 200 and h > 100 for w, h in seen["boxes"])
        assert seen["lines"] == 2
        assert seen["fetched"] == 0
        assert seen["width"] <= width  # no sideways scrolling, on a phone either


def test_the_page_can_be_photographed(run, tmp_path):
    shot = tmp_path / "shot.png"
    browse([f"--screenshot={shot}", "--window-size=1100,2000", (run["folder"] / "n.html").as_uri()])
    assert shot.stat().st_size > 30000


def test_full_attention_can_be_left_out_of_the_longest(moba, moba_model, text_file, tmp_path):
    arguments = ["needle", "--model", moba_model, "--text", text_file, "--lengths", "3000,5000", "--depths", 2, "--needles", 1]
    moba.ok(*arguments, "--full-up-to", 3000, "--json", tmp_path / "n.json", "--html", tmp_path / "n.html", "--png",
            tmp_path / "n.png")
    rows = json.loads((tmp_path / "n.json").read_text())["results"]
    assert [(row["attention"], row["length"]) for row in rows] == [
        ("full", 3000), ("full", 3000), ("moba", 3000), ("moba", 3000), ("moba", 5000), ("moba", 5000)]
    assert Page((tmp_path / "n.html").read_text()).open == []
    assert (tmp_path / "n.html").read_text().count("not run") == 1
    moba.fails(2, *arguments, "--full-up-to", 2000, names="--full-up-to")


def test_short_texts_are_read_over_and_over(moba, moba_model, tmp_path):
    (tmp_path / "a.txt").write_text("Only one sentence stands here. ")
    (tmp_path / "b.txt").write_text("<p>markup without a sentence end</p>\n")
    moba.ok("needle", "--model", moba_model, "--text", tmp_path / "a.txt", tmp_path / "b.txt", "--lengths", 5000, "--depths",
            2, "--needles", 2, "--attention", "moba", "--json", tmp_path / "n.json")
    rows = json.loads((tmp_path / "n.json").read_text())["results"]
    assert [row["trials"] for row in rows] == [2, 2]


def test_no_room_for_the_facts_is_said(moba, moba_model, text_file):
    moba.fails(1, "needle", "--model", moba_model, "--text", text_file, "--lengths", 500, names=["length", "needles"])


def test_blank_text_is_refused(moba, moba_model, tmp_path):
    (tmp_path / "blank.txt").write_text(" \n \n")
    moba.fails(1, "needle", "--model", moba_model, "--text", tmp_path / "blank.txt", names="text")


def test_a_length_beyond_the_model_is_noted(moba, plain_model, broken, text_file):
    model = broken(plain_model, lambda config: config.update(max_position_embeddings=2048))
    run = moba("needle", "--model", model, "--text", text_file, "--lengths", 3000, "--depths", 1, "--needles", 1,
               "--attention", "full")
    assert run.returncode == 0 and "2048" in run.stderr


def test_works_with_sentencepiece(moba, sentencepiece_model, text_file, tmp_path):
    moba.ok("needle", "--model", sentencepiece_model, "--text", text_file, "--lengths", 3000, "--depths", 2, "--needles",
            2, "--attention", "full", "--json", tmp_path / "n.json")
    assert len(json.loads((tmp_path / "n.json").read_text())["results"]) == 2
