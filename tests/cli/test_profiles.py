"""``lightning-pelt profiles`` from a fit to predictions, on a few rows, in this process."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import datasets
import pytest
import torch
from small import WORDS, bert

from lightning_pelt.cli import profiles as profiles_cli
from lightning_pelt.cli.main import script
from lightning_pelt.cli.profiles import recipes
from lightning_pelt.cli.profiles.add import Add
from lightning_pelt.data import ProfileDataModule
from lightning_pelt.methods.xpeft.masks import masks_of, profiles_of, top_k
from lightning_pelt.profiles.mask_predictor_file import load_predictor
from lightning_pelt.profiles.mask_predictor_training import predict_logits
from lightning_pelt.profiles.model_profiles import heads_of, read_profile, write_profile
from lightning_pelt.profiles.serving.loading import load_model, open_store
from lightning_pelt.profiles.store import ProfileStore

PEOPLE = ["ann", "bob", "cid"]
TEXTS = [" ".join(WORDS[i : i + 1 + i % 3]) for i in range(8)]
RECIPE = """
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{class_path: ModelCheckpoint, init_args: {dirpath: kept, filename: fit}}]
model:
  backbone: BACKBONE
  lr: 0.05
  plan:
    class_path: Plan
    init_args:
      groups:
        - methods:
            - class_path: XPEFT
              init_args:
                bank: {class_path: lightning_pelt.RandomBank, init_args: {size: 20}}
                k: 5
                scale: 8.0
                bottleneck: 4
                profiles: 3
                norm: NORM
                head: HEAD
data:
  class_path: ProfileDataModule
  init_args: {train: rows.csv, test: rows.csv, dev_share: 0, batch_size: 4, max_length: 16}
