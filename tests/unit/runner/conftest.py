from __future__ import annotations

from pathlib import Path

import pytest

from unit.runner.jobs import Job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job with an empty claim."""
    job = Job(tmp_path)
    job.claim.mkdir(parents=True)
    return job
