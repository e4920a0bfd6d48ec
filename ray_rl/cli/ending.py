"""Ends every command with an exit code, and one message for any exception that the command did not catch.

Apart from the supervisor of Ray's workers, this is the only place that catches everything. A traceback is for
developers: it goes to `logs/driver.log` of the run or to a temporary file, and to the terminal only on request.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shutil
import sys
import sysconfig
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from ray_rl.config.loading.redact import hide, secrets_of
from ray_rl.errors import FolderHeld, Preempted, RayRLError, UserError
from ray_rl.exit_codes import BAD_INPUT, CHECKPOINTED, FAILED, INTERRUPTED
from ray_rl.program import program
from ray_rl.sizes import MIB

LONGEST = 20_000
"""The most characters of a message; the log has the middle of a longer one."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FOREIGN = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def ended(arguments: argparse.Namespace, command: Callable[[argparse.Namespace], int]) -> int:
    """Runs a command and returns its exit code; prints one message if that is not 0.

    Args:
        arguments: the arguments of the command. Their file `log` gets the traceback, and their `secrets` are hidden.
        command: runs and returns an exit code.
    """
    with _threads_logged(arguments):
        try:
            return int(command(arguments))
        except Preempted as stopped:
            _say(arguments, f"ray-rl: {stopped}")
            return CHECKPOINTED
        except UserError as error:
            _say(arguments, f"ray-rl: error: {_with_notes(error)}")
            return BAD_INPUT
        except KeyboardInterrupt:
            _say(arguments, "ray-rl: interrupted")
            return INTERRUPTED
        except BaseException as error:
            return _failed(arguments, error)


def _failed(arguments: argparse.Namespace, error: BaseException) -> int:
    known = _first_of_ours(error)
    if known is not None and known is not error:
        return ended(arguments, lambda _: _raise(known))
    log = _logged(arguments, error)
    if isinstance(error, RayRLError):
        message = _with_notes(error)
    else:
        message = f"{_what(error)}{_where(error)}{_remedy(error)}; {log}"
    if os.environ.get("RAY_RL_TRACEBACK") == "1":
        _say(arguments, "".join(traceback.format_exception(error)).rstrip("\n"))
    else:
        _say(arguments, f"ray-rl: error: {message}")
    return FAILED


def _raise(error: BaseException) -> int:
    raise error


def _first_of_ours(error: BaseException) -> RayRLError | None:
    """Returns our own error from the exception group of a task group."""
    if isinstance(error, RayRLError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := _first_of_ours(each)) is not None), None)
    return None


def _what(error: BaseException) -> str:
    match error:
        case MemoryError():
            return "out of memory" + (f": {error}" if str(error) else "")
        case RecursionError():
            return "something is nested too deeply to be read"
        case SystemExit():
            return f"something that was imported or called ended the process (sys.exit({error.code!r}))"
        case OSError(strerror=str(reason), filename=str(name)):
            return f"{name}: {reason}"
        case OSError(strerror=str(reason)):
            return reason
        case _:
            text = _with_notes(error)
            return f"internal error: {type(error).__name__}{f': {text}' if text else ''}"


def _with_notes(error: BaseException) -> str:
    return "; ".join([str(error), *error.__notes__]) if "__notes__" in vars(error) else str(error)


