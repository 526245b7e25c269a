"""A reader who leaves early, as in `saelab --help | head -1`: no error, and not a word."""

import os
import select
import sys


def leave_if_unread() -> None:
    """After a BrokenPipeError: exit as a program that SIGPIPE ends, if it is standard output that nobody reads."""
    try:
        file = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # none, one of somebody's own, or closed
        return
    if _is_unread(file):
        os.dup2(os.open(os.devnull, os.O_WRONLY), file)  # for what Python flushes at the end
        sys.exit(128 + 13)


def _is_unread(file: int) -> bool:
    if not hasattr(select, "poll"):  # Windows, where a pipe can't be asked
        return False
    poll = select.poll()
    poll.register(file, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
