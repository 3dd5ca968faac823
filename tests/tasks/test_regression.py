from __future__ import annotations

import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from lightning_pelt.tasks import Regression
from lightning_pelt.utils.backbone import load_tokenizer


def batch_of(folder: str, *texts: str) -> dict[str, torch.Tensor]:
    return dict(load_tokenizer(folder)(list(texts), padding=True, return_tensors="pt"))


def test_the_loss_is_the_mean_squared_error(bert: str) -> None:
    task = Regression()
    model = task.load(bert)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    batch = {**batch_of(bert, "hot", "very cold", "dry"), "labels": torch.tensor([4, 0, 1])}
    loss, outputs = task.step(model, batch)
    predicted = [row[0] for row in outputs.logits.tolist()]
    by_hand = sum((p - t) ** 2 for p, t in zip(predicted, [4, 0, 1], strict=True)) / 3
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)


def test_one_row_has_one_number(bert: str) -> None:
    task = Regression()
    model = task.load(bert)
    batch = batch_of(bert, "hot")
    (row,) = task.predict(model, batch)
    assert row == {"value": pytest.approx(float(model(**batch).logits))}
    loss, _ = task.step(model, {**batch, "labels": torch.tensor([2.0])})
    assert float(loss) == pytest.approx((row["value"] - 2.0) ** 2, rel=1e-5)


class Outputs:
    def __init__(self, values: list[float]) -> None:
        self.logits = torch.tensor(values)[:, None].bfloat16()


def test_metrics_agree_with_scipy() -> None:
    task = Regression(metrics=("pearson", "spearman", "mse"))
    metrics = task.build_metrics().clone(prefix="test/")
    predicted, true = [0.5, 2.0, 2.0, 4.5, 1.0], [1.0, 2.5, 2.0, 5.0, 0.0]  # a tie; exact in bf16
    for part in (slice(0, 4), slice(4, 5)):
        batch = {"labels": torch.tensor(true[part])}
        task.update(metrics, None, batch, Outputs(predicted[part]))  # type: ignore[arg-type]
    found = {k: float(v) for k, v in metrics.compute().items()}
    assert found == pytest.approx(
        {
            "test/pearson": pearsonr(predicted, true).statistic,
            "test/spearman": spearmanr(predicted, true).statistic,
            "test/mse": 0.35,  # (0.25 + 0.25 + 0 + 0.25 + 1) / 5
        },
        abs=1e-5,
    )
