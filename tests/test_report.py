"""The page about a run: whole, self-contained, true to the log, and safe whatever the model says."""

import dataclasses
import html.parser
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bytelm.config import HeadsConfig, ModelConfig, RunConfig
from bytelm.data.ingest import ingest
from bytelm.errors import CheckpointError
from bytelm.generation import Generation
from bytelm.history import read_histories, thinned
from bytelm.model import ByteLM
from bytelm.report import (
    SideBySide,
    acceptance_over,
    coloured_text,
    side_by_side,
    write_comparison,
    write_report,
)
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
        if tag not in ("meta", "path", "use", "rect", "line", "input"):
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
        sources=heads,
        steps=heads.count(0),
        elapsed_s=elapsed_s,
        finish_reason="max_bytes",
        proposed_by_head=(2, 2, 1),
        accepted_by_head=(2, 1, 0),
    )


def comparison(data: bytes, *, plain: bytes | None = None) -> SideBySide:
    heads = tuple(place % 2 for place in range(len(data)))
    other = generation(data if plain is None else plain, heads, elapsed_s=2.0)
    return SideBySide(prompt=b"<b>&", plain=other, speculative=generation(data, heads))


def test_the_page_is_one_file_that_fetches_nothing_and_closes_its_tags(run: Path) -> None:
    page = Page()
    page.feed(write_report(run, [comparison(b"abcd")]).read_text(encoding="utf-8"))
    assert page.fetched == []
    assert page.open == []


def test_the_page_shows_the_last_validation_of_the_log(run: Path) -> None:
    last = [record for record in read_log(run) if record["kind"] == "validation"][-1]
    text = write_report(run).read_text(encoding="utf-8")
    assert f"{last['bits_per_byte_by_head'][0]:.3f}" in text
    assert "Acceptance by head" not in text


def test_what_a_model_says_is_text_and_never_markup(run: Path) -> None:
    page = write_report(run, [comparison(b"<script>alert(1)</script>\x1b\xff")]).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\\xff" in page


def test_bytes_that_differ_are_said_to_differ(run: Path) -> None:
    assert not comparison(b"ab", plain=b"ax").equal
    assert "<b>different</b>" in write_report(run, [comparison(b"ab", plain=b"ax")]).read_text(encoding="utf-8")
    assert "<b>different</b>" not in write_report(run, [comparison(b"ab")]).read_text(encoding="utf-8")


def test_samples_that_repeat_themselves_are_told_beside_the_figures_that_they_flatter(run: Path) -> None:
    straight, loop = comparison(bytes(range(97, 123))), comparison(b"start " + b"the sea, " * 6)
    assert "end in a loop" not in write_report(run, [straight, straight]).read_text(encoding="utf-8")
    page = write_report(run, [straight, loop]).read_text(encoding="utf-8")
    assert page.count("; 1 of 2 samples end in a loop, which is easily drafted") == 2


def test_acceptance_is_summed_over_decodings() -> None:
    other = dataclasses.replace(
        comparison(b"ab"),
        speculative=dataclasses.replace(
            generation(b"ab", (0, 0)), proposed_by_head=(2, 2, 0), accepted_by_head=(2, 2, 0)
        ),
    )
    assert acceptance_over([comparison(b"ab"), other]) == (1.0, 0.75, 0.0)


def test_a_run_that_has_logged_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="no figures in its log yet"):
        write_report(tmp_path)


def test_a_run_without_validation_shows_how_it_trained(run: Path, tmp_path: Path) -> None:
    steps = [record for record in read_log(run) if record["kind"] == "step"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in steps))
    page = Page()
    page.feed(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.open == []
    assert "0, training" in page.text
    assert "held-out data, head 0" not in page.text


def test_the_page_has_curves_over_bytes_time_and_operations_acceptance_and_samples(run: Path) -> None:
    page = Page()
    page.feed(write_report(run).read_text(encoding="utf-8"))
    assert all(f"over {axis}" in page.text for axis in ("bytes", "seconds", "operations"))
    assert "accepted, estimated" in page.text
    last = [record for record in read_log(run) if record["kind"] == "validation"][-1]
    assert last["prompt"] in page.text
    assert f"{last['bytes_per_step_estimate']:.2f}" in page.text


def test_several_runs_stand_on_one_page_with_what_tells_them_apart(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "<other>" / run.name
    shutil.copytree(run, other)
    config = other / "config.toml"
    config.write_text(config.read_text().replace("learning_rate = 0.005", "learning_rate = 0.25"))
    old_keys = {"flops", "mfu", "memory_bytes", "agreement_by_head", "bytes_per_step_estimate", "prompt", "sample"}
    old = [{key: value for key, value in record.items() if key not in old_keys} for record in read_log(other)]
    (other / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in old))
    page = Page()
    page.feed(write_comparison([run, other], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.fetched == []
    assert page.open == []
    assert f"<other>/{run.name}" in page.text
    assert "train.learning_rate" in page.text
    assert "0.25" in page.text
    assert "train.steps" not in page.text  # the same in both
    ours, theirs = read_histories([run, other])
    assert ours.held_out("operations") == theirs.held_out("operations") != []
    assert theirs.bytes_per_step("bytes") == []


def test_a_log_without_settings_is_drawn_over_bytes_and_time_alone(run: Path, tmp_path: Path) -> None:
    old = [{key: value for key, value in record.items() if key != "flops"} for record in read_log(run)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in old))
    (history,) = read_histories([tmp_path])
    assert history.held_out("operations") == []
    assert len(history.held_out("seconds")) == 2
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "over seconds" in page
    assert "over operations" not in page


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 8)), max_size=50), st.integers(1, 10))
def test_a_thinned_line_has_few_points_and_the_same_mean(points: list[tuple[float, float]], most: int) -> None:
    thin = thinned(points, most)
    assert len(thin) <= most
    if len(points) % most == 0 and points:
        mean = [sum(column) / len(points) for column in zip(*points, strict=True)]
        assert [sum(column) / len(thin) for column in zip(*thin, strict=True)] == pytest.approx(mean)


def test_what_is_left_over_at_the_end_makes_no_point_of_its_own() -> None:
    line = [(float(x), 2.0) for x in range(10)]
    assert thinned([*line, (10.0, 12.0)], most=6) == [*thinned(line, most=5)[:-1], (9.0, pytest.approx(16 / 3))]
    assert thinned([*line, (10.0, 12.0)], most=11)[-1] == (10.0, 12.0)


def test_two_decodings_of_one_prompt_are_compared() -> None:
    found = side_by_side(tiny_model(), b"abc", max_bytes=20, context_bytes=32)
    assert found.equal
    assert found.plain.steps == 20
    assert found.speculative.steps <= 20
    assert found.speedup > 0


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 7)), max_size=40))
def test_coloured_text_is_the_whole_text_in_runs_of_one_head(pairs: list[tuple[int, int]]) -> None:
    data, heads = bytes(byte for byte, _ in pairs), [head for _, head in pairs]
    runs = list(coloured_text(data, heads))
    assert "".join(text for text, _ in runs) == decode_text(data, "escape")
    assert all(text for text, _ in runs)
    assert all(before[1] != after[1] for before, after in itertools.pairwise(runs))


def test_a_character_belongs_to_the_head_that_made_it_whole() -> None:
    assert list(coloured_text("€!".encode(), [0, 1, 2, 2])) == [("€!", 2)]
