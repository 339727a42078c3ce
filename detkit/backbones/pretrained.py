"""Any classifier as a backbone: adapters for torchvision and timm models that the user passes in."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from detkit._door import door
from detkit._ranges import Count
from detkit.backbones.base import Backbone
from detkit.backbones.meta import meta_pass


class TorchvisionBackbone(Backbone):
    """Intermediate activations of any torchvision classifier, chosen by the names of nodes of its graph.

    ``nodes`` are ascending names as ``torchvision.models.feature_extraction.get_graph_node_names`` lists them; layers
    after the last one are dropped. ``channels_last`` says that the nodes return (B, H, W, D), as in Swin. Channels and
    strides are inferred from the shapes of one pass on the meta device (nothing is computed) with an image of
    ``image_size`` (height, width); models of a fixed size need theirs. Raises ValueError for a name that is not a node,
    and for a node whose activation is not a feature map.

    >>> from torchvision.models import mobilenet_v3_small
    >>> model = mobilenet_v3_small(weights=None)
    >>> backbone = TorchvisionBackbone(model, nodes=["features.3", "features.8", "features.12"])
    >>> backbone.out_channels, backbone.strides
    ((24, 48, 576), (8, 16, 32))
    """

    @door
    def __init__(
        self,
        model: nn.Module,
        *,
        nodes: Sequence[str],
        channels_last: bool = False,
        image_size: tuple[Count, Count] = (224, 224),
    ) -> None:
        body = create_feature_extractor(model, list(nodes))
        outputs = meta_pass(body, torch.empty(2, 3, *image_size, device="meta"))
        shapes = [tuple(outputs[node].shape) for node in nodes]
        if any(len(shape) != 4 for shape in shapes):
            raise ValueError(
                f"TorchvisionBackbone: nodes {list(nodes)} give shapes {shapes}; each must have 4 dimensions"
            )
        channel, row = (3, 1) if channels_last else (1, 2)
        strides = [round(image_size[0] / shape[row]) for shape in shapes]
        super().__init__(out_channels=[shape[channel] for shape in shapes], strides=strides)
        self.nodes = tuple(nodes)
        self.channels_last = channels_last
        self.body = body

    @door
    def forward(self, images: Float[Tensor, "B D H W"]) -> list[Tensor]:
        """The activations of the chosen nodes, (B, D, H, W) each."""
        self.check_images(images)
        outputs = self.run(self.body, images)
        levels = [outputs[node] for node in self.nodes]
        return [level.permute(0, 3, 1, 2) for level in levels] if self.channels_last else levels


class TimmBackbone(Backbone):
    """A model made by ``timm.create_model(name, features_only=True, ...)``.

    Channels and strides come from the model's ``feature_info``, the levels from its ``out_indices``. Maps of
    channels-last models (Swin) are permuted to (B, D, H, W). timm itself is not imported here. Raises ValueError for a
    model without ``feature_info``, and in forward if the maps are not as it declares.

    >>> import timm
    >>> model = timm.create_model("resnet10t", pretrained=False, features_only=True, out_indices=(2, 3, 4))
    >>> TimmBackbone(model).strides
    (8, 16, 32)
    """

    def __init__(self, model: nn.Module) -> None:
        info = getattr(model, "feature_info", None)
        channels, reduction = getattr(info, "channels", None), getattr(info, "reduction", None)
        if channels is None or reduction is None:
            raise ValueError(
                f"TimmBackbone: {type(model).__name__} has no feature_info; "
                "build it with timm.create_model(..., features_only=True)"
            )
        super().__init__(out_channels=channels(), strides=reduction())
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self.body = model

    @door
    def forward(self, images: Float[Tensor, "B D H W"]) -> list[Tensor]:
        """The model's feature maps, (B, D, H, W) each."""
        self.check_images(images)
        levels = self.run(self.body, images)
        levels = [level.permute(0, 3, 1, 2) for level in levels] if self.channels_last else list(levels)
        if [level.shape[1] for level in levels] != list(self.out_channels):
            shapes = [tuple(level.shape) for level in levels]
            raise ValueError(f"TimmBackbone: feature maps {shapes} do not have the channels {self.out_channels}")
        return levels
