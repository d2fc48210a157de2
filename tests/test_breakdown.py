from collections import Counter

import pytest

from bytelm.breakdown import break_down
from bytelm.config import HeadFamily, RunConfig
from bytelm.errors import ConfigError, CorpusError
from bytelm.evaluate import bits_per_byte
from bytelm.labels import WORD_PLACES, scripts, word_places
from bytelm.model import ByteLM

DOCUMENTS = [
    (b"", "text, latin"),
    (b"def f(a_1):\n    return a_1\n" * 3, "python"),
    ("Grüße, 世界!\n".encode() * 4, "text, latin"),
    (bytes(range(256)), "binary"),
    ("слово и дело".encode(), "text, cyrillic"),
    (b"x", "python"),
]


def tiny_model(family: HeadFamily = "linear") -> ByteLM:
    config = RunConfig.build(
        "tiny",
        [
            "model.d_model=16",
            "model.layers=1",
            "model.attention_heads=2",
            "model.kv_heads=1",
            "model.d_ff=16",
            "heads.count=3",
            f"heads.family={family}",
        ],
    )
    return ByteLM(config.model, config.heads).eval()


@pytest.mark.parametrize("family", ["linear", "causal"])
@pytest.mark.parametrize(("context", "stride"), [(32, None), (10, 3), (400, 400)])
def test_the_whole_is_what_bits_per_byte_gives(family: HeadFamily, context: int, stride: int | None) -> None:
    model = tiny_model(family)
    expected = bits_per_byte(model, [data for data, _ in DOCUMENTS], context_bytes=context, stride=stride)
    found = break_down(model, DOCUMENTS, context_bytes=context, stride=stride)
    assert found.bits.by_head == pytest.approx(expected.by_head)
    assert found.bits.agreement_by_head == expected.agreement_by_head
    assert (found.bits.scored_bytes, found.bits.documents) == (expected.scored_bytes, expected.documents)
    assert found.bits.rule == expected.rule


def test_a_type_is_what_its_documents_give_alone() -> None:
    model = tiny_model()
    found = break_down(model, DOCUMENTS, context_bytes=32)
    assert list(found.by_type) == ["binary", "python", "text, latin", "text, cyrillic"]
    for name, part in found.by_type.items():
        alone = bits_per_byte(model, [data for data, kind in DOCUMENTS if kind == name], context_bytes=32)
        assert part.bytes == alone.scored_bytes
        assert part.bits_per_byte == pytest.approx(alone.by_head[0])
        assert part.survival_by_head == alone.agreement_by_head
        assert part.bytes_per_step == alone.bytes_per_step_estimate


def test_every_way_to_part_the_bytes_gives_them_all() -> None:
    found = break_down(tiny_model(), DOCUMENTS, context_bytes=24, stride=7)
    total = found.bits.scored_bytes * (found.bits.by_head[0] or 0.0)
    for parts in (found.by_type, found.by_word_place, found.by_script):
        assert sum(part.bytes for part in parts.values()) == found.bits.scored_bytes
        assert sum(part.bytes * part.bits_per_byte for part in parts.values()) == pytest.approx(total)
    assert list(found.by_word_place) == list(WORD_PLACES)
    assert found.by_script["han"].bytes == 4 * len("世界".encode())
    assert found.by_script["cyrillic"].bytes == 2 * len("словоидело")


@pytest.mark.parametrize("context", [1, 5, 300])
def test_a_byte_has_the_label_that_it_has_in_its_whole_document(context: int) -> None:
    documents = [*DOCUMENTS, (b"a" * 40 + b" \xff\xe4\xb8 bcdefgh", "binary")]
    found = break_down(tiny_model(), documents, context_bytes=context, stride=max(1, context // 2))
    words, written = Counter[str](), Counter[str]()
    for data, _ in documents:
        codes, names = scripts(data)
        words.update(WORD_PLACES[place] for place in word_places(data))
        written.update(names[code] for code in codes)
    assert {name: part.bytes for name, part in found.by_word_place.items()} == words
    assert {name: part.bytes for name, part in found.by_script.items()} == written


def test_many_documents_are_labelled_as_their_own() -> None:
    documents = [
        (bytes([65 + number % 3]) * (1 + number % 7), "odd" if number % 2 else "even") for number in range(3000)
    ]
    told: list[int] = []
    found = break_down(tiny_model(), documents, context_bytes=16, after_batch=told.append)
    for name, part in found.by_type.items():
        assert part.bytes == sum(len(data) for data, kind in documents if kind == name)
    assert sum(told) == found.bits.scored_bytes


def test_nothing_to_score_and_an_impossible_stride_say_so() -> None:
    with pytest.raises(CorpusError, match="no byte to score in 1 documents"):
        break_down(tiny_model(), [(b"", "text")], context_bytes=8)
    with pytest.raises(ConfigError, match="choose 1 … 8"):
        break_down(tiny_model(), DOCUMENTS, context_bytes=8, stride=9)
