"""Exit codes of the command and of the driver."""

DONE = 0
FAILED = 1
BAD_INPUT = 2
CHECKPOINTED = 75
"""The run is saved and should be restarted (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""Ctrl-C ended the command, as shells report it."""
