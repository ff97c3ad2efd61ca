"""The command line in real processes: help, options, error messages and signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from testing import studies

from benchmarks import grids
from benchmarks.cli import GridOptions, main
from benchmarks.cli._commands import COMMANDS
from benchmarks.speed.parts import PARTS
from benchmarks.store import versions

PROGRAM = [sys.executable, "-m", "benchmarks"]
SMALL = ["run", "--grid", studies.SMALL, "--seeds", "1", "--workers", "1"]


def program(*arguments: str | bytes, before: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, **environment}
    return subprocess.run([*before, *PROGRAM, *arguments], capture_output=True, env=env, timeout=600)


def short_message(error: bytes) -> str:
    """Return what was written to standard error; check that it is short and has no traceback."""
    text = error.decode()
    assert "Traceback" not in text
    assert len(text.splitlines()) <= 2, text
    return text


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_at_most_50_lines_and_names_every_option(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 50
    for name in [field.name for field in fields(COMMANDS[command])] if command else COMMANDS:
        assert name.replace("_", "-") in shown


def test_help_and_grids_do_not_import_torch() -> None:
    code = "import sys; from benchmarks.cli import main; main(['grids']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_version_prints_the_version_of_the_package(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"art_hrloss {versions()['art_hrloss']}\n"


def test_grids_lists_each_grid_with_its_runs_and_time(capsys: pytest.CaptureFixture) -> None:
    assert main(["grids"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line[1:2].isalpha()}
    assert rows.keys() - {"grid"} == grids.GRIDS.keys() == grids.COSTS.keys()
    for name, build in grids.GRIDS.items():
        assert f" {len(build().runs())} " in rows[name]
        assert rows[name].rstrip().endswith(grids.COSTS[name])


def test_speed_measures_every_part_by_default() -> None:
    assert COMMANDS["speed"]().part == tuple(PARTS)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["rnu"], "'run'"),
        (["run", "--gird", "digits"], "'--grid'"),
        (["run", "--batch_sise=3"], "'--batch-size'"),
        (["status", "--workrs", "2"], ""),
        (["status", "--grid", "mnits"], "'mnist'"),
        (["run", "--dataset", "minst"], "'mnist'"),
        (["--grid", "digits"], ""),
        (["speed", "--part", "atacks"], "'attacks'"),
    ],
)
def test_a_typing_error_is_reported_with_a_suggestion(
    arguments: list[str], meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.endswith(f": did you mean {meant}?") if meant else "did you mean" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "gbk"])
def test_every_terminal_encoding_works(encoding: str) -> None:
    for arguments in (["grids"], ["run", "--help"]):
        ended = program(*arguments, PYTHONIOENCODING=encoding, COLUMNS="0")
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert "digits" in ended.stdout.decode(encoding)


def test_a_store_under_a_path_that_is_not_utf8_can_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    store = os.fsdecode(os.fsencode(tmp_path) + b"/b\xffd")
    for done in (0, 2):
        sys.stdout.reconfigure(errors="replace")  # as the program does
        assert main([*SMALL, "--store", store]) == 0
        assert f"2 runs, {done} of them done in" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*/runs/*/model.safetensors"))) == 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv, of util-linux")
def test_a_user_without_a_name_or_a_home_directory_can_run_a_grid(tmp_path: Path) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o777)
    # The user may read all files, because Python may be installed in a home directory.
    reading = "+dac_read_search"
    nobody = ("--reuid=54321", "--regid=54321", "--clear-groups", f"--inh-caps={reading}", f"--ambient-caps={reading}")
    ended = program(*SMALL, "--store", str(tmp_path / "store"), before=("env", "-u", "HOME", "setpriv", *nobody))
    assert ended.returncode == 0, ended.stderr
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("arguments", [["grids"], ["run", "--help"]])
def test_a_closed_output_pipe_gives_no_traceback(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([*PROGRAM, *arguments], stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.mark.parametrize("seconds", [0.3, 1.5, 3.0])
def test_an_interrupt_in_the_first_seconds_gives_a_short_message(seconds: float, tmp_path: Path) -> None:
    """The interrupt may come while torch is imported, or while the runs are prepared."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child would inherit an ignored signal
    process = subprocess.Popen(
        [*PROGRAM, *SMALL, "--store", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    signal.signal(signal.SIGINT, before)
    while process.poll() is None and b"benchmarks" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        time.sleep(0.01)
    while process.poll() is None and cpu_seconds(process.pid) < seconds:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130, output + error
    assert b"Interrupted." in output + error
    short_message(error)


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process, which measure its progress also on a busy machine."""
    times = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("command", ["run", "status", "report"])
def test_a_store_that_is_a_file_is_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    for store in (tmp_path / "file", tmp_path / "file" / "within"):
        assert main([command, "--store", str(store)]) == 2
        assert f"{tmp_path / 'file'} is not a folder" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs /proc, of Linux")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_store_that_cannot_be_written_is_refused_before_any_work(workers: str, capsys: pytest.CaptureFixture) -> None:
    # A folder in which even root cannot create a file.
    assert main(["run", "--workers", workers, "--store", "/proc/sys/store"]) == 2
    shown = capsys.readouterr()
    assert "/proc/sys/store cannot be written" in shown.err
    assert shown.out == ""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, of util-linux")
@pytest.mark.parametrize("quota", ["cgroup v2", "cgroup v1"])
def test_available_processors_follow_the_quota_of_the_container(quota: str, tmp_path: Path) -> None:
    if quota == "cgroup v2":
        (tmp_path / "cpu.max").write_text("50000 100000\n")
    else:
        (tmp_path / "cpu").mkdir()
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    private_mounts = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /sys/fs/cgroup && exec "$@"', str(tmp_path)]
    if subprocess.run([*private_mounts, "true"], capture_output=True).returncode:
        pytest.skip("no permission to mount")
    code = "from benchmarks.execution import available_cpus; print(available_cpus())"
    ended = subprocess.run([*private_mounts, sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "1\n"


def test_the_command_of_a_grid_names_each_override_once() -> None:
    options = GridOptions("mnist", seeds=2, device="gpu", precision="tf32")
    words = options.command.split()
    assert [words.count(option) for option in ("--seeds", "--device", "--precision")] == [1, 1, 1]
    assert words[words.index("--precision") + 1] == "tf32"
