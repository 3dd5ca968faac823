"""What the nine GLUE tasks are called, what their files hold, and how they are measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GLUETask:
    """One task: what it is called, what its files hold, and how it is measured."""

    folder: str
    text: tuple[str, ...]  # names of the column: ours, the hub's, the official file's
    text2: tuple[str, ...]
    label: tuple[str, ...]
    labels: tuple[str, ...] | None  # None for a number
    metrics: tuple[str, ...]  # the first one decides which checkpoint is best
    header: tuple[str, ...] = ()  # of official files without one
    empty: bool = False  # whether the data have empty texts


ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "cola": GLUETask(
        folder="CoLA",
        text=("text", "sentence"),
        text2=(),
        label=("label",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews",),
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": GLUETask(
        folder="SST-2",
        text=("text", "sentence"),
        text2=(),
        label=("label",),
        labels=("negative", "positive"),
        metrics=("accuracy",),
    ),
    "mrpc": GLUETask(
        folder="MRPC",
        text=("text", "sentence1", "#1 String"),
        text2=("text2", "sentence2", "#2 String"),
        label=("label", "Quality"),
        labels=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
    ),
    "stsb": GLUETask(
        folder="STS-B",
        text=("text", "sentence1"),
        text2=("text2", "sentence2"),
        label=("label", "score"),
        labels=None,
        metrics=("spearman", "pearson"),
    ),
    "qqp": GLUETask(
        folder="QQP",
        text=("text", "question1"),
        text2=("text2", "question2"),
        label=("label", "is_duplicate"),
        labels=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        empty=True,
    ),
    "mnli": GLUETask(
        folder="MNLI",
        text=("text", "premise", "sentence1"),
        text2=("text2", "hypothesis", "sentence2"),
        label=("label", "gold_label"),
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
    ),
    "qnli": GLUETask(
        folder="QNLI",
        text=("text", "question"),
        text2=("text2", "sentence"),
        label=("label",),
        labels=ENTAILMENT,
        metrics=("accuracy",),
    ),
    "rte": GLUETask(
        folder="RTE",
        text=("text", "sentence1"),
        text2=("text2", "sentence2"),
        label=("label",),
        labels=ENTAILMENT,
        metrics=("accuracy",),
    ),
    "wnli": GLUETask(
        folder="WNLI",
        text=("text", "sentence1"),
        text2=("text2", "sentence2"),
        label=("label",),
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
    ),
}
