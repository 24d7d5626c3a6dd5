"""Distil handwritten digits in a training loop of your own: plain PyTorch, and two losses of kdzoo. A few seconds."""

from importlib.resources import files

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kdzoo.losses import kd_loss, rkd_distance_loss


class Net(nn.Module):
    """Convolutions of some widths; answers with logits (N, 10) and the embedding (N, D) before them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        pairs = zip((1, *widths), widths, strict=False)
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairs)
        )
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.body(images).mean(dim=(2, 3))
        return self.head(embedding), embedding


def train(student: Net, teacher: Net | None, images: torch.Tensor, targets: torch.Tensor, epochs: int) -> Net:
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(50):
            logits, embedding = student(images[rows])
            loss = F.cross_entropy(logits, targets[rows])
            if teacher is not None:
                with torch.no_grad():
                    taught_logits, taught_embedding = teacher(images[rows])
                loss = 0.1 * loss + 0.9 * kd_loss(logits, taught_logits, temperature=4.0)
                loss = loss + rkd_distance_loss(embedding, taught_embedding)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student.eval()


def main() -> None:
    with files("kdzoo_vision").joinpath("digits.npz").open("rb") as file:
        arrays = {name: torch.from_numpy(array) for name, array in np.load(file).items()}
    images, unseen = (arrays[f"{split}_images"][:, None] / 255 for split in ("train", "test"))
    targets, answers = (arrays[f"{split}_targets"].long() for split in ("train", "test"))

    def student(teacher: Net | None) -> Net:
        torch.manual_seed(0)  # both begin with the same weights and see the same batches
        return train(Net(4, 8), teacher, images, targets, epochs=20)

    torch.manual_seed(0)
    teacher = train(Net(32, 64), None, images, targets, epochs=8)
    alone, distilled = student(None), student(teacher)
    for name, network in (("teacher", teacher), ("student alone", alone), ("student distilled", distilled)):
        with torch.no_grad():
            right = network(unseen)[0].argmax(dim=1) == answers
        print(f"{name:<17} {100 * right.float().mean():.1f} %")


if __name__ == "__main__":
    main()
