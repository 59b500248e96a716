"""A file of results while it grows: all that is known is given at once, once, in the order that was asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubatch_runner import content as content_module
from gpubatch_runner.content import AbandonedError, Content
from gpubatch_runner.contract import Usage
from gpubatch_runner.journal import Destination, Header, Journal

OUTPUT, ERRORS = frozenset((Destination.OUTPUT,)), frozenset((Destination.ERRORS,))
HEADER = Header("run", "digest")


def add(journal: Journal, line: int, failed: bool = False) -> None:
    journal.append(Destination.ERRORS if failed else Destination.OUTPUT, line, b"%d" % line, Usage())


async def all_of(content: Content) -> list[int]:
    return [int(line) for line in b"".join([chunk async for chunk in content.chunks()]).splitlines()]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "POLL_SECONDS", 0.01)


@given(st.permutations(range(1, 40)), st.sets(st.integers(1, 39)), st.booleans(), st.integers(0, 39))
def test_each_record_is_given_once_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory, lines: list[int], failed: set[int], in_order: bool, early: int
) -> None:
    """Some of them are there when the reader comes, the others come while it reads; some lines get no record."""
    journal = Journal(tmp_path_factory.mktemp("content") / "journal", HEADER)

    async def scenario() -> list[int]:
        content = Content(journal, OUTPUT, in_order)
        for line in lines[:early]:
            add(journal, line, line in failed)
        reading = asyncio.create_task(all_of(content))
        await asyncio.sleep(0)
        for line in lines[early:30]:
            add(journal, line, line in failed)
            await asyncio.sleep(0)
        content.complete(lambda: iter([b"1000"]))
        found = await reading
        assert await all_of(content) == found, "read again from the start, it is the same"
        return found

    found = asyncio.run(scenario())
    journal.close()
    expected = [line for line in lines[: max(early, 30)] if line not in failed]
    assert found == [*(sorted(expected) if in_order else expected), 1000]


@pytest.mark.parametrize("in_order", [False, True])
async def test_what_is_known_is_given_before_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_order: bool
) -> None:
    monkeypatch.setattr(content_module, "CHUNK", 1)
    journal = Journal(tmp_path / "journal", HEADER)
    content = Content(journal, OUTPUT | ERRORS, in_order)
    chunks = content.chunks()
    add(journal, 1)
    assert await anext(chunks) == b"1\n"
    add(journal, 3)
    add(journal, 2, failed=True)
    assert [await anext(chunks), await anext(chunks)] == ([b"2\n", b"3\n"] if in_order else [b"3\n", b"2\n"])
    content.complete()
    assert [chunk async for chunk in chunks] == []
    journal.close()


async def test_a_reader_of_an_abandoned_file_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", HEADER)
    content = Content(journal, OUTPUT)
    reading = asyncio.create_task(all_of(content))
    await asyncio.sleep(0.02)
    content.abandon()
    with pytest.raises(AbandonedError):
        await reading
    journal.close()
