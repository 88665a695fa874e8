"""How much one client may ask for: numbers that bound what a request costs before it is computed."""

from __future__ import annotations

from dataclasses import dataclass

from sightline.data.media import Budget

# The engine opens no file that a client names: `sightline.server.media.Fetcher` does, by rules of its own.
_MEDIUM = Budget(
    max_bytes=48 * 2**20,
    max_pixels=40_000_000,
    max_frames=50_000,
    max_seconds=1800.0,
    max_kept_pixels=2**29,
    max_total_pixels=200_000_000,
    max_clip_pixels=20_000_000_000,
    max_decode_seconds=60.0,
    files=False,
)


@dataclass(frozen=True)
class Limits:
    """What a request may hold. Each of them costs time or memory that other requests would have to wait for.

    Attributes:
        max_open: requests that wait or are answered; one more gets 503.
        max_body: bytes of a body; body_seconds: between two pieces of it.
        max_held_body: bytes of the bodies of all requests until their answers begin; at least max_body.
        max_values: numbers, texts, lists and objects of a body, as its commas and brackets tell.
        max_messages: of a conversation; max_media: images and clips of a request.
        max_prompt_chars: characters of all texts of a request, refused before they are tokenised.
        max_prompt_tokens: None is what the model's length leaves.
        max_tokens: of an answer; None is what the model's length leaves.
        max_iter_times: MindIE's: answers in its dialect are cut to it; None is max_tokens.
        max_n: answers to one prompt; max_prompts: prompts of one completion request; max_answers: to all of them.
        priorities: whether a request may say that it goes before others, whose running answers may have to wait.
        max_logprobs: most likely tokens that are told beside each one.
        max_stops, max_stop_length, max_stop_ids, max_biases, max_bad_words: each is looked at for every token.
        request_seconds: from a request's arrival to its end, after which it is ended; None waits for ever.
        medium: what one picture or clip may cost; data sets on this machine may cost more.
    """

    max_open: int = 64
    max_body: int = 64 * 2**20
    max_held_body: int = 512 * 2**20
    body_seconds: float = 10.0
    max_values: int = 2**19
    max_messages: int = 1024
    max_media: int = 16
    max_prompt_chars: int = 4 * 2**20
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    max_iter_times: int | None = None
    max_n: int = 16
    max_prompts: int = 64
    max_answers: int = 128
    priorities: bool = False
    max_logprobs: int = 20
    max_stops: int = 16
    max_stop_length: int = 256
    max_stop_ids: int = 256
    max_biases: int = 1024
    max_bad_words: int = 256
    request_seconds: float | None = 600.0
    medium: Budget = _MEDIUM
