"""An ingestion that was killed goes on: nothing complete is done again, and the corpus is the undisturbed one."""

import io
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bytelm.data.filters import Filters
from bytelm.data.ingest import IngestProgress, ingest, is_unfinished
from bytelm.data.shards import INDEX, Corpus
from bytelm.data.sources import ReadOptions
from bytelm.errors import ConfigError, CorpusError

WORDS: dict[str, Any] = {"shard_bytes": 30_000, "level": 1, "validation_fraction": 0.05}

# Kills itself when it touches a file for the n-th time: opens, renames or removes one, or lists a folder.
KILLED = """
import json, os, signal, sys
from bytelm.data.ingest import ingest
sources, out, moment, words = json.loads(sys.argv[1])
seen = 0
def touch(event, arguments):
    global seen
    if event == "open" or event.startswith(("os.", "subprocess.")):
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(touch)
ingest(sources, out, **words)
print(seen)
"""


def touch_until(moment: int, sources: list[str], out: Path, words: dict[str, Any]) -> int:
    """Ingest in another process, which is killed at some moment; how many moments there were if it was not."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps([sources, str(out), moment, words])],
        check=False,
        stdout=subprocess.PIPE,
    )
    assert done.returncode in (0, -signal.SIGKILL)
    return int(done.stdout or 0)


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Files and an archive, 300 kB in all."""
    folder = tmp_path / "files"
    folder.mkdir()
    chance = random.Random(1)
    for number in range(60):
        (folder / f"{number:02d}").write_bytes(b"".join(b"%030x\n" % chance.getrandbits(120) for _ in range(100)))
    (folder / "copy").write_bytes((folder / "07").read_bytes())
    subprocess.run(["tar", "-czf", tmp_path / "more.tar.gz", "-C", tmp_path, "files"], check=True)
    (tmp_path / "files" / "large").write_bytes(b"a long document\n" * 8000)
    return [str(folder), str(tmp_path / "more.tar.gz")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def goes_on(sources: list[str], out: Path, words: dict[str, Any]) -> None:
    """Resume, or begin again where the ingestion was killed before it began."""
    if is_unfinished(out) or (out / INDEX).exists():
        ingest(sources, out, resume=True, **words)
    else:
        ingest(sources, out, **words)


def check_kills(sources: list[str], tmp_path: Path, kills: int, words: dict[str, Any]) -> None:
    moments = touch_until(0, sources, tmp_path / "undisturbed", words)
    undisturbed = contents(tmp_path / "undisturbed")
    chance = random.Random(kills)
    unfinished = 0
    for number in range(kills):
        out = tmp_path / f"out-{number}"
        touch_until(chance.randint(1, moments), sources, out, words)
        unfinished += is_unfinished(out)
        if number % 3 == 0 and is_unfinished(out):  # the one that goes on is killed, too
            touch_until(chance.randint(1, moments), sources, out, {**words, "resume": True})
        goes_on(sources, out, words)
        assert contents(out) == undisturbed
    assert unfinished > kills // 3  # the others were killed while it loaded, or when it was finished


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_ingestion_ends_as_the_undisturbed_one(sources: list[str], tmp_path: Path, workers: int) -> None:
    check_kills(sources, tmp_path, 5, {**WORDS, "workers": workers})


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_50_killed_ingestions_end_as_the_undisturbed_one(sources: list[str], tmp_path: Path, workers: int) -> None:
    check_kills(sources, tmp_path, 50, {**WORDS, "workers": workers})


def test_an_appending_that_is_killed_leaves_the_corpus_and_goes_on(sources: list[str], tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    for number in range(30):
        (more / f"{number}").write_bytes(random.Random(number).randbytes(2000))
    ingest(sources, tmp_path / "undisturbed", **WORDS)
    before = Corpus.open(tmp_path / "undisturbed")
    words = {**WORDS, "append": True, "workers": 1}
    moments = touch_until(0, [str(more)], tmp_path / "undisturbed", words)
    undisturbed = contents(tmp_path / "undisturbed")
    chance = random.Random(5)
    for number in range(5):
        out = tmp_path / f"out-{number}"
        ingest(sources, out, **WORDS)
        touch_until(chance.randint(1, moments), [str(more)], out, words)
        found = Corpus.open(out)
        if is_unfinished(out):
            with pytest.raises(CorpusError, match="holds an unfinished ingestion; add --resume"):
                ingest([more], out, append=True, **WORDS)
            ingest([more], out, resume=True, **WORDS)
        elif found.fingerprint == before.fingerprint:
            ingest([more], out, append=True, **WORDS)
        assert contents(out) == undisturbed


def interrupt_after(partitions: int) -> Callable[[IngestProgress], None]:
    """Interrupts the writing when so many partitions are about done."""

    def tell(progress: IngestProgress) -> None:
        if progress.phase == "write" and progress.raw_bytes >= partitions * 30_000:
            raise KeyboardInterrupt

    return tell


def interrupted(sources: list[str], out: Path, partitions: int = 4, **words: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        ingest(sources, out, **{**WORDS, **words}, on_progress=interrupt_after(partitions))


def test_what_is_complete_is_not_done_again(sources: list[str], tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    interrupted(sources, out)
    noted = [json.loads(path.read_bytes())["content"] for path in (out / ".ingest").glob("partition-*")]
    complete = {shard["name"]: (out / shard["name"]).stat() for partition in noted for shard in partition["shards"]}
    assert len(noted) >= 3
    surveyed: list[IngestProgress] = []
    report = ingest(sources, out, resume=True, **WORDS, on_progress=surveyed.append)
    for name, status in complete.items():
        assert (out / name).stat().st_ino == status.st_ino
        assert (out / name).stat().st_mtime_ns == status.st_mtime_ns
    assert {progress.phase for progress in surveyed} == {"write"}
    assert surveyed[-1].raw_bytes == report.raw_bytes > surveyed[-1].phase_bytes
    assert report.fingerprint == ingest(sources, tmp_path / "undisturbed", **WORDS).fingerprint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"level": 3}, "level was 1 and is now 3"),
        ({"filters": Filters(min_bytes=7)}, "min_bytes was 0 and is now 7"),
        ({"read": ReadOptions(exclude=("x",))}, "exclude was [] and is now ['x']"),
        ({"shard_bytes": 40_000}, "shard_bytes was 30000 and is now 40000"),
        ({"keep_duplicates": True}, "keep_duplicates was False and is now True"),
        ({"append": True}, "mode was 'new' and is now 'append'"),
        ({"overwrite": True}, "mode was 'new' and is now 'overwrite'"),
    ],
)
def test_other_settings_are_refused_and_named(
    sources: list[str], tmp_path: Path, words: dict[str, Any], said: str
) -> None:
    out = tmp_path / "corpus"
    interrupted(sources, out)
    before = contents_below(out)
    with pytest.raises(ConfigError) as refused:
        ingest(sources, out, resume=True, **{**WORDS, **words})
    assert f"was begun with other settings: {said}; resume it with the same ones" in str(refused.value)
    with pytest.raises(ConfigError, match=r"sources was \["):
        ingest(sources[:1], out, resume=True, **WORDS)
    assert contents_below(out) == before


