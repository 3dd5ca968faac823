"""transformers' attention interface, wrapped as long as the process has a prefix.

Every attention module gets its attention function from ``AttentionInterface.get_interface``. That
method is wrapped when the first prefix is put on a model, and is transformers' own again after the
last one is removed or garbage-collected. In between, a module without a prefix costs one look-up in
its ``__dict__``, and its function receives the arguments as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

from lightning_pelt.anatomy.dummy_inputs import INTERFACE
from lightning_pelt.methods._prefix_attention import AttentionFunction, attend
from lightning_pelt.methods.submodule import Removable, refer

PREFIX = "pelt_prefix"  # the attribute of an attention module that refers to its prefix

_in_use: set[weakref.ref[nn.Module]] = set()
_wrapper: Callable | None = None
_original: Any = None  # what the wrapper calls


class _Probe:
    """The default of a look-up that finds out whether it reaches the wrapper."""

    reached = False

    def __call__(self) -> None: ...


_probe = _Probe()


def put(prefix: nn.Module, model: nn.Module, path: str) -> Removable:
    """Let the attention module at ``path`` of ``model`` use ``prefix`` until it is removed.

    Raises:
        ValueError: the module has a prefix.
    """
    host = model.get_submodule(path)
    if PREFIX in host.__dict__:
        raise ValueError(f"{path} has a prefix already: one attention takes one prefix")
    keep_wrapped(prefix)
    refer(host, **{PREFIX: prefix})
    return _Put(host)


class _Put:
    def __init__(self, host: nn.Module) -> None:
        self.host = host

    def remove(self) -> None:
        prefix = self.host.__dict__.pop(PREFIX, None)
        if prefix is not None:
            with INTERFACE:
                _in_use.discard(weakref.ref(prefix))
                _unwrap()


def keep_wrapped(prefix: nn.Module) -> None:
    """Wrap the interface until ``prefix`` is removed or garbage-collected."""
    with INTERFACE:
        _in_use.add(weakref.ref(prefix, _collected))
        if not _is_reached():
            _wrap()


def _collected(reference: weakref.ref[nn.Module]) -> None:
    _in_use.discard(reference)
    _unwrap_if_free()


def _wrap() -> None:
    global _wrapper, _original
    original = _original = AttentionInterface.get_interface

    def get_interface(self: AttentionInterface, name: str, default: Callable) -> Callable:
        if default is _probe:
            _probe.reached = True
            return default
        # Compiled code has no guard on the set, so there it calls what passes by.
        if not torch.compiler.is_compiling() and not _in_use:
            _unwrap_if_free()
            return original(self, name, default)
        return partial(_call, original(self, name, default), name or "eager")

    _wrapper = get_interface
    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign, assignment]


def _unwrap() -> None:
    """Give back transformers' method, unless there are prefixes.

    Where another package has wrapped it since, its wrapper stays, and ours passes calls on.
    """
    if not _in_use and AttentionInterface.get_interface is _wrapper:
        AttentionInterface.get_interface = _original  # type: ignore[method-assign]


def _unwrap_if_free() -> None:
    """Unwrap, unless another thread replaces the method now.

    The garbage collector calls it anywhere, and a thread that waited here might hold what the
    owner of the lock needs. A wrapper that stays for that reason goes at the next look-up.
    """
    if INTERFACE.acquire(blocking=False):
        try:
            _unwrap()
        finally:
            INTERFACE.release()


def _is_reached() -> bool:
    """Whether look-ups reach the wrapper, perhaps through that of another package."""
    _probe.reached = False
    AttentionInterface().get_interface("eager", _probe)
    return _probe.reached


def _call(function: AttentionFunction, name: str, *args: Any, **kwargs: Any) -> Any:
    """The attention function called ``name``, with the prefix of the module if it has one."""
    module: nn.Module = args[0] if args else kwargs["module"]
    prefix = module.__dict__.get(PREFIX)
    if prefix is None:
        return function(*args, **kwargs)
    return attend(prefix, function, name, args, kwargs)
