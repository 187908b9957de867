"""One run: detector + data -> a trained adapter folder, with a log, resume states and an honest evaluation.

The same command on an interrupted run goes on where it stopped and ends in the same weights as an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cvpeft.config import schema
from cvpeft.data.loader import Batch, eval_loader, train_loader
from cvpeft.data.splits import Splits, open_splits
from cvpeft.data.transforms import build_augment
from cvpeft.detector.adapt import adapt, part_of
from cvpeft.detector.build import build_detector
from cvpeft.detector.saved import describe, pick_device, save_adapter
from cvpeft.errors import CheckpointError, NumericalError
from cvpeft.eval.predict import predict
from cvpeft.eval.report import report, write_report
from cvpeft.peft.state import owned
from cvpeft.train.card import model_card
from cvpeft.train.checkpoint import State, load_state, optimizer_tensors, restore_optimizer, save_state, sweep
from cvpeft.train.folder import data_digest, open_run
from cvpeft.train.log import RunLog, log_to, peak_memory
from cvpeft.train.optim import EMA, param_groups, warmup_cosine

__all__ = ["Interrupted", "Progress", "train"]

log = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """A signal ended the run after its state was saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}; the same command goes on from here")
        self.exit_code = 128 + signum


@dataclass
class Progress:
    """Where a run stands; all of it is in the resume state."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    step: int = 0  # optimizer steps done
    sums: dict[str, float] = field(default_factory=dict)  # losses of this epoch, summed over its steps
    best: float = -1.0
    stale: int = 0  # evaluations since the best one
    seconds: float = 0.0  # training time, evaluations left out
    finished: bool = False


@dataclass
class Trainer:
    """Everything that one run moves."""

    settings: schema.Settings
    folder: Path
    splits: Splits
    model: nn.Module
    meta: dict[str, Any]
    device: torch.device
    optimizer: torch.optim.Optimizer
    ema: EMA
    progress: Progress = field(default_factory=Progress)
    signum: int = 0

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(len(self.splits.train.images) / self.settings.train.batch)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.batches_per_epoch / self.settings.train.accumulate)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.settings.train.epochs


def train(settings: schema.Settings) -> Path:
    """Train as configured and return the run folder; an interrupted run of the same config is continued.

    ConfigError: the folder holds another or a finished run. NumericalError: the loss is not finite.
    Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    with open_run(settings) as folder:
        handler = log_to(folder / "log.txt")
        try:
            trainer = _prepare(settings, folder)
            with _signals(trainer):
                _run(trainer)
        finally:
            logging.getLogger("cvpeft").removeHandler(handler)
            handler.close()
    return folder


# Setting up


def _prepare(settings: schema.Settings, folder: Path) -> Trainer:
    sweep(folder)
    splits = open_splits(settings.data)
    for data in (splits.train, splits.val, splits.test):
        for note in data.notes if data else ():
            log.warning(note)
    model = build_detector(settings, splits.train.classes)
    sites = adapt(model, settings.peft)
    meta = describe(model, settings, splits.train.classes, [s.path for s in sites])
    meta["data"] = data_digest(settings.data)
    _hold_frozen(model, settings.train)
    device = pick_device(settings.train.device)
    model.to(device)
    optimizer = _optimizer(model, settings)
    trainer = Trainer(settings, folder, splits, model, meta, device, optimizer, EMA(owned(model), settings.train.ema))
    torch.manual_seed(settings.run.seed)
    _resume(trainer)
    return trainer


def _hold_frozen(model: nn.Module, t: schema.Train) -> None:
    """Hold frozen matrices in the compute type: half the memory, and no cast in every step."""
    if not _holds_low(t):
        return
    for module in model.backbone.body.modules():  # type: ignore[union-attr]
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(p.requires_grad for p in own):
            module.to(torch.bfloat16)


def _holds_low(t: schema.Train) -> bool:
    return t.frozen_dtype == "compute" and t.precision == "bf16"


def _optimizer(model: nn.Module, settings: schema.Settings) -> torch.optim.Optimizer:
    t = settings.train
    parameters = {key: p for key, p in owned(model).items() if isinstance(p, nn.Parameter)}
    groups = param_groups(parameters, part_of(settings.peft.mode), t.lr.model_dump(), t.weight_decay, frozenset())
    return torch.optim.AdamW(groups)


# The run


def _run(t: Trainer) -> None:
    p, cfg = t.progress, t.settings.train
    run_log = RunLog(t.folder, start=p.step, tensorboard=cfg.tensorboard)
    log.info("%d images, %d steps, %s", len(t.splits.train.images), t.total_steps, _sizes(t))
    try:
        with tqdm(total=t.total_steps, initial=p.step, unit="step", disable=None) as bar:
            batches = _watched(t, _batches(t))
            while p.epoch < cfg.epochs and not _stale(t):
                _epoch(t, batches, run_log, bar)
                _evaluate(t, run_log)
                p.epoch, p.batch, p.sums = p.epoch + 1, 0, {}
                _save(t)
    except Interrupted:
        _save(t)
        raise
    run_log.write_csv()
    _finish(t)


