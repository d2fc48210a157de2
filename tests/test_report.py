"""The page about a run: whole, self-contained, true to the log, and safe whatever the model says."""

import dataclasses
import html.parser
import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bytelm.config import HeadsConfig, ModelConfig, RunConfig
from bytelm.data.ingest import ingest
from bytelm.decode import Generation
from bytelm.errors import CheckpointError
from bytelm.model import ByteLM
from bytelm.report import SideBySide, acceptance_over, coloured_text, side_by_side, write_report
from bytelm.run_log import read_log
from bytelm.train import train
from bytelm.utf8 import decode_text


class Page(html.parser.HTMLParser):
    """Collects what a page would fetch, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [
            value for name, value in attrs if name in ("src", "href", "xlink:href") and value and value[0] != "#"
        ]
        if tag not in ("meta", "path", "use", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "text").write_text("every byte counts, and every head drafts. " * 200)
    ingest([folder / "text"], folder / "corpus")
    changes = ["data.window_bytes=32", "model.local_window_bytes=16", "model.d_model=16", "model.layers=1"]
    changes += ["model.d_ff=16", "heads.count=3", "train.steps=4", "train.validate_every_steps=2", "train.threads=1"]
    for _ in train(RunConfig.build("tiny", changes), folder / "corpus", folder / "run"):
        pass
    return folder / "run"


def tiny_model(heads: int = 3) -> ByteLM:
    torch.manual_seed(0)
    shape = ModelConfig(d_model=16, layers=1, attention_heads=2, kv_heads=1, d_ff=16, local_window_bytes=16)
    return ByteLM(shape, HeadsConfig(count=heads)).eval()


def generation(data: bytes, heads: tuple[int, ...], elapsed_s: float = 1.0) -> Generation:
    return Generation(
        data=data,
        heads=heads,
        steps=heads.count(0),
        elapsed_s=elapsed_s,
        finish_reason="max_bytes",
        proposed_by_head=(2, 2, 1),
        accepted_by_head=(2, 1, 0),
    )


def comparison(data: bytes, *, plain: bytes | None = None) -> SideBySide:
    heads = tuple(place % 2 for place in range(len(data)))
    other = generation(data if plain is None else plain, heads, elapsed_s=2.0)
    return SideBySide(prompt=b"<b>&", plain=other, speculative=generation(data, heads), one_row=other)


def test_the_page_is_one_file_that_fetches_nothing_and_closes_its_tags(run: Path) -> None:
    page = Page()
    page.feed(write_report(run, [comparison(b"abcd")]).read_text(encoding="utf-8"))
    assert page.fetched == []
    assert page.open == []


def test_the_page_shows_the_last_validation_of_the_log(run: Path) -> None:
    last = [record for record in read_log(run) if record["kind"] == "validation"][-1]
    text = write_report(run).read_text(encoding="utf-8")
    assert f"{last['bits_per_byte_by_head'][0]:.3f}" in text
    assert "Acceptance" not in text


def test_what_a_model_says_is_text_and_never_markup(run: Path) -> None:
    page = write_report(run, [comparison(b"<script>alert(1)</script>\x1b\xff")]).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\\xff" in page


def test_bytes_that_differ_are_said_to_differ(run: Path) -> None:
    assert not comparison(b"ab", plain=b"ax").equal
    assert "<b>different</b>" in write_report(run, [comparison(b"ab", plain=b"ax")]).read_text(encoding="utf-8")
    assert "<b>different</b>" not in write_report(run, [comparison(b"ab")]).read_text(encoding="utf-8")


def test_acceptance_is_summed_over_decodings() -> None:
    other = dataclasses.replace(
        comparison(b"ab"),
        speculative=dataclasses.replace(
            generation(b"ab", (0, 0)), proposed_by_head=(2, 2, 0), accepted_by_head=(2, 2, 0)
        ),
    )
    assert acceptance_over([comparison(b"ab"), other]) == (1.0, 0.75, 0.0)


def test_a_run_without_validation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "step", "step": 1}) + "\n")
    with pytest.raises(CheckpointError, match="no validation"):
        write_report(tmp_path)


def test_three_decodings_of_one_prompt_are_compared() -> None:
    found = side_by_side(tiny_model(), b"abc", max_bytes=20, context_bytes=32)
    assert found.equal
    assert found.plain.steps == 20
    assert found.speculative.steps <= 20
    assert found.one_row.steps == 20
    assert found.speedup > 0
    assert found.speedup_over_one_row > 0


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 7)), max_size=40))
def test_coloured_text_is_the_whole_text_in_runs_of_one_head(pairs: list[tuple[int, int]]) -> None:
    data, heads = bytes(byte for byte, _ in pairs), [head for _, head in pairs]
    runs = list(coloured_text(data, heads))
    assert "".join(text for text, _ in runs) == decode_text(data, "escape")
    assert all(text for text, _ in runs)
    assert all(before[1] != after[1] for before, after in itertools.pairwise(runs))


def test_a_character_belongs_to_the_head_that_made_it_whole() -> None:
    assert list(coloured_text("€!".encode(), [0, 1, 2, 2])) == [("€!", 2)]
