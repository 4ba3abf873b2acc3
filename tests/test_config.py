"""Configurations are strict: what nothing reads, or what has the wrong type, is an error that says where."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_streamer.config import CacheConfig, StreamerConfig, from_dict, load_config, to_dict
from wan_streamer.errors import ConfigError
from wan_streamer.presets import PRESETS, get_preset

every_preset = pytest.mark.parametrize("name", sorted(PRESETS))


@every_preset
def test_presets_survive_json(name: str, tmp_path: Path) -> None:
    config = get_preset(name)
    assert config.name == name
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert load_config(tmp_path / "config.json") == config


@every_preset
def test_presets_are_frozen(name: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_preset(name).backbone.dim = 1  # type: ignore[misc]


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'huge'; known presets are .*nano"):
        get_preset("huge")


def changed(section: str | None, key: str, value: object) -> dict:
    data = to_dict(StreamerConfig())
    (data if section is None else data[section])[key] = value
    return data


@pytest.mark.parametrize("section", [None, *(f.name for f in dataclasses.fields(StreamerConfig) if f.name != "name")])
def test_unknown_keys(section: str | None) -> None:
    data = to_dict(StreamerConfig())
    if section is not None and not isinstance(data[section], dict):
        with pytest.raises(ConfigError, match=section):
            from_dict(StreamerConfig, data | {section: {"colour": 1}})
        return
    where = r"config" if section is None else rf"config\.{section}"
    with pytest.raises(ConfigError, match=rf"^{where}: unknown key 'colour'; known keys are "):
        from_dict(StreamerConfig, changed(section, "colour", "blue"))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("backbone", "dim", "256"),
        ("backbone", "dim", 256.0),
        ("backbone", "dim", True),
        ("backbone", "dim", None),
        ("backbone", "qk_norm", 1),
        ("backbone", "rope_theta", "ten"),
        ("backbone", "rope_theta", False),
        ("video_vae", "channels", [1, 2, 3]),
        ("video_vae", "channels", [1, 2, 3, "4"]),
        ("video_vae", "channels", 7),
        (None, "name", 3),
        (None, "cache", "window"),
    ],
)
def test_wrong_types(section: str | None, key: str, value: object) -> None:
    place = f"config.{section}.{key}" if section else f"config.{key}"
    with pytest.raises(ConfigError, match=rf"^{place}.*expected"):
        from_dict(StreamerConfig, changed(section, key, value))


def test_whole_numbers_are_floats_where_floats_are_meant() -> None:
    config = from_dict(StreamerConfig, changed("flow", "shift", 5))
    assert isinstance(config.flow.shift, float)


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("video_vae", "height", 200, "divisible by 16 x patch = 48"),
        ("backbone", "kv_heads", 3, "not a multiple"),
        ("cache", "policy", "all", "'full' or 'window'"),
        (None, "unit_ms", 100, "units of 160 ms"),
        (None, "fps", 30, "25 fps"),
        (None, "sample_rate", 48_000, "24000 Hz"),
    ],
)
def test_values_that_cannot_work(section: str | None, key: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_dict(StreamerConfig, changed(section, key, value))


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "expected JSON"), ("", "expected JSON"), ("[]", "expected an object, got list"), ("7", "got int")],
)
def test_files_that_are_not_a_config(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "config.json")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(key=st.sampled_from([f.name for f in dataclasses.fields(CacheConfig)]), value=anything)
def test_whatever_a_file_holds_it_fits_or_is_a_config_error(key: str, value: object) -> None:
    try:
        config = from_dict(CacheConfig, {key: value})
    except ConfigError:
        return
    assert type(getattr(config, key)) is type(getattr(CacheConfig(), key))
