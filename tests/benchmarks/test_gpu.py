"""The prepared GPU run, tested on the CPU: stages, time limits, resumption and summary."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console
from testing import studies

from benchmarks import gpu
from benchmarks.__main__ import main
from benchmarks.cli import GridOptions
from benchmarks.cli._commands import Gpu
from benchmarks.gpu import Plan, Stage
from benchmarks.speed import losses
from benchmarks.speed.measuring import Settings, frame, interleaved, peak_bytes
from benchmarks.store import Store

CONSOLE = Console(markup=False, highlight=False)
CUDA = torch.device("cuda")


def code(text: str) -> list[str]:
    return [sys.executable, "-c", text]


class PlanOfStages(Plan):
    """Plan with given stages."""

    stage_map: Mapping[str, Stage]

    def stages(self) -> dict[str, Stage]:
        return dict(self.stage_map)


def plan(folder: Path, **stages: Stage) -> Plan:
    stages_plan = PlanOfStages(folder, folder, "cpu", True, {})
    object.__setattr__(stages_plan, "stage_map", stages)
    return stages_plan


def states(folder: Path) -> dict[str, str]:
    return {name: state["state"] for name, state in json.loads((folder / "stages.json").read_text()).items()}


# --------------------------------------------------------------------------------------------------------------- stages


def test_a_failed_stage_does_not_stop_others_and_its_output_is_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    three = plan(
        tmp_path,
        first=Stage(code("print('one'); raise SystemExit(3)")),
        tests=Stage(code("print('2 failed'); raise SystemExit(1)"), done=(0, 1)),
        last=Stage(code("print('three')")),
    )
    assert gpu.run(three, (), 1, CONSOLE) == 1
    assert states(tmp_path) == {"first": "failed, exit 3", "tests": "done, exit 1", "last": "done"}
    assert (tmp_path / "first.log").read_text().endswith("\none\n")
    summary = (tmp_path / "summary.md").read_text()
    assert "| first | failed, exit 3 |" in summary
    assert "Tests: 2 failed\n" in summary
    shown = capsys.readouterr().out
    assert "one\n" in shown
    assert "three\n" not in shown


def test_finished_stages_are_not_repeated(tmp_path: Path) -> None:
    """A failed stage is repeated, and appends to its log; the summary has all stages."""
    counting = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.open('a').write('x')"
    once, again = (tmp_path / name for name in ("once", "again"))
    stages = {
        "once": Stage([*code(counting), str(once)]),
        "again": Stage([*code(f"{counting}; raise SystemExit(p.read_text() != 'xx')"), str(again)]),
    }
    assert gpu.run(plan(tmp_path, **stages), (), 1, CONSOLE) == 1
    assert gpu.run(plan(tmp_path, **stages), (), 1, CONSOLE) == 0
    assert (once.read_text(), again.read_text()) == ("x", "xx")
    assert (tmp_path / "again.log").read_text().count("$ ") == 2


def test_a_stage_over_its_time_limit_is_interrupted_so_that_it_can_store_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that ignores the interrupt is killed, and the next stage is executed."""
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    monkeypatch.setattr(gpu, "MIN_SECONDS", 0.0)
    waiting = "import time\ntry:\n    print('ready', flush=True); time.sleep(60)\nexcept KeyboardInterrupt:\n    "
    stages = {
        "kept": Stage(code(f"{waiting}print('kept')"), 4),
        "deaf": Stage(code("import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"), 4),
        "next": Stage(code("")),
    }
    assert gpu.run(plan(tmp_path, **stages), (), 1, CONSOLE) == 1
    assert states(tmp_path) == {"kept": "stopped after 4 s", "deaf": "stopped after 4 s, killed", "next": "done"}
    assert (tmp_path / "kept.log").read_text().endswith("ready\nkept\n")


def test_a_stage_is_not_started_without_enough_time(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert gpu.run(plan(tmp_path, late=Stage(code(""))), (), (gpu.GRACE + gpu.MIN_SECONDS - 1) / 60, CONSOLE) == 1
    assert not (tmp_path / "stages.json").exists()
    assert "late: no time left\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_grid_that_the_deadline_stops_is_resumed(tmp_path: Path) -> None:
    """The stage is the command run, and the summary also shows unfinished runs."""
    options = GridOptions(studies.SMALL, tmp_path / "store", seeds=1, epochs=100_000)
    grid = {"paper": (f"{options.resuming} --workers 1", options.resolve())}
    run, store = options.resolve().runs()[0], Store(tmp_path / "store")
    counts = [0]
    for _ in range(2):
        for seconds in (12, 30, 120):  # several limits, because the start takes long on a busy machine
            assert (
                gpu.run(Plan(tmp_path, tmp_path, "cpu", True, grid), ("paper",), (gpu.GRACE + seconds) / 60, CONSOLE)
                == 1
            )
            if len(store.curve(run)) > counts[-1]:
                break
        assert states(tmp_path)["paper"].startswith("stopped after ")
        counts.append(len(store.curve(run)))
        assert f"| {run} | {counts[-1]} of 100000 |" in (tmp_path / "summary.md").read_text()
    assert 0 < counts[1] < counts[2]
    first_epochs = {entry["from_epoch"] for entry in store.log_entries(run) if entry["event"] == "training"}
    assert first_epochs == {1, counts[1] + 1}


@pytest.mark.slow
def test_a_quick_run_on_the_cpu_completes_all_stages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "gpu", "--device", "cpu", "--quick", "--output", str(tmp_path)]
    # All stages except those that the tests of speed cover.
    stages = ["machine", "tests", "loss", "paper-digits"]
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}  # compilation would take longer than the rest of the test
    for seconds in (300, 60):
        ended = subprocess.run([*command, "--stage", *stages], env=environment, capture_output=True, timeout=seconds)
        assert ended.returncode == 0, ended.stdout.decode() + ended.stderr.decode()
    assert ended.stdout.count(b": already done\n") == 4
    assert set(states(tmp_path).values()) == {"done"}
    assert set(states(tmp_path)) == set(stages)
    facts = json.loads((tmp_path / "machine.json").read_text())
    summary = (tmp_path / "summary.md").read_text()
    assert facts["torch"] == torch.__version__.split("+")[0]
    for shown in (f"| torch | {facts['torch']} |", "Tests: ", "## Speed: loss", "| attacks | not started |"):
        assert shown in summary
    assert "| digits, CE, seed 0 | 1 of 1 |" in summary
    assert list(tmp_path.glob("store/reports/digits-*/*.html"))


