"""What checkpoints and users say about pixels, who wins, and how a trained limit is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from sightline.data.vision import image_grid, patch_image, video_grid
from sightline.data.vision_spec import VisionSpec, record_limits
from sightline.errors import SightlineError, UsageError

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# As published with Qwen2.5-VL and Qwen3-VL.
QWEN25 = {
    "min_pixels": 3136,
    "max_pixels": 12_845_056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
QWEN3 = {
    "size": {"longest_edge": 16_777_216, "shortest_edge": 65_536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
QWEN3_VIDEO = QWEN3 | {
    "size": {"longest_edge": 25_165_824, "shortest_edge": 4096},
    "video_processor_type": "Qwen3VLVideoProcessor",
}


def folder(path: Path, image: Any = None, video: Any = None, joint: Any = None) -> Path:
    path.mkdir(exist_ok=True)
    for name, value in (
        ("preprocessor_config.json", image),
        ("video_preprocessor_config.json", video),
        ("processor_config.json", joint),
    ):
        if value is not None:
            (path / name).write_text(json.dumps(value), encoding="utf-8")
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_qwen25_as_published(tmp_path: Path) -> None:
    spec = VisionSpec.from_folder(folder(tmp_path, QWEN25), "qwen2_5_vl")
    assert (spec.min_pixels, spec.max_pixels, spec.factor) == (3136, 12_845_056, 28)
    assert spec.max_pixels_source == "checkpoint"
    # Without video settings the limits of qwen-vl-utils, not those of pictures.
    assert (spec.video_min_pixels, spec.video_max_pixels) == (128 * 28 * 28, 768 * 28 * 28)
    assert spec.video_total_pixels == 90_316_800


def test_qwen3_as_published(tmp_path: Path) -> None:
    spec = VisionSpec.from_folder(folder(tmp_path, QWEN3, QWEN3_VIDEO), "qwen3_vl")
    assert (spec.min_pixels, spec.max_pixels, spec.factor) == (65_536, 16_777_216, 32)
    assert (spec.video_min_pixels, spec.video_max_pixels) == (4096, 25_165_824)
    assert spec.clip_limits
    assert spec.video_frame_pixels is None
    assert spec.image_mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_folder_without_processor_files_has_the_family_defaults(tmp_path: Path, model_type: str) -> None:
    spec = VisionSpec.from_folder(tmp_path, model_type)
    assert spec.max_pixels_source == "default"
    assert spec.patch_size == (16 if model_type == "qwen3_vl" else 14)


def test_size_is_read_where_the_pixel_keys_are_null(tmp_path: Path) -> None:
    image = QWEN25 | {"min_pixels": None, "max_pixels": None}
    image["size"] = {"shortest_edge": 4000, "longest_edge": 80_000}
    spec = VisionSpec.from_folder(folder(tmp_path, image), "qwen2_5_vl")
    assert (spec.min_pixels, spec.max_pixels, spec.max_pixels_source) == (4000, 80_000, "checkpoint")
    image["size"] = {"min_pixels": 5000, "max_pixels": 90_000}
    spec = VisionSpec.from_folder(folder(tmp_path, image), "qwen2_5_vl")
    assert (spec.min_pixels, spec.max_pixels) == (5000, 90_000)


def test_the_joint_file_wins_as_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    joint = {
        "image_processor": QWEN25 | {"max_pixels": 50_176},
        "video_processor": {"size": {"shortest_edge": 3136, "longest_edge": 40_000}},
    }
    spec = VisionSpec.from_folder(folder(tmp_path, QWEN25, QWEN3_VIDEO, joint), "qwen2_5_vl")
    assert (spec.max_pixels, spec.video_max_pixels) == (50_176, 40_000)
    assert AutoImageProcessor.from_pretrained(tmp_path).size["longest_edge"] == 50_176


def test_option_then_variable_then_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = folder(tmp_path, QWEN25)
    monkeypatch.setenv("MAX_PIXELS", "602112")
    spec = VisionSpec.from_folder(base, "qwen2_5_vl")
    assert (spec.max_pixels, spec.max_pixels_source) == (602_112, "MAX_PIXELS")
    spec = VisionSpec.from_folder(base, "qwen2_5_vl", max_pixels=50_176)
    assert (spec.max_pixels, spec.max_pixels_source) == (50_176, "option")
    monkeypatch.delenv("MAX_PIXELS")
    spec = VisionSpec.from_folder(base, "qwen2_5_vl")
    assert (spec.max_pixels, spec.max_pixels_source) == (12_845_056, "checkpoint")
    monkeypatch.setenv("MAX_PIXELS", "")
    assert VisionSpec.from_folder(base, "qwen2_5_vl").max_pixels_source == "checkpoint"


def test_min_pixels_option_and_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = folder(tmp_path, QWEN25)
    monkeypatch.setenv("MIN_PIXELS", "20000")
    assert VisionSpec.from_folder(base, "qwen2_5_vl").min_pixels == 20_000
    assert VisionSpec.from_folder(base, "qwen2_5_vl", min_pixels=30_000).min_pixels == 30_000
    with pytest.raises(UsageError, match="min_pixels 20000 is above max_pixels 10000"):
        VisionSpec.from_folder(base, "qwen2_5_vl", max_pixels=10_000)


def test_a_limit_below_the_checkpoints_least_lowers_it(tmp_path: Path) -> None:
    spec = VisionSpec.from_folder(folder(tmp_path, QWEN3, QWEN3_VIDEO), "qwen3_vl", max_pixels=10_000)
    assert (spec.min_pixels, spec.max_pixels) == (10_000, 10_000)


def test_a_limit_on_pictures_bounds_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = VisionSpec.from_folder(folder(tmp_path / "2", QWEN25), "qwen2_5_vl", max_pixels=200_704)
    assert spec.video_max_pixels == 200_704
    three = folder(tmp_path / "3", QWEN3, QWEN3_VIDEO)
    spec = VisionSpec.from_folder(three, "qwen3_vl", max_pixels=200_000)
    assert spec.video_frame_pixels == 195 * 32 * 32  # whole tokens
    assert spec.video_max_pixels == 25_165_824
    _, rows, columns = video_grid(spec, 4, 1920, 1080)
    assert rows * columns * 16 * 16 <= 200_000
    monkeypatch.setenv("VIDEO_MAX_PIXELS", "100352")
    assert VisionSpec.from_folder(tmp_path / "2", "qwen2_5_vl").video_max_pixels == 100_352
    assert VisionSpec.from_folder(three, "qwen3_vl").video_frame_pixels == 98 * 32 * 32


def test_a_limit_never_raises_that_of_frames(tmp_path: Path) -> None:
    video = {"size": {"shortest_edge": 3136, "longest_edge": 40_000}}
    base = folder(tmp_path, QWEN25, video)
    assert VisionSpec.from_folder(base, "qwen2_5_vl", max_pixels=200_704).video_max_pixels == 40_000


def test_the_least_pixels_of_frames_give_way(tmp_path: Path) -> None:
    spec = VisionSpec.from_folder(folder(tmp_path, QWEN25), "qwen2_5_vl", max_pixels=50_176)
    assert (spec.video_min_pixels, spec.video_max_pixels) == (50_176, 50_176)


@pytest.mark.parametrize("value", ["many", "-5", "0", "1.5"])
def test_a_senseless_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MAX_PIXELS", value)
    with pytest.raises(UsageError, match="the variable MAX_PIXELS must be a positive whole number"):
        VisionSpec.from_folder(tmp_path, "qwen2_5_vl")
    with pytest.raises(UsageError, match="max_pixels must be a positive whole number"):
        VisionSpec.from_folder(tmp_path, "qwen2_5_vl", max_pixels=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"do_resize": False}, "do_resize false is not supported"),
        ({"do_rescale": False}, "do_rescale false is not supported"),
        ({"do_normalize": False}, "do_normalize false is not supported"),
        ({"resample": 1}, "resample 1 is not supported"),
        ({"rescale_factor": 0}, "rescale_factor must be a positive number"),
        ({"num_frames": 8}, "num_frames is not supported"),
        ({"max_pixels": "big"}, "max_pixels must be a positive whole number"),
        ({"min_pixels": 0}, "min_pixels must be a positive whole number"),
        ({"patch_size": 14.5}, "patch_size must be a positive whole number"),
        ({"image_mean": [0.5]}, "image_mean must be three numbers"),
    ],
)
def test_unusable_settings_are_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SightlineError, match=message) as caught:
        VisionSpec.from_folder(folder(tmp_path, QWEN25 | changed), "qwen2_5_vl")
    assert str(tmp_path / "preprocessor_config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ({"patch_size": 16}, "patch_size is 16 for videos but 14 for images"),
        ({"resample": 2}, "resample is 2 for videos but 3 for images"),
        ({"image_mean": 0.5}, "image_mean is"),
        ({"fps": -1}, "fps must be a positive number"),
        ({"max_frames": 0}, "max_frames must be a positive whole number"),
        ({"do_resize": False}, "do_resize false"),
    ],
)
def test_unusable_video_settings_are_named(tmp_path: Path, video: dict[str, Any], message: str) -> None:
    with pytest.raises(SightlineError, match=message) as caught:
        VisionSpec.from_folder(folder(tmp_path, QWEN25, video), "qwen2_5_vl")
    assert str(tmp_path / "video_preprocessor_config.json") in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "{", '"size"'])
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(SightlineError, match=r"preprocessor_config\.json"):
        VisionSpec.from_folder(tmp_path, "qwen2_vl")


def test_video_settings_are_read(tmp_path: Path) -> None:
    video = {"fps": 1, "min_frames": 2, "max_frames": 32, "cap_pixels_per_frame": False}
    spec = VisionSpec.from_folder(folder(tmp_path, QWEN25, video), "qwen2_vl")
    assert (spec.video_fps, spec.video_min_frames, spec.video_max_frames) == (1.0, 2, 32)
    assert spec.video_total_pixels is None
    video = {"max_video_tokens": 1000}
    spec = VisionSpec.from_folder(folder(tmp_path, QWEN25, video), "qwen2_vl")
    assert spec.video_total_pixels == 900 * 28 * 28
    spec = VisionSpec.from_folder(folder(tmp_path, QWEN3, {"cap_pixels_per_frame": True}), "qwen3_vl")
    assert spec.video_frame_pixels == 768 * 32 * 32


@pytest.mark.parametrize(
    ("model_type", "files"),
    [
        ("qwen2_5_vl", {"image": QWEN25}),
        ("qwen2_vl", {"image": QWEN25, "video": {"max_frames": 16}}),
        ("qwen3_vl", {"image": QWEN3, "video": QWEN3_VIDEO}),
        ("qwen3_vl", {"joint": {"image_processor": QWEN3, "video_processor": QWEN3_VIDEO, "other": 1}}),
        ("qwen3_vl", {"image": QWEN3, "joint": {"processor_class": "Qwen3VLProcessor"}}),
        ("qwen2_5_vl", {}),
        ("qwen3_vl", {}),
    ],
)
@pytest.mark.parametrize("most", [50_176, 200_001, None])
def test_recorded_limits_are_read_back(
    tmp_path: Path, model_type: str, files: dict[str, Any], most: int | None
) -> None:
    """By us, to the very same settings, and by transformers to the same grids and pixels."""
    from transformers import AutoImageProcessor

    base = folder(tmp_path / "base", **files)
    spec = VisionSpec.from_folder(base, model_type, max_pixels=most)
    output = tmp_path / "trained"
    output.mkdir()
    record_limits(spec, base, output)
    again = VisionSpec.from_folder(output, model_type)
    assert again.max_pixels_source == "checkpoint"
    assert again == type(spec)(**{**vars(spec), "max_pixels_source": "checkpoint"})

    theirs = AutoImageProcessor.from_pretrained(output)
    assert theirs.size["shortest_edge"] == spec.min_pixels
    assert theirs.size["longest_edge"] == spec.max_pixels
    picture = PIL.Image.radial_gradient("L").resize((331, 187)).convert("RGB")
    patches, grid = patch_image(again, picture)
    found = theirs(picture)
    assert found["image_grid_thw"].tolist() == [list(grid)] == [list(image_grid(spec, 331, 187))]
    assert (found["pixel_values"] == patches).all()


def test_recording_keeps_the_other_keys(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", QWEN25 | {"custom": [1, 2], "size": {"max_pixels": 9, "min_pixels": 9}})
    before = read(base / "preprocessor_config.json")
    spec = VisionSpec.from_folder(base, "qwen2_5_vl", max_pixels=100_352)
    record_limits(spec, base, tmp_path / "trained")
    written = read(tmp_path / "trained" / "preprocessor_config.json")
    assert written["custom"] == [1, 2]
    assert written["max_pixels"] == written["size"]["longest_edge"] == 100_352
    assert written["min_pixels"] == written["size"]["shortest_edge"] == 3136
    assert "max_pixels" not in written["size"]
    assert {key: written[key] for key in QWEN25 if "pixels" not in key} == {
        key: QWEN25[key] for key in QWEN25 if "pixels" not in key
    }
    assert read(base / "preprocessor_config.json") == before


def test_recording_over_the_base_itself(tmp_path: Path) -> None:
    base = folder(tmp_path, joint={"image_processor": QWEN3, "video_processor": QWEN3_VIDEO, "other": 1})
    spec = VisionSpec.from_folder(base, "qwen3_vl", max_pixels=65_536)
    record_limits(spec, base, base)
    assert read(base / "processor_config.json")["other"] == 1
    assert VisionSpec.from_folder(base, "qwen3_vl").max_pixels == 65_536


def test_a_trained_limit_holds_until_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = folder(tmp_path / "base", QWEN25)
    trained = tmp_path / "trained"
    record_limits(VisionSpec.from_folder(base, "qwen2_5_vl", max_pixels=100_352), base, trained)
    assert VisionSpec.from_folder(trained, "qwen2_5_vl").max_pixels == 100_352
    monkeypatch.setenv("MAX_PIXELS", "200704")
    spec = VisionSpec.from_folder(trained, "qwen2_5_vl")
    assert (spec.max_pixels, spec.max_pixels_source) == (200_704, "MAX_PIXELS")


def test_a_fault_in_the_joint_file_is_found_there(tmp_path: Path) -> None:
    joint = {"image_processor": QWEN25 | {"merge_size": 0}}
    with pytest.raises(SightlineError, match=r"/processor_config\.json: merge_size"):
        VisionSpec.from_folder(folder(tmp_path, QWEN25, joint=joint), "qwen2_vl")
    with pytest.raises(SightlineError, match="must be an object"):
        VisionSpec.from_folder(folder(tmp_path, joint={"video_processor": [1]}), "qwen2_vl")
