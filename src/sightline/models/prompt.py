"""A conversation as token ids: chat template, image and video placeholders, and which tokens are the answer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.data.conversation import Conversation, Image, Message, RowError, Text, Video
from sightline.errors import SightlineError, first_line

IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"
_START, _END = "<|vision_start|>", "<|vision_end|>"
_VIDEO_SLOT = _START + VIDEO_PAD + _END

IGNORED = -100
"""Label of a token that carries no loss."""


@dataclass
class Tokens:
    """Parallel lists, one entry a token: id, label (the id or IGNORED), kind (0 text, 1 image, 2 video)."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    def add(self, token: int, label: int, kind: int = 0, count: int = 1) -> None:
        self.ids += [token] * count
        self.labels += [label] * count
        self.kinds += [kind] * count


class PromptBuilder:
    """Renders and tokenises conversations with one checkpoint's tokenizer and chat template."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.image_id = self._special(IMAGE_PAD)
        self.video_id = self._special(VIDEO_PAD)

    def _special(self, token: str) -> int:
        identifier = self.tokenizer.convert_tokens_to_ids(token)
        if identifier is None or identifier == self.tokenizer.unk_token_id:
            raise SightlineError(
                f"the tokenizer in {self.name} has no {token}; it is not a Qwen-VL tokenizer"
            )
        return int(identifier)

    def build(
        self,
        conversation: Conversation,
        image_tokens: Sequence[int],
        video_tokens: Sequence[int],
        video_times: Sequence[Sequence[float]] | None,
        *,
        supervise: bool,
    ) -> Tokens:
        """Token ids of a conversation.

        Args:
            image_tokens: vision tokens of each image, in order of appearance.
            video_tokens: vision tokens of each video, in order of appearance.
            video_times: for families that write timestamps, the seconds of each temporal patch of each video.
            supervise: label the assistant's turns; otherwise end with the opening of the assistant's next turn.

        Raises:
            RowError: the text itself holds a placeholder token, or nobody answers in a supervised conversation.
            SightlineError: the checkpoint has no usable chat template.
        """
        if supervise:
            segments = self._supervised_segments(conversation)
        else:
            segments = [(self.render(conversation.messages, generate=True), False)]
        segments = self._with_times(conversation, segments, video_times)
        counts = {self.image_id: iter(image_tokens), self.video_id: _slots(video_tokens, video_times)}
        return self._tokenise(segments, counts)

    def build_prompt(
        self,
        prompt: str | Sequence[int],
        conversation: Conversation,
        image_tokens: Sequence[int],
        video_tokens: Sequence[int],
        video_times: Sequence[Sequence[float]] | None,
    ) -> Tokens:
        """As `build`, for a prompt that is rendered already: a text or token ids with one placeholder a medium.

        Raises:
            RowError: the placeholders are not as many as the conversation's media.
        """
        text = prompt if isinstance(prompt, str) else self.tokenizer.decode(list(prompt))
        segments = [(text, False)]
        segments = self._with_times(conversation, segments, video_times)
        counts = {self.image_id: iter(image_tokens), self.video_id: _slots(video_tokens, video_times)}
        if isinstance(prompt, str) or video_times:
            return self._tokenise(segments, counts)
        return self._expand(prompt, False, counts)

    def render(
        self,
        messages: list[Message],
        *,
        generate: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The chat template's text, with one placeholder a medium; `variables` are the template's own."""
        plain = [_template_message(message) for message in messages]
        own = variables or {}
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    plain, tokenize=False, add_generation_prompt=generate, **own
                )
            )
        except Exception as error:
            # Templates are programs of the checkpoint: whatever they raise is a fault of template or conversation.
            # A server's clients read this, so it names no folder.
            raise SightlineError(
                f"the model's chat template refuses the conversation: {first_line(error)}"
            ) from error

    def _supervised_segments(self, conversation: Conversation) -> list[tuple[str, bool]]:
        """The whole text cut where the assistant starts and stops speaking."""
        messages = conversation.messages
        whole = self.render(messages)
        segments: list[tuple[str, bool]] = []
        done = 0
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self.render(messages[:index], generate=True)
            through = self.render(messages[: index + 1])
            if not (whole.startswith(through) and through.startswith(before)):
                raise SightlineError(
                    f"the chat template in {self.name} rewrites earlier turns, so the assistant's tokens "
                    "cannot be told apart; train on conversations with one answer, or use another template"
                )
            # The line break after the end marker belongs to the template, not to the answer.
            stop = len(through.rstrip("\n"))
            segments += [(whole[done : len(before)], False), (whole[len(before) : stop], True)]
            done = stop
        if not segments:
            raise RowError("no assistant turn to learn from", conversation.origin)
        segments.append((whole[done:], False))
        return segments

    def _with_times(
        self,
        conversation: Conversation,
        segments: list[tuple[str, bool]],
        video_times: Sequence[Sequence[float]] | None,
    ) -> list[tuple[str, bool]]:
        # Before too: a slot that a text holds literally would take the times of a clip, or vanish without one.
        self._check_slots(conversation, segments, None)
        if video_times is not None:
            segments = _write_times(segments, video_times)
            self._check_slots(conversation, segments, video_times)
        return segments

    def _check_slots(
        self,
        conversation: Conversation,
        segments: list[tuple[str, bool]],
        video_times: Sequence[Sequence[float]] | None,
    ) -> None:
        text = "".join(segment for segment, _ in segments)
        videos = len(conversation.videos)
        if video_times is not None:
            videos = sum(len(times) for times in video_times)
        for pad, expected in ((IMAGE_PAD, len(conversation.images)), (VIDEO_PAD, videos)):
            if text.count(pad) != expected:
                raise RowError(
                    f"the prompt has {text.count(pad)} {pad} for {expected} media; "
                    f"remove the literal {pad} from the text",
                    conversation.origin,
                )

    def _tokenise(self, segments: list[tuple[str, bool]], counts: dict[int, Any]) -> Tokens:
        # Each segment by itself, so that training sees an answer cut into tokens just as generation does.
        result = Tokens()
        for text, supervised in segments:
            if text:
                ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
                self._expand(ids, supervised, counts, result)
        return result

    def _expand(
        self, ids: Sequence[int], supervised: bool, counts: dict[int, Any], result: Tokens | None = None
    ) -> Tokens:
        """Each placeholder becomes as many as its medium has vision tokens."""
        result = Tokens() if result is None else result
        kinds = {self.image_id: 1, self.video_id: 2}
        for token in ids:
            kind = kinds.get(token, 0)
            if kind:
                result.add(token, IGNORED, kind, next(counts[token]))
            else:
                result.add(token, token if supervised else IGNORED)
        return result


