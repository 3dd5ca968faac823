"""Where S4 spends a budget of 0.5% of MiniLM's parameters: an area for each method in each block.

python docs/examples/plan_of_s4.py --out FOLDER
"""

from argparse import ArgumentParser
from pathlib import Path

from transformers import AutoModel

from lightning_pelt import S4, attach, resolve_backbone
from lightning_pelt.reports.figures import save
from lightning_pelt.reports.plan_breakdown import break_down
from lightning_pelt.reports.plan_figure import plan_picture
from lightning_pelt.reports.plan_table import format_breakdown


def main(out: Path) -> None:
    backbone = resolve_backbone("sentence-transformers/all-MiniLM-L6-v2")
    model = AutoModel.from_pretrained(backbone)
    found = break_down(attach(model, S4(budget=0.005)))
    print(format_breakdown(found, head="none"))
    picture = plan_picture(found, title="S4 with 0.5% of MiniLM's parameters")
    print(f"picture: {save(picture, out / 'plan_of_s4.png')}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    main(parser.parse_args().out)
