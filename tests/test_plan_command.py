"""``lightning-pelt plan``: tables and pictures of plans, against numbers worked out by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from small import bert, t5
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from lightning_pelt import (
    IA3,
    S4,
    XPEFT,
    Adapter,
    Attachment,
    BitFit,
    Compacter,
    Design,
    FullFineTuning,
    Gate,
    Group,
    LoRA,
    LowRankAdapter,
    Plan,
    Prefix,
    Prompt,
    RandomBank,
    UniPELT,
    attach,
    cli,
    plan_cli,
    plots,
)
from lightning_pelt.anatomy import examine
from lightning_pelt.design_space import Block
from lightning_pelt.forge import Forge, Shape
from lightning_pelt.plan_cli.breakdown import Breakdown, Cell, _by_site, break_down
from lightning_pelt.plan_cli.picture import plan_picture
from lightning_pelt.plan_cli.table import describe, tabulate

CLASSES = ["--data=TextClassification", "--data.train=absent.csv", "--model.task=Classification"]


def small_bert(depth: int = 2) -> BertForSequenceClassification:
    """16 wide, its feed-forward 32."""
    config = BertConfig(
        vocab_size=14,
        hidden_size=16,
        num_hidden_layers=depth,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return BertForSequenceClassification(config)


def small_t5(depth: int = 2) -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=14, d_model=16, d_kv=8, d_ff=32, num_layers=depth, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def line(text: str, start: str) -> list[str]:
    """The words of the one line that starts so, without that start."""
    (found,) = [each for each in text.splitlines() if each.startswith(start)]
    return found.removeprefix(start).split()


def show(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    plan_cli.main(list(args))
    return capsys.readouterr().out


# -- counting ---------------------------------------------------------------------------------

# Sizes, and numbers of blocks, of the specification's worked case; its totals per block follow from
# its unit costs: A s(2 d + 1) m + s d, P 2 d l and L 2 * 2 d r per attention, B 6,912 and 9,984.
WORKED = [
    (Plan([Group([Adapter(7, sites=["attention", "ffn"]), LoRA(r=7)], stack="encoder"),
           Group([Adapter(4, sites=["attention", "cross_attention", "ffn"]),
                  Prefix(5, mlp=None), BitFit(sites=("*attention.*", "ffn.*"))],
                 stack="decoder")]),
     {"encoder": (4, {"adapter": ("m=7", 23_054), "lora": ("r=7", 21_504)}),
      "decoder": (8, {"adapter": ("m=4", 20_748), "prefix": ("l=5", 15_360),
                      "bitfit": ("", 9_984)})}),
    (Plan([Group([Adapter(7, sites=["attention", "ffn"]), Prefix(15, mlp=None)], stack="encoder"),
           Group([Prefix(5, mlp=None), BitFit(sites=("*attention.*", "ffn.*")), LoRA(r=3)],
                 stack="decoder")]),
     {"encoder": (8, {"adapter": ("m=7", 23_054), "prefix": ("l=15", 23_040)}),
      "decoder": (4, {"prefix": ("l=5", 15_360), "bitfit": ("", 9_984), "lora": ("r=3", 18_432)})}),
]  # fmt: skip


def test_blocks_of_t5_base_come_to_the_specifications_total() -> None:
    """1,090,824 (section 4.2), counted on submodules in one encoder and one decoder block."""
    config = T5Config(vocab_size=10, d_model=768, d_kv=64, d_ff=3072, num_layers=1, num_heads=12)
    total = 0
    for plan, expected in WORKED:
        found = break_down(attach(T5ForConditionalGeneration(config), plan))
        for row in found.rows:
            blocks, cells = expected[row.block.stack]
            assert row.cells == {name: Cell(*cell) for name, cell in cells.items()}
            total += blocks * row.total
    assert total == 1_090_824


PLANS: list[Plan] = [
    UniPELT(),
    UniPELT([Adapter(), LoRA()], norms=True),
    Plan.uniform(Compacter(bottleneck=4)),
    Plan.uniform(Compacter(bottleneck=4, share_rule=False)),
    Plan.uniform(LowRankAdapter(bottleneck=3, gate=Gate()), LoRA(gate=Gate())),
    Plan.uniform(Prefix(), IA3()),
    Plan.uniform(Prompt(length=3), BitFit()),
    Plan([Group([LoRA(r=2)], "0"), Group([LoRA(r=5), Adapter(3)], [-1])]),
    Plan.uniform(LoRA(name="wide", r=9), LoRA(name="thin", r=1, gate=Gate(shared=True))),
]
PROFILES = Plan.uniform(
    XPEFT(RandomBank(size=6), k=2, profiles=3, norm="profile", head="profile", bottleneck=4)
)


@pytest.mark.parametrize(
    ("model", "plan"),
    # T5 has no head that profiles could have one of their own of.
    [*product([small_bert, small_t5], PLANS), (small_bert, PROFILES)],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_nothing_is_counted_twice_or_left_out(model: Any, plan: Plan) -> None:
    attachment = attach(model(), plan)
    found = break_down(attachment)
    groups = attachment.parameter_groups()
    sizes = {name: sum(p.numel() for p in each) for name, each in groups.items()}
    assert found.totals == {name: sizes.get(name, 0) for name in found.methods}
    assert sum(found.gates.values()) == sizes.get("gate", 0)
    assert (found.norms, found.head) == (sizes.get("norm", 0), sizes.get("head", 0))
    trained = sum(p.numel() for p in attachment.model.parameters() if p.requires_grad)
    besides = sum(found.gates.values()) + found.norms + found.head
    assert sum(row.total for row in found.rows) + sum(found.outside.values()) + besides == trained


def outside(attachment: Attachment) -> dict[str, int]:
    return {name: count for name, count in break_down(attachment).outside.items() if count}


def test_what_blocks_share_lies_outside_of_them() -> None:
    """The prefix's table, both layers of its MLP; Compacter's n rules of n by n; a prompt."""
    mlp = 10 * 16 + (16 * 512 + 512) + (512 * 64 + 64)
    assert outside(attach(small_bert(), UniPELT())) == {"prefix": mlp}
    assert outside(attach(small_bert(), Plan.uniform(Compacter(bottleneck=4)))) == {"compacter": 64}
    own = Plan.uniform(Compacter(bottleneck=4, share_rule=False))
    assert outside(attach(small_bert(), own)) == {}
    assert outside(attach(small_bert(), Plan.uniform(Prompt(length=3)))) == {"prompt": 48}


def test_a_block_of_masks_has_its_rows_of_every_profile() -> None:
    """3 profiles, one site: 2 rows of 6 logits and a norm of 2 times 4; heads of 2 times 17."""
    attachment = attach(small_bert(), PROFILES)
    assert [row.cells for row in break_down(attachment).rows] == [
        {"xpeft": Cell("m=4", 3 * (2 * 6 + 2 * 4))}
    ] * 2
    assert outside(attachment) == {"xpeft": 3 * 2 * 17}


def test_blocks_of_a_forge_have_what_they_would_have_alone() -> None:
    """Compacter in two blocks, of one shape each, and in one of them."""
    for method in (Compacter(bottleneck=4), LowRankAdapter(bottleneck=3)):
        both = break_down(attach(small_t5(), Plan.uniform(method)))
        one = break_down(attach(small_t5(), Plan([Group([method], [1], "decoder")])))
        assert both.rows[3].total == one.rows[3].total > 0
        assert [row.total for row in one.rows[:3]] == [0, 0, 0]


def test_sites_of_different_widths_in_one_forge_are_told_apart() -> None:
    """Rank 1 and m=2: d + 2 down, 2 + d up, biases of 2 and d; 3 d + 6."""
    site = next(s for s in examine(small_bert()).sites if s.role == "ffn")
    sites = [replace(site, block=block) for block in range(3)]
    shapes = [Shape(width, 2, width) for width in (4, 8, 4)]
    found: Counter[int | None] = Counter()
    for each, count in _by_site(Forge("", sites, shapes, None, n=1, rank=1, own=None)):
        found[each.block] += count
    assert found == {0: 18, 1: 30, 2: 18}


# -- a design ---------------------------------------------------------------------------------


def two_groups(gate: Gate | None = None) -> Design:
    """On :func:`small_bert` 600 for each block.

    (A,L): 32 are fixed, 284 each buy m=4 at 66 and r=4 at 64. (P,B): 112 are B's, l=15 at 32.
    """
    return Design(["AL", "PB"], 1_200, pattern="uniform", gate=gate)


FIRST = ["1", "m=4", "296", "r=4", "256", "-", "-", "552", "600", "92%"]


@pytest.mark.parametrize("gate", [None, Gate()], ids=["plain", "gated"])
def test_a_designs_table(gate: Gate | None) -> None:
    found = break_down(attach(small_bert(), two_groups(gate)))
    text = tabulate(found)
    names = ["adapter", "lora", "prefix", "bitfit"]
    assert line(text, "block") == ["group", *names, "total", "share", "filled"]
    assert line(text, "encoder  0") == FIRST
    assert line(text, "encoder  1") == ["2", "-", "-", "l=15", "480", "112", "592", "600", "99%"]
    assert line(text, "total") == ["296", "256", "480", "112", "1,144", "1,200", "95%"]
    share = f"{1_144 / found.backbone:.3%}"
    assert line(text, "of backbone")[-1] == share
    assert line(text, "norms") == ["frozen"]
    if gate is None:
        assert line(text, "gates") == ["none"]
        return
    # Gates of 16 weights and a bias: one per adapter, of q and v, of the prefix, and of the inputs
    # of six linear layers, the last of which is 32 wide.
    by_method, besides = [each for each in text.splitlines() if each.startswith("gates")]
    assert by_method.split()[1:] == ["34", "34", "17", f"{5 * 17 + 33}", f"{34 + 34 + 17 + 118}"]
    assert besides == "gates     203, counted apart"


def test_a_designs_line() -> None:
    plan = two_groups()
    found = break_down(attach(small_bert(), plan))
    first, second = describe(plan, found).splitlines()
    assert first == (
        "Design: uniform of 1, 1 tuned blocks, stacks concat; (A,L), (P,B); uniform over blocks"
    )
    assert second.startswith("budget 1,200 (") and "met with 1,144 (95.3% of it, " in second
    assert describe(UniPELT(), break_down(attach(small_bert(), UniPELT()))) == "UniPELT"


def test_a_block_that_cannot_fill_its_share_is_marked() -> None:
    """Shares of 120: B is 112 whatever happens, A and P at size 1 take 32 + 66 + 32."""
    found = break_down(attach(small_bert(), Design(["B", "AP"], 240, pattern="uniform")))
    text = tabulate(found)
    assert line(text, "encoder  0")[-5:] == ["112", "120", "93%", "under", "budget"]
    assert line(text, "encoder  1")[-3:] == ["130", "120", "108%"]
    drawn = [text.get_text() for axes in plan_picture(found).axes for text in axes.texts]
    assert "112  93%, under budget" in drawn


def test_groups_of_both_stacks_are_named_in_both() -> None:
    plan = S4(0.3, stacks="per_stack")
    found = break_down(attach(small_t5(4), plan))
    assert [row.group for row in found.rows] == ["1", "2", "3", "4"] * 2
    assert [row.block for row in found.rows[3:5]] == [Block("encoder", 3), Block("decoder", 0)]
    assert "spindle of encoder 1, 1, 1, 1; decoder 1, 1, 1, 1 tuned" in describe(plan, found)


def test_groups_of_a_plan_are_numbered_and_may_overlap() -> None:
    plan = Plan([Group([LoRA(r=2)], "0-1"), Group([Adapter(3)], "1-2")])
    found = break_down(attach(small_bert(4), plan))
    assert [row.group for row in found.rows] == ["1", "1+2", "2", "-"]
    assert line(tabulate(found), "encoder  3") == ["-", "-", "-", "0"]
    assert "group" not in tabulate(break_down(attach(small_bert(), Plan.uniform(LoRA()))))


def test_what_is_trained_besides_and_what_remains() -> None:
    text = tabulate(break_down(attach(small_bert(), UniPELT(norms=True))))
    deployed = [int(n.replace(",", "")) for n in line(text, "deployed")]
    assert deployed[1] == 10 * 2 * 16 * 2  # prefixes: keys and values of two blocks
    assert line(text, "norms") == ["160"]  # of five layer norms of 16
    full = tabulate(break_down(attach(small_bert(), FullFineTuning())))
    assert "block" not in full.replace("backbone", "")
    assert line(full, "backbone")[-1] == "trained"


# -- the picture ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep() -> Breakdown:
    """24 blocks of two stacks, of four groups."""
    return break_down(attach(small_t5(12), S4(0.3)))


def squares(figure: Figure) -> dict[tuple[float, float], float]:
    cells = figure.axes[0]
    drawn = [each for each in cells.collections if len(each.get_offsets())]
    return {tuple(each.get_offsets()[0]): each.get_sizes()[0] for each in drawn}


def test_areas_are_parameters_and_the_legend_says_how_many(deep: Breakdown) -> None:
    figure = plan_picture(deep)
    names = list(deep.methods)
    expected = {
        (names.index(name), y): cell.parameters
        for y, row in enumerate(deep.rows)  # y grows upwards: the input is at the bottom
        for name, cell in row.cells.items()
    }
    found = squares(figure)
    assert found.keys() == expected.keys()
    scale = {round(area / expected[place], 9) for place, area in found.items()}
    assert len(scale) == 1
    legend = figure.legends[0]
    handles = dict(
        zip([t.get_text() for t in legend.get_texts()], legend.legend_handles, strict=True)
    )
    numbers = [label for label in handles if label[0].isdigit()]
    assert len(numbers) == 3
    for label in numbers:
        area = handles[label].get_sizes()[0]
        assert area / int(label.replace(",", "")) == pytest.approx(*scale)


def test_bars_are_the_blocks_totals_and_ticks_their_shares(deep: Breakdown) -> None:
    bars = plan_picture(deep).axes[1]
    widths = [patch.get_width() for patch in bars.patches if patch.get_width() > 1]
    assert widths[: len(deep.rows)] == [row.total for row in deep.rows]
    ticks = [tuple(place) for each in bars.collections for place in each.get_offsets()]
    assert ticks == [(row.share, y) for y, row in enumerate(deep.rows)]


def boxes(figure: Figure, rows: int) -> list[Bbox]:
    """Where everything is that could hide something else: words, and squares."""
    cells, _ = figure.axes
    words = [text for axes in figure.axes for text in axes.texts]
    words += [*cells.get_xticklabels(), *cells.get_yticklabels()]
    words += [*figure.legends[0].get_texts(), figure.legends[0].get_title()]
    found = [text.get_window_extent() for text in words if text.get_text()]
    assert len(found) > 2 * rows
    for place, area in squares(figure).items():
        x, y = cells.transData.transform(place)
        half = area**0.5 / 2 * figure.dpi / 72
        found += [Bbox([[x - half, y - half], [x + half, y + half]])] if half else []
    return found


def test_nothing_overlaps(deep: Breakdown) -> None:
    shared = break_down(attach(small_bert(48), UniPELT([Prefix(), Compacter(bottleneck=4)])))
    flat = break_down(attach(small_t5(4), S4(0.3, stacks="per_stack")))
    narrow = break_down(attach(small_t5(), UniPELT([Compacter(bottleneck=4)], norms=True)))
    for found in (deep, shared, flat, replace(narrow, backbone=1_234_567_890)):
        figure = plan_picture(found)
        height, width, _ = plots.pixels(figure).shape
        all_of_it = boxes(figure, len(found.rows))
        assert not [pair for pair in combinations(all_of_it, 2) if pair[0].overlaps(pair[1])]
        page = Bbox([[0, 0], [width, height]])
        assert all(page.containsx(b.x0) and page.containsx(b.x1) for b in all_of_it)
        assert all(page.containsy(b.y0) and page.containsy(b.y1) for b in all_of_it)


def test_a_plan_without_methods_has_no_picture() -> None:
    found = break_down(attach(small_bert(), FullFineTuning()))
    with pytest.raises(ValueError, match="no method to draw"):
        plan_picture(found)
    empty = replace(found, methods=("lora",))  # a method that no block has is no mistake
    assert plan_picture(empty).axes


# -- the command ------------------------------------------------------------------------------


def test_a_recipe_is_shown_without_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file with all kinds of options of ``fit``, from the console script on."""
    Path("recipe.yaml").write_text(f"""
test_after_fit: true
trainer:
  devices: 64
  default_root_dir: runs/here
  logger: {{class_path: WandbLogger, init_args: {{save_dir: runs/here}}}}
  callbacks: [{{class_path: ParameterCount}}]
model:
  backbone: {bert(tmp_path / "bert")}
  plan: {{class_path: Design, init_args: {{strategies: [AL, PB], budget: 1200, pattern: uniform}}}}
  lrs: {{head: 0.1}}
data:
  class_path: TextClassification
  init_args: {{train: absent.csv, labels: [a, b, c]}}
""")
    monkeypatch.setattr("sys.argv", ["lightning-pelt", "plan", "--config=recipe.yaml"])
    assert cli.script() is None
    text = capsys.readouterr().out
    assert line(text, "encoder  0") == FIRST
    assert line(text, "head") == ["51,", "for", "3", "labels", "(data.labels)"]
    assert line(text, "picture:") == ["runs/here/plan.png"]
    assert Path("runs/here/plan.png").read_bytes()[1:4] == b"PNG"
    assert [path.name for path in Path("runs").rglob("*") if path.is_file()] == ["plan.png"]


