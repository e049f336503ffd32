"""The repository itself: what it holds, what it must not hold, and that its documents speak of what there is."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from audit import cli
from settings import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LOCKS = ["run.txt", "test.txt", "bench.txt"]

# With classes of one letter, so that they do not find themselves.
MACHINE_PATHS = re.compile(r"(?<![\w.$}])/(?:[w]ork|[r]oot|[h]ome/\w+|[U]sers/\w+)/(?=\w|\.)")
REGISTRIES = re.compile(r"[p]ypi\.(?:org|python)|[p]ythonhosted|--(?:extra-)?[i]ndex-url|[n]pmjs\.", re.IGNORECASE)


def files() -> list[Path]:
    """Every file that is, or is about to be, in the repository."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def make_targets() -> set[str]:
    """The targets that are meant to be called, as the Makefile declares them."""
    declared = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert declared is not None
    return set(declared[1].split())


@pytest.mark.parametrize("arguments", [[], ["help"]], ids=["make", "make help"])
def test_make_help_lists_every_target(arguments: list[str]) -> None:
    # Below another make, as in `make test`, it would tell which folder it enters.
    make = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(make, cwd=ROOT, check=True, capture_output=True, text=True)

    listed = [re.fullmatch(r"  make (\w+) +\S.*", line) for line in done.stdout.splitlines()]
    assert all(listed), done.stdout
    assert {line[1] for line in listed if line} == make_targets()


def test_the_targets_that_everybody_needs_are_there() -> None:
    assert {"install", "run", "test", "check", "bench", "help"} <= make_targets()


def test_every_target_that_is_meant_to_be_called_has_a_rule() -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert rules == make_targets()


def test_ci_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"

    assert script.stat().st_mode & 0o111 == 0o111
    assert script.read_text().splitlines()[-1] == "exec make test"


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "README.md", "docs/decisions/README.md"])
def test_what_every_project_has_is_there(name: str) -> None:
    assert (ROOT / name).read_text().strip()


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRIES], ids=["machine paths", "registries"])
def test_no_file_knows_the_machine_that_it_was_made_on(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]

    assert found == []


@pytest.mark.parametrize(
    ("pattern", "spaced"),
    [
        (MACHINE_PATHS, "d a t a = / w o r k / m a i n"),
        (MACHINE_PATHS, "' / r o o t / . v e n v / b i n / p y t h o n '"),
        (MACHINE_PATHS, "f i l e : / / / h o m e / a l i c e / m i n u t e b o o k"),
        (REGISTRIES, "h t t p s : / / p y p i . o r g / p r o j e c t / t o r n a d o"),
        (REGISTRIES, "- - i n d e x - u r l h t t p : / / 1 0 . 0 . 0 . 1 /"),
        (REGISTRIES, "h t t p s : / / r e g i s t r y . n p m j s . o r g"),
    ],
)
def test_a_machine_s_path_or_a_registry_would_be_found(pattern: re.Pattern[str], spaced: str) -> None:
    assert pattern.search(spaced.replace(" ", ""))


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_pins_every_requirement_with_hashes(name: str) -> None:
    pinned = requirements(name)

    assert len(pinned) > 10
    for requirement in pinned:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; [^;]+?)?( --hash=sha256:[0-9a-f]{64})+", requirement), requirement


@pytest.mark.parametrize(
    ("option", "lock"),
    [
        (("options", "install_requires"), "run.txt"),
        (("options.extras_require", "build"), "run.txt"),
        (("options", "install_requires"), "test.txt"),
        (("options.extras_require", "test"), "test.txt"),
        (("options.extras_require", "bench"), "bench.txt"),
    ],
)
def test_what_setup_cfg_asks_for_is_in_the_lock_file(option: tuple[str, str], lock: str) -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = {_name(line) for line in config.get(*option).splitlines() if line and not line.startswith("#")}

    assert wanted
    assert wanted <= {_name(line) for line in requirements(lock)}


def test_the_lock_files_agree_on_every_version() -> None:
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for requirement in requirements(lock):
            versions.setdefault(_name(requirement), set()).add(requirement.split()[0])

    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def requirements(lock: str) -> list[str]:
    """The requirements of a lock file, each as one line."""
    text = (ROOT / "requirements" / lock).read_text().replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def commands_in(markdown: str) -> Iterator[list[str]]:
    """The calls of `make` and `minutebook` in the `sh` blocks of a document, each as its words."""
    for block in re.findall(r"^```sh\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for words in _simple_commands(line):
                if words and Path(words[0]).name in ("make", "minutebook"):
                    yield [Path(words[0]).name, *words[1:]]


def _simple_commands(line: str) -> Iterator[list[str]]:
    reader = shlex.shlex(line, posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    words: list[str] = []
    for word in reader:
        if set(word) <= set("();<>|&"):
            yield words
            words = []
        elif words or not re.match(r"\w+=|\$$", word):  # a variable before the command, a prompt
            words.append(word)
    yield words


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_command_in_a_document_exists(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands_in((ROOT / document).read_text()):
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            assert set(targets) <= make_targets(), words
        else:
            known = options_of(words[1], capsys) if len(words) > 1 and not words[1].startswith("-") else {"--help"}
            assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, words


def options_of(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The options of a command of `minutebook`, which must exist."""
    assert cli.run([command, "--help"], _never) == 0, command
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))


def _never(_settings: Settings) -> None:
    pytest.fail("the server was run")


def test_the_readme_shows_how_to_run_and_to_test() -> None:
    shown = list(commands_in((ROOT / "README.md").read_text()))

    assert ["make", "run"] in shown
    assert ["make", "test"] in shown
    assert {"serve", "tail", "replay", "migrate"} <= {words[1] for words in shown if words[0] == "minutebook"}


def test_commands_are_found_wherever_they_stand_in_a_line() -> None:
    text = "```sh\ncd x && make run ARGS='--port 1' # make no\nPORT=1 .venv/bin/minutebook tail | head\n```\n`make y`\n"

    assert list(commands_in(text)) == [["make", "run", "ARGS=--port 1"], ["minutebook", "tail"]]
