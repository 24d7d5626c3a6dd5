"""Time training on text against transformers' Trainer with an overridden loss, all in turn in one process.

    pip install accelerate
    KDZOO_DATA=<folder> KDZOO_MODELS=<folder> python benchmarks/text_speed.py --json benchmarks/results/text_speed.json

A MiniLM of six layers teaches three of them the intents of CLINC150, by soft targets and labels. The usual way is a
Trainer whose ``compute_loss`` asks the teacher: float32, batches filled up to their longest text, the whole word table.
Weights are as the checkpoint has them; no time depends on them. Ratios are medians over rounds of the ratio within a
round, of processor time with one thread (see step_time.py). Lengths differ from batch to batch, so that kdzoo's loops
run more steps a round; the numbers are sentences a second.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import numpy as np
import torch
import transformers
from provenance import write_result
from step_time import Steps, Stopwatch, engine_steps
from torch.nn import functional as F

from kdzoo.contract.extension_points import TokenSplit
from kdzoo.contract.stage import AlgorithmChoice, Stage
from kdzoo.models.weights import start_from
from kdzoo.plan.resolve import Plan, resolve, resolve_choice
from kdzoo.recipe.reading import load_recipe
from kdzoo.run.builder import Builder
from kdzoo.storage.store import Store
from kdzoo.training.engine import Engine
from kdzoo.training.parallel import Ranks
from kdzoo.zoo.loading import load_zoo

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "clinc150" / "kd.yaml"
LAYERS = 3
TEMPERATURE, TASK, SOFT = 2.0, 2.0, 5.0
#: Training sentences: the batches that kdzoo sorts by length together, so that filling the cache takes seconds.
SENTENCES = 3200


class Bench:
    """The recipe's data and models, and every loop over them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.zoo = folder, load_zoo()
        self.plan = self.planned("auto", cache=False)
        self.builder = Builder(self.plan, Store(folder / "store"), Ranks())
        self.batch_size = self.plan.recipe.data.batch_size
        split = self.builder.data.part("train").split
        assert isinstance(split, TokenSplit)
        self.split = split
        self.teacher = self.builder.network(self.plan.teachers[0])

    def planned(self, precision: str, cache: bool) -> Plan:
        settings = [f"precision={precision}", "train.epochs=1000", f"data.train_limit={SENTENCES}"]
        settings += [] if cache else ["cache=null"]
        return resolve(load_recipe(RECIPE, settings), self.zoo)

    def engine(self, precision: str = "auto", cache: bool = False, algorithm: str = "kd") -> Steps:
        """kdzoo's own loop."""
        plan = self.planned(precision, cache)
        builder = Builder(plan, Store(self.folder / "store"), Ranks())
        choice = plan.algorithm.choice if algorithm == "kd" else AlgorithmChoice(algorithm)
        chosen = resolve_choice(choice, self.zoo)
        stage = Stage("bench", plan.student, choice)
        job, _ = builder.job(stage, chosen, plan.recipe.train, [builder.network(plan.teachers[0])])
        if cache:
            assert job.loader is not None
            job.teachers[0].outputs(next(job.loader.train_batches(0, 0)))  # fills the store
        return engine_steps(Engine(job))

    def trainer(self, padding: str = "longest", small_table: bool = False) -> TrainerLoop:
        """transformers' Trainer over its own classes."""
        teacher = self.teacher.model.network
        student = self.builder.network(self.plan.student)
        start_from(student, self.teacher)
        model: Any = student.model
        network, ids = model.network, np.asarray(self.split.ids)
        if small_table:
            ids_of_student = model.row_of.numpy()[ids]
        else:
            config = transformers.AutoConfig.for_model(**{**teacher.config.to_dict(), "num_hidden_layers": LAYERS})
            network, ids_of_student = transformers.AutoModelForSequenceClassification.from_config(config), ids
        rows = [
            {
                "input_ids": row[: int((row != 0).sum())].tolist(),
                "labels": int(target),
                "own_ids": own[: int((row != 0).sum())].tolist(),
            }
            for row, own, target in zip(ids, ids_of_student, self.split.targets, strict=True)
        ]
        width = 64 if padding == "max_length" else None
        return TrainerLoop(network, teacher, rows, width, self.batch_size, self.folder)


