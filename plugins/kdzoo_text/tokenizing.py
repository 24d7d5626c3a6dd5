"""From sentences to rows of ids: a checkpoint's tokenizer, or a WordPiece trained on the training split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from kdzoo.api.data import DataError, DataSplits, OfferOptions, Tokens, TokenSplit
from kdzoo_text.checkpoints import located, not_found, suppress_output, tokenizers, transformers
from kdzoo_text.wordpiece import learn

#: A split as it was read: sentences and the name of each one's class.
Labelled = Sequence[tuple[str, str]]
#: The special pieces of a WordPiece that is trained here; the first fills rows up.
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class TextOptions(OfferOptions):
    """Options that every data set of text has."""

    tokenizer: str = Field(
        "wordpiece", description="A folder or a name of the hub with a tokenizer; wordpiece: one trained on the data."
    )
    vocab_size: int = Field(4000, ge=32, le=1_000_000, description="Most pieces of a tokenizer that is trained here.")
    max_length: int = Field(64, ge=4, le=4096, description="Tokens of a sentence; what is longer loses its end.")


def below(root: Path, name: str, title: str) -> Path:
    """Return the file ``name`` of the data root, links allowed; raise DataError if it would be outside of it."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{title}: {name} lies outside of the data root '{root}'; set data.root")
    return root / name


def has_surrogates(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which is no character and which no tokenizer takes."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def splits_of(
    title: str,
    options: TextOptions,
    train: Labelled,
    validation: Labelled | None,
    test: Callable[[], Labelled],
    *,
    source: str,
    licence: str = "",
) -> DataSplits:
    """Return the splits of sentences; classes are those of the training split, by name. Raises DataError."""
    classes = tuple(sorted({label for _, label in train}))
    number = {label: k for k, label in enumerate(classes)}
    tokenizer, tokens = chosen(title, options, [text for text, _ in train])

    def encoded(which: str, rows: Labelled) -> TokenSplit:
        unknown = next((label for _, label in rows if label not in number), None)
        if unknown is not None:
            raise DataError(f"{title}, split {which}: class '{unknown}' is none of the training split")
        ids = [encoding.ids for encoding in tokenizer.encode_batch([text for text, _ in rows])]
        filled = np.full((len(ids), max(map(len, ids), default=1)), tokens.pad, dtype=np.int32)
        for row, own in zip(filled, ids, strict=True):
            row[: len(own)] = own
        return TokenSplit(filled, np.array([number[label] for _, label in rows], dtype=np.int64))

    trained = encoded("train", train)
    return DataSplits(
        train=trained,
        test=lambda: encoded("test", test()),
        validation=None if validation is None else encoded("validation", validation),
        classes=classes,
        channels=1,
        size=(trained.ids.shape[1], 1),
        mean=(0.0,),
        std=(1.0,),
        source=source,
        licence=licence,
        tokens=tokens,
    )


def chosen(title: str, options: TextOptions, texts: Sequence[str]) -> tuple[Any, Tokens]:
    """Return the tokenizer that the options name, which cuts at ``max_length`` and does not pad, and its ``Tokens``."""
    if options.tokenizer == "wordpiece":
        tokenizer, names = trained_wordpiece(texts, options.vocab_size), SPECIAL[:2]
    else:
        try:
            with suppress_output():
                outer = transformers().AutoTokenizer.from_pretrained(located(options.tokenizer))
        except Exception as error:  # transformers and the hub raise whatever they like; it is reported with its cause
            raise DataError(f"{title}: tokenizer {not_found(options.tokenizer, error)}") from error
        names = (outer.pad_token, outer.unk_token)
        if None in names or not outer.is_fast:
            raise DataError(
                f"{title}: tokenizer '{options.tokenizer}' has no {'pad' if names[0] is None else 'unknown'} token, or "
                "no fast version; choose one with both"
            )
        tokenizer = outer.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.enable_truncation(options.max_length)
    pad, unknown = (tokenizer.token_to_id(name) for name in names)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": names[0],
        "unk_token": names[1],
        "model_max_length": options.max_length,
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": json.dumps(config, indent=1).encode(),
    }
    return tokenizer, Tokens(tokenizer.get_vocab_size(), pad, unknown, files)


def trained_wordpiece(texts: Sequence[str], vocab_size: int) -> Any:
    """Return a lower-case WordPiece tokenizer trained on ``texts``; a sentence is [CLS] pieces [SEP]."""
    library = tokenizers()
    normalizer = library.normalizers.BertNormalizer(lowercase=True)
    splitter = library.pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    pieces = [*SPECIAL, *learn(words, vocab_size - len(SPECIAL))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token=SPECIAL[1]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    begin, end = SPECIAL[2:]
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.decoder = library.decoders.WordPiece()
    return tokenizer
