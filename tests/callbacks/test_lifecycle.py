"""A module in several runs: every trainer attaches what its own callbacks say."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from callbacks.test_pelt import Lazy, UserModule, found, user_module
from callbacks.tiny import loader, trainer
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from zoo import build

from lightning_pelt import Adapter, LoRA, PELTCallback, Plan, detach, merge
from lightning_pelt.attach import find_attachment

LORA, ADAPTER = Plan.uniform(LoRA(r=2)), Plan.uniform(Adapter(bottleneck=4))


def fit(module: LightningModule, folder: Any, *callbacks: Callback, **options: Any) -> Any:
    run = trainer(folder, *callbacks, **options)
    run.fit(module, loader(1))
    return run


def test_another_plan_for_the_same_module_is_refused(tmp_path):
    module = user_module()
    fit(module, tmp_path, PELTCallback(LORA))
    with pytest.raises(ValueError, match=r"another plan already: .*LoRA.*Adapter.*detach"):
        fit(module, tmp_path, PELTCallback(ADAPTER))
    with pytest.raises(ValueError, match="another plan"):
        trainer(tmp_path, PELTCallback(ADAPTER)).test(module, loader(1), verbose=False)


@pytest.mark.parametrize("kind", [UserModule, Lazy])
@pytest.mark.parametrize("end", [detach, merge])
@pytest.mark.slow
def test_after_detach_or_merge_the_next_plan_counts(tmp_path, kind, end):
    module = user_module(kind)
    fit(module, tmp_path, PELTCallback(LORA))
    end(module)
    before = set(module.state_dict())
    assert any("word_embeddings" in name for name in before)
    fit(module, tmp_path)  # nothing comes back with a trainer that has no plan
    assert find_attachment(module) is None
    assert set(module.state_dict()) == before
    fit(module, tmp_path, PELTCallback(ADAPTER))
    assert list(found(module).submodules) == ["adapter"]


def test_a_run_leaves_no_hook_of_its_own_on_the_module(tmp_path):
    module = user_module()
    own = set(vars(module))
    fit(module, tmp_path, PELTCallback(LORA))
    assert module.strict_loading
    assert module.configure_model.__func__ is LightningModule.configure_model
    detach(module)
    assert set(vars(module)) - own <= {"_hparams"}  # made by Lightning when it is read


def test_a_failed_run_leaves_none_either(tmp_path):
    class Fails(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise KeyError("of the user")

    module = user_module()
    with pytest.raises(KeyError, match="of the user"):
        fit(module, tmp_path, PELTCallback(LORA), Fails())
    assert module.strict_loading
    assert "configure_model" not in vars(module)
    detach(module)
    fit(module, tmp_path, PELTCallback(ADAPTER))
    assert list(found(module).submodules) == ["adapter"]


def test_a_hook_of_the_user_on_the_object_stays(tmp_path):
    module: Any = user_module()
    calls = []
    module.configure_model = lambda: calls.append(1)
    hook = module.configure_model
    fit(module, tmp_path, PELTCallback(LORA))
    assert calls
    assert module.configure_model is hook


def test_validate_test_and_predict_may_come_before_fit(tmp_path):
    class Whole(UserModule):
        def validation_step(self, batch: Any, index: int) -> None:
            self.test_step(batch, index)

        def predict_step(self, batch: Any, index: int) -> Any:
            return self.logits(batch)

    module = user_module(Whole)
    run = trainer(tmp_path, PELTCallback(LORA))
    run.validate(module, loader(1), verbose=False)
    run.test(module, loader(1), verbose=False)
    run.predict(module, loader(1))
    names = set(module.state_dict())
    run.fit(module, loader(1))
    assert set(module.state_dict()) == names
    assert found(module).model.training


def test_one_callback_serves_two_trainers_and_two_modules(tmp_path):
    callback = PELTCallback(LORA)
    torch.manual_seed(1)
    first = user_module()
    fit(first, tmp_path, callback)
    torch.manual_seed(1)
    second = user_module()
    fit(second, tmp_path, callback)
    assert found(first) is not found(second)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_a_trainer_that_fits_twice_goes_on(tmp_path):
    module = user_module()
    run = fit(module, tmp_path, PELTCallback(LORA))
    run.fit_loop.max_epochs = 3
    run.fit(module, loader(1))
    assert run.global_step == 3


def test_an_equal_plan_with_another_head_is_refused(tmp_path):
    module = user_module()
    fit(module, tmp_path, PELTCallback(LORA))
    with pytest.raises(ValueError, match=r"attached with the head .*head=\['pooler'\].*detach"):
        fit(module, tmp_path, PELTCallback(LORA, head=["pooler"]))


@pytest.mark.slow
def test_copies_and_pickles_of_a_trained_module_stand_alone(tmp_path):
    module = user_module()
    fit(module, tmp_path, PELTCallback(LORA))
    module.trainer = None
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        detach(other)
        fit(other, tmp_path, PELTCallback(ADAPTER))
        assert list(found(other).submodules) == ["adapter"]
    assert list(found(module).submodules) == ["lora"]


class TestSeveralModels:
    class Towers(UserModule):
        def build(self) -> None:
            super().build()
            self.other = build("bert", seed=1, task=False)

        def logits(self, batch: dict[str, Any]) -> Any:
            inputs = batch["input_ids"], batch["attention_mask"]
            states = self.net(*inputs)[0] + self.other(*inputs)[0]
            return self.head(states[:, 0])

    def callbacks(self) -> list[Any]:
        return [PELTCallback(LORA, path="net"), PELTCallback(ADAPTER, path="other")]

    def test_each_gets_its_plan_and_both_train(self, tmp_path):
        module: Any = user_module(self.Towers)
        run = fit(module, tmp_path, *self.callbacks(), max_epochs=2)
        net, other = find_attachment(module.net), find_attachment(module.other)
        assert net is not None
        assert other is not None
        assert (list(net.submodules), list(other.submodules)) == (["lora"], ["adapter"])
        trained = net.parameters_of("lora") + other.parameters_of("adapter")
        assert all(run.optimizers[0].state[p]["step"] == 2 for p in trained)

    @pytest.mark.slow
    def test_each_has_its_state_and_resumes_exactly(self, tmp_path):
        first, second = (callback.state_key for callback in self.callbacks())
        assert first != second
        whole, part, resumed = (user_module(self.Towers) for _ in range(3))
        fit(whole, tmp_path, *self.callbacks(), max_epochs=2)
        fit(part, tmp_path, *self.callbacks()).save_checkpoint(tmp_path / "half.ckpt")
        saved = torch.load(tmp_path / "half.ckpt", weights_only=True)
        assert saved["callbacks"][first]["plan"] == LORA.to_config()
        assert saved["callbacks"][second]["plan"] == ADAPTER.to_config()
        run = trainer(tmp_path, *self.callbacks(), max_epochs=2)
        run.fit(resumed, loader(1), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
        assert run.global_step == 2
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[name]), name

    def test_a_model_that_no_callback_names_is_left_and_named(self, tmp_path):
        module: Any = user_module(self.Towers)
        with pytest.warns(UserWarning, match=r"names other, a BertModel.*path='other'"):
            fit(module, tmp_path, PELTCallback(LORA, path="net"))
        assert all(p.requires_grad for p in module.other.parameters())
        assert find_attachment(module.other) is None

    def test_a_frozen_one_is_no_warning(self, tmp_path, recwarn):
        module: Any = user_module(self.Towers)
        module.other.requires_grad_(False)
        fit(module, tmp_path, PELTCallback(LORA, path="net"))
        assert not any("PELTCallback names" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (LoRA(r=2), r"Plan\.uniform\(LoRA\(r=2"),
        (LoRA, r"the class LoRA, .*Plan\.uniform\(LoRA\(\)\)"),
        ("unipelt", r"'unipelt', expected a plan: write UniPELT\(\)"),
    ],
)
def test_what_is_no_plan_is_refused_at_once(given, remedy):
    with pytest.raises(ValueError, match=remedy):
        PELTCallback(given)
