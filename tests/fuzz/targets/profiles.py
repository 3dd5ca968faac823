"""Banks, predictors of masks, packed profiles, stores, exports and requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from fuzz.mutators import TEXT
from fuzz.target import Target
from methods.xpeft.adapters import HUB, hub_folder
from profiles.samples import random_profile
from torch import Tensor, nn

from lightning_pelt import (
    XPEFT,
    Plan,
    RandomBank,
    TrainedBank,
    attach,
    load_bank,
    save_bank,
)
from lightning_pelt.methods.xpeft.masks import masks_of
from lightning_pelt.profiles.mask_predictor import MaskPredictor
from lightning_pelt.profiles.mask_predictor_file import load_predictor, save_predictor
from lightning_pelt.profiles.profile import Profile
from lightning_pelt.profiles.serving.request_validation import (
    PATH,
    Limits,
    RequestValidation,
    texts_of,
)
from lightning_pelt.profiles.store import ProfileStore, UnknownProfile
from lightning_pelt.testing import tiny_bert
from lightning_pelt.utils.adapter_format import digest_of

IDS = ("ann", "bob", "cleo")


def some() -> dict[str, Profile]:
    options: list[dict[str, Any]] = [{}, {"soft": True}, {"norm": True, "head": True}]
    return {id: random_profile(i, **options[i]) for i, id in enumerate(IDS)}


class BankFile(Target):
    name = "load_bank"
    detects = True

    def write(self, folder: Path) -> None:
        bank = TrainedBank([hub_folder(folder.parent)])
        save_bank(bank.load(**HUB), folder / "bank.safetensors")

    def load(self, folder: Path) -> Any:
        bank = load_bank(folder / "bank.safetensors")
        parts = {"A": bank.A, "B": bank.B, "a": bank.a_bias, "b": bank.b_bias}
        tensors = {name: part for name, part in parts.items() if part is not None}
        return bank.digest, bank.width, digest_of(tensors)


class Predictor(Target):
    """Half of the changes are made before the digest: the file is as its writer made it."""

    name = "load_predictor"

    def __init__(self) -> None:
        xpeft = XPEFT(bank=RandomBank(size=6), k=2, bottleneck=4, profiles=2)
        self.attachment = attach(tiny_bert(), Plan.uniform(xpeft), seed=0)

    def write(self, folder: Path) -> None:
        torch.manual_seed(0)
        logits = masks_of(self.attachment.model).logits[0]
        self.save(MaskPredictor(logits, labels=3, width=16, rank=2, hidden=3), folder)

    def save(self, network: nn.Module, folder: Path) -> None:
        save_predictor(cast("MaskPredictor", network), folder / "net.safetensors", self.attachment)

    def change(self, folder: Path, draw: Random) -> str:
        if draw.random() < 0.5:
            return super().change(folder, draw)
        tensors = load_predictor(folder / "net.safetensors", self.attachment).state_dict()
        name = draw.choice(list(tensors))
        changes: dict[str, Callable[[Tensor], Tensor]] = {
            "empty": lambda t: torch.zeros((0,) * t.ndim),
            "flat": lambda t: t.flatten(),
            "halved": lambda t: t[: len(t) // 2] if t.ndim else t[None],
            "nan": lambda t: torch.full_like(t, torch.nan),
            "int64": lambda t: t.long(),
            "float16": lambda t: t.half(),
        }
        change = draw.choice(["dropped", "added", *changes])
        if change in changes:
            tensors[name] = changes[change](tensors[name])
        else:
            value = tensors.pop(name)
            tensors |= {"other": value.clone(), name: value} if change == "added" else {}
        self.save(Values(tensors), folder)
        return f"{name} {change}"

    def load(self, folder: Path) -> Any:
        network = load_predictor(folder / "net.safetensors", self.attachment)
        return digest_of(network.state_dict())

    def state(self) -> Any:
        return digest_of(self.attachment.model.state_dict())

    def problem(self, folder: Path, result: Any) -> str | None:
        network = load_predictor(folder / "net.safetensors", self.attachment)
        values = network(torch.ones(1, 3, 17))
        return None if values.isfinite().all() else "it predicts what is not finite"


class Values(nn.Module):
    """A module whose state is what it is given."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return self.values


