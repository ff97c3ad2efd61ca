"""Networks with masked gradients: controls, on which an evaluation of robustness must not be fooled."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

TEMPERATURE = 50.0


class Around(nn.Module):
    """A network between two functions, of the images and of the logits."""

    def __init__(
        self,
        network: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        """Images of shape ``(n, C, H, W)`` to logits."""
        return self.after(self.network(self.before(x)))


def scaled(network: nn.Module, factor: float) -> Around:
    """Return the network with its logits multiplied: the same predictions, and cross-entropy saturates."""
    return Around(network, after=lambda logits: factor * logits)


def rounding(network: nn.Module) -> Around:
    """Return the network behind an input step without a derivative."""
    return Around(network, lambda x: (x * 15).round() / 15)


def shattered(network: nn.Module, size: float = 0.005, frequency: float = 2000.0) -> Around:
    """
    Return the network behind a fast oscillation of each pixel, which changes an image little and its gradient's signs.

    Shattered gradients, after Athalye et al. (2018).

    :param size: The largest change of a pixel.
    :param frequency: In radians; the derivative of a pixel lies within 1 ± size * frequency.
    """
    return Around(network, lambda x: x + size * (frequency * x).sin())


class Decoy(nn.Module):
    """The logits of one network with the gradient of another."""

    def __init__(self, network: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.network, self.other = network, other

    def forward(self, x: Tensor) -> Tensor:
        """Images of shape ``(n, C, H, W)`` to logits."""
        decoy: Tensor = self.other(x)
        logits: Tensor = self.network(x).detach() + decoy - decoy.detach()
        return logits


class WinnersTakeAll(nn.Module):
    """A network of 8 x 8 images whose activation, k-WTA, keeps the largest fifth (Xiao et al., 2020): it is rough."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images of shape ``(n, 1, 8, 8)`` to logits."""
        for layer in (self.conv1, self.conv2):
            x = nn.functional.max_pool2d(self.winners(layer(x)), 2)
        logits: Tensor = self.fc(x.flatten(1))
        return logits

    def winners(self, x: Tensor) -> Tensor:
        """Return the activations with all but the largest fifth of each image set to 0."""
        rows = x.flatten(1)
        largest = rows >= rows.topk(rows.shape[1] // 5, dim=1).values[:, -1:]
        return (rows * largest).view_as(x)


def winners_take_all(**_: object) -> WinnersTakeAll:
    """Return an untrained network, as a recipe's model, from torch's global generator."""
    return WinnersTakeAll()


class Tempered(nn.Module):
    """Cross-entropy at a temperature: of the logits divided by it, for class indices or probabilities."""

    def __init__(self, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits ``(n, C)`` and class indices ``(n,)`` or probabilities ``(n, C)`` to nats, a scalar."""
        return nn.functional.cross_entropy(logits / self.temperature, target)


def distilled(teacher: nn.Module, images: Tensor, *, epochs: int, batch_size: int, lr: float) -> nn.Module:
    """
    Return a student of a network by defensive distillation (Papernot et al., 2016): large logits, which saturate.

    It learns the teacher's probabilities at a high temperature, and is used without one.

    :param teacher: A network that was trained with :class:`Tempered`; the student's weights begin anew.
    :param images: The images that it was trained on, shape ``(n, C, H, W)``.
    """
    loss, student = Tempered(), copy.deepcopy(teacher)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in student.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()
        with torch.no_grad():
            probabilities = (teacher.eval()(images) / loss.temperature).softmax(1)
        optimizer = torch.optim.Adam(student.train().parameters(), lr=lr)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(batch_size):
                optimizer.zero_grad()
                loss(student(images[rows]), probabilities[rows]).backward()
                optimizer.step()
    return student.eval()
