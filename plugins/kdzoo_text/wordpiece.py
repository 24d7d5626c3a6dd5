"""Learning the pieces of a WordPiece vocabulary, the same ones every time.

The trainers of the library tokenizers leave ties to the order of a randomly seeded hash map, so that each process gets
another vocabulary. Which one it was would be part of every result.

Merging the most frequent pair: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units",
ACL 2016, https://arxiv.org/abs/1508.07909; pieces inside a word are marked by ## as in BERT.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

#: What a piece begins with that does not begin a word.
INSIDE = "##"


def learn(words: Mapping[str, int], most: int) -> list[str]:
    """Return at most ``most`` pieces: all letters of the words (name -> count), then what merging them makes.

    The most frequent pair of neighbours is merged again and again; among equally frequent ones, the first by name.
    """
    spelt = [[word[0], *(INSIDE + letter for letter in word[1:])] for word in words]
    counts = list(words.values())
    letters = Counter[str]()
    for pieces, count in zip(spelt, counts, strict=True):
        for piece in pieces:
            letters[piece] += count
    found = [piece for piece, _ in sorted(letters.items(), key=lambda item: (-item[1], item[0]))][:most]
    known = set(found)
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = defaultdict(set)
    for number, pieces in enumerate(spelt):
        _count(pieces, counts[number], number, pairs, where)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while len(found) < most and heap:
        count, pair = heapq.heappop(heap)
        if -count != pairs[pair]:
            continue  # counted anew since
        if not pairs[pair]:
            break
        merged = pair[0] + pair[1].removeprefix(INSIDE)
        if merged not in known:
            found.append(merged)
            known.add(merged)
        changed: set[tuple[str, str]] = set()
        for number in sorted(where[pair]):
            changed.update(_count(spelt[number], -counts[number], number, pairs, where))
            spelt[number] = _merge(spelt[number], pair, merged)
            changed.update(_count(spelt[number], counts[number], number, pairs, where))
        for other in changed:
            if pairs[other] > 0:
                heapq.heappush(heap, (-pairs[other], other))
    return found


def _count(
    pieces: list[str],
    count: int,
    number: int,
    pairs: Counter[tuple[str, str]],
    where: Mapping[tuple[str, str], set[int]],
) -> Iterable[tuple[str, str]]:
    """Add a word's pairs, ``count`` times, or take them away again."""
    own = list(pairwise(pieces))
    for pair in own:
        pairs[pair] += count
        if count > 0:
            where[pair].add(number)
        else:
            where[pair].discard(number)
    return own


def _merge(pieces: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    """Put ``merged`` in place of each ``pair`` of neighbours, from the left."""
    result: list[str] = []
    i = 0
    while i < len(pieces):
        if i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == pair:
            result.append(merged)
            i += 2
        else:
            result.append(pieces[i])
            i += 1
    return result