def _epoch(t: Trainer, batches: Iterator[Batch], run_log: RunLog, bar: tqdm) -> None:
    """What is left of the epoch that `progress` stands in; one record in the log."""
    p, s = t.progress, t.settings
    if p.batch == t.batches_per_epoch:
        return
    t.model.train()
    pending: list[Batch] = []
    started = time.perf_counter()
    while p.batch < t.batches_per_epoch:
        pending.append(next(batches))
        p.batch += 1
        if len(pending) < s.train.accumulate and p.batch < t.batches_per_epoch:
            continue
        losses, pending = _step(t, pending), []
        for name, value in losses.items():
            p.sums[name] = p.sums.get(name, 0.0) + value
        p.seconds += time.perf_counter() - started
        started = time.perf_counter()
        bar.update()
        bar.set_postfix(loss=f"{losses['loss']:.3f}", memory=f"{peak_memory(t.device) / 1024:.1f}G", epoch=p.epoch + 1)
        if s.train.save_every and p.step % s.train.save_every == 0:
            _save(t)
    means = {name: value / t.steps_per_epoch for name, value in p.sums.items()}
    rates = {f"lr_{g['part']}": g["lr"] for g in t.optimizer.param_groups}
    cost = {"seconds": p.seconds, "peak_memory_mb": peak_memory(t.device)}
    run_log.add(p.step, {"epoch": p.epoch + 1, **means, **rates, **cost})


def _batches(t: Trainer) -> Iterable[Batch]:
    """All batches from where `progress` stands to the end of the run."""
    p, d = t.progress, t.settings.data
    done = p.batch == t.batches_per_epoch
    loader = train_loader(
        t.splits.train,
        d.size,
        build_augment(d.augment, d.size),
        batch=t.settings.train.batch,
        workers=d.workers,
        seed=t.settings.run.seed,
        epochs=t.settings.train.epochs,
        start=(p.epoch + 1, 0) if done else (p.epoch, p.batch),
    )
    return (batch for _, _, batch in loader)


def _step(t: Trainer, batches: list[Batch]) -> dict[str, float]:
    """One optimizer step over the accumulated batches; returns the mean losses."""
    cfg = t.settings.train
    images = sum(len(b.names) for b in batches)
    means: dict[str, float] = {}
    for batch in batches:
        share = len(batch.names) / images
        losses = _losses(t, batch)
        (losses["loss"] * share).backward()
        for name, value in losses.items():
            means[name] = means.get(name, 0.0) + value.item() * share
    norm = torch.nn.utils.clip_grad_norm_(
        [p for g in t.optimizer.param_groups for p in g["params"]], cfg.clip or math.inf
    )
    _check_finite(t, {"gradient norm": norm}, [name for b in batches for name in b.names])
    factor = warmup_cosine(t.total_steps, cfg.warmup)(t.progress.step)
    for group in t.optimizer.param_groups:
        group["lr"] = group["full_lr"] * factor
    t.optimizer.step()
    t.optimizer.zero_grad(set_to_none=True)
    t.ema.update(owned(t.model))
    t.progress.step += 1
    return means


def _losses(t: Trainer, batch: Batch) -> dict[str, Tensor]:
    """The detector's losses on one batch and, as "loss", their sum."""
    targets = [
        {k: v.to(t.device) if isinstance(v, Tensor) else v for k, v in target.items()} for target in batch.targets
    ]
    with torch.autocast(t.device.type, torch.bfloat16, enabled=t.settings.train.precision == "bf16"):
        losses: dict[str, Tensor] = t.model(batch.images.to(t.device, non_blocking=True), targets)
    losses = {**losses, "loss": torch.stack([v.float() for v in losses.values()]).sum()}
    _check_finite(t, losses, batch.names)
    return losses


def _check_finite(t: Trainer, values: Mapping[str, Tensor], names: list[str]) -> None:
    if all(torch.isfinite(v) for v in values.values()):
        return
    found = ", ".join(f"{k} {float(v):.3g}" for k, v in values.items())
    rates = ", ".join(sorted({f"{g['part']} {g['lr']:.1e}" for g in t.optimizer.param_groups}))
    raise NumericalError(
        "NAN",
        f"step {t.progress.step + 1} is not finite ({found}) on {', '.join(names)}; learning rates {rates}",
        where=str(t.folder),
        why="The last saved state holds no trace of it",
        fix="look at the boxes of these images, then lower train.lr or set train.precision=fp32",
    )


