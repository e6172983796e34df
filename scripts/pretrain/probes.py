"""What is watched while training: val emoji, and the classes of Tiny-ImageNet that are kept for choices."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torchvision.transforms import v2

from scripts.pretrain.student import MODEL_CONFIG
from scripts.pretrain.trunk import Material, Student
from vlprompt.demo.emoji import emoji_index, read_emoji


class Probes:
    """Zero-shot accuracy and linear probes on images that pretraining never sees (but for the probe's train emoji)."""

    def __init__(self, material: Material):
        self.material = material

    @cached_property
    def order(self) -> torch.Tensor:
        """The concepts of the choice classes (10,), by label."""
        return self.material.sources["choice"]["names"][:, 0].unique()

    @cached_property
    def parts(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Images (N, 3, H, W) and labels (N,) of train and val emoji and of the choice classes."""
        size = MODEL_CONFIG["vision_cfg"]["image_size"]
        to_tensor = v2.Compose([v2.ToImage(), v2.Resize(size), v2.ToDtype(torch.float32, scale=True)])
        splits = read_emoji()
        found = {}
        for part in ("train", "val"):
            items = list(getattr(splits, part))
            images = torch.stack([to_tensor(splits.open_image(item).convert("RGB")) for item in items])
            labels = torch.tensor([item.label for item in items], device=self.material.device)
            found[part] = (self.material.normalise(images.to(self.material.device)), labels)
        choice = self.material.sources["choice"]
        labels = choice["names"][:, 0].unique(return_inverse=True)[1]
        found["choice"] = (self.material.normalise(choice["pixels"].float() / 255), labels)
        return found

    def class_vectors(self, student: Student) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors of the emoji classes (22, D) and of the choice classes (10, D)."""
        place = {name: i for i, name in enumerate(self.material.concepts)}
        bank = torch.cat([F.normalize(student.bank, dim=-1), self.material.probed[len(student.bank) :]])
        emoji = [
            bank[place[name]] if name in place else self.material.other[i]
            for i, name in enumerate(emoji_index()["classes"])
        ]
        return torch.stack(emoji), bank[self.order]

    @torch.no_grad()
    def measure(self, student: Student) -> dict[str, float]:
        """Return the accuracies in percent."""
        found = {name: self.encode(student, images) for name, (images, _) in self.parts.items()}
        emoji, choice = self.class_vectors(student)
        labels = {name: part[1] for name, part in self.parts.items()}
        half = torch.arange(len(labels["choice"])) % 2 == 0
        return {
            "val_emoji_zero_shot": accuracy(found["val"] @ emoji.T, labels["val"]),
            "val_emoji_linear": linear(found["train"], labels["train"], found["val"], labels["val"]),
            "choice_zero_shot": accuracy(found["choice"] @ choice.T, labels["choice"]),
            "choice_linear": linear(
                found["choice"][half], labels["choice"][half], found["choice"][~half], labels["choice"][~half]
            ),
        }

    @staticmethod
    def encode(student: Student, images: torch.Tensor, batch: int = 128) -> torch.Tensor:
        """Return normalised features (N, D) of whole images."""
        return torch.cat([student(part, 0, None)[1] for part in images.split(batch)])


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of right answers in percent."""
    return round(100 * (scores.argmax(1) == labels).float().mean().item(), 1)


def linear(train: torch.Tensor, train_labels: torch.Tensor, test: torch.Tensor, test_labels: torch.Tensor) -> float:
    """Return the accuracy in percent of logistic regression."""
    probe = LogisticRegression(max_iter=1000, C=10.0).fit(train.cpu().numpy(), train_labels.cpu().numpy())
    return round(100 * float(probe.score(test.cpu().numpy(), test_labels.cpu().numpy())), 1)
