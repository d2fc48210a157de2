import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.breakdown import break_down
from bytelm.config import HeadFamily, RunConfig
from bytelm.errors import ConfigError, CorpusError
from bytelm.evaluate import bits_per_byte, excerpts, some_bytes
from bytelm.model import ByteLM
from bytelm.scoring import windows
from bytelm.vocab import BYTE_COUNT, BYTES, EOD, VOCABULARY_SIZE, Vocab

ODD_DOCUMENTS = [
    b"",
    b"x",
    b"\x00\x00\r\n\xff\xfe\x80",
    b"one line\r\nand the next\n",
    bytes(range(256)),
    "Grüße, 世界 🎈".encode(),
    b"",
    b"abcdefgh" * 9,
]


def tiny_model(family: HeadFamily = "linear", heads: int = 3) -> ByteLM:
    config = RunConfig.build(
        "tiny",
        [
            "model.d_model=16",
            "model.layers=2",
            "model.attention_heads=2",
            "model.kv_heads=1",
            "model.d_ff=16",
            'model.attention_pattern=["local", "global"]',
            "model.local_window_bytes=5",
            f"heads.family={family}",
            f"heads.count={heads}",
        ],
    )
    torch.manual_seed(0)
    model = ByteLM(config.model, config.heads).eval()
    with torch.no_grad():  # far from uniform, so that a byte in the wrong place shows
        for name, parameter in model.named_parameters():
            if "unembedding" in name:
                parameter.mul_(16.0)
    return model


def one_byte_at_a_time(model: ByteLM, documents: list[bytes], context: int, stride: int) -> list[tuple[float, int]]:
    """The rule word by word: for each head the bits in all and the bytes scored."""
    totals = [(0.0, 0)] * model.heads.count
    for document in documents:
        ids = [EOD, *document]
        for head in range(model.heads.count):
            for byte in range(head, len(document)):
                last_read = byte - head  # in ids, where byte i stands at i + 1
                start = 0
                while start + context <= last_read:
                    start += stride
                with torch.no_grad():
                    logits_V = model(torch.tensor([ids[start : last_read + 1]]))[0, -1, head]
                bits = -F.log_softmax(logits_V.double(), 0)[document[byte]].item() / math.log(2)
                totals[head] = totals[head][0] + bits, totals[head][1] + 1
    return totals


@pytest.mark.parametrize(
    ("family", "context", "stride"),
    [
        *(("linear", *window) for window in ((16, 8), (16, 16), (7, 1), (1, 1), (100, 50))),
        ("mlp", 9, 4),
        ("transformer", 9, 4),
    ],
)
def test_batched_scores_equal_scoring_one_byte_at_a_time(family: HeadFamily, context: int, stride: int) -> None:
    model = tiny_model(family)
    documents = [document[:40] for document in ODD_DOCUMENTS]
    found = bits_per_byte(model, documents, context_bytes=context, stride=stride)
    expected = one_byte_at_a_time(model, documents, context, stride)
    assert found.by_head == pytest.approx([bits / count for bits, count in expected], rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.binary(max_size=70), min_size=1, max_size=20),
    st.integers(1, 20).flatmap(lambda context: st.tuples(st.just(context), st.integers(1, context))),
)
def test_every_byte_is_scored_exactly_once(documents: list[bytes], window: tuple[int, int]) -> None:
    model, size = tiny_model(), sum(map(len, documents))
    if size == 0:
        with pytest.raises(CorpusError):
            bits_per_byte(model, documents, context_bytes=window[0], stride=window[1])
        return
    result = bits_per_byte(model, documents, context_bytes=window[0], stride=window[1])
    assert result.scored_bytes == size
    assert result.documents == len(documents)


def test_more_windows_than_are_sorted_at_a_time_are_all_scored() -> None:
    documents = [bytes([65 + number % 7]) * (1 + number % 50) for number in range(700)]
    assert bits_per_byte(tiny_model(), documents, context_bytes=8).scored_bytes == sum(map(len, documents))


def test_how_documents_are_batched_does_not_change_the_result() -> None:
    model = tiny_model()
    together = bits_per_byte(model, ODD_DOCUMENTS, context_bytes=32)
    alone = [bits_per_byte(model, [document], context_bytes=32) for document in ODD_DOCUMENTS if document]
    total = sum((result.by_head[0] or 0.0) * result.scored_bytes for result in alone)
    assert together.by_head[0] == pytest.approx(total / together.scored_bytes, rel=1e-5)


