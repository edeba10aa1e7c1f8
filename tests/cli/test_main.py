from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tnet.cli.common import say
from tnet.cli.main import _Group, _show_warning, app
from tnet.errors import DataError, OutputError, SlowImageWarning
from tnet.stop import Stopped

VERBS = ("demo", "suggest", "recipes", "train", "evaluate", "report", "compare", "predict", "explain", "view", "models",
         "info", "pyramid", "doctor", "import-tf", "data")  # fmt: skip

# Not one of these may be imported for --help to answer at once.
SLOW = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy", "matplotlib", "PIL", "pyarrow", "sklearn",
        "rich", "yaml", "jsonargparse", "safetensors", "huggingface_hub", "jaxtyping", "jinja2", "tifffile", "rasterio",
        "openslide", "zarr", "fastapi", "uvicorn")  # fmt: skip


def tnet(*arguments: str, code: str = "from tnet.cli.main import main; main()") -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = 'tnet'; {code}", *arguments],
        capture_output=True, text=True, timeout=100, check=False, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip


def test_help_names_every_verb_and_imports_nothing_slow() -> None:
    code = (
        "from typer.testing import CliRunner; from tnet.cli.main import app; "
        "results = [CliRunner().invoke(app, [*verb, '--help']) for verb in ([], *([name] for name in sys.argv[1:]))]; "
        "assert all(result.exit_code == 0 for result in results), results; "
        "print(results[0].output); print('LOADED', *sys.modules)"
    )
    result = tnet(*VERBS, code=code)
    assert result.returncode == 0, result.stderr
    text, _, loaded = result.stdout.partition("LOADED")
    listed = [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.strip()]
    assert [name for name in listed if name in VERBS] == list(VERBS)
    assert set(SLOW).isdisjoint(loaded.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_for_itself_and_its_options(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    description = result.output.split("\n\n")[1].strip()
    assert len(description) > 10 and description.endswith(".")


def test_version_comes_from_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "tnet-9.8.7.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.4\nName: tnet\nVersion: 9.8.7\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    result = tnet(
        "--version", code="from tnet.cli.main import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "tnet 9.8.7\n", "")


def test_no_verb_shows_the_help() -> None:
    result = CliRunner().invoke(app, [])
    assert "Commands:" in result.output
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "arguments", [["no-such-verb"], ["info"], ["info", "x", "--no-such-option"], ["info", "--looks"]]
)
def test_wrong_usage_ends_with_2_and_no_traceback(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Error: " in result.output and "Traceback" not in result.output


def fails_with(error: BaseException) -> typer.Typer:
    """A command line whose one verb raises."""
    failing = typer.Typer(cls=_Group, rich_markup_mode=None, pretty_exceptions_enable=False)

    @failing.command()
    def verb() -> None:
        raise error

    @failing.command()
    def other() -> None: ...

    return failing


@pytest.mark.parametrize(
    "error", [DataError("folder x is empty; add pictures"), OutputError("folder x is empty; add pictures")]
)
def test_what_a_user_caused_is_one_sentence(error: Exception) -> None:
    result = CliRunner().invoke(fails_with(error), ["verb"])
    assert result.exit_code == 1
    assert result.stderr == "error: folder x is empty; add pictures\n"
    assert result.stdout == ""


def test_interrupting_ends_with_130_and_says_how_to_go_on() -> None:
    result = CliRunner().invoke(fails_with(KeyboardInterrupt()), ["verb"])
    assert (result.exit_code, result.stderr) == (130, "\ninterrupted\n")
    interrupt = KeyboardInterrupt()
    interrupt.add_note("go on with --resume")
    result = CliRunner().invoke(fails_with(interrupt), ["verb"])
    assert (result.exit_code, result.stderr) == (130, "\ninterrupted: go on with --resume\n")


@pytest.mark.parametrize(("notes", "message"), [
    ([], "\nstopped by SIGTERM: the same command starts over\n"),
    (["2 epoch(s) are in x; continue with --resume"],
     "\nstopped by SIGTERM: 2 epoch(s) are in x; continue with --resume\n"),
])  # fmt: skip
@pytest.mark.parametrize("error", [
    Stopped(signal.SIGTERM), RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")
])  # fmt: skip
def test_a_signal_ends_a_verb_with_its_number_even_if_a_worker_got_it_first(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, notes: list[str], message: str
) -> None:
    monkeypatch.setattr("tnet.stop._received", [signal.SIGTERM])
    error.__notes__ = notes or []
    if not notes:
        del error.__notes__
    result = CliRunner().invoke(fails_with(error), ["verb"])
    assert (result.exit_code, result.stderr) == (143, message)


@pytest.mark.parametrize(("error", "sentence"), [
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "ended (killed by signal: Killed)"),
    (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "ended (exited unexpectedly)"),
    (OSError(errno.EMFILE, "Too many open files", "/x"), "ulimit -n"),
    (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
    (RuntimeError("[/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:21423: Connection reset by peer."),
     "another process of this training ended (Connection reset by peer)"),
])  # fmt: skip
def test_workers_that_end_and_files_that_run_out_are_one_sentence(error: Exception, sentence: str) -> None:
    result = CliRunner().invoke(fails_with(error), ["verb"])
    assert result.exit_code == 1 and sentence in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_names_in_errors_and_output_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(fails_with(DataError("folder a\x1b[2J\nb is empty; add pictures")), ["verb"])
    assert result.stderr == "error: folder a\\x1b[2J\\nb is empty; add pictures\n"
    _show_warning(SlowImageWarning("image \x07x is slow"), SlowImageWarning)
    say("a\x1b]0;title\x07\nb\tc")
    assert capsys.readouterr() == ("a\\x1b]0;title\\x07\nb\tc\n", "warning: image \\x07x is slow\n")


class OutOfMemoryError(RuntimeError):
    """What torch calls its own."""


@pytest.mark.parametrize("error", [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore"),
])  # fmt: skip
def test_running_out_of_memory_names_the_remedy(error: Exception) -> None:
    result = CliRunner().invoke(fails_with(error), ["verb"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: out of memory (") and "smaller batch" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("error", "message"), [
    (PermissionError(errno.EACCES, "Denied", "/a/b"), "error: /a/b: Denied; change its permissions"),
    (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device; "),
])  # fmt: skip
def test_a_machine_that_says_no_is_not_a_bug(error: OSError, message: str) -> None:
    result = CliRunner().invoke(fails_with(error), ["verb"])
    assert result.exit_code == 1
    assert result.stderr.startswith(message) and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), RuntimeError("a bug"), FileNotFoundError(errno.ENOENT, "a bug")]
)
def test_bugs_keep_their_traceback(error: Exception) -> None:
    assert CliRunner().invoke(fails_with(error), ["verb"]).exception is error


def test_python_m_tnet_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tnet", "no-such-verb"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 2 and "no-such-verb" in done.stderr


def test_the_reader_may_go_away() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'tnet'; from tnet.cli.main import main; main()", "--help"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(60)


def test_standard_output_may_be_closed_or_its_reader_gone() -> None:
    start = "import sys; sys.argv[0] = 'tnet'; from tnet.cli.main import main; main()"
    for redirected, status in ((">&-", 0), ("2>&- >&-", 0), ("| true; exit ${PIPESTATUS[0]}", 1)):
        script = f'"{sys.executable}" -c "{start}" --version {redirected}'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=100, check=False)
        assert (done.stdout, done.stderr) == ("", "") and done.returncode in (0, status), redirected


def test_a_terminal_without_a_sign_does_not_end_a_run() -> None:
    code = "import typer, tnet.cli.main as m; m.app = lambda: typer.echo('5 \\u00d7 5 \\u2192 25'); m.main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=100, check=False,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert (result.returncode, result.stdout.strip()) == (0, b"5 \xd7 5 ? 25"), result.stderr
