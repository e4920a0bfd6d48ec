"""Output never ends what writes it."""

import errno
import io
import os

import pytest

from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.output import Unbreakable, unbreakable
from ray_rl.metrics.text import Sample, Status


class Broken(io.StringIO):
    """A stream whose every write fails."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error


ERRORS = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EBADF, "Bad file descriptor"),
    BlockingIOError(errno.EAGAIN, "write could not complete without blocking"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_a_console_without_a_reader_raises_nothing(error, is_terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Broken(error)
    stream.isatty = lambda: is_terminal
    console = RunConsole(stream)
    assert console.is_live == is_terminal
    console.watch(lambda: Status(1, "waiting", 3), steps=3, left_s=lambda: None)
    console.say("text")
    console.heartbeat(Status(1, "waiting", 3))
    console.step([("step", "1/3")])
    console.samples("step 1", [Sample("a", "b", "c", 1.0, {"number": 1.0})])
    console.summary("Done", [("reward", "1")], failed=False)
    console.close()


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_a_stream_drops_what_it_cannot_write(error):
    stream = Unbreakable(Broken(error))
    assert stream.write("text") == 4
    stream.writelines(["a", "b"])
    stream.flush()
    stream.finish()
    assert stream.has_lost_to_full_disk == (error.args[0] == errno.ENOSPC)


def test_a_stream_that_works_is_written_as_it_is_and_wrapped_once():
    inner = io.StringIO()
    stream = unbreakable(inner)
    stream.write("text\n")
    assert unbreakable(stream) is stream
    assert inner.getvalue() == "text\n"
    assert not stream.isatty()


def test_characters_that_the_encoding_lacks_are_escaped():
    inner = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream = Unbreakable(inner)
    stream.write("caf\u00e9 \U0001f600")
    stream.flush()
    assert inner.buffer.getvalue() == rb"caf\xe9 \U0001f600"


def test_the_descriptor_of_a_closed_pipe_leads_to_nowhere_from_then_on():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1) as file:
        stream = Unbreakable(file)
        os.close(reading)
        stream.write("lost\n")
        assert os.write(writing, b"a child would write on") == 22
