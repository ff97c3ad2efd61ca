"""Trial of a user's network, loss and attack before a grid is started."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import grids
from benchmarks.config import AttackSpec, ConfigError, Grid, LossSpec
from benchmarks.execution import prepare
from benchmarks.protocols import CE
from benchmarks.store import Store

((DATASET, RECIPE),) = grids.digits().recipes
NETWORK = """
from torch import nn
def build(image_shape, classes, seed):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, {outputs}))
"""
LOSS = """
from torch import nn
class Loss(nn.Module):
    def forward(self, logits, labels):
        return {value}
"""
ATTACK = """
import numpy as np
class Attack:
    def __init__(self, classifier, eps):
        self.eps = eps
    def generate(self, x, y):
        return {images}
"""


def prepared(tmp_path: Path, source: str, **parts: object) -> None:
    (tmp_path / "mine.py").write_text(source)
    prefix = f"{tmp_path}/mine.py:"
    grid = Grid(
        "mine",
        ((DATASET, replace(RECIPE, model=prefix + "build") if "build" in source else RECIPE),),
        (CE, LossSpec(prefix + "Loss")) if "Loss" in source else (CE,),
        (0,),
        (AttackSpec("none"), *([AttackSpec(prefix + "Attack", eps=0.1)] if "Attack" in source else [])),
    )
    prepare(grid, Store(tmp_path / "store"), data_dir=tmp_path, download=False)


@pytest.mark.parametrize(
    "source",
    [
        NETWORK.format(outputs="classes"),
        LOSS.format(value="nn.functional.cross_entropy(logits, labels)"),
        ATTACK.format(images="(x + np.float32(self.eps)).clip(0, 1)"),
    ],
    ids=["network", "loss", "attack"],
)
def test_valid_user_code_passes_and_no_file_is_created(source: str, tmp_path: Path) -> None:
    prepared(tmp_path, source)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (NETWORK.format(outputs="classes + 1"), "mine.py:build.*(2, 10).*(2, 11)"),
        (NETWORK.format(outputs="classes").replace("64", "63"), "mine.py:build.*RuntimeError"),
        (NETWORK.format(outputs="classes").replace("seed)", "seed, more)"), "mine.py:build.*more"),
        ("def build(**given):\n    return 'no module'", "mine.py:build.*Module.*str"),
        (LOSS.format(value="logits"), "mine.py:Loss.*scalar"),
        (LOSS.format(value="(logits * 0).sum() + float('nan')"), "mine.py:Loss.*nan"),
        (LOSS.format(value="(logits.argmax(1) == labels).sum()"), "mine.py:Loss.*gradient"),
        (LOSS.format(value="undefined"), "mine.py:Loss.*undefined"),
        (ATTACK.format(images="x[:1]"), "mine.py:Attack.*(2, 1, 8, 8).*(1, 1, 8, 8)"),
        (ATTACK.format(images="x + 2"), "mine.py:Attack.*[0, 1].*3"),
        (ATTACK.format(images="x * np.nan"), "mine.py:Attack.*nan"),
        (ATTACK.format(images="1 - x"), "mine.py:Attack.*0.1.*1"),
        (ATTACK.format(images="undefined"), "mine.py:Attack.*undefined"),
        ("def Attack(classifier, eps):\n    return 'no attack'", "mine.py:Attack.*no attack"),
    ],
)
def test_invalid_user_code_is_refused_with_its_name(source: str, words: str, tmp_path: Path) -> None:
    parts = [re.escape(word) for word in words.split(".*")]
    with pytest.raises(ConfigError, match=".*".join(parts)):
        prepared(tmp_path, source)
