"""A PyTorch twin of a small convolutional Keras network, cut by Torch-Pruning 1.6.1.

Used by shrink.py; needs `pip install torch-pruning==1.6.1` and the PyTorch backend.
"""

import copy
import time

import keras
import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional

from keras_pruner.model_graph import ModelGraph

_importance = tp.importance
IMPORTANCES = {
    "group L2": lambda: _importance.GroupMagnitudeImportance(p=2),
    "LAMP": lambda: _importance.LAMPImportance(),
    "BN scale": lambda: _importance.BNScaleImportance(),
    "FPGM": lambda: _importance.FPGMImportance(),
    "Taylor": lambda: _importance.TaylorImportance(),
}
_STEPS = 60
_SUFFIX = ", 1 labelled epoch"
WAYS = [
    f"Torch-Pruning {name}, {scope}{after}"
    for name in IMPORTANCES
    for scope in ("local", "global")
    for after in ("", _SUFFIX)
]


class Twin(nn.Module):
    """The same calls on PyTorch's own modules, channels first."""

    def __init__(self, model):
        super().__init__()
        self.graph = ModelGraph(model)
        modules = {call.name: _module(call.layer) for call in self.graph if not call.is_input}
        self.parts = nn.ModuleDict({k: m for k, m in modules.items() if m is not None})

    def forward(self, x):
        values = {self.graph.inputs[0]: x}
        for call in self.graph:
            if not call.is_input:
                inputs = [values[tensor] for tensor in call.inputs]
                values[call.outputs[0]] = self._step(call, inputs)
        return values[self.graph.outputs[0]]

    def _step(self, call, inputs):
        kind, part = type(call.layer).__name__, None
        if call.name in self.parts:
            part = self.parts[call.name]
        if kind in ("Conv2D", "DepthwiseConv2D"):
            return part(_padded(inputs[0], call.layer))
        if part is not None:
            return part(inputs[0])
        if kind == "Add":
            return inputs[0] + inputs[1]
        if kind == "ReLU":
            return functional.relu(inputs[0])
        if kind == "MaxPooling2D":
            return functional.max_pool2d(inputs[0], 2)
        if kind == "GlobalAveragePooling2D":
            return inputs[0].mean((2, 3))
        raise TypeError(f"No twin for {kind}.")


def _module(layer):
    values = [torch.tensor(w) for w in layer.get_weights()]
    if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
        kernel = values[0]
        deep = isinstance(layer, keras.layers.DepthwiseConv2D)
        kernel = kernel.permute(2, 3, 0, 1) if deep else kernel.permute(3, 2, 0, 1)
        channels = (len(kernel),) * 2 if deep else (kernel.shape[1], kernel.shape[0])
        groups = len(kernel) if deep else 1
        made = nn.Conv2d(
            *channels, layer.kernel_size, layer.strides, groups=groups, bias=layer.use_bias
        )
        state = [kernel, *values[1:]]
    elif isinstance(layer, keras.layers.BatchNormalization):
        made = nn.BatchNorm2d(len(values[0]), eps=layer.epsilon, momentum=None)
        state = [*values, torch.tensor(0)]
    elif isinstance(layer, keras.layers.Dense):
        made = nn.Linear(*values[0].shape)
        state = [values[0].T, values[1]]
    else:
        return None
    made.load_state_dict(dict(zip(made.state_dict(), state, strict=True)))
    return made


def _padded(x, layer):
    """Zeros around the image as Keras' padding="same" has them."""
    pads = []
    for size, window, stride in zip(x.shape[2:], layer.kernel_size, layer.strides, strict=True):
        need = max(0, (-(-size // stride) - 1) * stride + window - size)
        pads = [need // 2, need - need // 2, *pads]
    return functional.pad(x, pads) if any(pads) else x


def cut(model, fraction, setting, importance, is_global):
    """A twin cut to a fraction of its multiplications, batch norms re-estimated."""
    keras_like = torch.tensor(setting.samples).permute(0, 3, 1, 2)
    twin = Twin(model).eval()
    example = keras_like[:1]
    head = [m for m in twin.modules() if isinstance(m, nn.Linear)]
    pruner = tp.pruner.BasePruner(
        twin, example, importance=IMPORTANCES[importance](), global_pruning=is_global,
        pruning_ratio=0.95, iterative_steps=_STEPS, ignored_layers=head, max_pruning_ratio=0.95,
    )  # fmt: skip
    whole, _ = tp.utils.count_ops_and_params(twin, example)
    share = 1.0
    for _ in range(_STEPS):
        if importance == "Taylor":
            _gradients(twin, setting)
        pruner.step()
        share = tp.utils.count_ops_and_params(twin, example)[0] / whole
        if share <= fraction:
            break
    _reestimate(twin, keras_like)
    return twin, share


def _gradients(twin, setting):
    """Of the loss on 512 labelled images, which Taylor's importance needs."""
    x, y = (torch.tensor(part[:512]) for part in setting.labelled)
    twin.zero_grad()
    functional.cross_entropy(twin(x.permute(0, 3, 1, 2)), y.long()).backward()


def _reestimate(twin, x):
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    twin.train()
    with torch.no_grad():
        for batch in x.split(128):
            twin(batch)
    twin.eval()


def _train(twin, data):
    """One labelled epoch, as Keras' networks get it."""
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    x, y = torch.tensor(data[0]).permute(0, 3, 1, 2), torch.tensor(data[1]).long()
    optimizer = torch.optim.Adam(twin.parameters(), 1e-3, eps=1e-7)
    order = torch.randperm(len(x)).split(128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    twin.train()
    for rows in order:
        optimizer.zero_grad()
        functional.cross_entropy(twin(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    twin.eval()


def accuracy(twin, test):
    x = torch.tensor(test[0]).permute(0, 3, 1, 2)
    with torch.no_grad():
        outputs = torch.cat([twin(batch) for batch in x.split(500)])
    return 100 * float(np.mean(outputs.argmax(-1).numpy() == test[1]))


def cell(model, test, fraction, setting, way):
    """Accuracy and share of the multiplications for one of WAYS."""
    began = time.perf_counter()
    name, scope = way.removesuffix(_SUFFIX).removeprefix("Torch-Pruning ").split(", ")
    torch.manual_seed(0)
    key = (id(model), fraction, name, scope)
    if key not in _CUT:
        _CUT[key] = cut(model, fraction, setting, name, scope == "global")
    twin, share = _CUT[key]
    twin = copy.deepcopy(twin)
    if way.endswith(_SUFFIX):
        _train(twin, setting.labelled)
    seconds = time.perf_counter() - began
    return {"accuracy": accuracy(twin, test), "macs": share, "seconds": seconds}


_CUT = {}
