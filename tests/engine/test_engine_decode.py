"""Through the engine each prompt gets the bytes of the specification, whoever drafts and whatever runs beside it."""

import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pytest
import torch

from bytelm.bpe import BPEVocab
from bytelm.checkpoint import Snapshot, save_checkpoint
from bytelm.config import RunConfig
from bytelm.decode import DecodePlan, Request, decode_batch, decode_steps, generate
from bytelm.decoding.engine_decode import calibration_table, cost_table, observed, prior_costs, prior_plan
from bytelm.drafting import Calibration, DraftPolicy, StepCost
from bytelm.engine import Decoder, Engine, SequenceSettings
from bytelm.engine.library import load_library, unavailable_reason
from bytelm.engine.weights import EnginePrecision, engine_from_torch
from bytelm.errors import GenerationError
from bytelm.generation import GenerateSettings, Generation, Step
from bytelm.model import ByteLM
from bytelm.pair_correction import PairCorrection
from bytelm.sampling import CHOICES
from bytelm.vocab import EOD, VOCABULARY_SIZE
from tests.specification import specified_bytes

pytestmark = pytest.mark.skipif(load_library() is None, reason=f"no engine: {unavailable_reason()}")

CONTEXT = 48
POLICIES: Final = get_args(DraftPolicy)
FAMILIES = ("linear", "mlp", "transformer", "causal", "anticausal", "shared")
SMALL = [
    "model.d_model=32",
    "model.layers=2",
    "model.d_ff=48",
    'model.attention_pattern=["local", "global"]',
    "model.local_window_bytes=12",
    f"data.window_bytes={CONTEXT}",
]


def settings_of(family: str = "linear", heads: int = 4, *changes: str) -> RunConfig:
    return RunConfig.build("tiny", [*SMALL, f"heads.family={family}", f"heads.count={heads}", *changes])


def torch_model(family: str = "linear", heads: int = 4, *changes: str) -> ByteLM:
    """Random weights whose bytes are sure enough that rounding decides nothing, and repeat themselves now and then."""
    config = settings_of(family, heads, *changes)
    torch.manual_seed(5)
    model = ByteLM(config.model, config.heads).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("tables", "depth_embedding")):
                parameter.normal_(std=0.3)
            if name.endswith("unembedding.weight"):
                parameter.mul_(8.0)
    return model


def engine_of(model: ByteLM, precision: EnginePrecision = "float32", threads: int = 1) -> Engine:
    return engine_from_torch(model, precision=precision, threads=threads)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of(torch_model())


def said(engine: Engine, prompt: bytes, tuned: DecodePlan | None = None, **options: Any) -> Generation:
    return generate(engine, prompt, GenerateSettings(**options), context_bytes=CONTEXT, tuned=tuned)


def together(engine: Engine, requests: Sequence[Request], slots: int) -> list[list[Step]]:
    steps: list[list[Step]] = [[] for _ in requests]
    for index, step in decode_batch(engine, requests, context_bytes=CONTEXT, slots=slots):
        assert not steps[index] or steps[index][-1].finish_reason is None
        steps[index].append(step)
    return steps


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.2, "utf8": True, "seed": 9},
    {"repetition_penalty": 1.4},
    {"temperature": 1.0, "stop": (b"e", b"\x80", b"ab")},
]


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_of_the_specification(family: str) -> None:
    model = torch_model(family, 4, "model.ngram_sizes=[2, 3]", "model.ngram_rows=40", "model.ngram_width=8")
    engine, exact = engine_of(model), model.double()
    source = random.Random(family)
    for number, options in enumerate(OPTIONS):
        # Empty, short, as long as the context, longer; the output slides the context at least twice.
        prompt = source.randbytes((0, 7, CONTEXT - 1, CONTEXT + 5, 3, 20)[number])
        settings = GenerateSettings(max_bytes=2 * CONTEXT, **options)
        expected, reason = specified_bytes(exact, prompt, settings, context_bytes=CONTEXT)
        for draft in POLICIES:
            found = said(engine, prompt, max_bytes=2 * CONTEXT, draft=draft, **options)
            assert (found.data, found.finish_reason) == (expected, reason), (options, draft)
            assert len(found.sources) == len(found.data)
            assert draft != "none" or set(found.sources) <= {0}


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_prompts_get_the_specified_bytes_greedily_and_sampled(count: int) -> None:
    model = torch_model("linear", 8, "model.ngram_sizes=[2]", "model.ngram_rows=40", "model.ngram_width=8")
    engine, exact, source = engine_of(model), model.double(), random.Random(count)
    requests = [
        Request(
            source.randbytes(source.choice((0, 1, 5, 20, CONTEXT - 1, CONTEXT, CONTEXT + 9))),
            GenerateSettings(max_bytes=24, sequence=number, temperature=0.9 * (number % 2)),
        )
        for number in range(count)
    ]
    expected = [specified_bytes(exact, one.prompt, one.settings, context_bytes=CONTEXT)[0] for one in requests]
    for slots in (1, 7):
        found = together(engine, requests, slots)
        assert [b"".join(step.data for step in steps) for steps in found] == expected


