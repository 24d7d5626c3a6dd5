"""Recipes changed at random, through ``kdzoo check``, and those that it accepts through ``kdzoo run``."""

from __future__ import annotations

import random
from pathlib import Path

from outcomes import Case, Tally, judge, run_all

#: What is put in or in place of something: YAML's own traps, numbers at the edges, names that exist elsewhere.
PIECES = (
    *("!!python/object/apply:os.system ", "&a ", "*a", "<<: ", "---\n", "? ", "| ", "- ", ": ", "{", "}", "[", "]"),
    *("'", '"', "#", ",", "\t", "\n", "\0", "\x1b[2J", "\u2028", "é", "\U0001f600"),
    *("1e999", "-1", "0", "012", ".nan", "true", "null", "9" * 40, "1e-3", "0.5", "1:30", "[1, 2]", "{a: 1}"),
    *("kd", "dkd", "takd", "digits", "digits_cnn", "digits_cnn_tiny", "resnet18", "onnx", "int8", "sgd", "adamw"),
    *("cuda", "bf16", "teacher", "train", "../../etc/passwd", "a" * 300),
)
#: What keeps an accepted recipe short.
SHORT = ("-o", "train.epochs=1", "-o", "train.steps_per_epoch=2", "-o", "export=[]", "-o", "control=false")


def bases() -> list[str]:
    """Bundled recipes of every kind that need no data from elsewhere."""
    root = Path(__file__).resolve().parents[2] / "recipes"
    found = [path.read_text() for path in sorted((root / "digits").glob("*.yaml"))]
    assert len(found) > 20, "the bundled recipes were not found"
    return found


def changed(text: str, rng: random.Random) -> str:
    """A recipe with one to four changes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        lines = text.split("\n")
        kind = rng.randrange(6)
        if kind == 0:  # a value becomes another
            spots = [i for i, line in enumerate(lines) if ": " in line and not line.lstrip().startswith("#")]
            i = rng.choice(spots or [0])
            lines[i] = f"{lines[i].partition(': ')[0]}: {rng.choice(PIECES)}"
        elif kind == 1:  # a line is gone, doubled or moved
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines.insert(j, lines[i] if rng.random() < 0.5 else lines.pop(i))
        elif kind == 2:  # another depth
            i = rng.randrange(len(lines))
            lines[i] = " " * rng.randrange(7) + lines[i].lstrip()
        else:  # letters
            whole = "\n".join(lines)
            start = rng.randrange(len(whole) + 1)
            end = min(len(whole), start + rng.choice((0, 1, 3, 12)))
            lines = (whole[:start] + (rng.choice(PIECES) if kind < 5 else "") + whole[end:]).split("\n")
        text = "\n".join(lines)
    return text


def fuzz(count: int, seed: int, place: Path) -> Tally:
    """Check ``count`` changed recipes and run a share of those that are accepted."""
    rng = random.Random(f"recipes {seed}")
    tally = Tally("recipes", count)
    originals = bases()
    cases = []
    for number in range(count):
        path = place / f"{number}.yaml"
        path.write_bytes(changed(rng.choice(originals), rng).encode("utf-8", "surrogatepass"))
        cases.append(Case(("check", path.name), place, f"check {path}"))
    results = run_all(cases)
    judge(tally, results)
    accepted = [case for case, code, _ in results if code == 0]
    assert accepted, "no changed recipe was accepted, so the changes are too coarse"
    for case in rng.sample(accepted, min(len(accepted), max(1, count // 100))):
        run = Case(("run", case.arguments[1], "--out", "out", *SHORT), place, f"run {place / case.arguments[1]}")
        ran = Tally("", 0)
        judge(ran, run_all([run]))
        tally.faults += ran.faults
    return tally
