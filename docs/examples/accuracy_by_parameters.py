"""Accuracy and trained parameters of single methods: one seed, 50 steps, 200 rows.

python docs/examples/accuracy_by_parameters.py --out FOLDER
"""

from argparse import ArgumentParser
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from lightning_pelt import Adapter, BitFit, LoRA, PELTModule, Plan, StdlibDocs
from lightning_pelt.reports.figures import INK, new_figure, save, set_figure_title, style_axes

STEPS, ROWS = 50, 200
METHODS = {  # with the rates of the recipes
    "LoRA": (LoRA(), 1e-3),
    "Adapter": (Adapter(), 1e-3),
    "BitFit": (BitFit(), 2e-3),
}
OPTIONS = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def score(plan: Plan, lr: float) -> tuple[int, float]:
    """Trained parameters without the head, and accuracy on the test rows."""
    seed_everything(42)
    data = StdlibDocs(batch_size=8, max_length=32, min_rows=200, test_rows=ROWS)
    backbone = "sentence-transformers/all-MiniLM-L6-v2"
    module = PELTModule(backbone, plan, labels=data.labels, lr=lr, lrs={"head": 3e-2})
    trainer = Trainer(max_steps=STEPS, limit_val_batches=0, accelerator="cpu",
                      enable_model_summary=False, **OPTIONS)  # fmt: skip
    trainer.fit(module, data)
    (metrics,) = trainer.test(module, data, verbose=False)
    return sum(each.trained for each in module.attachment.counts.values()), metrics["test/accuracy"]


def main(out: Path) -> None:
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    for name, (method, lr) in METHODS.items():
        parameters, accuracy = score(Plan.uniform(method), lr)
        print(f"{name:10} {parameters:8,} parameters  {accuracy:.1%}")
        error = (accuracy * (1 - accuracy) / ROWS) ** 0.5
        axes.errorbar(parameters, accuracy, error, fmt="o", ms=7, color="#31688e", capsize=3)
        axes.annotate(name, (parameters, accuracy), (8, 5), textcoords="offset points", color=INK)
    style_axes(axes)
    axes.set(xlabel="trained parameters, without the head", ylabel="test accuracy")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.15)
    title = f"Topics of docstrings: {STEPS} steps of 8 rows, one seed"
    set_figure_title(figure, f"{title}\nbars: standard error, {ROWS} rows")
    print(f"picture: {save(figure, out / 'accuracy_by_parameters.png')}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    main(parser.parse_args().out)
