"""Any sequence classifier of transformers behind timm's interface, and BERTs of small sizes that need no checkpoint.

A model reads ids of the data set's tokenizer whatever the size of its own word table: one that keeps only the pieces of
the training split looks each id up in a table of rows first, inside the model and so inside the exported file.

Sizes: Turc, Chang, Lee, Toutanova, "Well-Read Students Learn Better", 2019, https://arxiv.org/abs/1908.08962.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.models import register_model
from torch import Tensor, nn

from kdzoo.api.models import ModelError
from kdzoo_text.checkpoints import located, not_found, suppress_output, transformers

#: Of a checkpoint's configuration: what belongs to the file it came from, or to other classes.
FOREIGN = ("architectures", "id2label", "label2id", "num_labels", "_name_or_path", "dtype", "problem_type")
#: What the names of transformers' tensors begin with in here.
INNER = "network."
#: What configurations call the number of units in the feed-forward of a layer.
FEED_FORWARD = ("intermediate_size", "hidden_dim", "n_inner")


#: How a run folder is used, the labels and the tokenizer included.
USAGE = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(".").eval()
tokenizer = AutoTokenizer.from_pretrained(".")
ids = tokenizer("your text", truncation=True, return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = model(input_ids=ids).logits
answer = model.config.id2label[int(logits.argmax())]"""


@dataclass(frozen=True)
class Ends:
    """What a whole pass ends in. The parts of these models are not called one by one."""

    logits: Tensor  # (N, K)
    pre_logits: Tensor  # (N, D)


