"""Files over HTTP: whole or not at all, in their namespace only, whatever clients do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gpubatch_gateway import names
from gpubatch_gateway.batch.files import File
from gpubatch_gateway.batch.storage import Files
from gpubatch_gateway.objects import Objects, refused
from gpubatch_gateway.settings import Settings
from gpubatch_runner.environment import Environment
from unit.gateway.fake import Site, raw, request, serving

TRICKS = [
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\x",
    "a/../../b",
    "..",
    ".",
    "",
    "ä" * 300,
    "a#1",
    "%2e%2e",
    "x" * 4000,
]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path, max_file_bytes=20_000_000, body_seconds=30) as site:
        yield site


async def test_a_file_is_uploaded_seen_read_and_deleted(site: Site) -> None:
    data = b"".join(request(n) for n in range(100))
    status, file = await site.upload(data, "requests.jsonl")
    assert status == 200
    assert (file["object"], file["bytes"], file["filename"], file["purpose"]) == (
        "file",
        len(data),
        "requests.jsonl",
        "batch",
    )
    assert await site.ask("GET", f"/v1/files/{file['id']}") == (200, file)
    assert (await site.ask("GET", "/v1/files"))[1]["data"] == [file]
    url = f"http://127.0.0.1:{site.port}/v1/files/{file['id']}/content"
    async with site.http.get(url, headers=site.headers()) as answer:
        assert await answer.read() == data
        assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''requests.jsonl"
    deleted = {"id": file["id"], "object": "file", "deleted": True}
    assert await site.ask("DELETE", f"/v1/files/{file['id']}") == (200, deleted)
    assert (await site.ask("GET", f"/v1/files/{file['id']}"))[0] == 404
    assert site.stored() == []


@pytest.mark.parametrize("size", [1, 8 * 2**20, 8 * 2**20 + 1, 19_000_000])
async def test_what_is_read_is_what_was_sent(site: Site, size: int) -> None:
    data = (b"0123456789abcdef\r\n--" * (size // 20 + 1))[:size]
    file = await site.uploaded(data)
    async with site.http.get(f"http://127.0.0.1:{site.port}/v1/files/{file}/content", headers=site.headers()) as answer:
        assert await answer.read() == data


@pytest.mark.parametrize(
    ("asked", "status", "found"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=4-", 206, b"456789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=8-100", 206, b"89"),
        ("bytes=-100", 206, b"0123456789"),
        ("bytes=0-1,4-5", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
        ("bytes=3-1", 200, b"0123456789"),
    ],
)
async def test_a_range_of_a_file(site: Site, asked: str, status: int, found: bytes) -> None:
    file = await site.uploaded(b"0123456789")
    url = f"http://127.0.0.1:{site.port}/v1/files/{file}/content"
    async with site.http.get(url, headers=site.headers(Range=asked)) as answer:
        assert (answer.status, await answer.read()) == (status, found)
        if status == 206:
            start = b"0123456789".index(found)
            assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(found) - 1}/10"
    changed = site.headers(Range="bytes=0-3") | {"If-Range": '"another"'}
    async with site.http.get(url, headers=changed) as answer:
        assert (answer.status, await answer.read()) == (200, b"0123456789")


async def test_a_range_behind_the_end_is_refused_with_the_size(site: Site) -> None:
    file = await site.uploaded(b"0123456789")
    url = f"http://127.0.0.1:{site.port}/v1/files/{file}/content"
    async with site.http.get(url, headers=site.headers(Range="bytes=10-")) as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */10")
        assert (await answer.json())["error"]["code"] == "invalid_range"


@pytest.mark.parametrize("name", TRICKS)
async def test_no_name_leads_out_of_the_namespaces_folder(site: Site, name: str) -> None:
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", b"x", filename=name)
    status, file = await site.ask("POST", "/v1/files", data=form)
    assert status == 200, file
    [path] = site.stored()
    assert path.startswith(f"gpubatch/search/files/{file['id']}/")
    assert "/" not in file["filename"]
    assert "\\" not in file["filename"]
    assert (await site.ask("GET", f"/v1/files/{file['id']}"))[1] == file


@pytest.mark.parametrize(
    "file_id", ["..%2f..%2fx", "file-" + "0" * 32, "file-..", "file-" + "0" * 32 + "-output", "a%00b", "x" * 3000]
)
async def test_unknown_ids_are_not_found(site: Site, file_id: str) -> None:
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"):
        status, body = await site.ask("GET", path)
        assert status == 404, body
        assert set(body["error"]) == {"message", "type", "param", "code"}


async def test_another_namespaces_file_is_not_there(tmp_path: Path) -> None:
    async with serving(tmp_path) as site:
        file = await site.uploaded()
        site.token = "train"
        for method, path in (
            ("GET", f"/v1/files/{file}"),
            ("GET", f"/v1/files/{file}/content"),
            ("DELETE", f"/v1/files/{file}"),
        ):
            assert (await site.ask(method, path))[0] == 404
        assert (await site.ask("GET", "/v1/files"))[1]["data"] == []
        status, body = await site.create(file)
        assert (status, body["error"]["code"]) == (403, "namespace_not_served")


async def test_results_are_files_and_what_the_runner_keeps_beside_them_is_none(site: Site) -> None:
    batch = "0" * 31 + "7"
    folder = site.root / "gpubatch" / "search" / "batches" / batch
    folder.mkdir(parents=True)
    for name in ("output.jsonl", "errors.jsonl", "output.jsonl.abc-a1.staged", "output.jsonl.abc.manifest.json"):
        (folder / name).write_bytes(b"{}\n")
    _, found = await site.ask("GET", "/v1/files?purpose=batch_output&order=asc")
    assert {f["id"] for f in found["data"]} == {f"file-{batch}-output", f"file-{batch}-errors"}
    status, file = await site.ask("GET", f"/v1/files/file-{batch}-output")
    assert (status, file["filename"], file["bytes"]) == (200, f"batch_{batch}_output.jsonl", 3)


async def test_a_list_goes_on_where_the_page_before_ended_even_if_that_file_is_gone(site: Site) -> None:
    ids = [await site.uploaded() for _ in range(5)]
    _, first = await site.ask("GET", "/v1/files?limit=2&order=asc")
    assert ([f["id"] for f in first["data"]], first["has_more"], first["last_id"]) == (ids[:2], True, ids[1])
    await site.ask("DELETE", f"/v1/files/{ids[1]}")
    _, rest = await site.ask("GET", f"/v1/files?limit=5&order=asc&after={ids[1]}")
    assert ([f["id"] for f in rest["data"]], rest["has_more"]) == (ids[2:], False)
    for query in ("limit=0", "limit=x", "limit=1e9", "order=up", "after=nonsense", "sort=1"):
        status, body = await site.ask("GET", f"/v1/files?{query}")
        assert (status, body["error"]["type"]) == (400, "invalid_request_error")


# --- what is no upload


BOUNDARY = "xyz"


def part(name: str, value: bytes, filename: str | None = None, more: str = "") -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    return (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n{more}\r\n'.encode() + value + b"\r\n"
    )


END = f"--{BOUNDARY}--\r\n".encode()
PURPOSE, FILE = part("purpose", b"batch"), part("file", b"{}\n" * 1000, "a")
BAD = {
    "no file": PURPOSE + END,
    "no purpose": FILE + END,
    "no purpose, big": part("file", b"x" * 9_000_000, "a") + END,
    "another purpose": part("purpose", b"fine-tune") + FILE + END,
    "another purpose behind": FILE + part("purpose", b"fine-tune") + END,
    "an unknown field behind": FILE + PURPOSE + part("expires_after[anchor]", b"created_at") + END,
    "two files": PURPOSE + FILE + FILE + END,
    "two purposes": PURPOSE + PURPOSE + FILE + END,
    "an empty file": PURPOSE + part("file", b"", "a") + END,
    "an endless field": part("purpose", b"x" * 5000) + FILE + END,
    "no name": b"--xyz\r\n\r\nhello\r\n" + END,
    "base64": PURPOSE + part("file", b"e30K", "a", "Content-Transfer-Encoding: base64\r\n") + END,
    "no end": PURPOSE + FILE,
    "no end, big": PURPOSE + part("file", b"x" * 9_000_000, "a"),
    "cut in the file": (PURPOSE + FILE)[:-1000],
    "cut in a head": PURPOSE + FILE[:20],
    "nothing": b"",
    "no form": b"{}",
    "endless heads": PURPOSE + b"--xyz\r\n" + b"A: b\r\n" * 5000,
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("chunked", [False, True])
async def test_what_is_no_upload_is_refused_and_leaves_nothing(site: Site, body: bytes, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 65536):
            yield body[at : at + 65536]

    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    status, answer = await site.ask("POST", "/v1/files", data=pieces() if chunked else body, headers=kind)
    assert 400 <= status < 500, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert site.stored() == []


async def test_fields_may_stand_before_or_behind_the_file(site: Site) -> None:
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    for body in (PURPOSE + FILE + END, FILE + PURPOSE + END):
        assert (await site.ask("POST", "/v1/files", data=body, headers=kind))[0] == 200


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "multipart/mixed; boundary=xyz", "text/x"])
async def test_another_content_type_is_refused(site: Site, kind: str) -> None:
    status, body = await site.ask("POST", "/v1/files", data=PURPOSE + FILE + END, headers={"Content-Type": kind})
    assert status in (400, 415)
    assert body["error"]["type"] == "invalid_request_error"


async def test_a_file_that_is_too_long_is_refused_told_or_not(site: Site) -> None:
    status, body = await site.upload(b"x" * 20_100_000)
    assert (status, body["error"]["code"]) == (413, "file_too_large")

    async def endless() -> AsyncIterator[bytes]:
        yield PURPOSE + FILE[:200]
        while True:
            yield b"x" * 1_000_000

    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    try:
        status, body = await site.ask("POST", "/v1/files", data=endless(), headers=kind)
        assert (status, body["error"]["code"]) == (413, "file_too_large")
    except aiohttp.ClientError:  # it went on sending to a connection that is closed
        pass
    assert site.stored() == []


HEAD = (
    "POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer search\r\n"
    f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {{}}\r\n\r\n"
)


async def test_a_client_that_goes_away_leaves_nothing(site: Site) -> None:
    body = PURPOSE + part("file", b"x" * 12_000_000, "a")
    for cut in (10, 200, 3000, 11_000_000):
        head = HEAD.format(len(body) + len(END)).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(head + body[:cut])
        await writer.drain()
        writer.transport.abort()
        del reader
    for _ in range(200):
        if not site.stored():
            break
        await asyncio.sleep(0.02)
    assert site.stored() == []
    assert await site.uploaded(), "it goes on serving"


async def test_a_length_that_is_wrong(site: Site) -> None:
    body = PURPOSE + FILE + END
    short = await raw(site.port, HEAD.format(len(body) - 100).encode() + body)
    assert b" 400 " in short.splitlines()[0]
    assert site.stored() == []
    nonsense = await raw(site.port, HEAD.format("-5").encode() + body)
    assert b" 400 " in nonsense.splitlines()[0]
    assert json.loads(nonsense.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"


async def test_who_sends_nothing_more_is_not_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path, body_seconds=0.3, min_upload_bytes_per_second=0) as site:
        body = PURPOSE + FILE
        for cut in (0, 40, len(body) - 5, len(body)):
            answer = await raw(site.port, HEAD.format(len(body) + len(END)).encode() + body[:cut])
            assert answer.startswith(b"HTTP/1.1 408"), answer[:200]
        assert site.stored() == []


async def test_who_sends_too_slowly_is_ended(tmp_path: Path) -> None:
    async with serving(tmp_path, body_seconds=0.5, min_upload_bytes_per_second=1_000_000) as site:

        async def slow() -> AsyncIterator[bytes]:
            yield PURPOSE + FILE[:200]
            while True:
                await asyncio.sleep(0.05)
                yield b"x" * 100

        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        status, body = await site.ask("POST", "/v1/files", data=slow(), headers=kind)
        assert (status, body["error"]["code"]) == (408, "upload_too_slow")


async def test_who_does_not_read_is_left(tmp_path: Path) -> None:
    async with serving(tmp_path, body_seconds=0.3, max_file_bytes=50_000_000) as site:
        file = await site.uploaded(b"x" * 40_000_000)
        head = f"GET /v1/files/{file}/content HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer search\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=1)
        writer.write(head.encode())
        await writer.drain()
        await asyncio.sleep(1.5)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(40_000_000)
        writer.close()


async def test_what_killed_uploads_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    claim = tmp_path / "claims" / "files" / "gpubatch"
    folder = claim / "search" / "files" / ("file-" + "0" * 32)
    folder.mkdir(parents=True)
    (folder / "YQ#1").write_bytes(b"half")
    (folder / "YQ").write_bytes(b"whole")
    files = Files(Objects(Settings(storage_url="pvc://files/gpubatch"), Environment(claims_dir=tmp_path / "claims")))
    await files.sweep(3600)
    assert (folder / "YQ#1").exists(), "it may be under way"
    await files.sweep(-1)
    assert [p.name for p in folder.iterdir()] == ["YQ"]
    (claim / "search" / "files" / "empty").mkdir()
    await files.sweep(3600)
    assert (folder.parent / "empty").exists(), "something may be put there"
    await files.sweep(-1)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    [file] = await files.all("search")
    assert file.named.filename == "a"


async def test_no_claim_no_answer_but_503(tmp_path: Path) -> None:
    async with serving(tmp_path, storage_url="pvc://absent/x") as site:
        status, body = await site.upload(b"x")
        assert (status, body["error"]["code"]) == (503, "storage_unavailable")
        assert "absent" not in json.dumps(body)


@pytest.mark.parametrize("text", ["a", "ä" * 90, "x.jsonl", "漢字", "a b'\"c"])
def test_names_survive_their_way_through_a_key(text: str) -> None:
    key = names.upload_key("ns", "file-" + "0" * 32, text)
    found = names.named(key)
    assert found is not None
    assert found.filename == text
    assert len(key.rpartition("/")[2]) <= 255


def test_other_keys_are_no_files() -> None:
    good: Any = names.upload_key("ns", "file-" + "0" * 32, "a")
    for key in (
        "ns/files/x/YQ",
        "ns/other/file-" + "0" * 32 + "/YQ",
        good + "/x",
        good + "!",
        "ns/batches/x/output.jsonl",
    ):
        assert names.named(key) is None


async def test_an_answer_that_breaks_off_in_the_store_breaks_off_at_the_client(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await site.uploaded(b"x" * 5_000_000)
    read = Files.read

    async def broken(self: Files, found: File, start: int, end: int) -> AsyncIterator[bytes]:
        async for chunk in read(self, found, start, end):
            yield chunk
            raise refused(OSError("the disk is gone"))

    monkeypatch.setattr(Files, "read", broken)
    async with site.http.get(f"http://127.0.0.1:{site.port}/v1/files/{file}/content", headers=site.headers()) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    assert (await site.ask("GET", "/v1/files"))[0] == 200
