"""`VideoPipeline`: from a prompt to a video with Wan2.1."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, UsageError
from sightline.hardware import accelerator
from sightline.hardware.out_of_memory import explained
from sightline.progress import note
from sightline.video.attach import attached
from sightline.video.builders import exact
from sightline.video.cache import StepCache
from sightline.video.components import Components, load_components
from sightline.video.denoise import Step, denoise
from sightline.video.loading.places import OPTIONS as FILES
from sightline.video.parallel import agree, guidance
from sightline.video.parallel.layout import Layout
from sightline.video.parallel.ulysses import cut
from sightline.video.parallel.vae import check_decoder, check_strips, split_over
from sightline.video.plan import Plan
from sightline.video.request import Request
from sightline.video.result import Video
from sightline.video.setting import Setting
from sightline.video.solvers import make_solver
from sightline.video.text import clean

if TYPE_CHECKING:
    from torch import Tensor

OnStep = Callable[[Step], None]

# What saves memory in each part of a generation.
_ADVICE = {
    "text": "use offload model, or text_encoder_device cpu",
    "denoise": "use offload model or group, several cards, or a smaller or shorter video",
    "decode": "use offload model, tile_vae, vae_parallel on several cards, or a smaller or shorter video",
}


class VideoPipeline:
    """A Wan text-to-video model, ready to generate.

    Args:
        components: its parts.
        operators: let Wan's blocks compute with `hardware.operators`.
        layout: this process's place among several that generate together.
        vae_parallel: decode over all of them.
    """

    def __init__(
        self,
        components: Components,
        *,
        operators: bool = True,
        layout: Layout | None = None,
        vae_parallel: bool = False,
    ) -> None:
        self.components = components
        self.layout = layout or Layout()
        self.vae_parallel = vae_parallel and self.layout.world > 1
        if self.vae_parallel:
            check_decoder(components.vae)
        self.accelerator = accelerator.find(str(components.device))
        ours = None
        if operators:
            from sightline.video.wan_blocks import use_operators

            ours = use_operators(components.transformer)
        try:
            cut(components.transformer, self.layout)
        except SightlineError:
            # The components can be used again, with another layout.
            if ours is not None:
                ours.undo()
            raise

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        operators: bool = True,
        layout: Layout | None = None,
        vae_parallel: bool = False,
        **options: Any,
    ) -> VideoPipeline:
        """Load a model's folder: diffusers', or Wan2.1's original files.

        Args:
            model: the folder; the small model that comes with the package without it and without files of parts.
            options: of `load_components`: `dtype`, `device`, `offload`, `cast_weights`, `tile_vae`,
                `transformer_file`, `vae_file`, `text_encoder_file`, `tokenizer`, `text_encoder_device`.

        Raises:
            SightlineError: what is missing or does not fit, and where.
        """
        if model is None and not any(options.get(name) is not None for name in FILES):
            from sightline.video.tiny import tiny_wan_folder

            model = tiny_wan_folder()
        components = load_components(model, **options)
        return cls(components, operators=operators, layout=layout, vae_parallel=vae_parallel)

    def request(self, prompt: str, **settings: Any) -> Request:
        """What is asked for, with this model's defaults for what is not said.

        Args:
            settings: fields of `Request`; None means the default.

        Raises:
            UsageError: an unknown field, a value out of range, or a size that the model does not have, with the nearest
                it has.
        """
        defaults = self.components.defaults
        given = {name: value for name, value in settings.items() if value is not None}
        width, height = given.get("width", defaults.width), given.get("height", defaults.height)
        filled: dict[str, Any] = {
            "width": width,
            "height": height,
            "frames": defaults.frames,
            "steps": defaults.steps,
            "guidance": defaults.guidance,
            # Of sides that are no numbers there is no shift; the request refuses them.
            "shift": defaults.shift(width, height) if type(width) is type(height) is int else 1.0,
            "fps": defaults.fps,
            "negative_prompt": defaults.negative_prompt,
            "scheduler": defaults.scheduler,
        }
        request = Request.from_json({"prompt": prompt} | filled | given)
        defaults.check(request)
        return request

    def setting(self, request: Request) -> Setting:
        """What a plan is found for and checked against."""
        import diffusers
        import torch

        parts = self.components
        return Setting(
            steps=request.steps,
            model=parts.name,
            weights=parts.weights_fingerprint(),
            scheduler=request.scheduler,
            shift=float(request.shift),
            width=request.width,
            height=request.height,
            frames=request.frames,
            guidance=float(request.guidance),
            dtype=str(parts.dtype).removeprefix("torch."),
            device=self.accelerator.name,
            versions={"torch": torch.__version__, "diffusers": diffusers.__version__},
        )

    def check(self, request: Request, plan: Plan | None = None) -> None:
        """Refuse what this model, or these cards together, cannot generate; nothing is computed for it.

        Raises:
            UsageError: a size that the model does not have, or one that leaves a card without work.
            SightlineError: the plan needs what another card holds.
        """
        self.components.defaults.check(request)
        self.layout.check_branches(request.branches)
        if self.vae_parallel:
            factor = self.components.vae.config.scale_factor_spatial
            check_strips(request.width // factor, request.height // factor, self.layout.world)
        if plan is not None:
            guidance.check_plan(plan, self.layout)

    def encode(self, request: Request) -> dict[str, Tensor]:
        """The texts of the branches, [1, L, D] each in the transformer's dtype, as `WanPipeline` pads them."""
        texts = {"cond": request.prompt, "uncond": request.negative_prompt}
        parts = self.components
        with parts.on_device("text_encoder") as encoder:
            return {
                branch: self._encoded(encoder, texts[branch]).to(parts.device, parts.dtype)
                for branch in request.branches
            }

    def noise(self, request: Request) -> Tensor:
        """What a generation begins with, [1, C, F, H, W] in float32; drawn in host memory, so that a seed means the
        same on every device and rank."""
        import torch

        parts = self.components
        vae = parts.vae.config
        shape = (
            1,
            parts.transformer.config.in_channels,
            (request.frames - 1) // vae.scale_factor_temporal + 1,
            request.height // vae.scale_factor_spatial,
            request.width // vae.scale_factor_spatial,
        )
        generator = torch.Generator().manual_seed(request.seed)
        return torch.randn(shape, generator=generator).to(parts.device)

    def denoise(
        self,
        request: Request,
        texts: Mapping[str, Tensor],
        *,
        cache: StepCache | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """The latents of a video, [1, C, F, H, W] in float32.

        Args:
            texts: as `encode` gives them, of the request's branches.
            cache: carries a plan out; without one every step is computed, and what both branches share once.
            on_step: is told of each step that is done; what it raises ends the generation.

        Raises:
            UsageError: the texts are of other branches.
        """
        import torch

        if set(texts) != set(request.branches):
            raise UsageError(
                f"guidance {request.guidance:g} takes texts of {' and '.join(request.branches)}, not of "
                f"{' and '.join(texts) or 'none'}; encode this request"
            )
        parts, mine = self.components, self.layout.mine(texts)
        if cache is None:
            # Of the setting only the steps count in what is computed whole: no look at the weights.
            cache = StepCache(exact(Setting(steps=request.steps)), share=len(mine) > 1)
        solver = make_solver(request, parts.scheduler, parts.device)
        with torch.inference_mode(), parts.on_device("transformer") as model, attached(model, cache):
            latents = denoise(
                model,
                solver,
                self.noise(request),
                mine,
                guidance=request.guidance,
                clock=cache.step,
                gather=self.layout.gather_branches,
                on_step=on_step,
            )
        return latents.clone()  # a tensor like any other, that may be changed

    def decode(self, latents: Tensor) -> Tensor:
        """The pictures of latents [1, C, F', H', W'] on any device: [F, 3, H, W] in [0, 1], float32 in host memory."""
        import torch

        latents = latents.to(self.components.device)
        ranks = self.layout if self.vae_parallel else Layout()
        with torch.inference_mode(), self.components.on_device("vae") as vae, split_over(vae, ranks):
            mean, deviation = (
                torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
                for values in (vae.config.latents_mean, vae.config.latents_std)
            )
            scaled = (latents.float() * deviation + mean).to(vae.dtype)
            # In place: a picture in float32 is four times as large as in a file.
            pictures = vae.decode(scaled, return_dict=False)[0][0].float().div_(2).add_(0.5).clamp_(0, 1)
        return pictures.transpose(0, 1).clone(memory_format=torch.contiguous_format).cpu()

    def generate(
        self,
        prompt: str | Request,
        *,
        plan: Plan | str | Path | None = None,
        plan_anyway: bool = False,
        on_step: OnStep | None = None,
        texts: Mapping[str, Tensor] | None = None,
        **settings: Any,
    ) -> Video:
        """Make a video.

        Args:
            prompt: what it shall show, or a whole request.
            plan: of the step cache, or its file; refused if it was found for another generation. Its number of steps
                is taken where none is given.
            plan_anyway: use it all the same, with a warning of what differs.
            texts: as `encode` gave them, where many were encoded at once.
            settings: fields of `Request`, where it is not given whole.

        Raises:
            UsageError: a setting out of range, or beside a whole request.
            SightlineError: the plan is for something else, with the fields that differ; the ranks are not asked for the
                same video; or memory runs out.
        """
        if isinstance(prompt, Request) and settings:
            raise UsageError(
                f"{next(iter(settings))} is given beside a whole request, which has its own; change the request"
            )
        if isinstance(plan, (str, Path)):
            plan = Plan.load(plan)
        if plan is not None and settings.get("steps") is None:
            settings["steps"] = plan.steps
        request = prompt if isinstance(prompt, Request) else self.request(prompt, **settings)
        self.check(request, plan)
        setting = self.setting(request)
        agree.require_same(self.layout, agree.facts(request, setting, plan))
        cache = None if plan is None else self._cache(plan, setting, plan_anyway)
        seconds: dict[str, float] = {}
        with self._timed(seconds, "text", request):
            texts = self.encode(request) if texts is None else texts
        with self._timed(seconds, "denoise", request):
            latents = self.denoise(request, texts, cache=cache, on_step=on_step)
        with self._timed(seconds, "decode", request):
            frames = self.decode(latents)
        return Video(frames, latents.cpu(), request, setting, plan, seconds)

    def _cache(self, plan: Plan, setting: Setting, anyway: bool) -> StepCache:
        name = f"plan {plan.name!r}" if plan.name else "the plan"
        differences = plan.setting.require(setting, whose=name, anyway=anyway)
        if differences:
            note(f"warning: {name} was found for another generation: {'; '.join(differences)}")
        both = len(self.layout.branches) > 1 and setting.guidance is not None and setting.guidance > 1
        return StepCache(plan, share=both)

    def _encoded(self, encoder: Any, text: str) -> Tensor:
        import torch

        parts, length, text = self.components, self.components.defaults.text_length, clean(text)
        ids = parts.tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]
        if len(ids) > length:
            note(f"warning: a prompt has {len(ids)} tokens, and this model reads the first {length}")
        tokens = parts.tokenizer(
            text, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        where = next(encoder.parameters()).device
        mask = tokens["attention_mask"].to(where)
        with torch.inference_mode():
            states = encoder(tokens["input_ids"].to(where), mask).last_hidden_state
        # Behind the text are zeros, not what the encoder makes of padding.
        return states * mask.unsqueeze(-1).to(states.dtype)

    @contextmanager
    def _timed(self, seconds: dict[str, float], part: str, request: Request) -> Iterator[None]:
        size = f"{request.width}x{request.height}x{request.frames}"
        with explained(f"a video of {size} does not fit on {self.accelerator} ({part})", _ADVICE[part]):
            self.accelerator.synchronize()
            begun = time.perf_counter()
            yield
            self.accelerator.synchronize()
            seconds[part] = time.perf_counter() - begun
