"""One run: detector + data -> a trained adapter folder, with a log, resume states and an honest evaluation.

The same command on an interrupted run goes on where it stopped and ends in the same weights as an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cvpeft.config import schema
from cvpeft.data.check.run import tell_quick_check
from cvpeft.data.loader import Batch, dead_workers_told, eval_loader, train_loader
from cvpeft.data.splits import open_splits
from cvpeft.data.transforms import build_augment
from cvpeft.detector.adapt import adapt, as_trained, parts
from cvpeft.detector.build import build_detector
from cvpeft.detector.device import depthwise_in_single, pick_device, pick_precision
from cvpeft.detector.saved import describe, save_adapter
from cvpeft.errors import CvpeftError, NumericalError, ResourceError
from cvpeft.eval.predict import predict
from cvpeft.eval.report import Report, report, write_report
from cvpeft.files import sweep, unwritable
from cvpeft.peft.foreign import start_from_hf
from cvpeft.peft.state import lr_factors, owned, undecayed
from cvpeft.train.card import model_card
from cvpeft.train.checkpoint import copy_folder
from cvpeft.train.folder import data_digest, open_run, record
from cvpeft.train.log import RunLog, log_to, peak_memory
from cvpeft.train.optim import EMA, OPTIMIZERS, param_groups, warmup_cosine
from cvpeft.train.trainer import Trainer, resume, save

__all__ = ["Interrupted", "train"]

log = logging.getLogger(__name__)
TELL_EVERY = 60.0  # seconds between two lines on progress, where no bar is shown


class Interrupted(CvpeftError):  # noqa: N818 (it is no error)
    """A signal ended the run after its state was saved."""

    def __init__(self, signum: int, folder: Path) -> None:
        what = f"stopped by {signal.Signals(signum).name}, the state is saved"
        super().__init__("SIGNAL", what, where=str(folder), fix="the same command goes on from here")
        self.exit_code = 128 + signum


def train(settings: schema.Settings) -> Path:
    """Train as configured and return the run folder; an interrupted run of the same config is continued.

    ConfigError: the folder holds another or a finished run. NumericalError: the loss is not finite.
    Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    settings = as_trained(settings)
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
    tell_quick_check({"train": splits.train, "val": splits.val, "test": splits.test})
    if splits.val and not any((~image.crowd).any() for image in splits.val.images):
        log.warning("data.val has no box to find: it cannot choose the epoch, and the last one is taken")
    model = build_detector(settings, splits.train.classes)
    sites = adapt(model, settings.peft, seed=settings.run.seed)
    if settings.peft.from_:
        start_from_hf(model.backbone.body.net, settings.peft.from_)  # type: ignore[union-attr,arg-type]
    meta = describe(model, settings, splits.train.classes, [s.path for s in sites])
    meta["data"] = data_digest(settings.data)
    device = pick_device(settings.train.device)
    precision = pick_precision(settings.train.precision, device)
    log.info("device %s, %s", device, precision)
    if precision == "bf16" and device.type == "cpu":
        depthwise_in_single(model)
    if holds_low := settings.train.frozen_dtype == "compute" and precision == "bf16":
        for module in _frozen_matrices(model):
            module.to(torch.bfloat16)
    elif settings.train.frozen_dtype == "compute":
        log.warning("train.frozen_dtype=compute changes nothing where the precision is %s", precision)
    model.to(device)
    optimizer = _optimizer(model, settings)
    average = EMA(owned(model), settings.train.ema)
    trainer = Trainer(settings, folder, splits, model, meta, device, precision, holds_low, optimizer, average)
    torch.manual_seed(settings.run.seed)
    resume(trainer)
    record(settings, folder, device, precision)
    return trainer


def _frozen_matrices(model: nn.Module) -> Iterator[nn.Module]:
    """What may be held in bf16, for half the memory and without a cast in every step."""
    for module in model.backbone.body.modules():  # type: ignore[union-attr]
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(p.requires_grad for p in own):
            yield module


def _optimizer(model: nn.Module, settings: schema.Settings) -> torch.optim.Optimizer:
    t = settings.train
    parameters = {key: p for key, p in owned(model).items() if isinstance(p, nn.Parameter)}
    part = parts(model, settings.peft.mode)
    rates, still = t.lr.model_dump(), undecayed(model)
    groups = param_groups(parameters, part.__getitem__, rates, t.weight_decay, still, lr_factors(model))
    return OPTIMIZERS[t.optimizer](groups)


# The run


def _run(t: Trainer) -> None:
    p, cfg = t.progress, t.settings.train
    run_log = RunLog(t.folder, keep=p.records, step=p.step, tensorboard=cfg.tensorboard)
    log.info("%d images, %d steps, %s", len(t.splits.train.images), t.total_steps, _sizes(t))
    try:
        with _resources(t), tqdm(total=t.total_steps, initial=p.step, unit="step", disable=None) as bar:
            batches = _watched(t, _batches(t))
            while p.epoch < cfg.epochs and not _stale(t):
                _epoch(t, batches, run_log, bar)
                _evaluate(t, run_log)
                p.epoch, p.batch, p.sums = p.epoch + 1, 0, {}
                save(t)
    except Interrupted:
        save(t)
        raise
    run_log.close()
    _finish(t)


