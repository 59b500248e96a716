"""What the pod gives the runner: mounts, port and termination log. Tests and laptops override each by environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpubatch_runner import contract


@dataclass(frozen=True)
class Environment:
    """The places of one runner container."""

    journal_dir: Path = Path(contract.JOURNAL_DIR)
    """`GPUBATCH_JOURNAL_DIR`: survives the container, not the pod."""

    claims_dir: Path = Path(contract.CLAIMS_DIR)
    """`GPUBATCH_CLAIMS_DIR`: parent of the mounted claims."""

    configmaps_dir: Path = Path(contract.CONFIGMAPS_DIR)
    """`GPUBATCH_CONFIGMAPS_DIR`: parent of the mounted ConfigMaps."""

    termination_log: Path = Path("/dev/termination-log")
    """`GPUBATCH_TERMINATION_LOG`: where the verdict is written."""

    secrets_dir: Path = Path(contract.SECRETS_DIR)
    """`GPUBATCH_SECRETS_DIR`: parent of the mounted Secrets that hold URLs."""

    credentials_dir: Path = Path(contract.CREDENTIALS_DIR)
    """`GPUBATCH_CREDENTIALS_DIR`: the mounted Secret of storage, a file for each variable."""

    pod_dir: Path = Path(contract.POD_DIR)
    """`GPUBATCH_POD_DIR`: what the operator says to the pod while it runs."""

    progress_port: int = contract.PROGRESS_PORT
    """`GPUBATCH_PROGRESS_PORT`: 0 takes any free port (the log names it)."""

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> Environment:
        """Reads the overrides from the process' environment."""
        default = cls()
        return cls(
            journal_dir=Path(environ.get("GPUBATCH_JOURNAL_DIR", default.journal_dir)),
            claims_dir=Path(environ.get("GPUBATCH_CLAIMS_DIR", default.claims_dir)),
            configmaps_dir=Path(environ.get("GPUBATCH_CONFIGMAPS_DIR", default.configmaps_dir)),
            termination_log=Path(environ.get("GPUBATCH_TERMINATION_LOG", default.termination_log)),
            secrets_dir=Path(environ.get("GPUBATCH_SECRETS_DIR", default.secrets_dir)),
            credentials_dir=Path(environ.get("GPUBATCH_CREDENTIALS_DIR", default.credentials_dir)),
            pod_dir=Path(environ.get("GPUBATCH_POD_DIR", default.pod_dir)),
            progress_port=int(environ.get("GPUBATCH_PROGRESS_PORT", default.progress_port)),
        )
