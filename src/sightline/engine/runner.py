"""The only place with the model's tensors: encodes what no cache holds, and runs a step's packed tokens.

Tokens of many sequences lie one after the other; the plan of the attention says where each one's keys and values go
and what it sees. No answer depends on what else is in a step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from sightline.engine.packing import by_adapter, encoded_together, rows_in, visible
from sightline.hardware.graphs import DecodeGraphs
from sightline.hardware.operators.attention import choose
from sightline.hardware.operators.attention.paged import Piece, Plan
from sightline.models.adapters.loader import AdapterLoader
from sightline.models.adapters.low_rank import Group
from sightline.models.adapters.places import Places
from sightline.models.fast.linear import convert_linear, converted
from sightline.models.fast.text import FastText, can_rewrite
from sightline.models.fast.vision import rewrite_tower
from sightline.models.text import Deepstack, Text, TransformersText

if TYPE_CHECKING:
    from sightline.engine.media.encoder_cache import EncoderCache
    from sightline.engine.scheduling.request import Request
    from sightline.engine.scheduling.step import Chunk, Step
    from sightline.models.loading import VisionLanguageModel
    from sightline.models.processor import Encoded


class Runner:
    """Runs steps on a model.

    Args:
        features: where encoded media are put and taken from.
        block_size: tokens of a block; None for what the device's attention prefers.
        eager: capture no graphs.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        features: EncoderCache,
        block_size: int | None = None,
        eager: bool = False,
    ) -> None:
        self._model = model
        self._inner = _inner(model.module)
        self._config = model.processor.config.get_text_config()
        self._features = features
        self._eager = eager
        self._attention = choose(
            model.device,
            model.dtype,
            self._head_dim,
            heads=self._config.num_attention_heads,
            kv_heads=self._config.num_key_value_heads,
            block_size=block_size,
        )
        self._embed = self._inner.language_model.embed_tokens
        places = Places.of(_base(model.module), model.folder)
        self._text, self._head = self._rewritten()
        #: Loads adapters for requests of this runner; any thread may use it.
        self.adapters = AdapterLoader(
            model,
            places,
            join=self._text.join,
            tower=self._inner.visual,
            rewritten=isinstance(self._text, FastText),
        )
        self._graphs: DecodeGraphs | None = None
        #: Seconds that the last step spent in the vision tower.
        self.encode_seconds = 0.0

    def _rewritten(self) -> tuple[Text, Any]:
        """The language model and its head in their fastest form; a model spread over devices stays as it is."""
        language_model, head = self._inner.language_model, self._model.module.get_output_embeddings()
        if self._model.spread or not can_rewrite(language_model):
            return TransformersText(language_model, self._attention), head
        rewrite_tower(self._inner.visual, convert_linear)
        return FastText(language_model, self._attention, convert_linear), self._converted_head(head)

    def _converted_head(self, head: Any) -> Any:
        fast = converted(head, convert_linear)
        if getattr(head, "weight", None) is not self._embed.weight:
            # Else the module would keep the head a second time; a tied one is the embedding, which stays.
            _base(self._model.module).lm_head = fast
        return fast

    @staticmethod
    def bytes_per_feature_row(model: VisionLanguageModel) -> int:
        """Bytes of one vision token's features, deepstack levels included."""
        config = model.processor.config
        levels = 1 + len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())
        return int(config.get_text_config().hidden_size) * levels * model.dtype.itemsize

    @property
    def block_size(self) -> int:
        return self._attention.block_size

    @property
    def bytes_per_block(self) -> int:
        return self._attention.bytes_per_block(
            layers=self._config.num_hidden_layers,
            kv_heads=self._config.num_key_value_heads,
            head_dim=self._head_dim,
            dtype=self._model.dtype,
        )

    @property
    def _head_dim(self) -> int:
        config = self._config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    def allocate(self, blocks: int) -> None:
        """Make a KV cache of `blocks` blocks; one that was there is dropped."""
        self._attention.allocate(
            layers=self._config.num_hidden_layers,
            blocks=blocks,
            kv_heads=self._config.num_key_value_heads,
            head_dim=self._head_dim,
            dtype=self._model.dtype,
            device=self._model.layer_devices,
        )

    def capture(self, *, max_num_seqs: int, max_model_len: int) -> None:
        """Capture decode steps as graphs where the device can; the cache must stay as it is from now on."""
        graphs = DecodeGraphs(
            self._single_tokens,
            self._attention,
            max_num_seqs=max_num_seqs,
            max_blocks=-(-max_model_len // self.block_size),
            enforce_eager=self._eager,
        )
        graphs.capture()
        self._graphs = graphs if graphs.captured else None

    @torch.inference_mode()
    def run(self, step: Step) -> torch.Tensor:
        """Compute a step.

        Returns:
            [tokens of the step, H], hidden states after the final norm, chunk after chunk.
        """
        self._encode(step)
        if all(chunk.sequence.request.adapted is None for chunk in step.chunks):
            return self._run(step)
        chunks, groups = by_adapter(step.chunks)
        hidden = self._run(replace(step, chunks=chunks), groups)
        if chunks == step.chunks:
            return hidden
        return hidden.index_select(0, self._on_device(rows_in(chunks, step.chunks)))

    def _run(self, step: Step, groups: Sequence[Group] = ()) -> torch.Tensor:
        pieces = [Piece(len(chunk.tokens), chunk.start, chunk.sequence.blocks) for chunk in step.chunks]
        ids = self._on_device([token for chunk in step.chunks for token in chunk.tokens])
        positions = torch.cat([_positions(chunk) for chunk in step.chunks], dim=1).to(self._model.device)
        # A graph replays what it was captured with, which is the base alone.
        if self._graphs is not None and not groups and all(_decodes(chunk) for chunk in step.chunks):
            return self._graphs.run(ids, positions, pieces)
        embeds = self._embed(ids)
        deepstack = self._place_features(step, embeds)
        return self._text(embeds, positions, self._attention.plan(pieces), deepstack, groups)

    def _single_tokens(self, ids: torch.Tensor, positions: torch.Tensor, plan: Plan) -> torch.Tensor:
        return self._text(self._embed(ids), positions, plan)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, H] -> [R, vocabulary], in the model's dtype, on its first device."""
        logits: torch.Tensor = self._head(hidden)
        return logits.to(self._model.device)

    @torch.inference_mode()
    def profile(self, tokens: int, vision_tokens: int, rows: int) -> torch.Tensor:
        """Run a step of `tokens` prompt tokens and encode a medium of `vision_tokens`: the most that memory must hold.

        The KV cache must be allocated with room for `tokens`.

        Returns:
            logits of the last `rows` tokens, at most `tokens`: [rows, vocabulary].
        """
        if vision_tokens:
            spec = self._model.processor.vision
            side = spec.merge_size
            grid = torch.tensor([[1, side, vision_tokens * side]])
            values = spec.patch_size**2 * spec.temporal_patch_size * 3
            self._features_of(torch.zeros(int(grid.prod()), values, dtype=self._model.dtype), grid)
        blocks = range(-(-tokens // self.block_size))
        plan = self._attention.plan([Piece(tokens, 0, list(blocks))])
        positions = torch.arange(tokens, device=self._model.device).expand(3, -1)
        embeds = self._embed(self._on_device([0] * tokens))
        return self.logits(self._text(embeds, positions, plan)[-rows:])

    def _on_device(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=self._model.device)

    # Vision

    def _encode(self, step: Step) -> None:
        """Encode the step's media and put their features, small ones that one tower sees together."""
        start = time.perf_counter()
        for tower, group in encoded_together(step.encode):
            media = [_encoded(request).media[index] for request, index in group]
            pixels = torch.cat([medium.patches for medium in media])
            grids = torch.tensor([medium.layout.grid for medium in media])
            with self._seeing_with(tower):
                levels = self._features_of(pixels, grids)
            for (request, index), *features in zip(group, *levels, strict=True):
                self._features.put(request.media[index].key, features)
        if step.encode:
            self._model.accelerator.synchronize()
        self.encode_seconds = time.perf_counter() - start

    @contextmanager
    def _seeing_with(self, tower: Any) -> Iterator[None]:
        """Let the model use an adapter's tower in place of its own; None changes nothing."""
        own = self._inner.visual
        if tower is not None:
            self._inner.visual = tower
        try:
            yield
        finally:
            self._inner.visual = own

    def _features_of(self, pixels: torch.Tensor, grids: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """The embeddings of each medium, and of each deepstack level: levels x media x [rows, H]."""
        device = self._model.device
        pixels = pixels.to(device, self._model.dtype)
        output = self._inner.get_image_features(pixels, grids.to(device), return_dict=True)
        return [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]

    def _place_features(self, step: Step, embeds: torch.Tensor) -> Deepstack | None:
        """Write features over the embeddings of their placeholders; gives the deepstack levels where there are any."""
        rows, levels = [], []
        for first, chunk, span, begin, end in visible(step):
            media = chunk.sequence.request.media
            features = self._features.get(media[span.medium].key)
            source = slice(span.offset + begin - span.start, span.offset + end - span.start)
            target = first + begin - chunk.start
            embeds[target : target + end - begin] = features[0][source]
            if len(features) > 1:
                rows.append(torch.arange(target, target + end - begin, device=embeds.device))
                levels.append([level[source] for level in features[1:]])
        if not rows:
            return None
        return Deepstack(torch.cat(rows), [torch.cat(level) for level in zip(*levels, strict=True)])


def _inner(module: Any) -> Any:
    """The model under the head, which owns tower and language model; also inside a PEFT wrapper."""
    return _base(module).model


def _base(module: Any) -> Any:
    """The transformers model with head, also where an adapter is around it."""
    return module.get_base_model() if hasattr(module, "peft_config") else module


def _encoded(request: Request) -> Encoded:
    assert request.encoded is not None, f"request {request.id} came without its tensors"
    return request.encoded


def _positions(chunk: Chunk) -> torch.Tensor:
    """int64 [3, tokens of the chunk]: the prompt's own positions, then one more a token in all three."""
    encoded = _encoded(chunk.sequence.request)
    end = chunk.start + len(chunk.tokens)
    prompt = encoded.position_ids[:, chunk.start : end]
    first = chunk.start + prompt.shape[1]
    if first == end:
        return prompt
    answer = torch.arange(first, end).add_(encoded.rope_delta).expand(3, -1)
    return torch.cat([prompt, answer], dim=1) if prompt.shape[1] else answer


def _decodes(chunk: Chunk) -> bool:
    """Whether the chunk is one token of an answer."""
    return len(chunk.tokens) == 1 and chunk.start >= chunk.sequence.prompt_length
