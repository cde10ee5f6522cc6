"""The flags of a dry run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt
from tyro.constructors import PrimitiveConstructorSpec

from stylevar.bounds import check_bounds


def _numbers(words: list[str]) -> tuple[int, ...]:
    """Numbers separated by spaces, commas, or both. ValueError for an empty text: `--what-if "$N"` must not start a run."""
    numbers = [[int(number) for number in word.split(",") if number] for word in words]
    if not all(numbers):
        raise ValueError("an empty text is no number")
    return tuple(number for some in numbers for number in some)


_NUMBERS = PrimitiveConstructorSpec[tuple[int, ...]](
    nargs="*",
    metavar="INT [INT ...]",
    instance_from_str=_numbers,
    is_instance=lambda value: isinstance(value, tuple) and all(isinstance(number, int) for number in value),
    str_from_instance=lambda numbers: [str(number) for number in numbers],
)


@dataclass(frozen=True)
class PlanConfig:
    """What a dry run predicts, and for which device."""

    dry_run: bool = False
    """Print what the run will take (memory, FLOPs, step time, load of each role), then exit without starting anything."""
    what_if: Annotated[tuple[Annotated[int, Ge(1)], ...], _NUMBERS] = ()
    """Dry run: also predict a distributed step for each of these numbers of rollout workers (1 2 4 or 1,2,4)."""
    device_tflops: Annotated[float, Gt(0)] | None = None
    """Dry run: TFLOP/s that each actor's device sustains, instead of a short measurement on this machine."""
    device_memory_gb: Annotated[float, Gt(0)] | None = None
    """Dry run: memory of a device in GB (10^9 bytes), instead of this machine's."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def wanted(self) -> bool:
        """Whether the program should plan instead of run."""
        return self.dry_run or bool(self.what_if)
