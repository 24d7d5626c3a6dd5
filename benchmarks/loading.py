"""Time how kdzoo and timm turn image files into batches, all in turn in one process with as many workers each.

    python benchmarks/loading.py --json benchmarks/results/loading.json

The files are made up: noise with the spectrum of photographs, saved as JPEG. Every round runs each loader over all
files once, and ratios are medians over rounds of the ratio within a round. Two numbers are measured: images a second by
the clock on the wall, and processor time an image of this process and its workers, which leaves out waiting for others
on a busy machine. Pixels are compared too: with Pillow's full decoding and resizing, on the 0 to 255 scale.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as kdzoo's command line sets it, here for both

import numpy as np
import torch
from PIL import Image
from provenance import write_result
from timm.data import create_dataset, create_loader
from torch import Tensor

from kdzoo.contract.preprocessing import Preprocessing
from kdzoo.data.data_set import DataSet, open_data
from kdzoo.data.loader import Loader
from kdzoo.recipe.image_sections import AugmentRecipe
from kdzoo.recipe.sections import DataRecipe
from kdzoo.zoo.loading import load_zoo

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATION = "bicubic"
CROP_SHARE = 0.875
SIDE = 224
#: Different images; the other files are copies of them under other names.
DIFFERENT = 24
Pass = Callable[[], Tensor]  # loads every file once; returns the last batch


@dataclass(frozen=True)
class Photographs:
    """Files of one size, and how many of them a round loads."""

    width: int
    height: int
    files: int
    quality: int = 90

    @property
    def title(self) -> str:
        return f"{self.width} x {self.height}"


SIZES = (Photographs(500, 375, 384), Photographs(2000, 1500, 96))


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Noise with the spectrum and the correlation of colours that photographs have."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1

    def layer(slope: float) -> np.ndarray:
        spectrum = np.exp(2j * np.pi * rng.random(frequency.shape)) / frequency**slope
        drawn = np.fft.irfft2(spectrum, s=(height, width))
        return drawn / drawn.std()

    light = layer(1.4)
    colours = [light + 0.4 * layer(1.6) for _ in range(3)]
    grain = rng.normal(0, 2, (height, width, 3))
    return Image.fromarray(np.clip(128 + 45 * np.stack(colours, -1) + grain, 0, 255).astype(np.uint8))


def write_files(folder: Path, photographs: Photographs) -> int:
    """Write the files in two classes, and two files of a test split; return the bytes of one, on average."""
    sizes = []
    for split, count in (("train", photographs.files), ("test", 2)):
        for i in range(count):
            path = folder / split / f"class_{i % 2}" / f"{i:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if i < DIFFERENT:
                image = photograph(photographs.width, photographs.height, seed=i + 1000 * (split == "test"))
                image.save(path, quality=photographs.quality)
                sizes.append(path.stat().st_size)
            else:
                first = i % DIFFERENT
                os.link(folder / split / f"class_{first % 2}" / f"{first:04d}.jpg", path)
    return round(sum(sizes) / len(sizes))


class Timm:
    """timm's loader, as its training script makes it on a machine without a GPU."""

    def __init__(self, folder: Path, batch_size: int, workers: int, training: bool) -> None:
        self.loader = create_loader(
            create_dataset("", root=str(folder / "train")),
            input_size=(3, SIDE, SIDE),
            batch_size=batch_size,
            is_training=training,
            interpolation=INTERPOLATION,
            mean=MEAN,
            std=STD,
            crop_pct=CROP_SHARE,
            color_jitter=0.0,
            num_workers=workers,
            device=CPU,
            persistent_workers=workers > 0,
        )

    def __call__(self) -> Tensor:
        for inputs, _ in self.loader:
            last = inputs
        return last


class Kdzoo:
    """kdzoo's loader, and the normalisation that its networks begin with."""

    def __init__(self, data: DataSet, batch_size: int, workers: int, training: bool) -> None:
        view = AugmentRecipe(crop_scale=(0.08, 1.0), flip=0.5)  # timm's own, without colour jitter
        self.loader = Loader(data, CPU, batch_size, view if training else "none", seed=0, workers=workers)
        self.data, self.training = data, training
        self.mean, self.std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (MEAN, STD))
        self.epoch = 0

    def __call__(self) -> Tensor:
        if self.training:
            batches = self.loader.train_batches(self.epoch, self.epoch)
        else:
            batches = self.loader.eval_batches("train", self.loader.batch_size)
        self.epoch += 1
        for batch in batches:
            last = self.data.inputs.preprocess(batch.inputs, self.mean, self.std)
        return last


def opened(folder: Path, decode: str) -> DataSet:
    """Open a folder as ``image_folder`` does."""
    preprocessing = {"crop_share": CROP_SHARE, "interpolation": INTERPOLATION, "decode": decode}
    written = {"name": "image_folder", "root": str(folder.parent), "validation": 0, "options": {"folder": folder.name}}
    recipe = DataRecipe.model_validate({**written, "preprocessing": {"size": SIDE, **preprocessing}})
    source = load_zoo().dataset("image_folder")
    return open_data(source(source.Options(folder=folder.name)), recipe, seed=0, config=Preprocessing)