def _epoch(t: Trainer, batches: Iterator[Batch], run_log: RunLog, bar: tqdm) -> None:
    """What is left of the epoch that `progress` stands in; one record in the log."""
    p, every = t.progress, t.settings.train.save_every
    if p.batch == t.batches_per_epoch:  # all steps are done and in the log, the evaluation is not
        return
    t.model.train()
    started = time.perf_counter()
    while p.batch < t.batches_per_epoch:
        wanted = min(t.settings.train.accumulate, t.batches_per_epoch - p.batch)
        losses = _step(t, [next(batches) for _ in range(wanted)])
        p.batch += wanted
        for name, value in losses.items():
            p.sums[name] = p.sums.get(name, 0.0) + value
        p.seconds += time.perf_counter() - started
        started = time.perf_counter()
        bar.update()
        bar.set_postfix(loss=f"{losses['loss']:.3f}", memory=f"{peak_memory(t.device) / 1024:.1f}G", epoch=p.epoch + 1)
        if bar.disable and started - t.told >= TELL_EVERY:
            t.told = started
            log.info(_progress(t, losses["loss"]))
        if every and p.step % every == 0 and p.batch < t.batches_per_epoch:
            save(t)
    means = {name: value / t.steps_per_epoch for name, value in p.sums.items()}
    rates = {f"lr_{g['part']}": g["lr"] / g["factor"] for g in t.optimizer.param_groups}
    cost = {"seconds": p.seconds, "peak_memory_mb": peak_memory(t.device)}
    _record(t, run_log, {"epoch": p.epoch + 1, **means, **rates, **cost})
    if _is_scored(t):  # whatever happens there must not cost the epoch
        save(t)


def _progress(t: Trainer, loss: float) -> str:
    """The bar in words, for a log file."""
    p = t.progress
    left = p.seconds / p.step * (t.total_steps - p.step) / 60
    return f"step {p.step} of {t.total_steps}, loss {loss:.3f}, {p.seconds / p.step:.2f} s a step, {left:.0f} min left"


def _record(t: Trainer, run_log: RunLog, values: Mapping[str, Any]) -> None:
    run_log.add(t.progress.step, values)
    t.progress.records = len(run_log.records)


