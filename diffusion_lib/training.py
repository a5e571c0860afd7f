"""The training loop, for any module and any loss: EMA, mixed precision, resume.

Everything random is drawn from a seed made of the run's seed and the step's number, so
a run that was interrupted goes on as if nothing had happened.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .denoiser import Denoiser
from .training_state import Settings, State, resume_state, save_state

Batch = tuple[Tensor, ...]
M = TypeVar("M", bound=nn.Module)


@dataclass
class Run(Generic[M]):
    """What training returns: the module as trained, its average, losses, seconds."""

    model: M
    ema: M
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def shuffled(*tensors: Tensor, size: int, seed: int = 0) -> Callable[[int], Batch]:
    """Return batches(k): the k-th batch of endless epochs, each in a new order.

    tensors: (N, ...) each. A last batch that is not full is left out. Raises ValueError
    if the tensors' lengths differ or a batch has more examples than there are.
    """
    n = len(tensors[0])
    if any(len(tensor) != n for tensor in tensors) or not 1 <= size <= n:
        raise ValueError(
            f"lengths {[len(tensor) for tensor in tensors]} must be equal and at least "
            f"the batch size {size}"
        )
    orders: dict[int, Tensor] = {}

    def batches(k: int) -> Batch:
        epoch, i = divmod(k, n // size)
        if epoch not in orders:
            orders.clear()
            generator = torch.Generator().manual_seed(seed + 7919 * epoch)
            orders[epoch] = torch.randperm(n, generator=generator)
        rows = orders[epoch][i * size : (i + 1) * size]
        return tuple(tensor[rows] for tensor in tensors)

    return batches


def train(
    module: M,
    loss: Callable[[M, Any], Tensor],
    batches: Callable[[int], Any],
    steps: int,
    *,
    folder: str | Path | None = None,
    identity: str = "",
    save_every: int = 500,
    on_step: Callable[[int, float], None] | None = None,
    **settings: Any,
) -> Run[M]:
    """Train module in place and return a Run; the average (EMA) is in run.ema.

    Of a Denoiser the net is trained, of any other module all of it. loss(module, batch)
    -> (B,) or (); batches(k) -> the k-th batch, the same whenever it is asked for;
    settings: see Settings. With a folder, the whole state is saved there every
    save_every steps and an interrupted run resumes from it, bit for bit on a CPU;
    identity names what else must be the same: without it other data, another loss or
    batch size go unnoticed. Several processes: start with `accelerate launch`, on CPUs
    with `torchrun`. On a CPU in float32 2-d convolutions are set to channels_last.
    Raises ValueError if the loss or its gradient becomes NaN, if another process trains
    in the folder, or if it holds a run with other settings, another identity or another
    network.
    """
    if save_every < 1:
        raise ValueError(f"save_every must be at least 1, got {save_every}")
    chosen = Settings(steps, **settings)
    with _alone(folder):
        loop = _Loop(module, loss, batches, chosen, folder, str(identity))
        return loop.run(save_every, on_step)


@contextmanager
def _alone(folder: str | Path | None) -> Iterator[None]:
    """Keep other trainings out of a folder; the processes of one share the lock."""
    if folder is None or int(os.environ.get("RANK", 0)) > 0:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / "training.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"another process is training in {folder}: wait, or give another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


class _Loop:
    def __init__(self, module, loss, batches, settings: Settings, folder, identity):
        self.module, self.loss, self.batches = module, loss, batches
        self.settings, self.identity = settings, identity
        self.folder = None if folder is None else Path(folder)
        AcceleratorState._reset_state()  # it would keep an earlier run's precision
        cpu = not torch.accelerator.is_available()  # else processes on CPUs part
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=settings.precision)
        net = module.net if isinstance(module, Denoiser) else module
        self.net = net.to(self.accelerator.device)
        if cpu and settings.precision == "no":  # 2-d convolutions are faster so
            for layer in self.net.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(
            net.parameters(),
            lr=settings.rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        average = AveragedModel(net, multi_avg_fn=self._lerp)
        self.state = State(net, average, optimizer)
        if self.folder is not None:
            resume_state(self.state, self.folder, settings, identity)

    def _lerp(self, averages, parameters, updates):
        decay = self.settings.ema_at(int(updates))
        torch._foreach_lerp_(averages, parameters, 1 - decay)

    def run(self, save_every: int, on_step) -> Run:
        self.module.train()
        state, steps = self.state, self.settings.steps
        prepared, state.optimizer = self.accelerator.prepare(self.net, state.optimizer)
        worker = self._with_net(prepared)
        start = time.perf_counter() - state.seconds
        devices = [self.accelerator.device] if torch.cuda.is_available() else []
        try:
            with torch.random.fork_rng(devices=devices):
                while state.step < steps:
                    state.losses.append(self._update(worker, prepared))
                    state.seconds = time.perf_counter() - start
                    if state.step % save_every == 0 or state.step == steps:
                        self._save()
                    if on_step is not None:
                        on_step(state.step, state.losses[-1])
        finally:  # interrupted or not, the module is the caller's again
            self.accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
            self.module.eval()
        average = self._with_net(state.average.module).eval()
        return Run(self.module, average, state.losses, state.seconds)

    def _save(self) -> None:
        if self.folder is not None and self.accelerator.is_main_process:
            save_state(self.state, self.folder, self.settings, self.identity)

    def _with_net(self, net: nn.Module) -> nn.Module:
        """The module around another net: only the net is prepared, never bypassed."""
        if self.net is self.module:
            return net
        worker = copy.copy(self.module)
        worker._modules = {**self.module._modules, "net": net}
        return worker

    def _update(self, worker: nn.Module, prepared: nn.Module) -> float:
        settings, accelerator, state = self.settings, self.accelerator, self.state
        for group in state.optimizer.param_groups:
            group["lr"] = settings.rate_at(state.step)
        state.optimizer.zero_grad()
        total = torch.zeros((), device=accelerator.device)
        for part in range(settings.accumulate):
            last = part == settings.accumulate - 1
            with torch.enable_grad(), _synced(accelerator, prepared, last):
                loss = self._loss(worker, state.step * settings.accumulate + part)
                accelerator.backward(loss / settings.accumulate)
            total += loss.detach() / settings.accumulate
        value = float(accelerator.reduce(total, reduction="mean"))
        if not math.isfinite(value):
            raise ValueError(
                f"the loss became {value} at step {state.step}: lower the rate, check "
                "the data's range, or use precision='no' or 'bf16'"
            )
        norm = accelerator.clip_grad_norm_(self.net.parameters(), settings.clip)
        if settings.precision != "fp16" and not math.isfinite(norm):  # it skips them
            raise ValueError(
                f"the gradient became {float(norm)} at step {state.step}, where the "
                f"loss is {value:.3g}: look for a root or a quotient at 0"
            )
        state.optimizer.step()
        state.average.update_parameters(self.net)
        return value

    def _loss(self, worker: nn.Module, part: int) -> Tensor:
        """The mean loss of this process's share number `part`, with its own seed."""
        index = part * self.accelerator.num_processes + self.accelerator.process_index
        torch.manual_seed(self.settings.seed * 1_000_003 + index)
        batch = _to(self.batches(index), self.accelerator.device)
        with self.accelerator.autocast():  # also what is called beside `forward`
            return self.loss(worker, batch).mean()


def _synced(accelerator: Accelerator, net: nn.Module, last: bool):
    """Processes average their gradients once, at the last part of a step."""
    return torch.enable_grad() if last else accelerator.no_sync(net)


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {name: _to(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [_to(value, device) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch
