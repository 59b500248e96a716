"""The inspection: a broken job is told in seconds, with all that is wrong, and nothing is left behind."""

from __future__ import annotations

import gzip
import re

import pytest
import zstandard
from aiohttp import web

from gpubatch_runner.contract import Inspection, Reason
from gpubatch_runner.preflight import inspect
from unit.runner.jobs import Job, records, request


async def look(job: Job, **changes: object) -> Inspection:
    return await inspect(job.spec(attempt=0, **changes), job.environment)


async def test_requests_and_tokens_are_counted(job: Job) -> None:
    line = request(1)
    line["body"]["messages"] = [{"role": "user", "content": "x" * 400}]
    job.write([line, request(2), ""])
    verdict = await look(job)
    assert verdict.valid
    assert (verdict.requests, verdict.invalid) == (2, 0)
    assert (verdict.input_tokens, verdict.max_output_tokens) == (101, 32)


async def test_nothing_is_left_at_the_outputs(job: Job) -> None:
    job.write([request(1)])
    await look(job)
    assert [path.name for path in job.claim.iterdir()] == ["in.jsonl"]


async def test_bad_lines_are_skipped_where_the_job_says_so_and_told_anyway(job: Job) -> None:
    job.write([request(1), "{", request(1)])
    verdict = await look(job, invalid_requests="Skip")
    assert verdict.valid
    assert (verdict.requests, verdict.invalid) == (1, 2)
    assert [(error.line, error.code) for error in verdict.first_errors] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
    ]
    assert not job.errors.exists()


async def test_one_bad_line_fails_a_job_that_says_so_and_the_error_document_lists_all(job: Job) -> None:
    job.write([request(1), *["{"] * 40, request(2, method="GET")])
    verdict = await look(job, invalid_requests="Fail")
    assert not verdict.valid
    assert verdict.reason is Reason.INVALID_REQUESTS
    assert "41 of 42 lines" in verdict.message
    assert "line 2: invalid_json_line" in verdict.message
    assert verdict.errors == "pvc://data/errors.jsonl"
    found = records(job.errors)
    assert [record["error"]["line"] for record in found] == list(range(2, 43))
    assert found[-1]["custom_id"] == "r2"
    assert len(verdict.first_errors) == 10


async def test_no_valid_line_at_all_fails_even_where_bad_lines_are_skipped(job: Job) -> None:
    job.write(["{", "["])
    verdict = await look(job, invalid_requests="Skip")
    assert verdict.reason is Reason.INVALID_REQUESTS
    assert len(records(job.errors)) == 2


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
async def test_an_empty_input_fails(job: Job, content: bytes) -> None:
    (job.claim / "in.jsonl").write_bytes(content)
    verdict = await look(job)
    assert verdict.reason is Reason.INVALID_REQUESTS
    assert "empty" in verdict.message


async def test_more_requests_than_the_limit_fail_with_the_limit(job: Job) -> None:
    job.write([request(n) for n in range(11)])
    assert (await look(job, max_requests=11)).valid
    verdict = await look(job, max_requests=10)
    assert verdict.reason is Reason.TOO_MANY_REQUESTS
    assert "more than 10 requests" in verdict.message
    [record] = records(job.errors)
    assert record["error"]["code"] == "too_many_requests"


async def test_an_absent_input_is_told_with_its_field_and_in_the_error_document(job: Job) -> None:
    verdict = await look(job)
    assert verdict.reason is Reason.INPUT_NOT_FOUND
    assert verdict.message.startswith("spec.inference.input.url pvc://data/in.jsonl: no such file in this claim")
    [record] = records(job.errors)
    assert record["error"]["message"] == verdict.message


async def test_an_absent_claim_of_the_output_is_told_with_its_field(job: Job) -> None:
    job.write([request(1)])
    verdict = await look(job, output="pvc://other/out.jsonl")
    assert verdict.reason is Reason.OUTPUT_NOT_WRITABLE
    assert re.match(r"spec\.inference\.output\.url .*'other' is not mounted", verdict.message)


async def test_an_output_below_a_file_is_told(job: Job) -> None:
    job.write([request(1)])
    verdict = await look(job, output="pvc://data/in.jsonl/out.jsonl")
    assert verdict.reason is Reason.OUTPUT_NOT_WRITABLE


async def test_a_configmap_key_can_be_the_input(job: Job) -> None:
    job.write([request(1)])
    mount = job.environment.configmaps_dir / "small"
    (mount / "..2026").mkdir(parents=True)  # as the kubelet lays it out
    (mount / "..2026" / "requests").write_bytes((job.claim / "in.jsonl").read_bytes())
    (mount / "..data").symlink_to("..2026")
    (mount / "requests").symlink_to("..data/requests")
    assert (await look(job, input="configmap://small/requests")).requests == 1
    verdict = await look(job, input="configmap://small/other")
    assert verdict.reason is Reason.INPUT_NOT_FOUND
    assert "no such ConfigMap, or no such key in it" in verdict.message


class Site:
    """A web server whose answers a test chooses."""

    def __init__(self, handler: object) -> None:
        self._handler = handler

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_get("/in.jsonl", self._handler)  # type: ignore[arg-type]
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/in.jsonl"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


