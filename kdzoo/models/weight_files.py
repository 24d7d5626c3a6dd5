"""Files of weights as people have them: which tensors they hold, by which names, and what they say of themselves."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import pathlib
import pickle
import re
import sys
import types
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from kdzoo.errors import ModelError, in_words, nearest, plain

#: Keys of a checkpoint below which the weights lie; of several the first that is there. Averaged weights come first:
#: timm's script evaluates those, so the accuracy that a checkpoint states is theirs.
KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "net")
#: What DistributedDataParallel and torch.compile put in front of each name, in any order.
PREFIXES = ("module.", "_orig_mod.")
#: Keys below which training scripts keep the top-1 accuracy of a checkpoint.
ACCURACIES = ("metric", "best_metric", "best_acc1", "best_prec1", "best_acc", "top1", "acc1", "acc")

#: Plain values of Python and numpy that training scripts keep beside the weights.
PLAIN_VALUES: list[Any] = [
    *(bool, int, float, str, list, dict, tuple),
    *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta),
    argparse.Namespace,
    types.SimpleNamespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("?", "i1", "u1", "i2", "i4", "i8", "f2", "f4", "f8")},
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(
        (pathlib.PurePosixPath, f"pathlib{part}.{kind}Path")
        for part in ("", "._local")
        for kind in ("Posix", "Windows")
    ),
]

#: What the first bytes of other files say. Bytes -> (what the file is, what would be right).
KINDS = {
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "fetch it with git lfs pull"),
    b"<!DOCTYPE": ("a web page, not a file of weights", "download the file itself"),
    b"<html": ("a web page, not a file of weights", "download the file itself"),
    b"\x89HDF": ("an HDF5 file, as Keras writes it", "torch.save(model.state_dict(), ...) of a PyTorch model"),
    b"GGUF": ("a GGUF file", "torch.save(model.state_dict(), ...) of a PyTorch model"),
}


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file by their plain names, and what the file says of them."""

    path: Path
    tensors: Mapping[str, Tensor]
    key: str = ""  # below which the tensors lie, e.g. "state_dict_ema"; empty: the file holds nothing else
    prefix: str = ""  # that was taken off the names, e.g. "module."
    architecture: str | None = None
    steps: Mapping[str, Any] = field(default_factory=dict)  # preprocessing of its training, by a recipe's keys
    by_timm: bool = False  # whether timm's training script wrote it
    top1_percent: float | None = None  # that is stated of these weights
    stated_by: str = ""  # the name of the file that states it: this one, or a model card or results next to it

    def sentence(self) -> str:
        """Which weights of the file are used, in words."""
        return ", ".join([self.path.name, *self.remarks()])

    def remarks(self) -> list[str]:
        """What was found in the file, each in a few words."""
        parts = []
        if self.key:
            parts.append(f"its '{self.key}'")
        if self.prefix:
            parts.append(f"names without '{self.prefix}'")
        if self.top1_percent is not None:
            parts.append(f"{self.top1_percent:.2f} % stated by {self.stated_by}")
        return parts


def read_weights(path: Path, key: str | None = None) -> WeightFile:
    """Read a file of weights without running any code in it.

    Takes .safetensors and what torch.save writes, whatever its name. ``key`` says below which key of the file the
    weights lie; None takes the first of KEYS that is there, or the file as a whole. Raises ModelError that says what
    was found instead.
    """
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if name.endswith((".safetensors", ".pth", ".pt", ".bin")))
        example = f"; {path / names[0]} may be right" if names else ""
        raise ModelError(f"{path}: is a folder; weights are a file{example}")
    if not os.path.isfile(path):  # unlike Path.is_file, also False for a name that is too long
        raise ModelError(f"{path}: no such file of weights; weights are train, pretrained, hf-hub:<name> or a file")
    with open(path, "rb") as file:
        head = file.read(64)
    for start, (what, instead) in KINDS.items():
        if head.startswith(start):
            raise ModelError(f"{path}: is {what}; {instead}")
    if path.suffix == ".onnx":
        raise ModelError(f"{path}: is an ONNX file, which cannot be trained or taught from; {_RIGHT}")
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    return _described(path, content, key)


_RIGHT = "torch.save(model.state_dict(), 'weights.pth') of the model that it was made from would be right"


def _safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # a damaged file makes the readers fail in many ways
        raise _unreadable(path, error) from error


