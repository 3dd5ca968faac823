"""X-PEFT: which adapters of one bank four readers with opposite tastes select.

python docs/examples/masks_of_profiles.py --out FOLDER
"""

from argparse import ArgumentParser
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from lightning_pelt import XPEFT, PELTModule, Plan, RandomBank, SimulatedReaders, read_profile
from lightning_pelt.reports.figures import new_figure, save, set_figure_title

COLOURS = {"neither": "#eceef2", "down": "#56b4e9", "up": "#e69f00", "both": "#1f2430"}
OPTIONS = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def main(out: Path) -> None:
    seed_everything(42)
    data = SimulatedReaders(readers=4, batch_size=8, max_length=32)
    method = XPEFT(bank=RandomBank(seed=0, size=40), profiles=4, k=10)
    module = PELTModule(
        "sentence-transformers/all-MiniLM-L6-v2", Plan.uniform(method), labels=data.labels, lr=0.05
    )
    Trainer(max_steps=60, limit_val_batches=0, accelerator="cpu", **OPTIONS).fit(module, data)
    profiles = [read_profile(module, number) for number in range(4)]
    figure = new_figure(9, 5.4)
    for axes, profile, name in zip(
        figure.subplots(2, 2).flat, profiles, data.profiles, strict=True
    ):
        down, up = profile.masks[:, 0], profile.masks[:, 1]
        axes.pcolormesh(down + 2 * up, cmap=ListedColormap([*COLOURS.values()]), vmin=0, vmax=3,
                        edgecolors="white", lw=1)  # fmt: skip
        size = profile.bytes_by_part()["masks"]
        axes.set_title(f"{name}, {size} bytes", fontsize=11, loc="left")
        axes.set(ylim=(profile.blocks, 0), xlabel="adapter of the bank", frame_on=False)
        axes.set_yticks([y + 0.5 for y in range(profile.blocks)], range(profile.blocks))
        axes.set_ylabel("block, input at the top")
        axes.tick_params(length=0)
    handles = [Patch(color=colour, label=name) for name, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False,
                  title="projection that selects the adapter")  # fmt: skip
    set_figure_title(figure, "Masks of four readers over one bank of 40 adapters, after 60 steps")
    shared = (profiles[0].masks & profiles[1].masks).sum(-1).mean()
    print(f"readers 1 and 2 share {shared:.1f} of 10 adapters a mask; chance is 2.5")
    print(f"picture: {save(figure, out / 'masks_of_profiles.png')}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    main(parser.parse_args().out)