@pytest.mark.parametrize("heads", [1, 2, 9, 32])
def test_any_number_of_heads_drafts_without_changing_a_byte(heads: int) -> None:
    engine = engine_of(torch_model("linear", heads))
    plain = said(engine, b"any number", max_bytes=120, draft="none")
    for draft in POLICIES:
        assert said(engine, b"any number", max_bytes=120, draft=draft).data == plain.data
    assert len(plain.proposed_by_head) == heads


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_drafts_threads_and_neighbours_change_no_byte_of_any_kind(precision: EnginePrecision, threads: int) -> None:
    model = torch_model("causal")
    alone, engine = engine_of(model, precision), engine_of(model, precision, threads)
    source = random.Random(precision)
    requests = [
        Request(
            source.randbytes(source.randrange(CONTEXT + 9)), GenerateSettings(max_bytes=40 + n, sequence=n, **options)
        )
        for n, options in enumerate([*OPTIONS, *OPTIONS])
    ]
    expected = [said(alone, one.prompt, draft="none", **_options(one.settings)).data for one in requests]
    for slots in (1, 2, 5, 64):
        found = together(engine, requests, slots)
        assert [b"".join(step.data for step in steps) for steps in found] == expected
        assert all(steps[-1].finish_reason for steps in found)


def _options(settings: GenerateSettings) -> dict[str, Any]:
    names = (
        "max_bytes",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "seed",
        "sequence",
        "stop",
        "utf8",
    )
    return {name: getattr(settings, name) for name in names}


def test_requests_side_by_side_may_differ_in_who_drafts(engine: Engine) -> None:
    requests = [Request(b"same prompt", GenerateSettings(max_bytes=50, draft=draft)) for draft in POLICIES]
    first, *others = [b"".join(step.data for step in steps) for steps in together(engine, requests, 3)]
    assert len(first) == 50
    assert others == [first] * 3


def test_requests_are_taken_as_places_become_free(engine: Engine) -> None:
    taken: list[int] = []

    def asked() -> Any:
        for number in range(5):
            taken.append(number)
            yield Request(b"x" * number, GenerateSettings(max_bytes=0 if number == 1 else 20))

    steps = decode_batch(engine, asked(), context_bytes=CONTEXT, slots=2)
    assert next(steps)[0] in (0, 2)
    assert taken == [0, 1, 2]
    finished = [index for index, step in steps if step.finish_reason]
    assert sorted(finished) == [0, 2, 3, 4]  # who asks for no byte has no step


def test_nothing_is_said_where_nothing_is_asked_for(engine: Engine) -> None:
    assert said(engine, b"x", max_bytes=0).steps == 0
    assert together(engine, [], 4) == []


