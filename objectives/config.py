"""The configuration of one trial: every number that decides its result, with defaults in this one place.

Read from bytes (study files, best.yaml, the pipe between worker and trainer), so it is pydantic: frozen, strict,
unknown keys refused. Imports no torch: the command line and the worker use it too.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
HEAD_FOLDER = "match_head"  # within a model's
STATIC = "static:"  # before a model's name: its token vectors alone

PresetName = Literal["servicenow", "jira"]
ALIVE_S = 1.0  # a trainer at work says so about so often

Precision = Literal["auto", "float32", "bfloat16"]  # auto: bfloat16 where a GPU has it
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Columns(BaseModel):
    """Which columns of the export hold what; `text` columns are joined in order."""

    model_config = STRICT
    id: str = "number"
    text: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = ("short_description", "description")
    category: str = "category"
    subcategory: str | None = "subcategory"
    configuration_item: str | None = None
    assignment_group: str | None = None
    duplicate_of: str | None = None
    parent: str | None = None  # its children count as its duplicates
    opened: str | None = None  # when: later incidents are held out
    opened_format: str | None = None  # as strptime takes it; None: ISO 8601
    may_repeat: bool = False  # of several columns of one name, the first that is not empty counts
    persons: Annotated[tuple[str, ...], Field(strict=False)] = ()  # whose names are masked wherever they stand


class Incidents(BaseModel):
    model_config = STRICT
    path: Annotated[str, Field(pattern=r"^[^\x00]+$")]
    preset: PresetName | None = None  # in place of columns
    columns: Columns = Columns()
    encoding: Literal["utf-8", "utf-16", "cp1252", "latin-1"] = "utf-8"
    sha256: str | None = None  # of the file's bytes; set when a study is created
    dataset: str | None = None  # what was read from it, by SHA-256 as it is kept in the database

    @model_validator(mode="after")
    def _mapped_once(self) -> Incidents:
        if self.preset is not None and "columns" in self.model_fields_set:
            raise ValueError("columns are named by preset or by columns; keep one")
        return self


class Labels(BaseModel):
    """The grade of a pair is that of the strongest tie between its two; a tie without data drops out."""

    model_config = STRICT
    same_category: Share = 0.25
    same_subcategory: Share = 0.5
    near: Share = 0.75  # of one subcategory, and on one configuration item, of one assignment group, or near in text
    duplicate: Share = 1.0
    positive: Literal["same_category", "same_subcategory", "near", "duplicate"] = "same_subcategory"  # from here on
    # Jaccard similarity of two texts' words that makes them near; None: a model would be praised for copied words.
    near_text: Annotated[float, Field(gt=0, lt=1)] | None = None
    small_classes: Literal["keep", "merge", "drop"] = "keep"  # merge: to one of their category, or one category
    small_below: Positive = 8  # incidents

    @model_validator(mode="after")
    def _ascend(self) -> Labels:
        grades = [0.0, self.same_category, self.same_subcategory, self.near, self.duplicate]
        if any(low >= high for low, high in pairwise(grades)):
            raise ValueError(f"the grades must ascend from above 0, not {grades[1:]}")
        return self


class Splits(BaseModel):
    """Shares of incidents held out, whole groups at a time: the latest where there is a date, else drawn."""

    model_config = STRICT
    validation: Share = 0.15
    test: Share = 0.15
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _leave_some_to_train(self) -> Splits:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave nothing to train on")
        return self


class Pairs(BaseModel):
    """Held-out pairs per split (validation, test); the same for all trials of a study.

    The default shares hold 13.5 % positives, as version 4 had, and put the ceiling of graded Spearman at 0.87. The
    positives are of all their grades alike, as far as each has so many; within a grade each category has its share.
    """

    model_config = STRICT
    held_out: Annotated[int, Field(ge=100)] = 60_000  # at most, and at most 15 per incident
    positive_share: Annotated[float, Field(gt=0, lt=1)] = 0.135
    same_category_share: Share = 0.265
    hard_share: Share = 0.1  # of what is no positive: alike in words all the same
    seed: Annotated[int, Field(ge=0)] = 0  # of the training pairs, too

    @model_validator(mode="after")
    def _shares_fit(self) -> Pairs:
        if self.positive_share + self.same_category_share > 1:
            raise ValueError("positive_share + same_category_share must be at most 1")
        return self


class Mining(BaseModel):
    """How training pairs are found. A search may vary it all."""

    model_config = STRICT
    train_pairs: Annotated[int, Field(ge=1, le=500_000)] = 20_000
    # graded: of every tie, as many as its grade says; what is of one category then counts as a little alike.
    positives: Literal["same_subcategory", "graded"] = "same_subcategory"
    class_balance: Literal["off", "sqrt", "oversample"] = "off"  # how often a class is drawn: by size, its root, alike
    # Between these lies the similarity of a positive's two texts: too easy above, too far below.
    similarity: Literal["tfidf", "model"] = "tfidf"
    min_similarity: Annotated[float, Field(ge=-1, lt=1)] = -1.0
    max_similarity: Annotated[float, Field(gt=-1, le=1)] = 1.0
    hard_negatives: Literal["off", "tfidf", "jaccard", "model"] = "off"  # found by what; model: as it is untrained
    hard_negatives_per_pair: Annotated[int, Field(ge=1, le=8)] = 1
    hard_negative_skip: Annotated[int, Field(ge=0, le=1_000)] = 0  # the most alike ones, often labelled wrongly
    false_negatives: Literal["keep", "mask"] = "keep"  # in a batch, those of the anchor's own class
    augmentation: Literal["off", "synonyms", "wordnet", "typos", "word_dropout"] = "off"
    augmented_share: Share = 0.3  # of the pairs, whose anchor is altered

    @model_validator(mode="after")
    def _leaves_positives(self) -> Mining:
        if self.min_similarity >= self.max_similarity:
            raise ValueError(f"min_similarity {self.min_similarity} is not below max_similarity {self.max_similarity}")
        return self


LossName = Literal[
    "mnrl", "symmetric_mnrl", "cached_mnrl", "triplet", "contrastive", "online_contrastive", "cosent", "angle"
]
# What the rows of a loss's training data are: (anchor, positive, hard negatives), (anchor, positive, negative), or two
# texts with their grade, or with 1 for a positive and 0 for none.
COLUMNS: dict[LossName, Literal["ranked", "triplets", "graded", "binary"]] = {
    "mnrl": "ranked",
    "symmetric_mnrl": "ranked",
    "cached_mnrl": "ranked",
    "triplet": "triplets",
    "contrastive": "binary",
    "online_contrastive": "binary",
    "cosent": "graded",
    "angle": "graded",
}


class Training(BaseModel):
    """What a search varies. Patience counts evaluations, which come at fixed numbers of examples seen."""

    model_config = STRICT
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    batch_size: Annotated[int, Field(ge=2)] = 32
    epochs: Positive = 3
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    loss: LossName = "mnrl"
    scale: Annotated[float, Field(gt=0)] = 20.0  # inverse temperature of mnrl and its variants, cosent and angle
    margin: Annotated[float, Field(gt=0, le=2)] = 0.5  # of triplet and the contrastive losses, in cosine distance
    second_loss: LossName | Literal["off"] = "off"  # added with its weight, over the columns that it needs
    second_loss_weight: Annotated[float, Field(gt=0)] = 0.3
    patience: Positive | Literal["off"] = "off"
    min_epochs: Annotated[float, Field(ge=0)] = 0.0
    eval_every_examples: Positive = 5_000
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _batch_fits_between_evaluations(self) -> Training:
        if self.batch_size > self.eval_every_examples:
            raise ValueError(f"batch_size {self.batch_size} is above eval_every_examples {self.eval_every_examples}")
        return self


class Pretraining(BaseModel):
    """A stage before fine-tuning, on the training incidents' texts; its result is kept and shared by all trials."""

    model_config = STRICT
    stage: Literal["off", "mlm", "tsdae"] = "off"  # of transformers only
    stage_epochs: Positive = 1
    stage_learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    stage_batch_size: Positive = 16


