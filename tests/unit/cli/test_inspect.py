"""`gpubatch inspect` on a laptop: all errors, each with line, custom_id, code and remedy."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gpubatch_cli.__main__ import main
from unit.runner.jobs import request


def written(folder: Path, lines: list[Any], name: str = "in.jsonl") -> str:
    file = folder / name
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
    file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return str(file)


def test_a_sound_file_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", written(tmp_path, [request(n) for n in range(1000, 1020)], "in.jsonl.gz")]) == 0
    out = capsys.readouterr().out
    assert "20 valid requests, 0 invalid lines" in out
    assert "20 prompt tokens (estimated from bytes)" in out


def test_all_errors_are_told_in_the_shape_of_openais_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [request(0), "{", *[request(n, method="GET") for n in range(1, 40)], request(99, body={"model": "other"})]
    assert main(["inspect", written(tmp_path, lines), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    errors = document["errors"]
    assert errors["object"] == "list"
    assert [error["line"] for error in errors["data"]] == list(range(2, 43))
    assert errors["data"][1] == {
        "line": 3,
        "custom_id": "r1",
        "code": "invalid_method",
        "message": 'method is "GET"; expected "POST": write that',
        "param": "method",
    }
    assert errors["data"][-1]["code"] == "model_mismatch", "a job serves one model, that of the first line"
    assert (document["requests"], document["invalid"], document["tokens_from"]) == (1, 41, "Bytes")


def test_people_see_the_first_errors_or_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, [request(0), *["{"] * 50])
    assert main(["inspect", file]) == 1
    out = capsys.readouterr().out
    assert out.count("invalid_json_line") == 20
    assert "and 30 more" in out
    main(["inspect", file, "--all"])
    assert capsys.readouterr().out.count("invalid_json_line") == 50


def test_the_model_and_the_limit_of_the_job_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, [request(n) for n in range(5)])
    assert main(["inspect", file, "--model", "tiny", "--max-requests", "5"]) == 0
    assert main(["inspect", file, "--model", "big"]) == 1
    assert main(["inspect", file, "--max-requests", "4"]) == 1
    assert "more than 4 requests" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "absent.jsonl")]) == 2
    assert "absent.jsonl" in capsys.readouterr().err
    broken = tmp_path / "in.jsonl.gz"
    broken.write_bytes(b"plain")
    assert main(["inspect", str(broken)]) == 2
    assert "not gzip" in capsys.readouterr().err
