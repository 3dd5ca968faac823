"""TrunkCache trains what a run without it trains, and runs the lowest blocks once per example."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.test_pelt import Lazy, UserModule
from callbacks.tiny import loader, trainer
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from small import LABELS, Sentences, bert, gpt2
from torch import Tensor, nn

from lightning_pelt import (
    XPEFT,
    Adapter,
    CausalLM,
    Compacter,
    Gate,
    GateSchedule,
    Group,
    HeadOnly,
    LoRA,
    PELTCallback,
    PELTModule,
    Phase,
    Plan,
    Prefix,
    Prompt,
    RandomBank,
    TrunkCache,
    UniPELT,
)
from lightning_pelt.training.trunk_cache import CachedTrunk, digest_of

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LORA = Plan([Group([LoRA(r=2)], blocks=[1])])
GATED = Plan([Group([LoRA(r=2, dropout=0.3), Adapter(), Prefix(length=2, mlp=8)], blocks=[1])])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("bert"))  # with dropout, which base_dropout=False stops


class Runs(Callback):
    """Counts how often the first block computes something, by epoch."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.calls = 0

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        inner = next(m for n, m in pl_module.named_modules() if n.endswith("0.attention.self"))
        # Not a hook: a stranger's hook inside the trunk would turn the cache off.
        self.original, inner.forward = inner.forward, self.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._count()
        return self.original(*args, **kwargs)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append(self.calls)
        self.calls = 0


class Seen(Callback):
    """The cached models of a run, which end with it."""

    trunks: list[CachedTrunk]

    def __init__(self, cache: TrunkCache) -> None:
        self.cache = cache
        self.read = self.computed = 0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.trunks = list(self.cache.trunks)

    def on_train_batch_end(self, *_: Any) -> None:
        (trunk,) = self.trunks
        total = trunk.before + trunk.counts
        self.read, self.computed = total.read, total.computed


def trained(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], within: float = 1e-6) -> None:
    torch.testing.assert_close(other, one, rtol=0, atol=within)


def fit(
    folder: Path,
    backbone: str,
    *callbacks: Callback,
    plan: Plan = LORA,
    task: Any = None,
    target: str = "label",
    resume: Path | None = None,
    options: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Tensor]:
    """The trained weights after three epochs of five batches."""
    seed_everything(3, verbose=False)
    given = {"lr": 1e-2, "base_dropout": False, **(options or {})}
    labels = LABELS if target == "label" else None
    module = PELTModule(backbone, plan, task, labels=labels, **given)
    run = trainer(folder, *callbacks, **{"max_epochs": 3, **more})
    run.fit(module, Sentences(backbone, target=target), ckpt_path=resume, weights_only=True)
    return trained(module)


@contextmanager
def no_warning_of_the_cache() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trunk cache.*")
        yield


@pytest.mark.parametrize(
    "plan",
    [
        LORA,
        GATED,
        Plan([Group([Adapter(gate=Gate(), bottleneck=4), LoRA(r=2, gate=Gate())], blocks=[1])]),
        Plan(
            [Group([Compacter(bottleneck=4, n=2), Prefix(length=2, mlp=None)], blocks=[1])], False
        ),
        HeadOnly(),
    ],
    ids=["lora", "three", "gated", "compacter", "head"],
)
def test_it_trains_the_same(tmp_path: Path, tiny: str, plan: Plan) -> None:
    without = fit(tmp_path / "without", tiny, plan=plan)
    with no_warning_of_the_cache():
        cache, runs = TrunkCache(tmp_path / "trunk"), Runs()
        first = fit(tmp_path / "first", tiny, runs, cache, plan=plan)
        again, later = TrunkCache(tmp_path / "trunk"), Runs()
        second = fit(tmp_path / "second", tiny, later, again, plan=plan)
    assert_same(without, first)
    assert_same(without, second)
    assert runs.epochs[1:] == later.epochs[1:] == [0, 0]  # epochs in which no trunk has run
    assert 0 < later.epochs[0] < runs.epochs[0]  # the trial alone
    start = fit(tmp_path / "start", tiny, plan=plan, max_epochs=0)
    assert any(not torch.allclose(start[n], without[n]) for n in start)


