"""A whole model in MindSpeed-MM's layout: the tensors of each file, as mosaics of the Hugging Face tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sightline.checkpoints.megatron import keys
from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.megatron.keys import Rule
from sightline.checkpoints.megatron.stages import Pipeline, Stages
from sightline.checkpoints.mosaic import Mosaic, whole
from sightline.errors import SightlineError, UsageError

TEXT_LAYERS = "text_decoder.decoder.layers."
VISION_LAYERS = "image_encoder.encoder.blocks.layers."


@dataclass(frozen=True)
class Rank:
    """One file: a tensor-parallel and a pipeline rank."""

    tensor: int
    pipeline: int


@dataclass(frozen=True)
class Place:
    """A tensor in a checkpoint: file, chunk of the model (0 unless stages are virtual) and name."""

    rank: Rank
    chunk: int
    name: str

    def __str__(self) -> str:
        chunk = f" chunk {self.chunk}" if self.chunk else ""
        return f"{self.name} of rank {self.rank.tensor}, {self.rank.pipeline}{chunk}"


@dataclass(frozen=True)
class Placed:
    """A tensor of a file, and how it comes there.

    Attributes:
        sources: canonical names of what it is made of.
        words: it, for a message.
        share, ranks: which part of how many it is cut into.
    """

    place: Place
    rule: Rule
    sources: tuple[str, ...]
    words: str
    share: int
    ranks: int


@dataclass(frozen=True)
class Layout:
    """How a model is cut.

    Attributes:
        tensor, vision_tensor: tensor-parallel ranks of the language model and of the tower.
        canonical: queries, keys, values, gate and up stay apart (MindSpeed-MM's canonical mode).
        copies_head: whether a tied model has its embedding a second time, as its head; None as MindSpeed-MM wants it,
            over several pipeline ranks. (Its own resplit neither adds nor removes the copy.)
    """

    pipeline: Pipeline
    tensor: int = 1
    vision_tensor: int = 1
    canonical: bool = False
    copies_head: bool | None = None

    @property
    def ranks(self) -> int:
        """Tensor-parallel files of each pipeline rank."""
        return max(self.tensor, self.vision_tensor)

    @property
    def chunks(self) -> int:
        return self.pipeline.text.chunks

    @property
    def files(self) -> tuple[int, int, int]:
        """Tensor-parallel ranks, pipeline ranks, and chunks of each: as the files of a checkpoint are counted."""
        return self.ranks, self.pipeline.text.ranks, self.chunks

    def words(self) -> str:
        """As the options of the command line would say it."""
        parts = [f"tp {self.tensor}"]
        if self.vision_tensor != self.tensor:
            parts.append(f"vit-tp {self.vision_tensor}")
        parts += [f"pp-llm {self.pipeline.text}", f"pp-vit {self.pipeline.vision}"]
        return ", ".join([*parts, *(["canonical"] if self.canonical else [])])

    def check(self, model: Architecture) -> None:
        """Whether the model can be cut so.

        Raises:
            UsageError: the text says which number does not fit, and what would.
        """
        for option, count in (("--tp", self.tensor), ("--vit-tp", self.vision_tensor)):
            if count < 1 or self.ranks % count:
                raise UsageError(f"{option} is {count}, but the {self.ranks} ranks must be a multiple of it")
        _check_heads("--tp", self.tensor, "num_key_value_heads", model.kv_heads)
        _check_heads("--tp", self.tensor, "num_attention_heads", model.heads)
        _check_heads("--vit-tp", self.vision_tensor, "vision num_heads", model.vision_heads)
        self.pipeline.check(model.layers, model.vision_layers)

    def tensors(self, model: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> dict[Place, Mosaic]:
        """Every tensor of every file.

        Args:
            shapes: of the Hugging Face tensors, by canonical name.

        Raises:
            UsageError: a dimension cannot be shared evenly.
        """
        found: dict[Place, Mosaic] = {}
        for one in self.placed(model):
            sources = [whole(name, shapes[name]) for name in one.sources]
            found[one.place] = one.rule.cut(one.words, one.rule.fuse(sources), one.share, one.ranks)
        return found

    def placed(self, model: Architecture) -> Iterator[Placed]:
        """Every tensor of every file, by the rule that makes it."""
        stages = self.pipeline.text.ranks
        for stage in range(stages * self.chunks):
            for tensor in range(self.ranks):
                rank, chunk = Rank(tensor, stage % stages), stage // stages
                for part, ranks, name, rule, prefix in self._rules(model, stage):
                    yield Placed(
                        Place(rank, chunk, name),
                        rule,
                        tuple(prefix + source for source in rule.sources),
                        f"{part} {rule.name}",
                        tensor % ranks,
                        ranks,
                    )

    def _rules(self, model: Architecture, stage: int) -> Iterator[tuple[str, int, str, Rule, str]]:
        """What stands on a stage: part of the model, its ranks, name there, rule, prefix of the rule's sources."""
        vision, text = self.pipeline.vision, self.pipeline.text
        tower = ("the tower's", self.vision_tensor)
        if vision.flat[stage]:
            yield from (
                (*tower, rule.name, rule, "")
                for rule in (keys.vision_head() if stage == vision.first else [])
            )
            rules = keys.vision_layer(model, self.canonical)
            for local, layer in enumerate(vision.layers(stage)):
                prefix = f"visual.blocks.{layer}."
                yield from ((*tower, f"{VISION_LAYERS}{local}.{rule.name}", rule, prefix) for rule in rules)
            if stage == vision.last:
                yield from ((*tower, rule.name, rule, "") for rule in keys.projector(model))
        decoder = ("the language model's", self.tensor)
        if text.flat[stage]:
            yield from (
                (*decoder, rule.name, rule, "") for rule in (keys.text_head() if stage == text.first else [])
            )
            rules = keys.text_layer(model, self.canonical)
            for local, layer in enumerate(text.layers(stage)):
                prefix = f"text.layers.{layer}."
                yield from ((*decoder, f"{TEXT_LAYERS}{local}.{rule.name}", rule, prefix) for rule in rules)
            if stage == text.last:
                tail = keys.text_tail(self._head_source(model))
                yield from ((*decoder, rule.name, rule, "") for rule in tail)

    def _head_source(self, model: Architecture) -> str | None:
        if not model.tied:
            return "lm_head.weight"
        wanted = self.pipeline.text.ranks > 1 if self.copies_head is None else self.copies_head
        return "text.embed_tokens.weight" if wanted else None


@dataclass(frozen=True)
class Expected:
    """What a caller believes of the layout of a checkpoint; None says nothing."""

    tensor: int | None = None
    vision_tensor: int | None = None
    text: Stages | None = None
    vision: Stages | None = None
    canonical: bool | None = None

    def check(self, found: Layout, where: str) -> None:
        """Raise SightlineError if it is laid out otherwise; the text names both."""
        for option, ours, theirs in (
            ("--tp", self.tensor, found.tensor),
            ("--vit-tp", self.vision_tensor, found.vision_tensor),
            ("--pp-llm", self.text, found.pipeline.text),
            ("--pp-vit", self.vision, found.pipeline.vision),
            ("--canonical", self.canonical, found.canonical),
        ):
            if ours is not None and ours != theirs:
                raise SightlineError(
                    f"{where} is laid out as {found.words()}, so {option} cannot be {ours}; leave it out, or "
                    "give the checkpoint that you mean"
                )


def _check_heads(option: str, ranks: int, setting: str, heads: int) -> None:
    if heads % ranks:
        fits = [number for number in range(1, heads + 1) if heads % number == 0]
        raise UsageError(
            f"{option} {ranks} does not divide {setting} {heads}; {', '.join(map(str, fits))} do"
        )