def _where(error: BaseException) -> str:
    """Returns the file and line of the last frame that is neither Python's nor an installed library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_FOREIGN, "<"))]
    if (isinstance(error, OSError) and error.filename is not None) or not own:
        return ""
    return f" (at {own[-1].filename}:{own[-1].lineno}, in {own[-1].name})"


def _remedy(error: BaseException) -> str:
    match error:
        case OSError() if error.errno in _FULL:
            resumed = f"a run with a checkpoint is resumed by `{program()} resume`"
            return f"; make room{_room(error)}, then start again: {resumed}"
        case PermissionError():
            return "; check that you may read and write there"
        case FileNotFoundError() | NotADirectoryError() | IsADirectoryError():
            return "; check that it exists and is what its name says"
        case MemoryError():
            return "; free memory, or let the run use less (train.micro_batch_tokens, rollout.max_tokens, workers)"
        case RecursionError():
            return "; check whether the file or value in this message has too deeply nested lists"
        case _:
            return ""


def _room(error: OSError) -> str:
    there = next((path for path in Path(error.filename or ".").absolute().parents if path.is_dir()), Path("/"))
    return f" ({shutil.disk_usage(there).free / MIB:.1f} MiB are free at {there})"


def _logged(arguments: argparse.Namespace, error: BaseException) -> str:
    """Writes the traceback to a file and returns a text that names the file."""
    text = "".join(traceback.format_exception(error))
    entry = f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {_clean(arguments, text)}".encode(
        errors="backslashreplace"
    )
    log: Path | None = vars(arguments).get("log")
    try:
        if isinstance(error, FolderHeld):  # The log belongs to the other process.
            return ""
        if log is not None and log.parent.is_dir():
            with log.open("ab") as file:
                file.write(entry)
            return f"the traceback is in {log}"
        if isinstance(error, RayRLError):
            return ""
        descriptor, name = tempfile.mkstemp(prefix="ray-rl-", suffix=".log")
        with os.fdopen(descriptor, "wb") as file:
            file.write(entry)
    except OSError:
        return "there is no room for its traceback; RAY_RL_TRACEBACK=1 shows it"
    return f"the traceback is in {name}"


class _ToTheLog(logging.Handler):
    """Prints one line for each error that asyncio reports because it was never awaited, and logs the traceback."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(logging.WARNING)
        self._arguments = arguments

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one line."""
        error = record.exc_info[1] if record.exc_info else None
        first = record.getMessage().partition("\n")[0]
        what = "" if error is None else f": {_what(error)}; {_logged(self._arguments, error)}"
        _say(self._arguments, f"ray-rl: warning: {first}{what}")


@contextmanager
def _threads_logged(arguments: argparse.Namespace) -> Iterator[None]:
    """Prints one line for each uncaught exception in a thread or a task, and logs the traceback."""

    def thread(what: threading.ExceptHookArgs) -> None:
        if what.exc_value is not None and not isinstance(what.exc_value, SystemExit):
            name = what.thread.name if what.thread is not None else "a thread"
            _say(arguments, f"ray-rl: warning: {name}: {_what(what.exc_value)}; {_logged(arguments, what.exc_value)}")

    def escaped(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
        _say(arguments, f"ray-rl: error: {_what(error)}; {_logged(arguments, error)}")

    before = threading.excepthook, sys.excepthook
    logger, handler = logging.getLogger("asyncio"), _ToTheLog(arguments)
    logger.addHandler(handler)
    logger.propagate = False
    threading.excepthook = thread
    if os.environ.get("RAY_RL_TRACEBACK") != "1":
        sys.excepthook = escaped
    try:
        yield
    finally:
        threading.excepthook, sys.excepthook = before
        logger.removeHandler(handler)
        logger.propagate = True


def _say(arguments: argparse.Namespace, text: str) -> None:
    shown = _clean(arguments, text)
    if len(shown) > LONGEST:
        half = LONGEST // 2
        shown = f"{shown[:half]} ... ({len(shown) - LONGEST:,} characters left out) ... {shown[-half:]}"
    print(shown, file=sys.stderr)


def _clean(arguments: argparse.Namespace, text: str) -> str:
    """Hides values of variables like HF_TOKEN and options like api_key, which an exception of a library may quote.

    Searches only as much text as a message can show: an exception can quote a file of gigabytes.
    """
    if len(text) > 100 * LONGEST:
        text = f"{text[: 50 * LONGEST]} ... {text[-50 * LONGEST :]}"
    secrets: set[str] = vars(arguments).get("secrets", set())
    return hide(text, secrets | secrets_of(dict(os.environ)))
