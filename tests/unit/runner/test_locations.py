"""Locations: only URLs that a field takes, and never a file outside its volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import InputUnreadable, OutputNotWritable, RunnerError
from gpubatch_runner.locations import (
    CHECKPOINT_FIELD,
    ERRORS_FIELD,
    INPUT_FIELD,
    OUTPUT_FIELD,
    of_job,
    parse,
    run_token,
)
from unit.runner.jobs import Job


@pytest.mark.parametrize(
    ("url", "container", "path"),
    [
        ("s3://bucket/a/b c.jsonl", "bucket", "a/b c.jsonl"),
        ("s3://bucket/odd?name#1%20", "bucket", "odd?name#1%20"),
        ("gs://bucket/in.jsonl", "bucket", "in.jsonl"),
        ("az://container/a/in.jsonl", "container", "a/in.jsonl"),
        ("pvc://claim/dir/in.jsonl", "claim", "dir/in.jsonl"),
        ("configmap://name/requests.jsonl", "name", "requests.jsonl"),
        ("https://example.com/in.jsonl?X-Amz-Signature=abc", "example.com", "in.jsonl?X-Amz-Signature=abc"),
    ],
)
def test_an_input_may_be_any_of_these(url: str, container: str, path: str) -> None:
    location = parse(url, INPUT_FIELD, Environment())
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
        "gs://bucket",
        "/etc/passwd",
        "https://",
        "http://[::1",
        "http://host:port/",
        "",
    ],
)
def test_anything_else_is_refused_with_the_field(url: str) -> None:
    with pytest.raises(InputUnreadable, match=r"spec\.inference\.input\.url.*expected|no '/'"):
        parse(url, INPUT_FIELD, Environment())


@pytest.mark.parametrize("url", ["configmap://name/key", "file:///x"])
@pytest.mark.parametrize("field", [OUTPUT_FIELD, ERRORS_FIELD])
def test_outputs_go_to_storage_claims_or_urls_only(url: str, field: str) -> None:
    with pytest.raises(OutputNotWritable, match="expected a URL that begins with one of s3://, gs://, az://, pvc://"):
        parse(url, field, Environment())


def test_a_checkpoint_must_be_a_place_that_can_be_read_back() -> None:
    with pytest.raises(OutputNotWritable, match=r"spec\.inference\.checkpoint\.url.*expected"):
        parse("https://host/x", CHECKPOINT_FIELD, Environment())
    assert parse("gs://bucket/x", CHECKPOINT_FIELD, Environment()).is_place


def secret(folder: Path, url: str) -> Environment:
    (folder / "links").mkdir(exist_ok=True)
    (folder / "links" / "put").write_text(url)
    return Environment(secrets_dir=folder)


def test_a_url_from_a_secret_is_the_one_that_it_holds_now_and_is_shown_without_its_signature(tmp_path: Path) -> None:
    environment = secret(tmp_path, "https://store/out?X-Amz-Signature=old\n")
    location = parse("secret://links/put", OUTPUT_FIELD, environment)
    assert (location.url, location.shown) == ("https://store/out?X-Amz-Signature=old", "https://store/out")
    secret(tmp_path, "https://store/out?X-Amz-Signature=new")
    assert location.now(environment).url == "https://store/out?X-Amz-Signature=new"


@pytest.mark.parametrize("content", ["", "not a url with a password", "pvc://claim/x", "ftp://user:password@host/x"])
def test_a_secret_without_a_usable_url_is_told_without_its_content(tmp_path: Path, content: str) -> None:
    with pytest.raises(OutputNotWritable, match=r"spec\.inference\.output\.urlFrom.*expected") as told:
        parse("secret://links/put", OUTPUT_FIELD, secret(tmp_path, content))
    assert "password" not in str(told.value)


def test_an_absent_secret_is_told_with_its_name_and_key(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match=r"input\.urlFrom: the Secret 'links' has no key 'get'; create it"):
        parse("secret://links/get", INPUT_FIELD, Environment(secrets_dir=tmp_path))


def test_a_presigned_url_is_shown_without_its_signature() -> None:
    shown = parse("https://user:pw@example.com:8443/in.jsonl?X-Amz-Signature=secret", INPUT_FIELD, Environment()).shown
    assert shown == "https://example.com:8443/in.jsonl"


def test_a_link_out_of_the_claim_is_refused(tmp_path: Path) -> None:
    (tmp_path / "claims" / "data").mkdir(parents=True)
    (tmp_path / "claims" / "data" / "out").symlink_to("/etc")
    with pytest.raises(InputUnreadable, match="leads out of the claim"):
        parse("pvc://data/out/passwd", INPUT_FIELD, Environment()).file(Environment(claims_dir=tmp_path / "claims"))


def test_an_absent_claim_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputNotWritable, match="'data' is not mounted"):
        parse("pvc://data/x", OUTPUT_FIELD, Environment()).file(Environment(claims_dir=tmp_path))


@pytest.mark.parametrize(
    "changes",
    [{"errors": "pvc://data/out.jsonl"}, {"output": "pvc://data/in.jsonl"}, {"errors": "pvc://data/in.jsonl"}],
)
def test_no_file_of_a_job_may_overwrite_another(job: Job, changes: dict[str, str]) -> None:
    with pytest.raises(RunnerError, match="is also spec"):
        of_job(job.spec(**changes), job.environment)


def test_the_error_file_stands_beside_the_output_where_that_has_a_beside(job: Job) -> None:
    assert of_job(job.spec(errors=None), job.environment).errors.url == "pvc://data/out.jsonl.errors.jsonl"  # type: ignore[union-attr]
    assert of_job(job.spec(errors=None, output="https://host/put"), job.environment).errors is None


def test_a_runs_token_is_fit_for_names_and_tells_runs_apart() -> None:
    assert run_token("u-1/1").isalnum()
    assert run_token("u-1/1") != run_token("u-1/2")
