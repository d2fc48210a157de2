"""Filters: what documents have to be."""

import base64
import random
import zlib

import pytest

from bytelm.data.filters import DENSITY_LEAST_BYTES, DensityMeter, Filters
from bytelm.data.kinds import KINDS, group_of
from bytelm.errors import ConfigError


def test_sizes_are_limits_that_may_be_reached() -> None:
    filters = Filters(min_bytes=3, max_bytes=5)
    found = [filters.verdict(0, size) for size in range(2, 7)]
    assert found == ["too_small", None, None, None, "too_large"]
    assert Filters().verdict(0, 1) is None


@pytest.mark.parametrize(
    ("only", "inside", "outside"),
    [
        (("python",), {"python"}, {"c", "text", "binary"}),
        (("code",), {"python", "c", "rust"}, {"text", "html", "binary"}),
        (("text",), {"text", "python", "html", "json"}, {"binary", "png", "gzip"}),
        (("binary",), {"binary", "png", "gzip"}, {"text", "python"}),
        (("prose", "json"), {"text", "json"}, {"yaml", "python", "png"}),
    ],
)
def test_only_some_kinds_or_groups_pass(only: tuple[str, ...], inside: set[str], outside: set[str]) -> None:
    filters = Filters(only=only)
    passing = {KINDS[kind] for kind in range(len(KINDS)) if filters.verdict(kind, 1) is None}
    assert inside <= passing
    assert not outside & passing


def test_every_kind_is_either_text_or_binary() -> None:
    text, binary = Filters(only=("text",)), Filters(only=("binary",))
    for kind in range(len(KINDS)):
        assert (text.verdict(kind, 1) is None) != (binary.verdict(kind, 1) is None)
        assert (binary.verdict(kind, 1) is None) == (group_of(kind) == "binary")


def test_density_tells_what_is_packed_or_encrypted_from_text() -> None:
    chance = random.Random(1)
    words = [bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(300)]
    text = b" ".join(chance.choices(words, k=20_000))
    meter = DensityMeter()

    def bits(data: bytes, block: int = 1000) -> float:
        meter.start()
        for begin in range(0, len(data), block):
            meter.add(data[begin : begin + block])
        return meter.bits_per_byte()

    assert bits(text) < 4
    assert bits(zlib.compress(text)) > 7.9
    assert bits(chance.randbytes(100_000)) > 7.9
    assert 5.5 < bits(base64.encodebytes(chance.randbytes(100_000))) < 6.5
    assert bits(text, 7) == bits(text, 1 << 20), "the size of blocks must not matter"
    assert bits(chance.randbytes(DENSITY_LEAST_BYTES - 1)) == bits(b"") == 0


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"min_bytes": -1}, "min_bytes = -1"),
        ({"max_bytes": 0}, "max_bytes = 0"),
        ({"min_bytes": 5, "max_bytes": 4}, "min_bytes = 5, max_bytes = 4: no document can be that"),
        ({"max_bits_per_byte": 0}, "a number above 0, at most 8"),
        ({"max_bits_per_byte": 8.1}, "a number above 0, at most 8"),
        ({"max_bits_per_byte": float("nan")}, "a number above 0, at most 8"),
        ({"only": ("klingon",)}, r"only = 'klingon': no such kind or group; "),
    ],
)
def test_filters_that_nothing_can_pass_are_refused(limits: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Filters(**limits)  # pyright: ignore[reportArgumentType]
