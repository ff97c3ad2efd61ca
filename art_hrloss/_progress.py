"""Long calls in steps: a progress bar, and the partial result of the finished steps if the call is interrupted."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from art_hrloss._context import restored


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class StepwiseResult:
    """Base of results that are computed in steps, each of which adds fields."""

    #: The names of the steps that have not finished, because the call was interrupted.
    unfinished: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True if every step has finished."""
        return not self.unfinished

    @property
    def robust(self) -> npt.NDArray[np.bool_]:
        """The examples without an adversarial example in any finished step, boolean of shape ``(n,)``."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return str(self)  # the table; the default repr of a dataclass would print every pixel


Result = TypeVar("Result", bound=StepwiseResult)


def run_steps(
    result: Result, steps: Mapping[str, Callable[[Result], Mapping[str, Any]]], *, title: str, verbose: bool
) -> Result:
    """
    Run the steps one after another and return the result; attach the partial result to an exception in a step.

    The exception, usually KeyboardInterrupt, is raised again unchanged. A different exception would give an interrupted
    script another exit status, and a loop in a shell would then continue. The attribute `partial_result` of the
    exception is the result of the finished steps, and a note on the exception says so.

    :param result: The result before the first step.
    :param steps: Functions by name. Each takes the result of the previous steps and returns the fields that it changes.
    :param title: The name of the call, for the progress bar.
    :param verbose: Whether to show a progress bar.
    """
    names = tuple(steps)
    result = replace(result, unfinished=names)
    try:
        bar = tqdm(total=len(names), desc=title, leave=False, disable=not verbose, bar_format=_FORMAT)
        with bar, _live(bar):
            for i, (name, step) in enumerate(steps.items()):
                if verbose:
                    robust = result.robust
                    bar.set_description_str(f"{title}: {name}", refresh=False)
                    bar.set_postfix_str(f"{robust.sum()} of {len(robust)} robust, accuracy {robust.mean():.3f}")
                # One assignment: wherever an interrupt happens, a step is either completely in the result or absent.
                result = replace(result, unfinished=names[i + 1 :], **step(result))
                bar.update()
    except BaseException as error:
        done = len(names) - len(result.unfinished)
        step_name = f" in {result.unfinished[0]}" if result.unfinished else ""
        error.add_note(
            f"{title} was interrupted{step_name}: {done} of {len(names)} steps have finished. Their result is the "
            "attribute partial_result of this exception. In a notebook: import sys, then sys.last_value.partial_result"
        )
        vars(error)["partial_result"] = result  # through vars, because mypy knows no exception with this attribute
        raise
    return result


# Without tqdm's estimate of the remaining time: the attacks of an ensemble take very different times.
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


@contextmanager
def _live(bar: Any) -> Iterator[None]:
    """Redraw a progress bar every second from a thread, so that its clock also runs during a step of many minutes."""
    if bar.disable:
        yield
        return
    end = threading.Event()

    def redraw() -> None:
        while not end.wait(1):
            bar.refresh()

    thread = threading.Thread(target=redraw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def check_verbose(verbose: Any) -> None:
    """Raise ValueError unless `verbose` is True or False, as ART does."""
    if not isinstance(verbose, bool):
        raise ValueError(f"expected verbose to be True or False, but got {verbose!r}")


@contextmanager
def silenced(attacks: Iterable[object]) -> Iterator[None]:
    """Set `verbose` of the attacks to False, so that they show no progress bars, and restore it afterwards."""
    verbose: list[Any] = [
        part for attack in attacks for part in _parts(attack) if getattr(part, "verbose", False) is True
    ]
    with restored(verbose, "verbose"):
        for part in verbose:
            part.verbose = False
        yield


def _parts(attack: object) -> Iterator[object]:
    """Yield an attack and the attacks inside it: ART's wrappers hold one attack, ART's AutoAttack holds a list."""
    yield attack
    members = getattr(attack, "attacks", ())
    for part in (getattr(attack, "_attack", None), *(members if isinstance(members, list | tuple) else ())):
        if part is not None:
            yield from _parts(part)
