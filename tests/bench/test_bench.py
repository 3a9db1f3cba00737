"""`mtllm-edge bench` on tiny models: counts, reports, errors."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ctranslate2
import msgspec
import numpy as np
import pytest

from mtllm_edge import Classifier
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.cli.main import main
from mtllm_edge.embedder import load_tokenizer
from mtllm_edge.errors import MtllmError
from mtllm_edge.extras import EXTRAS
from mtllm_edge.translator import Translator
from mtllm_edge_bench.jobs import Job
from mtllm_edge_bench.report.report import Report
from mtllm_edge_bench.runner import measure
from mtllm_edge_bench.runner.measure import run_job
from mtllm_edge_bench.systems.english_llm import EnglishLlm, write_english_llm
from mtllm_edge_export.translator import export_translator
from mtllm_edge_train.checkpoints.config import TaskConfig
from mtllm_edge_train.evaluation.checkpoint_classifier import CheckpointClassifier
from tests.fixtures.subprocesses import imported_by, run_python
from tests.fixtures.tiny_bundle import make_tiny_bundle
from tests.fixtures.tolerances import LLAMA_CPP, assert_vectors_close
from tests.train.cli.test_eval import LABELS, TASKS, save_teacher
from tests.train.multilingual import test_train_translator

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted({*(ROOT / "benchmarks").glob("*.py")} - {ROOT / "benchmarks" / "demo.py"})
TEXTS = ("abba dada", "bad egg a", "head dab", "a cab", "feed a bee", "abba dada bad egg")


@pytest.fixture(scope="module", autouse=True)
def _fewer_processes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "CANDIDATES", (512, 1024))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, a translator, a teacher, and texts labeled by the bundle; read only."""
    folder = tmp_path_factory.mktemp("bench")
    make_tiny_bundle(folder / "bundle", tasks={"topic": LABELS}, stride=2)
    save_teacher(folder / "teacher", TASKS)
    save_teacher(folder / "other", {"topic": TaskConfig(kind="sequence", labels=("x", "y"))})
    test_train_translator.run(folder / "trained", test_train_translator.tiny_bert(folder / "bert"), steps=1)
    export_translator(folder / "trained", folder / "translator", quantization="float32", force=False)
    with Classifier.load(folder / "bundle") as classifier:
        labels = [prediction.label for prediction in classifier.classify(TEXTS)]
    with (folder / "texts.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(TEXTS, labels, strict=True)])
    return folder


def bench(folder: Path, *arguments: str) -> list[str]:
    return ["bench", str(folder / "bundle"), "--texts", str(folder / "texts.csv"), "--threads", "1", *arguments]


def translate_test(folder: Path) -> list[str]:
    return ["--translator", str(folder / "translator"), "--teacher", str(folder / "teacher")]


@pytest.fixture(scope="module")
def written(folder: Path) -> tuple[Path, Report]:
    out = folder / "out"
    assert main(bench(folder, *translate_test(folder), "--repeats", "2", "-o", str(out))) == 0
    return out, msgspec.json.decode((out / "bench.json").read_bytes(), type=Report)


def test_the_report_is_complete(written: tuple[Path, Report], folder: Path) -> None:
    out, report = written
    (setup,) = report.setups.values()
    assert list(setup.measured) == ["mt_llm", "translate_test", "translate_test_beam4", "engines"]
    assert (setup.texts, setup.repeats, setup.stride, report.threads) == (len(TEXTS), 2, 2, 1)
    stages = {name: set(measured.ms_per_text) for name, measured in setup.measured.items()}
    assert stages["mt_llm"] == {"tokenize", "encode", "bridge", "llm"}
    assert stages["translate_test"] == stages["translate_test_beam4"] == {"translate", "tokenize", "llm", "head"}
    assert stages["engines"] == {"encode", "llm"}
    for measured in setup.measured.values():
        for figure in (measured.texts_per_s, measured.peak_rss_mb, measured.load_s, measured.cold_start_s):
            assert 0 < figure.low <= figure.median <= figure.high
    ratio_names = {"over_translate_test", "over_translate_test_beam4", "pipeline_over_engines", "rss_over_bundle"}
    assert set(report.ratios) == set(setup.ratios) == ratio_names
    assert all(ratio is not None and ratio > 0 for ratio in report.ratios.values())
    assert report.cold_start_s == setup.measured["mt_llm"].cold_start_s.median
    assert report.machine.versions["ctranslate2"] == ctranslate2.__version__
    table = (out / "bench.md").read_text(encoding="utf-8")
    assert all(
        title in table
        for title in ("MT-LLM", "translate-test, greedy", "engines of the MT-LLM alone", "over_translate_test")
    )
    assert (out / "bench-throughput.png").read_bytes().startswith(b"\x89PNG")


def test_tokens_and_labels_equal_those_of_the_models(written: tuple[Path, Report], folder: Path) -> None:
    (setup,) = written[1].setups.values()
    lengths = [len(text.ids) for text in load_tokenizer(Bundle.open(folder / "bundle")).encode(TEXTS)]
    expected = {"encoder": sum(lengths), "llm": sum(-(-length // 2) for length in lengths)}
    for name in ("mt_llm", "engines"):
        measured_tokens = setup.measured[name].tokens_per_text
        assert measured_tokens == {key: float(f"{count / len(TEXTS):.4g}") for key, count in expected.items()}
    assert setup.measured["mt_llm"].accuracy == 1  # the labels are its own predictions
    with (folder / "texts.csv").open(encoding="utf-8", newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    english = [text if text.strip() else "." for text in Translator.load(folder / "translator").translate(TEXTS)]
    predictions = CheckpointClassifier(folder / "teacher").predict("topic", english)
    correct = sum(predicted == label for predicted, label in zip(predictions, labels, strict=True))
    assert setup.measured["translate_test"].accuracy == pytest.approx(correct / len(TEXTS), abs=1e-4)


def test_the_last_line_is_the_report(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(bench(folder, "--repeats", "1", "--label-column", "none", "-o", str(out))) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out.splitlines()[-1]) == json.loads((out / "bench.json").read_bytes())
    assert "repeat 1 of 1, mt_llm" in printed.err
    (setup,) = json.loads(printed.out)["setups"].values()
    assert list(setup["measured"]) == ["mt_llm", "engines"]
    assert setup["measured"]["mt_llm"]["accuracy"] is None


def test_the_english_llm_predicts_the_labels_of_the_teacher_in_torch(folder: Path, tmp_path: Path) -> None:
    made = write_english_llm(folder / "teacher", tmp_path, quantization="f32")
    reader = EnglishLlm(tmp_path, threads=1, batch_tokens=512)
    encoded = reader.encode(TEXTS)
    pooled_NE = reader.pool(encoded)
    assert reader.labels("topic", pooled_NE) == CheckpointClassifier(folder / "teacher").predict("topic", TEXTS)
    single_NE = np.concatenate([reader.pool([text]) for text in encoded])
    assert_vectors_close(pooled_NE, single_NE, LLAMA_CPP)
    assert list(made.tasks) == ["topic"]  # the other tasks are not of single texts
    assert made.tasks["topic"].labels == LABELS


def test_forced_lengths_are_written(folder: Path, tmp_path: Path) -> None:
    write_english_llm(folder / "teacher", tmp_path, quantization="f32")
    english = ("a b", "a", "bad", "egg", "a bee", "dab")
    job = Job(
        system="translate_test",
        bundle=str(folder / "bundle"),
        translator=str(folder / "translator"),
        english_llm=str(tmp_path),
        task="topic",
        threads=1,
        batch_tokens={"translate": 512, "llm": 512},
        texts=TEXTS,
        translations=english,
        translation_lengths=(7, 5, 6, 4, 8, 6),
    )
    sample = run_job(job)
    assert sample.tokens["written"] == 36  # all in one batch, whose mean is 6
    assert sample.tokens["llm"] == sum(
        len(text.ids) for text in EnglishLlm(tmp_path, threads=1, batch_tokens=512).encode(english)
    )
    assert sample.labels == tuple(CheckpointClassifier(folder / "teacher").predict("topic", english))


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("text,label\n", [], "holds no rows"),
        ("text,label\nabba,zebra\n", [], "row 2: task 'topic' has no label 'zebra'; its labels: a, b, c, d"),
        ("text,label\nabba,a\n ,b\n", [], "row 3"),
        ("other,label\nabba,a\n", ["--text-column", "text"], "text"),
        ("text\nabba\n", ["--translator", "nowhere"], "requires both --translator"),
        ("text\nabba\n", ["--translator", "nowhere", "--teacher", "{teacher}"], "has no translator.json"),
        ("text\nabba\n", ["--translator", "{translator}", "--teacher", "{other}"], "has the labels x, y"),
        ("text\nabba\n", ["--translator", "{translator}", "--teacher", "{bundle}"], "holds no stack.json"),
        ("text\nabba\n", ["-t", "mood"], "has no task 'mood'"),
    ],
)
def test_usage_and_data_errors(
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    content: str,
    arguments: list[str],
    message: str,
) -> None:
    file, out = tmp_path / "texts.csv", tmp_path / "out"
    file.write_text(content, encoding="utf-8")
    names = {name: str(folder / name) for name in ("translator", "teacher", "other", "bundle")}
    arguments = [argument.format(**names) for argument in arguments]
    code = main(["bench", str(folder / "bundle"), "--texts", str(file), "-o", str(out), *arguments])
    error = capfd.readouterr().err.splitlines()[-1]
    assert code in (1, 2)
    assert error.startswith("error: ")
    assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.csv"]


def test_an_error_of_the_measuring_process_is_reported(
    tmp_path: Path,
) -> None:
    job = Job(
        system="mt_llm",
        bundle=str(tmp_path),
        task="topic",
        threads=1,
        batch_tokens={"stack": 512},
        texts=TEXTS,
    )
    with pytest.raises(MtllmError, match=r"holds no bundle.json") as caught:
        run_job(job)
    assert caught.value.exit_code == 1


def test_a_crash_of_the_measuring_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        measure, "_CHILD", ("-c", "import os, sys; print('oh', file=sys.stderr, flush=True); os.abort()")
    )
    assert main(bench(folder, "-o", str(tmp_path / "out"))) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error == "error: the process that measured mt_llm died (SIGABRT; oh); see `mtllm-edge doctor`"
    assert not any(tmp_path.iterdir())


def test_ctrl_c_leaves_no_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "run_job", interrupt)
    assert main(bench(folder, "-o", str(tmp_path / "out"))) == 130
    assert capfd.readouterr().err.splitlines()[-1] == "stopped; nothing was written"
    assert not any(tmp_path.iterdir())


CHILD = """
import os, pathlib, time
from mtllm_edge_bench.runner.child import read_job
pathlib.Path(read_job().bundle).write_text(str(os.getpid()))
time.sleep(600)
"""
PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the background jobs of a shell ignore it
from mtllm_edge_bench.jobs import Job
from mtllm_edge_bench.runner import measure
measure._CHILD = ("-c", sys.argv[2])
measure.run_job(Job(system="mt_llm", bundle=sys.argv[1], task="topic", threads=1, batch_tokens={}, texts=("a",)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_measuring_process_ends_with_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "pid"), CHILD], env=environment)
    try:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        child = int((tmp_path / "pid").read_text())
        assert is_running(child)
        parent.send_signal(number)
        parent.wait(30)
        wait_until(lambda: not is_running(child))
    finally:
        parent.kill()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


