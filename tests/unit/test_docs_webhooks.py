"""The manual of webhooks: its messages have the shape of real ones, its programs run."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import runpy
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gpubatch_operator.api.crd import crd
from gpubatch_operator.api.spec import JobSpec
from gpubatch_operator.api.status import WebhookEvent
from gpubatch_operator.core.announcements import Event
from gpubatch_operator.notify import message
from unit.operator.schema import violations

JSON = dict[str, Any]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "webhooks.md").read_text()
SECRET = f"whsec_{base64.b64encode(b'k' * 32).decode()}"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


MESSAGES: list[JSON] = [json.loads(text) for text in blocks("json")]


def test_there_is_a_message_of_each_event_under_its_heading() -> None:
    headings = re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)
    assert [m["type"] for m in MESSAGES] == [f"gpubatchjob.{name}" for name in headings]
    assert set(headings) == {e.value for e in Event}


@pytest.mark.parametrize("example", MESSAGES, ids=lambda m: str(m["type"]))
def test_a_message_has_the_shape_of_a_real_one(example: JSON) -> None:
    data, event = example["data"], example["type"].removeprefix("gpubatchjob.")
    told = {k: v for k, v in data.items() if k != "job" and v is not None}
    picture = WebhookEvent.model_validate({"event": event, "time": example["timestamp"], **told})
    kept = picture.model_dump(by_alias=True, exclude_none=True, mode="json")
    assert json.loads(message.payload(data["job"], kept)) == example


def test_all_of_a_messages_fields_are_explained() -> None:
    table = PAGE.split("| Field of `data` | Meaning |")[1].split("\n\n")[0]
    names = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    explained = {name for cell in names for name in re.findall(r"`(\w+)`", cell)}
    assert explained == {"job", *message.TOLD}


@pytest.mark.parametrize("text", blocks("yaml"))
def test_the_manifests_are_valid_to_the_last_field(text: str) -> None:
    fields = yaml.safe_load(text)
    fields = {"spec": {"webhooks": [{"url": "https://x", **fields}]}} if "delivery" in fields else fields
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec = fields["spec"] if "template" in fields["spec"] else {"template": {"spec": {"containers": [{"name": "c"}]}}}
    JobSpec.model_validate({**spec, **fields["spec"]})
    assert violations(fields["spec"], schema, "spec") == []


def program(word: str) -> str:
    [text] = [text for text in blocks("python") if word in text]
    return text


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)


def transport(framework: str) -> httpx.AsyncBaseTransport | httpx.BaseTransport:
    """The manual's application, as its server would call it."""
    namespace: JSON = {"__name__": f"manual_{framework}"}
    module = type(sys)(namespace["__name__"])
    sys.modules[module.__name__] = module  # FastAPI looks annotations up
    exec(compile(program(f"from {framework} import"), framework, "exec"), module.__dict__)  # noqa: S102
    return httpx.WSGITransport(module.app) if framework == "flask" else httpx.ASGITransport(module.app)


def post(over: httpx.AsyncBaseTransport | httpx.BaseTransport, body: bytes, headers: dict[str, str]) -> int:
    url = "http://receiver/hooks/gpubatch"
    if isinstance(over, httpx.BaseTransport):
        with httpx.Client(transport=over) as http:
            return http.post(url, content=body, headers=headers).status_code

    async def ask() -> int:
        async with httpx.AsyncClient(transport=over) as http:
            return (await http.post(url, content=body, headers=headers)).status_code

    return asyncio.run(ask())


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("framework", ["flask", "fastapi"])
def test_the_manuals_receivers_take_what_is_signed_once_and_nothing_else(
    framework: str, capsys: pytest.CaptureFixture[str]
) -> None:
    over, example = transport(framework), MESSAGES[4]
    body = json.dumps(example).encode()
    headers = message.headers("msg_1", body, [SECRET])
    assert [post(over, body, headers) for _ in range(2)] == [204, 204]
    assert capsys.readouterr().out.count("gpubatchjob.succeeded embeddings") == 1
    rotated = message.headers("msg_2", body, [f"whsec_{base64.b64encode(b'n' * 32).decode()}", SECRET])
    assert post(over, body, rotated) == 204
    old = message.headers("msg_3", body, [SECRET], datetime.now(UTC) - timedelta(minutes=6))
    unsigned = message.headers("msg_4", body, [])
    for bad_body, bad in ((body + b" ", headers), (body, old), (body, unsigned)):
        assert post(over, bad_body, bad) == 401


@pytest.mark.usefixtures("secret")
def test_the_manuals_sender_sends_what_a_receiver_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "send.py"
    script.write_text(program("sys.argv"))
    with httpx.Client(transport=transport("flask")) as http:
        monkeypatch.setattr(httpx, "post", http.post)
        monkeypatch.setattr(sys, "argv", ["send.py", "http://receiver/hooks/gpubatch", "succeeded"])
        runpy.run_path(str(script), run_name="__main__")
    assert "204" in capsys.readouterr().out
