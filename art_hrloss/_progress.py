"""Long calls, step by step: a progress bar while they run, and what the finished steps found if they are stopped."""

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
    """The result of steps, each of which adds to it."""

    unfinished: tuple[str, ...] = ()  #: The steps that are missing, because the call was stopped before their end.

    @property
    def complete(self) -> bool:
        """True if every step has finished."""
        return not self.unfinished

    @property
    def robust(self) -> npt.NDArray[np.bool_]:
        """The examples that no finished step misclassified, shape ``(n,)``."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return str(self)  # the readable table: a dataclass's own form would print every pixel


Result = TypeVar("Result", bound=StepwiseResult)


def run_steps(
    result: Result, steps: Mapping[str, Callable[[Result], Mapping[str, Any]]], *, title: str, verbose: bool
) -> Result:
    """
    Run one step after another and return the result; hand it on with the exception that stops a step.

    The exception, KeyboardInterrupt above all, is raised again as it is, so that nothing around the call takes it for
    finished: an exception of another class would end a script with another status than an interrupted one's, by which
    a shell's loop would go on. Its attribute `partial_result` is the result of the steps before, and a note says so.

    :param result: What is known before the first step.
    :param steps: By name, functions of the result so far that return the fields they change.
    :param title: The name of the call.
    :param verbose: Whether to show a bar.
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
                # One assignment, so that a step counts as a whole or not at all wherever an interrupt falls.
                result = replace(result, unfinished=names[i + 1 :], **step(result))
                bar.update()
    except BaseException as error:
        done = len(names) - len(result.unfinished)
        where = f" in {result.unfinished[0]}" if result.unfinished else ""
        error.add_note(
            f"{title} was stopped{where} when {done} of its {len(names)} steps had finished. What they found is this "
            "exception's attribute partial_result: in a notebook, import sys and take sys.last_value.partial_result"
        )
        vars(error)["partial_result"] = result  # no class declares this attribute
        raise
    return result


# Without tqdm's estimate of the time left: one attack may take a thousand times as long as another.
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


@contextmanager
def _live(bar: Any) -> Iterator[None]:
    """Redraw a bar every second, from a thread: a step of many minutes would otherwise look dead."""
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
    """Raise unless `verbose` is True or False, as ART does."""
    if not isinstance(verbose, bool):
        raise ValueError(f"expected verbose to be True or False, but got {verbose!r}")


@contextmanager
def silenced(attacks: Iterable[object]) -> Iterator[None]:
    """Switch the attacks' own progress bars off, and restore their `verbose` afterwards."""
    loud: list[Any] = [part for attack in attacks for part in _parts(attack) if getattr(part, "verbose", False) is True]
    with restored(loud, "verbose"):
        for part in loud:
            part.verbose = False
        yield


def _parts(attack: object) -> Iterator[object]:
    """Yield an attack and those it consists of: ART's wrappers hold one, its AutoAttack a list."""
    yield attack
    several = getattr(attack, "attacks", ())
    for part in (getattr(attack, "_attack", None), *(several if isinstance(several, list | tuple) else ())):
        if part is not None:
            yield from _parts(part)
