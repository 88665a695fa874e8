"""Parts that visit the device, blocks that travel, weights in 8 bits: what is exact is so bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_wan import BRANCHES, denoise, latents, make_model, prompts, timestep
from wan_folder import make_wan_folder

from sightline.errors import SightlineError
from sightline.video.attach import attached
from sightline.video.builders import exact
from sightline.video.cache import StepCache
from sightline.video.components import Components, load_components
from sightline.video.loading.casting import cast_weights
from sightline.video.loading.ferry import Ferry
from sightline.video.loading.visit import visiting
from sightline.video.plan import Plan
from sightline.video.setting import Setting
from sightline.video.sites import Action, Site

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan") / "wan")


def where(model: Any) -> set[str]:
    return {str(value.device) for value in (*model.parameters(), *model.buffers())}


def addresses(model: Any) -> list[int]:
    return [value.data_ptr() for value in (*model.parameters(), *model.buffers())]


def test_a_visit_moves_everything_and_leaves_all_as_it_was(folder: Path) -> None:
    parts = load_components(folder, device="cpu", dtype="bf16")
    for name in ("text_encoder", "transformer", "vae"):
        model = getattr(parts, name)
        before, held = addresses(model), dict(model.named_parameters())
        with visiting(model, META):
            assert where(model) == {"meta"}
            assert len(dict(model.named_parameters())) == len(held)  # tied ones stay tied
        assert addresses(model) == before
        assert all(value is held[key] for key, value in model.named_parameters())
        with pytest.raises(KeyError), visiting(model, META):
            raise KeyError
        assert addresses(model) == before
    assert parts.text_encoder.encoder.embed_tokens.weight is parts.text_encoder.shared.weight


def test_weights_that_two_modules_share_visit_as_one() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with visiting(model, META):
        assert model[1].weight is model[0].weight
    assert model[1].weight is model[0].weight


def test_a_move_that_fails_halfway_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.video.loading import visit

    model, calls = make_model(), []
    before = addresses(model)

    def like(value: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 9:
            raise torch.OutOfMemoryError
        return real(value, data)

    real = visit.like
    monkeypatch.setattr(visit, "like", like)
    text = "WanTransformer3DModel does not fit on meta; use offload group"
    with pytest.raises(SightlineError, match=text), visiting(model, META):
        pass
    assert addresses(model) == before


def test_weights_that_do_not_fit_on_the_device_say_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.video.loading.tensors import Tensors

    def read(self: Tensors, name: str) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Tensors, "read", read)
    with pytest.raises(
        SightlineError, match=r"the text encoder .0.0 GB.* does not fit on cpu .2.00 GiB.*offload"
    ):
        load_components(folder, device="cpu", dtype="fp32")


@contextmanager
def on_a_device(parts: Components, monkeypatch: pytest.MonkeyPatch, offload: str) -> Iterator[list[str]]:
    """Parts that believe in a device that computes nothing; what is asked of it is noted."""
    from sightline.hardware import accelerator

    asked: list[str] = []

    class Stand:
        def empty_cache(self) -> None:
            asked.append("empty_cache")

    monkeypatch.setattr(accelerator, "find", lambda name: Stand())
    parts.device, parts.offload = META, offload
    yield asked


def test_offload_has_a_part_there_only_while_it_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = load_components(folder, device="cpu", dtype="fp32")
    with on_a_device(parts, monkeypatch, "model") as asked:
        for name in ("text_encoder", "transformer", "vae"):
            with parts.on_device(name) as model:
                assert model is getattr(parts, name)
                with parts.on_device(name):  # once more, as a step inside of a generation may ask
                    pass
                assert where(model) == {"meta"}
                others = {"text_encoder", "transformer", "vae"} - {name}
                assert all(where(getattr(parts, other)) == {"cpu"} for other in others)
            assert where(model) == {"cpu"}
        assert asked == ["empty_cache"] * 3
    with on_a_device(parts, monkeypatch, "group"), parts.on_device("transformer") as model:
        assert where(model) == {"cpu"}  # its blocks travel by themselves
    with on_a_device(parts, monkeypatch, "none"), parts.on_device("vae") as model:
        assert where(model) == {"cpu"}


@pytest.mark.parametrize("offload", ["model", "group"])
def test_on_the_cpu_there_is_nothing_to_save(folder: Path, offload: str) -> None:
    parts = load_components(folder, device="cpu", dtype="fp32", offload=offload)
    plain = load_components(folder, device="cpu", dtype="fp32")
    with parts.on_device("transformer") as model, plain.on_device("transformer") as other, torch.no_grad():
        texts = prompts()["cond"]
        one, two = (m(latents(), timestep(3, 9), texts, return_dict=False)[0] for m in (model, other))
    assert torch.equal(one, two)
    assert "forward" not in vars(parts.transformer.blocks[0])


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_blocks_that_travel_compute_the_same_bits(layers: int) -> None:
    expected = denoise(make_model(layers), 3)
    model = make_model(layers)
    ferry = Ferry(model, CPU)
    assert len(ferry._berths) == min(2, layers)
    found = denoise(model, 3)
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in make_model(layers).state_dict().items()
    }


def test_a_block_is_fetched_once_a_step_and_while_the_one_before_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(4)
    ferry = Ferry(model, CPU)
    numbers = {id(block): number for number, block in enumerate(model.blocks)}
    events: list[str] = []
    homes = [[value.data_ptr() for _, _, value in block] for block in ferry._homes]
    copy = ferry._streams.copy

    def noted(berth: Any, sources: list[torch.Tensor]) -> None:
        events.append(f"fetch {homes.index([source.data_ptr() for source in sources])}")
        copy(berth, sources)

    monkeypatch.setattr(ferry._streams, "copy", noted)
    for block in model.blocks:
        block.register_forward_hook(lambda block, given, output: events.append(f"done {numbers[id(block)]}"))
    denoise(model, 1)
    assert events[:8] == ["fetch 0", "fetch 1", "done 0", "fetch 2", "done 1", "fetch 3", "done 2", "fetch 0"]
    assert [event for event in events if event.startswith("fetch")][4:] == [
        f"fetch {n}" for n in (0, 1, 2, 3, 0)
    ]


def test_a_plan_keeps_left_out_blocks_from_travelling(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 4
    row = (Action.COMPUTE, Action.REUSE, Action.COMPUTE, Action.REUSE)
    plan = Plan(Setting(steps), {branch: {Site.parse("blocks[1:4]"): row} for branch in BRANCHES})

    def run(model: Any) -> list[torch.Tensor]:
        cache = StepCache(plan)
        with attached(model, cache):
            return denoise(model, steps, cache.step)

    expected = run(make_model(5))
    model = make_model(5)
    ferry = Ferry(model, CPU)
    fetched: list[int] = []
    real = ferry._fetched

    def noted(number: int, busy: Any) -> Any:
        if all(berth.holds != number for berth in ferry._berths):
            fetched.append(number)
        return real(number, busy)

    monkeypatch.setattr(ferry, "_fetched", noted)
    found = run(model)
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
    # Two steps of two branches are whole; in the others blocks 1 to 3 stay where they are, but for the one that was
    # on its way when it turned out not to be needed.
    assert len(fetched) < 2 * 2 * 5 + 2 * 2 * 4
    again = denoise(model, steps)  # and detaching left the travelling as it was
    assert all(torch.equal(one, two) for one, two in zip(denoise(make_model(5), steps), again, strict=True))


def test_a_block_that_fails_gives_its_place_back() -> None:
    model = make_model(3)
    Ferry(model, CPU)
    before = addresses(model)
    with pytest.raises(RuntimeError), torch.no_grad():
        model(latents(), timestep(0, 3), torch.zeros(1, 5, 7), return_dict=False)
    assert addresses(model) == before
    expected = denoise(make_model(3), 2)
    assert all(torch.equal(one, two) for one, two in zip(expected, denoise(model, 2), strict=True))


def test_what_is_not_a_block_is_on_the_device() -> None:
    model = make_model(3)
    Ferry(model, META)
    for name, child in model.named_children():
        assert where(child) <= ({"cpu"} if name == "blocks" else {"meta"}), name
    assert model.scale_shift_table.device == META


def test_blocks_that_differ_cannot_take_turns() -> None:
    model = make_model(2)
    model.blocks[1].ffn.net[2] = torch.nn.Linear(32, 24, bias=False)
    with pytest.raises(SightlineError, match="block 1 of the transformer is not like block 0.*offload model"):
        Ferry(model, CPU)


class _Recorded:
    """A device's module (`torch.cuda`, `torch.npu`) that notes in which order streams are told what."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.side = self.stream_of("side")
        self.main = self.stream_of("main")

    def stream_of(self, name: str) -> Any:
        outer = self

        class Stream:
            count = 0

            def wait_event(self, event: str) -> None:
                outer.log.append(f"{name} waits for {event}")

            def record_event(self) -> str:
                Stream.count += 1
                outer.log.append(f"{name} marks {name}{Stream.count}")
                return f"{name}{Stream.count}"

        return Stream()

    def Stream(self, device: Any) -> Any:
        return self.side

    def current_stream(self, device: Any) -> Any:
        return self.main

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.log.append("copy")
        yield


