"""Which settings a task takes: their names, and the numbers that they may be."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from downstream.task import TaskError


def check_names(task: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises TaskError where a setting is not one of the task's; it gives the nearest one."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise TaskError(f"{task}: no setting {name!r}; {hint}")


@dataclass(frozen=True)
class Numbers:
    """The numbers that a setting takes, and how a message names them."""

    words: str
    fits: Callable[[float], bool]
    whole: bool = False

    def hold(self, value: Any) -> bool:
        """Whether ``value`` is one of them."""
        kinds = int if self.whole else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and self.fits(value)


COUNT = Numbers("a whole number of at least 1", lambda v: v >= 1, whole=True)
FROM_0_WHOLE = Numbers("a whole number from 0 on", lambda v: v >= 0, whole=True)
FROM_0 = Numbers("a number from 0 on", lambda v: 0 <= v < math.inf)
POSITIVE = Numbers("a number above 0", lambda v: 0 < v < math.inf)
SHARE = Numbers("a share from 0 to 1", lambda v: 0 <= v <= 1)
BELOW_1 = Numbers("a share from 0 to below 1", lambda v: 0 <= v < 1)


def check_numbers(
    task: str, given: Mapping[str, Any], numbers: Mapping[Numbers, Collection[str]], several: Collection[str] = (),
    optional: Collection[str] = (),
) -> None:
    """Whether settings are the numbers that they should be; those that are not given are not looked at.

    Args:
        numbers: names of settings by what they take.
        several: settings that may be lists of one number or more.
        optional: settings that may be None.

    Raises:
        TaskError: one is not.
    """
    for wanted, names in numbers.items():
        for name in filter(given.__contains__, names):
            value = given[name]
            if value is None and name in optional:
                continue
            values = value if name in several and isinstance(value, (list, tuple)) else [value]
            if not values or not all(map(wanted.hold, values)):
                raise TaskError(f"{task}: {name} must be {wanted.words}, not {value!r}")
