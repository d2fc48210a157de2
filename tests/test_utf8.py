"""Streaming text equals one-shot decoding, whatever the chunks and whatever the bytes."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.errors import GenerationError
from bytelm.utf8 import InvalidBytes, TextDecoder, decode_text

# Random bytes rarely hold a long character: mix whole characters, their beginnings and lone bytes.
_PARTS = st.one_of(
    st.text(min_size=1, max_size=4).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(["é", "€", "𝄞", "\U0010ffff"]).map(lambda text: text.encode()[:-1]),
    st.binary(min_size=1, max_size=3),
)
_BYTES = st.lists(_PARTS, max_size=12).map(b"".join)


@st.composite
def _chunked(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    data = draw(_BYTES)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=len(data))))
    return data, [data[start:end] for start, end in itertools.pairwise([0, *cuts, len(data)])]


def _stream(chunks: list[bytes], invalid: InvalidBytes) -> str:
    decoder = TextDecoder(invalid)
    return "".join(decoder.feed(chunk) for chunk in chunks) + decoder.finish()


@given(_chunked())
def test_any_chunking_gives_the_text_of_decoding_at_once(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    assert _stream(chunks, "replace") == data.decode("utf-8", "replace")
    assert _stream(chunks, "escape") == data.decode("utf-8", "backslashreplace")


@given(_chunked())
def test_strict_gives_the_text_or_names_the_first_invalid_byte(case: tuple[bytes, list[bytes]]) -> None:
    data, chunks = case
    try:
        expected = data.decode("utf-8")
    except UnicodeDecodeError as error:
        with pytest.raises(GenerationError, match=rf"^byte {error.start} \(0x{data[error.start]:02x}\)"):
            _stream(chunks, "strict")
    else:
        assert _stream(chunks, "strict") == expected


def test_every_lead_with_every_next_byte_fed_singly_equals_decoding_at_once() -> None:
    for lead, following in itertools.product(range(0x80, 256), range(256)):
        for tail in (b"", b"\xbf\x80"):
            data = bytes([lead, following]) + tail
            chunks = [data[start : start + 1] for start in range(len(data))]
            assert _stream(chunks, "replace") == data.decode("utf-8", "replace")
            assert _stream(chunks, "escape") == data.decode("utf-8", "backslashreplace")


def test_a_character_of_four_bytes_appears_with_its_last_byte() -> None:
    decoder = TextDecoder()
    assert [decoder.feed(bytes([byte])) for byte in "a𝄞b".encode()] == ["a", "", "", "", "𝄞", "b"]


def test_an_unfinished_character_is_told_at_the_end_and_the_decoder_is_as_new() -> None:
    decoder = TextDecoder("escape")
    assert decoder.feed(b"ok\xf0\x9d") == "ok"
    assert decoder.finish() == "\\xf0\\x9d"
    assert decoder.feed(b"again") + decoder.finish() == "again"


def test_escape_tells_every_invalid_byte() -> None:
    assert decode_text(b"a\xffb\xe2\x82", "escape") == "a\\xffb\\xe2\\x82"


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(GenerationError, match="known: strict, replace, escape"):
        TextDecoder("ignore")  # pyright: ignore[reportArgumentType]  # the wrong value is the point
