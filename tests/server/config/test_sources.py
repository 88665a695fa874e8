"""Settings from the command line, a file and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.errors import UsageError
from sightline.server.config.printed import as_markdown, as_yaml
from sightline.server.config.sources import load_settings
from sightline.server.settings import ServeSettings, all_options


def write(tmp_path: Path, text: str, name: str = "serve.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_command_line_wins_over_the_file_and_the_file_over_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, "model: m\nport: 1\nhost: 127.0.0.2\napi-key: [file]\n")
    environment = {"SIGHTLINE_API_KEY": "environment"}
    settings = load_settings({"port": 2}, path, environment).settings
    assert (settings.port, settings.host, settings.api_key) == (2, "127.0.0.2", ["file"])
    assert load_settings({"model": "m"}, None, environment).settings.api_key == ["environment"]
    both = {"VLLM_API_KEY": "theirs", **environment}
    assert load_settings({"model": "m"}, None, both).settings.api_key == ["environment"]
    assert load_settings({"model": "m"}, None, {"VLLM_API_KEY": "theirs"}).settings.api_key == ["theirs"]
    assert load_settings({"model": "m"}, None, {"SIGHTLINE_API_KEY": ""}).settings.api_key == []


def test_both_spellings_and_other_tools_names(tmp_path: Path) -> None:
    text = "model: 2026\nmax-num-seqs: 3\nenable_prefix_caching: false\nkv_cache_memory_bytes: 1GiB\nadapter: x\n"
    settings = load_settings({}, write(tmp_path, text), {}).settings
    assert (settings.model, settings.max_num_seqs, settings.prefix_caching) == ("2026", 3, False)
    assert (settings.kv_cache_memory, settings.adapter) == (2**30, ["x"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: m\nport: 1\nport: 2\n", "serve.yaml:3: port stands in line 2 already"),
        (
            "model: m\nlimit_mm_per_prompt: {image: 1, image: 2}\n",
            "serve.yaml:2: image stands in line 2 already",
        ),
        ("model: m\nmax-pixels: 1\nmax_pixels: 2\n", "max_pixels says again what"),
        ("model: m\nprot: 1\n", "serve.yaml:2: prot is not an option (did you mean port?)"),
        ("model: m\n\nport: 70000\n", "serve.yaml:3: port must be between 0 and 65535, not 70000"),
        ("model: m\naccess_log: 3\n", "serve.yaml:2: access_log must be true or false, not 3"),
        ("- model\n", "must hold `option: value` lines"),
        ("model: [\n", "is not valid YAML"),
        ("? {a: 1}\n: 2\n", "is not valid YAML"),
        ("port: 1\n", "--model is missing and"),
        ("", "--model is missing and"),
    ],
)
def test_a_mistake_in_a_file_has_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as found:
        load_settings({}, write(tmp_path, text), {})
    assert words in str(found.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--config .* cannot be read: No such file"):
        load_settings({}, tmp_path / "no.yaml", {})
    path = tmp_path / "serve.yaml"
    path.write_bytes(b"model: \xff\xfe")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        load_settings({}, path, {})
    path.write_bytes(b"#" * (10 * 2**20 + 1))
    with pytest.raises(UsageError, match="more than 10 MB"):
        load_settings({}, path, {})


def test_mindies_variable_counts_only_where_nothing_else_names_a_model(tmp_path: Path) -> None:
    path = write(tmp_path, "model: theirs\n")
    environment = {"MIES_CONFIG_JSON_PATH": str(path)}
    assert load_settings({}, None, environment).settings.model == "theirs"
    assert load_settings({"model": "mine"}, None, environment).settings.model == "mine"
    other = write(tmp_path, "model: other\n", "other.yaml")
    assert load_settings({}, other, environment).settings.model == "other"


def test_what_is_printed_loads_to_the_same(tmp_path: Path) -> None:
    settings = ServeSettings(
        model="2026-11-20",
        adapter=["a=b", "c"],
        kv_cache_memory="4GiB",
        limit_mm_per_prompt="image=4",
        request_seconds=None,
        cors_origin=["*"],
        host="::1",
        served_model_name=['tricky: "#" ü'],
        page=False,
    )
    text = as_yaml(settings)
    assert load_settings({}, write(tmp_path, text), {}).settings == settings
    for _, name, field in all_options():
        assert f"\n{name}: " in f"\n{text}"
        assert str(field.description).split()[0] in text


def test_a_mistake_in_a_key_s_line_does_not_show_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        load_settings({}, write(tmp_path, "model: m\napi_key: [hunter2, }\n"), {})
    assert "serve.yaml:2:20 is not valid YAML: " in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_what_is_printed_holds_no_key(tmp_path: Path) -> None:
    settings = ServeSettings(model="m", api_key=["hunter2", "hunter3"], port=9)
    text = as_yaml(settings)
    assert "hunter" not in text
    assert "2 are set and not shown" in text
    loaded = load_settings({}, write(tmp_path, text), {}).settings
    assert loaded == settings.model_copy(update={"api_key": []})


def test_the_documentation_lists_every_option_as_it_is() -> None:
    page = Path(__file__).parents[3] / "docs" / "serving.md"
    told = page.read_text(encoding="utf-8").partition("## Every option\n")[2].partition("\n\n")[2]
    assert told == as_markdown() + "\n", "run: python -m sightline.server.config.printed"
