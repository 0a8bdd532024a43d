"""Declared search spaces: what a parameter may be, when it is there, and how Optuna is asked for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

if TYPE_CHECKING:
    import optuna

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
Value = str | int | float
Values = dict[str, Value]
Location = tuple[str | int, ...]  # in a file
# Values that categorical parameters above must have for this one to be there.
When = dict[
    str,
    Annotated[
        tuple[Value, ...],
        Field(strict=False, min_length=1),
        BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value]),
    ],
]


class FloatRange(BaseModel):
    model_config = STRICT
    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: When = {}

    @model_validator(mode="after")
    def _is_a_range(self) -> FloatRange:
        _check_range(self.low, self.high, self.log, self.step)
        return self


class IntRange(BaseModel):
    model_config = STRICT
    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: int | None = None
    when: When = {}

    @model_validator(mode="after")
    def _is_a_range(self) -> IntRange:
        _check_range(self.low, self.high, self.log, self.step)
        return self


class Choice(BaseModel):
    model_config = STRICT
    type: Literal["categorical"]
    choices: tuple[Value, ...] = Field(min_length=2, strict=False)
    when: When = {}

    @model_validator(mode="after")
    def _differ(self) -> Choice:
        if len(set(self.choices)) != len(self.choices):
            raise ValueError("choices must differ from each other")
        return self


Range = FloatRange | IntRange | Choice
Space = dict[str, Range]
# As written: a plain value is fixed.
Parameter = Annotated[
    Annotated[Annotated[Range, Field(discriminator="type")], Tag("searched")] | Annotated[Value, Tag("fixed")],
    Discriminator(lambda value: "searched" if isinstance(value, dict | BaseModel) else "fixed"),
]


class SpaceWithBaselines(BaseModel):
    """Parameters, and configurations to run first: their values, or the path of a best.yaml."""

    model_config = STRICT
    preset: str | None = None  # whose parameters and baselines these are added to
    parameters: dict[str, Parameter] = {}
    baselines: dict[Annotated[str, Field(pattern=r"^\w[\w.-]{0,99}$")], Values | str] = {}
    first: dict[str, Values] = {}  # tried next, and treated like any other


class Preset(BaseModel):
    """What kinds of models have in common, and what they do not: token vectors alone want other learning rates."""

    model_config = STRICT
    static: dict[str, Parameter]
    transformer: dict[str, Parameter]
    both: dict[str, Parameter]


class Recipes(BaseModel):
    """Baselines by name."""

    model_config = STRICT
    static: dict[str, Values]
    transformer: dict[str, Values]


def split(parameters: dict[str, Parameter]) -> tuple[Space, Values]:
    """What is searched, free of conditions that fixed values decide, and what is fixed."""
    fixed = {name: value for name, value in parameters.items() if not isinstance(value, Range)}
    space = Space()
    for name, parameter in parameters.items():
        if isinstance(parameter, Range) and all(fixed[p] in parameter.when[p] for p in parameter.when.keys() & fixed):
            when = {
                parent: _possible(space.get(parent), parameter.when[parent]) for parent in parameter.when.keys() - fixed
            }
            if all(when.values()):  # else it hangs on one that is never there
                space[name] = parameter.model_copy(update={"when": when})
    return space, fixed


def _possible(parent: Range | None, values: tuple[Value, ...]) -> tuple[Value, ...]:
    return tuple(value for value in values if isinstance(parent, Choice) and value in parent.choices)


def problems(parameters: dict[str, Parameter]) -> Iterator[tuple[Location, str]]:
    """Conditions that make no sense, and where."""
    above = dict[str, tuple[Value, ...]]()
    for name, parameter in parameters.items():
        for parent, values in parameter.when.items() if isinstance(parameter, Range) else ():
            where = (name, "when", parent)
            if parent not in above:
                kind = "a categorical or fixed parameter that stands above"
                yield where, f"{name} can only hang on {kind}; {parent!r} is none"
            elif unknown := [value for value in values if value not in above[parent]]:
                yield where, f"{name} hangs on {parent} being {unknown[0]!r}, which it never is"
        if isinstance(parameter, Choice):
            above[name] = parameter.choices
        elif not isinstance(parameter, Range):
            above[name] = (parameter,)


def suggest(space: Space, trial: optuna.Trial) -> Values:
    """Every parameter that is there; Optuna stores each as it is suggested."""
    values = Values()
    for name, parameter in space.items():
        if is_there(parameter, values):
            values[name] = _suggest_one(name, parameter, trial)
    return values


def is_there(parameter: Range, values: Values) -> bool:
    return all(parent in values and values[parent] in wanted for parent, wanted in parameter.when.items())


def edges(space: Space) -> Iterator[tuple[Location, Values]]:
    """Each parameter at its bounds, or at each of its choices, with what it hangs on alone, and where they stand."""
    for name, parameter in space.items():
        beside = _conditions(space, name)
        if isinstance(parameter, Choice):
            yield from (((name, "choices", i), beside | {name: value}) for i, value in enumerate(parameter.choices))
        else:
            yield from (((name, bound), beside | {name: getattr(parameter, bound)}) for bound in ("low", "high"))


def _conditions(space: Space, name: str) -> Values:
    """Values with which the parameter is there."""
    values = Values()
    for parent, wanted in space[name].when.items():
        values |= _conditions(space, parent) | {parent: wanted[0]}
    return values


def is_finite(space: Space) -> bool:
    return not any(isinstance(parameter, FloatRange) and parameter.step is None for parameter in space.values())


def points(space: Space) -> Iterator[Values]:
    """Every one of a finite space."""

    def grow(values: Values, rest: list[str]) -> Iterator[Values]:
        if not rest:
            yield values
        elif not is_there(space[rest[0]], values):
            yield from grow(values, rest[1:])
        else:
            for value in _grid(space[rest[0]]):
                yield from grow(values | {rest[0]: value}, rest[1:])

    return grow({}, list(space))


def label(values: dict[str, Any]) -> str:
    """The same for equal values."""
    return json.dumps(values, sort_keys=True)


def _grid(parameter: Range) -> Iterator[Value]:
    match parameter:
        case Choice(choices=choices):
            yield from choices
        case IntRange(low=low, high=high, step=step):
            yield from range(low, high + 1, step or 1)
        case FloatRange(low=start, high=end, step=width):
            assert width is not None
            yield from (min(start + i * width, end) for i in range(round((end - start) / width) + 1))  # as Optuna does


def _suggest_one(name: str, parameter: Range, trial: optuna.Trial) -> Value:
    match parameter:
        case FloatRange(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)
        case IntRange(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step or 1)
        case Choice(choices=choices):
            return choices[choices.index(trial.suggest_categorical(name, choices))]  # type-safe: one of ours


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if low >= high:
        raise ValueError(f"low {low} must be below high {high}; a single value is written alone, without low and high")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range must start above 0, not at {low}")
    if step is None:
        return
    if log:
        raise ValueError("a range has log or a step, not both")
    try:  # as Optuna counts
        divides = step > 0 and (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)) == 0
    except ArithmeticError:
        divides = False
    if not divides:
        raise ValueError(f"steps of {step} do not lead from {low} to {high}")
