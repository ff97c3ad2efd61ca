"""Print saturation.md from the curves beside this file: gradients of 0 and accuracies against the epoch."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

FOLDER = Path(__file__).parent
HEADER = ("epoch", "trained", "n", "no attack", "zero", "paper, 0.1", "exact, 0.1", "paper, 0.25", "exact, 0.25")
for dataset in ("mnist", "cifar10"):
    curves = json.loads((FOLDER / f"{dataset}-curves.json").read_text())
    rows: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for run, curve in curves.items():
        for row in curve:
            rows.setdefault((row["epoch"], run.split(", ")[1]), []).append(row)
    epochs = sorted({epoch for epoch, _ in rows})
    shown = set(epochs[:: max(1, len(epochs) // 10)]) | {epochs[-1]}
    print(f"**{dataset}**: FGSM by the CE loss on 2000 test images, mean over n seeds\n")
    print("| " + " | ".join(HEADER) + " |\n" + "| --- " * len(HEADER) + "|")
    for (epoch, trained), of in sorted(rows.items()):
        pairs = [(attack, key) for key in ("0.1", "0.25") for attack in ("clipped-ce", "ce")]
        values = [fmean(row[attack][key] for row in of) for attack, key in [("clipped-ce", "zero"), *pairs]]
        texts = [f"{value:.3f}" for value in (fmean(row["clean"] for row in of), *values)]
        if epoch in shown:
            print("| " + " | ".join([str(epoch), trained, str(len(of)), *texts]) + " |")
    print()
print("zero: the share of images whose gradient in the paper protocol is exactly 0. Made by")
print("`python benchmarks/results/gpu-h200/saturation.py > benchmarks/results/gpu-h200/saturation.md`")