class TextClassifier(nn.Module):
    """A sequence classifier that takes ids (N, L), int64, filled up by ``tokens["pad"]``, and gives logits (N, K).

    ``rows`` is the number of pieces its word table holds: None is all that the tokenizer knows. ``kept`` are their
    ids; they may be left out where the weights, which hold the look-up, are loaded afterwards. ``layers`` says which
    of a deeper network's layers ``take_over`` takes. Levels are the layers; features are zero at fill.
    """

    row_of: Tensor  # (vocab_size,), the row of each id; only where rows were chosen
    architecture: str | None = None  # what it is, where the name of the model does not say so

    def __init__(
        self,
        config: Any,
        tokens: Mapping[str, Any],
        num_classes: int,
        rows: int | None = None,
        kept: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        fresh_head: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.fresh_head = num_classes, fresh_head
        self.vocab_size, self.pad = int(tokens["vocab_size"]), int(tokens["pad"])
        self.layers = None if layers is None else list(layers)
        self.kept = None if kept is None else list(kept)
        self.rows = rows
        if rows is not None:
            self.register_buffer("row_of", torch.zeros(self.vocab_size, dtype=torch.int64))
            if self.kept is not None:
                self.row_of.fill_(self.kept.index(int(tokens["unknown"])))
                self.row_of[self.kept] = torch.arange(rows)
        with suppress_output():
            self.network = transformers().AutoModelForSequenceClassification.from_config(config)
        width = int(config.hidden_size)
        self.feature_info = [
            {"module": f"layer {i}", "num_chs": width, "reduction": 1} for i in range(config.num_hidden_layers)
        ]
        plain = {key: value for key, value in config.to_diff_dict().items() if key not in FOREIGN}
        self.create_args = {
            "num_classes": num_classes,
            "tokens": {key: int(tokens[key]) for key in ("vocab_size", "pad", "unknown")},
            "config": plain,
            **({} if rows is None else {"rows": rows}),
        }

    # --- files --------------------------------------------------------------------------------

    def file_name(self, key: str) -> str:
        """Return under which name a tensor is delivered: the one that transformers gives it."""
        return key.removeprefix(INNER)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load tensors by their names here or by those in files."""
        inner = {f"{INNER}{key}" for key in self.network.state_dict()}
        named = {INNER + key if INNER + key in inner else key: value for key, value in state_dict.items()}
        return super().load_state_dict(named, strict, assign)

    def files_beside(self, weights: str, classes: Sequence[str]) -> dict[str, bytes]:
        """Return what transformers needs beside the file ``weights`` to load it, by name.

        Nothing for a table of chosen rows: transformers knows no look-up from ids to rows.
        """
        if self.rows is not None:
            return {}
        told = self.network.config.to_dict() | {
            "architectures": [type(self.network).__name__],
            "id2label": dict(enumerate(classes)),
            "label2id": {name: k for k, name in enumerate(classes)},
            "transformers_weights": weights,
        }
        return {"config.json": json.dumps(told, indent=1).encode()}

    def usage_beside(self) -> dict[str, str]:
        """Return how transformers loads the run folder and answers a text; run from the run folder."""
        return {"title": "With transformers alone", "code": USAGE}

    # --- timm's interface ---------------------------------------------------------------------

    def forward(self, ids: Tensor) -> Tensor:
        return self._run(ids).logits

    def forward_features(self, ids: Tensor) -> Ends:
        return self.forward_intermediates(ids, indices=[])[0]

    def forward_head(self, ends: Ends, pre_logits: bool = False) -> Tensor:
        return ends.pre_logits if pre_logits else ends.logits

    def forward_intermediates(
        self, ids: Tensor, indices: Sequence[int] | None = None, output_fmt: str = "NCHW"
    ) -> tuple[Ends, list[Tensor]]:
        """Return what the pass ends in and the hidden states after the layers ``indices``, each (N, D, L, 1)."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: '{output_fmt}'; NCHW would be right")
        taken: list[Tensor] = []
        handle = self._classifier().register_forward_pre_hook(lambda module, args: taken.append(args[0]))
        try:
            outputs = self._run(ids, output_hidden_states=True)
        finally:
            handle.remove()
        real = (ids != self.pad)[:, None, :, None]
        embedding = taken[-1]
        if embedding.dim() == 3:  # a decoder answers at every token; the last one has read all others
            embedding = embedding[torch.arange(len(ids), device=ids.device), (ids != self.pad).sum(1) - 1]
        wanted = range(len(self.feature_info)) if indices is None else indices
        states = [outputs.hidden_states[1 + i].transpose(1, 2)[..., None] * real for i in wanted]
        return Ends(outputs.logits, embedding), states

    def _run(self, ids: Tensor, **further: Any) -> Any:
        rows = ids if self.rows is None else self.row_of[ids]
        return self.network(input_ids=rows, attention_mask=(ids != self.pad).long(), **further)

    def _classifier(self) -> nn.Linear:
        linear = [part for part in self.network.modules() if isinstance(part, nn.Linear)]
        return next(part for part in reversed(linear) if part.out_features == self.num_classes)

    # --- first weights from another network ---------------------------------------------------

    def take_over(self, other: nn.Module) -> None:
        """Take the weights of a network that differs in its layers, of which ``layers`` are taken, and its table.

        Of feed-forwards with more units, the units that weigh most are taken; see ``narrowed``.
        Raises ModelError, saying what does not fit, where it differs otherwise.
        """
        if not isinstance(other, TextClassifier):
            raise ModelError(f"a text classifier cannot start from a {type(other).__name__}")
        own, theirs = self.network.state_dict(), other.network.state_dict()
        depth, theirs_deep = len(self.feature_info), len(other.feature_info)
        chosen = list(range(depth)) if self.layers is None else self.layers
        if (self.layers is None and depth != theirs_deep) or max(chosen) >= theirs_deep:
            raise ModelError(
                f"layers: {self.layers} of a network with {theirs_deep} layers; name {depth} of 0 to {theirs_deep - 1}"
            )
        prefix, table = self._layer_prefix(), self._table_name()
        offered = {key: value for key, value in theirs.items() if not key.startswith(prefix)}
        for number, source in enumerate(chosen):
            ours, layer = f"{prefix}{number}.", f"{prefix}{source}."
            of_layer = {ours + key.removeprefix(layer): theirs[key] for key in theirs if key.startswith(layer)}
            offered |= of_layer | narrowed({key: own[key] for key in own if key.startswith(ours)}, of_layer)
        unlike = []
        for key, value in own.items():
            if key == table:
                continue
            if key not in offered or offered[key].shape != value.shape:
                unlike.append(f"{key} {tuple(value.shape)}")
            else:
                value.copy_(offered[key])
        pieces = torch.tensor(range(self.vocab_size) if self.kept is None else self.kept)
        if other.vocab_size != self.vocab_size or theirs[table].shape[1] != own[table].shape[1]:
            unlike.append(f"{table} {tuple(own[table].shape)}")
        else:
            rows = pieces if other.rows is None else other.row_of[pieces]
            own[table][: len(pieces)].copy_(theirs[table][rows])
        if unlike:
            more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
            raise ModelError(
                f"cannot take over tensors that the other network lacks or has in another shape: "
                f"{', '.join(unlike[:3])}{more}; only the layers, the units of their feed-forwards and the word table "
                "may be fewer"
            )

    def _layer_prefix(self) -> str:
        """Where the layers are, e.g. ``bert.encoder.layer.``."""
        depth = len(self.feature_info)
        lists = ((name, part) for name, part in self.network.named_modules() if isinstance(part, nn.ModuleList))
        found = next((name for name, part in lists if len(part) == depth), None)
        if found is None:
            raise ModelError(f"{type(self.network).__name__} has no list of {depth} layers to take layers over to")
        return f"{found}."

    def _table_name(self) -> str:
        table = self.network.get_input_embeddings().weight
        return next(name for name, value in self.network.named_parameters() if value is table)


