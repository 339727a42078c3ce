"""The loop of detkit.train in Accelerate (package accelerate), on scenes: the same losses.

Run: python examples/train_accelerate.py runs/mine.safetensors --epochs 3    (or with "accelerate launch", or torchrun)

Accelerate places the model, wraps it for several processes, and casts to bfloat16 if told so (float16 lets single
gradients overflow, which this loop takes for an error). The loader stays as it is, since Accelerate would divide it
once more: the sampler divides the scenes, and the detector moves images and targets to its own device.
"""

import argparse

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from detkit.data import Augmented, DigitScenes, ResumableSampler, collate, flip_augmentation
from detkit.detectors import fpn_ssd
from detkit.tricks import ExponentialMovingAverage, nonfinite, warmup_cosine
from detkit.weights import save_weights


def main() -> None:
    """Train, print the losses of each step, and save the averaged weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="file for the weights, in a folder that is there")
    for name, default in {"scenes": 2000, "side": 96, "epochs": 30, "batch-size": 16, "warmup": 100}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    accelerator = Accelerator()
    torch.manual_seed(0)
    data = Augmented(DigitScenes(args.scenes, size=(args.side, args.side)), flip_augmentation(), seed=0)
    detector = fpn_ssd(num_classes=10, size=(args.side, args.side)).to(memory_format=torch.channels_last)
    groups = [[p for p in detector.parameters() if (p.ndim > 1) is decayed] for decayed in (True, False)]
    options = [{"params": groups[0], "weight_decay": 0.05}, {"params": groups[1], "weight_decay": 0.0}]
    model, optimizer = accelerator.prepare(detector, torch.optim.AdamW(options, lr=2e-3))
    sampler = ResumableSampler(len(data), seed=0)
    loader = DataLoader(data, args.batch_size, sampler=sampler, collate_fn=collate, drop_last=True)
    schedule = warmup_cosine(optimizer, warmup_steps=args.warmup, total_steps=args.epochs * len(loader))
    average = ExponentialMovingAverage(detector, 0.998)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        data.set_epoch(epoch)
        for images, targets in loader:
            losses = model(images, targets)
            accelerator.backward(sum(losses.values()))
            if bad := nonfinite(losses, detector):
                raise FloatingPointError(f"epoch {epoch}: {', '.join(bad)}")
            accelerator.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            average.update_parameters(detector)
            accelerator.print({"epoch": epoch, **{name: loss.item() for name, loss in losses.items()}})
    if accelerator.is_main_process:
        save_weights(average.module, args.output)


if __name__ == "__main__":
    main()
