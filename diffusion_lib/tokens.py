"""Captions as numbers: one token a word."""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from . import grammar
from .networks.text import PAD, START

VOCABULARY = ["", "<start>", *grammar.words()]  # a word's place here is its token
LENGTH = 18  # of the captions that the shipped networks read


def tokenise(
    captions: str | Sequence[str], length: int = LENGTH, new: Sequence[str] = ()
) -> Tensor:
    """Return each caption's tokens, (B, length) int64: START, its words, filling.

    Capitals, commas and full stops do not matter; "" gives the empty caption. new:
    words that a network learnt later (`add_word`), numbered after VOCABULARY's. Raises
    ValueError for a word that is in neither (naming the nearest that are) and for a
    caption of more than length - 1 words.
    """
    known = [*VOCABULARY, *new]
    captions = [captions] if isinstance(captions, str) else captions
    tokens = torch.full((len(captions), length), PAD)
    for row, caption in zip(tokens, captions, strict=True):
        numbers = [START, *(_number(word, known) for word in grammar.split(caption))]
        if len(numbers) > length:
            raise ValueError(f"{caption!r} has more than {length - 1} words")
        row[: len(numbers)] = torch.tensor(numbers)
    return tokens


def _number(word: str, vocabulary: list[str]) -> int:
    known = vocabulary[START + 1 :]
    if word not in known:
        near = difflib.get_close_matches(word, known, 3, 0.5)
        help_ = f"the nearest known are {near}" if near else f"the known are {known}"
        raise ValueError(f"unknown word {word!r}: {help_}")
    return vocabulary.index(word)


def detokenise(tokens: Tensor, new: Sequence[str] = ()) -> list[str]:
    """Return the captions of tokens (B, L), without start and filling.

    new: as in `tokenise`. Raises ValueError for a token that is no word's.
    """
    known, rows = [*VOCABULARY, *new], tokens.tolist()
    if strange := {n for row in rows for n in row if not 0 <= n < len(known)}:
        raise ValueError(
            f"tokens {sorted(strange)} are none of the {len(known)} words': give those "
            "that the network learnt later as new"
        )
    return [" ".join(known[n] for n in row if n not in (PAD, START)) for row in rows]