def _torch_file(path: Path) -> Any:
    """Read what torch.save wrote through ``weights_only``: objects of unknown classes become empty stand-ins."""
    named = _named_objects(path)
    held = [name for name in named if not _from_python(name)]
    try:
        with torch.serialization.safe_globals([*PLAIN_VALUES, *map(_stand_in, held)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error) and not _begins_as_zip(path):
            raise _neither(path) from error
        others = ", ".join(plain(name, 60) for name in named if name not in held)
        what = f"more than tensors ({others})" if others else "more than tensors"
        raise ModelError(
            f"{path}: holds {what}, so it could run code and was not read; save model.state_dict() instead"
        ) from error
    except Exception as error:  # a damaged file makes the readers fail in many ways
        raise (_unreadable(path, error) if _begins_as_zip(path) else _neither(path)) from error


def _begins_as_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _neither(path: Path) -> ModelError:
    return ModelError(f"{path}: cannot be read as weights: neither torch.save nor safetensors writes such a file")


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path}: cannot be read as weights: {in_words(error)}")


def _named_objects(path: Path) -> list[str]:
    """Return the classes and functions that a file names besides plain values; nothing of them is imported.

    Raises ModelError for a file that holds a program: a whole model, TorchScript, or what torch.export writes.
    """
    if not _begins_as_zip(path):  # damaged, or from before torch 1.6: weights and plain values only
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
        with torch.serialization.safe_globals(PLAIN_VALUES):
            named = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) if _is_pickle(members) else []
    except Exception:  # torch.load says what is wrong with it
        return []
    if any(member.endswith("/constants.pkl") or "/code/" in member for member in members):
        raise ModelError(f"{path}: is a TorchScript file, a program with weights inside; {_RIGHT}")
    if any(member.endswith(("/archive_format", "models/model.json")) for member in members):
        raise ModelError(f"{path}: is a file of torch.export, a program with weights inside; {_RIGHT}")
    modules = [name for name in named if name.startswith(MODULES) and not name.startswith("torch.nn.modules.loss.")]
    if modules:
        first = next((name for name in modules if not name.startswith("torch.nn.modules.")), modules[0])
        raise ModelError(
            f"{path}: holds a whole pickled model ({plain(first, 100)}), which only code can open; "
            "torch.save(model.state_dict(), 'weights.pth') would be right"
        )
    return named


#: What the names of networks' classes begin with.
MODULES = ("torch.nn.modules.", "torch.nn.parallel.", "timm.models.")


def _is_pickle(members: Sequence[str]) -> bool:
    return not any("/code/" in member or member.endswith("/constants.pkl") for member in members)


def _from_python(name: str) -> bool:
    """Whether something is of the standard library, which could run code; a mapping with defaults cannot."""
    return name.partition(".")[0] in sys.stdlib_module_names and name != "collections.defaultdict"


def _stand_in(name: str) -> tuple[Any, str]:
    """Return an empty thing for a class that holds no weights, e.g. a script's settings, and the class's name."""
    is_mapping = name.endswith(("Dict", ".defaultdict"))
    return (_Mapping if is_mapping else type("StandIn", (_StandIn,), {})), name


