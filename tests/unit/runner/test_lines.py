"""Lines: the same whatever the chunks, bounded, and found again where they were."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from gpubatch_runner.lines import LineSplitter, located


def split(chunks: list[bytes], limit: int = 100) -> list[bytes]:
    splitter = LineSplitter(limit)
    return [*(line for chunk in chunks for line in splitter.feed(chunk)), *splitter.finish()]


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_lines_do_not_depend_on_where_chunks_end(chunks: list[bytes]) -> None:
    expected = b"".join(chunks).split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert split(chunks, 10**6) == expected


def test_a_long_line_is_cut_one_byte_above_the_limit_and_later_lines_are_whole() -> None:
    assert split([b"a" * 7, b"a" * 7 + b"\nbb\n"], limit=10) == [b"a" * 11, b"bb"]


@given(st.lists(st.sampled_from([b"a", b"bcd", b"\n", b"\r\n", b"e" * 9]), max_size=30))
def test_lines_of_a_file_are_the_same_and_stand_where_it_is_said(parts: list[bytes]) -> None:
    content = b"".join(parts)
    found = list(located(io.BytesIO(content), limit=8))
    assert [line for _, _, line in found] == split([content], limit=8)
    assert [number for number, _, _ in found] == list(range(1, len(found) + 1))
    assert all(content[offset : offset + len(line)] == line for _, offset, line in found)
