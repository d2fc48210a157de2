"""Prompt lookup finds the last place with the longest ending, however the text grew."""

from hypothesis import given
from hypothesis import strategies as st

from bytelm.suffixes import LENGTHS, Match, SuffixIndex

_FEW_BYTES = st.binary(max_size=60).map(lambda data: bytes(byte % 2 for byte in data))


def _expected(data: bytes, drafted: bytes) -> Match | None:
    """The specification, by looking everywhere."""
    whole = data + drafted
    for length in reversed(LENGTHS):
        places = [place for place in range(length, len(data)) if data[place - length : place] == whole[-length:]]
        if len(whole) >= length and places:
            place, equal = places[-1], length
            while equal < min(64, place, len(whole)) and data[place - equal - 1] == whole[-equal - 1]:
                equal += 1
            return Match(place, equal)
    return None


@given(st.lists(_FEW_BYTES, max_size=4), _FEW_BYTES.map(lambda data: data[:9]))
def test_any_pieces_give_the_match_of_looking_everywhere(pieces: list[bytes], drafted: bytes) -> None:
    index = SuffixIndex()
    for piece in pieces:
        index.extend(piece)
    data = b"".join(pieces)
    assert len(index) == len(data)
    assert index.find(drafted) == _expected(data, drafted)
    assert SuffixIndex(data).find(drafted) == index.find(drafted)


def test_what_follows_the_end_repeats_what_came_before_it() -> None:
    index = SuffixIndex(b"0123abcabcabc")
    match = index.find()
    assert match is not None
    assert match == Match(10, 6)
    assert index.following(match.place, 8) == b"abcabcab"
    index, drafted = SuffixIndex(b"0123abcd0123ab"), b"cd"
    match = index.find(drafted)
    assert match is not None
    assert match == Match(8, 8)
    assert index.following(match.place, 12, drafted) == b"0123abcd0123"
    assert SuffixIndex(b"nothing twice").find() is None
    assert SuffixIndex().find(b"abcdef") is None
