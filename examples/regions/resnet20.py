"""The CIFAR-10 ResNet-20 of a public checkpoint, without its classifier: a small trained trunk."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two convolutions beside a shortcut, which skips pixels and adds empty channels where the block is smaller."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=after // before, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of ``after`` channels."""
        more, step = self.conv1.out_channels - x.shape[1], self.conv1.stride[0]
        short = F.pad(x[:, :, ::step, ::step], (0, 0, 0, 0, more // 2, more // 2))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + short)


class ResNet20(nn.Sequential):
    """Up to the last feature map, of stride 4."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        for before, after in ((16, 16), (16, 32), (32, 64)):
            self.append(nn.Sequential(Block(before, after), Block(after, after), Block(after, after)))
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        places = {"conv1": "0", "bn1": "1", "layer1": "3", "layer2": "4", "layer3": "5"}
        names = {name: name.split(".", 2)[1:] for name in state if "linear" not in name}
        kept = {f"{places[stage]}.{rest}": state[name] for name, (stage, rest) in names.items()}
        left = self.load_state_dict(kept, strict=False)  # the counters of batches came later than the file
        assert all(name.endswith("num_batches_tracked") for name in left.missing_keys)
