"""The nine GLUE tasks: their folders, columns, labels and metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GLUETask:
    """One task.

    Attributes:
        folder: name of its folder in the official archive.
        text: names of the column, in the order: this package, the hub, the official file.
        text2: likewise for the second text; empty for single sentences.
        label: likewise for the label.
        labels: names of the classes by index; None for a number.
        metrics: the first one selects the best checkpoint.
        header: column names of official files that have no header.
        may_be_empty: whether the data have empty texts.
    """

    folder: str
    text: tuple[str, ...]
    text2: tuple[str, ...]
    label: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    header: tuple[str, ...] = ()
    may_be_empty: bool = False


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
        may_be_empty=True,
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