# Evaluating and saving


def _evaluate(t: Trainer, run_log: RunLog) -> None:
    """Score the moving average on val and keep it as best/ if it is better than all before."""
    p, s, val = t.progress, t.settings, t.splits.val
    is_last = p.epoch + 1 == s.train.epochs
    if val is None or ((p.epoch + 1) % s.train.eval_every and not is_last):
        return
    loader = _watched(t, eval_loader(val, s.data.size, batch=s.eval.batch, workers=s.data.workers))
    precision = "bf16" if _holds_low(s.train) else s.eval.precision
    with t.ema.swapped_in(owned(t.model)):
        found = predict(t.model, loader, device=t.device, precision=precision)
        result = report(val.ground_truth(), found, val.classes, alarm_threshold=s.eval.alarm_threshold)
        stats = result["coco"]
        value = stats["AP"] or 0.0
        p.stale = 0 if value > p.best else p.stale + 1
        if value > p.best:
            p.best = value
            thresholds = {name: row["threshold"] for name, row in result["per_class"].items()}
            meta = {**t.meta, "val": {**stats, "epoch": p.epoch + 1}, "thresholds": thresholds}
            save_adapter(t.folder / "best", t.model, meta, model_card(meta, s))
            (t.folder / "eval" / "val").mkdir(parents=True, exist_ok=True)
            write_report(t.folder / "eval" / "val", result, found)
    run_log.add(p.step, {"epoch": p.epoch + 1, **{f"val_{k}": stats[k] for k in ("AP", "AP50", "AP75", "AR100")}})
    log.info("epoch %d: val AP %.4f AP50 %.4f", p.epoch + 1, value, stats["AP50"] or 0.0)


def _stale(t: Trainer) -> bool:
    patience = t.settings.train.early_stop
    return bool(patience) and t.progress.stale >= patience


def _finish(t: Trainer) -> None:
    """The best state becomes the adapter folder; without val it is the last moving average."""
    if t.splits.val is None:
        with t.ema.swapped_in(owned(t.model)):
            save_adapter(t.folder / "best", t.model, t.meta, model_card(t.meta, t.settings))
    shutil.copytree(t.folder / "best", t.folder / "adapter", dirs_exist_ok=True)
    t.progress.finished = True
    _save(t)


def _save(t: Trainer) -> None:
    rng = {"torch": torch.get_rng_state()}
    if t.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(t.device)
    tensors = {
        "model": owned(t.model),
        "ema": t.ema.average,
        "optimizer": optimizer_tensors(t.optimizer),
        "rng": rng,
    }
    values = {"progress": asdict(t.progress), "ema_steps": t.ema.steps, "data": t.meta["data"], "base": t.meta["base"]}
    save_state(t.folder / "last", State(tensors, values))


def _resume(t: Trainer) -> None:
    found = load_state(t.folder / "last")
    if found is None:
        return
    state, place = found
    for key, what in (("data", "the json files of the data"), ("base", "the base weights")):
        if state.values[key] != t.meta[key]:
            raise CheckpointError(
                "RESUME",
                f"{what} are not those that the run began with",
                where=str(t.folder),
                why="the result would be of neither",
                fix="start again under another run.name",
            )
    with torch.no_grad():
        for key, tensor in owned(t.model).items():
            tensor.copy_(state.tensors["model"][key])
    t.ema.average = {k: v.to(t.device) for k, v in state.tensors["ema"].items()}
    t.ema.steps = state.values["ema_steps"]
    restore_optimizer(t.optimizer, state.tensors["optimizer"])
    torch.set_rng_state(state.tensors["rng"]["torch"])
    if t.device.type == "cuda":
        torch.cuda.set_rng_state(state.tensors["rng"]["cuda"], t.device)
    t.progress = Progress(**state.values["progress"])
    log.info("going on from %s: epoch %d, step %d", place.name, t.progress.epoch + 1, t.progress.step)


# Signals and sizes


@contextmanager
def _signals(t: Trainer) -> Iterator[None]:
    """SIGINT and SIGTERM are noted and obeyed after the step at hand; a second one stops at once."""

    def note(signum: int, _: object) -> None:
        t.signum = signum
        signal.signal(signum, before[signum])

    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        for s in before:
            signal.signal(s, note)
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _watched(t: Trainer, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches, until a signal has come."""
    for batch in batches:
        if t.signum:
            raise Interrupted(t.signum)
        yield batch


def _sizes(t: Trainer) -> str:
    part = part_of(t.settings.peft.mode)
    counts: dict[str, int] = {}
    for key, tensor in owned(t.model).items():
        counts[part(key)] = counts.get(part(key), 0) + tensor.numel()
    return "trained " + ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items()))
