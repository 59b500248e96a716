"""Locations: only URLs that a field takes, and never a file outside its volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import InputUnreadable, OutputNotWritable, RunnerError
from gpubatch_runner.locations import ERRORS_FIELD, INPUT_FIELD, OUTPUT_FIELD, of_job, parse, run_token
from unit.runner.jobs import Job


@pytest.mark.parametrize(
    ("url", "container", "path"),
    [
        ("s3://bucket/a/b c.jsonl", "bucket", "a/b c.jsonl"),
        ("s3://bucket/odd?name#1%20", "bucket", "odd?name#1%20"),
        ("pvc://claim/dir/in.jsonl", "claim", "dir/in.jsonl"),
        ("configmap://name/requests.jsonl", "name", "requests.jsonl"),
        ("https://example.com/in.jsonl?X-Amz-Signature=abc", "example.com", "in.jsonl?X-Amz-Signature=abc"),
    ],
)
def test_an_input_may_be_any_of_these(url: str, container: str, path: str) -> None:
    location = parse(url, INPUT_FIELD)
    assert (location.container, location.path) == (container, path)


@pytest.mark.parametrize(
    "url",
    [
        "pvc://claim/../../etc/passwd",
        "pvc://../claim/x",
        "pvc://claim/./x",
        "pvc://claim//x",
        "pvc://claim/x/",
        "pvc://claim",
        "pvc://claim/",
        "pvc:///x",
        "pvc://claim/x\0y",
        "configmap://../secrets/key",
        "configmap://name/dir/key",
        "s3://bucket/",
        "s3:///key",
        "file:///etc/passwd",
        "ftp://host/file",
        "/etc/passwd",
        "https://",
        "http://[::1",
        "http://host:port/",
        "",
    ],
)
def test_anything_else_is_refused_with_the_field(url: str) -> None:
    with pytest.raises(InputUnreadable, match=r"spec\.inference\.input\.url.*expected|no '/'"):
        parse(url, INPUT_FIELD)


@pytest.mark.parametrize("url", ["http://host/x", "configmap://name/key", "gs://bucket/x"])
@pytest.mark.parametrize("field", [OUTPUT_FIELD, ERRORS_FIELD])
def test_outputs_go_to_storage_or_claims_only(url: str, field: str) -> None:
    with pytest.raises(OutputNotWritable, match="expected a URL that begins with one of s3://, pvc://"):
        parse(url, field)


def test_a_presigned_url_is_shown_without_its_signature() -> None:
    shown = parse("https://user:pw@example.com:8443/in.jsonl?X-Amz-Signature=secret", INPUT_FIELD).shown
    assert shown == "https://example.com:8443/in.jsonl"


def test_a_link_out_of_the_claim_is_refused(tmp_path: Path) -> None:
    (tmp_path / "claims" / "data").mkdir(parents=True)
    (tmp_path / "claims" / "data" / "out").symlink_to("/etc")
    with pytest.raises(InputUnreadable, match="leads out of the claim"):
        parse("pvc://data/out/passwd", INPUT_FIELD).file(Environment(claims_dir=tmp_path / "claims"))


def test_an_absent_claim_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputNotWritable, match="'data' is not mounted"):
        parse("pvc://data/x", OUTPUT_FIELD).file(Environment(claims_dir=tmp_path))


@pytest.mark.parametrize(
    "changes",
    [{"errors": "pvc://data/out.jsonl"}, {"output": "pvc://data/in.jsonl"}, {"errors": "pvc://data/in.jsonl"}],
)
def test_no_file_of_a_job_may_overwrite_another(job: Job, changes: dict[str, str]) -> None:
    with pytest.raises(RunnerError, match="is also spec"):
        of_job(job.spec(**changes))


def test_a_runs_token_is_fit_for_names_and_tells_runs_apart() -> None:
    assert run_token("u-1/1").isalnum()
    assert run_token("u-1/1") != run_token("u-1/2")
