"""The library surface: seeds, streams, stops, limits, and errors with their numbers."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from sightline import LLM, SamplingParams, process_vision_info
from sightline.engine.inputs import read_messages, read_prompt
from sightline.errors import SightlineError, UsageError


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> LLM:
    return LLM(
        tiny_folder, dtype="fp32", device="cpu", max_num_seqs=3, limit_mm_per_prompt={"image": 2, "video": 0}
    )


def text_of(output: Any) -> str:
    return output.outputs[0].text


def test_the_example_of_vllm_users(tiny_folder: Path) -> None:
    llm = LLM(model=tiny_folder, tensor_parallel_size=1, limit_mm_per_prompt={"image": 10, "video": 10})
    sampling_params = SamplingParams(
        temperature=0.1, top_p=0.001, repetition_penalty=1.05, max_tokens=8, stop_token_ids=[]
    )
    image = Pillow.new("RGB", (64, 64), "red")
    messages = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]}
    ]
    prompt = llm.get_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    image_inputs, video_inputs = process_vision_info(messages)
    assert not video_inputs
    inputs = [{"prompt": prompt, "multi_modal_data": {"image": image_inputs}}]
    outputs = llm.generate(inputs, sampling_params=sampling_params)
    assert isinstance(outputs[0].outputs[0].text, str)
    assert outputs[0].finished
    assert outputs[0].vision_tokens == 4
    assert outputs[0].metrics.time_to_first_token > outputs[0].metrics.preprocess > 0
    assert llm.chat(messages, sampling_params)[0].prompt_token_ids == outputs[0].prompt_token_ids


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_a_text_that_is_far_too_long_is_refused_by_its_beginning(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lengths: list[int] = []
    preparer: Any = llm.engine._preparer
    tokenizer = preparer._model.tokenizer

    def watched(text: Any, *given: Any, **options: Any) -> Any:
        lengths.append(len(text) if isinstance(text, str) else sum(map(len, text)))
        return tokenizer(text, *given, **options)

    monkeypatch.setattr(preparer, "_model", SimpleNamespace(tokenizer=watched))
    text = "a1 " * 1_000_000
    prompt: Any = text if kind == "text" else read_messages([{"role": "user", "content": text}])
    with pytest.raises(UsageError, match=f"many more than the {llm.max_model_len} tokens"):
        llm.engine.add(prompt, SamplingParams(max_tokens=1)).result(60)
    assert lengths == [8 * llm.max_model_len]


def test_a_long_text_of_few_tokens_is_no_long_prompt(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", max_model_len=64)
    word = max(llm.get_tokenizer().get_added_vocab(), key=len)
    assert len(word) > 8 * 64 / 63
    outputs = llm.generate(word * 63, SamplingParams(max_tokens=1))
    assert len(outputs[0].prompt_token_ids) == 63
    with pytest.raises(UsageError, match="64 tokens"):
        llm.generate(word * 64, SamplingParams(max_tokens=1))
    llm.close()


def test_a_seed_gives_the_same_answer_whatever_runs_beside_it(llm: LLM) -> None:
    seeded = SamplingParams(temperature=1.5, max_tokens=10, seed=7)
    alone = text_of(llm.generate("a red", seeded)[0])
    others = [SamplingParams(temperature=2.0, max_tokens=length) for length in (3, 12, 5)]
    outputs = llm.generate(["is it", "what " * 30, "a red", "?"], [others[0], others[1], seeded, others[2]])
    assert text_of(outputs[2]) == alone
    again = llm.generate(["a red"] * 3, SamplingParams(temperature=1.5, max_tokens=10))
    assert len({text_of(output) for output in again}) > 1


def test_n_answers(llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, n=4, max_tokens=6, seed=1)
    output = llm.generate("a", params)[0]
    assert [answer.index for answer in output.outputs] == [0, 1, 2, 3]
    assert len({answer.text for answer in output.outputs}) > 1
    assert output.completion_tokens == sum(len(answer.token_ids) for answer in output.outputs)
    assert [answer.text for answer in llm.generate("a", params)[0].outputs] == [
        a.text for a in output.outputs
    ]


def test_answers_to_one_prompt_are_not_those_to_the_next(llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, n=2, max_tokens=12, ignore_eos=True)
    first, second = llm.generate(["a", "a"], params)
    texts = {tuple(answer.token_ids) for answer in [*first.outputs, *second.outputs]}
    assert len(texts) == 4


@pytest.mark.parametrize("n", [1, 5])
def test_streams_say_what_generate_says(llm: LLM, n: int) -> None:
    params = SamplingParams(temperature=1.2, seed=3, max_tokens=20, n=n, stop=["e", "zz"])
    whole = llm.generate("what shape", params)[0].outputs
    texts, reasons = [""] * n, [None] * n
    for delta in llm.stream("what shape", params):
        assert reasons[delta.index] is None
        texts[delta.index] += delta.text
        reasons[delta.index] = delta.finish_reason
    assert texts == [answer.text for answer in whole]
    assert reasons == [answer.finish_reason for answer in whole]


def test_a_conversation_and_a_list_of_them(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=3)
    one = read_messages([{"role": "user", "content": "a"}])
    expected = text_of(llm.chat([{"role": "user", "content": "a"}], params)[0])
    assert [text_of(output) for output in llm.chat(one, params)] == [expected]
    assert [text_of(output) for output in llm.chat([one, one], params)] == [expected] * 2


def test_abort_from_another_thread(llm: LLM) -> None:
    stream = llm.stream("a", SamplingParams(temperature=0, max_tokens=1500, ignore_eos=True))
    reasons = []
    for count, delta in enumerate(stream):
        if count == 2:
            aborter = threading.Thread(target=stream.abort)
            aborter.start()
            aborter.join()
        reasons.append(delta.finish_reason)
    assert reasons[-1] == "abort"
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert len(stream.output.outputs[0].token_ids) < 1500
    assert llm.generate("a", SamplingParams(max_tokens=2))[0].finished


def test_threads_share_the_engine(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=15)
    expected = text_of(llm.generate("a red circle", params)[0])
    found: list[str] = []

    def ask() -> None:
        found.append("".join(delta.text for delta in llm.stream("a red circle", params)))
        found.append(text_of(llm.generate("a red circle", params)[0]))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 12


def test_a_generator_is_read_just_ahead_of_the_engine(llm: LLM) -> None:
    drawn = 0
    ended = []

    def prompts() -> Iterator[Any]:
        nonlocal drawn
        for index in range(30):
            drawn += 1
            finished = sum(llm.engine.stats().totals.finished.values()) - before
            ended.append((drawn, finished))
            yield {
                "prompt": "<|image_pad|>?",
                "multi_modal_data": {"image": Pillow.new("RGB", (64, 64 + index))},
            }

    before = sum(llm.engine.stats().totals.finished.values())
    outputs = llm.generate(prompts(), SamplingParams(temperature=0, max_tokens=3))
    assert len(outputs) == drawn == 30
    assert all(taken - finished <= llm.window + 1 for taken, finished in ended)
    assert [output.request_id for output in outputs] == sorted((o.request_id for o in outputs), key=int)
    assert all(output.finished and output.vision_tokens for output in outputs)


def test_a_bad_prompt_of_a_list_is_found_before_anything_is_computed(llm: LLM, tmp_path: Path) -> None:
    before = llm.engine.stats().totals.steps
    missing = {"prompt": "<|image_pad|>", "multi_modal_data": {"image": str(tmp_path / "none.png")}}
    with pytest.raises(SightlineError, match=r"prompts\[2\]: .*none\.png"):
        llm.generate(["a", "b", missing], SamplingParams(max_tokens=3))
    assert llm.engine.stats().totals.steps == before
    with pytest.raises(UsageError, match="2 prompts but 1 sampling_params"):
        llm.generate(["a", "b"], [SamplingParams()])


def test_a_bad_prompt_of_a_generator_ends_the_others(llm: LLM) -> None:
    with pytest.raises(SightlineError, match="the prompt is empty"):
        llm.generate((text for text in ("a", "")), SamplingParams(max_tokens=500, ignore_eos=True))
    until = time.monotonic() + 30
    while llm.engine.stats().running:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_generator_keeps_no_request_that_is_answered(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[weakref.ref[Any]] = []
    most = 0
    prepare = llm._preparer.prepare

    def watched(*given: Any, **options: Any) -> Any:
        request, preparation = prepare(*given, **options)
        requests.append(weakref.ref(request))
        return request, preparation

    def prompts() -> Iterator[str]:
        nonlocal most
        for number in range(20):
            gc.collect()
            most = max(most, sum(request() is not None for request in requests))
            yield "what " * (number % 4 + 1)

    monkeypatch.setattr(llm._preparer, "prepare", watched)
    assert len(llm.generate(prompts(), SamplingParams(max_tokens=3))) == 20
    assert len(requests) == 20
    assert most <= llm.window + 1


def test_settings_of_a_generator_are_as_many_as_its_prompts(llm: LLM) -> None:
    with pytest.raises(UsageError, match="at least 2 prompts but 1 sampling_params"):
        llm.generate((text for text in "abc"), [SamplingParams(max_tokens=2)])
    with pytest.raises(UsageError, match="1 prompts but more sampling_params"):
        llm.generate((text for text in "a"), [SamplingParams(max_tokens=2)] * 2)


def test_threads_wait_for_one_another_where_the_engine_is_full(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", max_num_seqs=3, max_waiting=3)
    faults: list[BaseException] = []
    begun = threading.Barrier(3)

    def prompts() -> Iterator[str]:
        for number in range(8):
            yield "a red"
            if not number:  # each has one open, and each wants six
                begun.wait(20)

    def ask() -> None:
        try:
            assert len(llm.generate(prompts(), SamplingParams(max_tokens=4))) == 8
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    llm.close()


def test_numbers_of_a_request(llm: LLM) -> None:
    prompt = "what shape is in the image? a red circle. " * 4
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=1)
    first = llm.generate(prompt, params)[0]
    metrics = first.metrics
    assert metrics.total >= metrics.time_to_first_token > metrics.preprocess > 0
    parts = metrics.preprocess + metrics.queue + metrics.encode + metrics.prefill + metrics.decode_time
    assert parts <= metrics.total * 1.01
    assert first.prompt_logprobs is not None
    assert first.prompt_logprobs[0] is None
    assert len(first.prompt_logprobs) == len(first.prompt_token_ids)
    for token, found in zip(first.prompt_token_ids[1:], first.prompt_logprobs[1:], strict=True):
        assert found is not None
        assert token in found
    assert first.outputs[0].logprobs is not None
    assert len(first.outputs[0].logprobs) == 4
    again = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=4))[0]
    assert again.num_cached_tokens >= llm.settings.block_size
    assert again.outputs[0].token_ids == first.outputs[0].token_ids


def test_an_adapter_answers_as_its_merged_model(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from sightline.checkpoints.merge import merge
    from sightline.models.families import FAMILIES

    base = FAMILIES["qwen2_5_vl"].model_class().from_pretrained(tiny_folder)
    targets = r".*language_model.*(q_proj|up_proj)"
    config = LoraConfig(target_modules=targets, modules_to_save=["merger"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    merge(tiny_folder, tmp_path / "adapter", tmp_path / "merged")
    params = SamplingParams(temperature=0, max_tokens=12)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": Pillow.new("RGB", (80, 60), "red")}, "what?"]}
    ]
    answers = [
        LLM(folder, adapter=adapter, dtype="fp32", device="cpu")
        .chat(messages, params)[0]
        .outputs[0]
        .token_ids
        for folder, adapter in (
            (tiny_folder, tmp_path / "adapter"),
            (tmp_path / "merged", None),
            (tiny_folder, None),
        )
    ]
    assert answers[0] == answers[1] != answers[2]


def test_stop_text_and_lengths(llm: LLM) -> None:
    free = llm.generate("a", SamplingParams(temperature=0, max_tokens=12))[0].outputs[0]
    assert (free.finish_reason, len(free.token_ids)) == ("length", 12)
    stop = free.text[3:6]
    answer = llm.generate("a", SamplingParams(temperature=0, max_tokens=12, stop=stop))[0].outputs[0]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert answer.text == free.text[: free.text.index(stop)]
    first = free.token_ids[0]
    late = SamplingParams(temperature=0, max_tokens=6, min_tokens=4, stop_token_ids=[first])
    answer = llm.generate("a", late)[0].outputs[0]
    assert first not in answer.token_ids[:4]


def test_a_dropped_engine_gives_its_memory_back(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu")
    llm.generate("a", SamplingParams(max_tokens=2))
    stream = llm.stream("a", SamplingParams(max_tokens=1900, ignore_eos=True))
    module = weakref.ref(llm.model.module)
    del llm
    gc.collect()
    assert stream.result(30).outputs[0].finish_reason == "abort"
    del stream
    gc.collect()
    assert module() is None


def test_max_model_len(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", max_model_len=20)
    output = llm.generate([[5] * 15], SamplingParams(temperature=0, max_tokens=500, ignore_eos=True))[0]
    assert len(output.outputs[0].token_ids) == 5
    assert output.outputs[0].finish_reason == "length"
    with pytest.raises(UsageError, match=r"25 tokens \(0 of them.*max_model_len 20"):
        llm.generate([[5] * 25], SamplingParams())


def test_the_cache_bounds_the_length(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        UsageError, match=r"max_model_len 2048 needs .* kv_cache_memory_bytes .* lower max_model_len to"
    ):
        LLM(tiny_folder, dtype="fp32", device="cpu", max_model_len=2048, kv_cache_memory_bytes="100KiB")
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", kv_cache_memory_bytes="100KiB")
    assert 20 < llm.max_model_len < 2048
    assert f"so max_model_len is that, not {2048:,}" in capsys.readouterr().err
    output = llm.generate("a", SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))[0]
    assert len(output.prompt_token_ids) + output.completion_tokens == llm.max_model_len


def test_pictures_that_cannot_fit_are_not_decoded(tiny_folder: Path, tmp_path: Path) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", max_model_len=16)
    path = tmp_path / "cut.png"
    Pillow.effect_noise((280, 280), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:5000])  # its header is whole
    parts = [{"type": "image", "image": str(path)}, {"type": "text", "text": "a"}]
    with pytest.raises(UsageError, match=r"images and videos take 16 tokens.*max_model_len 16"):
        llm.chat([{"role": "user", "content": parts}])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tensor_parallel_size": 4}, "tensor_parallel_size is 4"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_model_len": 10**9}, "between 2 and the model's 2048"),
        ({"mm_processor_kwargs": {"fps": 2}}, "fps"),
        ({"limit_mm_per_prompt": {"sound": 1}}, "sound"),
        ({"limit_mm_per_prompt": {"image": -1}}, "image"),
        ({"device": "abacus"}, "abacus"),
        ({"adapter": "/nowhere"}, "nowhere"),
    ],
)
def test_wrong_arguments(tiny_folder: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SightlineError, match=words):
        LLM(tiny_folder, **options)


def test_pixel_limits_of_a_prompt(llm: LLM) -> None:
    image = Pillow.new("RGB", (112, 112))
    prompt = {"prompt": "<|vision_start|><|image_pad|><|vision_end|>", "multi_modal_data": {"image": image}}
    params = SamplingParams(max_tokens=1)
    small = {**prompt, "mm_processor_kwargs": {"max_pixels": 56 * 56}}
    assert [output.vision_tokens for output in llm.generate([prompt, small], params)] == [16, 4]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty"),
        (
            {"prompt": "no place", "multi_modal_data": {"image": Pillow.new("RGB", (9, 9))}},
            "0 <|image_pad|> for 1",
        ),
        ({"prompt": "<|image_pad|>"}, "1 <|image_pad|> for 0"),
        (
            {"prompt": "<|image_pad|>" * 2, "multi_modal_data": {"image": [Pillow.new("RGB", (99, 99))] * 2}},
            "side by side",
        ),
        (
            {"prompt": "<|image_pad|>" * 3, "multi_modal_data": {"image": [Pillow.new("RGB", (9, 9))] * 3}},
            "3 images",
        ),
        (
            {"prompt": "<|video_pad|>", "multi_modal_data": {"video": [[Pillow.new("RGB", (9, 9))] * 2]}},
            "1 videos",
        ),
        ({"prompt": "a", "multi_modal_data": {"audio": 1}}, "audio"),
        ({"prompt": "a", "multi_modal_data": {"image": np.zeros((4, 4))}}, "shape (4, 4)"),
        ({"multi_modal_data": {}}, "needs"),
        (7.5, "float"),
        ([5, 10**6], "1000000"),
        ([-1], "-1"),
    ],
)
def test_wrong_prompts(llm: LLM, prompt: Any, words: str) -> None:
    with pytest.raises(SightlineError) as raised:
        llm.generate([prompt], SamplingParams(max_tokens=1))
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "messages",
    [[], "hello", [{"content": "a"}], [{"role": "user"}], [{"role": "user", "content": [{"type": "sound"}]}]],
)
def test_wrong_messages(llm: LLM, messages: Any) -> None:
    with pytest.raises(SightlineError):
        llm.chat([messages], SamplingParams(max_tokens=1))


def test_arrays_become_pictures() -> None:
    red = np.zeros((6, 8, 3), np.uint8)
    red[..., 0] = 255
    for array in (red, np.moveaxis(red, -1, 0), red.astype(np.float32)):
        image = read_prompt({"prompt": "?", "multi_modal_data": {"image": array}}).media.images[0].source
        assert (image.size, image.getpixel((3, 3))) == ((8, 6), (255, 0, 0))
    frames = np.stack([red] * 4)
    clip = read_prompt({"prompt": "?", "multi_modal_data": {"video": (frames, {"fps": 3.0})}}).media.videos[0]
    assert (len(clip.source), clip.fps) == (4, 3.0)
    half = {"fps": 30.0, "frames_indices": [0, 15, 30, 45]}
    clip = read_prompt({"prompt": "?", "multi_modal_data": {"video": (frames, half)}}).media.videos[0]
    assert clip.fps == 2.0
    several = read_prompt({"prompt": "?", "multi_modal_data": {"video": [frames, frames[:2]]}}).media.videos
    assert [len(video.source) for video in several] == [4, 2]


def test_messages_of_many_kinds() -> None:
    content = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:,x"}},
        {"type": "image_url", "image_url": "data:,y"},
        {"type": "video", "video": "clip.mp4", "fps": 1.0},
    ]
    conversation = read_messages([{"role": "system", "content": "s"}, {"role": "user", "content": content}])
    assert [image.source for image in conversation.images] == ["data:,x", "data:,y"]
    assert conversation.videos[0].fps == 1.0


def test_defaults_come_from_the_checkpoint(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**settings, "temperature": 0.5, "top_k": 3, "do_sample": True}))
    llm = LLM(folder, dtype="fp32", device="cpu")
    params = llm.get_default_sampling_params()
    assert (params.temperature, params.top_k, params.top_p) == (0.5, 3, 1.0)
    path.write_text(json.dumps({**settings, "top_k": 1.5}))
    with pytest.raises(SightlineError, match=r"generation_config\.json: top_k must be a whole number"):
        llm.get_default_sampling_params()


@pytest.mark.parametrize(
    ("prompt", "params", "words"),
    [
        ("a", {"temperature": 0}, "not dict"),
        (["a"], [3], "not int"),
        (["a", "b"], [SamplingParams(), None], "not NoneType"),
        (
            {"prompt": "a", "multi_modal_data": 3},
            None,
            "multi_modal_data of a prompt must be a dict, not int",
        ),
        ({"prompt": "a", "mm_processor_kwargs": "x"}, None, "must be a dict, not str"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(llm: LLM, prompt: Any, params: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        llm.generate(prompt, params)


@pytest.mark.parametrize(
    "arguments", [{"limit_mm_per_prompt": 1}, {"mm_processor_kwargs": "x"}, {"adapter": -1}]
)
def test_settings_of_the_wrong_type_are_named(tiny_folder: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be"):
        LLM(tiny_folder, **arguments)


def test_an_engine_of_another_process_says_so(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.engine, "_process", -1)
    with pytest.raises(SightlineError, match="made in another process"):
        llm.generate("a", SamplingParams(max_tokens=1))
