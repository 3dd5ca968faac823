"""Hostile changes to files, each determined by the generator that it is given."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

Change = Callable[[bytes, Random], bytes]
CANARY = "canary"  # file in the working folder that no loader may create
BINARY = {".safetensors", ".ckpt", ".db", ".parquet", ".arrow", ".bin", ".profile"}
IMAGES = {".png", ".jpg", ".gif", ".bmp", ".tiff", ".webp"}
MEDIA_FILES = IMAGES | {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au"}
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0, "", "x",
    "é\u202e\x00", "../outside/secret", "/etc/passwd", "'; DROP TABLE profiles; --",
    "%s%n", "NaN", [], {}, [[]],
    {"a": {}}, "a" * 100_000, "\ud800", "F64", "I8", "__class__", "os.system", [None], [0, 10**9],
]  # fmt: skip


class Payload:
    """Pickles as a call that writes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({CANARY!r}, 'w').close()",)


def flip(data: bytes, draw: Random) -> bytes:
    """Flip one to eight bits."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 8) if out else 0):
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def truncate(data: bytes, draw: Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def insert(data: bytes, draw: Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    new = draw.choice([draw.randbytes(draw.randint(1, 64)), b"\x00" * 8, b"\xff" * 8, b"\n", b'"'])
    return data[:at] + new + data[at:]


def overwrite(data: bytes, draw: Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    new = draw.choice(
        [draw.randbytes(16), b"\x00" * 64, b"\xff" * 8, (2**62).to_bytes(8, "little")]
    )
    return data[:at] + new + data[at + len(new) :]


def _cuts(data: bytes, draw: Random, count: int) -> list[int]:
    return sorted(draw.randrange(len(data) + 1) for _ in range(count))


def duplicate(data: bytes, draw: Random) -> bytes:
    a, b = _cuts(data, draw, 2)
    return data[:b] + data[a:b] + data[b:]


def remove(data: bytes, draw: Random) -> bytes:
    a, b = _cuts(data, draw, 2)
    return data[:a] + data[b:]


def swap(data: bytes, draw: Random) -> bytes:
    a, b, c = _cuts(data, draw, 3)
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def replace_by_pickle(data: bytes, draw: Random) -> bytes:
    return pickle.dumps(Payload(), protocol=draw.choice([0, 2, 4]))


def replace_by_noise(data: bytes, draw: Random) -> bytes:
    return draw.choice([b"", b"\x00" * 4096, draw.randbytes(512), b"PK\x03\x04", b"\xef\xbb\xbf"])


BYTES: list[Change] = [
    *(flip, flip, truncate, insert, overwrite, duplicate, remove, swap),
    *(replace_by_pickle, replace_by_noise),
]


def header_number(data: bytes, draw: Random) -> bytes:
    """Put another number of two or four bytes into the first 64 bytes, as sizes and rates are.

    The checksum of the header of a PNG is computed again.
    """
    size = draw.choice([2, 4])
    at = draw.randrange(max(1, min(64, len(data) - size)))
    numbers = [0, 1, 7, 255, 2**15, 2 ** (8 * size - 1), 2 ** (8 * size) - 1, 9_000, 30_000, 65_535]
    new = draw.choice(numbers).to_bytes(size, draw.choice(["little", "big"]))
    out = data[:at] + new + data[at + size :]
    if out[:4] == b"\x89PNG":
        out = out[:29] + zlib.crc32(out[12:29]).to_bytes(4, "big") + out[33:]
    return out


MEDIA: list[Change] = [*BYTES, *[header_number] * 8]


# -- JSON -------------------------------------------------------------------------------------


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(pairs):
        found.append((value, key))
        if isinstance(item, dict | list):
            _places(item, found)
    return found


def change_value(value: Any, draw: Random) -> Any:
    """Put a wrong value, a removed or renamed key, or deep nesting somewhere into plain data."""
    places = _places(value, []) if isinstance(value, dict | list) else []
    if not places:
        return draw.choice(VALUES)
    parent, key = draw.choice(places)
    match draw.randrange(5):
        case 0 | 1:
            parent[key] = draw.choice([*VALUES, float("nan"), float("inf")])
        case 2:
            del parent[key]
        case 3:
            other, place = draw.choice(places)
            parent[key] = json.loads(json.dumps(other.get(place) if isinstance(other, dict) else 7))
        case _:
            if isinstance(parent, dict):
                parent[str(draw.choice(VALUES))[:200]] = parent.pop(key)
            else:
                parent.append(parent[key])
    return value


def json_value(data: bytes, draw: Random) -> bytes:
    """Change a value of a JSON text, or of one of its lines."""
    lines = data.split(b"\n")
    try:
        return _dumps(change_value(json.loads(data), draw))
    except (ValueError, RecursionError):
        at = draw.randrange(len(lines))
    try:
        lines[at] = _dumps(change_value(json.loads(lines[at]), draw))
    except (ValueError, RecursionError):
        return flip(data, draw)
    return b"\n".join(lines)


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def deep(data: bytes, draw: Random) -> bytes:
    depth = draw.choice([101, 2_000, 100_000])
    opened, closed = draw.choice([(b"[", b"]"), (b'{"a":', b"}"), (b"{a: ", b"}"), (b"- ", b"")])
    at = draw.randrange(len(data) + 1) if draw.random() < 0.3 else 0
    inner = opened * depth + b"1" + closed * draw.choice([depth, 0])
    return data[:at] + inner + data[at:] if draw.random() < 0.5 else inner


def huge_number(data: bytes, draw: Random) -> bytes:
    digits = [at for at in range(len(data)) if chr(data[at]).isdigit()]
    at = draw.choice(digits) if digits else 0
    new = draw.choice([b"9" * 5_000, b"1e999", b"-1", b"NaN", b"Infinity", b"1e-999", b"0x7f"])
    return data[:at] + new + data[at + 1 :]


def odd_text(data: bytes, draw: Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    new = draw.choice(
        [
            *(b"\xff\xfe", b"\x00", b"\r", b"\xed\xa0\x80", b"\xe2\x80\xae", b'"' * 3, b"\\u0000"),
            *(b"../outside/secret", b"/etc/passwd", b"'; DROP TABLE x; --", b"x" * 200_000),
        ]
    )
    return data[:at] + new + data[at:]


def yaml_trick(data: bytes, draw: Random) -> bytes:
    laughs = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefghij"
    )
    new = draw.choice(
        [
            b"\nx: !!python/object/apply:os.system ['touch canary']\n",
            b"\nx: !!python/object/new:exec [\"open('canary','w')\"]\n",
            b"\nx: !!python/name:os.system\n",
            b"\nx: !!binary Z\n",
            b"\nx: !!timestamp 2020-99-99\n",
            b"\nx: !!int foo\n",
            b"\nx: !!float bar\n",
            b"\nx: 2020-13-45\n",
            b"\nx: 1_000:99:99\n",
            b"\n? [a, {b: c}]\n: d\n",
            b"\n? {a: b}\n: d\n",
            b"\n<<: [1, 2]\n",
            b"\n<<: *none\n",
            b"\nx: &x [*x]\n",
            b"\n--- \na: 1\n",
            b"\n%YAML 9.9\n---\n",
            b"\nx: !!set {a, b}\n",
            b"\nx: !!omap [a]\n",
            b"\nplan: ../outside/secret.yaml\n",
            b"\nplan: /dev/zero\n",
            b"\nplan: " + b"a" * 5000 + b".yaml\n",
            laughs,
        ]
    )
    return new + data if draw.random() < 0.3 else data + new


TEXT: list[Change] = [
    *(flip, truncate, insert, duplicate, remove, swap, replace_by_pickle, replace_by_noise),
    *(json_value, json_value, json_value, deep, huge_number, odd_text),
]
YAML: list[Change] = [*TEXT, yaml_trick, yaml_trick, yaml_trick, yaml_trick]


# -- safetensors ------------------------------------------------------------------------------


def safetensors_header(data: bytes, draw: Random) -> bytes:
    """Change the header: its length, a value in it, or a value in its metadata."""
    if len(data) < 8 or draw.random() < 0.15:
        size = draw.choice([0, 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1, len(data), 100_000_001])
        return size.to_bytes(8, "little") + data[8:]
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
        texts = header.get("__metadata__") or {}
        if texts and draw.random() < 0.5:
            name = draw.choice(sorted(texts))
            texts[name] = json.dumps(change_value(json.loads(texts[name]), draw))
        else:
            header = change_value(header, draw)
    except (ValueError, RecursionError, AttributeError, TypeError):
        return flip(data, draw)
    new = _dumps(header)
    new += b" " * (-len(new) % 8)
    return len(new).to_bytes(8, "little") + new + data[8 + size :]


def not_finite(data: bytes, draw: Random) -> bytes:
    """Put NaN or infinity among the values."""
    size = 8 + int.from_bytes(data[:8], "little")
    if not 8 < size < len(data) - 4:
        return flip(data, draw)
    at = size + 4 * draw.randrange((len(data) - size) // 4)
    return data[:at] + draw.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff"]) + data[at + 4 :]


SAFETENSORS: list[Change] = [*BYTES, *[safetensors_header] * 8, not_finite]


def changes_of(name: str) -> Sequence[Change]:
    """The changes that suit a file by its suffix."""
    suffix = Path(name).suffix
    if suffix == ".safetensors":
        return SAFETENSORS
    if suffix in (".yaml", ".yml"):
        return YAML
    if suffix in MEDIA_FILES:
        return MEDIA
    return BYTES if suffix in BINARY else TEXT


# -- folders ----------------------------------------------------------------------------------


def change_folder(folder: Path, draw: Random) -> str:
    """Change one file of a folder, or what kind of thing it is; returns what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = draw.choice(files)
    name = path.relative_to(folder).as_posix()
    if draw.random() < 0.04:
        return f"{name}: {_change_kind(path, draw)}"
    done = []
    for _ in range(draw.choice([1, 1, 1, 2])):
        change = draw.choice(changes_of(path.name))
        path.write_bytes(change(path.read_bytes(), draw))
        done.append(change.__name__)
    return f"{name}: {' + '.join(done)}"


def _change_kind(path: Path, draw: Random) -> str:
    kind = draw.choice(["absent", "folder", "dangling", "loop", "outside", "zip"])
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to(path.with_name("absent"))
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "outside":
        path.symlink_to("/dev/null")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("archive/data.pkl", pickle.dumps(Payload()))
            file.writestr("archive/version", "3\n")
            file.writestr("archive/zeros", b"\x00" * 1_000_000)
    return kind


def fresh(seed: Path, work: Path) -> None:
    """Make ``work`` a copy of the unchanged folder."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(seed, work)
