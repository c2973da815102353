"""The documentation names what exists: every setting and its default, every error code, every linked file."""

import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import SecretStr
from pydantic_core import PydanticUndefined

import model.cli
import producer.cli
import worker.cli
from jobs import dialogue
from jobs.settings import Settings
from tests.chaos import points

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])
#: Settings whose default is described in words, because it is long or depends on other things.
IN_WORDS = {
    "model_name",
    "max_model_len",
    "rope_scaling",
    "block_size",
    "prefix_caching",
    "kv_cache_bytes",
    "max_num_seqs",
    "max_step_tokens",
    "end_markers",
}


def page_names() -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in PAGES]


def shown(value: object) -> str:
    """A default as the table writes it."""
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Enum):
        value = value.value
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_the_reference_lists_every_setting_with_its_default() -> None:
    text = (ROOT / "docs" / "reference" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `LONGHAUL_(\w+)` \| (.*?) ?\|", text, re.MULTILINE))
    listed = {name.lower(): default.strip() for name, default in rows.items()}
    assert listed.keys() == Settings.model_fields.keys()
    for name, field in Settings.model_fields.items():
        if name not in IN_WORDS:
            assert listed[name] == shown(field.default), name


@pytest.mark.parametrize("page", page_names())
def test_every_setting_named_exists(page: str) -> None:
    names = re.findall(r"LONGHAUL_([A-Z0-9_]+)", (ROOT / page).read_text())
    compose = set(re.findall(r"\$\{LONGHAUL_(\w+)", (ROOT / "docker-compose.yml").read_text()))
    known = {name.upper() for name in Settings.model_fields} | compose
    assert set(names) <= known


@pytest.mark.parametrize("page", page_names())
def test_every_linked_file_exists(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_every_promise_is_held_by_tests_that_there_are() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) > 50
    for path, test in named:
        assert f"\ndef {test}" in (ROOT / path).read_text(), f"{path}::{test}"


def test_every_kill_point_has_its_outcome() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text().partition("## Kill points")[2]
    calls = {*points.worked(), *points.APART}
    assert sorted(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)) == sorted(calls)
    assert f"{len(calls)} calls, {6 * len(calls)} points" in text


def test_the_reference_lists_every_error_code() -> None:
    text = (ROOT / "docs" / "reference" / "lines.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)` \|", text.partition("## Errors")[2], re.MULTILINE))
    codes = {value for name, value in vars(dialogue).items() if name.isupper() and value == name.lower()}
    assert len(codes) == 8
    assert listed == codes


def test_the_reference_lists_every_choice_of_sampling() -> None:
    text = (ROOT / "docs" / "reference" / "lines.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text.partition("## Out")[0], re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert listed == {*dialogue.Sampling.__struct_fields__, "max_completion_tokens", "top_logprobs"}


def commands() -> dict[str, set[str]]:
    """Each command with the options it takes."""
    found = {}
    for package, app in (
        ("producer", producer.cli.app),
        ("worker", worker.cli.app),
        ("model", model.cli.app),
    ):
        group = typer.main.get_command(app)
        for name, command in group.commands.items():  # type: ignore[attr-defined]
            found[f"{package} {name}"] = options_of(command)
    return found


def options_of(command: Any) -> set[str]:
    """The options of a command, those of its kinds included."""
    words = [word for option in command.params for word in (*option.opts, *option.secondary_opts)]
    own = {word for word in words if word.startswith("--")}
    return own.union(*(options_of(kind) for kind in getattr(command, "commands", {}).values()))


def test_the_reference_lists_every_command_with_its_options() -> None:
    text = (ROOT / "docs" / "reference" / "commands.md").read_text()
    sections = re.findall(r"^## `(\w+ \w+)[^`]*`\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    shared = text.partition("\n## Engine options\n")[2].partition("\n## ")[0]
    described = {
        name: set(re.findall(r"--[a-z][\w-]*", body + shared * ("(#engine-options)" in body)))
        for name, body in sections
    }
    actual = commands()
    assert described.keys() == actual.keys()
    for name, options in actual.items():
        assert described[name] == options, name


@pytest.mark.parametrize("page", page_names())
def test_every_command_shown_exists(page: str) -> None:
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    shown_lines = re.findall(
        r"^(?:\S+=\S+ )*((?:producer|worker|model) \w+)([^#\n]*)", "\n".join(blocks), re.MULTILINE
    )
    known = commands()
    for name, arguments in shown_lines:
        assert name in known, name
        assert set(re.findall(r"(?<= )--[\w-]+", arguments)) <= known[name], name
