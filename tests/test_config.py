"""Configurations are strict: what nothing reads, or what has the wrong type, is an error that says where."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_streamer.codecs.folder import load_codecs
from wan_streamer.codecs.text import TextCodec
from wan_streamer.config import CacheConfig, StreamerConfig, from_dict, load_config, to_dict
from wan_streamer.data.shards import _episode
from wan_streamer.errors import CheckpointError, ConfigError, DataError, ServingError, WanStreamerError
from wan_streamer.files import parse_json
from wan_streamer.presets import PRESETS, get_preset
from wan_streamer.serving.messages import parse_page_message

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


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("backbone", "layers", 10_000_000),
        ("backbone", "layers", 0),
        ("backbone", "dim", -256),
        ("backbone", "kv_heads", 0),
        ("backbone", "rope_theta", 0),
        ("backbone", "rope_theta", float("nan")),
        ("backbone", "mlp_dim", 10**400),
        ("backbone", "norm_eps", 10**400),
        ("video_vae", "height", 48_000),
        ("video_vae", "channels", [24, 64, 0, 128]),
        ("audio_vae", "hop", 0),
        ("perception", "video_grid", [0, 1]),
        ("text", "vocab_size", 3),
        ("text", "slots", 0),
        ("text", "temperature", float("nan")),
        ("text", "start_bias", float("inf")),
        ("cache", "audio_units", -1),
        ("flow", "steps", 0),
        ("flow", "shift", 0),
        ("flow", "shift", -3.0),
        ("flow", "temperature", float("inf")),
        ("flow", "seed", -1),
        (None, "patch", 0),
    ],
)
def test_values_out_of_range(section: str | None, key: str, value: object) -> None:
    place = f"config.{section}.{key}" if section else f"config.{key}"
    with pytest.raises(ConfigError, match=rf"^{place}: expected \S+ to \S+, got ") as caught:
        from_dict(StreamerConfig, changed(section, key, value))
    assert len(str(caught.value)) < 200
    if section:
        part = getattr(StreamerConfig(), section)
        inside = tuple(value) if isinstance(value, list) else value
        with pytest.raises(ConfigError, match=rf"^{section}\.{key}: expected "):
            dataclasses.replace(part, **{key: inside})


@pytest.mark.parametrize(("section", "key", "value"), [("audio_vae", "hop", 241), ("backbone", "head_dim", 63)])
def test_numbers_that_do_not_divide(section: str, key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.{key}: expected"):
        from_dict(StreamerConfig, changed(section, key, value))


def test_every_number_has_a_range() -> None:
    def numbers(config: object) -> list[dataclasses.Field]:
        fields = dataclasses.fields(config)  # type: ignore[arg-type]
        inner = [numbers(getattr(config, f.name)) for f in fields if dataclasses.is_dataclass(getattr(config, f.name))]
        kinds = (int, float, tuple)
        own = [f for f in fields if isinstance(f.default, kinds) and not isinstance(f.default, bool)]
        return [*own, *(field for fields in inner for field in fields)]

    assert len(numbers(StreamerConfig())) > 60
    assert [f.name for f in numbers(StreamerConfig()) if "range" not in f.metadata] == []


paths = [
    (section.name, key.name)
    for section in dataclasses.fields(StreamerConfig)
    for key in (
        dataclasses.fields(section.default_factory)  # type: ignore[arg-type]
        if section.default_factory is not dataclasses.MISSING
        else [section]
    )
]
extreme = anything | st.sampled_from([0, -1, 1, 2, 10**400, float("nan"), float("inf"), 1e308, "\ud800", [0] * 3])


@settings(max_examples=400, deadline=None, derandomize=True)
@given(path=st.sampled_from(paths), value=extreme)
def test_any_value_anywhere_fits_or_is_a_config_error_in_one_line(path: tuple[str, str], value: object) -> None:
    section, key = path
    try:
        config = from_dict(StreamerConfig, changed(None if section == key else section, key, value))
    except ConfigError as error:
        message = str(error)
    else:
        message = ""
        assert from_dict(StreamerConfig, to_dict(config)) == config
    assert message.encode().decode() == message
    assert len(message) < 400


BAD_JSON = {
    "nested": b"[" * 16_000,
    "digits": b'{"a": ' + b"9" * 400 + b"}",
    "more digits": b'{"a": ' + b"9" * 5000 + b"}",
    "surrogate": b'{"name": "\\ud800"}',
    "utf-8": b'{"name": "\xff\xfe"}',
    "encoded surrogate": b'{"name": "\xed\xa0\x80"}',
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_no_writer_wrote(kind: str, tmp_path: Path) -> None:
    for name in ("config.json", "audio_vae.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(BAD_JSON[kind])
    with pytest.raises(ConfigError, match=r"config\.json: expected JSON"):
        load_config(tmp_path / "config.json")
    (tmp_path / "config.json").unlink()
    (tmp_path / "audio_vae.safetensors").touch()
    with pytest.raises(WanStreamerError, match="audio_vae"):
        load_codecs(StreamerConfig(), tmp_path)
    with pytest.raises(CheckpointError, match="tokenizer"):
        TextCodec.load(tmp_path / "tokenizer.json")
    with pytest.raises(ServingError):
        parse_page_message(BAD_JSON[kind].decode(errors="surrogateescape"))


@pytest.mark.parametrize("kind", BAD_JSON)
def test_labels_that_no_writer_wrote(kind: str) -> None:
    parts = {"json": BAD_JSON[kind], "user.flac": b"", "agent.flac": b""}
    with pytest.raises(DataError, match="labels are not valid JSON"):
        _episode(Path("a.tar"), "a", parts, video=False)


def test_json_of_people_is_read() -> None:
    text = '\ufeff{"a": [1, 2.5, "\\u00e4\\ud83d\\ude00", 12345678901234567890]}'
    assert parse_json(text.encode()) == parse_json(text) == {"a": [1, 2.5, "ä😀", 12345678901234567890]}
