"""What an update could change on a model, and the contexts and failures that it must survive."""

from contextlib import nullcontext

import torch
from conftest import SmallNet
from torch import nn


class Fragile(nn.Module):
    """Fails in its n-th forward pass, after the target layer has run."""

    def __init__(self, net: SmallNet) -> None:
        super().__init__()
        self.net = net
        self.calls = 0
        self.fails_at = 0

    def forward(self, x):
        self.calls += 1
        logits = self.net(x)
        if self.calls == self.fails_at:
            raise ArithmeticError("on purpose")
        return logits


CONTEXTS = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def traces(model, images):
    """Everything an update could change, by identity and by value."""
    hooks = [
        {
            name: dict(table)
            for name, table in vars(module).items()
            if name.endswith("_hooks") and table is not None
        }
        for module in model.modules()
    ]
    parameters = [
        (p.grad, None if p.grad is None else p.grad.clone(), p.requires_grad) for p in model.parameters()
    ]
    return {
        "hooks": hooks,
        "grads": [id(grad) for grad, _, _ in parameters],
        "grad values": [None if value is None else value.tolist() for _, value, _ in parameters],
        "requires_grad": [flag for _, _, flag in parameters],
        "values": [tensor.tolist() for tensor in model.state_dict().values()],
        "modes": [module.training for module in model.modules()],
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "images": (images.tolist(), images.requires_grad, images.grad),
    }
