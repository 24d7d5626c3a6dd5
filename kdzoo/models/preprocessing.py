"""What is known of a model's own way from an image file to its input: timm's data config, or kdzoo's student.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config
from timm.models import PretrainedCfg

from kdzoo.contract.preprocessing import Preprocessing, color_mode_of
from kdzoo.contract.stage import ModelSpec
from kdzoo.errors import ModelError
from kdzoo.storage.json_reading import JsonError, parse_object


def timm_preprocessing(spec: ModelSpec, settings: PretrainedCfg | None) -> Preprocessing:
    """Return the steps of timm's data config; raise ModelError for a network of so many channels that no image has."""
    config: Mapping[str, Any] = resolve_data_config(pretrained_cfg=settings.to_dict() if settings is not None else {})
    channels = int(spec.args.get("in_chans", config["input_size"][0]))
    try:
        mode = color_mode_of(channels)
    except ValueError as error:
        raise ModelError(f"model '{spec.name}': {error}; image files have one of these") from error
    size = spec.args.get("img_size", config["input_size"][1:])
    steps = Preprocessing(
        crop_share=float(config["crop_pct"]),
        resize=config["crop_mode"],
        interpolation=config["interpolation"] if config["interpolation"] != "random" else "bilinear",
        color_mode=color_mode_of(len(config["mean"])),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    return steps.changed({"size": size if isinstance(size, int) else tuple(size), "color_mode": mode})


def written_preprocessing(spec: ModelSpec) -> Preprocessing | None:
    """Return the steps that student.json beside a file of weights holds; None where there is none, or none of files."""
    file = Path(spec.weights).expanduser()
    if file.name != "student.safetensors":
        return None
    try:
        told = parse_object((file.parent / "student.json").read_bytes())
        inputs = told["preprocessing"]
        image = Preprocessing.from_record({**inputs["image"], "mean": inputs["mean"], "std": inputs["std"]})
    except (OSError, JsonError, KeyError, TypeError, ValueError):  # it says nothing of files
        return None
    return image if told.get("model") == spec.name else None