def _template_message(message: Message) -> dict[str, Any]:
    """Plain text stays a string (every template knows it); media make a list of parts."""
    if all(isinstance(part, Text) for part in message.parts):
        return {"role": message.role, "content": message.text}
    parts: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, Image):
            parts.append({"type": "image"})
        elif isinstance(part, Video):
            parts.append({"type": "video"})
        else:
            parts.append({"type": "text", "text": part.text})
    return {"role": message.role, "content": parts}


def _slots(video_tokens: Sequence[int], video_times: Sequence[Sequence[float]] | None) -> Any:
    """Tokens behind each video placeholder; with timestamps a clip has one placeholder a temporal patch."""
    if video_times is None:
        return iter(video_tokens)
    return (
        total // len(times) for total, times in zip(video_tokens, video_times, strict=True) for _ in times
    )


def _write_times(
    segments: list[tuple[str, bool]], video_times: Sequence[Sequence[float]]
) -> list[tuple[str, bool]]:
    """Replace each clip's slot by `<1.5 seconds>` and a slot for each temporal patch (Qwen3-VL)."""
    times = iter(video_times)
    written = []
    for text, supervised in segments:
        head, *rest = text.split(_VIDEO_SLOT)
        for tail in rest:
            marks = next(times, [])
            head += "".join(f"<{second:.1f} seconds>{_VIDEO_SLOT}" for second in marks) + tail
        written.append((head, supervised))
    return written
