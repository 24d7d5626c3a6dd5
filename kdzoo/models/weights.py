"""How weights get into a network and out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdzoo.errors import ModelError, plain
from kdzoo.models.weight_files import WeightFile, read_weights, wrapped_by

if TYPE_CHECKING:
    from kdzoo.models.network import Network


def load_weights(network: Network, path: Path, key: str | None = None) -> WeightFile:
    """Load a file of weights, strictly: every name and shape must be the model's own.

    ``key`` says below which key of the file the weights lie; None lets ``read_weights`` find it. Returns what the file
    says of itself, without its tensors. Raises ModelError that lists the differences.
    """
    read = read_weights(path, key)
    state = {_file_name(network.model, name): value for name, value in read.tensors.items()}
    own = delivered_weights(network.model)
    for name, value in own.items():
        if name.endswith(".num_batches_tracked"):  # counted since torch 0.4.1, and read by nothing in eval mode
            state.setdefault(name, value)
    _check_names(network, read, state, own)
    _check_types(path, state, own)
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ModelError(f"{path}: weights that are not finite: {', '.join(broken[:5])}")
    network.model.load_state_dict(state, strict=True)
    return replace(read, tensors={})


def _check_names(network: Network, read: WeightFile, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise ModelError where the tensors of a file are not those of the network, by name and shape."""
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)}, the model's {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if not (missing or unexpected or shapes):
        return
    lines = [f"{read.path}: not weights of '{network.spec.name}' with {network.num_classes} classes"]
    lines += _explained(network, read, state, own)
    for what, found in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes)):
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            lines.append(f"{what}: {', '.join(plain(name, 100) for name in found[:5])}{more}")  # a stranger's names
    raise ModelError("\n  ".join(lines))


def _explained(
    network: Network, read: WeightFile, state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Iterator[str]:
    """Say why the tensors of a file are others, where that can be seen."""
    if read.architecture not in (None, network.spec.name):
        yield f"model: the file says that it holds '{plain(str(read.architecture))}'"
    if (prefix := wrapped_by(list(state), list(own))) is not None:
        shown = plain(prefix)
        yield (
            f"names: each begins with '{shown}', as in a Lightning checkpoint; save "
            f"{{name.removeprefix('{shown}'): tensor for name, tensor in state_dict.items()}} instead"
        )
    ends = _classes_and_channels(network.model)
    for what, tensor, axis in (("classes", ends[0], 0), ("channels", ends[1], 1)):
        if tensor not in own or tensor not in state or state[tensor].ndim <= axis:
            continue
        theirs, ours = state[tensor].shape[axis], own[tensor].shape[axis]
        if theirs != ours and what == "classes":
            yield f"classes: {theirs} in the file, {ours} in the data; a teacher must be trained for the data's classes"
        elif theirs != ours:
            yield f"channels: {theirs} in the file, {ours} in the model; args: {{in_chans: {theirs}}} would be right"


def _classes_and_channels(model: nn.Module) -> tuple[str, str]:
    """Return the names of the weights of the last layer, by class, and of the first convolution, by channel."""
    classifier: Any = getattr(model, "get_classifier", lambda: None)()
    last = first = ""
    for name, module in model.named_modules():
        if module is classifier and isinstance(module, nn.Linear | nn.Conv2d):
            last = f"{name}.weight"
        if not first and isinstance(module, nn.Conv2d):
            first = f"{name}.weight"
    return last, first


def _check_types(path: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise ModelError for tensors that are not plain, or of another kind of number than the model's."""
    wrong = []
    for key, value in state.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            wrong.append(f"{plain(key, 100)}, which is sparse, quantized or has no content")
        elif value.is_complex() or value.is_floating_point() != own[key].is_floating_point():
            wrong.append(f"{plain(key, 100)}, {value.dtype}, the model's {own[key].dtype}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ModelError(f"{path}: weights of another type: {'; '.join(wrong[:5])}{more}")


def delivered_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors by the names that its file has.

    These are its own, unless it has a method ``file_name(key)``; then its ``load_state_dict`` takes both.
    """
    return {_file_name(model, key): value for key, value in model.state_dict().items()}


def _file_name(model: nn.Module, key: str) -> str:
    named: Any = getattr(model, "file_name", None)
    return key if named is None else str(named(key))


def files_beside(model: nn.Module, weights: str, classes: Sequence[str]) -> dict[str, bytes]:
    """Return what else a delivered model needs so that other libraries load the file ``weights``, by name.

    Nothing, unless the model has a method ``files_beside(weights, classes)``.
    """
    made: Any = getattr(model, "files_beside", None)
    return {} if made is None else dict(made(weights, classes))


def usage_beside(model: nn.Module) -> dict[str, str]:
    """Return the ``title`` and ``code`` of how another library loads a delivered model with its ``files_beside``.

    Nothing, unless the model has a method ``usage_beside()``.
    """
    made: Any = getattr(model, "usage_beside", None)
    return {} if made is None else dict(made())


def start_from(network: Network, other: Network) -> None:
    """Give ``network`` its first weights from another one, the teacher.

    One of the same tensors takes them all; any other must know how, by a method ``take_over(model)``. Raises
    ModelError where neither holds.
    """
    own, theirs = network.model.state_dict(), other.model.state_dict()
    if {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in theirs.items()}:
        network.model.load_state_dict(theirs, strict=True)
        return
    take_over: Any = getattr(network.model, "take_over", None)
    if take_over is None:
        raise ModelError(
            f"model '{network.spec.name}': weights: teacher, but '{other.spec.name}' has other tensors, and this model "
            "has no rule for which to take; choose the teacher's own architecture or other weights"
        )
    with torch.no_grad():
        take_over(other.model)


def weights_sha256(module: nn.Module) -> str:
    """Hash every parameter and buffer of a module, bit by bit."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())