def test_what_stands_behind_a_stop_string_is_not_said(engine: Engine) -> None:
    whole = said(engine, b"stop", max_bytes=200, temperature=1.0).data
    for place in (1, 17, 60, 150):  # within the first block and behind it
        stop = whole[place : place + 3]
        expected = whole[: whole.index(stop)]
        for draft in POLICIES:
            steps = list(
                decode_steps(
                    engine,
                    b"stop",
                    GenerateSettings(max_bytes=200, temperature=1.0, stop=(stop, b"never said"), draft=draft),
                    context_bytes=CONTEXT,
                )
            )
            assert b"".join(step.data for step in steps) == expected
            assert [step.finish_reason for step in steps][-1] == "stop"
            assert all(step.finish_reason is None for step in steps[:-1])
    # The next prompt finds a free place.
    assert said(engine, b"stop", max_bytes=200, temperature=1.0).data == whole


def test_the_end_of_a_document_ends_the_output_and_is_no_byte_of_it() -> None:
    model = torch_model()
    engine, exact = engine_of(model), model.double()
    reasons = set()
    for seed in range(12):
        settings = GenerateSettings(max_bytes=90, temperature=1.0, seed=seed)
        expected = specified_bytes(exact, b"end", settings, context_bytes=CONTEXT)
        found = said(engine, b"end", max_bytes=90, temperature=1.0, seed=seed)
        assert (found.data, found.finish_reason) == expected
        reasons.add(found.finish_reason)
    assert reasons == {"end_of_document", "max_bytes"}


def test_log_probabilities_are_those_of_torch(engine: Engine) -> None:
    model = torch_model().double()
    for draft in POLICIES:
        found = said(engine, b"log", max_bytes=30, draft=draft, temperature=1.0, logprobs=True)
        with torch.no_grad():
            logits = model(torch.tensor([[EOD, *b"log", *found.data]]))[0, 3:-1, 0]
        expected = logits.log_softmax(-1).gather(1, torch.tensor([[byte] for byte in found.data]))[:, 0]
        np.testing.assert_allclose(found.logprobs, expected.numpy(), atol=1e-4)
    requests = [Request(b"log", GenerateSettings(max_bytes=9, logprobs=asked)) for asked in (True, False, True)]
    lengths = [sum(len(step.logprobs) for step in steps) for steps in together(engine, requests, 3)]
    assert lengths == [9, 0, 9]


def test_steps_add_up(engine: Engine) -> None:
    for draft in POLICIES:
        for step in decode_steps(engine, b"ab" * 9, GenerateSettings(max_bytes=70, draft=draft), context_bytes=CONTEXT):
            assert len(step.data) == len(step.sources)
            assert len(step.data) + (step.finish_reason == "end_of_document") == step.accepted + 1
            assert step.sources[: step.accepted] == step.drafted[: step.accepted]
            assert step.rows == 1 + len(step.drafted)
            assert 0 <= step.asked <= 3
            assert step.expected >= 1.0


def test_a_second_run_takes_the_same_steps(engine: Engine) -> None:
    first = list(decode_steps(engine, b"again", GenerateSettings(max_bytes=60), context_bytes=CONTEXT))
    said(engine, b"something else", max_bytes=60)
    again = list(decode_steps(engine, b"again", GenerateSettings(max_bytes=60), context_bytes=CONTEXT))
    assert first == again


# Caches


def decoder_of(engine: Engine, slots: int = 2) -> Decoder:
    plan = prior_plan(engine)
    costs, calibration = cost_table(plan.costs), calibration_table(plan.calibration)
    return Decoder(engine, slots=slots, capacity=CONTEXT, costs=costs, calibration=calibration)


def test_a_prompt_that_begins_like_one_before_is_not_read_again(engine: Engine) -> None:
    decoder = decoder_of(engine)
    settings = SequenceSettings(temperature=0.0, top_p=-1, min_p=-1, repetition_penalty=1.0, max_ids=5)
    first = np.array([EOD, *range(30)], np.int32)
    assert decoder.begin(0, first, settings) == 30  # the last id is read by the first step
    assert decoder.prefill(0, 12) == 18
    assert decoder.prefill(0, 4096) == 0
    # Of the place beside it; one id at least is read again, for the heads ask for what it left.
    assert decoder.begin(1, np.array([EOD, *range(25), 99, 98], np.int32), settings) == 1
    decoder.end(0)
    assert decoder.begin(0, first, settings) == 1


