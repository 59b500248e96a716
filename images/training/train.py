"""A small training that loses nothing when it is stopped: it goes on from its last checkpoint.

Fits a network to a spiral of two classes. Environment:
    CHECKPOINTS     s3://BUCKET/PREFIX; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL beside it
    EPOCHS          how many (300)
    CHECKPOINT_EVERY  epochs between checkpoints (20)
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import signal
import sys
from pathlib import Path

import torch
from obstore.exceptions import NotFoundError
from obstore.store import S3Store

EPOCHS = int(os.environ.get("EPOCHS", "300"))
EVERY = int(os.environ.get("CHECKPOINT_EVERY", "20"))


def report(**progress: object) -> None:
    """Tell GPUBatch how far it is. Written beside and renamed, so that nobody reads half of it."""
    if file := os.environ.get("GPUBATCH_PROGRESS_FILE"):
        new = Path(f"{file}.new")
        new.write_text(json.dumps(progress))
        new.replace(file)


def spiral(points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two arms of so many points each: [2 * points, 2] coordinates and their classes."""
    t = torch.linspace(0.25, 3, points)
    arms = [torch.stack((t * torch.cos(4 * t + turn), t * torch.sin(4 * t + turn)), 1) for turn in (0, math.pi)]
    return torch.cat(arms), torch.arange(2).repeat_interleave(points)


def save(store: S3Store, name: str, state: dict[str, object]) -> None:
    """One PUT: an object is there whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    store.put(name, buffer.getvalue())


def main() -> int:
    """Train; 143 when it was told to stop."""
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stop.append(got))
    bucket, _, prefix = os.environ["CHECKPOINTS"].removeprefix("s3://").partition("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    store = S3Store(
        bucket,
        prefix=prefix,
        region=os.environ.get("AWS_REGION", "us-east-1"),
        **({"endpoint": endpoint} if endpoint else {}),
        client_options={"allow_http": True},
    )
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 128), torch.nn.Tanh(), torch.nn.Linear(128, 128), torch.nn.Tanh(), torch.nn.Linear(128, 2)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    begin, history = 0, []
    try:
        checkpoint = torch.load(io.BytesIO(bytes(store.get("checkpoint.pt").bytes())), weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        begin, history = checkpoint["epoch"], checkpoint["history"]
        print(f"resumed from the checkpoint after epoch {begin}")
    except (FileNotFoundError, NotFoundError):
        print("no checkpoint: from the start")
    history.append(begin)

    def checkpoint_after(epoch: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "history": history}
        save(store, "checkpoint.pt", state)

    inputs, classes = spiral(1000)
    loss = torch.tensor(math.nan)
    for epoch in range(begin + 1, EPOCHS + 1):
        for batch in torch.arange(len(inputs)).reshape(-1, 20).T:  # 20 batches, in the same order each epoch
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs[batch]), classes[batch])
            loss.backward()
            optimizer.step()
        report(completed=epoch, total=EPOCHS, stage="Training", metrics={"loss": round(loss.item(), 5)})
        if stop:
            checkpoint_after(epoch)
            print(f"told to stop: saved after epoch {epoch}")
            return 143
        if epoch % EVERY == 0:
            checkpoint_after(epoch)
            print(f"epoch {epoch}/{EPOCHS}  loss {loss.item():.5f}")
    with torch.no_grad():
        accuracy = (model(inputs).argmax(1) == classes).float().mean().item()
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    save(store, "model.pt", model.state_dict())
    result = {
        "epochs": EPOCHS,
        "accuracy": round(accuracy, 4),
        "startedAfter": history,  # the epoch after which each attempt began
        "weights": hashlib.sha256(weights).hexdigest(),
    }
    store.put("result.json", json.dumps(result).encode())
    report(completed=EPOCHS, total=EPOCHS, stage="Training", metrics={"accuracy": accuracy})
    print(f"done: accuracy {accuracy:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