def test_on_a_device_copies_and_computing_wait_for_one_another() -> None:
    model = make_model(3)
    expected = denoise(make_model(3), 1)
    ferry = Ferry(model, CPU)
    recorded = _Recorded()
    ferry._streams.module, ferry._streams.side = recorded, recorded.side
    for number, block in enumerate(model.blocks):
        block.attn1.register_forward_pre_hook(lambda *_, number=number: recorded.log.append(f"run {number}"))
    found = denoise(model, 1)
    assert torch.equal(found[0], expected[0])
    assert recorded.log[:24] == [
        # Blocks 0 and 1 wait for what was queued before: their memory may have been another's.
        "main marks main1", "side waits for main1", "copy", "side marks side1", "main waits for side1",
        "main marks main2", "side waits for main2", "copy", "side marks side2", "run 0", "main marks main3",
        "main waits for side2", "side waits for main3",  # block 2 goes where block 0 was, when that one is done
        "copy", "side marks side3", "run 1", "main marks main4",
        "main waits for side3", "side waits for main4",
        "copy", "side marks side4", "run 2", "main marks main5",
        "main waits for side4",
    ]  # fmt: skip


def test_cast_weights_take_half_the_memory_and_stay_near(folder: Path) -> None:
    parts = load_components(folder, device="cpu", dtype="fp32", cast_weights=True)
    plain = load_components(folder, device="cpu", dtype="fp32")
    assert parts.transformer.blocks[0].ffn.net[2].weight.dtype is torch.float8_e4m3fn
    assert parts.transformer.patch_embedding.weight.dtype is torch.float32
    one, two = denoise(parts.transformer, 2)[-1], denoise(plain.transformer, 2)[-1]
    assert 0 < (one - two).norm() / two.norm() < 0.2
    # Bit for bit the same with blocks that travel.
    Ferry(parts.transformer, CPU)
    assert torch.equal(denoise(parts.transformer, 2)[-1], one)
    assert torch.equal(denoise(parts.transformer, 2)[-1], one)
    assert parts.transformer.blocks[0].ffn.net[2].weight.dtype is torch.float8_e4m3fn