def test_what_was_read_before_changes_no_byte(engine: Engine) -> None:
    source = random.Random(1)
    prompts = [b"chat: " + source.randbytes(source.randrange(60)) for _ in range(12)]
    prompts += [prompt + said(engine, prompt, max_bytes=9).data for prompt in prompts]  # as a conversation goes on
    for prompt in prompts:
        fresh = engine_of(torch_model())
        assert said(engine, prompt, max_bytes=40).data == said(fresh, prompt, max_bytes=40).data


def test_a_decoder_is_used_again_and_one_that_is_taken_is_not(engine: Engine) -> None:
    options = GenerateSettings(max_bytes=50)
    first = decode_steps(engine, b"one", options, context_bytes=CONTEXT)
    second = decode_steps(engine, b"two", options, context_bytes=CONTEXT)
    expected = [said(engine_of(torch_model()), prompt, max_bytes=50).data for prompt in (b"one", b"two")]
    found = [b"", b""]
    for one, two in itertools.zip_longest(first, second):
        found[0] += one.data if one else b""
        found[1] += two.data if two else b""
    assert found == expected


def test_an_iterator_that_is_given_up_frees_its_places(engine: Engine) -> None:
    expected = said(engine, b"whole", max_bytes=80).data
    for _ in range(5):
        steps = decode_batch(
            engine,
            [Request(b"whole", GenerateSettings(max_bytes=10_000)) for _ in range(3)],
            context_bytes=CONTEXT,
            slots=2,
        )
        next(steps)
        steps.close()  # pyright: ignore[reportAttributeAccessIssue]  a generator
        assert said(engine, b"whole", max_bytes=80).data == expected
    found = together(engine, [Request(b"whole", GenerateSettings(max_bytes=80))] * 3, 2)
    assert [b"".join(step.data for step in steps) for steps in found] == [expected] * 3


# Plans


def test_calibrations_keep_their_counts_on_the_way(engine: Engine) -> None:
    counts = {"head 0 3": (1.0, 2.0), "agree 8 12": (0.5, 4.0), "past 4": (3.0, 3.0), "drawn past 64": (0.0, 1.0)}
    counts |= {"drawn head 2 0": (1.0, 1.0), "drawn agree 0 11": (2.0, 7.0)}
    unknown = {"branch 3": (1.0, 1.0), "head 9 0": (1.0, 1.0), "past 5": (1.0, 1.0), "side 1 2": (1.0, 1.0)}
    assert observed(calibration_table(Calibration(counts | unknown))) == counts

    shared = DecodePlan(prior_costs(engine), Calibration(dict(counts)), shared=True)
    copied = DecodePlan(prior_costs(engine), Calibration(dict(counts)))
    for plan in (shared, copied):
        said(engine, b"abcd" * 8, plan, max_bytes=60)
    assert copied.calibration.counts == counts
    assert shared.calibration.counts != counts
    assert shared.calibration.counts.keys() >= counts.keys()


def test_costs_of_any_table_become_one_that_the_engine_takes() -> None:
    many = StepCost(tuple(range(1, 30)), tuple(0.1 * rows for rows in range(1, 30)), 0.02, 0.01)
    few = StepCost((1, 64), (1.0, 7.3), 0.04, 0.03)
    table = cost_table(tuple((past, many if past % 2 else few) for past in (9, 100, 7, 300, 1001, 2000)))
    assert (table.pasts, table.row_counts) == (4, 12)
    assert list(table.past) == sorted(table.past)
    assert table.past[0] == 7
    assert table.past[3] == 2000
    rows = table.rows[:12]
    assert rows[0] == 1
    assert rows[-1] == 64
    assert list(table.seconds[0]) == pytest.approx([many.of(count) for count in rows])
    assert list(table.seconds[3]) == pytest.approx([few.of(count) for count in rows])
    assert 0.02 < table.head < 0.04


def test_guessed_costs_rise_with_rows_and_with_what_is_before(engine: Engine) -> None:
    for one in (engine, engine_of(torch_model("shared"), "int8"), engine_of(torch_model("anticausal"))):
        costs = prior_costs(one)
        for _, cost in costs:
            assert list(cost.seconds) == sorted(cost.seconds)
            assert 0 < cost.head < cost.of(1)
        assert [cost.of(8) for _, cost in costs] == sorted(cost.of(8) for _, cost in costs)


