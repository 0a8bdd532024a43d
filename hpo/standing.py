"""How a confirmation stands, read from its trials alone: which runs are still needed, who is judged, when it ends.

Each configuration runs on the same seeds, one seed after another, and those choose. The winner and the best baseline
then run on further seeds that had no part in that, and those are judged on test: a seed that was lucky on validation is
lucky on test, too, so the seeds that chose a winner would praise it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from hpo.config import SEED
from hpo.race import Duel, Race, duel_of, run_race
from hpo.study import is_baseline, parameters_of

# A trial's user attributes: the number of the trial that it confirms; whether it is one of those judged on test.
CONFIRMS, JUDGES = "confirms", "judges"
WAIT = "wait"


@dataclass(frozen=True)
class Standing:
    race: Race
    duel: Duel | None
    judging: tuple[FrozenTrial, ...]  # runs of those that are judged, once it is known who is
    seeds: int  # on which they race

    @property
    def ranking(self) -> list[int]:
        """The best first, those dropped last; none without a completed run."""
        ran = [one for one, scores in self.race.scores.items() if scores]
        return sorted(ran, key=lambda one: (one in self.race.dropped, -self.race.mean(one)))

    @property
    def ended(self) -> str | None:
        """Why nothing is left to run; None while something is."""
        if not self.race.is_over or not all(run.state.is_finished() for run in self.judging):
            return None
        if self.duel is None:
            return "too few runs of baselines, or of the others, were completed"
        looked = max(map(len, self.race.scores.values()))
        ran, left = len(self.race.scores), len(self.race.scores) - len(self.race.dropped)
        were = "was" if left == 1 else "were"
        return f"{left} of {ran} configurations {were} left after {looked} of {self.seeds} seeds"


def standing_of(trials: Sequence[FrozenTrial]) -> Standing:
    runs = [trial for trial in trials if CONFIRMS in trial.user_attrs]
    outcomes: dict[int, dict[int, float | None]] = {}
    for run in runs:
        ended = outcomes.setdefault(run.user_attrs[CONFIRMS], {})
        if run.state.is_finished() and not run.user_attrs[JUDGES]:
            ended[seed_of(run)] = run.value if run.state == TrialState.COMPLETE else None
    seeds = sorted({seed_of(run) for run in runs if not run.user_attrs[JUDGES]})
    race = run_race(outcomes, seeds)
    duel = duel_of(race, {run.user_attrs[CONFIRMS] for run in runs if is_baseline(run)}) if race.is_over else None
    judged = (duel.challenger, duel.baseline) if duel else ()
    judging = tuple(run for run in runs if run.user_attrs[JUDGES] and run.user_attrs[CONFIRMS] in judged)
    return Standing(race, duel, judging, len(seeds))


def why_skipped(standing: Standing, run: FrozenTrial) -> str | None:
    """Why nobody needs that run, WAIT while it is not known, None if it is needed."""
    one = run.user_attrs[CONFIRMS]
    if not run.user_attrs[JUDGES]:
        return standing.race.dropped.get(one, "one configuration is left" if standing.race.is_over else None)
    if not standing.race.is_over:
        return WAIT
    is_judged = run.number in {judging.number for judging in standing.judging}
    return None if is_judged else standing.race.dropped.get(one, "neither the winner nor its baseline")


def seed_of(run: FrozenTrial) -> int:
    return int(parameters_of(run)[SEED])


def key_of(run: FrozenTrial) -> tuple[int, int]:
    """Configuration and seed."""
    return run.user_attrs[CONFIRMS], seed_of(run)
