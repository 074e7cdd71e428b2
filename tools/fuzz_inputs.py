"""Feed convwright with wrong texts and files: whatever comes in, an error is one line, never a traceback.

    python tools/fuzz_inputs.py --count 5000 --seed 0 [--only plan,recipe] [--from 1200]

Each input is a valid one with a few parts made wrong: arguments of every command, plans, recipes, data, weights,
checkpoints, run directories, Python files with networks, texts given to Python functions. Input number n is the same in
every run with one seed. It fails if anything but an exit code of the command line comes out, if an error is not one
line, or if it takes more than 20 seconds of the processor or 2 GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

import convwright as cw
from convwright.cli import app, leaving
from convwright.errors import ConvwrightError

SECONDS, GIB, ROOM = 20, 2**30, 2  # of one input; GiB of memory beyond what was there
Call = Sequence[str] | Callable[[], object]

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.fc = nn.Linear(12, num_classes)
        # INIT

    def forward(self, x):
        x = torch.relu(self.bn(self.conv1(x)))
        # FORWARD
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))

# END
"""
RECIPE = "epochs: 1\nmax_steps: 2\nbatch_size: 32\nlr: 0.05\nprecision: fp32\nmemory_format: contiguous\n"
BAD_TEXTS = ("", " ", "\x00", "\x1b[31m", "a\nb", "☃", "\udcff", "'", '"', "..", ".", "/", "/dev/null", "/dev/zero",
             "photos", "set.npz", "net.py", "x" * 10_000, "~", "~nobody/x", "*", "%s", "{}", "--", "-1", "None", "[/]",
             "nan", "1" * 5000, "[" * 100_000, ":", "a:b:c", "=", ",", "\u202e", "\u00b2", "\uff11")  # fmt: skip
BAD_NUMBERS = ("0", "-1", "1.5", "1e5", "nan", "-inf", "9" * 30, "9" * 5000, "", "0x10", "\uff11\uff12", "\u00b2",
               "1e999999999", str(2**31), str(2**63), str(2**64), "-0", "+1", "01", "true", "99999", "1,2")  # fmt: skip
BAD_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1.5, 1e308, float("nan"), float("inf"), 10**30, 2**63, 9_999_999, "", "☃", "\x00",
    "x" * 5000,
    "../../etc/passwd", "\ud800", [], {}, [[]], [[[[[[[[[[1]]]]]]]]]], {"a": {"b": [None]}}, [1, "2", None], {"": 0},
    "1", [1e400],
)  # fmt: skip

