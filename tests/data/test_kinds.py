"""Kinds: a label for every document, from its name and its first bytes."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.data.kinds import GROUPS, KINDS, group_of, kind_of

LATIN1 = "/* André */\nint main(void) { return 0; }\n".encode("latin-1")


def kind(name: bytes, beginning: bytes = b"something\n") -> str:
    return KINDS[kind_of(name, beginning)]


def test_every_kind_has_one_name_and_one_group_and_a_byte_holds_its_index() -> None:
    assert KINDS[:2] == ("binary", "text")
    assert len(set(KINDS)) == len(KINDS) <= 256
    assert {group_of(index) for index in range(len(KINDS))} == set(GROUPS)
    assert group_of(0) == "binary"


def test_no_ending_and_no_whole_name_stands_for_two_kinds() -> None:
    from bytelm.data import kinds

    for column in (2, 3):
        words = collections.Counter(word for row in kinds._TABLE for word in row[column].split())
        assert [word for word, count in words.items() if count > 1] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a/main.c", "c"),
        (b"main.H", "c"),
        (b"a.b/Makefile", "make"),
        (b"a.py/README", "text"),
        (b"CMakeLists.txt", "cmake"),
        (b"x.pyi", "python"),
        (b"config.yaml", "yaml"),
        (b"notes.md", "markdown"),
        (b"\xff\xfe.rs", "rust"),
        (b"archive.tar.gz!/src/lib.go", "go"),
        (b"table.jsonl#17", "text"),
        (b"unheard.of", "text"),
        (b"nothing", "text"),
        (b".c", "c"),
        (b"", "text"),
    ],
)
def test_the_name_says_of_which_kind_a_text_is(name: bytes, expected: str) -> None:
    assert kind(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"main.c.gz", "c"),
        (b"Makefile.in", "make"),
        (b"a.py.in.zst", "python"),
        (b"README.xz", "text"),
        (b".gz", "text"),
    ],
)
def test_an_ending_of_what_was_unpacked_or_of_a_template_is_looked_through(name: bytes, expected: str) -> None:
    assert kind(name) == expected


@pytest.mark.parametrize(
    ("beginning", "expected"),
    [
        (b"#!/bin/sh\n", "shell"),
        (b"#! /usr/bin/env python3.11 -u\n", "python"),
        (b"#!/usr/bin/env -S node --flag\n", "javascript"),
        (b"#!/opt/none\n", "text"),
        (b"#!", "text"),
        (b"<?xml version='1.0'?>", "xml"),
        (b"<!DOCTYPE HTML>", "html"),
        (b"%PDF-1.7\n", "pdf"),
    ],
)
def test_the_beginning_speaks_where_the_name_is_silent(beginning: bytes, expected: str) -> None:
    assert kind(b"bin/tool", beginning) == expected


def test_a_name_is_not_believed_against_a_beginning_that_nothing_else_has() -> None:
    assert kind(b"translation.ts", b"<?xml version='1.0'?>") == "xml"
    assert kind(b"drawing.svg", b"<?xml version='1.0'?>") == "svg"
    assert kind(b"paper.txt", b"%PDF-1.4\n") == "pdf"
    assert kind(b"setup.py", b"#!/bin/sh\n") == "python"


def test_a_number_is_the_ending_of_a_manual_page_only_over_roff() -> None:
    assert kind(b"ls.1", b".TH LS 1\n") == "roff"
    assert kind(b"perl.3pm.gz", b"'\\\" t\n") == "roff"
    assert kind(b"notes.1", b"one\n") == "text"


@pytest.mark.parametrize(
    ("beginning", "expected"),
    [
        (b"\x7fELF\2\1\1\0", "elf"),
        (b"\x89PNG\r\n\x1a\n\0", "png"),
        (b"\xff\xd8\xff\xe0\0", "jpeg"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"RIFF\0\0\0\0WAVEfmt ", "wav"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "webp"),
        (b"RIFF\0\0\0\0AVI ", "binary"),
        (b"\0\0\0\x20ftypisom", "mp4"),
        (b"\0" * 257 + b"ustar\0", "tar"),
        (b"\xca\xfe\xba\xbe\0\0\0\x34", "java-class"),
        (b"\xca\xfe\xba\xbe\0\0\0\2", "mach-o"),
        (b"SQLite format 3\0", "sqlite"),
        (b"PAR1\0", "parquet"),
        (b"\0", "binary"),
        (b"\0\1\2\3", "binary"),
    ],
)
def test_the_first_bytes_say_of_which_kind_a_binary_is(beginning: bytes, expected: str) -> None:
    assert kind(b"whatever.c", beginning) == expected


def test_the_name_says_it_where_a_binary_has_no_first_bytes_of_its_own() -> None:
    assert kind(b"module.cpython-311.pyc", b"\xa7\r\r\n\0\0\0\0") == "python-bytecode"
    assert kind(b"a.ttf", b"\0\1\0\0\0") == "font"


def test_text_in_an_8_bit_encoding_is_text_if_its_name_says_so() -> None:
    assert kind(b"main.c", LATIN1) == "c"
    assert kind(b"main", LATIN1) == "binary"
    assert kind(b"main.c", LATIN1 + b"\0") == "binary"


@settings(deadline=None)
@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=50), st.integers(0, 3))
def test_text_is_text_wherever_the_sniffing_stops(text: str, lead: int) -> None:
    document = b"x" * ((8 << 10) - lead) + text.encode()
    assert kind(b"", document) == "text"


@pytest.mark.parametrize("content", [b"a\0b", b"\xff\xfe", b"abc\xc3", b"\x80"])
def test_what_is_no_utf8_or_holds_a_zero_is_binary(content: bytes) -> None:
    assert kind(b"", content) == "binary"


@settings(deadline=None)
@given(st.binary(max_size=20), st.binary(max_size=300) | st.sampled_from([b"RIFF", b"\xca\xfe\xba\xbe\0\0\0", b"#!"]))
def test_every_name_and_beginning_has_a_kind(name: bytes, beginning: bytes) -> None:
    assert 0 <= kind_of(name, beginning) < len(KINDS)
