"""The journal: what was written is there after a crash, and nothing that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubatch_runner.contract import Usage
from gpubatch_runner.failures import InternalError
from gpubatch_runner.journal import Destination, Header, Journal, LineSet

HEADER = Header("run", "digest")
USAGE = Usage(input_tokens=1, output_tokens=2)


def filled(path: Path, lines: int) -> Journal:
    journal = Journal(path, HEADER)
    for line in range(1, lines + 1):
        journal.append(Destination.OUTPUT if line % 3 else Destination.ERRORS, line, b'{"n": %d}' % line, USAGE)
    return journal


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    filled(tmp_path / "journal", 7).close()
    journal = Journal(tmp_path / "journal", HEADER)
    assert [line for line in range(10) if line in journal.done] == [1, 2, 3, 4, 5, 6, 7]
    assert (journal.completed, journal.failed) == (5, 2)
    assert journal.usage == Usage(input_tokens=7, output_tokens=14)
    assert list(journal.records(Destination.ERRORS)) == [b'{"n": 3}', b'{"n": 6}']
    journal.close()


def test_a_record_is_on_its_way_to_the_disk_before_append_returns(tmp_path: Path) -> None:
    journal = filled(tmp_path / "journal", 3)
    assert (tmp_path / "journal").read_bytes().count(b"\n") == 4
    journal.close()


def test_a_torn_tail_is_dropped_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    filled(path, 3).close()
    whole = path.read_bytes()
    before_last = whole.rindex(b"\n", 0, -1) + 1
    for size in range(before_last, len(whole)):
        path.write_bytes(whole[:size])
        journal = Journal(path, HEADER)
        assert 2 in journal.done
        assert 3 not in journal.done
        journal.append(Destination.OUTPUT, 3, b'{"n": 33}', USAGE)
        journal.close()
        again = Journal(path, HEADER)
        assert list(again.records(Destination.OUTPUT)) == [b'{"n": 1}', b'{"n": 2}', b'{"n": 33}']
        again.close()


def test_zeros_left_by_a_power_cut_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    filled(path, 2).close()
    with path.open("ab") as file:
        file.write(bytes(100) + b"\n")
    journal = Journal(path, HEADER)
    assert (journal.completed, journal.failed) == (2, 0)
    journal.close()


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=7))
def test_a_flipped_bit_never_becomes_a_record(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    path = tmp_path_factory.mktemp("flip") / "journal"
    filled(path, 4).close()
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    journal = Journal(path, HEADER)
    kept = [*journal.records(Destination.OUTPUT), *journal.records(Destination.ERRORS)]
    journal.close()
    assert set(kept) <= {b'{"n": %d}' % line for line in range(1, 5)}


def test_a_line_has_one_record_only(tmp_path: Path) -> None:
    journal = filled(tmp_path / "journal", 1)
    journal.append(Destination.OUTPUT, 1, b"{}", USAGE)
    assert list(journal.records(Destination.OUTPUT)) == [b'{"n": 1}']
    journal.close()


@pytest.mark.parametrize("other", [Header("run-2", "digest"), Header("run", "other input")])
def test_the_journal_of_another_run_or_input_is_not_used(tmp_path: Path, other: Header) -> None:
    filled(tmp_path / "journal", 3).close()
    journal = Journal(tmp_path / "journal", other)
    assert journal.completed == 0
    assert list(journal.records(Destination.OUTPUT)) == []
    journal.close()


def test_a_full_volume_is_told_and_leaves_the_journal_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = filled(tmp_path / "journal", 1)
    write = __import__("os").write
    monkeypatch.setattr("gpubatch_runner.journal.os.write", lambda fd, data: write(fd, data[:9]))
    with pytest.raises(InternalError, match="ephemeral storage"):
        journal.append(Destination.OUTPUT, 2, b"{}", USAGE)
    monkeypatch.undo()
    journal.append(Destination.OUTPUT, 5, b'{"n": 5}', USAGE)
    assert list(journal.records(Destination.OUTPUT)) == [b'{"n": 1}', b'{"n": 5}']
    journal.close()


@given(st.lists(st.integers(min_value=1, max_value=100_000)))
def test_a_line_set_is_a_set(lines: list[int]) -> None:
    bits, plain = LineSet(), set[int]()
    for line in lines:
        assert bits.add(line) == (line not in plain)
        plain.add(line)
    assert all(line in bits for line in plain)
    assert 100_001 not in bits
