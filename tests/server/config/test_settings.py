"""The one list of options, against what takes their values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pydantic import ValidationError

from sightline.engine.settings import EngineSettings
from sightline.errors import UsageError
from sightline.server.config.explain import explain, range_of
from sightline.server.limits import Limits
from sightline.server.media.policy import MediaPolicy
from sightline.server.settings import ServeSettings, all_options


def problem(**values: object) -> str:
    with pytest.raises(ValidationError) as found:
        ServeSettings(**{"model": "m", **values})
    return explain(found.value, lambda name: f"--{name}".replace("_", "-"))


def test_defaults_are_those_of_the_parts() -> None:
    settings = ServeSettings(model="m")
    arguments = settings.engine_arguments()
    engine = EngineSettings.of(**arguments)
    for field in dataclasses.fields(EngineSettings):
        if field.name not in ("model", "mm_processor_kwargs"):
            assert getattr(engine, field.name) == getattr(EngineSettings("m"), field.name), field.name
    limits = settings.limits()
    assert dataclasses.replace(limits, medium=Limits().medium) == Limits()
    assert limits.medium == settings.media_policy().budget
    assert settings.media_policy() == MediaPolicy()


def test_every_number_of_the_parts_is_an_option() -> None:
    names = {name for _, name, _ in all_options()}
    assert {field.name for field in dataclasses.fields(Limits)} - names == {"medium"}
    policy = {field.name for field in dataclasses.fields(MediaPolicy)}
    unnamed = {name for name in policy if f"media_{name}" not in names}
    assert unnamed == {"allowed_local_paths", "allowed_domains", "fetch", "max_media"}
    given = set(ServeSettings(model="m", adapter=["a=b"]).engine_arguments())
    left_out = {field.name for field in dataclasses.fields(EngineSettings)} - given
    assert left_out == {"adapter", "mm_processor_kwargs"}


def test_every_option_is_described() -> None:
    for title, name, field in all_options():
        assert title, name
        assert field.description, name
        assert field.description.endswith((".", "cuda:1, ...; without it, the best there is.")), name


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"port": 70000}, "--port must be between 0 and 65535, not 70000"),
        ({"port": "http"}, "--port must be a whole number, not 'http'"),
        ({"port": 80.5}, "--port must be a whole number, not 80.5"),
        ({"gpu_memory_utilization": 1.5}, "--gpu-memory-utilization must be above 0 and at most 1, not 1.5"),
        ({"drain_seconds": float("nan")}, "--drain-seconds must be"),
        ({"kv_cache_memory": "4 lots"}, "--kv-cache-memory: '4 lots' is not a size"),
        ({"quantization": "int3"}, "--quantization must be 'int8' or 'int4', not 'int3'"),
        ({"access_log": "perhaps"}, "--access-log must be true or false, not 'perhaps'"),
        ({"modle": "x"}, "--modle is not an option (did you mean model?)"),
        ({"limit_mm_per_prompt": "four"}, "write image=4,video=1"),
        ({"ssl_certfile": "a"}, "ssl_certfile needs ssl_keyfile beside it"),
        ({"management_ssl_keyfile": "a"}, "management_ssl_keyfile needs management_ssl_certfile"),
        ({"ssl_ca_certs": "a"}, "ssl_ca_certs needs ssl_certfile and ssl_keyfile"),
        ({"min_pixels": 9, "max_pixels": 4}, "min_pixels 9 is above max_pixels 4"),
        ({"prompt_lookup_min": 5}, "prompt_lookup_min 5 is above prompt_lookup_max 4"),
        ({"management_port": 8000}, "management_port is 8000, as is port"),
        ({"metrics_port": 8000}, "metrics_port is 8000, as is port"),
        ({"management_port": 9, "metrics_port": 9}, "both 9"),
        ({"cors_origin": "example.com"}, "write https://example.com or *"),
        ({"cors_origin": "https://example.com/"}, "write https://example.com or *"),
        ({"adapter": ["a=x", "a=y"]}, "two adapters are called 'a'"),
        ({"adapter": "=x"}, "is not NAME=FOLDER"),
        ({"adapter": "m=x"}, "adapter 'm' is called as the model is"),
        (
            {"adapter": "runs/cat", "served_model_name": ["dog", "cat"]},
            "adapter 'cat' is called as the model",
        ),
        ({"api_key": ""}, "an api_key is empty"),
        ({"tensor_parallel_size": 2}, "--tensor-parallel-size must be 1, not 2"),
    ],
)
def test_a_mistake_names_the_option_the_value_and_the_range(values: dict[str, object], text: str) -> None:
    assert text in problem(**values)


def test_no_message_holds_a_key() -> None:
    assert "hunter2" not in problem(api_key=[{"hunter2": 1}])


def test_ranges_in_words() -> None:
    assert range_of("port") == "between 0 and 65535"
    assert range_of("max_model_len") == "at least 2"
    assert range_of("request_seconds") == "above 0 and at most 31536000"
    assert range_of("host") == range_of("seed") == ""


def test_ports_that_are_apart() -> None:
    assert ServeSettings(model="m", host="::1").places() == {"": ("::1", 8000)}
    apart = ServeSettings(model="m", host="0.0.0.0", management_port=0, metrics_port=9000)
    # Whoever stops a server or loads adapters is not to be anyone in the network, unless it is said.
    assert apart.places() == {
        "": ("0.0.0.0", 8000),
        "management_": ("127.0.0.1", 0),
        "metrics_": ("0.0.0.0", 9000),
    }


def test_adapters_have_the_names_they_are_given_or_their_folders(tmp_path: Path) -> None:
    settings = ServeSettings(model="m", adapter=["cats=runs/a", str(tmp_path / "dogs")])
    assert settings.adapters == {"cats": "runs/a", "dogs": str(tmp_path / "dogs")}


def test_names_of_the_model() -> None:
    assert ServeSettings(model="runs/merged").names == ["merged", "runs/merged"]
    assert ServeSettings(model="runs/merged", served_model_name=["a", "b"]).names == ["a", "b"]


def test_keys_come_from_the_option_and_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\nalpha\n\n  beta  \n")
    settings = ServeSettings(model="m", api_key=["gamma"], api_key_file=str(file))
    digests = settings.key_digests()
    assert len(set(digests)) == 3
    assert ServeSettings(model="m", api_key=["beta"]).key_digests()[0] in digests
    file.write_text("# nothing\n")
    with pytest.raises(UsageError, match="holds no key"):
        settings.key_digests()
    file.unlink()
    with pytest.raises(UsageError, match="--api-key-file .* cannot be read: No such file"):
        settings.key_digests()


def test_an_allowed_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--allowed-local-media-path .* is not a folder"):
        ServeSettings(model="m", allowed_local_media_path=str(tmp_path / "no")).media_policy()
