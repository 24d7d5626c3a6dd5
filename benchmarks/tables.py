"""Write the tables of README.md from the measured files in results/: python benchmarks/tables.py"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE / "README.md"
LOOPS = {
    "plain": "plain loop",
    "hand auto": "hand-written, precision as `auto` picks",
    "engine auto": "engine, `auto`",
    "hand fp32": "hand-written, fp32",
    "engine fp32": "engine, `fp32`",
    "engine alone": "engine, student alone",
    "engine cached": "engine, teacher's answers in the cache",
}
RATIOS = {
    "plain / engine auto": "plain / engine",
    "plain / floor": "plain / floor, the most that is possible",
    "plain / amortised": "plain / engine with a cache, filling included",
    "engine auto / hand auto": "engine / hand-written",
    "engine fp32 / hand fp32": "the same in fp32",
    "engine cached / engine alone": "cached / student alone",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def source(result: Mapping[str, Any]) -> str:
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    return (
        f"{result['cpu_model']}, {result['isa']}, {threads}; torch {result['torch']}, timm {result['timm']}, Python "
        f"{result['python']}; commit {result['commit']}\n`{result['command']}`\n\n"
    )


def step_time(result: Mapping[str, Any]) -> str:
    pairs = result["pairs"]
    rows = [[label, *(f"{pair['median_ms'][name]:.4g}" for pair in pairs)] for name, label in LOOPS.items()]
    spread = pairs[0]["amortised_over"]
    rows.append(
        [
            f"the same, filling {spread['views']} views spread over {spread['epochs']} epochs",
            *(f"{pair['amortised_ms']:.4g}" for pair in pairs),
        ]
    )
    floors = [pair["floor_ms"][pair["precision"]["teacher"].split()[0]] for pair in pairs]
    rows.append(["floor: the step's multiply-adds as one matrix product", *(f"{floor:.4g}" for floor in floors)])
    head = ["ms a step, median", *(pair["pair"] for pair in pairs)]
    shown = [[label, *(f"{pair['ratios'][name]:.2f}" for pair in pairs)] for name, label in RATIOS.items()]
    runs_in = [["student", *(pair["precision"]["student"] for pair in pairs)]]
    runs_in.append(["teacher", *(pair["precision"]["teacher"] for pair in pairs)])
    return source(result) + table(head, runs_in + rows) + "\n\n" + table(["ratio", *head[1:]], shown)


def variants(result: Mapping[str, Any]) -> str:
    pairs = result["pairs"]
    rows = [
        [
            name,
            *(
                cell
                for pair in pairs
                for cell in (f"{pair['median_ms'][name]:.4g}", f"{pair['first_call_s'][name]:.1f}")
            ),
        ]
        for name in pairs[0]["median_ms"]
    ]
    head = ["", *(cell for pair in pairs for cell in (f"{pair['pair']}: ms", "first call, s"))]
    return source(result) + table(head, rows)


def precision_speed(result: Mapping[str, Any]) -> str:
    ways = list(result["networks"][0]["step_ms"])
    head = ["network", "MACs, M", *ways, "`auto` takes"]
    text = source(result)
    for what, title in (("step", "Training step"), ("answer", "Answer, BatchNorm folded")):
        rows = []
        for entry in result["networks"]:
            times = entry[f"{what}_ms"]
            best = min(times.values())
            cells = [f"**{times[way]:.3g}**" if times[way] == best else f"{times[way]:.3g}" for way in ways]
            rows.append([entry["network"], f"{entry['macs'] / 1e6:.3g}", *cells, entry["auto"]])
        text += f"{title}, ms at batch {result['batch_size']}; the fastest in bold:\n\n{table(head, rows)}\n\n"
    return text.strip()


def precision_accuracy(result: Mapping[str, Any]) -> str:
    names = list(next(iter(result["accuracy"].values())))
    rows = []
    for arm, entry in result["accuracy"].items():
        rows.append([arm, *(f"{entry[name]['mean']:.2f} +- {entry[name]['std']:.2f}" for name in names), ""])
    for arm, entry in result["gains"].items():
        cells = (f"{entry[name]['mean']:+.2f} +- {entry[name]['standard_error']:.2f}" for name in (*names, "all"))
        rows.append([f"{arm} minus fp32", *cells])
    words = (
        f"Top-1, percent of {result['test_samples']} test samples, mean +- standard deviation over "
        f"{len(result['seeds'])} seeds; below, points paired by seed, mean +- standard error:\n\n"
    )
    return source(result) + words + table(["arm", *names, "all three"], rows)


def text_speed(result: Mapping[str, Any]) -> str:
    base = result["sentences_per_s"]["trainer"]
    rows = []
    for name, rate in result["sentences_per_s"].items():
        times = result["ratios"].get(f"{name} / trainer")
        shown = f"{times:.2f}" if times is not None else ("1" if rate == base else f"{rate / base:.2f}")
        rows.append([name, f"{rate:.0f}", shown])
    return source(result) + table(["loop", "sentences a second", "times the Trainer's"], rows)


def processes(result: Mapping[str, Any]) -> str:
    texts = [source(result) + f"Other work on the machine when it began: a load of {result['load_before']:.1f}."]
    for pair in result["pairs"]:
        one = pair["median"]["one"]
        rows = [
            [
                result["arms"][name],
                f"{of['wall_ms']:.4g}",
                f"{pair['times_one_process'][name]:.2f}",
                f"{of['processor_ms']:.4g}",
                f"{of['processor_ms'] / one['processor_ms']:.2f}",
                f"{of['collectives']:g}",
            ]
            for name, of in pair["median"].items()
        ]
        head = [pair["pair"], "ms a step", "times one", "processor ms", "times one's", "collectives a step"]
        texts.append(table(head, rows))
    return "\n\n".join(texts)


def loading(result: Mapping[str, Any]) -> str:
    sizes, text = result["sizes"], source(result)
    head = ["images a second (processor time of one, ms)", *(f"{size['files']} files" for size in sizes)]
    rows = [
        [name, *(f"{size['images_per_s'][name]:.0f} ({size['processor_ms'][name]:.2f})" for size in sizes)]
        for name in sizes[0]["images_per_s"]
    ]
    ratios = [
        [name, *(f"{size['ratios'][name]['rate']:.2f} ({size['ratios'][name]['cost']:.2f})" for size in sizes)]
        for name in sizes[0]["ratios"]
    ]
    far = [
        [
            name,
            *(
                f"{size['pixels'][name]['mean_levels']:.3f}, {size['pixels'][name]['most_levels']:.0f}"
                for size in sizes
            ),
        ]
        for name in sizes[0]["pixels"]
    ]
    titles = head[1:]
    return text + "\n\n".join(
        [
            table(head, rows),
            table(["times timm's images a second (by processor time)", *titles], ratios),
            table(["levels of 255 from timm's pixels: mean, most", *titles], far),
        ]
    )


def epoch(result: Mapping[str, Any]) -> str:
    rows = [
        [
            pair["pair"],
            f"{pair['images_per_s']['engine']:.1f}",
            f"{pair['processor_ms']['engine']:.1f}",
            f"{pair['engine / hand-written']:.3f}",
            *(f"{100 * pair['shares'][name]:.0f} %" for name in ("data", "teacher", "student")),
        ]
        for pair in result["pairs"]
    ]
    head = ["", "images a second", "processor ms an image", "engine / hand-written", "data", "teacher", "student"]
    return source(result) + table(head, rows)


def measuring(result: Mapping[str, Any]) -> str:
    names = list(result["networks"][0]["seconds"])
    rows = [
        [
            entry["network"],
            *(f"{entry['seconds'][name]:.1f}" for name in names),
            f"{entry['difference']:.0e}",
            str(entry["other_predictions"]),
        ]
        for entry in result["networks"]
    ]
    head = ["seconds", *names, "logits differ by, of the largest", "predictions that differ"]
    return source(result) + table(head, rows)


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "step_time": step_time,
    "variants": variants,
    "precision_speed": precision_speed,
    "precision_accuracy": precision_accuracy,
    "text_speed": text_speed,
    "processes": processes,
    "loading": loading,
    "epoch": epoch,
    "measuring": measuring,
}


def filled(text: str) -> str:
    """The page with the table of every results file between its two marks."""
    for name, make in TABLES.items():
        result = json.loads((HERE / "results" / f"{name}.json").read_text())
        mark = f"<!-- {name} -->"
        before, found, rest = text.partition(mark)
        _, end, after = rest.partition("<!-- end -->")
        if not found or not end:
            raise ValueError(f"{README}: no place for the table of {name}")
        text = f"{before}{mark}\n{make(result)}\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
