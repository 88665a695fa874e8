"""MindIE's config.json as settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sightline.errors import UsageError
from sightline.server.config import mindie
from sightline.server.config.jsonc import read_jsonc
from sightline.server.config.mindie_fields import FIELDS
from sightline.server.config.sources import Loaded, load_settings
from sightline.server.settings import all_options

MISSION = Path(__file__).with_name("mission.json")


@pytest.fixture(autouse=True)
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with NPUs; the tests of one without say so."""
    monkeypatch.setattr(mindie, "_accelerator", lambda: "npu")


def load(path: Path, **given: Any) -> Loaded:
    return load_settings(given, path, {})


def made(tmp_path: Path, *changes: tuple[str, Any]) -> Path:
    """The mission's configuration with values changed, by their paths; None takes one out."""
    root = read_jsonc(MISSION.read_text(), MISSION)
    for place, value in changes:
        *parts, last = place.replace("[0]", ".0").split(".")
        node: Any = root
        for part in parts:
            node = node[int(part)] if part.isdecimal() else node.setdefault(part, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(root))
    return path


S, D, C = "ServerConfig.", "BackendConfig.ModelDeployConfig.", "BackendConfig.ScheduleConfig."
M = f"{D}ModelConfig[0]."


def test_the_missions_configuration() -> None:
    loaded = load(MISSION)
    settings = loaded.settings
    assert settings.places() == {
        "": ("127.0.0.1", 1040),
        "management_": ("127.0.0.1", 1041),
        "metrics_": ("127.0.0.1", 1042),
    }
    assert (settings.model, settings.names) == ("/data/datasets/Qwen2-VL-7B-Instruct", ["qwen2_vl"])
    assert (settings.max_model_len, settings.max_prompt_tokens, settings.max_iter_times) == (1024, 1000, 512)
    assert (settings.max_num_seqs, settings.max_num_batched_tokens, settings.block_size) == (32, 1024, 128)
    assert (settings.kv_cache_memory, settings.device_map, settings.device) == (8 * 2**30, "auto", None)
    assert (settings.max_open, settings.request_seconds, settings.log_level) == (200, 300, "info")
    assert settings.ssl_certfile is None
    block = "\n".join(loaded.notes)
    assert "cpuMemSize: no keys and values are moved to host memory" in block
    assert "nothing waits for a batch to fill" in block
    assert "not known" not in block
    # What asks for what happens anyway is not told.
    for silent in ("trustRemoteCode", "truncation", "openAiSupport", "backendName", "modelInstanceNumber"):
        assert silent not in block
    assert len(loaded.notes) < 16


def test_without_cards_the_cpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindie, "_accelerator", lambda: "cpu")
    loaded = load(MISSION)
    assert (loaded.settings.kv_cache_memory, loaded.settings.device_map) == (None, None)
    told = [line for line in loaded.notes if "its CPU computes" in line]
    assert told == [
        "  npuDeviceIds, worldSize, npuMemSize: this machine has no NPU or GPU, so its CPU computes"
    ]


def test_one_card_is_chosen_by_its_number(tmp_path: Path) -> None:
    path = made(tmp_path, ("BackendConfig.npuDeviceIds", [[3]]), (f"{M}worldSize", 1), (f"{M}npuMemSize", -1))
    settings = load(path).settings
    assert (settings.device, settings.device_map, settings.kv_cache_memory) == ("npu:3", None, None)


def test_options_win_over_the_file(tmp_path: Path) -> None:
    settings = load(MISSION, port=5, served_model_name=["mine"]).settings
    assert (settings.port, settings.names) == (5, ["mine"])


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    modules = [{"name": "cats", "path": "lora/cats", "baseModelName": "qwen2_vl"}]
    path = made(
        tmp_path, (f"{M}modelWeightPath", "weights"), (f"{D}LoraModules", modules), (f"{D}maxLoras", 2)
    )
    settings = load(path).settings
    assert settings.model == str(tmp_path / "weights")
    assert settings.adapters == {"cats": str(tmp_path / "lora/cats")}
    assert settings.max_adapters == 2


