"""An engine for transcriptions: OpenAI's `POST /v1/audio/transcriptions`, answered by faster-whisper.

    serve.py --model FOLDER --served-model-name NAME --host HOST --port PORT

Of a request's fields it knows `file`, `language`, `temperature` and `response_format` (json, text).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av.error
from faster_whisper import WhisperModel

PATH = "/v1/audio/transcriptions"


class Engine(ThreadingHTTPServer):
    """Listens once the model is loaded.

    Args:
        options: The command line's.
    """

    daemon_threads = True

    def __init__(self, options: argparse.Namespace) -> None:
        threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        self.model = WhisperModel(options.model, device="auto", compute_type="auto", cpu_threads=threads)
        self.name = options.served_model_name
        super().__init__((options.host, options.port), Handler)

    def text_of(self, form: dict[str, bytes]) -> str:
        """What is said in a form's file.

        Raises:
            ValueError: It can't be used; the message names the field.
        """
        if not form.get("file"):
            raise ValueError("file is missing or empty")
        language = form["language"].decode() if "language" in form else None
        try:
            temperature = float(form.get("temperature", b"0"))
            segments, _ = self.model.transcribe(
                io.BytesIO(form["file"]), language=language, temperature=temperature, beam_size=1
            )
            return " ".join(segment.text.strip() for segment in segments)
        except av.error.FFmpegError as error:
            raise ValueError(f"file is no audio that can be read: {error}") from None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Engine

    def do_GET(self) -> None:
        """Whether it is up, and what it serves."""
        if self.path == "/health":
            self._answer(200, b"", "text/plain")
        elif self.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": self.server.name, "object": "model"}]})
        else:
            self._error(404, f"there is no {self.path}")

    def do_POST(self) -> None:
        """Transcribe a file."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path != PATH:
            return self._error(404, f"there is no {self.path}")
        try:
            form = fields(self.headers, body)
            text = self.server.text_of(form)
        except ValueError as error:
            return self._error(400, str(error))
        if form.get("response_format") == b"text":
            return self._answer(200, f"{text}\n".encode(), "text/plain; charset=utf-8")
        return self._json(200, {"text": text})

    def _error(self, status: int, message: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self._json(status, {"error": error})

    def _json(self, status: int, document: object) -> None:
        self._answer(status, json.dumps(document).encode(), "application/json")

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Whether it is up is asked all the time; that is no news."""
        if self.path != "/health":
            super().log_request(code, size)  # type: ignore[arg-type]


def fields(headers: Message, body: bytes) -> dict[str, bytes]:
    """The fields of a form (RFC 7578).

    Raises:
        ValueError: It is none.
    """
    boundary = headers.get_param("boundary")
    if headers.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise ValueError("the body is no multipart/form-data")
    found = {}
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary.encode())[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        if name := re.search(rb'[; ]name="?([^";\r]*)', head):
            found[name[1].decode()] = value
    return found


def main(words: list[str]) -> None:
    """Serve, for ever."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    with Engine(parser.parse_args(words)) as engine:
        engine.serve_forever()
