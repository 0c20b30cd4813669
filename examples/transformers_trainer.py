"""A network of residuum trained by the Trainer of Hugging Face's transformers, on the digits of the package.

pip install transformers accelerate
"""

from pathlib import Path

from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import residuum
from residuum.data.catalog import scan
from residuum.data.settings import DataSettings
from residuum.data.sources import open_dataset


class Split(Dataset):
    """Images (1, 8, 8) from -1 to 1 and labels, under the names that image classifiers of transformers have."""

    def __init__(self, split):
        self.images, self.labels = split.images.permute(0, 3, 1, 2).float() / 127.5 - 1, split.labels.long()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    """What the Trainer calls: it wants the loss, and logits where it evaluates."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, labels=None):
        logits = self.model(pixel_values)
        return {"logits": logits} | ({} if labels is None else {"loss": cross_entropy(logits, labels)})


def accuracy(prediction):
    return {"accuracy": (prediction.predictions.argmax(1) == prediction.label_ids).mean()}


def main():
    data = open_dataset(scan("digits"), DataSettings(), channels=1, cache=Path("data"))
    model = residuum.create("digits_resnet")
    arguments = TrainingArguments(
        "trainer", num_train_epochs=5, per_device_train_batch_size=64, learning_rate=0.01, lr_scheduler_type="cosine",
        warmup_steps=20, weight_decay=0.01, save_strategy="no", report_to="none", use_cpu=True, seed=0,
    )  # fmt: skip
    trainer = Trainer(
        Classifier(model), arguments, train_dataset=Split(data.train), eval_dataset=Split(data.val),
        compute_metrics=accuracy,
    )  # fmt: skip
    trainer.train()
    print(f"val accuracy {trainer.evaluate()['eval_accuracy']:.2f}")
    model.eval().save_pretrained("digits", classes=data.classes)


if __name__ == "__main__":
    main()
