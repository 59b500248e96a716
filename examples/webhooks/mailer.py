"""Receives a job's webhooks, verifies them, and sends an e-mail for each.

It answers 204 only when the mail server has the mail; else the operator sends the webhook again. A webhook that comes
twice makes one mail: within this process by its id, and after a restart most mail servers go by the same Message-ID.

Needs Python and the library standardwebhooks. Everything else is in the environment:

    WEBHOOK_SECRET         whsec_...; while it is replaced the new and the old one, separated by a comma
    SMTP_HOST, SMTP_PORT   the mail server (port 587)
    SMTP_TLS               starttls (the default), tls or none
    SMTP_USER, SMTP_PASSWORD   if it wants them
    MAIL_FROM, MAIL_TO     addresses; several in MAIL_TO separated by commas
    PORT                   where to listen (8080)
"""

from __future__ import annotations

import collections
import http.server
import os
import smtplib
import ssl
import sys
from email.message import EmailMessage
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

SECRETS = [Webhook(secret.strip()) for secret in os.environ["WEBHOOK_SECRET"].split(",")]
MAX_BODY = 1 << 20
REMEMBERED = 10_000
SEEN: collections.OrderedDict[str, None] = collections.OrderedDict()
PATIENCE = 5  # seconds for the mail server; the operator waits for ten


def verified(body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """The event, if one of the secrets has signed it.

    Raises:
        WebhookVerificationError: None has, or it is older than five minutes.
    """
    for webhook in SECRETS:
        try:
            event: dict[str, Any] = webhook.verify(body, headers)
        except (WebhookVerificationError, ValueError):
            continue
        return event
    raise WebhookVerificationError("no secret of ours has signed it")


def mail(event: dict[str, Any], message_id: str) -> EmailMessage:
    """What people read."""
    data, what = event["data"], event["type"].removeprefix("gpubatchjob.")
    job, counts, results = data["job"], data["counts"] or {}, data["results"] or {}
    lines = [f"The job {job['name']} in namespace {job['namespace']}: {what}.", ""]
    if counts.get("completed") is not None:
        lines.append(f"{counts['completed']} of {counts.get('total')} done, {counts.get('failed') or 0} failed.")
    if data["percent"] is not None and what == "progress":
        lines.append(f"{data['percent']} %, expected to end at {data['estimatedCompletionTime'] or 'some time'}.")
    lines += [f"{name.capitalize()}: {results[name]}" for name in ("output", "errors") if results.get(name)]
    if data["error"]:
        lines.append(f"{data['error']['reason']}: {data['error']['message']}")
    out = EmailMessage()
    out["From"], out["To"] = os.environ["MAIL_FROM"], os.environ["MAIL_TO"]
    out["Subject"] = f"[gpubatch] {job['namespace']}/{job['name']} {what}"
    out["Message-ID"] = f"<{message_id}@gpubatch>"
    out.set_content("\n".join(lines))
    return out


def send(message: EmailMessage) -> None:
    """Give it to the mail server.

    Raises:
        OSError, smtplib.SMTPException: The server isn't there, or doesn't take it.
    """
    host, tls = os.environ["SMTP_HOST"], os.environ.get("SMTP_TLS", "starttls")
    port, context = int(os.environ.get("SMTP_PORT", "587")), ssl.create_default_context()
    server = (
        smtplib.SMTP_SSL(host, port, timeout=PATIENCE, context=context)
        if tls == "tls"
        else smtplib.SMTP(host, port, timeout=PATIENCE)
    )
    with server:
        if tls == "starttls":
            server.starttls(context=context)
        if user := os.environ.get("SMTP_USER"):
            server.login(user, os.environ["SMTP_PASSWORD"])
        server.send_message(message)


class Receiver(http.server.BaseHTTPRequestHandler):
    """POST anywhere: a webhook. GET anywhere: I am here."""

    timeout = 10

    def do_GET(self) -> None:
        self.answer(200)

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        if length > MAX_BODY:
            return self.answer(413)
        try:
            event = verified(self.rfile.read(length), dict(self.headers.items()))
        except WebhookVerificationError:
            return self.answer(401)
        message_id = self.headers["webhook-id"]
        if message_id not in SEEN:
            try:
                send(mail(event, message_id))
            except (OSError, smtplib.SMTPException) as e:
                print(f"{message_id}: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
                return self.answer(503, {"Retry-After": "60"})
            SEEN[message_id] = None
            if len(SEEN) > REMEMBERED:
                SEEN.popitem(last=False)
        return self.answer(204)

    def answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    address = ("", int(os.environ.get("PORT", "8080")))
    with http.server.ThreadingHTTPServer(address, Receiver) as server:
        print(f"listening on port {server.server_port}", flush=True)
        server.serve_forever()