"""


def write_rows(path: str, people: list[str], labels: tuple[str, str] = ("low", "high")) -> None:
    rows = [
        (text, labels[name == "cid" or (len(text) > 8) ^ (name == "bob")], name)
        for name in people
        for text in TEXTS
    ]
    with Path(path).open("w") as file:
        csv.writer(file).writerows([("text", "label", "profile"), *rows])


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, _isolated: None, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(params=[("profile", "profile"), ("shared", "shared")], ids=["own", "shared"])
def recipe(request: pytest.FixtureRequest) -> str:
    norm, head = request.param
    text = RECIPE.replace("BACKBONE", bert(Path("bert"), hidden_dropout_prob=0.0))
    Path("recipe.yaml").write_text(text.replace("NORM", norm).replace("HEAD", head))
    write_rows("rows.csv", PEOPLE)
    return "recipe.yaml"


@pytest.fixture(scope="module")
def finished() -> dict[str, Path]:
    """Folders of the fits that :func:`trained` has made, by recipe."""
    return {}


@pytest.fixture
def trained(recipe: str, finished: dict[str, Path], tmp_path_factory) -> str:
    """The checkpoint of a fit with its store, in the working folder; each recipe is fitted once."""
    text = Path(recipe).read_text()
    if text in finished:
        shutil.copytree(finished[text], Path(), dirs_exist_ok=True)
    else:
        profiles_cli.main(["train", f"--config={recipe}", "--store=profiles.db"])
        finished[text] = tmp_path_factory.mktemp("trained")
        shutil.copytree(Path(), finished[text], dirs_exist_ok=True)
    return "kept/fit.ckpt"


def failed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The line that a command prints before it ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        profiles_cli.main(list(args))
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"lightning-pelt profiles {args[0]}: ")
    return said


def accuracy(checkpoint: str, people: list[str]) -> dict[str, float]:
    """Of the trained model, row by row."""
    module, right = load_model(checkpoint), dict.fromkeys(people, 0)
    with Path("rows.csv").open() as file:
        for row in csv.DictReader(file):
            tokens = dict(module.tokenizer([row["text"]], return_tensors="pt"))
            with torch.no_grad(), profiles_of(module, [people.index(row["profile"])]):
                (answer,) = module.task.predict(module.model, tokens, labels=module.labels)
            right[row["profile"]] += answer["label"] == row["label"]
    return {name: count / len(TEXTS) for name, count in right.items()}


# -- train and list ---------------------------------------------------------------------------


@pytest.mark.slow
def test_train_stores_every_profile_of_the_best_checkpoint(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles_cli.main(["train", f"--config={recipe}", "--store=profiles.db", "--model.lr=0.1"])
    module = load_model("kept/fit.ckpt")
    assert module.lr == 0.1
    with ProfileStore("profiles.db") as store:
        assert list(store.ids()) == PEOPLE
        for number, name in enumerate(PEOPLE):
            assert store.get(name) == read_profile(module, number)
    *_, checkpoint, kept, head, numbers = capsys.readouterr().out.splitlines()
    assert checkpoint.endswith("kept/fit.ckpt")
    assert kept.endswith("profiles.db")
    assert head.split()[:4] == ["profiles", "masks", "norm", "head"]
    own = masks_of(module).own_norms
    # 2 blocks: masks of 2 x 3 bytes, norms of 2 x 4 numbers, and a head of 2 x (16 + 1)
    expected = [3, 2 * 2 * 3, 4 * 2 * 2 * 4 * own, 4 * 2 * 17 * own]
    assert [int(number) for number in numbers.split()] == expected


@pytest.mark.slow
def test_list_shows_versions_and_bytes(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    with ProfileStore("profiles.db") as store:
        store.put("bob", store.get("ann"))
    capsys.readouterr()
    profiles_cli.main(["list", "--store=profiles.db"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:7] == ["profile", "version", "k", "N", "masks", "norm", "head"]
    rows = [line.split()[:5] for line in lines]
    assert rows == [[name, "2" if name == "bob" else "1", "5", "20", "12"] for name in PEOPLE]


@pytest.mark.slow
def test_train_refuses_what_it_could_not_store(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it trains."""
    train = ["train", f"--config={recipe}", "--store=profiles.db"]
    off = ["--trainer.enable_checkpointing=false", "--trainer.callbacks=null"]
    assert "the shared parameters of the profiles would not be saved" in failed(
        capsys, *train, *off
    )
    plain = ["--data=TextClassification", "--data.train=rows.csv", "--data.dev=rows.csv"]
    assert "TextClassification has no profiles" in failed(capsys, *train, *plain)
    profiles_cli.main([*train, "--trainer.max_epochs=1"])
    said = failed(capsys, *train, "--model.plan=HeadOnly")
    assert "holds 0 sets of profiles" in said


# -- add --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_add_trains_one_profile_and_nothing_else(trained: str) -> None:
    write_rows("more.csv", ["dora", "eve"])
    before = load_model(trained)
    old = {name: t.clone() for name, t in before.model.state_dict().items()}
    with ProfileStore("profiles.db") as store:
        kept = dict(store.iterate())
    profiles_cli.main(
        [
            "add", "--config=recipe.yaml", f"--checkpoint={trained}", "--store=profiles.db",
            "--profile=dora", "--data.train=more.csv", "--data.test=null",
            "--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.dirpath=added",
            "--trainer.callbacks.filename=dora", "--trainer.max_epochs=4",
        ]
    )  # fmt: skip
    with ProfileStore("profiles.db") as store:
        assert list(store.ids()) == [*PEOPLE, "dora"]
        assert {name: store.get(name) for name in PEOPLE} == kept
        dora = store.get("dora")
    added = load_model("added/dora.ckpt")
    assert read_profile(added) == dora
    state = added.model.state_dict()
    own = {name for name in old if name.rpartition(".")[2].isdecimal() and "norms" not in name}
    if masks_of(added).own_norms:
        own |= {name for name in old if "norms" in name}
    shared = old.keys() - own
    assert any("classifier" in name for name in shared)
    for name in shared:
        assert torch.equal(state[name], old[name]), name
    mean = torch.stack([*masks_of(before).logits]).mean(0)
    assert not torch.equal(masks_of(added).logits[0], mean)
    assert len(masks_of(added).logits) == 1
    assert load_model(trained).model.state_dict().keys() == old.keys()


