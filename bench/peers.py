"""What `bench.trial` compares a trial with: SentenceTransformerTrainer, and a bare loop of PyTorch. One thread each."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import safe_open
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import evaluation
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import AutoModel, AutoTokenizer, get_scheduler

from objectives.config import STATIC, Training, TrialConfig
from objectives.data import Data
from objectives.evaluation import FloatArray
from objectives.incidents import IntArray
from objectives.mining import TrainPairs
from objectives.model_files import fetch
from objectives.progress import Scores

ENCODE_BATCH = 256
WORDS = "embeddings.word_embeddings.weight"
# As the Trainer's evaluators call them; they have no ROC AUC.
NAMES = {"spearman": "eval_spearman_cosine", "pr_auc": "eval_cosine_ap", "f1": "eval_cosine_f1"}
QUIET: dict[str, Any] = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}


@dataclass(frozen=True)
class Task:
    """What all of them do: one epoch over `pairs`, with evaluations on the held-out pairs of `data`."""

    config: TrialConfig
    data: Data
    pairs: TrainPairs

    @property
    def eval_steps(self) -> int:
        return self.config.training.eval_every_examples // self.config.training.batch_size

    def ordered(self, seed: int) -> IntArray:
        """Anchors and positives (pairs, 2) in the order in which a trial sees them."""
        return self.pairs.ends[np.random.default_rng([seed, 0]).permutation(len(self.pairs.ends))]


def with_trainer(task: Task, seed: int) -> list[Scores]:
    """Scores at each evaluation."""
    texts, training, model = task.data.table.texts, task.config.training, _sentence_transformer(task.config)
    anchors, positives = ([texts[number] for number in column] for column in task.ordered(seed).T)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            learning_rate=training.learning_rate,
            per_device_train_batch_size=training.batch_size,
            num_train_epochs=1,
            warmup_steps=training.warmup_ratio,
            max_grad_norm=training.max_grad_norm,
            seed=seed,
            batch_sampler=_in_order,  # type: ignore[arg-type]  # any BatchSampler does
            eval_strategy="steps",
            eval_steps=task.eval_steps,
            **QUIET,
        )
        trainer = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"anchor": anchors, "positive": positives}),
            loss=MultipleNegativesRankingLoss(model, scale=training.scale),
            evaluator=_evaluator(task.data),
        )
        trainer.train()
    log = [entry for entry in trainer.state.log_history if NAMES["spearman"] in entry]
    return [{ours: float(entry[theirs]) for ours, theirs in NAMES.items()} for entry in log]


def _in_order(dataset: Dataset, batch_size: int, drop_last: bool, **_: Any) -> BatchSampler:
    return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)


def _sentence_transformer(config: TrialConfig) -> SentenceTransformer:
    model = SentenceTransformer(str(fetch(config.model)), device="cpu")
    model.max_seq_length = config.max_seq_tokens
    if not config.model.startswith(STATIC):
        without_dropout(model)
        return model
    first: Any = model[0]
    tokenizer = model.tokenizer.backend_tokenizer
    tokenizer.enable_truncation(config.max_seq_tokens)
    weights = first.auto_model.get_input_embeddings().weight.detach().clone()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


def without_dropout(model: SentenceTransformer) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _evaluator(data: Data) -> evaluation.SequentialEvaluator:
    texts, pairs = data.table.texts, data.validation
    left, right = ([texts[number] for number in numbers] for numbers in (pairs.anchors, pairs.others))
    labels = (pairs.grades >= data.ladder.positive).astype(int).tolist()
    by_grade = evaluation.EmbeddingSimilarityEvaluator(left, right, pairs.grades.tolist(), write_csv=False)
    by_class = evaluation.BinaryClassificationEvaluator(left, right, labels, write_csv=False)
    return evaluation.SequentialEvaluator([by_grade, by_class])


Batch = tuple[torch.Tensor, torch.Tensor]  # ids, and their mask or where each text begins


@dataclass(frozen=True)
class Network:
    """A model without its library, and the tokens of some texts."""

    module: torch.nn.Module
    embed: Callable[[Batch], torch.Tensor]
    collate: Callable[[IntArray], Batch]
    lengths: IntArray


def in_bare_loop(task: Task, seed: int) -> list[Scores]:
    """Scores at each evaluation; all is tokenised and padded ahead."""
    pairs = task.data.validation
    held_out, rows = np.unique(np.concatenate([pairs.anchors, pairs.others]), return_inverse=True)
    numbers, ends = np.unique(task.ordered(seed), return_inverse=True)
    texts = task.data.table.texts
    network = _network(task.config, [texts[number] for number in [*numbers, *held_out]])
    places = np.argsort(-network.lengths[len(numbers) :], kind="stable")
    chunks = [places[start : start + ENCODE_BATCH] for start in range(0, len(places), ENCODE_BATCH)]
    evaluated = [(chunk, network.collate(len(numbers) + chunk)) for chunk in chunks]
    size = task.config.training.batch_size
    batches = [network.collate(ends[start : start + size].T.ravel()) for start in range(0, len(ends), size)]
    curve = []
    for step in _train(network, task.config.training, batches):
        if step % task.eval_steps == 0:
            curve.append(_scores(_encode(network, evaluated)[rows], task.data))
    return curve


def _train(network: Network, training: Training, batches: list[Batch]) -> Iterator[int]:
    """Anchors and positives of a batch are embedded at once."""
    parameters = list(network.module.parameters())
    optimizer = torch.optim.AdamW(parameters, training.learning_rate, weight_decay=0.0, fused=True)
    warmup_steps = math.ceil(training.warmup_ratio * len(batches))
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=warmup_steps, num_training_steps=len(batches))
    for step, batch in enumerate(batches, 1):
        anchors, positives = normalize(network.embed(batch)).chunk(2)
        loss = cross_entropy(anchors @ positives.T * training.scale, torch.arange(len(anchors)))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step


@torch.inference_mode()
def _encode(network: Network, batches: list[tuple[IntArray, Batch]]) -> FloatArray:
    places = np.concatenate([places for places, _ in batches])
    vectors: FloatArray = torch.cat([normalize(network.embed(batch)) for _, batch in batches]).double().numpy()
    return vectors[np.argsort(places)]


def _scores(vectors: FloatArray, data: Data) -> Scores:
    """Of the pairs' vectors, all anchors before all others."""
    cosines = np.einsum("ij,ij->i", *np.split(vectors, 2))
    is_positive = data.validation.grades >= data.ladder.positive
    precision, recall, _ = precision_recall_curve(is_positive, cosines)
    return {
        "spearman": float(spearmanr(cosines, data.validation.grades).statistic),
        "roc_auc": float(roc_auc_score(is_positive, cosines)),
        "pr_auc": float(average_precision_score(is_positive, cosines)),
        "f1": float((2 * precision * recall / np.maximum(precision + recall, 1e-9)).max()),
    }