def test_a_device_without_8_bits_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.ones

    class Unable:
        def to(self, dtype: torch.dtype) -> Any:
            raise RuntimeError("not implemented for Float8_e4m3fn")

    monkeypatch.setattr(torch, "ones", lambda *size, **options: Unable())
    with pytest.raises(SightlineError, match="npu:0 does not cast to float8_e4m3fn.*offload model or group"):
        cast_weights(make_model(), torch.bfloat16, _named("npu:0"))
    monkeypatch.setattr(torch, "ones", real)


def _named(name: str) -> Any:
    class Device:
        def __str__(self) -> str:
            return name

    return Device()


def test_tiles_are_asked_for(folder: Path) -> None:
    assert load_components(folder, device="cpu", dtype="fp32", tile_vae=True).vae.use_tiling
    assert not load_components(folder, device="cpu", dtype="fp32").vae.use_tiling


def test_a_text_encoder_with_a_device_of_its_own_stays_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = load_components(folder, device="cpu", dtype="fp32", text_encoder_device="cpu")
    assert parts.text_device == CPU
    with on_a_device(parts, monkeypatch, "model"):
        with parts.on_device("text_encoder") as encoder:
            assert where(encoder) == {"cpu"}
        with parts.on_device("vae") as vae:
            assert where(vae) == {"meta"}


def test_all_helpers_together_make_the_same_video(folder: Path) -> None:
    """With our operators in the blocks, in inference mode, and with a plan that leaves blocks out."""
    from sightline.video.wan_blocks import use_operators

    row = (Action.COMPUTE, Action.REUSE, Action.COMPUTE)
    plan = Plan(Setting(3), {branch: {Site.parse("blocks[1:3]"): row} for branch in BRANCHES})

    def run(**options: Any) -> torch.Tensor:
        parts = load_components(folder, device="cpu", dtype="fp32", **options)
        if options.get("offload") == "group":  # which a CPU does not need
            Ferry(parts.transformer, CPU)
        use_operators(parts.transformer, opt_mode="static")
        cache = StepCache(plan)
        with torch.inference_mode(), visiting(parts.vae, CPU) as vae:
            with attached(parts.transformer, cache):
                found = denoise(parts.transformer, 3, cache.step)[-1]
            return vae.decode(found, return_dict=False)[0]

    assert torch.equal(run(), run(offload="group"))
    assert torch.equal(run(cast_weights=True), run(cast_weights=True, offload="group"))
    assert torch.equal(run(), run(tile_vae=True))  # it is smaller than a tile


def test_an_exact_plan_and_a_visit_go_together(folder: Path) -> None:
    parts = load_components(folder, device="cpu", dtype="fp32")
    expected = denoise(parts.transformer, 3)
    cache = StepCache(exact(Setting(3)))
    with visiting(parts.transformer, CPU), attached(parts.transformer, cache):
        found = denoise(parts.transformer, 3, cache.step)
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
