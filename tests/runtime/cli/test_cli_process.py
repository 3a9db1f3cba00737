"""The command line in a child process: signals, terminals, pipes, full disks, missing packages."""

from __future__ import annotations

import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# SIGINT is reset because a test runner in the background passes on that it is ignored.
START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from mtllm_edge.cli.main import main; sys.exit(main())"
)
PATIENCE = 60
"""Seconds until a wait counts as a failure."""
EMPTY_JOURNAL = 16_384
"""Bytes of a journal without rows."""
SAVE_TO_FULL_DISK = """
import resource, sys
from openpyxl.writer.excel import ExcelWriter
from mtllm_edge.cli.main import main

save = ExcelWriter.save

def save_to_full_disk(self):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    save(self)

ExcelWriter.save = save_to_full_disk
sys.exit(main())
"""


@contextmanager
def start(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command line in a process that is ended with the block."""
    command = [sys.executable, "-c", START, *map(str, arguments)]
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(file: Path, size: int) -> None:
    """Wait until a file has at least `size` bytes."""
    deadline = time.monotonic() + PATIENCE
    while not file.exists() or file.stat().st_size < size:
        assert time.monotonic() < deadline, f"no {file} appeared"
        time.sleep(0.01)


def test_ctrl_c_while_reading_a_slow_pipe(tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    with start(
        *("classify", "-b", tiny_bundle, "-t", "topic", "-o", output),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"a line\n" * 100_000)  # larger than a pipe's buffer: returns when the program reads
        process.stdin.flush()
        time.sleep(0.3)  # now the program waits for input
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130, process.stderr.read().decode()
        errors = process.stderr.read().decode()
    assert errors.strip() == "stopped; nothing was written"
    assert not list(tmp_path.iterdir())


def test_ctrl_c_during_a_job(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"the team is good and the hotel is bad {n}\n" for n in range(200_000)))
    (tmp_path / "out.csv").write_text("old")

    def interrupted(size: int) -> str:
        with start(
            *("classify", "-b", tiny_bundle, "-t", "topic", tmp_path / "in.txt", "-o", tmp_path / "out.csv", "--force"),
            stderr=subprocess.PIPE,
            env=os.environ | {"MTLLM_EDGE_CACHE": str(tmp_path / "cache")},
        ) as process:
            assert process.stderr is not None
            wait_for(tmp_path / ".out.csv.job/journal.sqlite", size)
            os.killpg(process.pid, signal.SIGINT)  # like a terminal: the probing child process receives it, too
            assert process.wait(PATIENCE) == 130, process.stderr.read().decode()
            return process.stderr.read().decode().strip()

    assert interrupted(0) == "stopped; nothing was written"  # while the model is loaded
    assert not list(tmp_path.glob(".*"))
    message = r"stopped after [\d,]+ rows, which are kept; run the same command again to go on"
    assert re.fullmatch(message, interrupted(EMPTY_JOURNAL + 1))
    size = (tmp_path / ".out.csv.job/journal.sqlite").stat().st_size
    began, _, ended = interrupted(size + 1).partition("\n")
    assert re.fullmatch(r"going on after [\d,]+ rows of an interrupted run", began)
    assert re.fullmatch(message, ended.strip())
    assert (tmp_path / "out.csv").read_text() == "old"


def test_a_closed_output_pipe_is_not_an_error(tiny_bundle: Path) -> None:
    with start(
        *("embed", "-b", tiny_bundle), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"a line\n" * 1000)
        process.stdin.close()
        process.wait(PATIENCE)
        assert process.stderr.read() == b""


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))


def test_a_full_disk_is_one_line_and_leaves_no_file(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a line\n" * 1000)
    for name in ("out.npy", "out.jsonl"):
        with start(
            *("embed", "-b", tiny_bundle, tmp_path / "in.txt", "-o", tmp_path / name),
            stderr=subprocess.PIPE,
            preexec_fn=limit_files,
        ) as process:
            _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert errors.decode() == f"error: {tmp_path / name}: disk input/output error; check free space and quota\n"
        assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_a_full_disk_while_a_workbook_is_written(tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.xlsx"
    arguments = ("classify", "-b", tiny_bundle, "-t", "topic", "the team is good", "-o", output)
    command = [sys.executable, "-c", SAVE_TO_FULL_DISK, *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors.decode().startswith(f"error: {output}: File too large; 1 rows are kept: ")
    assert errors.count(b"\n") == 1


def on_terminal(*arguments: object) -> tuple[int, str]:
    """Run with a terminal on all three streams; return exit code and output, without control sequences."""
    main_end, child_end = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with start(*arguments, stdin=child_end, stdout=child_end, stderr=child_end, env=environment) as process:
        os.close(child_end)
        output = bytearray()
        deadline = time.monotonic() + PATIENCE
        while select.select([main_end], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                part = os.read(main_end, 65536)
            except OSError:  # end of file on Linux
                break
            if not part:
                break
            output += part
        os.close(main_end)
        code = process.wait(PATIENCE)
    return code, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode())


def test_a_terminal_gets_a_table_and_a_progress_bar(tiny_bundle: Path, tmp_path: Path) -> None:
    code, output = on_terminal("classify", "-b", tiny_bundle, "-t", "topic", "the team is good", "ein Text")
    assert code == 0
    assert "loading the model" in output
    assert "2/2" in output
    assert re.search(r"^(science|sports|travel) +\d\.\d{3} +the team is good\r?$", output, re.MULTILINE)
    assert re.search(r"2 texts in \d+\.\d s, \d+\.\d texts/s", output)


def test_texts_are_not_read_from_a_terminal(tiny_bundle: Path) -> None:
    code, output = on_terminal("classify", "-b", tiny_bundle, "-t", "topic")
    assert code == 2
    assert output.startswith("error: no texts; give some in quotes, name a file of texts, or pipe them in")


@pytest.mark.parametrize(
    ("closed", "arguments", "error"),
    [
        (0, ["the team is good", "-o", "out.csv"], ""),
        (0, ["-", "-o", "out.csv"], "error: stdin holds no text; write one text per line"),
        (1, ["the team is good", "-o", "out.csv"], ""),
        (1, ["the team is good"], "error: the standard output is closed; name a file with --output"),
    ],
)
def test_closed_streams(tiny_bundle: Path, tmp_path: Path, closed: int, arguments: list[str], error: str) -> None:
    with start(
        *("classify", "-b", tiny_bundle, "-t", "topic", *arguments),
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        preexec_fn=lambda: os.close(closed),
    ) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    if error:
        assert errors.decode() == f"{error}\n"
    else:
        assert process.returncode == 0, errors
    assert (tmp_path / "out.csv").exists() == (not error)


def write_plugin(folder: Path) -> None:
    """Write a package with two additional commands, one of them with a missing extra."""
    (folder / "plugin.py").write_text(
        "import click\n"
        "from mtllm_edge.extras import require\n"
        "@click.command()\n"
        "def needy():\n"
        "    'Needs what is not there.'\n"
        "    require('export', 'no_such_module')\n"
        "@click.command()\n"
        "def hello():\n"
        "    'Say hello.'\n"
        "    click.echo('hello')\n"
    )
    info = folder / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mtllm_edge.commands]\nneedy = plugin:needy\nhello = plugin:hello\n")


def run_with_path(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
    )


def test_commands_of_other_packages(tmp_path: Path) -> None:
    write_plugin(tmp_path)
    code = "import sys; from mtllm_edge.cli.main import main; sys.exit(main({}))"
    result = run_with_path(tmp_path, code.format(["--help"]))
    assert re.search(r"^  hello +Say hello\.$", result.stdout, re.MULTILINE)
    assert run_with_path(tmp_path, code.format(["hello"])).stdout == "hello\n"
    needy = run_with_path(tmp_path, code.format(["needy"]))
    assert needy.returncode == 2
    assert needy.stderr.startswith("error: this command needs the extra [export] (no_such_module not installed); run:")
    own = code.replace("main({})", "main(['info', 'x']) and print('plugin' in sys.modules)")
    assert run_with_path(tmp_path, own).stdout == "False\n", "a command imports only itself"


def test_all_help_pages_work_without_extras(tmp_path: Path) -> None:
    write_plugin(tmp_path)
    code = (
        "import sys\n"
        "for name in 'torch transformers gguf peft pyarrow llama_cpp ctranslate2'.split():\n"
        "    sys.modules[name] = None\n"
        "import click\n"
        "from mtllm_edge.cli.main import cli, main\n"
        "assert main(['--help']) == 0\n"
        "for name in cli.list_commands(click.Context(cli)):\n"
        "    assert main([name, '--help']) == 0, name\n"
    )
    result = run_with_path(tmp_path, code)
    assert (result.returncode, result.stderr) == (0, "")
    for name in ("classify", "embed", "info", "verify", "doctor", "hello", "needy"):
        assert f"Usage: mtllm-edge {name}" in result.stdout
