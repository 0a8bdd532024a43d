"""Declared search spaces: what a parameter may be, and how Optuna is asked for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from typing import Annotated
from typing import Literal

from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import model_validator

if TYPE_CHECKING:
    import optuna

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
Value = str | int | float


class FloatRange(BaseModel):
    model_config = STRICT
    type: Literal["float"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> FloatRange:
        _check_range(self.low, self.high, self.log)
        return self


class IntRange(BaseModel):
    model_config = STRICT
    type: Literal["int"]
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> IntRange:
        _check_range(self.low, self.high, self.log)
        return self


class Choice(BaseModel):
    model_config = STRICT
    type: Literal["categorical"]
    choices: tuple[Value, ...] = Field(min_length=2, strict=False)

    @model_validator(mode="after")
    def _differ(self) -> Choice:
        if len(set(self.choices)) != len(self.choices):
            raise ValueError("choices must differ from each other")
        return self


Parameter = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]
Space = dict[str, Parameter]


class SpaceWithBaselines(BaseModel):
    """The parameters of a space, and named configurations to run first (a value may lie outside the bounds)."""

    model_config = STRICT
    parameters: Space = Field(min_length=1)
    baselines: dict[str, dict[str, Value]] = {}

    @model_validator(mode="after")
    def _baselines_fit(self) -> SpaceWithBaselines:
        for name, values in self.baselines.items():
            _check_baseline(name, values, self.parameters)
        return self


class Preset(BaseModel):
    """One space per kind of model: a static model wants learning rates a thousand times a transformer's."""

    model_config = STRICT
    static: SpaceWithBaselines
    transformer: SpaceWithBaselines


def preset_path(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.yaml")


def preset_names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def suggest(space: Space, trial: optuna.Trial) -> dict[str, Value]:
    """Every parameter of the space; Optuna stores each as it is suggested."""
    return {name: _suggest_one(name, parameter, trial) for name, parameter in space.items()}


def edges(space: Space) -> list[dict[str, Value]]:
    """Each parameter alone at its bounds, or at each of its choices."""
    return [
        {name: value}
        for name, parameter in space.items()
        for value in (parameter.choices if isinstance(parameter, Choice) else (parameter.low, parameter.high))
    ]


def _suggest_one(name: str, parameter: Parameter, trial: optuna.Trial) -> Value:
    match parameter:
        case FloatRange(low=low, high=high, log=log):
            return trial.suggest_float(name, low, high, log=log)
        case IntRange(low=low, high=high, log=log):
            return trial.suggest_int(name, low, high, log=log)
        case Choice(choices=choices):
            return choices[choices.index(trial.suggest_categorical(name, choices))]  # type-safe: one of ours


def _check_range(low: float, high: float, log: bool) -> None:
    if low >= high:
        raise ValueError(f"low {low} must be below high {high}; give a single value under `training` instead")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range must start above 0, not at {low}")


def _check_baseline(name: str, values: dict[str, Value], parameters: Space) -> None:
    """A trial that lacks a parameter would shrink the space that the sampler sees, so all must be there."""
    wrong = sorted(values.keys() ^ parameters.keys())
    if wrong:
        raise ValueError(f"baseline {name!r} must give exactly the parameters of the space; check {', '.join(wrong)}")
    for key, parameter in parameters.items():
        if isinstance(parameter, Choice) and values[key] not in parameter.choices:
            raise ValueError(f"baseline {name!r}: {key} is {values[key]!r}, not one of {list(parameter.choices)}")
