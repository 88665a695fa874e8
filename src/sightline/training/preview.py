"""Samples as the model will see them, with the tokens it learns from in colour."""

from __future__ import annotations

from rich.text import Text as Styled

from sightline.models.processor import Encoded, Processor
from sightline.models.prompt import IGNORED
from sightline.training.dataset import Sample


def preview(sample: Sample, processor: Processor) -> Styled:
    """One sample as styled text: supervised tokens green, runs of vision tokens as one blue mark."""
    encoded = processor.encode(sample.conversation, supervise=True)
    title = f"{sample.conversation.origin or 'sample'}: {len(encoded.input_ids)} tokens, "
    title += f"{encoded.vision_tokens} vision, {int((encoded.labels != IGNORED).sum())} supervised\n"
    styled = Styled(title, style="bold")
    for text, style in _runs(encoded, processor):
        styled.append(text, style=style)
    return styled


def _runs(encoded: Encoded, processor: Processor) -> list[tuple[str, str]]:
    """Neighbouring tokens of one style decoded together, so that characters of several tokens stay whole."""
    groups: list[tuple[str, list[int]]] = []
    for token, label, kind in zip(
        encoded.input_ids.tolist(), encoded.labels.tolist(), encoded.kinds.tolist(), strict=True
    ):
        style = "blue" if kind else "bold green" if label != IGNORED else "dim"
        if not groups or groups[-1][0] != style:
            groups.append((style, []))
        groups[-1][1].append(token)
    names = {"blue": lambda ids: f"[{len(ids)} vision tokens]"}
    return [(names.get(style, processor.tokenizer.decode)(ids), style) for style, ids in groups]
