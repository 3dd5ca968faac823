"""``modules_to_save``: whole modules of the model itself, such as a head or trained norms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.attach.builder import CHILD
from lightning_pelt.attach.freezing import inside
from lightning_pelt.attach.names import plain, tensor_names

# What PEFT adds to `modules_to_save` for a `task_type`.
ADDED = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
SEQ_2_SEQ = "SEQ_2_SEQ_LM"
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}


@dataclass(frozen=True)
class Saved:
    """The modules that a file holds as a whole.

    Attributes:
        names: ``modules_to_save``; None for no module.
        tensors: by their names in the model.
        task: ``task_type``; None where PEFT would save other modules for it.
    """

    names: list[str] | None
    tensors: dict[str, Tensor]
    task: str | None


def saved_modules(attachment: Attachment, modules: Sequence[str]) -> Saved:
    """What the run has trained of the model itself.

    Args:
        attachment: of the model.
        modules: paths of all modules of the base.

    Raises:
        ValueError: a tensor belongs to no module below the model, or to one whose other parts PEFT
            could not leave alone.
    """
    model = attachment.model
    owned = {name for name in attachment.owned if CHILD not in name.split(".")}
    wanted = owned | attachment.trained_base
    paths = sorted({_module_of(model, name, wanted) for name in wanted})
    paths = [path for path in paths if not any(inside(path, other) for other in paths)]
    task = task_of(model)
    names = _names(paths, modules)
    matched = matches([*names, *ADDED.get(task or "", ())], modules)
    if matched != set(paths):
        task, matched = None, matches(names, modules)
    _refuse_nested(matched, paths)
    tensors = {
        f"{path}.{name}": tensor
        for path in sorted(matched)
        for name, tensor in _state(model.get_submodule(path)).items()
    }
    return Saved(names or None, tensors, task)


def task_of(model: PreTrainedModel) -> str | None:
    """The ``task_type`` for the class of a model; None where PEFT has none for it."""
    name = type(model).__name__
    named = next((task for end, task in TASKS.items() if name.endswith(end)), None)
    text = model.main_input_name == "input_ids" and model.config.is_encoder_decoder
    if named is None and text and model.get_output_embeddings() is not None:
        return SEQ_2_SEQ
    return named


def matches(names: Iterable[str], modules: Sequence[str]) -> set[str]:
    """The modules that PEFT takes for ``modules_to_save``: those whose paths end with a name.

    >>> sorted(matches(["classifier"], ["pre_classifier", "classifier", "bert"]))
    ['classifier', 'pre_classifier']
    """
    return {path for path in modules if any(path.endswith(name) for name in names)}


def _names(paths: Sequence[str], modules: Sequence[str]) -> list[str]:
    """The last parts of the paths, if these match nothing else; else the paths."""
    short = sorted({path.rpartition(".")[2] for path in paths})
    exact = matches(short, modules) == set(paths)
    return short if exact and not any(name.isdigit() for name in short) else list(paths)


def _refuse_nested(matched: set[str], paths: Sequence[str]) -> None:
    nested = sorted(p for p in matched if any(inside(p, other) for other in matched if other != p))
    if nested:
        raise ValueError(
            f"PEFT would save {nested[0]} twice, as a part of another module: it takes each module "
            f"whose path ends with one of {', '.join(paths)}. save_adapters writes this model"
        )


def _module_of(model: nn.Module, name: str, wanted: set[str]) -> str:
    """The largest module around a tensor of which all tensors are wanted, or its own module.

    Raises:
        ValueError: the tensor belongs to the model itself.
    """
    path = name.rpartition(".")[0]
    if not path:
        raise ValueError(
            f"{name} is trained, and it belongs to {type(model).__name__} itself: PEFT's format "
            "holds whole modules below the model only. save_adapters writes it"
        )
    while above := path.rpartition(".")[0]:
        module = model.get_submodule(above)
        own = {plain(f"{above}.{each}") for each in tensor_names(module)}
        if not own <= wanted or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            break
        path = above
    return path


def _state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, without the parts of wrappers.

    Raises:
        ValueError: a submodule of a method is inside.
    """
    state = {plain(name): tensor for name, tensor in module.state_dict().items()}
    ours = next((name for name in state if CHILD in name.split(".")), None)
    if ours is not None:
        raise ValueError(
            f"{ours} lies in a module that is trained as a whole, and PEFT extends no layer in "
            "modules_to_save: leave the site out, or name a smaller head in attach(head=[...])"
        )
    return state
