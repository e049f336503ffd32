"""The settings: one table in the code, from which flags, variables, help and the README's table come."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import cli
from settings import BadSetting, Setting, Settings, table

ROOT = Path(__file__).parents[1]
NAMES = [setting.name for setting in table()]


def chosen(*arguments: str) -> Settings:
    """The settings with which `minutebook serve` runs the server on this command line."""
    seen: list[Settings] = []
    assert cli.run(["serve", *arguments], seen.append) == 0
    return seen[0]


def _must_not_run(_settings: Settings) -> None:
    pytest.fail("the server was run")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in table():
        monkeypatch.delenv(setting.variable, raising=False)


def test_the_table_has_every_field_in_order() -> None:
    assert [field.name for field in dataclasses.fields(Settings)] == NAMES
    assert NAMES[:3] == ["port", "address", "http_parser"]


@pytest.mark.parametrize("setting", table(), ids=NAMES)
def test_a_setting_is_named_alike_everywhere(setting: Setting) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", setting.name)
    assert setting.flag == f"--{setting.name.replace('_', '-')}"
    assert setting.variable == f"MINUTEBOOK_{setting.name.upper()}"
    assert setting.help.strip() == setting.help != ""


@pytest.mark.parametrize(
    "setting", [each for each in table() if each.default_text != "none"], ids=lambda each: each.name
)
def test_a_default_is_what_its_own_text_means(setting: Setting) -> None:
    assert setting.parse(setting.default_text) == setting.default
    assert getattr(Settings(), setting.name) == setting.default


def test_no_secret_has_a_default() -> None:
    secrets = {setting.name: setting.default for setting in table() if setting.secret}

    names = ("database_url", "secret", "ci_key", "audit_key", "log_key", "discord_token")
    assert secrets == dict.fromkeys(names)


GOOD = {
    "port": ("9000", 9000),
    "address": ("::1", "::1"),
    "http_parser": ("tornado", "tornado"),
    "workers": ("4", 4),
    "tls_certificate": ("tls/chain.pem", Path("tls/chain.pem")),
    "tls_key": ("tls/key.pem", Path("tls/key.pem")),
    "trusted_proxies": ("127.0.0.1, 10.1.2.3/8,", ("127.0.0.1/32", "10.0.0.0/8")),
    "data_dir": ("there/data", Path("there/data")),
    "database_url": ("host=/tmp dbname=chat", "host=/tmp dbname=chat"),
    "secret": ("sixteen letters!", "sixteen letters!"),
    "ci_key": ("key", "key"),
    "operators": ("Ann, Bob Smith,,", ("Ann", "Bob Smith")),
    "bcrypt_cost": ("4", 4),
    "rate_limit": ("0", 0),
    "login_limit": ("7", 7),
    "channel_event": ("message", "message"),
    "recovery_window": ("60", 60),
    "audit_key": ("key", "key"),
    "origin": ("chat.example/minutes", "chat.example/minutes"),
    "checkpoint_interval": ("60", 60),
    "log_key": ("PRIVATE+KEY+a+00000000+AQ", "PRIVATE+KEY+a+00000000+AQ"),
    "discord_token": ("a.b.c", "a.b.c"),
    "discord_channel": ("1180000000000000001", 1180000000000000001),
    "discord_api": ("http://127.0.0.1:9/api/v10/", "http://127.0.0.1:9/api/v10"),
    "discord_give_up": ("60", 60),
    "cors_origin": ("https://chat.example", "https://chat.example"),
    "ping_interval": ("5", 5),
    "ping_timeout": ("3", 3),
    "max_payload": ("1000", 1000),
    "max_backlog": ("65536", 65536),
    "log_level": ("Debug", "debug"),
}
BAD = {
    "port": ["", "-1", "65536", "80a", "8_0", "1.5", "٣a"],
    "address": [""],
    "http_parser": ["", "llhttp"],
    "workers": ["", "0", "65", "two"],
    "tls_certificate": ["", "~nobody of this name/chain.pem"],
    "tls_key": [""],
    "trusted_proxies": ["proxy.example", "10.0.0.0/33"],
    "data_dir": [""],
    "database_url": ["", "nonsense", "postgresql://host/name?no_such_option=1"],
    "secret": ["", "fifteen letters"],
    "ci_key": [""],
    "operators": [],  # any text is a list of names
    "bcrypt_cost": ["", "3", "21", "twelve"],
    "rate_limit": ["", "-1", "1000001", "many"],
    "login_limit": ["", "-1", "1000001", "many"],
    "channel_event": ["", "connect", "disconnect"],
    "recovery_window": ["", "-1", "31536001", "a day"],
    "audit_key": [""],
    "origin": ["", "two words", "a+b", "line\nbreak", "bell\a"],
    "checkpoint_interval": ["", "0", "86401", "1.5"],
    "log_key": [""],
    "discord_token": [""],
    "discord_channel": ["", "0", "general", "9223372036854775808"],
    "discord_api": ["", "discord.com", "ftp://discord.com", "https://", "https://discord.com/api?v=10"],
    "discord_give_up": ["", "0", "31536001", "a day"],
    "cors_origin": [""],
    "ping_interval": ["", "0", "3601", "1.5"],
    "ping_timeout": ["", "0", "3601"],
    "max_payload": ["", "999", "100000001"],
    "max_backlog": ["", "999", "1073741825"],
    "log_level": ["", "verbose", "0"],
}


def test_every_setting_is_tried_below() -> None:
    assert list(GOOD) == NAMES
    assert list(BAD) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_default_is_beaten_by_the_environment_and_that_by_the_flag(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = next(each for each in table() if each.name == name)
    text, value = GOOD[name]
    assert value != setting.default

    assert getattr(chosen(), name) == setting.default
    monkeypatch.setenv(setting.variable, text)
    assert getattr(chosen(), name) == value
    monkeypatch.setenv(setting.variable, "something else")
    assert dataclasses.asdict(chosen(setting.flag, text)) == dataclasses.asdict(Settings()) | {name: value}
    assert chosen(f"{setting.flag}={text}") == chosen(setting.flag, text)


def test_settings_can_be_handed_on_as_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Settings.parse({name: text for name, (text, _) in GOOD.items()})
    texts = given.texts()
    absolute: dict[str, Any] = {
        name: value.absolute() for name, value in vars(given).items() if isinstance(value, Path)
    }
    monkeypatch.chdir(tmp_path)

    assert Settings.parse(texts) == dataclasses.replace(given, **absolute)
    default = Settings()
    assert Settings.parse(default.texts()) == dataclasses.replace(default, data_dir=default.data_dir.absolute())


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_a_bad_value_is_told_by_the_setting_s_name_in_one_line(name: str, text: str) -> None:
    with pytest.raises(BadSetting) as caught:
        Settings.parse({name: text})

    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_variable_counts_as_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"MINUTEBOOK_{name.upper()}", "")

    assert chosen() == Settings()


def test_an_empty_flag_is_a_bad_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", "--port", ""], _must_not_run) == 2
    assert capsys.readouterr().err.startswith("minutebook: port: must be a whole number")


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([each.name for each in table() if each.name not in ("address", "data_dir")]), st.text())
def test_any_text_is_either_a_value_or_a_bad_setting(name: str, text: str) -> None:
    try:
        told = str(Settings.parse({name: text}))
    except BadSetting as error:
        told = str(error)

    assert told.startswith((f"{name}: ", "Settings("))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/name?no_such_option=1",
        "postgresql://me:hunter2%@host/name",
        "postgres://me:hunter2@[host/name",
        "host=there password=hunter2 nonsense",
        "password='hunter2",
        "password=hunter2 no_such_option=1",
    ],
)
def test_a_bad_database_url_is_told_without_its_password(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", "--database-url", url], _must_not_run) == 2

    told = capsys.readouterr()
    assert told.err.startswith("minutebook: database_url: ")
    assert told.err.count("\n") == 1
    assert "hunter2" not in told.err + told.out


def test_a_bad_secret_is_told_without_repeating_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", "--secret", "hunter2"], _must_not_run) == 2

    assert capsys.readouterr() == ("", "minutebook: secret: must be at least 16 characters long\n")


def test_the_readme_s_table_is_the_table_in_the_code() -> None:
    assert readme_table() == [
        [f"`{each.flag}`", f"`{each.variable}`", f"`{each.default_text}`", each.help] for each in table()
    ]


def readme_table() -> list[list[str]]:
    """The rows of the README's table of settings, under a heading that is checked here."""
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- settings -->\n(.*?)<!-- /settings -->", readme, re.DOTALL)
    assert found, "README.md has no table between <!-- settings --> and <!-- /settings -->"
    lines = [line for line in found[1].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["Flag", "Environment", "Default", "What it is"]
    assert all(set(cell) <= set("-:") for cell in rows[1])
    return rows[2:]
