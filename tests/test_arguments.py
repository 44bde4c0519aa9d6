"""Flags win over the file, the file over defaults, and a mistake in either is one sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from optidel_hf.arguments import as_flags, parse
from optidel_hf.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """What is cooked."""

    dish: str = field(metadata={"help": "The one required."})
    salt: float = field(default=0.5, metadata={"help": "Spoons."})
    guests: list[str] = field(default_factory=list, metadata={"help": "Who comes."})
    spicy: bool = field(default=False, metadata={"help": "Or not."})
    wine: str | None = field(default=None, metadata={"help": "Which."})

    def __post_init__(self) -> None:
        if self.salt < 0:
            raise ValueError(f"salt is {self.salt}: it cannot be taken out.")


def parsed(*arguments: str) -> Recipe:
    return parse((Recipe,), arguments, "cook", "Cooks.")[0]


def written(folder: Path, text: str) -> list[str]:
    (folder / "recipe.yaml").write_text(text)
    return ["--config", str(folder / "recipe.yaml")]


def test_flags_over_file_over_defaults(tmp_path: Path) -> None:
    file = written(tmp_path, "dish: soup\nsalt: 1e-3\nguests: [ann, bob]\nspicy: true\nwine: null\n")
    assert parsed(*file) == Recipe("soup", 0.001, ["ann", "bob"], True)
    assert parsed(*file, "--salt", "2", "--guests", "eve") == Recipe("soup", 2.0, ["eve"], True)
    assert parsed("--dish", "pie") == Recipe("pie")


def test_no_is_a_word_and_false_is_not(tmp_path: Path) -> None:
    assert parsed(*written(tmp_path, "dish: no\nspicy: True\n")) == Recipe("no", spicy=True)
    assert parsed(*written(tmp_path, "dish: off\nspicy: no\n")) == Recipe("off", spicy=False)


def test_a_list_may_be_empty_in_the_file_and_be_emptied_by_a_flag(tmp_path: Path) -> None:
    assert parsed(*written(tmp_path, "dish: soup\nguests: []\n")).guests == []
    assert parsed(*written(tmp_path, "dish: soup\nguests: [ann]\n"), "--guests").guests == []


@pytest.mark.parametrize(
    "recipe", [Recipe("pie"), Recipe("--salt", 2.0, ["eve", "bob"], True), Recipe("a b", wine="red", guests=[])]
)
def test_flags_of_a_dataclass_give_it_again(recipe: Recipe) -> None:
    assert parsed(*as_flags(recipe)) == recipe
    assert as_flags(Recipe("pie")) == ["--dish=pie"]


def test_values_that_look_like_flags(tmp_path: Path) -> None:
    assert parsed(*written(tmp_path, "dish: --salt\n")).dish == "--salt"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert parsed(*written(tmp_path, ""), "--dish", "pie") == Recipe("pie")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dish: soup\npepper: 1\n", "'pepper' is no flag of this command"),
        ("dish: soup\nhelp: true\n", "'help' is no flag"),
        ("dish: soup\nsalt: much\n", "--salt: invalid float value: 'much'"),
        ("dish: soup\nsalt: [1, 2]\n", "unrecognized arguments"),
        ("dish: soup\nsalt: -1\n", "salt is -1.0: it cannot be taken out"),
        ("salt: 1\n", "required: --dish"),
        ("dish: [soup\n", "is not YAML"),
        ("- dish\n", "holds no `flag: value` lines"),
        ("soup\n", "holds no `flag: value` lines"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parsed(*written(tmp_path, text))


def test_mistakes_in_flags(tmp_path: Path) -> None:
    cases = [
        (["--dish", "pie", "--salt", "x"], "--salt: invalid float value: 'x'"),
        (["--dish", "pie", "--pepper"], "unrecognized arguments: --pepper"),
        (["--dish", "pie", "--sal", "1"], "unrecognized arguments: --sal"),
        (["--dish", "pie", "--salt", "-1"], "cannot be taken out"),
        ([], "required: --dish"),
        (["--config"], "expected one argument"),
        (["--config", str(tmp_path / "no.yaml")], "no.yaml cannot be read"),
        (["--config", str(tmp_path)], "cannot be read"),
    ]
    for flags, said in cases:
        with pytest.raises(UserError, match=said):
            parsed(*flags)


def test_help_shows_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parsed("--help")
    assert stopped.value.code == 0
    assert "The one required." in capsys.readouterr().out


def test_a_negation_is_not_helped_by_what_it_negates(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Shared:
        private: bool = field(default=True, metadata={"help": "For its owner alone."})

    with pytest.raises(SystemExit):
        parse((Shared,), ["--help"], "share", "Shares.")
    assert "The opposite of --private." in capsys.readouterr().out.split("--no_private")[-1]


def test_the_home_folder_is_meant_where_no_shell_has_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")

    @dataclass
    class Places:
        dataset: str = ""
        models: list[str] = field(default_factory=list)

    (places,) = parse([Places], ["--dataset", "~/images", "--models", "vit=~/a=b", "~/other", "a~b"], "x", "y")
    assert places == Places("/home/me/images", ["vit=/home/me/a=b", "/home/me/other", "a~b"])
