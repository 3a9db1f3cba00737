"""Opening, verifying and writing bundles; each kind of damage is a one-line error with the file's name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from mtllm_edge import Bundle
from mtllm_edge.bundle.manifest import MANIFEST_NAME
from mtllm_edge.bundle.writer import list_files
from mtllm_edge.errors import ModelError, MtllmError, UsageError
from mtllm_edge.files.atomic import atomic_folder
from tests.fixtures.tiny_bundle import N_EMBD


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "bundle.json"
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def refuses(path: Path, kind: type[MtllmError], *fragments: str) -> None:
    with pytest.raises(kind) as caught:
        Bundle.open(path)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_opens_and_verifies(tiny_bundle: Path) -> None:
    bundle = Bundle.open(str(tiny_bundle))
    assert bundle.path == tiny_bundle
    assert bundle.manifest.llm.n_embd == N_EMBD
    assert set(bundle.manifest.files) >= {"llm.gguf", "encoder/model.bin", "LICENSES/tiny.txt"}
    assert "bundle.json" not in bundle.manifest.files
    bundle.verify()


def test_paths_that_are_not_bundles(tiny_bundle: Path, tmp_path: Path) -> None:
    refuses(tmp_path / "none", UsageError, "none does not exist")
    refuses(tiny_bundle / "bundle.json", UsageError, "bundle.json is a file")
    archive = shutil.make_archive(str(tmp_path / "shipped"), "zip", tiny_bundle)
    refuses(Path(archive), UsageError, "shipped.zip is a zip file; unpack it")
    refuses(tmp_path, ModelError, f"{tmp_path} holds no bundle.json")


def test_a_bridge_without_stride_is_linear(fresh_bundle: Path) -> None:
    edit_manifest(fresh_bundle, lambda content: content["bridge"].pop("stride"))
    assert Bundle.open(fresh_bundle).manifest.bridge.stride == 1


@pytest.mark.parametrize(
    ("bridge", "fragment"),
    [
        ({"kind": "linear", "stride": 2}, "a linear bridge has stride 1, found 2 - at `$.bridge`"),
        ({"kind": "strided"}, "a strided bridge has a stride from 2 to 4, found 1"),
        ({"kind": "strided", "stride": 5}, "a strided bridge has a stride from 2 to 4, found 5"),
        ({"kind": "strided", "stride": "2"}, "Expected `int`, got `str` - at `$.bridge.stride`"),
        ({"kind": "round", "stride": 2}, "Invalid enum value 'round'"),
        (
            {"kind": "strided", "stride": 2},
            "bridge.safetensors: tensor weight has shape [32, 16], expected [32, 32]",
        ),
    ],
)
def test_manifest_with_another_bridge(fresh_bundle: Path, bridge: dict[str, Any], fragment: str) -> None:
    edit_manifest(fresh_bundle, lambda content: content.update(bridge=bridge))
    refuses(fresh_bundle, ModelError, fragment)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": "1"}', b"{}"])
def test_files_that_are_not_manifests(fresh_bundle: Path, content: bytes) -> None:
    (fresh_bundle / "bundle.json").write_bytes(content)
    refuses(fresh_bundle, ModelError, "bundle.json is not a bundle manifest")


def test_manifest_of_another_version(fresh_bundle: Path) -> None:
    edit_manifest(fresh_bundle, lambda content: content.update(format_version=2, news={}))
    refuses(fresh_bundle, ModelError, "bundle.json has format version 2", "reads version 1", "upgrade mtllm-edge")
    edit_manifest(fresh_bundle, lambda content: content.update(format_version=0))
    refuses(fresh_bundle, ModelError, "format version 0", "export the bundle again")


def test_manifest_with_an_unknown_key(fresh_bundle: Path) -> None:
    edit_manifest(fresh_bundle, lambda content: content["llm"].update(atention="causal"))
    refuses(fresh_bundle, ModelError, "bundle.json", "atention")


def test_contradictory_manifests(fresh_bundle: Path) -> None:
    edit_manifest(fresh_bundle, lambda content: content["tasks"]["topic"].update(head="tasks/none.safetensors"))
    refuses(fresh_bundle, ModelError, "task 'topic' names the head 'tasks/none.safetensors'")


@pytest.mark.parametrize(
    "name",
    ["../outside.txt", "/etc/hostname", "LICENSES/../../outside.txt", "a\\b", "C:x", "./a", "a//b", "a/", "nul."],
)
def test_listed_paths_outside_the_folder(fresh_bundle: Path, name: str) -> None:
    (fresh_bundle.parent / "outside.txt").write_text("x", encoding="utf-8")
    edit_manifest(fresh_bundle, lambda content: content["files"].update({name: {"size": 1, "sha256": "0"}}))
    refuses(fresh_bundle, ModelError, "leaves the bundle")


def test_links_out_of_the_folder(fresh_bundle: Path, tiny_bundle: Path) -> None:
    (fresh_bundle / "llm.gguf").unlink()
    (fresh_bundle / "llm.gguf").symlink_to(tiny_bundle / "llm.gguf")
    refuses(fresh_bundle, ModelError, "llm.gguf: a link, to ")


def test_the_manifest_must_not_be_a_link(fresh_bundle: Path, tiny_bundle: Path) -> None:
    (fresh_bundle / "bundle.json").unlink()
    (fresh_bundle / "bundle.json").symlink_to(tiny_bundle / "bundle.json")
    refuses(fresh_bundle, ModelError, "bundle.json is a link; copy the file itself")


def test_files_and_folders_must_not_be_links(fresh_bundle: Path) -> None:
    (fresh_bundle / "llm.gguf").rename(fresh_bundle / "weights")
    (fresh_bundle / "llm.gguf").symlink_to("weights")
    refuses(fresh_bundle, ModelError, "llm.gguf: a link, to ")
    (fresh_bundle / "llm.gguf").unlink()
    (fresh_bundle / "weights").rename(fresh_bundle / "llm.gguf")
    (fresh_bundle / "encoder").rename(fresh_bundle / "elsewhere")
    (fresh_bundle / "encoder").symlink_to("elsewhere")
    refuses(fresh_bundle, ModelError, "encoder/model.bin: a link, to ")


def test_the_bundle_folder_may_be_a_link(fresh_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(fresh_bundle)
    Bundle.open(tmp_path / "current").verify()


def test_unlisted_files_in_the_encoder_folder(fresh_bundle: Path) -> None:
    (fresh_bundle / "encoder" / "vmap.txt").write_text("x", encoding="utf-8")
    refuses(fresh_bundle, ModelError, "encoder/vmap.txt: not a file of an encoder, but the engine would read it")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (
            lambda content: content["encoder"].update(max_tokens=10**9),
            "Expected `int` <= 16384 - at `$.encoder.max_tokens`",
        ),
        (lambda content: content["llm"].update(n_layer=10**12), "Expected `int` <= 512 - at `$.llm.n_layer`"),
        (lambda content: content["llm"].update(n_embd=0), "Expected `int` >= 1 - at `$.llm.n_embd`"),
        (
            lambda content: content["tasks"]["topic"].update(temperature=1e-300),
            "has temperature 1e-300, expected",
        ),
        (lambda content: content["tasks"]["topic"].update(head="tokenizer.json"), "expected tasks/....safetensors"),
        (
            lambda content: content.update(languages=["x"] * 70_000),
            "Expected `array` of length <= 65536 - at `$.languages`",
        ),
        (lambda content: content.update(name="\x1b]0;title\x07"), "has control characters"),
        (lambda content: content["files"].update({"TOKENIZER.json": content["files"]["tokenizer.json"]}), "upper and"),
        (lambda content: content["files"]["llm.gguf"].update(size=-1), "Expected `int` >= 0"),
    ],
)
def test_too_large_numbers_in_the_manifest(
    fresh_bundle: Path, change: Callable[[dict[str, Any]], object], fragment: str
) -> None:
    edit_manifest(fresh_bundle, change)
    refuses(fresh_bundle, ModelError, fragment)


@pytest.mark.parametrize("opening", ['{"format_version":1,"x":', "[", '{"format_version":1,"files":{"a":'])
def test_deeply_nested_manifests(fresh_bundle: Path, opening: str) -> None:
    (fresh_bundle / "bundle.json").write_text(opening + "[" * 200_000, encoding="utf-8")
    refuses(fresh_bundle, ModelError, "bundle.json")


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "encoder/model.bin",
        "encoder/config.json",
        "encoder/vocabulary.json",
        "bridge.safetensors",
        "llm.gguf",
        "tasks/topic/head.safetensors",
        "LICENSES/tiny.txt",
    ],
)
def test_missing_or_resized_file(fresh_bundle: Path, name: str) -> None:
    with (fresh_bundle / name).open("ab") as file:
        file.write(b"!")
    size = (fresh_bundle / name).stat().st_size
    refuses(fresh_bundle, ModelError, str(fresh_bundle), f"{name}: {size} bytes, expected {size - 1}")
    (fresh_bundle / name).unlink()
    refuses(fresh_bundle, ModelError, str(fresh_bundle), f"{name}: missing", "copy or export the bundle again")


def test_an_error_lists_all_faults(fresh_bundle: Path) -> None:
    (fresh_bundle / "llm.gguf").write_bytes(b"GGUF")
    (fresh_bundle / "tokenizer.json").unlink()
    refuses(fresh_bundle, ModelError, "tokenizer.json: missing", "llm.gguf: 4 bytes, expected ")


@pytest.mark.parametrize("name", ["llm.gguf", "bridge.safetensors", "encoder/vocabulary.json"])
def test_required_files_must_be_listed(fresh_bundle: Path, name: str) -> None:
    edit_manifest(fresh_bundle, lambda content: content["files"].pop(name))
    refuses(fresh_bundle, ModelError, f"bundle.json does not list {name}")


def test_verify_lists_every_changed_file(fresh_bundle: Path) -> None:
    bundle = Bundle.open(fresh_bundle)
    for name in ("LICENSES/tiny.txt", "llm.gguf"):
        content = bytearray((fresh_bundle / name).read_bytes())
        content[-1] ^= 1
        (fresh_bundle / name).write_bytes(content)
    (fresh_bundle / "tasks/topic/head.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        bundle.verify()
    for fragment in ("LICENSES/tiny.txt: its SHA-256", "llm.gguf: its SHA-256", "head.safetensors: missing"):
        assert fragment in str(caught.value)
    assert "bridge.safetensors" not in str(caught.value)


def test_digests_equal_those_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_bytes(b"abc")
    (tmp_path / "bundle.json").write_bytes(b"{}")
    ((name, file),) = list_files(tmp_path).items()
    assert (name, file.size) == ("a/b.txt", 3)
    assert file.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def _fill(folder: Path, text: str = "new") -> None:
    (folder / "bundle.json").write_text(text, encoding="utf-8")
    safetensors.numpy.save_file({"x": np.zeros(2, np.float32)}, folder / "x.safetensors")


def test_a_bundle_is_renamed_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with atomic_folder(out, force=False, marker=MANIFEST_NAME) as folder:
        assert folder.parent == out.parent
        assert not out.exists()
        _fill(folder)
    assert (out / "bundle.json").read_text(encoding="utf-8") == "new"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_file_permissions_follow_the_umask(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out", force=False, marker=MANIFEST_NAME) as folder:
        _fill(folder)
    readable = (tmp_path / "out").stat().st_mode & 0o444
    assert all(path.stat().st_mode & 0o444 == readable for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failed_writes_leave_no_files(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "deep" / "out", force=False, marker=MANIFEST_NAME) as folder:
            _fill(folder)
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (
        pytest.raises(UsageError, match=r"out exists already.*--force"),
        atomic_folder(out, force=False, marker=MANIFEST_NAME),
    ):
        pytest.fail("must not be entered")


def test_force_replaces_a_bundle_only_after_success(fresh_bundle: Path) -> None:
    def fail() -> None:
        with atomic_folder(fresh_bundle, force=True, marker=MANIFEST_NAME) as folder:
            _fill(folder)
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    Bundle.open(fresh_bundle).verify()
    with atomic_folder(fresh_bundle, force=True, marker=MANIFEST_NAME) as folder:
        _fill(folder)
    assert {path.name for path in fresh_bundle.iterdir()} == {"bundle.json", "x.safetensors"}
    assert [path.name for path in fresh_bundle.parent.iterdir()] == [fresh_bundle.name]


def test_force_replaces_bundles_only(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work", encoding="utf-8")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for name in ("thesis", "file"):
        with (
            pytest.raises(UsageError, match=f"{name} exists and holds no bundle.json"),
            atomic_folder(tmp_path / name, force=True, marker=MANIFEST_NAME),
        ):
            pytest.fail("must not be entered")
    assert (tmp_path / "thesis" / "chapter.txt").is_file()


def test_an_output_created_meanwhile_is_kept(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "out", force=False, marker=MANIFEST_NAME) as folder:
            _fill(folder)
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine").touch()

    with pytest.raises(UsageError, match=r"exists already"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match="cannot write to"),
        atomic_folder(tmp_path / "file" / "out", force=False, marker=MANIFEST_NAME),
    ):
        pytest.fail("must not be entered")