def _batches(t: Trainer) -> Iterable[Batch]:
    """All batches from where `progress` stands to the end of the run."""
    p, d = t.progress, t.settings.data
    done = p.batch == t.batches_per_epoch
    loader = train_loader(
        t.splits.train,
        d.size,
        build_augment(d.augment, d.canvas or d.size),
        batch=t.settings.train.batch,
        workers=d.workers,
        seed=t.settings.run.seed,
        epochs=t.settings.train.epochs,
        start=(p.epoch + 1, 0) if done else (p.epoch, p.batch),
        mosaic=d.mosaic,
        canvas=d.canvas,
        pin=t.device.type == "cuda",
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
    for kind, same in t.adapters.items():
        kind.after_step(same, t.progress.step, t.total_steps)
    t.optimizer.zero_grad(set_to_none=True)
    t.ema.update(owned(t.model))
    t.progress.step += 1
    return means


def _losses(t: Trainer, batch: Batch) -> dict[str, Tensor]:
    """The detector's losses on one batch, what methods add under their names and, as "loss", the sum."""
    targets = [
        {k: v.to(t.device) if isinstance(v, Tensor) else v for k, v in target.items()} for target in batch.targets
    ]
    with torch.autocast(t.device.type, torch.bfloat16, enabled=t.precision == "bf16"):
        losses: dict[str, Tensor] = t.model(batch.images.to(t.device, non_blocking=True), targets)
    terms = {kind.method: kind.penalty(same) for kind, same in t.adapters.items()}
    losses |= {name: term for name, term in terms.items() if term is not None}
    losses = {**losses, "loss": torch.stack([v.float() for v in losses.values()]).sum()}
    _check_finite(t, losses, batch.names)
    return losses


def _check_finite(t: Trainer, values: Mapping[str, Tensor], names: list[str]) -> None:
    if all(torch.isfinite(v) for v in values.values()):
        return
    found = ", ".join(f"{k} {v.item():.3g}" for k, v in values.items())
    rates = ", ".join(sorted({f"{g['part']} {g['lr']:.1e}" for g in t.optimizer.param_groups}))
    raise NumericalError(
        "NAN",
        f"step {t.progress.step + 1} is not finite ({found}) on {', '.join(names)}; learning rates {rates}",
        where=str(t.folder),
        why="The last saved state holds no trace of it",
        fix="look at these images' boxes, then lower train.lr or set train.precision=fp32, under another run.name",
    )


# Evaluating and saving


def _is_scored(t: Trainer) -> bool:
    """Whether the epoch at hand ends in an evaluation."""
    number, cfg = t.progress.epoch + 1, t.settings.train
    return t.splits.val is not None and (number % cfg.eval_every == 0 or number == cfg.epochs)


def _evaluate(t: Trainer, run_log: RunLog) -> None:
    """Score the moving average on val and keep it as best/ if it is better than all before."""
    p, s, val = t.progress, t.settings, t.splits.val
    if val is None or not _is_scored(t):
        return
    d, pin = s.data, t.device.type == "cuda"
    loader = eval_loader(val, d.size, batch=s.eval.batch, workers=d.workers, canvas=d.canvas, pin=pin)
    precision = "bf16" if t.holds_low else s.eval.precision
    with t.ema.swapped_in(owned(t.model)):
        found = predict(t.model, _watched(t, loader), device=t.device, precision=precision)
        result = report(val.ground_truth(), found, val.classes, alarm_threshold=s.eval.alarm_threshold)
        stats = result["coco"]
        value = stats["AP"] or 0.0
        if stats["AP"] is not None:  # without a box to find nothing was measured
            p.stale = 0 if value > p.best else p.stale + 1
        if value > p.best or p.best == 0:  # while nothing is found, what was trained longer is better
            p.best = value
            thresholds = {name: row["threshold"] for name, row in result["per_class"].items()}
            meta = {**t.meta, "val": {**stats, "epoch": p.epoch + 1, "precision": precision}, "thresholds": thresholds}
            _drop_figures(t.folder / "eval" / "val")
            save_adapter(t.folder / "best", t.model, meta, model_card(meta, s, p.epoch + 1))
            _write_figures(t.folder / "eval" / "val", result, found)
    _record(t, run_log, {"epoch": p.epoch + 1, **{f"val_{k}": stats[k] for k in ("AP", "AP50", "AP75", "AR100")}})
    log.info("epoch %d: val AP %.4f AP50 %.4f", p.epoch + 1, value, stats["AP50"] or 0.0)


def _drop_figures(folder: Path) -> None:
    """Those of the epoch that was best till now: they must never stand beside another adapter."""
    try:
        for file in filter(Path.is_file, folder.glob("*")):
            file.unlink()
    except OSError as e:
        raise unwritable(e, folder, "the figures of a better epoch") from e


def _write_figures(folder: Path, result: Report, found: list[dict[str, Any]]) -> None:
    """Figures and plots can be made again from the adapter: they must not end a run."""
    try:
        write_report(folder, result, found)
    except (OSError, ResourceError) as e:
        log.warning("the figures of this evaluation were not written: %s", e)


def _stale(t: Trainer) -> bool:
    patience = t.settings.train.early_stop
    return bool(patience) and t.progress.stale >= patience


def _finish(t: Trainer) -> None:
    """The best state becomes the adapter folder; without val it is the last moving average."""
    if t.splits.val is None:
        with t.ema.swapped_in(owned(t.model)):
            save_adapter(t.folder / "best", t.model, t.meta, model_card(t.meta, t.settings, t.progress.epoch))
    copy_folder(t.folder / "best", t.folder / "adapter")
    t.progress.finished = True
    save(t)


# Signals, memory and sizes


@contextmanager
def _signals(t: Trainer) -> Iterator[None]:
    """SIGINT and SIGTERM are noted and obeyed after the step at hand; a second one stops at once.

    One that was ignored before, as SIGINT is in a shell's background job, stays ignored.
    """

    def note(signum: int, _: object) -> None:
        t.signum = signum
        signal.signal(signum, before[signum])

    found: dict[int, Any] = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    before = {s: handler for s, handler in found.items() if handler != signal.SIG_IGN}
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
            raise Interrupted(t.signum, t.folder)
        yield batch


@contextmanager
def _resources(t: Trainer) -> Iterator[None]:
    """What torch raises where memory ends or a loader process dies, as one sentence."""
    try:
        with dead_workers_told():
            yield
    except RuntimeError as e:
        if not isinstance(e, torch.OutOfMemoryError) and "can't allocate memory" not in str(e):
            raise
        batch, size = t.settings.train.batch, list(t.settings.data.size)
        what = f"memory ran out at train.batch={batch}, data.size={size} ({str(e).splitlines()[0]})"
        fix = f"{_less_memory(t)}, under another run.name"
        raise ResourceError("MEMORY", what, where=str(t.folder), fix=fix) from e


def _less_memory(t: Trainer) -> str:
    """What helps this very run."""
    halves = t.precision == "bf16" and not t.holds_low and any(_frozen_matrices(t.model))
    ways = ["halve train.batch and double train.accumulate"] * (t.settings.train.batch > 1)
    ways += ["set train.frozen_dtype=compute"] * halves
    return ", ".join([*ways, "or lower data.size" if ways else "lower data.size"])


def _sizes(t: Trainer) -> str:
    part = parts(t.model, t.settings.peft.mode)
    counts: dict[str, int] = {}
    for key, tensor in owned(t.model).items():
        counts[part[key]] = counts.get(part[key], 0) + tensor.numel() * tensor.requires_grad
    return "trained " + ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items()))
