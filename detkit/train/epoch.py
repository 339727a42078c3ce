"""One pass over the training set."""

import contextlib

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from detkit import dist, tricks
from detkit.data import Augmented
from detkit.train.batches import autocast, loader, progress
from detkit.train.run import Run


def train_epoch(run: Run, model: nn.Module, data: Augmented, epoch: int) -> dict[str, float]:
    """One pass over the training set; the mean of each loss, and how many batches were left out, if any."""
    args = run.args
    run.sampler.set_epoch(epoch)
    data.set_epoch(epoch)
    if run.sampler.position == 0:
        run.sums, run.skipped = {}, 0
    done = run.sampler.position // run.batch
    model.train()
    step = Step(run)
    for batch, (images, targets) in enumerate(progress(loader(run, data), epoch, done, run.batches), start=done + 1):
        last = batch % args.accumulate == 0 or batch == run.batches
        group = min(args.accumulate, run.batches - (batch - 1) // args.accumulate * args.accumulate)
        wait = model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext()
        if run.shapes is not None:
            run.model.preprocess.size = run.shapes(epoch * run.batches + batch - 1)
        with wait:
            with autocast(run):
                losses = model(images, targets)
            (sum(losses.values()) / group).backward()
        step.add(losses)
        run.sampler.advance(run.batch)
        if last:
            step.end(f"epoch {epoch}, batch {batch}", group)
            step = Step(run)
        steps = -(-batch // args.accumulate)
        if args.checkpoint_steps and last and steps % args.checkpoint_steps == 0 and batch < run.batches:
            run.save(epoch)
        if batch == run.batches:
            break
    if run.skipped == run.batches:
        raise FloatingPointError(f"epoch {epoch}: no loss was finite: nothing was learned")
    means = {name: float(total) / (run.batches - run.skipped) for name, total in run.sums.items()}
    everywhere = dist.gather_objects(means)
    means = {name: sum(rank[name] for rank in everywhere) / len(everywhere) for name in means}
    return means | ({"skipped": run.skipped} if run.skipped else {})


class Step:
    """The batches whose gradients are added up for one step of the optimizer, which is taken or left out as a whole."""

    def __init__(self, run: Run) -> None:
        self.run, self.sums = run, {}
        self.buffers = {name: buffer.clone() for name, buffer in run.model.named_buffers()}

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count the losses of one batch."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss.detach()

    def end(self, place: str, batches: int) -> None:
        """Take the step, if losses and gradients are finite; name them and stop or leave it out, if not."""
        run = self.run
        if bad := tricks.nonfinite(self.sums, run.model):
            self.leave_out(f"{place}: {', '.join(bad[:4])}" + (f" and {len(bad) - 4} more" if len(bad) > 4 else ""))
            run.skipped += batches
        else:
            for name, total in self.sums.items():
                run.sums[name] = run.sums.get(name, torch.zeros(())).to(total.device) + total
            nn.utils.clip_grad_norm_(run.model.parameters(), run.args.clip)
            run.optimizer.step()
            run.average.update_parameters(run.model)
        run.optimizer.zero_grad()
        run.schedule.step()

    def leave_out(self, reason: str) -> None:
        """Put back the statistics that forward passes moved. Raises FloatingPointError with ``--nonfinite stop``."""
        for name, buffer in self.run.model.named_buffers():
            buffer.copy_(self.buffers[name])
        if self.run.args.nonfinite == "stop":
            raise FloatingPointError(f"{reason}; --nonfinite skip would leave out the step")
        if dist.rank() == 0:
            tqdm.write(f"step left out: {reason}")
