"""Transcribe audio files and PUT the text to a presigned URL: `transcribe.py AUDIO...` (paths or http(s) URLs).

With the arguments that the operator gives to engines it is one: see serve.py.

Environment:
    RESULT_URL    presigned: receives one JSON document; when the job fails, the error, in the same place
    MODEL         folder of a faster-whisper model (/models/tiny.en)
    TIMEOUT_CONNECT, TIMEOUT_READ, TIMEOUT_WRITE, TIMEOUT_POOL   seconds (30, 120, 120, 10)
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import httpx
import serve
from faster_whisper import WhisperModel

ATTEMPTS = 3


def timeout() -> httpx.Timeout:
    """One for each thing that can hang, and no blunt one for all."""
    parts = {"connect": 30, "read": 120, "write": 120, "pool": 10}
    return httpx.Timeout(None, **{k: float(os.environ.get(f"TIMEOUT_{k.upper()}", v)) for k, v in parts.items()})


def report(**progress: object) -> None:
    """Tell GPUBatch how far it is."""
    if file := os.environ.get("GPUBATCH_PROGRESS_FILE"):
        new = Path(f"{file}.new")
        new.write_text(json.dumps(progress))
        new.replace(file)


def fetched(audio: str, client: httpx.Client, folder: Path) -> str:
    """The path of an audio file; a URL is downloaded."""
    if not audio.startswith(("http://", "https://")):
        return audio
    target = folder / "audio"
    with client.stream("GET", audio) as response, target.open("wb") as file:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            file.write(chunk)
    return str(target)


def upload(document: dict[str, object], client: httpx.Client) -> None:
    """PUT the document; broken connections and 5xx are tried again, a refusal isn't.

    Raises:
        RuntimeError: With all that the server said.
    """
    body = json.dumps(document).encode()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            response = client.put(os.environ["RESULT_URL"], content=body)
            if response.is_success:
                return
            problem = f"HTTP {response.status_code}: {response.text[:1000]}"
            if response.status_code < 500:
                raise RuntimeError(f"the result's URL refused the upload: {problem}")
        except httpx.HTTPError as error:
            problem = f"{type(error).__name__}: {error}"
        print(f"upload {attempt}/{ATTEMPTS} failed: {problem}", flush=True)
        if attempt < ATTEMPTS:
            time.sleep(2**attempt)
    raise RuntimeError(f"the result could not be uploaded: {problem}")


def transcribed(files: list[str], client: httpx.Client) -> dict[str, object]:
    """The text of each file."""
    report(stage="LoadingModel", completed=0, total=len(files))
    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    model = WhisperModel(
        os.environ.get("MODEL", "/models/tiny.en"), device="auto", compute_type="auto", cpu_threads=threads
    )
    texts = []
    with tempfile.TemporaryDirectory() as folder:
        for number, audio in enumerate(files):
            report(stage="Transcribing", completed=number, total=len(files), message=audio.partition("?")[0])
            segments, info = model.transcribe(fetched(audio, client, Path(folder)), language="en", beam_size=1)
            text = " ".join(segment.text.strip() for segment in segments)
            texts.append({"audio": audio.partition("?")[0], "seconds": round(info.duration, 2), "text": text})
            print(f"{audio.partition('?')[0]}: {text}")
    report(stage="Uploading", completed=len(files), total=len(files))
    return {"succeeded": True, "transcripts": texts}


def main(files: list[str]) -> int:
    """Transcribe and upload; 1 if that failed, and then the error is uploaded."""
    with httpx.Client(timeout=timeout()) as client:
        try:
            document = transcribed(files, client)
        except Exception as error:
            traceback.print_exc()
            document = {"succeeded": False, "error": f"{type(error).__name__}: {error}"}
        upload(document, client)
    return 0 if document["succeeded"] else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--model"]:  # so the operator starts an engine, by the image's entry point
        serve.main(sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