def test_evaluations_agree_and_use_it(tmp_path: Path, tiny: str) -> None:
    module = PELTModule(tiny, LORA, labels=LABELS)
    data = Sentences(tiny)
    run = trainer(tmp_path)
    whole = run.validate(module, data, verbose=False)[0]
    cache = TrunkCache(tmp_path / "trunk")
    cached = trainer(tmp_path, cache)
    for _ in range(2):
        found = cached.validate(module, data, verbose=False)[0]
        assert found == pytest.approx(whole, abs=1e-6)
    tested = cached.test(module, data, verbose=False)[0]
    assert tested == pytest.approx(run.test(module, data, verbose=False)[0], abs=1e-6)
    predicted, expected = (
        [row for batch in each.predict(module, data) for row in batch] for each in (cached, run)
    )
    assert [row["label"] for row in predicted] == [row["label"] for row in expected]
    # The last bits differ on some processors.
    for row, like in zip(predicted, expected, strict=True):
        assert row["probabilities"] == pytest.approx(like["probabilities"], abs=1e-6)


def test_a_run_resumes_on_it(tmp_path: Path, tiny: str) -> None:
    without = fit(tmp_path / "without", tiny)
    cache = TrunkCache(tmp_path / "trunk")
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=7, save_top_k=-1)
    fit(tmp_path / "half", tiny, cache, saving, enable_checkpointing=True)
    (half,) = tmp_path.glob("*step=7.ckpt")
    runs = Runs()
    resumed = fit(tmp_path / "rest", tiny, runs, TrunkCache(tmp_path / "trunk"), resume=half)
    assert_same(without, resumed)
    assert runs.epochs[-1] == 0


def test_dropout_of_the_base(tmp_path: Path, tiny: str) -> None:
    active = {"options": {"base_dropout": True}}
    without = fit(tmp_path / "without", tiny, **active)
    cache = TrunkCache(tmp_path / "trunk")
    seen = Seen(cache)
    with pytest.warns(UserWarning, match="off in training.*base_dropout=False"):
        first = fit(tmp_path / "first", tiny, cache, seen, **active)
    assert_same(without, first, within=0)
    assert seen.read == seen.computed == 0
    assert seen.trunks[0].evaluated.read > 0  # by validations


def test_dropout_that_the_backbone_does_not_have(tmp_path: Path) -> None:
    still = bert(tmp_path / "still", **STILL)
    runs = Runs()
    with no_warning_of_the_cache():
        fit(tmp_path, still, runs, TrunkCache(tmp_path), options={"base_dropout": True})
    assert runs.epochs[1:] == [0, 0]


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (Plan.uniform(LoRA(r=2)), "reaches down to block 0"),
        (Plan([Group([Prompt(length=2)]), Group([LoRA(r=2)], [1])]), "below that block"),
    ],
    ids=["all blocks", "prompt"],
)
def test_plans_that_reach_down(tmp_path: Path, tiny: str, plan: Plan, reason: str) -> None:
    without = fit(tmp_path / "without", tiny, plan=plan)
    with pytest.warns(UserWarning, match=f"trunk cache is off: .*{reason}"):
        found = fit(tmp_path / "with", tiny, TrunkCache(tmp_path / "trunk"), plan=plan)
    assert_same(without, found, within=0)


def test_a_schedule_does_not_change_the_lowest_block(tmp_path: Path, tiny: str) -> None:
    plan = UniPELT([LoRA(r=2), Adapter(bottleneck=4)])
    upper = Plan([Group(plan.methods, blocks=[1])])
    phases = {"lora": [Phase(until=4, state="closed"), Phase()]}

    def schedule() -> GateSchedule:
        return GateSchedule(phases, unit="step", prune_below=0.4)

    without = fit(tmp_path / "without", tiny, schedule(), plan=upper)
    runs = Runs()
    found = fit(tmp_path / "with", tiny, runs, schedule(), TrunkCache(tmp_path), plan=upper)
    assert_same(without, found)
    assert runs.epochs[1:] == [0, 0]


def test_gates_that_count_padding(tmp_path: Path, tiny: str) -> None:
    plan = Plan([Group([LoRA(r=2, gate=Gate(pool="all"))], blocks=[1])])
    without = fit(tmp_path / "without", tiny, plan=plan)
    cache = TrunkCache(tmp_path / "trunk")
    seen = Seen(cache)
    assert_same(without, fit(tmp_path / "with", tiny, seen, cache, plan=plan))
    assert seen.read > 0


