"""The loaders of the package, as targets of the fuzzer."""

from __future__ import annotations

from fuzz.target import Target
from fuzz.targets.adapters import AdapterFolder, AdapterHubFolder, PeftFolder, WholePredictor
from fuzz.targets.checkpoints import Checkpoint, StateDict
from fuzz.targets.data_files import CSV, JSON, JSONL, TSV, Parquet, SavedRows
from fuzz.targets.http_heads import Heads
from fuzz.targets.media import Images, Sounds
from fuzz.targets.profiles import (
    BankFile,
    PackedProfile,
    Predictor,
    Requests,
    Shards,
    Store,
)
from fuzz.targets.recipes import Recipe
from fuzz.targets.search import SearchLedger, SearchReport

_ALL: list[type[Target]] = [
    *(AdapterFolder, WholePredictor, PeftFolder, AdapterHubFolder, Checkpoint, StateDict, BankFile),
    *(
        Predictor,
        Store,
        PackedProfile,
        Shards,
        Requests,
        Recipe,
        CSV,
        TSV,
        JSON,
        JSONL,
        Parquet,
        SavedRows,
    ),
    *(SearchLedger, SearchReport, Images, Sounds, Heads),
]
TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in _ALL}
