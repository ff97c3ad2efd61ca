"""The example of data-parallel training, started with torchrun."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks import data_parallel
from benchmarks.data_parallel import Options, local_batches, train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def alone(tmp_path: Path) -> None:
    """Make the test process a process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the training in two processes."""
    command = [*LAUNCHER, "-m", "benchmarks.data_parallel", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_missing_data_end_both_processes_with_one_message(tmp_path: Path) -> None:
    ran = run("--dataset", "mnist", "--data-dir", str(tmp_path))
    assert ran.returncode != 0
    assert ran.stderr.count("Error: mnist: expected") == 1
    assert "DataError" not in ran.stderr
    assert "Connection closed" not in ran.stderr


def test_two_processes_give_the_same_network_as_one(
    alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.pt"
    ran = run("--dataset", "digits", "--epochs", "2", "--weights", str(weights))
    assert ran.returncode == 0, ran.stderr
    model = train(Options(dataset="digits", epochs=2), torch.device("cpu"))
    # The output of the first process, without the seconds.
    lines, expected_lines = (
        re.findall(r"epoch (\d): loss ([\d.]+) nats, validation accuracy ([\d.]+)", text)
        for text in (ran.stdout, capsys.readouterr().out)
    )
    assert len(lines) == len(expected_lines) == 2
    for (_, loss, right), (_, own_loss, own_right) in zip(lines, expected_lines, strict=True):
        assert float(loss) == pytest.approx(float(own_loss), abs=2e-4)
        assert float(right) == pytest.approx(float(own_right), abs=0.006)  # one image of 180
    trained = torch.load(weights, weights_only=True)
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(trained[name], expected, rtol=0, atol=1e-4)


def test_the_parts_make_up_each_batch_and_too_small_batches_are_skipped(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = torch.arange(10.0), torch.arange(10)
    monkeypatch.setattr(data_parallel.dist, "get_world_size", lambda: 3)
    batches = []
    for rank in range(3):
        monkeypatch.setattr(data_parallel.dist, "get_rank", lambda rank=rank: rank)
        batches.append(list(local_batches(images, labels, torch.arange(10).split(4))))
    assert [len(parts) for parts in batches] == [2, 2, 2]
    for k in range(2):
        joint = torch.cat([parts[k][1] for parts in batches])
        assert sorted(joint.tolist()) == list(range(4 * k, 4 * k + 4))


def test_an_unknown_data_set_is_an_error(alone: None) -> None:
    with pytest.raises(ValueError, match=r"one of \['digits', 'mnist', 'cifar10'\], but got 'cifar'"):
        train(Options(dataset="cifar"), torch.device("cpu"))