def narrowed(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a layer's tensors in ``theirs`` whose units are more than ``own`` has, cut to the units that weigh most.

    A unit is a row of one matrix and a column of another; it weighs what the Euclidean norms of the two multiply to.
    Units stay in their order. Empty where no such pair of matrices differs in this way alone.
    """
    unlike = {key for key, value in own.items() if key in theirs and theirs[key].shape != value.shape}
    matrices = [key for key in unlike if own[key].dim() == 2 and theirs[key].dim() == 2]
    by_row = next((key for key in matrices if own[key].shape[1] == theirs[key].shape[1]), None)
    by_column = next((key for key in matrices if own[key].shape[0] == theirs[key].shape[0]), None)
    if by_row is None or by_column is None:
        return {}
    units, wanted = len(theirs[by_row]), len(own[by_row])
    if wanted > units or (theirs[by_column].shape[1], own[by_column].shape[1]) != (units, wanted):
        return {}
    weight = theirs[by_row].norm(dim=1) * theirs[by_column].norm(dim=0)
    kept = weight.topk(wanted).indices.sort().values
    biases = (key for key in unlike if theirs[key].shape == (units,) and own[key].shape == (wanted,))
    return {
        by_row: theirs[by_row][kept],
        by_column: theirs[by_column][:, kept],
        **{key: theirs[key][kept] for key in biases},
    }


# --- making them ------------------------------------------------------------------------------


def build(
    pretrained: bool,
    *,
    num_classes: int,
    tokens: Mapping[str, Any],
    checkpoint: str | None = None,
    config: Mapping[str, Any] | None = None,
    layers: Sequence[int] | None = None,
    feed_forward: int | None = None,
    table: Literal["all", "training"] = "all",
    rows: int | None = None,
    **_: Any,  # what timm hands to every model, as pretrained_cfg
) -> TextClassifier:
    """Make a classifier from a checkpoint's configuration, or from ``config`` alone; ``pretrained`` takes its weights.

    ``config`` overrides a checkpoint's, ``layers`` chooses some of its layers, ``feed_forward`` is how many units each
    layer's feed-forward keeps, and ``table: training`` keeps the rows of the pieces that occur in the training split;
    any other piece is then unknown.
    """
    if table not in ("all", "training"):
        raise ModelError(f"args.table: {table!r}; all or training would be right")
    if checkpoint is None and not (config or {}).get("model_type"):
        raise ModelError("args: name a checkpoint, or a config with a model_type, e.g. bert")
    if pretrained and checkpoint is None:
        raise ModelError("weights: pretrained needs args.checkpoint, a folder or a name of the hub")
    whole = described(checkpoint, dict(config or {}), num_classes)
    if checkpoint is None:
        whole.vocab_size = rows or int(tokens["vocab_size"])
        if rows is None:
            whole.pad_token_id = int(tokens["pad"])
    elif int(tokens["vocab_size"]) > whole.vocab_size or int(tokens["pad"]) != whole.pad_token_id:
        raise ModelError(
            f"checkpoint '{checkpoint}': its word table has {whole.vocab_size} rows and fills up with "
            f"{whole.pad_token_id}, the data set's tokenizer {tokens['vocab_size']} pieces and {tokens['pad']}; give "
            "the data set the checkpoint's tokenizer"
        )
    own = transformers().AutoConfig.for_model(**whole.to_dict())
    if layers is not None:
        if not layers or min(layers) < 0 or max(layers) >= whole.num_hidden_layers:
            raise ModelError(f"args.layers: {list(layers)}; some of 0 to {whole.num_hidden_layers - 1} would be right")
        own.num_hidden_layers = len(layers)
    if feed_forward is not None:
        name = next((each for each in FEED_FORWARD if hasattr(type(whole)(), each)), "")
        units = getattr(whole, name, None)
        if units is None:
            told = ", ".join(FEED_FORWARD)
            raise ModelError(f"args.feed_forward: this {whole.model_type} gives none of {told}; leave it out")
        if not 0 < feed_forward <= units:
            raise ModelError(f"args.feed_forward: {feed_forward}; 1 to {units} would be right")
        setattr(own, name, feed_forward)
    kept: list[int] | None = None
    if table == "training":
        kept = sorted({int(tokens["pad"]), int(tokens["unknown"]), *tokens["seen"]})
        rows = own.vocab_size = len(kept)
        own.pad_token_id = kept.index(int(tokens["pad"]))
    ready, fresh_head = None, False
    if pretrained:
        assert checkpoint is not None, "checked above"
        ready, fresh_head = weights_of(checkpoint, whole, tokens, num_classes)
    model = TextClassifier(own, tokens, num_classes, rows, kept, layers, fresh_head)
    if ready is not None:
        with torch.no_grad():
            model.take_over(ready)
    return model


def described(checkpoint: str | None, config: dict[str, Any], num_classes: int) -> Any:
    """The configuration of a whole network for so many classes."""
    library = transformers()
    config = {key: value for key, value in config.items() if key not in FOREIGN}
    try:
        with suppress_output():
            if checkpoint is None:
                return library.AutoConfig.for_model(**config, num_labels=num_classes)
            return library.AutoConfig.from_pretrained(located(checkpoint), **config, num_labels=num_classes)
    except Exception as error:  # transformers and the hub raise whatever they like; it is reported with its cause
        what = f"checkpoint {not_found(checkpoint, error)}" if checkpoint else f"args.config: {str(error)[:300]}"
        raise ModelError(what) from error


def weights_of(
    checkpoint: str, config: Any, tokens: Mapping[str, Any], num_classes: int
) -> tuple[TextClassifier, bool]:
    """The whole pretrained network, and whether its classifier starts anew."""
    library = transformers()
    whole = TextClassifier(config, tokens, num_classes)
    try:
        with suppress_output():
            network, told = library.AutoModelForSequenceClassification.from_pretrained(
                located(checkpoint), config=config, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except Exception as error:  # as above
        raise ModelError(f"checkpoint {not_found(checkpoint, error)}") from error
    whole.network = network.float()
    return whole, bool(told["missing_keys"] or told["mismatched_keys"])


#: Layers, width and heads of BERTs that are trained from scratch.
SIZES = {"text_bert_tiny": (2, 128, 2), "text_bert_mini": (4, 256, 4), "text_bert_small": (4, 512, 8)}


@register_model
def text_classifier(pretrained: bool = False, *, tokens: Mapping[str, Any], **kwargs: Any) -> nn.Module:
    """Make a sequence classifier from args.checkpoint or args.config."""
    model = build(pretrained, tokens=tokens, **kwargs)
    config = model.network.config  # the name says nothing of the architecture
    model.architecture = f"{config.model_type}, {config.num_hidden_layers} layers of {config.hidden_size}"
    return model


def _sized(name: str) -> str:
    layers, width, heads = SIZES[name]

    def entry(pretrained: bool = False, *, tokens: Mapping[str, Any], **kwargs: Any) -> nn.Module:
        config = {
            "model_type": "bert",
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            **(kwargs.pop("config", None) or {}),
        }
        return build(pretrained, tokens=tokens, config=config, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"Make a BERT of {layers} layers, {width} wide."
    register_model(entry)
    return name


models = ("text_classifier", *(_sized(name) for name in SIZES))
