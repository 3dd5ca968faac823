"""Commands that take no recipe: list, export, import, and predict the rows of a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm import tqdm

from lightning_pelt.data._columns import Column, Text
from lightning_pelt.data._table_io import convert_columns, read_file
from lightning_pelt.profiles.serving import ProfileServer
from lightning_pelt.profiles.serving.loading import load_model, open_store
from lightning_pelt.profiles.store import ProfileStore
from lightning_pelt.utils.files import write_aside

CHUNK = 1000  # profiles whose versions one query reads
PARTS = ("masks", "norm", "head")


def list_store(store: str) -> None:
    """List the profiles of a store, and the bytes of their parts.

    Args:
        store: Path of a SQLite file, or URL of a PostgreSQL database.
    """
    with open_store(store) as opened:
        # Row by row: a store may have millions of profiles.
        print(f"{'profile':<32} {'version':>8} {'k':>5} {'N':>5}" + _columns(PARTS) + "  (bytes)")
        walk = opened.iterate()
        while some := dict(islice(walk, CHUNK)):
            versions = opened.latest(some)
            for id, profile in some.items():
                k = "soft" if profile.k is None else profile.k
                numbers = f"{versions[id]:>8} {k:>5} {profile.size:>5}"
                print(f"{id:<32} {numbers}" + _columns(profile.bytes_by_part().values()))


def export_store(store: str, folder: str) -> None:
    """Write the latest version of every profile as safetensors shards with checksums.

    Args:
        store: Path of a SQLite file, or URL of a PostgreSQL database.
        folder: Folder of the shards. It must not hold an export.
    """
    with open_store(store) as opened:
        written = opened.export(folder, progress=True)
        print(f"{len(opened)} profiles written to {written}")


def import_store(store: str, folder: str) -> None:
    """Write exported shards to a store; profiles in it of the same or a later version stay.

    Args:
        store: Path of a SQLite file, or URL of a PostgreSQL database. It is created if it does not
            exist.
        folder: Folder of the shards.
    """
    with ProfileStore(store) as opened:
        written = opened.import_shards(folder, progress=True)
        print(f"{written} profiles written to {opened.name}")


def delete_profiles(store: str, ids: str | list[str], *, dry_run: bool = False) -> None:
    """Delete profiles with all their versions; nothing of them is left in a SQLite store.

    Args:
        store: Path of a SQLite file, or URL of a PostgreSQL database.
        ids: One id, or several as [ann, bob]. If one does not exist, none is deleted.
        dry_run: Print what would be deleted, and delete nothing.
    """
    with open_store(store) as opened:
        wanted = list(dict.fromkeys([ids] if isinstance(ids, str) else ids))
        versions = {id: opened.versions(id) for id in wanted}
        if not dry_run:
            opened.delete_many(wanted)
        verb = "would be deleted" if dry_run else "deleted"
        for id, numbers in versions.items():
            print(f"{id}: {len(numbers)} version{'s' if len(numbers) > 1 else ''} {verb}")


def predict_rows(
    checkpoint: str, store: str, input: str, output: str, *, max_length: int = 128
) -> None:
    """Write the predictions for the rows of a file, in their order, as JSON lines.

    All rows are checked first: if one is invalid, no prediction is written.

    Args:
        checkpoint: Checkpoint of the model.
        store: Path of a SQLite file, or URL of a PostgreSQL database.
        input: CSV, TSV, JSONL or Parquet file with the columns text and profile.
        output: File of the predictions. It is replaced if it exists.
        max_length: Tokens of a text. Longer texts are truncated.
    """
    with open_store(store) as opened:
        rows = _read(input, opened)
        model = load_model(checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
        server = ProfileServer(model, opened, max_length=max_length)
        path = Path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, lambda aside: _write(aside, server, rows))
    print(f"{len(rows)} predictions written to {path}")


def answers(
    server: ProfileServer, texts: Sequence[str], profiles: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The predictions of ``server``, batch by batch, with a progress bar."""
    with tqdm(total=len(texts), unit=" rows") as bar:
        for start in range(0, len(texts), server.batch_size):
            rows = slice(start, start + server.batch_size)
            found = server.predict(texts[rows], profiles[rows])
            yield from found
            bar.update(len(found))


def _read(path: str, store: ProfileStore) -> Dataset:
    """Read and check the rows.

    Raises:
        ValueError: a text is empty or a profile unknown; the message names the file and the row.
    """
    table = read_file(path)
    columns = {name: Column(name, Text()) for name in ("text", "profile")}
    rows = convert_columns(table, columns, desc="reading rows")
    wanted = rows["profile"][:]
    known = store.latest(dict.fromkeys(wanted))
    for number, id in enumerate(wanted, start=1):
        if id not in known:
            where = f"{table.source}, row {number}, column 'profile'"
            raise ValueError(f"{where}: {store.name} has no profile {id!r}")
    return rows


def _write(path: Path, server: ProfileServer, rows: Dataset) -> None:
    ids = rows["profile"][:]
    with path.open("w", encoding="utf-8") as file:
        for number, answer in enumerate(answers(server, rows["text"][:], ids)):
            line = {"row": number, "profile": ids[number], **answer}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _columns(values: Iterable[object]) -> str:
    return "".join(f" {value:>8}" for value in values)


FUNCTIONS: dict[str, Callable[..., None]] = {
    "list": list_store,
    "delete": delete_profiles,
    "export": export_store,
    "import": import_store,
    "predict": predict_rows,
}