def test_the_correction_of_the_heads_reaches_the_engine_and_changes_no_byte(engine: Engine) -> None:
    last_VR, before_VR, out_RV = (np.zeros(shape, np.float32) for shape in ((CHOICES, 2), (CHOICES, 2), (2, CHOICES)))
    last_VR[:, 1] = 1.0
    out_RV[1, ord("~")] = 1.0  # whatever the last byte was, a tilde comes next: a byte that this model never says
    pairs = PairCorrection(last_VR, before_VR, out_RV, np.zeros(3, np.float32), np.full(3, 50, np.float32))
    plan = DecodePlan(prior_costs(engine), Calibration(), pairs)
    alone, corrected = (said(engine, b"pairs", one, max_bytes=90, draft="heads") for one in (None, plan))
    assert corrected.data == alone.data
    assert b"~" not in alone.data
    assert sum(alone.accepted_by_head[1:]) > 0
    assert corrected.accepted_by_head[1:] == (0, 0, 0)
    assert corrected.proposed_by_head[1] > 0


# Other vocabularies, bad numbers


def test_ids_that_stand_for_several_bytes_are_decoded_too() -> None:
    vocabulary = BPEVocab([(97, 98), (257, 99), (32, 257)], name="bpe:300", bytes_per_id=1.5)
    config = settings_of("linear", 3, "model.vocabulary=bpe:300", "model.bytes_per_id=1.5")
    torch.manual_seed(2)
    model = ByteLM(config.model, config.heads, vocabulary=vocabulary).eval()
    unembedding: Any = model.heads.unembedding
    with torch.no_grad():
        unembedding.weight.mul_(8.0)
    engine = engine_of(model)
    for options in ({}, {"temperature": 1.0, "seed": 4}, {"temperature": 1.0, "stop": (b"b", b"\xf0\x11")}):
        expected = generate(
            model.double(), b"abc ab", GenerateSettings(max_bytes=70, draft="none", **options), context_bytes=CONTEXT
        )
        for draft in ("adaptive", "heads", "none"):
            found = said(engine, b"abc ab", max_bytes=70, draft=draft, **options)
            assert (found.data, found.finish_reason) == (expected.data, expected.finish_reason)
            assert len(found.sources) == len(found.data)
    asked: list[tuple[str, Any]] = [
        ("utf8", True),
        ("logprobs", True),
        ("repetition_penalty", 2.0),
        ("draft", "ngram"),
    ]
    for name, value in asked:
        with pytest.raises(GenerationError, match=f"{name} = .* looks at bytes"):
            said(engine, b"", **{name: value})


@pytest.mark.parametrize("prompt", [b"", b"some prompt"])
def test_logits_that_are_not_finite_are_an_error_and_no_byte(prompt: bytes) -> None:
    model = torch_model()
    with torch.no_grad():
        model.heads.norm.gain.fill_(3e38)  # finite, and too large for what is computed with it
    with pytest.raises(GenerationError, match="logits are not finite: its weights have diverged"):
        said(engine_of(model), prompt, max_bytes=8)


# Processes and threads


