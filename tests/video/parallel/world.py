"""Four processes joined by gloo, which run every case once and write down what each rank found.

Started as a program by the fixture `world`, so that torch is imported once and the ranks are forks of that process.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.errors import SightlineError
from sightline.video.attach import attached
from sightline.video.builders import exact, fixed_interval, uncond_only
from sightline.video.cache import StepCache
from sightline.video.parallel.agree import as_said, require_same
from sightline.video.parallel.exchange import Exchange
from sightline.video.parallel.launch import joined
from sightline.video.parallel.layout import Layout, arranged
from sightline.video.parallel.ulysses import cut
from sightline.video.plan import Plan
from sightline.video.setting import Setting
from sightline.video.sites import Action, Site
from sightline.video.wan_blocks import use_operators

RANKS = 4
STEPS = 6
HEADS, HEAD_DIM, LAYERS = 5, 12, 3
SHAPE = (1, 4, 5, 10, 10)  # 125 tokens: divide by neither 2, 3 nor 4, as do the heads
TOKENS = 125

# Name -> (ranks of the world, ulysses, cfg).
LAYOUTS = {
    "U2": ((0, 1), 2, 1),
    "CFG2": ((2, 3), 1, 2),
    "U3": ((0, 1, 2), 3, 1),
    "U4": ((0, 1, 2, 3), 4, 1),
    "CFG2xU2": ((0, 1, 2, 3), 2, 2),
}
_SETTING = Setting(steps=STEPS)
PLANS: dict[str, Plan | None] = {
    "none": None,
    "range": fixed_interval(_SETTING, 2, start=1, site=Site.parse("blocks[1:3]")),
    "attention": fixed_interval(_SETTING, 2, start=1, site=Site.parse("attention[0:3]")),
    "output": uncond_only(_SETTING, 2, start=1),
    "extrapolation": fixed_interval(
        _SETTING, 3, start=1, site=Site.parse("blocks[0:2]"), skipped=Action.EXTRAPOLATE
    ),
}


def make_model(heads: int = HEADS, seed: int = 0, *, operators: bool = False) -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    model = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=LAYERS,
        rope_max_seq_len=32,
    )
    # At its creation a block changes next to nothing; these move things.
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    if operators:
        use_operators(model, opt_mode="static")
    return model.eval()


def noise(seed: int = 1, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texts() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {branch: torch.randn(1, 5, 16, generator=generator) for branch in ("cond", "uncond")}


@torch.no_grad()
def generate(model: Any, plan: Plan | None, layout: Layout, *, cache_first: bool = True) -> torch.Tensor:
    """Euler's method with guidance 3, cut and cached in either order -> the latents."""
    share = layout.cfg == 1
    cache = StepCache(exact(_SETTING) if plan is None else plan, share=share)
    with _both(model, cache, layout, cache_first):
        x, mine = noise(), layout.mine(texts())
        for step in range(STEPS):
            found = {}
            for branch, text in mine.items():
                with cache.step(step, branch):
                    found[branch] = model(x, torch.tensor([999.0 - 150 * step]), text, return_dict=False)[0]
            velocity = layout.gather_branches(found)
            x = x - (velocity["uncond"] + 3 * (velocity["cond"] - velocity["uncond"])) / STEPS
    return x


@contextmanager
def _both(model: Any, cache: StepCache, layout: Layout, cache_first: bool) -> Iterator[None]:
    if cache_first:
        with attached(model, cache):
            spread = cut(model, layout)
            yield
            spread.undo()
    else:
        spread = cut(model, layout)
        with attached(model, cache):
            yield
        spread.undo()


