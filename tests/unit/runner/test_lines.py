"""Lines: the same whatever the chunks, and bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpubatch_runner.lines import split


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_lines_do_not_depend_on_where_chunks_end(chunks: list[bytes]) -> None:
    expected = b"".join(chunks).split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert list(split(chunks)) == list(enumerate(expected, start=1))


def test_a_long_line_is_cut_one_byte_above_the_limit_and_later_lines_are_whole() -> None:
    assert list(split([b"a" * 7, b"a" * 7 + b"\nbb\n"], limit=10)) == [(1, b"a" * 11), (2, b"bb")]