class _StandIn:
    """Takes the place of an object that is not read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __new__(cls, *args: Any, **kwargs: Any) -> _StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...


class _Mapping:
    """Takes the place of a class of mappings; its objects are plain dicts."""

    def __new__(cls, *args: Any) -> Any:
        return {}


def _described(path: Path, content: Any, key: str | None) -> WeightFile:
    """Find the tensors in what a file holds."""
    top = content if isinstance(content, dict) else {}
    found, below = (content, "") if key is None else _below(path, top, key)
    while key is None and isinstance(found, dict) and not _by_name(found):
        known = next((each for each in KEYS if isinstance(found.get(each), dict)), None)
        if known is None:
            break
        found, below = found[known], f"{below}.{known}".lstrip(".")
    if not _by_name(found):
        raise ModelError(f"{path}: {_no_tensors(top)}")
    tensors, prefixes = {}, set()
    for name, value in found.items():
        bare = _bare(str(name))
        prefixes.add(str(name).removesuffix(bare))
        tensors[bare] = value
    tensors.pop("n_averaged", None)  # torch's AveragedModel counts what it averaged
    architecture = top.get("arch")
    settings = vars(top["args"]) if isinstance(top.get("args"), argparse.Namespace) else {}
    first = next((each for each in KEYS if isinstance(top.get(each), dict)), None)
    stated, by = (_stated_top1(top) if key in (None, first) else None), path.name  # it is of the first ones
    if stated is None and key is None:
        stated, by = _stated_next_to(path)
    return WeightFile(
        path,
        tensors,
        below,
        max(prefixes, key=len),
        architecture if isinstance(architecture, str) else None,
        _stated_steps(settings),
        "eval_metric" in settings,
        stated,
        by if stated is not None else "",
    )


def _by_name(found: Any) -> bool:
    return isinstance(found, dict) and bool(found) and all(isinstance(value, Tensor) for value in found.values())


def _below(path: Path, top: Mapping[Any, Any], key: str) -> tuple[Any, str]:
    if not isinstance(top.get(key), dict):
        known = [str(each) for each, value in top.items() if isinstance(value, dict)]
        listed = ", ".join(plain(each) for each in known[:10]) or "none"
        raise ModelError(f"{path}: holds no weights below '{plain(key)}'{nearest(key, known) or ';'} known: {listed}")
    return top[key], key


def _no_tensors(top: Mapping[Any, Any]) -> str:
    """Say what is there instead of weights, and what would be right."""
    able = [str(key) for key, value in top.items() if _by_name(value)]
    if able:
        return f"holds weights below {', '.join(map(plain, able[:5]))}; say which: weights_key: {plain(able[0])}"
    return "holds no tensors by name; model.state_dict() would be right"


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
    return name


def _stated_steps(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing that the settings of timm's training script name, by a recipe's keys."""
    steps: dict[str, Any] = {}
    size = settings.get("img_size")
    if isinstance(settings.get("input_size"), list | tuple) and len(settings["input_size"]) == 3:
        size = list(settings["input_size"][1:])
    for key, value in {
        "size": size,
        "crop_share": settings.get("crop_pct"),
        "resize": settings.get("crop_mode"),
        "mean": settings.get("mean"),
        "std": settings.get("std"),
    }.items():
        if isinstance(value, str if key == "resize" else int | float | list | tuple) and value:
            steps[key] = list(value) if isinstance(value, tuple) else value
    if settings.get("interpolation") in ("nearest", "bilinear", "bicubic", "lanczos"):
        steps["interpolation"] = settings["interpolation"]
    return steps


def _stated_top1(top: Mapping[Any, Any]) -> float | None:
    """The top-1 accuracy in percent that a checkpoint states, where it states one."""
    judged_by = getattr(top.get("args"), "eval_metric", "top1")
    if judged_by != "top1":  # timm's script keeps that metric instead
        return None
    for key in ACCURACIES:
        value = top.get(key)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if (percent := _percent(value)) is not None:
            return percent
    return None


def _percent(value: Any) -> float | None:
    """An accuracy in percent, where a number can be one; a number up to 1 is a share."""
    if not isinstance(value, int | float | np.number) or isinstance(value, bool):
        return None
    number = float(value)
    if not math.isfinite(number) or not 0 < number <= 100:
        return None
    return number if number > 1 else 100 * number


def _stated_next_to(path: Path) -> tuple[float | None, str]:
    """The accuracy that is stated next to a file, by the results of a run of kdzoo or by a model card."""
    with contextlib.suppress(OSError, ValueError, AttributeError, LookupError, TypeError, yaml.YAMLError):
        if path.name == "student.safetensors":
            results = json.loads((path.parent / "results.json").read_text())
            return _percent(results["student"]["top1_percent"]), "results.json"
        head = re.match(r"---\n(.*?)\n---\n", (path.parent / "README.md").read_text(), re.DOTALL)
        for model in yaml.safe_load(head[1] if head else "").get("model-index") or ():
            for metric in [metric for result in model["results"] for metric in result["metrics"]]:
                if metric["type"] in ("accuracy", "top1", "top-1"):
                    return _percent(metric["value"]), "README.md"
    return None, ""


def wrapped_by(names: Sequence[str], own: Sequence[str]) -> str | None:
    """Return what stands before each of a model's ``own`` names among ``names``, e.g. "model."; None: no such thing.

    Lightning keeps a model as an attribute of another module, so its files have the attribute's name in front.
    """
    first = own[0]
    for prefix in sorted({name.removesuffix(first) for name in names if name.endswith(f".{first}")}, key=len):
        if all(prefix + name in names for name in own if not name.endswith(".num_batches_tracked")):
            return prefix
    return None