def model_of(probabilities: list[float], heads: int) -> ByteLM:
    """A model whose heads all give every position the same distribution over ids."""
    config = RunConfig.build("tiny", [f"heads.count={heads}", "model.d_model=8", "model.layers=1"])
    model = ByteLM(config.model, config.heads).eval()
    logits_V = torch.full((VOCABULARY_SIZE,), -1e4)
    logits_V[: len(probabilities)] = torch.tensor(probabilities).log().clamp(min=-1e4)
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.zero_()
        model.embedding.fill_(1.0)
        model.heads.get_parameter("unembedding.weight").copy_((logits_V / 8).repeat(heads).unsqueeze(1).expand(-1, 8))
    return model


def test_uniform_bytes_cost_eight_bits_and_the_end_of_a_document_costs_its_share() -> None:
    documents = [bytes(range(256)), b"abc"]
    uniform = model_of([1 / 256] * 256, heads=2)
    assert bits_per_byte(uniform, documents, context_bytes=64).by_head == pytest.approx((8.0, 8.0))
    with_end = model_of([1 / 257] * 257, heads=2)
    assert bits_per_byte(with_end, documents, context_bytes=64).by_head == pytest.approx((math.log2(257),) * 2)


def test_a_known_distribution_costs_its_entropy() -> None:
    probabilities = [0.0] * BYTE_COUNT
    probabilities[ord("a")], probabilities[ord("b")], probabilities[ord("c")] = 0.5, 0.25, 0.25
    document = b"aabc" * 100  # exactly as often as the model believes
    result = bits_per_byte(model_of(probabilities, heads=4), [document], context_bytes=50)
    assert result.by_head == pytest.approx((1.5,) * 4, abs=0.01)
    assert result.by_head[0] == pytest.approx(1.5)


@pytest.mark.parametrize("family", ["linear", "anticausal"])
def test_agreement_is_that_of_the_heads_with_head_0_of_the_bytes_before(family: HeadFamily) -> None:
    model, document, context = tiny_model(heads=3, family=family), bytes(range(60)), 8
    with torch.no_grad():  # three ids are left to name, so that heads agree now and then
        unembedding = model.heads.get_parameter("unembedding.weight")
        unembedding.view(-1, VOCABULARY_SIZE, unembedding.shape[1])[:, 2:] = 0.0
    found = bits_per_byte(model, [document], context_bytes=context, stride=4)
    ids, places, agreed = [EOD, *document], 0, [0, 0, 0]
    for place in range(len(document)):
        start = 0 if place < context else 4 * -(-(place - context + 1) // 4)  # the first window that reads it
        named = [
            model(torch.tensor([ids[start : end + 1]]))[0, -1].argmax(-1).tolist()
            for end in range(place, min(place + 3, start + context, len(document)))
        ]
        if len(named) < 3:  # head 0 cannot be asked about the last draft in this window
            continue
        places += 1
        same = [named[0][head] == named[head][0] for head in range(3)]
        for head in range(3):
            agreed[head] += all(same[: head + 1])
    assert found.agreement_by_head == tuple(count / places for count in agreed)
    assert found.bytes_per_step_estimate == sum(agreed) / places
    assert 0 < agreed[2] < agreed[1] < places


def test_nothing_to_agree_on_is_no_figure() -> None:
    found = bits_per_byte(tiny_model(heads=3), [b"ab"], context_bytes=8)
    assert found.agreement_by_head == (None, None, None)
    assert found.bytes_per_step_estimate is None


def test_a_head_that_can_predict_nothing_has_no_figure() -> None:
    assert bits_per_byte(tiny_model(heads=3), [b"ab", b"c"], context_bytes=8).by_head[2] is None


def test_the_rule_names_the_context_and_the_stride() -> None:
    rule = bits_per_byte(tiny_model(), [b"abc"], context_bytes=40, stride=10).rule
    assert "windows of 40 bytes that advance by 10" in rule
    assert "with 30 before" in rule


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_that_would_skip_bytes_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match="choose 1 … 8"):
        bits_per_byte(tiny_model(), [b"abc"], context_bytes=8, stride=stride)


def test_nothing_to_score_says_so() -> None:
    with pytest.raises(CorpusError, match="no byte to score in 2 documents"):
        bits_per_byte(tiny_model(), [b"", b""], context_bytes=8)


def test_evaluation_leaves_tensors_that_training_can_use() -> None:
    model = tiny_model()
    bits_per_byte(model, [b"abcdef"], context_bytes=4)
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()


