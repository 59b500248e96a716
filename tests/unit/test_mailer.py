"""The example that sends e-mail: one mail for each signed webhook, and none is lost while the mail server is down."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiosmtpd.smtp import SMTP

from gpubatch_operator.notify import message

ROOT = Path(__file__).resolve().parents[2]
SECRET, OLD = (f"whsec_{base64.b64encode(letter * 32).decode()}" for letter in (b"k", b"o"))
META = {"namespace": "search", "name": "embeddings", "uid": "u-1"}
EVENT = {
    "sequence": 3,
    "event": "succeeded",
    "time": "2027-01-15T08:01:00Z",
    "phase": "Succeeded",
    "percent": 100,
    "counts": {"total": 3, "completed": 2, "failed": 1},
    "results": {"output": "s3://b/out.jsonl"},
}


class Mailbox:
    """A mail server's, which may be full."""

    def __init__(self) -> None:
        self.mails: list[Message] = []
        self.full = False

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 (aiosmtpd's name)
        if self.full:
            return "452 insufficient system storage"
        self.mails.append(message_from_bytes(envelope.content))
        return "250 OK"


class Mailer:
    """The example as a process of its own."""

    def __init__(self, port: int, mailbox: Mailbox) -> None:
        self.url, self.mailbox = f"http://127.0.0.1:{port}/", mailbox

    async def post(self, webhook_id: str = "msg_1", secret: str = SECRET, **event: Any) -> httpx.Response:
        body = message.payload(META, EVENT | event)
        return await self.send(body, message.headers(webhook_id, body, [secret]))

    async def send(self, body: bytes, headers: dict[str, str]) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            return await http.post(self.url, content=body, headers=headers)


@pytest.fixture
async def mailer() -> AsyncIterator[Mailer]:
    mailbox, loop = Mailbox(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(mailbox, loop=loop), "127.0.0.1", 0)
    env = {"WEBHOOK_SECRET": f"{SECRET},{OLD}", "PORT": "0", "MAIL_FROM": "a@example.com", "MAIL_TO": "b@example.com"}
    env |= {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(server.sockets[0].getsockname()[1]), "SMTP_TLS": "none"}
    command = [sys.executable, ROOT / "examples" / "webhooks" / "mailer.py"]
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout
        yield Mailer(int((await process.stdout.readline()).split()[-1]), mailbox)
    finally:
        process.kill()
        await process.communicate()
        server.close()


async def test_a_webhook_becomes_one_mail_however_often_it_comes(mailer: Mailer) -> None:
    assert [(await mailer.post()).status_code for _ in range(3)] == [204] * 3
    [mail] = mailer.mailbox.mails
    assert mail["Subject"] == "[gpubatch] search/embeddings succeeded"
    assert (mail["To"], mail["Message-ID"]) == ("b@example.com", "<msg_1@gpubatch>")
    text = str(mail.get_payload())
    assert "2 of 3 done, 1 failed." in text
    assert "Output: s3://b/out.jsonl" in text
    failed = {"event": "failed", "error": {"reason": "EngineFailed", "message": "out of memory"}, "counts": None}
    assert (await mailer.post("msg_2", OLD, **failed)).status_code == 204
    assert "EngineFailed: out of memory" in str(mailer.mailbox.mails[1].get_payload())


async def test_what_nobody_signed_is_refused_and_mails_nothing(mailer: Mailer) -> None:
    assert (await mailer.post(secret=base64.b64encode(b"guess" * 8).decode())).status_code == 401
    assert (await mailer.send(b"{}", {})).status_code == 401
    assert mailer.mailbox.mails == []


async def test_while_the_mail_server_takes_nothing_the_operator_is_asked_to_come_again(mailer: Mailer) -> None:
    mailer.mailbox.full = True
    refused = await mailer.post()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "60")
    mailer.mailbox.full = False
    assert (await mailer.post()).status_code == 204
    assert len(mailer.mailbox.mails) == 1
