"""`include`: lists append, mappings merge, the including file's scalars win; cycles and depth are errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tianji_mw.config import load
from tianji_mw.errors import ConfigError, ConfigErrors


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "main.yaml"


def errors_of(path: Path) -> tuple[ConfigError, ...]:
    with pytest.raises(ConfigErrors) as caught:
        load(path, env={})
    return caught.value.errors


def test_merge(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = write(
        tmp_path,
        main="""
include: [sub/models.yaml, more.yaml]
model_list: [{model_name: a, litellm_params: {model: openai/a}}]
litellm_settings: {drop_params: true}
""",
        more="tianji_settings: {drop_params: false, request_timeout: 30}\ngeneral_settings: {grace_s: 7}\n",
    )
    (tmp_path / "sub" / "models.yaml").write_text(
        "include: deeper.yaml\nmodel_list: [{model_name: b, litellm_params: {model: openai/b}}]"
    )
    (tmp_path / "sub" / "deeper.yaml").write_text("model_list: [{model_name: c, litellm_params: {model: openai/c}}]")
    settings = load(path, env={})
    assert [d.model_name for d in settings.model_list] == ["a", "b", "c"]
    assert Path(settings.model_list[2].file) == tmp_path / "sub" / "deeper.yaml"
    assert settings.settings.drop_params is True
    assert settings.settings.request_timeout == 30
    assert settings.general_settings.grace_s == 7
    assert settings.notices == ()


def test_a_cycle_names_the_chain(tmp_path: Path) -> None:
    path = write(tmp_path, main="include: [a.yaml]", a="include: [b.yaml]", b="x: 1\ninclude:\n- ./a.yaml")
    (error,) = errors_of(path)
    assert (Path(error.file).name, error.line, error.key) == ("b.yaml", 3, "include[0]")
    assert "main.yaml -> " in error.reason
    assert error.reason.count("a.yaml") == 2


def test_five_levels_and_not_six(tmp_path: Path) -> None:
    files = {f"f{n}": f"include: [f{n + 1}.yaml]" for n in range(1, 6)}
    path = write(tmp_path, main="include: [f1.yaml]", **files, f6="general_settings: {grace_s: 1}")
    (error,) = errors_of(path)
    assert (Path(error.file).name, "5 levels" in error.reason) == ("f5.yaml", True)
    (tmp_path / "f5.yaml").write_text("general_settings: {grace_s: 2}")
    assert load(path, env={}).general_settings.grace_s == 2


@pytest.mark.parametrize("entry", ["missing.yaml", '"\\0"', "5", '""', "[x]", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, entry: str) -> None:
    (error,) = errors_of(write(tmp_path, main=f"a: 1\ninclude:\n- {entry}"))
    assert (Path(error.file).name, error.line, error.key) == ("main.yaml", 3, "include[0]")


def test_different_kinds_name_both_places(tmp_path: Path) -> None:
    (error,) = errors_of(write(tmp_path, main="include: [a.yaml]\nmodel_list: []", a="model_list: {}"))
    assert error.line == 1
    assert Path(error.file).name == "a.yaml"
    assert "main.yaml:2" in error.reason


def test_errors_of_all_files_come_together(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        main="include: [a.yaml, gone.yaml]\ngeneral_settings:\n  grace_s: soon\n  grace_s: 1",
        a="model_list:\n- {model_name: m, litellm_params: {model: 5}}",
    )
    found = [(Path(e.file).name, e.line, e.key) for e in errors_of(path)]
    assert found == [
        ("main.yaml", 1, "include[1]"),
        ("main.yaml", 3, "general_settings.grace_s"),
        ("main.yaml", 4, "general_settings.grace_s"),
        ("a.yaml", 2, "model_list[0].litellm_params.model"),
    ]


def test_a_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path / "none.yaml")
    assert "none.yaml" in error.message
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    (error,) = errors_of(tmp_path / "binary.yaml")
    assert "UTF-8" in error.reason
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfgeneral_settings: {grace_s: 3}")
    assert load(tmp_path / "bom.yaml", env={}).general_settings.grace_s == 3
