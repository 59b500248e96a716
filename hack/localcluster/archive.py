"""A container image of one static program, written without a builder."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path


def single_file_image(program: Path, reference: str, target: Path) -> Path:
    """Write a docker-archive whose only layer is the program, which is also its entry point."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _add(tar, program.name, program.read_bytes(), mode=0o755)
    digest = f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"]},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        }
    )
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}])
    with tarfile.open(target, "w") as tar:
        _add(tar, "config.json", config.encode())
        _add(tar, "layer.tar", layer.getvalue())
        _add(tar, "manifest.json", manifest.encode())
    return target


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