class Distiller(transformers.Trainer):
    """The Trainer with the loss overridden, as tutorials have it."""

    teacher: torch.nn.Module

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        mask = inputs["attention_mask"]
        outputs = model(input_ids=inputs["own_ids"], attention_mask=mask, labels=inputs["labels"])
        with torch.no_grad():
            taught = self.teacher(input_ids=inputs["input_ids"], attention_mask=mask).logits
        soft = F.kl_div(
            F.log_softmax(outputs.logits / TEMPERATURE, dim=-1),
            F.softmax(taught / TEMPERATURE, dim=-1),
            reduction="batchmean",
        )
        loss = TASK * outputs.loss + SOFT * TEMPERATURE**2 * soft
        return (loss, outputs) if return_outputs else loss


class TrainerLoop(transformers.TrainerCallback):
    """A Trainer that is let run step by step, in a thread of its own: one clock reads all threads of the process."""

    def __init__(
        self, student: Any, teacher: Any, rows: list[dict[str, Any]], width: int | None, batch_size: int, folder: Path
    ) -> None:
        self.may_go, self.stands = threading.Semaphore(0), threading.Semaphore(0)
        self.left, self.ending = 0, False
        arguments = transformers.TrainingArguments(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=batch_size,
            max_steps=1_000_000,
            learning_rate=2e-4,
            weight_decay=0.01,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )

        def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            longest = width or max(len(sample["input_ids"]) for sample in samples)
            filled = {key: torch.zeros(len(samples), longest, dtype=torch.int64) for key in ("input_ids", "own_ids")}
            mask = torch.zeros(len(samples), longest, dtype=torch.int64)
            for i, sample in enumerate(samples):
                for key, tensor in filled.items():
                    tensor[i, : len(sample[key])] = torch.tensor(sample[key])
                mask[i, : len(sample["input_ids"])] = 1
            return {**filled, "attention_mask": mask, "labels": torch.tensor([sample["labels"] for sample in samples])}

        trainer = Distiller(student, arguments, data_collator=collate, train_dataset=rows, callbacks=[self])
        trainer.teacher = teacher.eval()
        self.thread = threading.Thread(target=trainer.train, daemon=True)
        self.thread.start()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.may_go.acquire()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.left -= 1
        if self.left <= 0:
            self.stands.release()
            self.may_go.acquire()
        control.should_training_stop = self.ending

    def __call__(self, count: int) -> None:
        self.left = count
        self.may_go.release()
        self.stands.acquire()

    def end(self) -> None:
        self.ending = True
        self.may_go.release()
        self.thread.join()


def race(loops: Mapping[str, tuple[Steps, int]], rounds: int, batch_size: int) -> dict[str, list[float]]:
    """Sentences a second of each loop in each round, all in turn, after a step of each to warm up."""
    watch = Stopwatch(torch.get_num_threads())
    for loop, _ in loops.values():
        loop(1)
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, (loop, steps) in loops.items():
            rates[name].append(batch_size * steps / watch(partial(loop, steps))[0] * 1e3)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=4, help="of a Trainer in a round; kdzoo's loops run four times as many"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        trainers = {
            "trainer": bench.trainer(),
            "trainer, small table": bench.trainer(small_table=True),
            "trainer, filled to 64": bench.trainer(padding="max_length"),
        }
        engines = {
            "kdzoo": bench.engine(),
            "kdzoo, cached": bench.engine(cache=True),
            "kdzoo, distilbert": bench.engine(algorithm="distilbert"),
            "kdzoo, fp32": bench.engine("fp32"),
        }
        loops = {name: (loop, arguments.steps) for name, loop in trainers.items()}
        loops |= {name: (loop, 4 * arguments.steps) for name, loop in engines.items()}
        rates = race(loops, arguments.rounds, bench.batch_size)
        for loop in trainers.values():
            loop.end()
    middle = {name: median(values) for name, values in rates.items()}
    pairs = [(name, "trainer") for name in engines] + [("kdzoo", name) for name in trainers if name != "trainer"]
    pairs.append(("kdzoo", "kdzoo, fp32"))
    ratios = {
        f"{one} / {other}": median(a / b for a, b in zip(rates[one], rates[other], strict=True)) for one, other in pairs
    }
    for name, value in middle.items():
        print(f"{name:<36}{value:>9.0f} sentences/s")
    for name, value in ratios.items():
        print(f"{name:<36}{value:>9.2f}")
    if arguments.json:
        result = {
            "batch_size": bench.batch_size,
            "rounds": arguments.rounds,
            "sentences_per_s": middle,
            "ratios": ratios,
        }
        write_result(arguments.json, result)


if __name__ == "__main__":
    main()