def _network(config: TrialConfig, texts: list[str]) -> Network:
    folder, tokens = fetch(config.model), config.max_seq_tokens
    return _bags(folder, tokens, texts) if config.model.startswith(STATIC) else _transformer(folder, tokens, texts)


def _transformer(folder: Path, tokens: int, texts: list[str]) -> Network:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModel.from_pretrained(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ids = [torch.tensor(row) for row in tokenizer(texts, truncation=True, max_length=tokens)["input_ids"]]

    def collate(numbers: IntArray) -> Batch:
        padded = pad_sequence(
            [ids[number] for number in numbers], batch_first=True, padding_value=tokenizer.pad_token_id
        )
        return padded, (padded != tokenizer.pad_token_id).long()

    def embed(batch: Batch) -> torch.Tensor:
        padded, mask = batch
        vectors: torch.Tensor = module(input_ids=padded, attention_mask=mask).last_hidden_state
        return (vectors * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    return Network(module, embed, collate, np.array([len(row) for row in ids]))


def _bags(folder: Path, tokens: int, texts: list[str]) -> Network:
    """A static model of the tokens that occur."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens)
    found = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    lengths = np.array([len(row) for row in found])
    used, ids = np.unique(np.concatenate(found), return_inverse=True)
    starts = np.cumsum(lengths) - lengths
    with safe_open(folder / "model.safetensors", "pt") as weights:
        module = torch.nn.EmbeddingBag.from_pretrained(weights.get_tensor(WORDS)[used], freeze=False)

    def collate(numbers: IntArray) -> Batch:
        rows = np.concatenate([ids[starts[number] : starts[number] + lengths[number]] for number in numbers])
        return torch.from_numpy(rows), torch.from_numpy(np.cumsum(lengths[numbers]) - lengths[numbers])

    return Network(module, lambda batch: module(*batch), collate, lengths)


PEERS = {"trainer": with_trainer, "bare": in_bare_loop}
