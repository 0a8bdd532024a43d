"""One whole trial: what it reports, what it records, and that anybody can check its scores."""

from pathlib import Path

import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from objectives.config import Head, Training, TrialConfig
from objectives.data import load_data
from objectives.evaluation import METRICS
from objectives.finetune import Finetuned, finetune
from objectives.progress import Progress, Report, Verdict

Trial = tuple[Finetuned, list[Progress]]


def going_on(reported: list[Progress]) -> Report:
    def report(progress: Progress) -> Verdict:
        reported.append(progress)
        return "go on"

    return report


@pytest.fixture(scope="module")
def trial(config: TrialConfig) -> Trial:
    """A trial that ran to its end, and what it reported."""
    reported: list[Progress] = []
    return finetune(config, going_on(reported)), reported


def test_the_result_holds_every_metric_with_its_interval_and_ceiling(trial: Trial) -> None:
    result = trial[0].result
    assert set(result.scores) == set(result.untrained) == {*METRICS, "threshold"}
    assert set(result.intervals) == set(result.ceilings) == set(METRICS)
    for metric in METRICS:
        low, high = result.intervals[metric]
        assert low < result.scores[metric] < high <= result.ceilings[metric] <= 1


def test_the_result_says_how_training_ended(trial: Trial, config: TrialConfig) -> None:
    result, reported = trial[0].result, trial[1]
    assert (result.stop_reason, result.stop_epoch, result.train_pairs) == ("completed", 2.0, 400)
    assert [progress.step for progress in reported] == [200, 400, 600, 800]


def test_the_scores_are_those_of_the_best_evaluation(trial: Trial) -> None:
    result, reported = trial[0].result, trial[1]
    best = max(reported, key=lambda progress: progress.scores["spearman"])
    assert (result.scores, result.best_epoch) == (best.scores, best.epoch)


def test_training_improves_on_the_untrained_model(trial: Trial) -> None:
    result = trial[0].result
    assert result.scores["spearman"] > result.untrained["spearman"] + 0.05


def test_the_saved_model_scores_the_same_with_sentence_transformers_and_scipy_alone(
    tmp_path: Path, trial: Trial, config: TrialConfig
) -> None:
    trial[0].save(tmp_path / "model")
    data = load_data(config)
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    vectors = model.encode(data.table.texts, normalize_embeddings=True).astype("float64")
    similarities = (vectors[data.validation.anchors] * vectors[data.validation.others]).sum(axis=1)
    spearman = spearmanr(similarities, data.validation.grades).statistic
    assert trial[0].result.scores["spearman"] == pytest.approx(spearman, abs=1e-6)


def test_a_trial_that_stops_early_says_where_its_best_was(config: TrialConfig) -> None:
    training = Training(learning_rate=0.05, epochs=40, patience=1, scale=100.0, eval_every_examples=50)
    mining = config.mining.model_copy(update={"train_pairs": 100})
    reported: list[Progress] = []
    result = finetune(config.model_copy(update={"training": training, "mining": mining}), going_on(reported)).result
    assert result.stop_reason == "early_stopping"
    assert (result.best_epoch, result.stop_epoch) == (reported[-2].epoch, reported[-1].epoch)
    assert result.scores == reported[-2].scores


def test_a_pruned_trial_has_scores_but_no_intervals(config: TrialConfig) -> None:
    result = finetune(config, lambda _: "prune").result
    assert (result.stop_reason, result.intervals) == ("pruned", {})
    assert (result.stop_epoch, result.best_epoch) == (0.56, 0.56)  # 7 batches of 32 pass the first 200 examples
    assert set(result.scores) == {*METRICS, "threshold"}


def test_a_head_that_cannot_be_fitted_costs_the_trial_nothing_else(trial: Trial, config: TrialConfig) -> None:
    head = Head(head="boosting", head_pairs=100)
    found = finetune(config.model_copy(update={"head": head}), going_on([]))
    assert found.head is None
    assert found.result.head == {}
    assert "too few to fit a match head; raise head_pairs" in found.result.no_head
    assert found.result.scores == trial[0].result.scores