def test_python_threads_decode_side_by_side_with_one_engine() -> None:
    model = torch_model()
    engine = engine_of(model, threads=2)
    prompts = [bytes((97 + n,)) * n for n in range(6)]
    expected = [said(engine_of(model), prompt, max_bytes=150).data for prompt in prompts]
    found: dict[int, list[bytes]] = {}

    def work(number: int) -> None:
        found[number] = [said(engine, prompts[number], max_bytes=150).data for _ in range(4)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [data] * 4 for number, data in enumerate(expected)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a model that says more bytes than anybody waits for."""
    model = torch_model()
    unembedding: Any = model.heads.unembedding
    with torch.no_grad():
        unembedding.weight.view(4, VOCABULARY_SIZE, -1)[:, EOD] = 0.0
    folder = tmp_path_factory.mktemp("run")
    nothing: dict[str, Any] = {"optimizer": {}, "random": {}, "progress": {}}
    snapshot = Snapshot(step=1, config=settings_of(), corpus="x", fingerprint="y", model=model.state_dict(), **nothing)
    save_checkpoint(folder, snapshot, keep=1)
    return folder


def in_process(code: str, *words: str | Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def test_a_child_after_a_fork_goes_on_and_so_does_its_parent(run: Path) -> None:
    code = """
import os, sys, bytelm
model = bytelm.load(sys.argv[1], threads=2)
before = model.generate("fork", max_bytes=80).data
steps = model.stream("taken", max_bytes=1000)
next(steps)
child = os.fork()
same = model.generate("fork", max_bytes=80).data == before and bool(next(steps).data)
if child == 0:
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
print(same, os.waitstatus_to_exitcode(status), "torch" in sys.modules)
"""
    with in_process(code, run) as process:
        out, errors = process.communicate()
    assert (out, errors) == ("True 0 False\n", "")


def test_a_model_from_a_path_is_pickled_as_that_path(run: Path) -> None:
    import bytelm

    model = bytelm.load(run, precision="int8", threads=2)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301  our own, made in this line
    assert again.decoded_by == model.decoded_by
    assert again.generate("x", max_bytes=20).data == model.generate("x", max_bytes=20).data
    with pytest.raises(TypeError, match="Engine lives in this process alone"):
        pickle.dumps(model.engine)


def test_ctrl_c_ends_a_block_and_the_model_goes_on(run: Path) -> None:
    code = """
import sys, bytelm
model = bytelm.load(sys.argv[1])
expected = model.generate("after", max_bytes=50).data
count = 0
try:
    for piece in model.stream("go", max_bytes=10**9):
        count += len(piece.data)
        if count > 100:
            print("ready", flush=True)
            count = -10**9
except KeyboardInterrupt:
    print(model.generate("after", max_bytes=50).data == expected)
"""
    with in_process(code, run) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
    assert (out, errors, process.returncode) == ("True\n", "", 0)


def test_ctrl_c_ends_the_reading_of_a_prompt(tmp_path: Path) -> None:
    config = settings_of("linear", 2, "data.window_bytes=1048576", "model.layers=8", "model.d_model=256")
    torch.manual_seed(0)
    model = ByteLM(config.model, config.heads)
    nothing: dict[str, Any] = {"optimizer": {}, "random": {}, "progress": {}}
    snapshot = Snapshot(step=1, config=config, corpus="x", fingerprint="y", model=model.state_dict(), **nothing)
    save_checkpoint(tmp_path, snapshot, keep=1)
    code = """
import sys, bytelm
model = bytelm.load(sys.argv[1])
model.generate("x", max_bytes=1)
try:
    print("ready", flush=True)
    model.generate(b"a" * 1_000_000, max_bytes=1)  # minutes
except KeyboardInterrupt:
    print("interrupted")
"""
    with in_process(code, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
    assert (out, errors) == ("interrupted\n", "")


def test_without_the_library_torch_decodes_and_says_so(run: Path) -> None:
    code = """
import json, sys, bytelm
model = bytelm.load(sys.argv[1])
said = model.generate("same", max_bytes=60).data.hex()
print(json.dumps([said, model.decoded_by.name, model.engine_reason, model.engine is None, "torch" in sys.modules]))
try:
    model.generate("same", max_bytes=60, exact="bits")
    print("bits")
except bytelm.BytelmError as error:
    print(error)
"""
    found = []
    for engine in ("auto", "off"):
        with in_process(code, run, BYTELM_ENGINE=engine) as process:
            out, errors = process.communicate()
        assert errors == ""
        first, second = out.splitlines()
        found.append((*json.loads(first), second))
    compiled, plain = found
    assert compiled[1:] == ("compiled", "", False, False, "bits")
    assert plain[1:5] == ("torch", "BYTELM_ENGINE=off turns it off", True, True)
    assert plain[0] == compiled[0]
    assert "exact = 'bits'" in plain[5]