class Sent(TorchDispatchMode):
    """Every collective of torch.distributed, with the elements that this rank put in."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith(("c10d", "_c10d")):
            given = args[0] if "alltoall" not in name else args[1]
            if "allgather" in name:
                given = args[1]
            tensors = given if isinstance(given, (list, tuple)) else [given]
            self.calls.append((name, sum(each.numel() for each in tensors if isinstance(each, torch.Tensor))))
        return func(*args, **(kwargs or {}))


def refusal(call: Callable[[], Any]) -> str:
    """What it is refused with, and as which error."""
    try:
        call()
    except SightlineError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def work(rank: int) -> dict[str, Any]:
    layouts: dict[str, Layout] = {}
    for name, (members, ulysses, cfg) in LAYOUTS.items():
        layout = arranged(members, ulysses, cfg)
        assert (layout is not None) == (rank in members)
        if layout is not None:
            layouts[name] = layout
    found: dict[str, Any] = {}
    for operators in (False, True):
        model = make_model(operators=operators)
        for name, layout in layouts.items():
            for number, (plan_name, plan) in enumerate(PLANS.items()):
                if operators and plan_name in ("attention", "output"):
                    continue
                key = f"{name} {plan_name}" + (" operators" if operators else "")
                found[key] = generate(model, plan, layout, cache_first=bool(number % 2))
    with Sent() as watched:
        found["undone"] = generate(model, None, Layout())
    found["sent undone"] = watched.calls
    if "U3" in layouts:
        found["sent uneven"] = sent(HEADS, noise(), layouts["U3"])
        found["exchange"] = there_and_back(layouts["U3"])
    found["sent even"] = sent(4, noise(shape=(1, 4, 4, 8, 8)), layouts["U4"])
    found["sent guidance"] = sent_by_guidance(layouts["CFG2xU2"])
    found["times of tokens"] = times_of_tokens(layouts["U4"])
    if "U2" in layouts:  # tracing costs each rank seconds
        found["compiled"] = compiled(layouts["U2"])
    found["refusals"] = refusals(rank, layouts["U4"])
    found["said"] = {name: as_said(layout, rank) for name, layout in layouts.items()}
    found["branches"] = {name: layout.branches for name, layout in layouts.items()}
    return found


@torch.no_grad()
def sent(heads: int, x: torch.Tensor, layout: Layout) -> list[tuple[str, int]]:
    model = make_model(heads)
    spread = cut(model, layout)
    with Sent() as log:
        model(x, torch.tensor([500.0]), texts()["cond"])
    spread.undo()
    return log.calls


def sent_by_guidance(layout: Layout) -> list[tuple[str, int]]:
    with Sent() as log:
        layout.gather_branches({branch: noise() for branch in layout.branches})
    return log.calls


def there_and_back(layout: Layout) -> dict[str, bool]:
    """A batch of two in several dtypes: each head sees all tokens in order, and everything comes home."""
    same = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        exchange = Exchange(layout.everyone, layout.rank, layout.world, 5)
        exchange.rows = (3, 2, 2)
        whole = torch.arange(2 * 7 * 5 * 4).view(2, 7, 5, 4)
        begin, end = ((0, 3), (3, 5), (5, 7))[layout.rank]
        first, last = ((0, 2), (2, 4), (4, 5))[layout.rank]
        mine = whole[:, begin:end].to(dtype)
        query, key, value = exchange.to_heads(mine, mine + 1, -mine)
        local = whole[:, :, first:last].to(dtype)
        same[str(dtype)] = (
            torch.equal(query, local)
            and torch.equal(key, local + 1)
            and torch.equal(value, -local)
            and torch.equal(exchange.to_tokens(query), mine)
        )
    return same


@torch.no_grad()
def times_of_tokens(layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """A time for each token, as Wan2.2's smallest model has -> cut, whole."""
    model = make_model()
    time = torch.linspace(0, 999, TOKENS)[None]
    whole = model(noise(), time, texts()["cond"], return_dict=False)[0]
    spread = cut(model, layout)
    parts = model(noise(), time, texts()["cond"], return_dict=False)[0]
    spread.undo()
    return parts, whole


@torch.no_grad()
def compiled(layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """A block traced whole, without a break at the exchanges -> compiled, eager."""
    model = make_model()
    spread = cut(model, layout)
    time, text = torch.tensor([500.0]), texts()["cond"]
    plain = model(noise(), time, text, return_dict=False)[0]
    model.blocks[1].compile(backend="eager", fullgraph=True)
    fast = model(noise(), time, text, return_dict=False)[0]
    spread.undo()
    return fast, plain


def refusals(rank: int, layout: Layout) -> dict[str, str]:
    model = make_model(heads=3)
    found = {"heads": refusal(lambda: cut(model, layout))}
    model = make_model()
    spread = cut(model, layout)
    time, text = torch.tensor([500.0]), texts()["cond"]
    with torch.no_grad():
        found["tokens"] = refusal(lambda: model(noise(shape=(1, 4, 1, 2, 4)), time, text))
    found["gradient"] = refusal(lambda: model(noise(), time, text))
    found["twice"] = refusal(lambda: cut(model, layout))
    spread.undo()
    same = {"seed": "1", "weights": "a" * 64, "plan": "none"}
    found["same"] = refusal(lambda: require_same(layout, same))
    other = same | ({"seed": "3", "weights": "b" * 64} if rank == 2 else {})
    found["different"] = refusal(lambda: require_same(layout, other))
    return found


def main(folder: Path) -> int:
    # Ranks find one another through a store that is in none of them, as under torchrun. It begins after the forks, for
    # it has threads.
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    os.environ.update(WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    children = []
    for rank in range(RANKS):
        child = os.fork()
        if child == 0:
            os._exit(_run(rank, folder))
        children.append(child)
    store = dist.TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
    )
    failed = any(os.waitpid(child, 0)[1] for child in children)
    del store
    return int(failed)


def _run(rank: int, folder: Path) -> int:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    faulthandler.dump_traceback_later(150, exit=True)
    try:
        with joined(4, 1, "cpu", timeout=120):
            torch.save(work(rank), folder / f"{rank}.pt")
        return int(dist.is_initialized())
    except BaseException:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