def test_https(tmp_path: Path) -> None:
    settings = load(made(tmp_path, (f"{S}httpsEnabled", True))).settings
    assert settings.ssl_certfile == str(tmp_path / "security/certs/server.pem")
    assert settings.ssl_ca_certs == str(tmp_path / "security/ca/ca.pem")
    assert settings.tls("management_").certfile == str(tmp_path / "security/certs/management/server.pem")
    assert settings.tls("metrics_").certfile == settings.ssl_certfile
    with pytest.raises(UsageError, match="httpsEnabled is true, which needs ServerConfig.tlsCert and "):
        load(made(tmp_path, (f"{S}httpsEnabled", True), (f"{S}tlsCert", None)))


def test_plugins_and_prefix_caching(tmp_path: Path) -> None:
    path = made(tmp_path, (f"{M}plugin_params", '{"plugin_type": "prefix_cache,la", "level": 4}'))
    loaded = load(path)
    assert loaded.settings.prefix_caching
    assert any("plugin_params la" in line for line in loaded.notes)
    assert load(made(tmp_path, (f"{M}plugin_params", ""))).settings.prefix_caching


def test_the_older_schema(tmp_path: Path) -> None:
    older = {
        "OtherParam": {
            "ResourceParam": {"cacheBlockSize": 64, "preAllocBlocks": 4},
            "LogParam": {"logLevel": "Warn", "logPath": "/logs"},
            "ServeParam": {"ipAddress": "127.0.0.3", "port": 1025, "maxLinkNum": 300, "httpsEnabled": False},
        },
        "WorkFlowParam": {"TemplateParam": {"templateType": "Standard", "pipelineNumber": 1}},
        "ModelDeployParam": {
            "maxSeqLen": 2560,
            "npuDeviceIds": [[0, 1]],
            "modelParam": [
                {"modelName": "old", "modelWeightPath": "w", "worldSize": 2, "npuMemSize": 4, "cpuMemSize": 0}
            ],
        },
        "ScheduleParam": {"maxBatchSize": 20, "maxIterTimes": 100, "maxPrefillTokens": 4096},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(older))
    loaded = load(path)
    settings = loaded.settings
    assert settings.places() == {"": ("127.0.0.3", 1025)}
    assert (settings.names, settings.model) == (["old"], str(tmp_path / "w"))
    assert (settings.max_model_len, settings.block_size, settings.max_num_seqs) == (2560, 64, 20)
    assert (settings.kv_cache_memory, settings.device_map, settings.log_level) == (
        4 * 2**30,
        "auto",
        "warning",
    )
    assert not any("not known" in line for line in loaded.notes)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (f"{S}port", 70000, "ServerConfig.port must be between 1 and 65535, not 70000"),
        (f"{S}port", "1040", "ServerConfig.port must be a whole number between 1 and 65535, not '1040'"),
        (f"{S}maxLinkNum", 5000, "ServerConfig.maxLinkNum must be between 1 and 4096, not 5000"),
        (f"{S}maxLinkNum", True, "ServerConfig.maxLinkNum must be a whole number"),
        (f"{S}ipAddress", "0.0.0.0", "needs ServerConfig.allowAllZeroIpListening: true"),
        (f"{S}maxRequestLength", 101, "maxRequestLength must be between 1 and 100"),
        (f"{S}httpsEnabled", "yes", "ServerConfig.httpsEnabled must be true or false, not 'yes'"),
        (f"{S}managementPort", 1040, "management_port is 1040, as is port"),
        (
            "BackendConfig.modelInstanceNumber",
            2,
            "modelInstanceNumber must be 1: one process serves one model",
        ),
        ("BackendConfig.multiNodesInferEnabled", True, "multiNodesInferEnabled must be false"),
        ("BackendConfig.npuDeviceIds", [[0, 0]], "npuDeviceIds must be one list of different cards"),
        ("BackendConfig.npuDeviceIds", [[0], [1]], "npuDeviceIds must be one list of different cards"),
        (f"{M}worldSize", 4, "ModelConfig[0].worldSize is 4, but npuDeviceIds names 8 cards"),
        (f"{M}npuMemSize", 0, "ModelConfig[0].npuMemSize must be -1 or above 0 (GB), not 0"),
        (f"{M}npuMemSize", -2, "npuMemSize must be -1 or above 0"),
        (f"{M}modelName", "qwen 2", "modelName must be 1 to 256 letters"),
        (f"{M}plugin_params", "prefix_cache", "plugin_params must be an object in a text"),
        (f"{D}maxSeqLen", 1, "ModelDeployConfig.maxSeqLen must be between 2 and"),
        (f"{D}LoraModules", [{"name": "a"}], "LoraModules must be a list of"),
        (f"{C}maxIterTimes", 0, "ScheduleConfig.maxIterTimes must be between 1 and"),
        (f"{C}cacheBlockSize", 256, "cacheBlockSize must be between 1 and 128"),
        ("LogConfig.logLevel", "loud", "LogConfig.logLevel must be debug, info"),
    ],
)
def test_an_impossible_value_names_the_field_and_its_range(
    tmp_path: Path, place: str, value: Any, words: str
) -> None:
    with pytest.raises(UsageError) as found:
        load(made(tmp_path, (place, value)))
    assert words in str(found.value)
    assert "config.json" in str(found.value) or "management_port" in words


