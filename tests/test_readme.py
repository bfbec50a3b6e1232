"""The examples of README run as they stand, one after the other, against real servers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smcache import CacheConfig

if TYPE_CHECKING:
    from smcache.testing import PostgreSQL, SecretsManager

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_examples_run_as_they_stand(
    aws: SecretsManager, pg: PostgreSQL, monkeypatch: pytest.MonkeyPatch, canary: str
) -> None:
    for name, value in aws.environ.items():
        monkeypatch.setenv(name, value)
    pg.create_role("readme", canary)
    aws.create("prod/db", pg.secret("readme", canary))
    aws.create("prod/api-key", canary)
    examples = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(examples) == 10
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)  # noqa: S102 - our own text
    names["engine"].dispose()
    names["test_my_service_survives_a_rotation"]()
    names["cache"].close()


def test_the_configuration_table_has_every_field_and_its_default() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", README, re.MULTILINE))
    config = CacheConfig()
    assert {name: float(value.replace(",", "")) for name, value in table.items() if value != "False"} == {
        name: getattr(config, name) for name in CacheConfig.__slots__ if name != "check_version_first"
    }
    assert table["check_version_first"] == "False"


@pytest.mark.parametrize("mark", ["demo", "tests"])
def test_each_command_is_a_single_line_that_starts_from_nothing(mark: str) -> None:
    command = re.search(rf"^<!-- {mark} -->\n```sh\n(.+)\n```$", README, re.MULTILINE)
    assert command is not None
    assert command[1].startswith("python3 -m venv .venv && .venv/bin/pip install -q uv && ")
