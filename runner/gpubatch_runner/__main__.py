"""`gpubatch-runner run | inspect`: reads the specification, does it, and leaves the verdict where the kubelet finds it.

Every verdict, good or bad, exits 0; only a defect exits otherwise, and the kubelet then starts the container again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from gpubatch_runner import live, logs
from gpubatch_runner.contract import SPEC_ENV, Inspection, Outcome, Reason, RunSpec
from gpubatch_runner.environment import Environment
from gpubatch_runner.failures import Stopped
from gpubatch_runner.preflight import inspect
from gpubatch_runner.run import run
from gpubatch_runner.stopping import Stop, unless
from gpubatch_runner.verdict import write_verdict

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `gpubatch-runner`."""
    parser = argparse.ArgumentParser(prog="gpubatch-runner", description=f"Reads its specification from ${SPEC_ENV}.")
    parser.add_argument("command", choices=("run", "inspect"), help="run the requests, or only inspect the input")
    command = parser.parse_args(arguments).command
    text = os.environ.get(SPEC_ENV)
    if not text:
        parser.error(f"the environment variable {SPEC_ENV} must hold the specification (JSON)")
    environment = Environment.load()
    try:
        spec = RunSpec.model_validate_json(text)
    except ValidationError as error:
        message = f"{SPEC_ENV} is not a specification that this runner knows; do operator and runner fit? {error}"
        write_verdict(_refused(command, message), environment.termination_log)
        return 0
    logs.configure(spec)
    try:
        verdict = asyncio.run(_stoppable(command, spec, environment))
    except Exception:
        log.exception("crashed")
        return 1
    write_verdict(verdict, environment.termination_log)
    log.info("ended", extra={"verdict": verdict.model_dump(mode="json", exclude_none=True)})
    return 0


def _refused(command: str, message: str) -> Outcome | Inspection:
    if command == "run":
        return Outcome(succeeded=False, reason=Reason.INTERNAL_ERROR, message=message)
    return Inspection(valid=False, reason=Reason.INTERNAL_ERROR, message=message)


async def _stoppable(command: str, spec: RunSpec, environment: Environment) -> Outcome | Inspection:
    terminated = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, terminated.set)
    if command == "run" and spec.live is not None:
        return await live.run(spec, spec.live, environment, terminated)
    if command == "run":
        return await run(spec, environment, terminated)
    stop = Stop(terminated)
    try:
        async with stop.watching():
            return await unless(stop, inspect(spec, environment))
    except Stopped as error:
        return Inspection(valid=False, reason=error.reason, message=str(error))


if __name__ == "__main__":
    status = main()
    # Everything is written. What the object store's own threads still hold may abort an interpreter that tidies up.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
