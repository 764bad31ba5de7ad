"""Trains the model on the prepared corpus, resumably, on a CPU or a CUDA device.

Parameters and optimizer state are float32; matrix products and attention run in bfloat16.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from demo_model.evaluation import held_out_bits_per_byte, row_losses
from demo_model.prepared import PreparedCorpus
from demo_model.recipe import Recipe

CHECKPOINT_FILE = "checkpoint.pt"
WEIGHTS_FILE = "final.safetensors"
RESULT_FILE = "final.json"
STEPS_PER_REPORT = 20


@dataclass(frozen=True)
class TrainingResult:
    """What `train` reports beside the weights."""

    recipe: Recipe
    parameters: int
    train_loss_nats: float
    held_out_bits_per_byte: float
    wall_s: float
    hardware: str
    torch_version: str
    transformers_version: str

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        write_atomically(path, lambda part: part.write_text(json.dumps(asdict(self), indent=2)))

    @classmethod
    def load(cls, path: Path) -> "TrainingResult":
        """Read what `save` wrote; raise FileNotFoundError when the training has not ended."""
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run the `train` command to its end first")
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**fields, "recipe": Recipe(**fields["recipe"])})


@dataclass
class Progress:
    """Where the training stands."""

    step: int = 0
    wall_s: float = 0.0
    loss_nats: float = float("nan")


class Trainer:
    """The model, its optimizer and their state on disk."""

    def __init__(
        self, recipe: Recipe, corpus: PreparedCorpus, *, device: torch.device, work_dir: Path
    ) -> None:
        self.recipe = recipe
        self.corpus = corpus
        self.device = device
        self.checkpoint_path = work_dir / CHECKPOINT_FILE
        self.model = new_model(recipe, corpus)
        torch.nn.Module.to(self.model, device)  # transformers' own `to` is typed wrongly
        self.optimizer = new_optimizer(self.model, recipe)
        self.progress = Progress()

    def save_checkpoint(self) -> None:
        """Replace the checkpoint; an interruption leaves the former one whole."""
        state = {
            "recipe": asdict(self.recipe),
            "train_tokens": self.corpus.manifest.train_tokens,
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_atomically(self.checkpoint_path, lambda part: torch.save(state, part))

    def load_checkpoint(self) -> None:
        """Continue from the checkpoint if there is one.

        Raises ValueError when it belongs to another recipe or corpus. There is no random state
        to restore: the order of the data is a function of the seed and the step.
        """
        if not self.checkpoint_path.exists():
            return
        state = torch.load(self.checkpoint_path, map_location=self.device, weights_only=True)
        expected = (asdict(self.recipe), self.corpus.manifest.train_tokens)
        if (state["recipe"], state["train_tokens"]) != expected:
            raise ValueError(
                f"{self.checkpoint_path} was made with another recipe or corpus: "
                "delete it, or give the same options as before"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def run(self, *, checkpoint_interval_s: float) -> None:
        """Train up to the recipe's last step, reporting and saving on the way."""
        self.model.train()
        earlier_s, start_s, first_step = self.progress.wall_s, time.monotonic(), self.progress.step
        saved_s = start_s
        for step, rows in self.batches(first_step):
            loss = self.train_step(step, rows)
            done = step + 1
            if done % STEPS_PER_REPORT and done < self.recipe.total_steps:
                continue
            loss_nats = float(loss)  # waits for the device, hence not in every step
            now_s = time.monotonic()
            self.progress = Progress(done, earlier_s + now_s - start_s, loss_nats)
            self.report(steps_per_s=(done - first_step) / (now_s - start_s))
            if now_s - saved_s >= checkpoint_interval_s or done == self.recipe.total_steps:
                self.save_checkpoint()
                saved_s = now_s

    def batches(self, first_step: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield each step from `first_step` on with its rows `[B, S + 1]` on the device."""
        recipe = self.recipe
        steps_per_epoch = self.corpus.rows_per_epoch(recipe.row_tokens) // recipe.rows_per_step
        if steps_per_epoch == 0:
            raise ValueError("the corpus is too small for one batch: run `prepare` again")
        epoch_rows, loaded_epoch = torch.empty(0), -1
        for step in range(first_step, recipe.total_steps):
            epoch, batch = divmod(step, steps_per_epoch)
            if epoch != loaded_epoch:
                rows = self.corpus.epoch_rows(epoch, row_tokens=recipe.row_tokens, seed=recipe.seed)
                epoch_rows = torch.from_numpy(rows.astype("int32")).to(self.device)
                loaded_epoch = epoch
            start = batch * recipe.rows_per_step
            yield step, epoch_rows[start : start + recipe.rows_per_step].long()

    def train_step(self, step: int, rows: torch.Tensor) -> torch.Tensor:
        """Make one optimizer step and return its loss, still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(step)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = row_losses(self.model, rows, reduction="mean")
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def report(self, *, steps_per_s: float) -> None:
        """Print one line on where the training stands."""
        progress, total_steps = self.progress, self.recipe.total_steps
        tokens_per_s = steps_per_s * self.recipe.tokens_per_step
        left_minutes = (total_steps - progress.step) / steps_per_s / 60
        print(
            f"step {progress.step}/{total_steps}  loss {progress.loss_nats:.4f}  "
            f"{tokens_per_s:,.0f} tokens/s  {left_minutes:.1f} min left",
            flush=True,
        )


def train(
    recipe: Recipe, work_dir: Path, *, device_name: str, checkpoint_interval_s: float
) -> TrainingResult:
    """Train to the end and write `final.safetensors` (bfloat16) and `final.json`."""
    device = choose_device(device_name)
    corpus = PreparedCorpus.load(work_dir)
    trainer = Trainer(recipe, corpus, device=device, work_dir=work_dir)
    trainer.load_checkpoint()
    trainer.run(checkpoint_interval_s=checkpoint_interval_s)

    weights = final_weights(trainer.model)
    trainer.model.load_state_dict({name: value.float() for name, value in weights.items()}, False)
    result = TrainingResult(
        recipe=recipe,
        parameters=trainer.model.num_parameters(),
        train_loss_nats=trainer.progress.loss_nats,
        held_out_bits_per_byte=held_out_bits_per_byte(
            trainer.model.train(False), corpus, row_tokens=recipe.row_tokens
        ),
        wall_s=trainer.progress.wall_s,
        hardware=hardware_name(device),
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
    )
    write_atomically(work_dir / WEIGHTS_FILE, lambda part: save_file(weights, part))
    result.save(work_dir / RESULT_FILE)
    return result


def new_model(recipe: Recipe, corpus: PreparedCorpus) -> LlamaForCausalLM:
    """Return a freshly initialised float32 model, the same for the same seed."""
    manifest = corpus.manifest
    config = recipe.model_config(
        vocab_size=manifest.vocab_size, end_id=manifest.end_id, padding_id=manifest.padding_id
    )
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(config)


def new_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only."""
    matrices = [value for value in model.parameters() if value.dim() >= 2]
    vectors = [value for value in model.parameters() if value.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = (recipe.beta1, recipe.beta2)
    return torch.optim.AdamW(groups, lr=recipe.peak_learning_rate, betas=betas, fused=True)


def final_weights(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Return the parameters in bfloat16 on the CPU; the tied output matrix appears once."""
    return {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.named_parameters()
    }


def choose_device(name: str) -> torch.device:
    """Return the device for `cpu`, `cuda` or `auto`; raise ValueError where there is no CUDA."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was given, but torch sees no CUDA device: use cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def hardware_name(device: torch.device) -> str:
    """Return the device's name as a person would write it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} CPU threads"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it into place."""
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)
