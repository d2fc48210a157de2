"""``bytelm inspect`` as a person and as a program meets it."""

import contextlib
import html.parser
import importlib.resources
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bytelm.checkpoint import latest_checkpoint, load_model
from bytelm.cli import app
from bytelm.cli.inspect_view import corpus_view, run_view
from bytelm.config import RunConfig
from bytelm.data.ingest import ingest
from bytelm.data.shards import Corpus
from bytelm.export import export_model
from bytelm.train import train

BYTELM = [sys.executable, "-m", "bytelm.cli"]
ESCAPES = b"\x1b[2Jred\x9b31m <script>alert(1)</script> \xe2\x80\xae\xff\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    files = folder / "files <b>"
    files.mkdir()
    for number in range(40):
        (files / f"{number}.py").write_text(f"print({number})\n" * (10 * number + 1))
    (files / "escapes.txt").write_bytes(ESCAPES * 3)
    (files / "binary").write_bytes(bytes(range(256)) * 9)
    (files / "empty").touch()
    (files / "link").symlink_to("empty")
    ingest([files], folder / "corpus", frame_bytes=1000, validation_fraction=0.1)
    return folder / "corpus"


@pytest.fixture
def damaged(corpus: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "damaged"
    copy.mkdir()
    for path in corpus.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    opened = Corpus.open(copy)
    entry = opened.shards("train")[0]
    reader = opened.open_shard(entry)
    content = bytearray((copy / entry.name).read_bytes())
    for frame in (0, reader.frames - 1):
        content[reader.frame_place(frame)[0] + 9] ^= 1
    (copy / entry.name).write_bytes(content)
    return copy


def inspected(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert app.run(["inspect", *words, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 1
    return json.loads(shown.out)


def test_people_see_splits_what_was_left_out_lengths_bytes_and_samples(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["inspect", str(corpus)]) == 0
    shown = capsys.readouterr()
    opened = Corpus.open(corpus)
    for word in (
        opened.fingerprint,
        "train",
        "validation",
        "left out",
        "empty",
        "link",
        "lengths",
        "order 0",
        "sample:",
    ):
        assert word in shown.out
    assert shown.err == ""


def test_json_is_one_object_that_agrees_with_the_corpus(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Corpus.open(corpus)
    found = inspected([str(corpus), "--full"], capsys)
    whole = b"".join(data for split in opened.splits for data in opened.documents(split))
    assert found["corpus"] == str(corpus)
    assert found["fingerprint"] == opened.fingerprint
    assert found["raw_bytes"] == len(whole)
    assert found["bytes"]["counts"] == [whole.count(byte) for byte in range(256)]
    assert found["bytes"]["frames_read"] == found["bytes"]["frames"]
    assert found["lengths"]["pieces"] == sum(opened.document_count(split) for split in opened.splits)
    assert found["skipped"]["empty"]["documents"] == 1
    assert "verified" not in found


def test_one_split_can_be_asked_for(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected([str(corpus), "--split", "validation"], capsys)
    assert list(found["splits"]) == ["validation"]
    assert found["raw_bytes"] == Corpus.open(corpus).raw_bytes("validation")
    assert app.run(["inspect", str(corpus), "--split", "test"]) == 2
    assert "no 'test' split, only 'train', 'validation'" in capsys.readouterr().err


def test_the_seed_chooses_the_samples(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(corpus), "--samples", "5"]
    first = inspected(words, capsys)["samples"]
    assert len(first) == 5
    assert inspected(words, capsys)["samples"] == first
    assert inspected([*words, "--seed", "1"], capsys)["samples"] != first
    assert inspected([str(corpus), "--samples", "0"], capsys)["samples"] == []


def test_samples_do_not_drive_the_terminal(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["inspect", str(corpus), "--samples", "100"]) == 0
    shown = capsys.readouterr().out
    assert "\\x1b[2Jred\\x9b31m <script>alert(1)</script> \\u202e\\xff" in shown
    assert not set(shown) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160), 0x202E)}


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_every_line_fits_the_terminal_and_no_number_is_cut(corpus: Path, columns: int) -> None:
    ours, theirs = pty.openpty()
    shown = b""
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    words = [*BYTELM, "inspect", str(corpus), "--samples", "2"]
    with subprocess.Popen(words, env=environment, stdout=theirs, stderr=subprocess.DEVNULL) as running:
        os.close(theirs)
        with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # noqa: PTH123  a descriptor
            while data := terminal.read(1 << 16):  # at the end a terminal gives an error
                shown += data
    assert running.returncode == 0
    assert b"\x1b[" in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    assert max(map(len, lines)) <= columns
    opened = Corpus.open(corpus)
    for split in opened.splits:
        documents = sum(entry.documents for entry in opened.shards(split))
        assert any(line.split()[:2] == [split, f"{documents:,}"] for line in lines)


def test_without_a_terminal_there_are_no_colours_and_an_ascii_one_gets_no_blocks(corpus: Path) -> None:
    done = subprocess.run(
        [*BYTELM, "inspect", str(corpus)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
        capture_output=True,
    )
    assert b"\x1b" not in done.stdout
    assert b"####" in done.stdout
    assert done.stdout.isascii()


def test_a_whole_corpus_is_verified(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verified = inspected([str(corpus), "--verify"], capsys)["verified"]
    assert verified["whole"] is True
    assert verified["damages"] == []
    assert verified["raw_bytes"] == sum(map(Corpus.open(corpus).raw_bytes, ("train", "validation")))
    assert app.run(["inspect", str(corpus), "--verify"]) == 0
    assert capsys.readouterr().out.endswith(": whole\n")


def test_a_corpus_behind_an_address_is_read_and_verified_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"some text\n" * 5000)
    for place in (str(tmp_path / "corpus"), "memory://inspected"):
        ingest([tmp_path / "file"], place)
    here = inspected([str(tmp_path / "corpus"), "--verify"], capsys)
    there = inspected(["memory://inspected", "--verify"], capsys)
    assert there["corpus"] == "memory://inspected"
    assert there["verified"]["whole"]
    assert {name: there[name] for name in ("lengths", "bytes", "samples", "splits", "fingerprint")} == {
        name: here[name] for name in ("lengths", "bytes", "samples", "splits", "fingerprint")
    }


def test_damage_is_listed_to_the_end_and_leaves_with_2_and_one_line(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["inspect", str(damaged), "--verify"]) == 2
    shown = capsys.readouterr()
    frames = len(Corpus.open(damaged).frame_sizes("train"))
    assert "frame 0 (bytes 24-" in shown.out
    assert f"frame {frames - 1} (bytes" in shown.out
    assert shown.out.endswith(": DAMAGED\n")
    assert shown.err == (
        f"error: {damaged} is damaged: 2 places in 1 files; restore them, or ingest the sources again\n"
    )
    assert app.run(["inspect", str(damaged), "--verify", "--json"]) == 2
    shown = capsys.readouterr()
    found = json.loads(shown.out)["verified"]
    assert found["whole"] is False
    assert [(damage["file"], damage["frame"]) for damage in found["damages"]] == [
        ("train-00000.zst", 0),
        ("train-00000.zst", frames - 1),
    ]
    assert shown.err.count("\n") == 1


def test_damage_that_is_met_while_reading_is_one_line(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["inspect", str(damaged), "--full"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "frame 0 (bytes 24-" in shown.err
    assert shown.err.count("\n") == 1


def test_the_page_is_one_file_that_fetches_nothing_and_obeys_no_document(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "page.html"
    found = inspected([str(corpus), "--samples", "100", "--html", str(place)], capsys)
    assert found["html"] == str(place)
    text = place.read_text(encoding="utf-8")

    fetched: list[str | None] = []
    tags: set[str] = set()

    class Page(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            fetched.extend(
                value for name, value in attrs if name in ("src", "href", "xlink:href") and (value or "")[:1] != "#"
            )

    Page().feed(text)
    assert fetched == []
    assert "svg" in tags
    assert not tags & {"script", "b", "link", "img"}
    assert "&lt;script&gt;alert(1)" in text
    assert "\x1b" not in text
    assert "files &lt;b&gt;" in text


def test_a_page_that_cannot_be_written_is_one_line(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "nowhere" / "page.html"
    assert app.run(["inspect", str(corpus), "--html", str(place)]) == 2
    assert capsys.readouterr().err == (
        f"error: --html {place}: there is no folder {place.parent}; make it, or choose another place\n"
    )


def test_a_name_that_is_no_text_is_shown_all_the_same(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / os.fsdecode(b"\xff\x1b")
    place.symlink_to(corpus)
    page = tmp_path / os.fsdecode(b"\xfe.html")
    found = inspected([str(place), "--html", str(page)], capsys)
    assert found["corpus"] == f"{tmp_path}/\\xff\x1b"
    assert found["html"] == f"{tmp_path}/\\xfe.html"
    assert app.run(["inspect", str(place)]) == 0
    assert f"corpus {tmp_path}/\\xff\\x1b\n" in capsys.readouterr().out


def test_what_is_no_corpus_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: no corpus at {tmp_path}")


def test_many_kinds_are_put_together(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspected([str(corpus)], capsys)
    kinds = {f"kind-{number}": {"group": "code", "documents": 1, "raw_bytes": 100 - number} for number in range(50)}
    terminal = Console(width=80, markup=False, highlight=False)
    with terminal.capture() as captured:
        terminal.print(corpus_view({**facts, "kinds": kinds}, terminal))
    assert "kind-18 " in captured.get()
    assert "31 others         31" in captured.get()


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    changes = ["data.window_bytes=32", "model.local_window_bytes=16", "model.d_model=16", "model.layers=1"]
    changes += ["model.d_ff=16", "heads.count=3", "train.steps=2", "train.threads=1"]
    for _ in train(RunConfig.build("tiny", changes), corpus, folder):
        pass
    return folder


def test_a_run_shows_its_newest_checkpoint(run: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected([str(run)], capsys)
    model, config = load_model(run)
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    assert found["checkpoint"] == str(checkpoint)
    assert found["parameters"] == model.parameter_counts()
    assert (found["step"], found["corpus_fingerprint"]) == (2, Corpus.open(corpus).fingerprint)
    assert found["bytes_seen"] > 0
    assert found["config"] == config.model_dump(mode="json")
    assert found["files"]["model.safetensors"] == (checkpoint / "model.safetensors").stat().st_size
    assert inspected([str(checkpoint)], capsys) == found
    assert app.run(["inspect", str(run)]) == 0
    shown = capsys.readouterr().out
    assert f"{found['parameters']['total']:,} parameters" in shown
    assert "heads.count = 3" in shown


def test_a_model_alone_shows_what_it_holds(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = export_model(run, tmp_path / "model")
    of_run, found = inspected([str(run)], capsys), inspected([str(model)], capsys)
    assert found["bytes_seen"] is None
    for key in ("step", "parameters", "config", "corpus_fingerprint"):
        assert found[key] == of_run[key]
    assert app.run(["inspect", str(model)]) == 0
    assert "step 2\n" in capsys.readouterr().out
    (model / "model.safetensors").write_bytes(b"damaged")
    assert app.run(["inspect", str(model)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_shipped_model_is_shown_by_its_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export_model(run, tmp_path / "package" / "models" / "pocket")
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    assert inspected(["pocket"], capsys)["checkpoint"] == str(folder)


def test_several_corpora_of_a_run_stand_one_a_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspected([str(run)], capsys) | {"corpus": ["a:0.7", "b:0.3"], "corpus_fingerprint": ["1f", "2e"]}
    terminal = Console(width=80, markup=False, highlight=False)
    with terminal.capture() as captured:
        terminal.print(run_view(facts))
    assert "corpus a:0.7, fingerprint 1f\ncorpus b:0.3, fingerprint 2e\n" in captured.get()


def test_options_of_a_corpus_are_refused_for_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--split", "train"], ["--verify"], ["--full"], ["--html", "page.html"]):
        assert app.run(["inspect", str(run), *words]) == 2
        assert f"error: {words[0]} is for a corpus" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    path = checkpoint / "optimizer.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert app.run(["inspect", str(run)]) == 2
        shown = capsys.readouterr()
        assert "the contents of optimizer.safetensors are not those that were written" in shown.err
        assert shown.err.count("\n") == 1
    finally:
        path.write_bytes(content)
