"""What a schedule does to gates: the prefix joins late, the adapter leaves, weak gates are pruned.

python docs/examples/schedule.py --out FOLDER
"""

from argparse import ArgumentParser
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from lightning_pelt import GateMonitor, GateSchedule, PELTModule, Phase, StdlibDocs, UniPELT
from lightning_pelt.reports.figures import save
from lightning_pelt.reports.gates_over_time import gates_over_time

PHASES = {
    "prefix": [Phase(until=20, state="closed"), Phase(until=40, state="ramp")],
    "adapter": [
        Phase(until=40),
        Phase(until=60, state="ramp", start=1, end=0),
        Phase(state="closed"),
    ],
}


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
    schedule = GateSchedule(PHASES, unit="step", prune_below=0.49, prune_after=2)
    monitor = GateMonitor(every_n_steps=1, heatmap=False, table=False)
    trainer = Trainer(
        max_steps=80,
        val_check_interval=10,
        limit_val_batches=2,
        callbacks=[schedule, monitor],
        default_root_dir=out / "runs",
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    picture = gates_over_time(monitor.history, "A schedule, and pruning", pruned=schedule.pruned)
    print(f"pruned: {', '.join(schedule.pruned) or 'none'}")
    print(f"picture: {save(picture, out / 'schedule.png')}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    main(parser.parse_args().out)