# What a command takes: positional words first, then options, each as NAME KIND; "!" marks the one that is always wrong,
# where the right one takes too long.
COMMANDS = (
    "analyze model --input shape",
    "doctor model --input shape --num-classes count",
    "train model --data data --recipe recipe --out out --epochs count --seed seed --weights weights "
    "--devices few --input shape",
    "optimize model --data data --budget budget --method method --recipe recipe --out out --time time "
    "--seed seed --jobs few "
    "--threads few --epochs count --tune-epochs count --divisor count --option option --storage url "
    "--objective objective "
    "--weights weights --proxy-classes few --proxy-samples few --input shape --cpus-per-trial few --gpus-per-trial few",
    "ablate model --data data --techniques techniques! --seeds few --recipe recipe --out out --epochs count "
    "--weights weights",
    "reproduce name! --quick - --only text --seeds few --out out --jobs few",
    "apply plan model --weights weights --save path --num-classes count",
    "plan show plan --model model --input shape --num-classes count",
    "recipe show recipe",
    "recipe validate recipe --data data --model model --input shape",
    "export dir --to target --out out --model model",
    "report dir --out path",
    "word! --debug-x text",
)
GOOD = {
    "model": ("net.py:Net", "net.py:Net", "zoo:resnet20", "net.py:net"), "shape": ("1x8x8", "3x32x32"),
    "weights": ("w.safetensors", "w.pt"), "count": ("1", "2"), "few": ("1",),
    "seed": ("0", "7"),
    "data": ("npz:set.npz", "folder:photos", "fashion-mini"), "recipe": ("r.yaml", "r.yaml", "r2.yaml"),
    "out": ("case/out",),
    "budget": ("macs<=50%", "params<=1500", "macs<=60%, weights<=10KB", "activations<=2MB"),
    "method": ("uniform", "random"), "time": ("90s", "1h30m"), "option": ("trials=2", "mode=parity"),
    "url": ("sqlite:///case/x.db", "postgresql://u:p@127.0.0.1:1/db"), "objective": ("accuracy,macs",),
    "techniques": ("mixup", "sam(rho=0.1),mixup"), "name": ("conetv2-ours",), "text": ("a-*",), "plan": ("plan.json",),
    "path": ("case/x",), "target": ("python", "safetensors"), "dir": ("run", "trained"), "word": ("analyze",),
}  # fmt: skip
NUMBERS = ("count", "few", "seed")
BAD_OF = {
    "shape": ("1x99999x99999", "0x8x8", "1x8", "1x8x8x8", "1xx8", "9999999x9999999x9999999", f"1x{'9' * 5000}x8",
    "1x\u00b2x8"),
    "budget": (f"macs<={'9' * 5000}", f"macs<={'9' * 5000}%", "macs<=1e99999999999", "macs<=1e-99999999999%",
    "macs<=nan",
               "macs<=0", "flops<=1", "latency<=3", "macs<=50%,macs<=40%", "macs>=1", "macs<=\u0661%", "macs<=1_0_0%"),
    "time": ("9" * 5000 + "s", "9" * 30 + "d", "0s", "1s1h", "-1s", "1.5h", "\u0661s", "1 h"),
    "option": ("trials=" + "[" * 100_000, "trials=" + "9" * 5000, "trials=1e999", "trials", "=1", "trials=",
    "trials=NaN",
               "trials=" + '{"a":' * 50_000, "trials=-1", "nothing=1", "trials=2.5", "trials=true", "epochs=1",
               "seed=1"),
    "url": ("postgresql://u:p@h:abc/db", "postgresql://u:p@127.0.0.1:99999/db", "sqlite:////no/where/x.db", "mysql://x",
            "sqlite://", "sqlite:///photos", "://", "postgresql://", "sqlite:///set.npz", "postgresql://[::1/db"),
    "seed": ("1" * 30, "-1", str(2**63), str(2**64)), "few": ("100000", "0", "-1", "9" * 30, "x", "1.5", "9" * 5000,
    "nan", "inf"),
    "count": ("0", "-1", "9" * 30, "x", "9" * 5000), "data": ("npz:", "npz:photos", "folder:set.npz", "folder:case",
    "npz:net.py"),
    "model": ("net.py:", ":Net", "net.py:Nix", "zoo:", "zoo:resnet2", "timm:", "torchvision:x", "photos:Net",
    "set.npz:Net",
              "r.yaml:Net", "torch.py:nn", "net.py:torch", "net.py:__name__", "net.py:nn"),
    "techniques": ("mixup(", "mixup(alpha=)", "mixup(alpha=nan)", "sam(rho=" + "9" * 5000 + ")", "mixup,mixup", ",",
    "mixup()" * 999,
                   "mixup(alpha=" + "[" * 99_999 + ")", "mixup(a=b=c)", "mixup(alpha=-1)"),
    "weights": ("net.py", "plan.json", "photos", "nix.safetensors", "/dev/zero"),
}  # fmt: skip


# ------------------------------------------------------------------ making things wrong


def wrong_text(draw: random.Random, text: str) -> str:
    """Return a text with one part made wrong."""
    place = draw.randrange(len(text) + 1)
    return draw.choice((
        lambda: draw.choice(BAD_TEXTS),
        lambda: text[:place] + draw.choice(BAD_TEXTS) + text[place:],
        lambda: text[:place] + text[place + 1 :],
        lambda: text[:place],
        lambda: text[place:] + text[:place],
        lambda: text * draw.choice((2, 1000)),
        lambda: text.swapcase(),
        lambda: text[:place] + draw.choice(BAD_NUMBERS) + text[place + 1 :],
    ))()  # fmt: skip


def wrong_word(draw: random.Random, kind: str, good: str) -> str:
    """Return a word of the command line that is probably wrong."""
    known = BAD_OF.get(kind, ()) + (BAD_NUMBERS if kind in ("count", "seed") else ())
    if kind == "few":  # a large number that is right works for hours
        return draw.choice(known)
    return draw.choice(known) if known and draw.random() < 0.5 else wrong_text(draw, good)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in plain data."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def wrong_data(draw: random.Random, value: Any, odd: Sequence[Any] = BAD_VALUES) -> Any:
    """Return plain data with one value replaced, removed, doubled or exchanged."""
    paths = list(places(value))[1:]
    if not paths or draw.random() < 0.05:
        return draw.choice(odd)
    made = copy.deepcopy(value)
    *before, last = draw.choice(paths)
    holder = made
    for key in before:
        holder = holder[key]
    match draw.randrange(6):
        case 0:
            del holder[last]
        case 1 if isinstance(holder, list):
            holder.extend(copy.deepcopy(holder) * draw.choice((1, 50)))
        case 1:
            holder[draw.choice(("x", "", "edit", str(last) * 2))] = copy.deepcopy(holder[last])
        case 2:
            other = made
            for key in draw.choice(paths):
                other = other[key] if isinstance(other, dict | list) else other
            holder[last] = copy.deepcopy(other)
        case _:
            holder[last] = copy.deepcopy(draw.choice(odd))
    return made