@pytest.mark.parametrize(
    ("status", "reason", "remedy"),
    [
        (404, Reason.INPUT_NOT_FOUND, "upload the input"),
        (403, Reason.ACCESS_DENIED, "expired"),
        (400, Reason.INPUT_UNREADABLE, "expected 200"),
    ],
)
async def test_what_a_web_server_refuses_is_told_without_the_signature(
    job: Job, status: int, reason: Reason, remedy: str
) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=status)

    async with Site(refuse) as url:
        verdict = await look(job, input=url + "?X-Amz-Signature=secret")
    assert verdict.reason is reason
    assert remedy in verdict.message
    assert "secret" not in verdict.message


async def test_a_download_that_is_cut_is_taken_up_where_it_was(job: Job) -> None:
    job.write([request(n) for n in range(2000)])
    data = (job.claim / "in.jsonl").read_bytes()
    ranges: list[str] = []

    async def cut(asked: web.Request) -> web.StreamResponse:
        ranges.append(asked.headers.get("Range", ""))
        begin = int(ranges[-1][6:-1] or 0) if ranges[-1] else 0
        rest = data[begin:]
        headers = {"ETag": '"v1"', "Content-Length": str(len(rest))}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if begin else 200, headers=headers)
        await response.prepare(asked)
        await response.write(rest[:100_000])
        if len(rest) > 100_000 and asked.transport:
            asked.transport.close()
        return response

    async with Site(cut) as url:
        verdict = await look(job, input=url)
    assert (verdict.requests, verdict.invalid) == (2000, 0)
    assert len(ranges) == len(data) // 100_000 + 1


async def test_a_download_that_changed_after_a_cut_is_not_patched_together(job: Job) -> None:
    job.write([request(n) for n in range(2000)])
    data = (job.claim / "in.jsonl").read_bytes()
    seen: list[str | None] = []

    async def change(asked: web.Request) -> web.StreamResponse:
        before, version = len(seen), f'"v{len(seen)}"'
        seen.append(asked.headers.get("If-Range"))
        response = web.StreamResponse(headers={"ETag": version, "Content-Length": str(len(data))})
        await response.prepare(asked)
        await response.write(data[before : before + 100_000])
        if asked.transport:
            asked.transport.close()
        return response

    async with Site(change) as url:
        verdict = await look(job, input=url)
    assert verdict.reason is Reason.INPUT_UNREADABLE
    assert "the file changed" in verdict.message
    assert seen == [None, '"v0"']


async def test_a_download_without_ranges_or_versions_survives_a_cut_too(job: Job) -> None:
    job.write([request(n) for n in range(2000)])
    data = (job.claim / "in.jsonl").read_bytes()
    sent = [100_000, 200_000, len(data)]

    async def cut(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(asked)
        await response.write(data[: sent.pop(0)])
        if sent and asked.transport:
            asked.transport.close()
        return response

    async with Site(cut) as url:
        verdict = await look(job, input=url)
    assert (verdict.requests, verdict.invalid) == (2000, 0)


@pytest.mark.parametrize("kind", ["gz", "zst"])
async def test_compressed_inputs_are_unpacked_by_their_suffix(job: Job, kind: str) -> None:
    job.write([request(n) for n in range(2000)])
    data = (job.claim / "in.jsonl").read_bytes()
    pack = gzip.compress if kind == "gz" else zstandard.ZstdCompressor().compress
    packed = pack(data[:100_000]) + pack(data[100_000:])  # as `cat a.gz b.gz` makes them
    (job.claim / f"in.jsonl.{kind}").write_bytes(packed)
    verdict = await look(job, input=f"pvc://data/in.jsonl.{kind}")
    assert (verdict.requests, verdict.invalid) == (2000, 0)

    (job.claim / f"in.jsonl.{kind}").write_bytes(packed[:-20])
    verdict = await look(job, input=f"pvc://data/in.jsonl.{kind}")
    assert verdict.reason is Reason.INPUT_UNREADABLE
    assert "ends too early" in verdict.message

    (job.claim / f"in.jsonl.{kind}").write_bytes(data)
    verdict = await look(job, input=f"pvc://data/in.jsonl.{kind}")
    assert verdict.reason is Reason.INPUT_UNREADABLE
    assert f"its name ends with .{kind}" in verdict.message


@pytest.mark.parametrize("kind", ["gz", "zst"])
async def test_an_input_that_unpacks_to_more_than_the_limit_is_refused_without_filling_the_memory(
    job: Job, kind: str
) -> None:
    pack = gzip.compress if kind == "gz" else zstandard.ZstdCompressor().compress
    (job.claim / f"bomb.{kind}").write_bytes(pack(bytes(300 * 1024 * 1024)))
    verdict = await look(job, input=f"pvc://data/bomb.{kind}")
    assert verdict.reason in (Reason.INPUT_TOO_LARGE, Reason.INPUT_UNREADABLE)


async def test_an_input_longer_than_the_limit_fails_with_the_limit(job: Job) -> None:
    job.write([request(n) for n in range(11)])
    size = (job.claim / "in.jsonl").stat().st_size
    assert (await look(job, max_input_bytes=size)).valid
    verdict = await look(job, max_input_bytes=size - 1)
    assert verdict.reason is Reason.INPUT_TOO_LARGE
    assert f"more than {size - 1} bytes" in verdict.message
