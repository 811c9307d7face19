#!/usr/bin/env python3
"""Writes model folders that must not load, each with the words that its error must contain.

usage: make_broken.py [--golden FOLDER] OUT

OUT gets a folder for each variant and broken.json: a list of {"name", "about", "contains"}. The error that a
variant gives must contain every string of "contains", whatever the case of letters; "a|b" means a or b. Two
folders that are written the same way but are not damaged have "contains": null: they must load, and give the
logits of the golden. Needs numpy and the standard library, not torch.
"""

import argparse
import json
import shutil
from pathlib import Path

import broken_config  # noqa: F401  (all of these register their variants)
import broken_safetensors  # noqa: F401
import broken_tensors  # noqa: F401
import broken_torch
import broken_zip  # noqa: F401
from broken_draft import VARIANTS, Draft

GOLDEN = Path(__file__).resolve().parent / "names_canonical"


def controls(draft, out):
    """The good folders."""
    draft.copy().write(out / "good_safetensors")
    torch = draft.copy()
    torch.use_torch(broken_torch.Archive(torch).bytes())
    torch.write(out / "good_torch")
    return [
        {"name": "good_safetensors", "about": "not damaged", "contains": None},
        {"name": "good_torch", "about": "the same as a torch file", "contains": None},
    ]


def make(golden, out):
    """Writes everything to `out`, which is emptied first; returns what broken.json holds."""
    golden, out = Path(golden), Path(out)
    if out.exists():
        if any(out.iterdir()) and not (out / "broken.json").exists():
            raise SystemExit(f"{out}: is not empty, and not from here")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    good = Draft(golden)
    table = controls(good, out)
    for name, about, contains, damage in VARIANTS:
        draft = good.copy()
        damage(draft)
        draft.write(out / name)
        table.append({"name": name, "about": about, "contains": contains})
    (out / "broken.json").write_text(json.dumps(table, indent=1) + "\n")
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--golden", type=Path, default=GOLDEN, help="a good folder (default: names_canonical)"
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    options = parser.parse_args()
    print(f"{len(make(options.golden, options.out))} folders in {options.out}")


if __name__ == "__main__":
    main()
