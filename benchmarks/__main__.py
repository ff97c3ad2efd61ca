"""The entry, `python -m benchmarks`: it imports little, so that an interrupt meets its handler from the start."""

import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    from benchmarks.cli import main as command_line

    return command_line(argv)


def program() -> int:
    """Be a program that shows no traceback where a sentence will do; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # what a terminal's encoding lacks is shown as "?"
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    # Python's own handler raises an exception, which an import may swallow, wrap or show. In the background of a shell
    # without job control an interrupt is ignored, and stays so.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, end_at_once)
    try:
        try:
            status = main()
        except SystemExit as ended:
            status = ended.code  # type: ignore[assignment]
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # such as by `| head`; Python would try once more to write at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    return status


def end_at_once(*_: object) -> None:
    """End the process by an interrupt before there is anything to keep, or once all is kept."""
    os.write(2, b"Interrupted.\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(program())