def test_excerpts_lie_in_documents_do_not_overlap_and_are_spread() -> None:
    documents = [bytes([number]) * size for number, size in enumerate((50, 0, 3, 400, 7, 40))]
    pieces = list(excerpts(documents, 500, count=10, length=20))
    assert all(len(set(piece)) == 1 and 0 < len(piece) <= 20 for piece in pieces)
    assert {piece[0] for piece in pieces} == {0, 2, 3}
    for number, document in enumerate(documents):
        assert sum(len(piece) for piece in pieces if piece[0] == number) <= len(document)
    assert len(pieces) == 10


def test_excerpts_of_little_data_are_all_of_it() -> None:
    documents = [b"abc", b"", b"defgh"]
    assert list(excerpts(documents, 8, count=4, length=2)) == [b"abc", b"defgh"]


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 10), st.integers(1, 10))
def test_excerpts_are_in_the_documents_in_order_and_never_too_many(
    documents: list[bytes], count: int, length: int
) -> None:
    whole, size = b"".join(documents), sum(map(len, documents))
    pieces = list(excerpts(documents, size, count=count, length=length))
    place = 0
    for piece in pieces:
        place = whole.index(piece, place) + len(piece)
    if count * length < size:
        assert 1 <= len(pieces) <= count
        assert max(map(len, pieces)) <= length
    else:
        assert b"".join(pieces) == whole


def bytes_as_several() -> Vocab:
    """Bytes, read the way in which ids of several bytes are."""
    return type("Bytes", (type(BYTES),), {})()


@given(st.lists(st.binary(max_size=40), max_size=4), st.integers(1, 12), st.data())
def test_windows_of_bytes_are_those_that_ids_of_any_size_have(
    documents: list[bytes], context: int, data: st.DataObject
) -> None:
    stride, begins = data.draw(st.integers(1, context)), [data.draw(st.integers(0, 41)) for _ in documents]
    for asked in (None, begins):
        settings = {"context": context, "stride": stride, "heads": 3, "begins": asked}
        found, expected = (
            list(windows(documents, vocabulary, **settings)) for vocabulary in (BYTES, bytes_as_several())
        )
        assert [(one.ids.tolist(), one.reads, one.first, one.document, one.start) for one in found] == [
            (one.ids.tolist(), one.reads, one.first, one.document, one.start) for one in expected
        ]


@pytest.mark.parametrize("family", ["linear", "transformer", "anticausal"])
@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
def test_documents_shorter_than_the_heads_look_are_scored(family: HeadFamily, size: int) -> None:
    documents = [b"1234567"[:size]] * 3
    found = bits_per_byte(tiny_model(family, heads=8), documents, context_bytes=16)
    assert found.scored_bytes == 3 * size
    assert [bits is None for bits in found.by_head] == [head >= size for head in range(8)]
    assert found.agreement_by_head == (None,) * 8
    assert found.bytes_per_step_estimate is None
    parts = break_down(tiny_model(family, heads=8), [(data, "text") for data in documents], context_bytes=16)
    assert parts.bits == found
    assert parts.by_type["text"].bytes_per_step is None


@given(
    st.lists(st.binary(max_size=40), max_size=12),
    st.integers(1, 300),
    st.integers(1, 5),
)
def test_as_many_bytes_are_given_as_were_asked_for(documents: list[bytes], limit: int, window: int) -> None:
    whole, size = b"".join(documents), sum(map(len, documents))
    pieces = list(some_bytes(documents, size, limit_bytes=limit, window_bytes=window))
    assert sum(map(len, pieces)) == min(limit, size)
    place = 0
    for piece in pieces:  # in order, not overlapping, each from one document
        place = whole.index(piece, place) + len(piece)
        assert any(piece in document for document in documents)


def test_some_bytes_are_spread_and_go_on_in_the_next_documents_where_one_ends() -> None:
    notes = [f"note {number:04}\n".encode() for number in range(1000)]
    pieces = list(some_bytes(notes, 10_000, limit_bytes=800, window_bytes=10))
    assert b"".join(pieces).count(b"note") == 80
    firsts = sorted({int(piece[5:9]) // 100 for piece in pieces if len(piece) == 10})
    assert firsts == list(range(10))


def test_a_place_at_the_end_of_a_document_is_given_all_the_same() -> None:
    pieces = list(some_bytes([b"abc", bytes(range(100, 200))], 103, limit_bytes=51, window_bytes=4))
    assert list(map(len, pieces)) == [3, 48]