WITHOUT_EXTRAS = """
import importlib.util, runpy, sys
hidden, scripts = eval(sys.argv[1]), sys.argv[2:]
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in hidden else find_spec(name, *rest)
sys.modules.update(dict.fromkeys(hidden))
for script in scripts:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        print("exit:", stop.code)
"""


def test_scripts_without_their_extra_print_the_pip_command(tmp_path: Path) -> None:
    hidden = {name for modules in EXTRAS.values() for name in modules} | {"ray"}
    result = run_python(WITHOUT_EXTRAS, repr(hidden), *map(str, SCRIPTS), folder=tmp_path)
    assert result.returncode == 0, result.stderr
    pattern = r"^exit: error: .*pip install 'mtllm-edge\[\w+\]'$"
    assert len(re.findall(pattern, result.stdout, re.MULTILINE)) >= len(SCRIPTS) - 2  # two use the runtime alone


def test_an_existing_folder_is_kept(written: tuple[Path, Report], folder: Path) -> None:
    before = (written[0] / "bench.json").read_bytes()
    assert main(bench(folder, "-o", str(written[0]))) == 2
    assert (written[0] / "bench.json").read_bytes() == before


def test_help_imports_no_torch() -> None:
    assert not {"torch", "transformers", "matplotlib", "ctranslate2", "llama_cpp"} & imported_by("mtllm_edge_bench.cli")