class Head(BaseModel):
    """A classifier that tells from features of a pair whether it is a match; fitted when training has ended."""

    model_config = STRICT
    head: Literal["off", "logistic", "boosting"] = "off"
    head_balance: Literal["off", "class_weight", "smote"] = "off"  # against the few positives
    head_pairs: Annotated[int, Field(ge=100)] = 40_000  # of training incidents, in the shares of held-out pairs


class TrialConfig(BaseModel):
    """One trial, whole: the same configuration on the same machine gives the same bits."""

    model_config = STRICT
    incidents: Incidents
    labels: Labels = Labels()
    splits: Splits = Splits()
    pairs: Pairs = Pairs()
    mining: Mining = Mining()
    model: Annotated[str, Field(min_length=1)]
    model_revision: str | None = None  # as model_files.pin() says it; None: whichever is at hand
    max_seq_tokens: Annotated[int, Field(ge=4)] = 128
    pretraining: Pretraining = Pretraining()
    training: Training = Training()
    head: Head = Head()
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Positive = 1

    @model_validator(mode="after")
    def _stage_has_a_transformer(self) -> TrialConfig:
        if self.pretraining.stage != "off" and self.model.startswith(STATIC):
            raise ValueError(f"stage {self.pretraining.stage} is for transformers, not for {self.model}")
        return self


class Memory(BaseModel):
    """How a batch is computed in less memory: its negatives, and so its result but for rounding, stay the same."""

    model_config = STRICT
    micro_batch: Positive | None = None  # None: the batch at once
    gradient_checkpointing: bool = False


AT_ONCE = Memory()


class Job(BaseModel):
    """What a worker hands to its trainer: the trial, and what does not decide its result."""

    model_config = STRICT
    config: TrialConfig
    memory: Memory = AT_ONCE
    checkpoint_folder: str | None = None
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 60.0
    cache: str | None = None  # folder for what trials of this box have in common
    keep_in: str | None = None  # folder for the model, if the trial ends complete
    keep_above: float = -1.0  # and with a higher Spearman
    judge_test: bool = False  # score it on test, too