@pytest.mark.parametrize(
    ("options", "head"),
    [
        (CLASSES, "not counted: only the data, which is not read, says how many labels there are"),
        (["--data=GLUE", "--data.task=mnli"], "51, for 3 labels (GLUE's mnli)"),
        (["--data=GLUE", "--data.task=stsb", "--model.task=Regression"], "17"),
    ],
    ids=["unknown", "known", "of none"],
)
def test_how_the_head_was_counted_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], head: str
) -> None:
    text = show(capsys, f"--model.backbone={bert(tmp_path / 'bert')}", *options)
    assert f"head      {head}\n" in text
    assert line(text, "picture:") == ["plan.png"] and Path("plan.png").is_file()


def test_t5_has_no_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data=TextToText", "--data.train=absent.csv", "--model.task=TextToText"]
    backbone = f"--model.backbone={t5(tmp_path / 't5')}"
    text = show(capsys, backbone, *options, "--model.plan=HeadOnly")
    assert line(text, "head") == ["none"]
    assert "picture" not in text and not Path("plan.png").exists()
    text = show(capsys, backbone, *options, "--model.plan=UniPELT", "--picture=at/last.png")
    # Encoder: an adapter of m=1 behind the feed-forward, r=8 of q and v; twice that r in a decoder.
    assert line(text, "encoder  1")[:4] == ["m=1", "49", "l=10", "r=8"]
    assert line(text, "decoder  1")[:4] == ["m=1", "49", "l=10", "r=8"]
    assert (line(text, "encoder  1")[4], line(text, "decoder  1")[4]) == ("512", "1,024")
    assert line(text, "picture:") == ["at/last.png"] and Path("at/last.png").is_file()


DESIGN = ["--model.plan=Design", "--model.plan.strategies=[APL,APL]"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.plan=S4"], "2 blocks cannot be shared among 4 groups"),
        ([*DESIGN, "--model.plan.budget=20"], "nearest reachable total is"),
        (["--model.backbone=./nowhere"], "there is no such folder"),
        (["--data=GLUE", "--data.task=sst2", "--model.plan=UniPELT", "--model.task=Classification",
          "--model.task.metrics=[acuracy]"], "did you mean 'accuracy'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        show(capsys, f"--model.backbone={bert(tmp_path / 'bert')}", *CLASSES, *options)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out and not Path("plan.png").exists()
    last = printed.err.strip().splitlines()[-1]
    assert last.startswith("lightning-pelt plan: ") and said in last


def test_a_misspelt_option_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        plan_cli.main(["--model.backbone=x", *CLASSES, "--model.plan=S4", "--model.plan.budgit=3"])
    assert ended.value.code == 2
    assert "did you mean 'budget'?" in capsys.readouterr().err
