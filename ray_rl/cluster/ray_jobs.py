"""Submits, follows and stops jobs of an existing Ray cluster, over Ray's own client."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from ray_rl.config.loading.redact import without_credentials
from ray_rl.errors import ClusterError, UserError
from ray_rl.launching.attempts import attempts_of
from ray_rl.launching.ray_job.entrypoint import DRIVER_CPUS, Submission

CONNECT_S = 10.0
"""Limit for the dashboard to accept a connection."""
ANSWER_S = 60.0
"""Limit for an answer to begin, between its parts, and for the silence of a cluster whose job is followed."""
POLL_S = 1.0
LAST_LINES_S = 10.0
"""Limit for the last output of a job to arrive after its end."""
RAY_STOP_WAIT_S = 3
"""Seconds after which Ray kills a stopped job that sets no other time."""
STOP_MARGIN_S = 30.0
"""Additional seconds after the time to save, in which Ray notices the end of the job."""
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that report every request."""


class _Client(JobSubmissionClient):
    """Ray's client with a limit for every request; Ray itself sets none."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        response = super()._do_request(method, endpoint, timeout=ANSWER_S, **options)
        if response.status_code == requests.codes.not_found and endpoint.startswith("/api/jobs/"):
            raise UserError(
                f"{without_credentials(self._address)}: {response.text.strip()}; `ray job list` names its jobs"
            )
        return response


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state of a job."""

    id: str
    state: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    code: int | None
    """Exit code of the driver; None while it runs, or if it was stopped or lost."""
    message: str
    """Ray's message, one line."""
    has_ended: bool

    def __str__(self) -> str:
        code = "" if self.code is None else f", exit code {self.code}"
        why = f" ({self.message})" if self.code is None and self.message else ""
        return f"{self.id}: {self.state}{code}{why}"


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str | None) -> None:
        """Connects to the dashboard; call `environment.use_token` first.

        Args:
            address: the address of the dashboard; None uses RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

        Raises:
            UserError: the address is missing or malformed, or the token is refused.
            ClusterError: nobody answers there, or it is not Ray.
        """
        self.address = _http_address(address)
        shown = without_credentials(self.address)
        # Ray prefers these two variables to the address that it is given.
        os.environ.pop("RAY_ADDRESS", None)
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        parts = urlsplit(self.address)
        assert parts.hostname is not None, "checked above"
        try:
            socket.create_connection((parts.hostname, _port(self.address)), timeout=CONNECT_S).close()
        except OSError as error:
            raise ClusterError(
                f"{shown}: nobody answers ({error}); is this the address of the dashboard of a running Ray "
                "cluster, and is its port, 8265 by default, open from here?"
            ) from error
        with self._explained():
            self._client = _Client(self.address)

    def attempts(self, run: str) -> tuple[int, str | None]:
        """Returns the number of the last attempt of a run, 0 without any, and the name of one that has not ended."""
        with self._explained():
            known = {job.submission_id: job for job in self._client.list_jobs() if job.submission_id is not None}
        numbers = attempts_of(run, known)
        open_jobs = [f"{run}-{number}" for number in numbers if not known[f"{run}-{number}"].status.is_terminal()]
        return (numbers[-1] if numbers else 0), (open_jobs[-1] if open_jobs else None)

    def submit(self, submission: Submission) -> str:
        """Packs and sends the current folder, starts the job, and returns its name.

        Raises:
            UserError: the folder is too large.
            ClusterError: the cluster refuses the job.
        """
        with self._explained():
            try:
                return self._client.submit_job(
                    entrypoint=submission.shell_line,
                    submission_id=submission.id,
                    runtime_env=submission.runtime_env,
                    metadata=dict(submission.metadata),
                    entrypoint_num_cpus=DRIVER_CPUS,
                )
            except ValueError as error:
                raise UserError(
                    f"the current folder cannot be sent to the cluster: {error}; list files that are not code in "
                    ".rayignore, and keep models and data where every node finds them"
                ) from None

    def status(self, job: str) -> Outcome:
        """Returns the state of a job.

        Raises:
            UserError: there is no such job.
        """
        info = self._details(job)
        message = (info.message or "").strip().partition("\n")[0]
        return Outcome(job, str(info.status), info.driver_exit_code, message, info.status.is_terminal())

    def logs(self, job: str) -> str:
        """Returns everything that a job has written so far."""
        with self._explained():
            return self._client.get_job_logs(job)

    def follow(self, job: str, show: Callable[[str], None]) -> Outcome:
        """Shows the output of a job until it has ended.

        Raises:
            UserError: there is no such job.
            ClusterError: the cluster was silent for longer than `ANSWER_S`; the job may still run.
        """
        return asyncio.run(self._follow(job, show))

    def stop(self, job: str) -> Outcome:
        """Asks a job to save and end, and waits for its end.

        Raises:
            UserError: there is no such job.
            ClusterError: it has not ended in time, although Ray kills it then.
        """
        if (before := self.status(job)).has_ended:
            return before
        with self._explained():
            self._client.stop_job(job)
        limit_s = self.stop_wait_s(job)[0] + STOP_MARGIN_S
        deadline_s = time.monotonic() + limit_s
        while not (now := self.status(job)).has_ended:
            if time.monotonic() > deadline_s:
                raise ClusterError(f"{job}: still {now.state} {limit_s:g} s after it was told to stop; see its logs")
            time.sleep(POLL_S)
        return now

    def stop_wait_s(self, job: str) -> tuple[int, bool]:
        """Returns the seconds that Ray gives a job to save before it kills it, and whether the job itself sets them.

        If it does not, its cluster may set another time in the environment of `ray start`; a client cannot see that.
        """
        given = ((self._details(job).runtime_env or {}).get("env_vars") or {}).get(_STOP_WAIT)
        return (int(given), True) if given is not None and given.isdecimal() else (RAY_STOP_WAIT_S, False)

    def _details(self, job: str) -> JobDetails:
        with self._explained():
            return self._client.get_job_info(job)

    async def _follow(self, job: str, show: Callable[[str], None]) -> Outcome:
        log = _Log(self._client, job, show)
        heard_s = time.monotonic()
        reading = asyncio.ensure_future(log.read())
        try:
            while True:
                await asyncio.wait({reading}, timeout=POLL_S)
                try:
                    outcome = await asyncio.to_thread(self.status, job)
                except ClusterError:
                    if time.monotonic() - heard_s > ANSWER_S:
                        raise
                    await asyncio.sleep(POLL_S)
                    continue
                heard_s = time.monotonic()
                if outcome.has_ended:
                    await asyncio.wait({reading}, timeout=LAST_LINES_S)
                    return outcome
                if reading.done():  # the connection was interrupted
                    await asyncio.sleep(POLL_S)
                    reading = asyncio.ensure_future(log.read())
        finally:
            reading.cancel()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises errors of Ray and of the network as ours."""
        shown = without_credentials(self.address)
        try:
            yield
        except AuthenticationError:
            raise UserError(
                f"{shown}: the cluster refuses the token; set launch.ray_job.token_path (or RAY_AUTH_TOKEN_PATH) to "
                "the file with the token that its head was started with"
            ) from None
        except requests.Timeout as error:
            raise ClusterError(f"{shown}: no answer within {ANSWER_S:g} s; look at the head of the cluster") from error
        except (OSError, KeyError, ValueError) as error:
            raise ClusterError(f"{shown}: does not answer as the dashboard of a Ray cluster does: {error}") from error
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise ClusterError(f"{shown}: the cluster refused: {last}") from error


class _Log:
    """The output of a job, each part shown once even if the connection was interrupted."""

    def __init__(self, client: JobSubmissionClient, job: str, show: Callable[[str], None]) -> None:
        self._client, self._job, self._show = client, job, show
        self._shown = 0

    async def read(self) -> None:
        """Reads from the start until the job or the connection ends."""
        # The next request for the status reports why the connection ended.
        with suppress(RuntimeError, OSError, aiohttp.ClientError):
            seen = 0
            async for piece in self._client.tail_job_logs(self._job):
                new = piece[max(0, self._shown - seen) :]
                seen += len(piece)
                if new:
                    self._shown = seen
                    self._show(new)


def _http_address(given: str | None) -> str:
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        raise UserError(
            "no Ray cluster is named: set launch.ray_job.address (or --address, or RAY_API_SERVER_ADDRESS) to the "
            "address of its dashboard, http://host:8265"
        )
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UserError(
            f"{without_credentials(address)}: not the address of a dashboard; set launch.ray_job.address (--address or "
            "RAY_API_SERVER_ADDRESS) to http://host:8265"
        )
    return address.rstrip("/")


def _port(address: str) -> int:
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        raise UserError(
            f"{without_credentials(address)}: the port is not a number up to 65535; an example is http://host:8265"
        ) from None
    return port or {"http": 80, "https": 443}[parts.scheme]