class PackedProfile(Target):
    name = "Profile.from_bytes"
    errors = (ValueError,)
    detects = True

    def write(self, folder: Path) -> None:
        (folder / "ann.profile").write_bytes(random_profile(k=3).to_bytes())

    def load(self, folder: Path) -> Any:
        path = folder / "ann.profile"
        return Profile.from_bytes(path.read_bytes() if path.is_file() else b"")


class Store(Target):
    name = "ProfileStore"
    errors = (ValueError, OSError, UnknownProfile)

    def write(self, folder: Path) -> None:
        with ProfileStore(folder / "profiles.db") as store:
            store.put_many(some().items())
            store.put("ann", some()["ann"])

    def load(self, folder: Path) -> Any:
        with ProfileStore(folder / "profiles.db") as store:
            found = {}
            for id in IDS:  # what is damaged is refused, and what is read is right
                if id in store:
                    found[id] = store.get(id)
            list(store.ids())
            store.verify()
        return found

    def problem(self, folder: Path, result: Any) -> str | None:
        valid = some()
        wrong = [id for id, profile in result.items() if profile != valid[id]]
        return f"wrong profiles were read: {wrong}" if wrong else None


class Shards(Target):
    name = "import_shards"
    errors = (ValueError, OSError)
    detects = True

    def write(self, folder: Path) -> None:
        with ProfileStore(folder.parent / "exported.db") as store:
            store.put_many(some().items())
            store.export(folder, rows_per_shard=1)

    def load(self, folder: Path) -> Any:
        path = folder.parent / "imported.db"
        path.unlink(missing_ok=True)
        with ProfileStore(path) as store:
            try:
                store.import_shards(folder)
            except Exception:
                if len(store):
                    raise AssertionError("a refused export left profiles") from None
                raise
            return dict(store.iterate())


class Requests(Target):
    """Bodies of ``POST /predict``: what reaches the application is a valid request."""

    name = "HTTP bodies"
    errors = (ValueError,)
    seconds = 2.0

    def write(self, folder: Path) -> None:
        both = [{"text": "one two"}, {"texts": ["one two", "three"]}]
        bodies = [{**texts, "profile": "ann"} for texts in both]
        (folder / "body.json").write_text(json.dumps(bodies[0]))
        (folder / "several.json").write_text(json.dumps(bodies[1]))

    def change(self, folder: Path, draw: Random) -> str:
        source, change = folder / draw.choice(["body.json", "several.json"]), draw.choice(TEXT)
        (folder / "body.json").write_bytes(change(source.read_bytes(), draw))
        return change.__name__

    def load(self, folder: Path) -> Any:
        body = (folder / "body.json").read_bytes()
        parts = [body[:7], body[7:]]
        messages = [
            {"type": "http.request", "body": part, "more_body": i == 0}
            for i, part in enumerate(parts)
        ]
        passed: list[bytes] = []
        sent: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            passed.append((await receive())["body"])

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        checked = RequestValidation(app, limits=Limits(max_characters=1000, max_bytes=5000))
        scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
        asyncio.run(checked(scope, receive, send))
        if passed:
            return json.loads(passed[0])
        if sent[0]["status"] not in (413, 422):
            raise AssertionError(f"answered with {sent[0]['status']}")
        raise ValueError(sent[1]["body"].decode())

    def problem(self, folder: Path, result: Any) -> str | None:
        strings = [*texts_of(result), result["profile"]]
        valid = all(isinstance(text, str) and text.strip() for text in strings)
        return None if valid else f"an invalid request was accepted: {result!r:.200}"
