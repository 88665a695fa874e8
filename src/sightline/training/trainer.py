"""transformers' Trainer with exact token weighting, our order of samples, and learning rates for each part."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainingArguments

from sightline.errors import SightlineError
from sightline.models.prompt import IGNORED
from sightline.progress import track
from sightline.training.config import TrainConfig
from sightline.training.meter import Meter
from sightline.training.sampler import LengthGroupedSampler
from sightline.training.tuner import parameter_groups


class SightlineTrainer(Trainer):
    """The training loop. `meter` is told of every batch; it knows the time spent waiting for data."""

    # Set by Trainer, whose types are not followed.
    optimizer: Any
    lr_scheduler: Any
    control: Any

    def __init__(self, config: TrainConfig, meter: Meter, lengths: list[int], **kwargs: Any) -> None:
        self._config = config
        self._meter = meter
        self._lengths = lengths
        super().__init__(**kwargs)
        # The model's own forward divides by the tokens of the whole step (see `install_token_loss`).
        self.model_accepts_loss_kwargs = True

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(model if model is not None else self.model, self._config)
            # Other devices (NPU) need not have torch's fused kernel.
            fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
            self.optimizer = torch.optim.AdamW(groups, betas=self._config.betas, eps=1e-8, fused=fused)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        if self.lr_scheduler is None:
            progress = self._meter.progress(num_training_steps, self._config.max_seconds)
            factor = schedule(self._config.schedule, self._config.warmup_ratio, progress)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        return LengthGroupedSampler(self._lengths, self._train_batch_size, self._config.seed)

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = super().get_train_dataloader()
        # A loader draws a number for its processes, from the generator of dropout unless it has its own: the
        # number of loader processes would then change what is computed.
        getattr(loader, "base_dataloader", loader).generator = torch.Generator()
        return loader

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        started = time.perf_counter()
        try:
            batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        except SightlineError as error:
            # From a loader process the text comes with that process's traceback before it.
            last = str(error).strip().splitlines()[-1]
            raise SightlineError(last.partition("SightlineError: ")[2] or last) from error
        self._meter.fetched(batches, time.perf_counter() - started)
        return batches, count

    def over_processes(self, count: int) -> int:
        """The sum of a count of each process."""
        counted = torch.tensor(count, device=self.args.device)
        return int(self.accelerator.reduce(counted, "sum")) if self.accelerator.num_processes > 1 else count

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        loss = model(**inputs, num_items_in_batch=num_items_in_batch)["loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # Data parallelism averages gradients over ranks, while the count is already that of all ranks.
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._config.tuner == "lora":
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # Files name the tensors as checkpoints always did, transformers 5 names them otherwise in memory, and its
        # Trainer compares the two without translating: it would load nothing and say nothing.
        target = model if model is not None else self.model
        saved = type(target).from_pretrained(
            resume_from_checkpoint, dtype=torch.float32, use_safetensors=True
        )
        target.load_state_dict(saved.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.lr_scheduler.last_epoch < self.state.global_step:
            # A checkpoint without optimizer holds no schedule either: the learning rate must not start again.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch wants an optimizer step before
                self.lr_scheduler.step(self.state.global_step)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean loss of a supervised token over the validation samples, each counted once."""
        model = self.model
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        loader = self._held_out()
        for batch in track(loader, "validating"):
            batch = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                total = model(**batch, num_items_in_batch=1)["loss"]
            sums += torch.tensor([float(total), float((batch["shift_labels"] != IGNORED).sum())])
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums.float().to(self.args.device), "sum").double().cpu()
        metrics = {"eval_loss": float(sums[0] / sums[1].clamp(min=1))}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out(self) -> DataLoader[Any]:
        """This process's share of the validation samples; the shares differ by at most one sample."""
        shares = range(self.args.process_index, len(self.eval_dataset), self.args.world_size)
        return DataLoader(
            Subset(self.eval_dataset, shares),
            batch_size=self._config.batch_size,
            collate_fn=self.data_collator,
            num_workers=self._config.workers,
            # A generator of its own: looking at the loss must not change the random numbers of training.
            generator=torch.Generator(),
        )


def schedule(kind: str, warmup: float, progress: Callable[[int], float]) -> Callable[[int], float]:
    """Learning-rate factor of a step: linear warm-up over the first share `warmup`, then the chosen descent to 0.

    `progress` gives the share of the run that is done, 0 to 1, from the number of steps.
    """

    def factor(step: int) -> float:
        done = min(1.0, progress(step))
        if done < warmup:
            # The first step has to learn something too.
            return max(done / warmup, 1e-3)
        left = (1 - done) / (1 - warmup)
        if kind == "cosine":
            return 0.5 * (1 - math.cos(math.pi * left))
        return left if kind == "linear" else 1.0

    return factor


def training_arguments(
    config: TrainConfig, dtype: torch.dtype, use_cpu: bool, vision_learns: bool
) -> TrainingArguments:
    """Our configuration in the Trainer's words; `vision_learns` if any parameter of tower or merger does."""
    arguments = TrainingArguments(
        output_dir=str(config.output / "checkpoints"),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        max_grad_norm=config.max_grad_norm,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=use_cpu,
        seed=config.seed,
        data_seed=config.seed,
        dataloader_num_workers=config.workers,
        dataloader_persistent_workers=config.workers > 0,
        dataloader_pin_memory=not use_cpu,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        logging_strategy="steps",
        logging_steps=config.log_interval,
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.save_interval else "no",
        save_steps=config.save_interval or 500,
        # WholeCallback drops old checkpoints, once the new one is whole.
        save_total_limit=None,
        save_only_model=not config.save_optimizer,
        eval_strategy="steps" if config.eval_interval else "no",
        eval_steps=config.eval_interval,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=True,
        average_tokens_across_devices=True,
        # A process whose batch has no images leaves the vision parameters without gradients.
        ddp_find_unused_parameters=vision_learns,
    )
    # Where several CUDA cards are visible and torchrun is not used, Trainer would spread each batch over all of
    # them by nn.DataParallel, which cuts every tensor along its first dimension: positions are [3, B, T], and
    # patches have no dimension of samples. A process trains on one card.
    _ = arguments.device  # sets the number, once
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
