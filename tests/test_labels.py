import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bytelm.labels import COMMON, NOT_UTF8, document_type, main_script, script_of, scripts, word_places


def test_places_in_words_count_bytes_from_the_first_one() -> None:
    assert word_places(b"").tolist() == []
    assert word_places(b"x1_ (longish)\n").tolist() == [1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 5, 5, 0, 0]
    assert word_places("é!".encode()).tolist() == [1, 2, 0]


@given(st.binary(max_size=60))
def test_places_in_words_are_those_of_counting(data: bytes) -> None:
    expected, place = [], 0
    for byte in data:
        place = place + 1 if byte >= 0x80 or chr(byte).isalnum() or byte == ord("_") else 0
        expected.append(min(place, 5))
    assert word_places(data).tolist() == expected


@given(st.text(max_size=30))
def test_every_byte_of_a_character_has_its_script(text: str) -> None:
    codes, names = scripts(text.encode())
    expected = [script_of(ord(character)) for character in text for _ in character.encode()]
    assert [names[code] for code in codes] == expected


@given(st.binary(max_size=30))
@example(b"\xe0\x80\x80 \xf0\x80\x80\x80")  # longer than they need to be
@example(b"\xed\xa0\x80 \xf4\x90\x80\x80 \xc1\x80")  # a surrogate, beyond the last character
def test_bytes_that_make_no_character_have_no_script(data: bytes) -> None:
    codes, names = scripts(data)
    expected: list[str] = []
    while len(expected) < len(data):
        rest = data[len(expected) :]
        for size in (1, 2, 3, 4):
            try:
                expected += [script_of(ord(rest[:size].decode()))] * len(rest[:size])
                break
            except UnicodeDecodeError:
                continue
        else:
            expected.append(NOT_UTF8)
    assert [names[code] for code in codes] == expected


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("The 3 of us!", "latin"),
        ("Всё это OK", "cyrillic"),
        ("静夜思", "han"),
        ("ひらがなとカタカナ", "kana"),
        ("한국어", "hangul"),
        ("हिन्दी", "devanagari"),
        ("12 + 34", COMMON),
        ("", COMMON),
    ],
)
def test_the_main_script_is_that_of_most_characters(text: str, script: str) -> None:
    assert main_script(text.encode()) == script
    assert document_type(text.encode(), "text", "prose") == f"text, {script}"
    assert document_type(text.encode(), "python", "code") == "python"


def test_a_character_without_a_name_has_a_script_all_the_same() -> None:
    assert unicodedata.category("\x00") == "Cc"
    assert script_of(0) == COMMON
    assert script_of(0xE000) == COMMON
