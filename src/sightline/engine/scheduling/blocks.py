"""The blocks of the KV cache: who holds which, and which hold a beginning that another prompt shares.

A full block can be found by what determines its keys and values: the block before it, its own tokens, the media
that stand in it, and the adapter. That whole key is the dictionary's key and Python compares it, so two
beginnings of equal hash are never mixed up. Blocks that nobody holds but that can still be found are evicted
when free ones run out, the least recently used first, and of one sequence the last first, since a block without
those before it cannot be found.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable

from sightline.engine.scheduling.free_runs import FreeRuns
from sightline.engine.scheduling.sequence import Sequence

# The neighbours that are kept free for a sequence to grow into: at most this share of all blocks.
_HOPE = 1 / 32


class BlockPool:
    """Block numbers with reference counts; the keys and values themselves are the runner's.

    Args:
        blocks: how many there are.
        block_size: tokens of one block.
        prefix_caching: let requests share the beginnings of others. The answers to one request share its
            prompt in any case.

    Attributes:
        queries, hits: tokens of new sequences, and those of them that were found in the cache.
        evictions: blocks that others could have found and that were taken for new tokens.
    """

    def __init__(self, blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.queries = self.hits = self.evictions = 0
        self._free = FreeRuns(blocks)
        self._references = [0] * blocks
        self._found: dict[Hashable, int] = {}
        # Of a block that can be found: its key, and the number that stands for it in the keys of those behind it.
        self._keys: dict[int, tuple[Hashable, int]] = {}
        self._serial = 0
        # Findable blocks that nobody holds, the least recently used first.
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free_blocks(self) -> int:
        """Blocks that a sequence could get now, those that would be evicted for it included."""
        return self._free.count + len(self._idle)

    @property
    def used_blocks(self) -> int:
        return self.blocks - self.free_blocks

    def match(self, sequence: Sequence) -> int:
        """Give a sequence without blocks those that hold its beginning already; returns the tokens found.

        Never all of its tokens: the last is left to be computed, so that there are logits to choose from.
        """
        sequence.parent = self._root(sequence)
        for index in range((len(sequence.tokens) - 1) // self.block_size):
            block = self._found.get(self._key(sequence, index))
            if block is None:
                break
            self._hold(block)
            sequence.blocks.append(block)
            sequence.parent = self._keys[block][1]
        sequence.published = len(sequence.blocks)
        sequence.computed = sequence.published * self.block_size
        return sequence.computed

    def count_match(self, sequence: Sequence) -> None:
        """Enter a sequence's first match in `queries` and `hits`."""
        self.queries += len(sequence.tokens)
        self.hits += sequence.computed

    def missing(self, sequence: Sequence, tokens: int) -> int:
        """How many blocks the table lacks to hold `tokens` tokens in all."""
        return max(0, -(-tokens // self.block_size) - len(sequence.blocks))

    def held_only_by(self, sequences: Iterable[Sequence]) -> int:
        """How many blocks would be free if these sequences gave all of theirs back."""
        held = Counter(block for sequence in sequences for block in sequence.blocks)
        return sum(count == self._references[block] for block, count in held.items())

    def room(self, sequence: Sequence) -> int:
        """How many tokens more than the computed ones the sequence could hold if it got every free block."""
        return (len(sequence.blocks) + self.free_blocks) * self.block_size - sequence.computed

    def grow(self, sequence: Sequence, tokens: int) -> None:
        """Make the table long enough for `tokens` tokens in all.

        Raises:
            ValueError: there are not as many blocks (`free_blocks`).
        """
        missing = self.missing(sequence, tokens)
        if not missing:
            return
        if missing > self.free_blocks:
            raise ValueError(f"{missing} blocks are wanted but only {self.free_blocks} are free")
        table = sequence.blocks
        further = max(0, self.missing(sequence, sequence.most_computed) - missing)
        hope = min(further, int(self.blocks * _HOPE))
        taken: list[int] = []
        if table:
            taken = self._free.behind(table[-1], missing)
            self._free.give_up(table[-1])
        if len(taken) < missing:
            self._clear(missing - len(taken), hope)
        while len(taken) < missing:
            taken += self._free.anywhere(missing - len(taken))
        for block in taken:
            self._references[block] = 1
        table += taken
        self._free.hope(table[-1], hope)

    def publish(self, sequence: Sequence) -> None:
        """Let others find the sequence's blocks that are full of computed tokens."""
        full = sequence.computed // self.block_size
        if full == sequence.published:
            return
        if not self.prefix_caching:
            # Its own siblings look for the prompt, and nobody looks for the answer.
            shared = sequence.prompt_length if len(sequence.request.sequences) > 1 else 0
            full = min(full, shared // self.block_size)
        for index in range(sequence.published, full):
            if index == 0:
                sequence.parent = self._root(sequence)
            key = self._key(sequence, index)
            # Another may have computed the same beginning meanwhile; then its blocks are the ones to be found.
            block = self._found.setdefault(key, sequence.blocks[index])
            if block not in self._keys:
                self._serial += 1
                self._keys[block] = (key, self._serial)
            sequence.parent = self._keys[block][1]
        sequence.published = max(full, sequence.published)

    def free(self, sequence: Sequence) -> None:
        """Take all blocks from a sequence, which has nothing computed then."""
        if sequence.blocks:
            self._free.give_up(sequence.blocks[-1])
        keep = self.prefix_caching or not sequence.request.finished
        for block in reversed(sequence.blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._keys and keep:
                self._idle[block] = None
            else:
                self._forget(block)
                self._free.add(block)
        sequence.blocks = []
        sequence.computed = sequence.published = 0

    def _hold(self, block: int) -> None:
        if not self._references[block]:
            del self._idle[block]
        self._references[block] += 1

    def _clear(self, missing: int, hope: int) -> None:
        """Evict until `missing` blocks are free and, if that takes no more than their number, side by side."""
        most = max(missing - self._free.count, min(missing + hope, len(self._idle)))
        for _ in range(most):
            if self._free.count >= missing and self._free.widest >= missing + hope:
                return
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
            self._free.add(block)
            self.evictions += 1

    def _forget(self, block: int) -> None:
        key, _ = self._keys.pop(block, (None, 0))
        if key is not None:
            del self._found[key]

    def _root(self, sequence: Sequence) -> Hashable:
        """What stands before the first block: without prefix caching, each request is a world of its own."""
        request = sequence.request
        return request.adapter, None if self.prefix_caching else request.id

    def _key(self, sequence: Sequence, index: int) -> Hashable:
        """All that determines the keys and values of a full block, given `sequence.parent` before it."""
        request = sequence.request
        start = index * self.block_size
        end = start + self.block_size
        media = tuple(
            (request.media[span.medium].key, span.start - start, span.length, span.offset)
            for span in request.spans_between(start, end)
        )
        return sequence.parent, tuple(sequence.tokens[start:end]), media

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Check that every block is free, findable or held, exactly as often as these sequences say.

        Raises:
            AssertionError: with a sentence, where the books do not balance.
        """
        held: Counter[int] = Counter()
        for sequence in sequences:
            held.update(sequence.blocks)
            assert len(set(sequence.blocks)) == len(sequence.blocks), f"{sequence} holds a block twice"
            assert sequence.computed <= len(sequence.blocks) * self.block_size, f"{sequence} lacks blocks"
        for block, references in enumerate(self._references):
            assert references == held[block], (
                f"block {block} counts {references} references but has {held[block]}"
            )
        free = [block for start, end in self._free.runs().items() for block in range(start, end)]
        assert len(free) == self._free.count, (
            f"{self._free.count} free blocks are counted, {len(free)} listed"
        )
        places = Counter([*free, *self._idle, *set(held)])
        for block in range(self.blocks):
            assert places[block] == 1, (
                f"block {block} is at {places[block]} of the places free, idle and held"
            )
        assert set(self._idle) <= set(self._keys), "a block is kept that nobody can find"
        assert not set(free) & set(self._keys), "a free block can be found"
        found = {block: key for key, block in self._found.items()}
        keys = {block: key for block, (key, _) in self._keys.items()}
        assert found == keys, "the blocks that can be found have other keys"
        assert len(found) == len(self._found), "a block can be found by two keys"