@pytest.mark.slow
def test_add_starts_at_the_mean_of_the_others(trained: str) -> None:
    """With a learning rate of 0 the stored profile is the mean."""
    write_rows("more.csv", ["dora"])
    profiles_cli.main(
        [
            "add", "--config=recipe.yaml", f"--checkpoint={trained}", "--store=profiles.db",
            "--profile=dora", "--data.train=more.csv", "--data.test=null", "--model.lr=0",
        ]
    )  # fmt: skip
    module = load_model(trained)
    with torch.no_grad():
        for values in (masks_of(module).logits, masks_of(module).norms):
            if len(values) == len(PEOPLE):
                values[0].copy_(torch.stack([*values]).mean(0))
        if (heads := heads_of(module)) is not None:
            heads.own[0].copy_(torch.stack([*heads.own]).mean(0))
    with ProfileStore("profiles.db") as store:
        assert store.get("dora") == read_profile(module, 0)


@pytest.mark.slow
def test_add_takes_the_labels_of_the_trained_head(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows with one of its labels are accepted, rows with another label are refused."""
    add = [
        "add", "--config=recipe.yaml", f"--checkpoint={trained}", "--store=profiles.db",
        "--data.train=more.csv", "--data.test=null",
    ]  # fmt: skip
    write_rows("more.csv", ["dora"], ("high", "high"))
    profiles_cli.main([*add, "--profile=dora"])
    with ProfileStore("profiles.db") as store:
        assert "dora" in store
    write_rows("more.csv", ["eve"], ("high", "perhaps"))
    assert "unknown label 'perhaps'" in failed(capsys, *add, "--profile=eve")
    assert "the checkpoint was trained on the labels ['high', 'low']" in failed(
        capsys, *add, "--profile=eve", "--data.labels=[low, high]"
    )
    write_rows("more.csv", ["eve"])
    assert "unknown profile 'evie': did you mean 'eve'?" in failed(capsys, *add, "--profile=evie")
    with ProfileStore("profiles.db") as store:
        assert "eve" not in store


@pytest.mark.slow
def test_delete_leaves_nothing_of_the_named_profiles(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = failed(capsys, "delete", "--store=profiles.db", "--ids=[ann, nobody]")
    assert "has no profile 'nobody'" in said
    profiles_cli.main(["delete", "--store=profiles.db", "--ids=ann", "--dry_run=true"])
    assert capsys.readouterr().out == "ann: 1 version would be deleted\n"
    with ProfileStore("profiles.db") as store:
        assert list(store.ids()) == PEOPLE
    profiles_cli.main(["delete", "--store=profiles.db", "--ids=[ann, bob]"])
    assert capsys.readouterr().out == "ann: 1 version deleted\nbob: 1 version deleted\n"
    with ProfileStore("profiles.db") as store:
        assert list(store.ids()) == [name for name in PEOPLE if name not in ("ann", "bob")]


# -- learn-instant, and add --instant ---------------------------------------------------------

LEARN = ["--out=net.safetensors", "--episodes.steps=3", "--episodes.rank=2"]
NEW = ["--profile=dora", "--data.train=more.csv", "--data.test=null"]


def add(checkpoint: str, *given: str) -> None:
    profiles_cli.main(
        ["add", "--config=recipe.yaml", f"--checkpoint={checkpoint}", *NEW, *given],
    )


@pytest.fixture
def learned(trained: str) -> str:
    """The checkpoint; its network is in net.safetensors, and the rows of dora in more.csv."""
    write_rows("more.csv", ["dora"])
    profiles_cli.main(["learn-instant", "--config=recipe.yaml", f"--checkpoint={trained}", *LEARN])
    return trained


def test_an_instant_profile_is_that_of_the_network(
    learned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is added in one forward pass, and ten steps from it are another version."""
    store = "--store=instant.db"
    add(learned, store, "--instant=net.safetensors")
    assert "version 1 of the profile 'dora'" in capsys.readouterr().out
    add(learned, store, "--instant=net.safetensors", "--refine_steps=0")
    add(learned, store, "--instant=net.safetensors", "--refine_steps=10", "--model.lr=0")
    add(learned, store, "--instant=net.safetensors", "--refine_steps=10", "--model.lr=0.5")
    module = load_model(learned)
    predictor = load_predictor("net.safetensors", module.attachment)
    data = ProfileDataModule("bert", train="more.csv", dev_share=0, max_length=16)
    logits = predict_logits(predictor, module, data.examples("train"), data.collate())
    expected = top_k(logits, 5).numpy()
    with ProfileStore("instant.db") as opened:
        first, again, still, refined = (opened.get("dora", n) for n in (1, 2, 3, 4))
        assert list(opened.ids()) == ["dora"]
    assert (first.masks == expected).all()
    assert first == again
    assert (first.masks.sum(-1) == 5).all()
    assert (still.masks == first.masks).all()
    assert not (refined.masks == first.masks).all()


@pytest.mark.slow
def test_what_is_tested_after_refining_is_what_is_stored(
    learned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last step, where the recipe keeps a checkpoint of another one; and nothing is warned."""
    options = ["--test_after_fit=true", "--data.test=more.csv", "--model.lr=0.5"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*do not learn")
        add(learned, "--store=i.db", "--instant=net.safetensors", "--refine_steps=7", *options)
    loss = re.search(r"test/loss\W+([\d.]+)", capsys.readouterr().out)
    with ProfileStore("i.db") as store:
        profile = store.get("dora")
    module = load_model(learned)
    write_profile(module.model, 0, profile)
    module.eval()
    data = ProfileDataModule("bert", train="more.csv", dev_share=0, max_length=16)
    batch = data.collate()(data.examples("train"))
    batch["profile"] = torch.zeros_like(batch["labels"])
    with torch.no_grad():
        expected = module.task.step(module.model, batch)[0]
    assert loss is not None
    assert float(loss[1]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_refining_takes_as_many_steps_as_asked(
    learned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    after = Add.after_fit
    monkeypatch.setattr(
        Add, "after_fit", lambda self: (steps.append(self.trainer.global_step), after(self))
    )
    for asked in (1, 10):
        add(learned, "--store=i.db", "--instant=net.safetensors", f"--refine_steps={asked}")
    add(learned, "--store=i.db", "--instant=net.safetensors")
    assert steps == [1, 10, 0]


@pytest.mark.slow
def test_instant_is_refused_where_it_cannot_work(
    learned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["add", "--config=recipe.yaml", f"--checkpoint={learned}", "--store=i.db", *NEW]
    net = "--instant=net.safetensors"
    assert "there is no network none.safetensors" in failed(
        capsys, *given, "--instant=none.safetensors"
    )
    assert "refine_steps is 10 without --instant" in failed(capsys, *given, "--refine_steps=10")
    assert "refine_steps is -1, expected 0 or more" in failed(
        capsys, *given, net, "--refine_steps=-1"
    )
    assert "unknown profile 'eve'" in failed(capsys, *given, net, "--profile=eve")
    write_rows("more.csv", ["dora"], ("high", "perhaps"))
    assert "unknown label 'perhaps'" in failed(capsys, *given, net)
    write_rows("more.csv", ["dora"])
    text = Path("recipe.yaml").read_text()
    Path("other.yaml").write_text(text.replace("{size: 20}", "{size: 20, seed: 1}"))
    profiles_cli.main(["train", "--config=other.yaml", "--store=other.db"])
    other = "--checkpoint=kept/fit-v1.ckpt"
    assert "net.safetensors belongs to the bank" in failed(capsys, *given, net, other)
    with pytest.raises(FileNotFoundError):
        open_store("i.db")  # nothing was stored


@pytest.mark.slow
def test_learn_instant_refuses_what_it_could_not_write(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    learn = ["learn-instant", "--config=recipe.yaml", f"--checkpoint={trained}"]
    assert "'net.pt', expected *.safetensors" in failed(capsys, *learn, "--out=net.pt")
    plain = ["--data=TextClassification", "--data.train=rows.csv", "--data.dev=rows.csv"]
    assert "has no profiles" in failed(capsys, *learn, "--out=net.safetensors", *plain)


# -- evaluate ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluate_scores_the_stored_profiles(
    trained: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = accuracy(trained, PEOPLE)
    evaluate = ["evaluate", "--config=recipe.yaml", f"--checkpoint={trained}"]
    capsys.readouterr()
    profiles_cli.main([*evaluate, "--store=profiles.db"])
    _, *lines, overall = [line.split() for line in capsys.readouterr().out.splitlines()[-5:]]
    assert {name: float(share) for name, _, share in lines} == pytest.approx(expected, abs=1e-4)
    assert overall[:2] == ["all", "24"]
    assert float(overall[2]) == pytest.approx(sum(expected.values()) / 3, abs=1e-4)
    assert len(set(expected.values())) > 1  # or the profiles could have been mixed up
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "MANY", 2)
        profiles_cli.main([*evaluate, "--store=profiles.db", "--csv=scores.csv"])
    out = capsys.readouterr().out
    assert "Accuracy of 3 profiles" in out and "median" in out
    with Path("scores.csv").open() as file:
        scores = {row["profile"]: float(row["accuracy"]) for row in csv.DictReader(file)}
    assert scores == pytest.approx(expected, abs=1e-6)
    profiles_cli.main([*evaluate, "--store=profiles.db", "--split=train"])
    assert capsys.readouterr().out.splitlines()[-1].split() == overall
    with ProfileStore("profiles.db") as store:
        store.delete("bob")
    assert "has no profile 'bob'" in failed(capsys, *evaluate, "--store=profiles.db")
    said = failed(capsys, *evaluate, "--store=profiles.db", "--split=dev")
    assert "has no dev split, only train, test" in said


# -- export and import ------------------------------------------------------------------------


def test_an_export_is_imported_to_another_store(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles_cli.main(["export", "--store=profiles.db", "--folder=shards"])
    profiles_cli.main(["import", "--store=other.db", "--folder=shards"])
    with ProfileStore("profiles.db") as one, ProfileStore("other.db") as other:
        assert dict(one.iterate()) == dict(other.iterate())
    assert "3 profiles" in capsys.readouterr().out
    assert "holds an export already" in failed(
        capsys, "export", "--store=profiles.db", "--folder=shards"
    )
    assert "there is no manifest.json" in failed(
        capsys, "import", "--store=other.db", "--folder=kept"
    )


# -- predict ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.slow
def test_predict_answers_a_file_in_its_order(trained: str, kind: str) -> None:
    rows = [{"text": TEXTS[i], "profile": PEOPLE[i % 3]} for i in range(8)]
    with Path(f"new.{kind}").open("w") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, ["profile", "text"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    predict = ["predict", f"--checkpoint={trained}", "--store=profiles.db"]
    profiles_cli.main([*predict, f"--input=new.{kind}", "--output=out/answers.jsonl"])
    lines = [json.loads(line) for line in Path("out/answers.jsonl").read_text().splitlines()]
    assert [(line["row"], line["profile"]) for line in lines] == [
        (i, PEOPLE[i % 3]) for i in range(8)
    ]
    module = load_model(trained)
    for i, line in enumerate(lines):
        tokens = dict(module.tokenizer([TEXTS[i]], return_tensors="pt"))
        with torch.no_grad(), profiles_of(module, [i % 3]):
            (alone,) = module.task.predict(module.model, tokens, labels=module.labels)
        assert line["label"] == alone["label"]
        assert line["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


BAD_ROWS = {
    "unknown": ({"text": "one", "profile": "zoe"}, "column 'profile': .* has no profile 'zoe'"),
    "empty": ({"text": " ", "profile": "ann"}, "column 'text': the text is empty"),
    "no profile": ({"text": "one", "profile": ""}, "column 'profile': the text is empty"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_and_nothing_is_written(
    trained: str, capsys: pytest.CaptureFixture[str], row: dict[str, str], message: str
) -> None:
    good = {"text": "one", "profile": "ann"}
    Path("new.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (good, row, good)))
    Path("answers.jsonl").write_text("an earlier answer")
    predict = ["predict", f"--checkpoint={trained}", "--store=profiles.db", "--input=new.jsonl"]
    said = failed(capsys, *predict, "--output=answers.jsonl")
    assert re.search(f"new.jsonl, row 2, {message}", said)
    assert Path("answers.jsonl").read_text() == "an earlier answer"
    assert not list(Path().glob(".answers*"))
    Path("new.jsonl").write_text('{"text": "one", "user": "ann"}\n')
    assert "unknown column 'profile'" in failed(capsys, *predict, "--output=answers.jsonl")


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["list", "export", "predict"])
def test_a_missing_store_is_not_created(capsys: pytest.CaptureFixture[str], command: str) -> None:
    options = {
        "export": ["--folder=shards"],
        "predict": ["--checkpoint=fit.ckpt", "--input=new.csv", "--output=out.jsonl"],
    }
    for store in ("nothing.db", "sqlite:///nothing.db"):
        said = failed(capsys, command, f"--store={store}", *options.get(command, []))
        assert said.endswith("there is no store nothing.db")
    assert not Path("nothing.db").exists()


@pytest.mark.slow
def test_a_file_that_is_not_a_checkpoint_is_refused(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = ["evaluate", f"--config={recipe}", "--store=profiles.db"]
    assert "there is no checkpoint fit.ckpt" in failed(capsys, *evaluate, "--checkpoint=fit.ckpt")
    torch.save({"state_dict": {}, "code": Path}, "foreign.ckpt")
    said = failed(capsys, *evaluate, "--checkpoint=foreign.ckpt")
    assert said.endswith("is not a checkpoint that `lightning-pelt fit` wrote, or it is damaged")
    assert "weights_only" not in said
    Path("text.ckpt").write_text("no checkpoint")
    assert "text.ckpt is not a checkpoint" in failed(capsys, *evaluate, "--checkpoint=text.ckpt")


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit):
        profiles_cli.main(list(args))
    said = capsys.readouterr()
    return said.out + said.err


@pytest.mark.slow
def test_help_names_the_commands_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    overview = printed(capsys, "--help")
    for command, words in profiles_cli.COMMANDS.items():
        assert command in overview
        assert words in " ".join(overview.split())
    for command in ("train", "add", "evaluate"):
        shown = printed(capsys, command, "--help")
        usage = shown.partition("\n\n")[0]
        assert f"lightning-pelt profiles {command} --config RECIPE" in " ".join(usage.split())
        assert "--store" in usage
        assert len(usage.splitlines()) <= 2
        assert "--model.backbone" in shown
    for command, option in (("list", "--store"), ("predict", "--input"), ("import", "--folder")):
        shown = printed(capsys, command, "--help")
        assert shown.startswith("usage: lightning-pelt profiles")
        assert option in shown


@pytest.mark.slow
def test_a_misspelt_name_is_answered_with_the_nearest(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "did you mean 'evaluate'?" in printed(capsys, "evalute")
    assert "did you mean 'folder'?" in printed(capsys, "export", "--store=s.db", "--foldr=f")
    train = ["train", f"--config={recipe}"]
    assert "did you mean 'store'?" in printed(capsys, *train, "--stoer=s.db")
    assert "did you mean 'model.lr'?" in printed(capsys, *train, "--store=s.db", "--model.lrr=1")
    said = printed(capsys, *train)
    assert said == "lightning-pelt profiles train: store is required\n"


def test_the_console_script_runs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-pelt", "profiles", "list", "--store=none.db"])
    with pytest.raises(SystemExit) as ended:
        script()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "lightning-pelt profiles list: there is no store none.db\n"
