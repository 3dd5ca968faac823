"""UniPELT's gates in its first 80 steps on docstrings of Python's standard library.

python docs/examples/gates_over_time.py --out FOLDER
"""

from argparse import ArgumentParser
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from lightning_pelt import GateMonitor, PELTModule, StdlibDocs, UniPELT
from lightning_pelt.reports.figures import save
from lightning_pelt.reports.gates_over_time import gates_over_time

STEPS = 80


def main(out: Path) -> None:
    seed_everything(42)
    data = StdlibDocs(batch_size=8, max_length=32)
    module = PELTModule(
        "sentence-transformers/all-MiniLM-L6-v2",
        UniPELT(),
        labels=data.labels,
        lr=3e-3,
        lrs={"head": 3e-2},
    )
    monitor = GateMonitor(every_n_steps=1, heatmap=False, table=False)
    trainer = Trainer(
        max_steps=STEPS,
        limit_val_batches=0,
        callbacks=[monitor],
        default_root_dir=out / "runs",
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    picture = gates_over_time(monitor.history, f"UniPELT on MiniLM, {STEPS} steps")
    print(f"lowest gate at the end: {min(monitor.latest, key=monitor.latest.__getitem__)}")
    print(f"picture: {save(picture, out / 'gates_over_time.png')}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    main(parser.parse_args().out)