def test_a_decoder(tmp_path: Path) -> None:
    backbone = gpt2(tmp_path / "gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    given = {"plan": LORA, "task": CausalLM(max_new_tokens=2), "target": "none"}
    without = fit(tmp_path / "without", backbone, **given)
    cache = TrunkCache(tmp_path / "trunk")
    seen = Seen(cache)
    with no_warning_of_the_cache():
        found = fit(tmp_path / "with", backbone, seen, cache, **given)
    assert_same(without, found)
    assert seen.read == 40


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision(tmp_path: Path, tiny: str, precision: str) -> None:
    without = fit(tmp_path / "without", tiny, precision=precision)
    cache = TrunkCache(tmp_path / "trunk")
    found = fit(tmp_path / "with", tiny, cache, precision=precision)
    assert_same(without, found, within=2e-2)  # products of other shapes round otherwise
    (manifest,) = (tmp_path / "trunk").glob("*/trunk.json")
    assert ('"dtype": "bfloat16"' in manifest.read_text()) == (precision == "bf16-true")
    assert ('"autocast": "bfloat16"' in manifest.read_text()) == (precision == "bf16-mixed")


def test_other_weights_are_other_states(tmp_path: Path, tiny: str) -> None:
    fit(tmp_path / "first", tiny, TrunkCache(tmp_path / "trunk"))
    (old,) = (tmp_path / "trunk").iterdir()
    other = bert(tmp_path / "other", hidden_act="relu")
    without = fit(tmp_path / "without", other)
    assert_same(without, fit(tmp_path / "with", other, TrunkCache(tmp_path / "trunk")))
    assert len([*(tmp_path / "trunk").iterdir()]) == 2 and old.exists()  # equal weights, other act


class Change(Callback):
    """Changes a weight of the first block within the second epoch."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 7:
            block = pl_module.model.bert.encoder.layer[0]
            with torch.no_grad():
                block.output.dense.weight.mul_(0.5)


def test_weights_that_change_in_a_run(tmp_path: Path, tiny: str) -> None:
    without = fit(tmp_path / "without", tiny, Change())
    with pytest.warns(UserWarning, match="weights below the plan have changed"):
        found = fit(tmp_path / "with", tiny, Change(), TrunkCache(tmp_path / "trunk"))
    assert_same(without, found)


def test_a_bounded_cache_trains_the_same(tmp_path: Path, tiny: str) -> None:
    without = fit(tmp_path / "without", tiny)
    cache = TrunkCache(tmp_path / "trunk", max_bytes=4000)
    seen = Seen(cache)
    assert_same(without, fit(tmp_path / "with", tiny, seen, cache))
    assert 0 < seen.read < seen.computed
    assert sum(f.stat().st_size for f in (tmp_path / "trunk").rglob("*.safetensors")) <= 4000


class Noisy(Sentences):
    """Replaces the tokens of each row at random, in every batch."""

    def collate(self) -> Callable[[Any], dict[str, Any]]:
        inner = super().collate()

        def noisy(rows: Any) -> dict[str, Any]:
            batch = inner(rows)
            batch["input_ids"] = torch.randint(3, 14, (len(batch["input_ids"]), 8))
            batch["attention_mask"] = torch.ones(len(batch["input_ids"]), 8, dtype=torch.long)
            return batch

        return noisy


def test_augmented_examples(tmp_path: Path, tiny: str) -> None:
    seed_everything(3, verbose=False)
    module = PELTModule(tiny, LORA, labels=LABELS, base_dropout=False)
    run = trainer(tmp_path, TrunkCache(tmp_path / "trunk"), max_epochs=3, limit_val_batches=0)
    with pytest.warns(UserWarning, match="0 of 20 examples of an epoch came before"):
        run.fit(module, Noisy(tiny))


@pytest.mark.parametrize("make", [UserModule, Lazy])
def test_a_strangers_module(tmp_path: Path, make: type[UserModule]) -> None:
    def run(*callbacks: Callback) -> dict[str, Tensor]:
        seed_everything(3, verbose=False)
        module = make()
        plan = PELTCallback(LORA, base_dropout=False)
        trainer(tmp_path, *callbacks, plan, max_epochs=3).fit(module, loader(3))
        return trained(module)

    runs = Runs()
    without = run()
    with no_warning_of_the_cache():
        found = run(runs, TrunkCache(tmp_path / "trunk"))
    assert_same(without, found)
    assert runs.epochs[1:] == [0, 0]


def test_reentrant_checkpoints(tmp_path: Path) -> None:
    def run(*callbacks: Callback) -> dict[str, Tensor]:
        seed_everything(3, verbose=False)
        module = UserModule()
        module.net.gradient_checkpointing_enable({"use_reentrant": True})
        plan = PELTCallback(LORA)
        trainer(tmp_path, *callbacks, plan, max_epochs=3).fit(module, loader(3))
        return trained(module)

    without = run()
    cache = TrunkCache(tmp_path / "trunk")
    seen = Seen(cache)
    assert_same(without, run(seen, cache))
    assert seen.read == 24


class Embedding(UserModule):
    """Calls its model with embeddings."""

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        embedded = self.net.get_input_embeddings()(batch["input_ids"])
        states = self.net(inputs_embeds=embedded, attention_mask=batch["attention_mask"])
        return self.head(states.last_hidden_state[:, 0])


def test_calls_that_do_not_show_their_examples(tmp_path: Path) -> None:
    run = trainer(tmp_path, TrunkCache(tmp_path / "trunk"), PELTCallback(LORA, base_dropout=False))
    with pytest.warns(UserWarning, match="trunk cache is off: BertModel is called without tokens"):
        run.fit(Embedding(), loader(1))


def test_averages_of_weights(tmp_path: Path, tiny: str) -> None:
    without = fit(tmp_path / "without", tiny, EMAWeightAveraging(decay=0.9))
    with no_warning_of_the_cache(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="the weights below the plan have changed.*")
        found = fit(tmp_path / "with", tiny, TrunkCache(tmp_path), EMAWeightAveraging(decay=0.9))
    assert_same(without, found)


def test_checkpointed_activations(tmp_path: Path, tiny: str) -> None:
    options = {"options": {"checkpoint_activations": True}}
    without = fit(tmp_path / "without", tiny, **options)
    runs = Runs()
    with no_warning_of_the_cache():
        found = fit(tmp_path / "with", tiny, runs, TrunkCache(tmp_path / "trunk"), **options)
    assert_same(without, found)
    assert runs.epochs[1:] == [0, 0]


def test_a_compiled_model(tmp_path: Path, tiny: str) -> None:
    options = {"compile": {"backend": "eager"}}
    with pytest.warns(UserWarning, match="trunk cache is off: the model is compiled"):
        fit(tmp_path, tiny, TrunkCache(tmp_path / "trunk"), options=options, max_epochs=1)


def test_profiles(tmp_path: Path, tiny: str) -> None:
    plan = Plan([Group([XPEFT(RandomBank(size=4), k=2, bottleneck=4)], blocks=[1])])
    without = fit(tmp_path / "without", tiny, plan=plan)
    assert_same(without, fit(tmp_path / "with", tiny, TrunkCache(tmp_path), plan=plan))


def test_accumulated_gradients(tmp_path: Path, tiny: str) -> None:
    given = {"accumulate_grad_batches": 2}
    without = fit(tmp_path / "without", tiny, **given)
    assert_same(without, fit(tmp_path / "with", tiny, TrunkCache(tmp_path), **given))


def test_the_model_is_free_after_a_run(tmp_path: Path, tiny: str) -> None:
    module = PELTModule(tiny, LORA, labels=LABELS, base_dropout=False)
    run = trainer(tmp_path, TrunkCache(tmp_path / "trunk"))
    run.fit(module, Sentences(tiny))
    assert not any("forward" in vars(each) for each in module.modules())
    assert not module.model.bert._forward_pre_hooks
    pickle.dumps(module.model)
    run.fit(module, Sentences(tiny))


class Fail(Callback):
    """Fails in the second epoch, with copies of the module made before."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.copy = copy.deepcopy(pl_module.model)
        raise KeyError("stop")


def test_a_run_that_fails(tmp_path: Path, tiny: str) -> None:
    module = PELTModule(tiny, LORA, labels=LABELS, base_dropout=False)
    fail = Fail()
    with pytest.raises(KeyError):
        trainer(tmp_path, TrunkCache(tmp_path / "trunk"), fail).fit(module, Sentences(tiny))
    assert not any("forward" in vars(each) for each in module.modules())
    assert [*(tmp_path / "trunk").glob("*/*.safetensors")]  # what was computed is kept
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(fail.copy.eval()(ids).logits, module.model.eval()(ids).logits)


def test_its_size_is_logged_and_told(
    tmp_path: Path, tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, tiny, TrunkCache(tmp_path / "trunk"))
    assert "1 of 2 blocks are below the plan" in caplog.text
    assert "of the rows of this run were read from it" in caplog.text
    logged = (tmp_path / "run" / "metrics.csv").read_text()
    assert "trunk_cache/mib" in logged and "trunk_cache/read" in logged


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_that_are_none(size: int) -> None:
    with pytest.raises(ValueError, match=f"max_bytes is {size}"):
        TrunkCache(max_bytes=size)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="is a file"):
        TrunkCache(file)


def test_a_module_without_a_plan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TrunkCache found no attached submodules"):
        trainer(tmp_path, TrunkCache(tmp_path)).fit(UserModule(), loader(1))


def test_a_callback_can_be_copied(tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(TrunkCache(tmp_path))).folder == str(tmp_path)


def test_a_digest_is_of_names_shapes_dtypes_and_values() -> None:
    one = torch.arange(6.0)
    others = [{"a": one + 1}, {"b": one}, {"a": one.view(2, 3)}, {"a": one.double()}]
    assert len({digest_of(each) for each in [{"a": one}, *others]}) == 5
    assert digest_of({"a": one}) == digest_of({"a": one.clone()})
