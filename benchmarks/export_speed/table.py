"""The table of this folder's README: size, target, scheme, and the stock way beside ours.

    python table.py FOLDER [--stock]

Writes random checkpoints of true widths into FOLDER (9 GB), then runs `large.py` once per row, each
in a process of its own, one after another. `--stock` adds the stock routes on the sizes they can
hold here, which takes most of an hour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIZES = {"0.09 B": "1,1", "0.34 B": "4,4", "1.0 B": "12,12", "1.93 B": ""}
"""Double and single blocks; none given is NanoFLUX's denoiser whole, with its resamplers."""
OURS = (("coreml", "palette4-g16"), ("litert", "int8"))
ONCE = (("coreml", "fp16"), ("onnx", "int8"))
"""Schemes measured on the largest size only."""
STOCK = (
    ("coreml", "palette4-g16", "0.09 B"),
    ("litert", "int8", "0.09 B"),
    ("litert", "int8", "0.34 B"),
)
COLUMNS = (
    "denoiser",
    "target",
    "scheme",
    "route",
    "seconds",
    "peak GiB",
    "GB",
    "files",
    "rel. MSE",
)


def checkpoint(folder: Path, size: str) -> Path:
    """The random checkpoint of a size, made once."""
    place = folder / size.replace(" ", "")
    if not place.is_dir():
        blocks = ["--blocks", SIZES[size]] if SIZES[size] else []
        run([HERE / "random_checkpoint.py", place, *blocks])
    return place


def run(command: list[Any]) -> str:
    """What a script of this folder prints; its errors are shown, and end this one."""
    done = subprocess.run([sys.executable, *map(str, command)], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def row(folder: Path, size: str, target: str, scheme: str, route: str) -> list[str]:
    """One measured line of the table."""
    told = ["--target", target, "--scheme", scheme, "--route", route]
    line = json.loads(run([HERE / "large.py", checkpoint(folder, size), *told]).splitlines()[-1])
    error = "" if line["relative_mse"] is None else f"{line['relative_mse']:.2e}"
    figures = (f"{line['seconds']:.0f}", f"{line['peak_gib']:.1f}", f"{line['bytes'] / 1e9:.2f}")
    return [size, target, scheme, route, *figures, str(line["files"]), error]


def main() -> None:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stock", action="store_true")
    told = parser.parse_args()
    wanted = [(size, *how, "ours") for how in OURS for size in SIZES]
    wanted += [(list(SIZES)[-1], *how, "ours") for how in ONCE]
    if told.stock:
        wanted += [(size, target, scheme, "stock") for target, scheme, size in STOCK]
    print("|".join(("", *COLUMNS, "")))
    print("|".join(("", *("---" for _ in COLUMNS), "")))
    for size, target, scheme, route in wanted:
        print("|".join(("", *row(told.folder, size, target, scheme, route), "")), flush=True)


if __name__ == "__main__":
    main()
