"""A network of residuum trained by Lightning, on the digits that come with the package.

pip install lightning
"""

from pathlib import Path

import lightning
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import residuum
from residuum.data.catalog import scan
from residuum.data.settings import DataSettings
from residuum.data.sources import open_dataset

EPOCHS = 5


def loader(split, **more):
    """Images (N, 1, 8, 8) from -1 to 1, and labels (N,)."""
    images = split.images.permute(0, 3, 1, 2).float() / 127.5 - 1
    return DataLoader(TensorDataset(images, split.labels.long()), batch_size=64, **more)


class Classifier(lightning.LightningModule):
    def __init__(self, model, steps):
        super().__init__()
        self.model, self.steps = model, steps

    def training_step(self, batch, _):
        images, labels = batch
        loss = cross_entropy(self.model(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, _):
        images, labels = batch
        self.log("val_accuracy", (self.model(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main():
    lightning.seed_everything(0)
    data = open_dataset(scan("digits"), DataSettings(), channels=1, cache=Path("data"))
    train, val = loader(data.train, shuffle=True), loader(data.val)
    model = residuum.create("digits_resnet")
    trainer = lightning.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(Classifier(model, EPOCHS * len(train)), train, val)
    print(f"val accuracy {trainer.callback_metrics['val_accuracy']:.2f}")
    residuum.save(model, "digits.safetensors", classes=data.classes)


if __name__ == "__main__":
    main()
