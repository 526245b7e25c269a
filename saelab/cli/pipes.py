"""A reader who leaves early, as in `saelab --help | head -1`: no error, and not a word."""

import os
import select
import sys


def leave_if_unread() -> None:
    """After a BrokenPipeError: exit as a program that SIGPIPE ends, if it is standard output that nobody reads."""
    if sys.stdout is None or not _is_unread(sys.stdout.fileno()):
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at the end
    sys.exit(128 + 13)


def _is_unread(file: int) -> bool:
    if not hasattr(select, "poll"):
        return True  # Windows, where a pipe can't be asked
    poll = select.poll()
    poll.register(file, 0)
    return bool(poll.poll(0))  # answers with faults alone