def contents_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_unfinished_ingestion_is_only_begun_again_on_request(sources: list[str], tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    interrupted(sources, out)
    with pytest.raises(CorpusError, match=r"no corpus at .*: it has no index\.json"):
        Corpus.open(out)
    before = contents_below(out)
    with pytest.raises(CorpusError, match=r"unfinished ingestion; add --resume to the command .* or --overwrite"):
        ingest(sources, out, **WORDS)
    assert contents_below(out) == before
    ingest(sources[:1], out, overwrite=True)
    ingest(sources[:1], tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_replacement_can_be_resumed_and_leaves_the_old_corpus_till_then(sources: list[str], tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    ingest(sources[1:], out, **WORDS)
    old = Corpus.open(out)
    interrupted(sources, out, overwrite=True)
    assert list(Corpus.open(out).documents("train")) == list(old.documents("train"))
    report = ingest(sources, out, resume=True, overwrite=True, **WORDS)
    assert report.fingerprint == ingest(sources, tmp_path / "undisturbed", **WORDS).fingerprint
    assert not set(contents(out)) & {shard.name for shard in old.all_shards}


def test_a_finished_ingestion_says_so(sources: list[str], tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    first = ingest(sources, out, **WORDS)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = ingest(sources, out, resume=True, **WORDS)
    assert again.was_complete
    assert not first.was_complete
    assert {**again.as_json(), "was_complete": False, "elapsed_s": 0, "bytes_per_second": 0} == {
        **first.as_json(),
        "elapsed_s": 0,
        "bytes_per_second": 0,
    }
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(CorpusError, match=r"holds a finished corpus.*level was 1 and is now 9; choose --append"):
        ingest(sources, out, resume=True, **{**WORDS, "level": 9})
    with pytest.raises(CorpusError, match="nothing to resume"):
        ingest(sources, tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_damage_to_the_journal_costs_work_and_nothing_else(sources: list[str], tmp_path: Path) -> None:
    undisturbed = ingest(sources, tmp_path / "undisturbed", **WORDS).fingerprint
    chance = random.Random(2)
    interrupted(sources, tmp_path / "corpus")
    names = sorted(path.name for path in (tmp_path / "corpus" / ".ingest").iterdir())
    assert {name.partition("-")[0] for name in names} == {
        "job.json",
        "surveyed.json",
        "decision.json",
        "survey",
        "partition",
    }
    for number, name in enumerate(names):
        out = tmp_path / f"out-{number}"
        interrupted(sources, out)
        place = out / ".ingest" / name
        content = bytearray(place.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        place.write_bytes(content if number % 2 else content[: len(content) // 2])
        report = ingest(sources, out, resume=is_unfinished(out), **WORDS)
        assert report.fingerprint == undisturbed


def test_a_shard_that_went_missing_is_written_again(sources: list[str], tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    interrupted(sources, out)
    one, two = sorted(out.glob("train-*.zst"))[:2]
    one.unlink()
    two.write_bytes(two.read_bytes()[:-1])
    ingest(sources, out, resume=True, **WORDS)
    ingest(sources, tmp_path / "undisturbed", **WORDS)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_a_tree_that_grew_before_the_survey_was_complete_is_read_as_it_is_now(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(4500):  # three parts of the survey
        (folder / f"{number:04d}").write_bytes(b"%d" % number)

    def interrupt(progress: IngestProgress) -> None:
        if progress.documents > 3000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest([folder], tmp_path / "corpus", workers=1, on_progress=interrupt)
    assert (tmp_path / "corpus" / ".ingest" / "survey-000000").exists()
    (folder / "3000-and-a-half").write_bytes(b"new")
    report = ingest([folder], tmp_path / "corpus", resume=True)
    assert report.documents == 4501
    assert report.fingerprint == ingest([folder], tmp_path / "fresh").fingerprint


def test_standard_input_is_kept_for_resuming(sources: list[str], tmp_path: Path) -> None:
    piped = b"from a pipe\n" * 9
    out = tmp_path / "corpus"
    interrupted([*sources, "-"], out, stdin=io.BytesIO(piped))
    report = ingest([*sources, "-"], out, resume=True, stdin=io.BytesIO(b"something else"), **WORDS)
    undisturbed = ingest([*sources, "-"], tmp_path / "undisturbed", stdin=io.BytesIO(piped), **WORDS)
    assert report.fingerprint == undisturbed.fingerprint
    interrupted([*sources, "-"], "memory://resume/stdin", stdin=io.BytesIO(piped), workers=1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(CorpusError, match="what came from standard input is not in memory://resume/stdin"):
        ingest([*sources, "-"], "memory://resume/stdin", resume=True, stdin=io.BytesIO(piped), **WORDS)


def test_stop_may_become_skip_but_not_the_other_way(sources: list[str], tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    interrupted(sources, out, on_error="skip")
    with pytest.raises(ConfigError, match="on_error was 'skip' and is now 'named'"):
        ingest(sources, out, resume=True, **WORDS)
    ingest(sources, out, resume=True, on_error="skip", **WORDS)
    interrupted(sources, tmp_path / "other")
    ingest(sources, tmp_path / "other", resume=True, on_error="skip", **WORDS)
    assert Corpus.open(out).fingerprint == Corpus.open(tmp_path / "other").fingerprint
