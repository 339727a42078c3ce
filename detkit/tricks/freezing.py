"""Freezing the first layers of a network: parameters that do not learn, and statistics that do not move."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detkit._door import door
from detkit._ranges import Whole
from detkit._wrappers import unwrapped
from detkit.layers import freeze_batch_norm
from detkit.tricks.depth import layers_of
from detkit.tricks.sync_batch_norm import SyncBatchNorm


@door
def freeze(module: nn.Module, layers: Whole | None = None, *, norms: bool = True) -> list[str]:
    """Freeze the first ``layers`` layers of ``module``, all without a number; the names of what learned until now.

    Their parameters no longer require a gradient, and with ``norms`` their batch norms are replaced by
    :func:`~detkit.layers.freeze_batch_norm`, so that running statistics stay as they are in training mode too: a frozen
    layer computes the same before and after ``train()``. Layers are those of :func:`~detkit.tricks.layers_of`: a
    ResNet-50 has a stem and 16 blocks, so 4 freezes the stem and ``layer1``. Freeze before you build the optimizer, the
    average and DistributedDataParallel; weights load and save as before. Dropout stays. Raises ValueError for more
    layers than there are, naming their number, and for batch norms that cannot be replaced: 1d and 3d ones, and the
    module itself, which another one holds.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    >>> freeze(model, 1)
    ['0.weight', '0.bias', '1.weight', '1.bias']
    >>> type(model[1]).__name__, [name for name, value in model.named_parameters() if value.requires_grad]
    ('FrozenBatchNorm2d', ['2.weight', '2.bias'])
    """
    module = unwrapped(module)
    found = layers_of(module)
    if layers is not None and layers > len(found):
        raise ValueError(
            f"freeze: layers={layers}, but a {type(module).__name__} has {len(found)}; allowed is up to that"
        )
    names = {name for layer in found[:layers] for name in layer}
    parameters = {name: value for name, value in module.named_parameters() if name in names}
    if norms and isinstance(module, _BatchNorm):
        raise ValueError(
            f"freeze: module is a {type(module).__name__}, which cannot replace itself; freeze what holds it, put "
            "detkit.layers.freeze_batch_norm(module) there, or use norms=False"
        )
    if norms:
        _freeze_norms(module, {id(value) for value in parameters.values()}, whole=layers is None)
    frozen = [name for name, value in parameters.items() if value.requires_grad]
    for value in parameters.values():
        value.requires_grad_(False)
    return frozen


def _freeze_norms(module: nn.Module, parameters: set[int], *, whole: bool) -> None:
    """Replace the batch norms whose parameters, by their ids, are all among these; with ``whole`` those without, too.

    One that stands in several places is replaced by one in all of them.
    """
    known: dict[nn.Module, nn.Module] = {}
    for path, part in list(module.named_modules(remove_duplicate=False)):
        own = {id(value) for value in part.parameters()}
        if path and isinstance(part, _BatchNorm) and own <= parameters and (own or whole):
            holder, _, name = path.rpartition(".")
            known[part] = known.get(part) or _frozen(part)
            setattr(module.get_submodule(holder), name, known[part])


def _frozen(norm: _BatchNorm) -> nn.Module:
    if type(norm).__module__.startswith("timm."):  # which holds an activation
        from timm.layers.norm_act import freeze_batch_norm_2d

        return freeze_batch_norm_2d(norm)
    return freeze_batch_norm(SyncBatchNorm.revert(norm))