def test_an_interrupted_packing_is_resumed_by_packing() -> None:
    assert Gpu(pack=Path("parts"), data_dir=Path("mine")).resuming == (
        "python -m benchmarks gpu --data-dir mine --pack parts"
    )


def test_invalid_options_are_refused_before_any_stage(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    for options, named in (
        ("--stage papper-mnist", "did you mean 'paper-mnist'?"),
        ("--minutes 0", "0.0"),
        (f"--output {tmp_path}/file/a", "file"),
    ):
        output = [] if "--output" in options else ["--output", str(tmp_path / "out")]
        assert main(["gpu", "--device", "cpu", *output, *options.split()]) == 2
        assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="wants no GPU")
@pytest.mark.parametrize("command", ["gpu", "speed"])
def test_a_missing_gpu_is_an_error(command: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([command, "--device", "gpu", "--output", str(tmp_path / "out")]) == 2
    assert "--device gpu" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ speed on a GPU


def test_the_share_of_the_bandwidth_is_computed_within_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share is the time of the copy divided by the time of the loss, and has a column in the table."""

    def fake_timings(calls: Mapping[str, object], *_: object, **__: object) -> dict[str, list[float]]:
        return {name: [1.0, 2.0, 4.0] if name == losses.COPY else [2.0, 8.0, 5.0] for name in calls}

    monkeypatch.setattr(losses, "interleaved", fake_timings)
    with torch.compiler.set_stance("force_eager"):
        readings = frame(losses.measure(losses.Workload((16, 10)), 1, Settings(Path(), seconds=1), beside_copy=True))
    shares = readings[readings.quantity == losses.SHARE].set_index("contender")
    assert set(shares.index) == set(losses.ORDER) - {losses.COPY}
    assert set(shares.against) == {losses.COPY}
    assert set(shares["median"]) == {0.5}, "the median of 0.5, 0.25 and 0.8"
    (table,) = losses.tables(readings)
    assert losses.SHARE in table.header
    assert losses.SHARE_NOTE in table.notes


def test_the_loss_table_of_a_gpu_has_its_sizes_and_dtypes() -> None:
    shown = [str(workload) for workload in losses.ON_GPU]
    assert shown == [
        "hard (128, 10)",
        "hard (4096, 10)",
        "hard (4096, 1000)",
        "hard (256, 50000)",
        "hard (256, 50000), bfloat16",
        "hard (8192, 128256)",
        "hard (8192, 128256), bfloat16",
    ]
    small = replace(losses.ON_GPU[-1], shape=(64, 20))
    logits, target = small.example(torch.device("cpu"))
    assert (logits.dtype, logits.requires_grad, target.dtype) == (torch.bfloat16, True, torch.int64)
    both = losses.eager(small, torch.device("cpu"))
    assert both[losses.HR](logits, target).item() == pytest.approx(both[losses.PLAIN](logits, target).item(), rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("part", ["loss", "attacks", "growth", "training", "ways"])
def test_every_part_is_measured_on_a_gpu(part: str, tmp_path: Path) -> None:
    where = ["--output", str(tmp_path), "--data-dir", str(tmp_path)]
    with torch.compiler.set_stance("force_eager"):
        assert main(["speed", "--part", part, "--quick", "--device", "gpu", *where]) == 0
    readings = pd.read_csv(tmp_path / f"{part}.csv")
    assert readings.case.str.contains("cuda").all()
    assert (readings[readings.quantity == "seconds"]["median"] > 0).any()
    assert part != "ways" or not readings.note.fillna("").str.startswith("fails").any()


@pytest.mark.gpu
def test_peak_of_a_known_pattern_on_a_gpu() -> None:
    """The peak is 3 MiB: 1 MiB and 2 MiB, which are freed before 0.5 MiB; 5 MiB allocated before do not count."""
    older = torch.empty(5 << 20, dtype=torch.uint8, device=CUDA)

    def pattern() -> list[torch.Tensor]:
        first, second = (torch.empty(size << 20, dtype=torch.uint8, device=CUDA) for size in (1, 2))
        del second
        return [first, torch.empty(1 << 19, dtype=torch.uint8, device=CUDA)]

    assert peak_bytes(pattern, CUDA) == 3 << 20
    assert len(older) == 5 << 20


@pytest.mark.gpu
def test_timings_wait_for_queued_gpu_work() -> None:
    """A product of 1.1 TFLOP takes at least a millisecond on any GPU; its launch takes a hundredth of that."""
    matrix = torch.randn(8192, 8192, device=CUDA)
    times = interleaved({"product": lambda _: matrix @ matrix}, Settings(Path(), device=CUDA), rounds=3)
    assert min(times["product"]) > 1e-3


@pytest.mark.gpu
def test_machine_describes_the_gpu() -> None:
    facts = gpu.machine()
    assert facts["GPU"] == torch.cuda.get_device_name()
    assert facts["CUDA"] == torch.version.cuda