def processor_seconds() -> float:
    """Processor time so far of this process and of the workers that it has now."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for process in multiprocessing.active_children():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


@dataclass
class Times:
    """Of each loader in each round: images a second on the wall, and processor time an image, ms."""

    rate: dict[str, list[float]]
    cost: dict[str, list[float]]

    def ratio(self, ours: str, theirs: str, what: str) -> float:
        """How many times faster ours is: the median over rounds of the ratio within a round."""
        values: dict[str, list[float]] = getattr(self, what)
        pairs = zip(values[ours], values[theirs], strict=True)
        return median(one / other if what == "rate" else other / one for one, other in pairs)


def race(loaders: Mapping[str, Pass], rounds: int, files: int) -> Times:
    """Run every loader in turn, round after round, after one pass of each to warm up."""
    for load in loaders.values():
        load()
    times = Times({name: [] for name in loaders}, {name: [] for name in loaders})
    for _ in range(rounds):
        for name, load in loaders.items():
            used, began = processor_seconds(), time.perf_counter()
            load()
            times.rate[name].append(files / (time.perf_counter() - began))
            times.cost[name].append((processor_seconds() - used) / files * 1e3)
    return times


def difference(inputs: Tensor, exact: Tensor) -> dict[str, float]:
    """How far pixels are from Pillow's full decoding, in levels of 0 to 255."""
    levels = (inputs - exact).mul(torch.tensor(STD).view(1, -1, 1, 1) * 255).round().abs()
    squares = levels.square().mean()
    return {
        "mean_levels": float(levels.mean()),
        "most_levels": float(levels.max()),
        "share_percent": 100 * float((levels > 0).float().mean()),
        "psnr_db": float(20 * torch.log10(255 / squares.sqrt())) if squares else float("inf"),
    }


#: Ours against theirs, at the same work.
PAIRS = {
    "exact": ("kdzoo, exact", "timm, evaluation"),
    "fast": ("kdzoo, fast", "timm, evaluation"),
    "training": ("kdzoo, training", "timm, training"),
}


def measure(photographs: Photographs, rounds: int, batch_size: int, workers: int) -> dict[str, Any]:
    """All loaders over files of one size."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size_bytes = write_files(folder, photographs)
        loaders: dict[str, Any] = {
            "timm, evaluation": Timm(folder, batch_size, workers, training=False),
            "kdzoo, exact": Kdzoo(opened(folder, "exact"), batch_size, workers, training=False),
            "kdzoo, fast": Kdzoo(opened(folder, "fast"), batch_size, workers, training=False),
            "timm, training": Timm(folder, batch_size, workers, training=True),
            "kdzoo, training": Kdzoo(opened(folder, "fast"), batch_size, workers, training=True),
        }
        theirs, exact, fast = (loaders[name]() for name in ("timm, evaluation", "kdzoo, exact", "kdzoo, fast"))
        pixels = {"exact": difference(exact, theirs), "fast": difference(fast, theirs)}
        times = race(loaders, rounds, photographs.files)
        del loaders
        gc.collect()  # ends the workers
    return {
        "files": photographs.title,
        "bytes_a_file": size_bytes,
        "files_a_round": photographs.files,
        "images_per_s": {name: median(values) for name, values in times.rate.items()},
        "processor_ms": {name: median(values) for name, values in times.cost.items()},
        "ratios": {name: {what: times.ratio(*pair, what) for what in ("rate", "cost")} for name, pair in PAIRS.items()},
        "pixels": pixels,
    }


def show(result: Mapping[str, Any]) -> None:
    print(f"\n{result['files']}, {result['bytes_a_file'] / 1e3:.0f} kB a file, to {SIDE} x {SIDE}")
    print(f"  {'':<20}{'images/s':>10}{'processor ms':>14}")
    for name, rate in result["images_per_s"].items():
        print(f"  {name:<20}{rate:>10.0f}{result['processor_ms'][name]:>14.2f}")
    for name, ratio in result["ratios"].items():
        print(f"  {name:<10} {ratio['rate']:.2f} times timm's images/s, {ratio['cost']:.2f} times by processor time")
    for name, far in result["pixels"].items():
        print(
            f"  {name:<10} pixels: {far['share_percent']:.2f} % differ from timm's, by {far['mean_levels']:.3f} levels "
            f"on average and {far['most_levels']:.0f} at most"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--files", type=int, help="files a round, for a quick try")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    results = []
    for photographs in SIZES:
        chosen = replace(photographs, files=options.files or photographs.files)
        results.append(measure(chosen, options.rounds, options.batch_size, options.workers))
        show(results[-1])
    if options.json:
        settings = {"rounds": options.rounds, "batch_size": options.batch_size, "workers": options.workers}
        write_result(options.json, {**settings, "sizes": results})


if __name__ == "__main__":
    main()