def wrong_json(draw: random.Random, value: Any) -> str:
    """Return JSON with wrong values, or which is none."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        value = wrong_data(draw, value)
    text = json.dumps(value, indent=draw.choice((None, 2)))
    place = draw.randrange(len(text) + 1)
    return draw.choice((
        *[lambda: text] * 8,
        lambda: text[:place],
        lambda: text.replace("1", "9" * 5000, 1),
        lambda: text[:place] + draw.choice(('"', "[" * 100_000, "{", "\x00", "NaN", "\ufeff", "//")) + text[place:],
        lambda: "[" * 100_000 + "]" * 100_000,
        lambda: '{"a":' * 50_000 + "1" + "}" * 50_000,
        lambda: text[:1] + text[1:].partition(",")[0] + "," + text[1:],
    ))()  # fmt: skip


def wrong_bytes(draw: random.Random, content: bytes) -> bytes:
    """Return bytes of which a few are others, or missing, or more."""
    made = bytearray(content)
    for _ in range(draw.choice((1, 3, 50))):
        if made:
            made[draw.randrange(len(made))] = draw.randrange(256)
    place = draw.randrange(len(made) + 1)
    return draw.choice(
        (bytes(made), bytes(made[:place]), bytes(made) + b"\x00" * 1000, b"", bytes(made[place:]), b"PK" + made)
    )


# ------------------------------------------------------------------ the kinds of input


def words(draw: random.Random) -> Call:
    """A call of the command line: one or two of its words are wrong."""
    given = draw.choice(COMMANDS).split()
    first = next((i for i, word in enumerate(given) if word.startswith("--")), len(given))
    head = given[0] in ("plan", "recipe")
    slots: list[tuple[str, str, bool]] = []
    for kind in given[1 + head : first] if given[0] != "word!" else given[:first]:
        slots.append(("", kind.rstrip("!"), kind.endswith("!")))
    for option, kind in zip(given[first::2], given[first + 1 :: 2], strict=True):
        needed = option in (
            "--data",
            "--budget",
            "--to",
            "--quick",
            "--out",
            "--recipe",
            "--method",
            "--techniques",
        )
        if needed or draw.random() < 0.3:
            slots.append((option, kind.rstrip("!"), kind.endswith("!")))
    able = [i for i, slot in enumerate(slots) if slot[1] != "-"]
    wrong = {i for i in able if slots[i][2]} or set(draw.sample(able, min(len(able), draw.choice((1, 1, 2)))))
    call = given[: 1 + head] if given[0] != "word!" else []
    for i, (option, kind, _) in enumerate(slots):
        good = draw.choice(GOOD.get(kind, ("",)))
        value = wrong_word(draw, kind, good) if i in wrong else good
        call += [option] if kind == "-" else [option, value] if option else [value]
    return call


def plan(draw: random.Random) -> Call:
    """A plan with wrong values, or with values that lie."""
    known = json.loads(Path("plan.json").read_text())
    if draw.random() < 0.4:
        edit = draw.choice(known["edits"])
        name = draw.choice(list(edit))
        edit[name] = draw.choice(
            (*BAD_VALUES, "conv1", "conv2", "fc", [9, 9], 3, 7, {"conv1": [0, 1]}, {"conv1.in_channels": 9})
        )
        text = json.dumps(known)
    else:
        text = wrong_json(draw, known)
    Path("case/p.json").write_text(text, errors="surrogatepass")
    return draw.choice((("apply", "case/p.json", "net.py:Net"), ("plan", "show", "case/p.json")))


def plan_text(draw: random.Random) -> Call:
    """A plan, read by Python."""
    text = wrong_json(draw, json.loads(Path("plan.json").read_text()))
    return lambda: cw.Plan.from_json(text)


def recipe(draw: random.Random) -> Call:
    """A recipe with wrong values."""
    fields = yaml.safe_load(Path("full.yaml").read_text())
    fields = {
        "epochs": 1,
        "max_steps": 2,
        **{name: fields[name] for name in draw.sample(list(fields), draw.choice((1, 3, 20)))},
    }
    for _ in range(draw.choice((1, 1, 3))):
        fields = wrong_data(draw, fields)
    try:
        text = yaml.safe_dump(fields, allow_unicode=True) if draw.random() < 0.5 else json.dumps(fields)
    except yaml.YAMLError:
        text = repr(fields)
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{c}: &{c} [{','.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    text = draw.choice((*[text] * 8, wrong_text(draw, text), laughs, f"{laughs}lr: *i", "lr: " + "[" * 3000,
    f"seed: {'9' * 5000}",
                        "techniques: &t {mixup: *t}", "? {a: b}\n: c", "lr: !!python/object/apply:os.getcwd []",
                        "lr: 2001-01-01"))  # fmt: skip
    Path("case/r.yaml").write_text(text, errors="surrogatepass")
    against = ("--model", "net.py:Net", "--data", "npz:set.npz")
    return ("recipe", "validate", "case/r.yaml", *(against if draw.random() < 0.4 else ()))


def npz(draw: random.Random) -> Call:
    """An .npz with wrong arrays, or which is none."""
    arrays = dict(np.load("set.npz"))
    file, name = Path("case/d.npz"), draw.choice(list(arrays))
    value = arrays[name]
    odd = (
        value.astype(float), value.astype(complex), value.astype(str), value.astype(bool), value.astype(">i4"),
        value[:0], value[:1], value.T,
        value[None], value[..., None], value.reshape(-1), np.array(3), np.array([None] * 9), np.zeros(9, "M8[s]"),
        np.full_like(value, 255),
        value.astype(np.int64) - 200, value.astype(np.int64) + 3_000_000, np.zeros(9, [("a", "i4")]), value * np.nan,
        np.zeros((9, 0, 8), "u1"),
    )  # fmt: skip
    arrays[name] = draw.choice(odd)
    if draw.random() < 0.1:
        del arrays[name]
    np.savez(file, **arrays)
    if draw.random() < 0.3:
        file.write_bytes(wrong_bytes(draw, Path("set.npz").read_bytes()))
    elif draw.random() < 0.3:
        lie = draw.choice(((10**7, 100, 100), (-1, 8, 8), (10**20, 8, 8), (120, 8, 8), ("a",), 5, (2**31, 1, 1)))
        kind = draw.choice(("|u1", "|O", "<i8", "|V99999999", "nix", "|u1"))
        head = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {lie!r}, }}".ljust(117) + "\n"
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr(
                "x_train.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + b"\x00" * 640
            )
            packed.write("set.npz", "y_train.npy")
    call = ("recipe", "validate", "r.yaml", "--model", "net.py:Net", "--data", "npz:case/d.npz")
    return draw.choice(
        (call, lambda: cw.load_data("npz:case/d.npz"), ("train", "net.py:Net", "--recipe", "r.yaml", *call[-2:]))
    )


def folder(draw: random.Random) -> Call:
    """A folder of images in which some are none, or bombs, or of other kinds."""
    root = Path("case/d")
    shutil.copytree("photos", root)
    files = sorted(root.rglob("*.png"))
    for file in draw.sample(files, draw.choice((1, 2, len(files)))) + files[:1] * draw.randrange(2):
        if not file.is_file():  # it was made wrong already
            continue
        what = draw.randrange(9)
        if what < 5:
            mode = draw.choice(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
            Image.new(mode, draw.choice(((8, 8), (1, 1), (8, 9), (3000, 1)))).save(file)
        elif what < 7:
            file.write_bytes(draw.choice((b"", b"no image", wrong_bytes(draw, file.read_bytes()))))
        elif what == 7:  # a header that tells of 2.5 thousand million pixels
            content = bytearray(file.read_bytes())
            content[16:24] = (50_000).to_bytes(4, "big") * 2
            content[29:33] = __import__("zlib").crc32(content[12:29]).to_bytes(4, "big")
            file.write_bytes(content)
        else:
            file.unlink()
            draw.choice((file.mkdir, partial(file.symlink_to, file), int))()
    if draw.random() < 0.2:
        draw.choice(
            (
                lambda: shutil.rmtree(root / "a"),
                lambda: (root / "train").mkdir(),
                lambda: (root / "c" / "d").mkdir(parents=True),
            )
        )()
    call = ("recipe", "validate", "r.yaml", "--model", "net.py:Net", "--data", "folder:case/d")
    return draw.choice((call, (*call, "--input", "1x8x8"), lambda: cw.load_data("folder:case/d")))


def weights(draw: random.Random) -> Call:
    """Weights of something else, or which are none."""
    state = torch.load("w.pt", weights_only=True)
    name = draw.choice(list(state))
    odd = (
        3, None, "x", [1, 2], {}, state[name].double(), state[name].half(), state[name].to(torch.complex64),
        state[name].reshape(-1)[:1], torch.zeros(()),
        torch.zeros(1).expand(10**6, 10**6), torch.zeros(0), state[name].to_sparse(), torch.full_like(state[name],
        float("nan"), dtype=torch.float),
        torch.zeros(3, device="meta"), torch.zeros(3).bool(),
    )  # fmt: skip
    content: Any = {**state, name: draw.choice(odd)}
    whole = (
        {3: state[name]},
        {None: 1},
        [],
        state[name],
        7,
        {"state_dict": state},
        {**state, 5: state[name]},
        {(1, 2): 3},
        nn_module(),
        {},
    )
    file = Path(draw.choice(("case/w.pt", "case/w.pth", "case/w.safetensors", "case/w")))
    torch.save(draw.choice((content, content, draw.choice(whole))), file)
    if draw.random() < 0.4:
        source = draw.choice(("w.pt", "w.safetensors"))
        file.write_bytes(wrong_bytes(draw, Path(source).read_bytes()))
    elif draw.random() < 0.3:
        lies: tuple[dict[str, Any], ...] = (
            {"fc.bias": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, {"a": 1},
            {"fc.bias": {"dtype": "X"}}, {},
            {"fc.bias": {"dtype": "F32", "shape": [-3], "data_offsets": [0, 12]}},
        )  # fmt: skip
        head = draw.choice((*(json.dumps(lie) for lie in lies), "[" * 99_999, "", "null")).encode()
        length = draw.choice((len(head), len(head), 2**62, 0))
        Path("case/w.safetensors").write_bytes(length.to_bytes(8, "little") + head + b"\x00" * 64)
        file = Path("case/w.safetensors")
    train = ("train", "net.py:Net", "--recipe", "r.yaml", "--data", "npz:set.npz")
    return draw.choice(((*train, "--weights", str(file)), ("apply", "plan.json", "net.py:Net", "--weights", str(file))))


def nn_module() -> torch.nn.Module:
    """Something that only a pickle can hold."""
    return torch.nn.Linear(1, 1)


def checkpoint(draw: random.Random) -> Call:
    """A training that goes on from a checkpoint with wrong values."""
    shutil.copytree("trained", "case/t")
    file = Path("case/t/checkpoint.pt")
    if draw.random() < 0.3:
        file.write_bytes(wrong_bytes(draw, file.read_bytes()))
    else:
        odd = (*BAD_VALUES[:-1], torch.zeros(3), torch.zeros(0), {"a": torch.zeros(1)})
        torch.save(wrong_data(draw, torch.load(file, weights_only=True), odd), file)
    return ("train", "net.py:Net", "--recipe", "r2.yaml", "--data", "npz:set.npz", "--out", "case/t", "--resume")


def run(draw: random.Random) -> Call:
    """A run directory with wrong values in one of its files."""
    shutil.copytree("run", "case/run")
    root = Path("case/run")
    file = draw.choice(
        [f for f in sorted(root.rglob("*")) if f.is_file() and f.suffix != ".lock" and f.name != ".lock"]
    )
    if file.suffix == ".json" and draw.random() < 0.8:
        file.write_text(wrong_json(draw, json.loads(file.read_text())), errors="surrogatepass")
    elif file.suffix == ".db" and draw.random() < 0.8:
        wrong_database(draw, file)
    elif draw.random() < 0.3:
        draw.choice((file.unlink, lambda: (file.unlink(), file.mkdir())))()
    else:
        file.write_bytes(wrong_bytes(draw, file.read_bytes()))
    again = ("optimize", "net.py:Net", "--data", "npz:set.npz", "--budget", "macs<=50%", "--recipe", "r.yaml",
    "--method", "uniform",
             "--epochs", "1", "--tune-epochs", "1", "--out", "case/run", "--resume")  # fmt: skip
    report, export = ("report", "case/run"), ("export", "case/run", "--to", draw.choice(("python", "safetensors")))
    return draw.choice((report, (*report, "--markdown"), export, again, again))


def wrong_database(draw: random.Random, file: Path) -> None:
    """Change one value in one table of a database."""
    with contextlib.closing(sqlite3.connect(file)) as base:
        tables = [row[0] for row in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = draw.choice([t for t in tables if base.execute(f"SELECT count(*) FROM {t}").fetchone()[0]])
        column = draw.choice([row[1] for row in base.execute(f"PRAGMA table_info({table})")])
        rows = base.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
        row, value = draw.choice(rows)
        try:
            changed: Any = wrong_json(draw, json.loads(value))
        except (TypeError, ValueError):
            changed = draw.choice((None, "x", -1, 10**12, 1.5, "", b"\x00"))
        with contextlib.suppress(sqlite3.Error, UnicodeError):
            base.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (changed, row))
        if draw.random() < 0.1:
            base.execute(f"DELETE FROM {table}")
        base.commit()


INIT = (
    "self.lock = __import__('threading').Lock()", "self.half()", "self.bfloat16()", "self.double()", "self.to('meta')",
    "self.deep = nn.Sequential(nn.ReLU())\n        for _ in range(1200): self.deep = nn.Sequential(self.deep)",
    "self.file = open(__file__)",
    "self.fc = nn.Linear(12, 0)", "self.conv2 = nn.Conv2d(8, 10**9, 3)", "self.conv2 = nn.Conv2d(7, 12, 3)",
    "self.fc = nn.LazyLinear(3)",
    "self.register_parameter('n', None)", "self.n = nn.Parameter(torch.zeros(3, dtype=torch.complex64))",
    "self.bn = None",
    "self.n = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)", "self.f = lambda x: x",
    "self.me = [self]", "raise SystemExit",
    "raise SystemExit('☃')", "raise KeyError", "raise MemoryError", "self.__init__()", "torch.zeros(10**15)",
    "self.g = (i for i in range(3))",
    "self.conv1.weight.data.fill_(float('nan'))", "self.register_buffer('b', torch.zeros(3).to_sparse())",
    "__import__('os')._exit(0)",
    "self.conv2.weight = nn.Parameter(torch.zeros(12, 8, 3, 3).expand(12, 8, 3, 3)[:, :, :0])",
    "self.extra = nn.Module()", "exit()",
)  # fmt: skip
FORWARD = (
    "return None", "return x", "return 'x'", "return [x, x]", "return {}", "return (self.fc(x.mean((2, 3))),)",
    "raise ValueError", "1 / 0",
    "raise SystemExit", "x = x.half()", "x = x.double()", "x = x.numpy()", "x = x.cpu().detach().numpy()",
    "x = x[:, :, ::0]", "x = x.reshape(-1)",
    "if x.sum() > 0: x = -x", "x = x + x[:0].sum()", "x = x.to('meta')", "return self.forward(x)",
    "raise KeyboardInterrupt", "x = x.item()",
    "assert False, 'a\\nb'", "raise Exception('\\x1b[31m' * 999)", "import nix", "print(x)", "x = x * self.nix",
    "del self.conv2", "exit(0)",
    "__import__('os')._exit(0)", "raise MemoryError", "x = x + torch.zeros(10**14)", "self.conv2 = nn.Identity()",
)  # fmt: skip
END = (
    "import sys; sys.exit()", "import sys; sys.exit(3)", "import os; os._exit(0)", "import os; os._exit(7)",
    "raise SystemExit('bye')", "1 / 0",
    "raise KeyboardInterrupt", "import nix", "Net = 3", "Net = None", "Net = lambda **k: None", "Net = Net()",
    "def Net(a, b): pass", "(", "\x00",
    "Net = torch.jit.script(Net())", "Net = nn.DataParallel(Net())", "class Net(nn.Module): pass",
    "Net = nn.Sequential()", "del Net", "quit()",
    "def Net(**k): raise SystemExit", "def Net(**k): return Net(**k)", "Net = type('☃', (Net,), {})", "print('x')",
    "import os; os.abort = 3", "import threading; threading.Thread(target=exit).start()", "x = [0] * 10**12",
    "Net = nn.Module()",
)  # fmt: skip


def model(draw: random.Random) -> Call:
    """A Python file with a network that is odd."""
    text = NETWORK
    for mark, odd in draw.sample((("# INIT", INIT), ("# FORWARD", FORWARD), ("# END", END)), draw.choice((1, 1, 2))):
        text = text.replace(mark, draw.choice(odd))
    if draw.random() < 0.1:
        text = wrong_text(draw, text)
    name = f"case/m{draw.randrange(10**9)}.py"
    Path(name).write_text(text, errors="surrogatepass")
    data = ("--data", "npz:set.npz", "--recipe", "r.yaml")
    return draw.choice((
        ("analyze", f"{name}:Net", "--input", "1x8x8"), ("doctor", f"{name}:Net", "--input", "1x8x8"), ("train",
        f"{name}:Net", *data),
        ("optimize", f"{name}:Net", *data, "--budget", "macs<=50%", "--method", "uniform", "--out", "case/o",
        "--epochs", "0"),
    ))  # fmt: skip


def text(draw: random.Random) -> Call:
    """A text that is given to a Python function."""
    kind = draw.choice(("budget", "model", "shape", "data", "recipe", "group"))
    given = wrong_word(draw, kind, draw.choice(GOOD.get(kind, ("conv1",))))
    calls: dict[str, Callable[[], object]] = {
        "budget": lambda: cw.parse_budget(given), "model": lambda: cw.read(given, "1x8x8"),
        "data": lambda: cw.load_data(given),
        "shape": lambda: cw.read("net.py:Net", given), "recipe": lambda: cw.Recipe.preset(given),
        "group": lambda: NET[0].group(given),
    }  # fmt: skip
    return calls[kind]


NET: list[cw.Architecture] = []
KINDS: dict[str, tuple[int, Callable[[random.Random], Call]]] = {  # how often, and what
    "words": (30, words), "plan": (10, plan), "plan_text": (10, plan_text), "recipe": (12, recipe), "npz": (7, npz),
    "folder": (4, folder),
    "weights": (7, weights), "checkpoint": (4, checkpoint), "run": (12, run), "model": (10, model), "text": (12, text),
}  # fmt: skip


# ------------------------------------------------------------------ trying


class TooLongError(BaseException):
    """An input takes more time than it may: passes through every `except Exception`."""


def make_world(root: Path) -> None:
    """Write valid files of every kind into a folder, and go there."""
    os.chdir(root)
    draw = np.random.default_rng(0)
    labels = np.arange(120) % 3
    pixels = (draw.integers(0, 110, (120, 8, 8)) + labels[:, None, None] * 60).astype(np.uint8)
    np.savez("set.npz", x_train=pixels, y_train=labels, x_test=pixels[:30], y_test=labels[:30])
    for number, name in enumerate(("a/1", "a/2", "a/3", "b/1", "b/2", "b/3")):
        file = Path("photos") / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(file)
    Path("net.py").write_text(NETWORK + "\nnet = Net()\n")
    Path("r.yaml").write_text(RECIPE)
    Path("r2.yaml").write_text(RECIPE.replace("max_steps: 2", "max_steps: 4").replace("epochs: 1", "epochs: 2"))
    Path("full.yaml").write_text(cw.Recipe.preset("default").to_yaml())
    arch = cw.read("net.py:Net", "1x8x8")
    NET[:] = [arch]
    arch.apply(cw.Width("conv1", 4), cw.Kernel("conv2", 5), cw.Replace("conv2", "ghost")).plan.save("plan.json")
    torch.save(arch.model.state_dict(), "w.pt")
    from convwright.runs.directory.files import save_weights

    save_weights(arch.model, Path("w.safetensors"))
    data = ("net.py:Net", "--data", "npz:set.npz", "--recipe", "r.yaml")
    calls = (("train", *data[:-1], "r2.yaml", "--out", "trained"), ("optimize", *data, "--budget", "macs<=50%",
    "--method", "uniform",
             "--epochs", "1", "--tune-epochs", "1", "--out", "run"))  # fmt: skip
    for call in calls:
        fault = attempt(call)
        assert fault is None, f"{call}: {fault}"


def attempt(call: Call) -> str | None:
    """Carry out a call; return what is wrong with how it ends."""
    out, err = io.StringIO(), io.StringIO()
    before, began = _memory(), time.monotonic()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(), _limits():
            warnings.simplefilter("ignore")
            code = _code(call)
    except TooLongError:
        return f"more than {SECONDS} s\n{_trace()}"
    except BaseException:
        return f"traceback\n{_trace()}"
    used, text = (_memory(peak=True) - before) / GIB, err.getvalue()
    if used > ROOM:
        return f"{used:.1f} GiB of memory, {time.monotonic() - began:.1f} s\n{text[-500:]}"
    return None if isinstance(code, str) else _complaint(code, text)


def _trace() -> str:
    """Return where an exception came from, from the inner end to our code, one line per call."""
    kind, error, where = sys.exc_info()
    frames = [f"{frame.filename}:{frame.lineno} {frame.line}" for frame in traceback.extract_tb(where)]
    ours = max((i for i, frame in enumerate(frames) if "/src/convwright/" in frame), default=0)
    shown = frames[max(0, ours - 3) : ours + 1] + frames[max(ours + 1, len(frames) - 3) :]
    return "\n".join((*(f"  {line[:200]}" for line in shown), f"  {kind.__name__ if kind else ''}: {str(error)[:300]}"))


def _code(call: Call) -> int | str:
    if not callable(call):
        return leaving.run(app, list(call))
    try:
        call()
    except ConvwrightError as error:
        return f"refused: {error}"
    return "fine"


def _complaint(code: int, text: str) -> str | None:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("convwright: error: ")]
    if code not in (0, 2, 3, 130) or "Traceback (most recent" in text:
        return f"exit {code}\n{text[-1500:]}"
    usage = any("Usage: " in line for line in lines)  # what typer says about unknown options and missing words
    if code in (2, 3) and not usage and (len(errors) != 1 or lines[-1] != errors[0] or errors[0].endswith("error: ")):
        return f"exit {code} without one line that is an error\n{text[-1500:]}"
    return None


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooLongError

    faulthandler.dump_traceback_later(
        15 * SECONDS, exit=True, file=sys.__stderr__
    )  # where Python itself does not come to its turn
    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def _memory(peak: bool = False) -> int:
    """Return bytes in use, or the most since the last question for those in use."""
    if not peak:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    wanted = "VmHWM:" if peak else "VmRSS:"
    status = Path("/proc/self/status")
    found = (
        [line.split()[1] for line in status.read_text().splitlines() if line.startswith(wanted)]
        if status.exists()
        else []
    )
    return int(found[0]) * 1024 if found else 0


def inputs(
    count: int, seed: int, only: Sequence[str] = (), start: int = 0
) -> Iterator[tuple[int, str, Callable[[], Call]]]:
    """Yield numbers, kinds, and what makes the input: files in the folder `case`, and the call."""
    kinds = [kind for kind, (often, _) in KINDS.items() for _ in range(often)]
    for number in range(start, count):
        draw = random.Random(f"{seed} {number}")
        kind = draw.choice(kinds)
        if not only or kind in only:
            yield number, kind, lambda kind=kind, draw=draw: KINDS[kind][1](draw)  # type: ignore[misc]


def fuzz(count: int, seed: int, only: Sequence[str] = (), start: int = 0, most: int | None = None) -> list[str]:
    """Try inputs (`most` of them) in the present folder, which `make_world` filled; return what failed."""
    faults = []
    for tried, (number, kind, make) in enumerate(islice(inputs(count, seed, only, start), most), start=1):
        if not tried % 500:
            print(f"{tried} tried, {len(faults)} failed", file=sys.stderr, flush=True)
        Path("now").write_text(f"{number} {kind}")  # where it was, should the process itself be killed
        shutil.rmtree("case", ignore_errors=True)
        Path("case").mkdir()
        call = make()
        if (fault := attempt(call)) is not None:
            shown = "a call of Python" if callable(call) else " ".join(word[:80] for word in call)
            faults.append(f"{number} {kind}: {shown!r}\n{fault}")
            print(faults[-1], flush=True)
    return faults


def main() -> None:
    """Fuzz from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds, joined by commas")
    parser.add_argument("--from", dest="start", type=int, default=0)
    given = parser.parse_args()
    # What asks for more gets a MemoryError, and the machine lives on. A process has some GiB of addresses for a start.
    resource.setrlimit(resource.RLIMIT_AS, (10 * GIB, resource.getrlimit(resource.RLIMIT_AS)[1]))
    torch.set_num_threads(1)
    only = [kind for kind in given.only.split(",") if kind]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        make_world(Path(root))
        faults = fuzz(given.count, given.seed, only, given.start)
        os.chdir("/")
    tried = Counter(kind for _, kind, _ in inputs(given.count, given.seed, only, given.start))
    print(f"{sum(tried.values())} inputs in {time.monotonic() - began:.0f} s ({dict(tried)}): {len(faults)} failed")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