def test_fields_that_have_no_meaning_are_told_with_the_reason(tmp_path: Path) -> None:
    changes = ((f"{M}trustRemoteCode", True), (f"{D}truncation", True), (f"{S}portt", 4), (f"{C}brandNew", 1))
    notes = "\n".join(load(made(tmp_path, *changes)).notes)
    assert "trustRemoteCode: no code of a checkpoint is ever run" in notes
    assert "truncation: a prompt that is too long is refused" in notes
    assert (
        "not known: ServerConfig.portt (did you mean port?), BackendConfig.ScheduleConfig.brandNew" in notes
    )


def test_every_field_sets_an_option_or_says_why_not() -> None:
    options = {name for _, name, _ in all_options()}
    for field in FIELDS:
        assert field.option is None or field.option in options, field.path
        assert field.mapped or field.why, field.path
    assert len({field.path for field in FIELDS}) == len(FIELDS)


def test_one_model_a_process(tmp_path: Path) -> None:
    root = read_jsonc(MISSION.read_text(), MISSION)
    deploy = root["BackendConfig"]["ModelDeployConfig"]
    deploy["ModelConfig"] *= 2
    path = tmp_path / "config.json"
    path.write_text(json.dumps(root))
    with pytest.raises(UsageError, match="ModelConfig must hold one object"):
        load(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": "http://x", // c "b"\n "b": 1}', {"a": "http://x", "b": 1}),
        ('{"a": "/* no */", /* yes\n*/ "b": [1, 2,],}', {"a": "/* no */", "b": [1, 2]}),
        ('{"a": "say \\" // here", "b": ",}"}', {"a": 'say " // here', "b": ",}"}),
        ("// first\n{}", {}),
    ],
)
def test_comments_and_trailing_commas_but_not_in_texts(text: str, value: Any) -> None:
    assert read_jsonc(text, "x") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1\n "b": 2}', "x:2:2 is not valid JSON"),
        ('{"a": 1, /* never closed', "x:1:10 is not valid JSON"),
        ('{"a": 1, "a": 2}', "a stands twice"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_json_is_told_with_its_place(text: str, words: str) -> None:
    with pytest.raises(UsageError) as found:
        read_jsonc(text, "x")
    assert words in str(found.value)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + MISSION.read_bytes())
    assert load(path).settings.port == 1040
