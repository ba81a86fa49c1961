"""What is asked: typed, frozen, and a mistake is named with its place and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidi import config
from vidi.config import Config
from vidi.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "place", "way_out"),
    [
        (
            "\n[train]\nlearning_rte = 0.1\n",
            "line 3: no setting 'train.learning_rte'",
            "'train.learning_rate'",
        ),
        ("[trian]\nepochs = 3\n", "line 1: no setting 'trian'", "'train'"),
        (
            "[data]\nlearning_rate = 1.0\n",
            "line 2: no setting 'data.learning_rate'",
            "'train.learning_rate'",
        ),
        ("train.epoch = 3\n", "line 1: no setting 'train.epoch'", "'train.epochs'"),
    ],
)
def test_an_unknown_setting_is_refused_with_its_line_and_the_nearest_name(
    text: str, place: str, way_out: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, origin="flowers.toml")
    assert f"flowers.toml, {place}" in caught.value.message
    assert f"did you mean {way_out}?" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nepochs = 'many'\n", "line 2: 'train.epochs' cannot be 'many'"),
        ("[train]\nepochs = -1\n", "line 2: 'train.epochs' cannot be -1"),
        ("[train]\nepochs = nan\n", "line 2: 'train.epochs' cannot be nan"),
        ("[data]\nresize = 'fold'\n", "'crop', 'pad' or 'squash'"),
        ("[train]\nepochs = 3\nminutes = 2\n", "give train.epochs or train.minutes, not both"),
        ("train = 3\n", "'train' cannot be 3"),
        ("[train\n", "not TOML"),
        ("a = " + "[" * 100_000, "not TOML"),
    ],
)
def test_a_wrong_value_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match="flowers") as caught:
        config.parse(text, origin="flowers.toml")
    assert words in str(caught.value)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.epochs = 3  # type: ignore[misc]


@given(
    epochs=st.none() | st.floats(0.01, 1e6),
    rate=st.none() | st.floats(1e-9, 1e3),
    name=st.none() | st.text(st.characters(codec="utf-8"), max_size=20),
    extra=st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=3),
    device=st.none() | st.sampled_from(["cpu", "cuda"]),
)
def test_toml_out_and_in_again_is_the_same_config(
    epochs: float | None, rate: float | None, name: str | None, extra: list[str], device: str | None
) -> None:
    settings = {
        "train.epochs": epochs,
        "train.learning_rate": rate,
        "model.name": name,
        "augment.extra": tuple(extra),
        "machine.device": device,
    }
    asked = Config().with_settings({key: value for key, value in settings.items() if value})
    assert config.parse(asked.to_toml()) == asked


def test_settings_of_the_command_line_are_typed_as_toml() -> None:
    settings = config.parse_settings(
        [
            "train.epochs=20",
            "model.name=resnet18",
            "augment.vertical_flip=true",
            "augment.extra=['a:b']",
        ]
    )
    assert settings == {
        "train.epochs": 20,
        "model.name": "resnet18",
        "augment.vertical_flip": True,
        "augment.extra": ["a:b"],
    }


def test_settings_lie_on_top_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "flowers.toml"
    path.write_text("[train]\nepochs = 3\nseed = 4\n")
    asked = config.read(path).with_settings({"train.epochs": 7})
    assert (asked.train.epochs, asked.train.seed) == (7, 4)


@pytest.mark.parametrize("assignment", ["train.epochs", "=3", "epochs=3"])
def test_a_setting_without_section_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.field"):
        Config().with_settings(config.parse_settings([assignment]))


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        config.read(tmp_path / "absent.toml")


def test_a_name_is_loaded_from_its_module() -> None:
    assert config.load("math:sqrt")(9) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("math:sqroot", "did you mean 'sqrt'"),
        ("no_such_module_at_all:f", "cannot import"),
        ("os.system", "module:name"),
        ("../../x:y", "module:name"),
        ("os:path.join", "module:name"),
    ],
)
def test_a_name_that_cannot_be_loaded_says_why(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(name)
    assert words in str(caught.value)
