"""Entry point of `python -m benchmarks`. It imports little, so that an interrupt is handled from the start."""

import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Execute the command line and return the exit status."""
    from benchmarks.cli import main as command_line

    return command_line(argv)


def program() -> int:
    """Execute the command line with the signal handling and the output of a program, and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # characters that the terminal's encoding does not have become "?"
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    # Python's default handler raises an exception, which an import may swallow, wrap or print. An interrupt that is
    # ignored from the start, as in the background of a shell without job control, stays ignored.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, exit_on_interrupt)
    try:
        try:
            status = main()
        except SystemExit as error:
            status = error.code  # type: ignore[assignment]
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does; Python would write again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    return status


def exit_on_interrupt(*_: object) -> None:
    """Exit immediately on an interrupt: before a command starts, or after it ends, there is nothing to store."""
    os.write(2, b"Interrupted.\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(program())
