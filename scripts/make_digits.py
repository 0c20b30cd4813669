"""Make the handwritten digits that the package ships, from scikit-learn's copy of the UCI test set.

    pip install scikit-learn
    python scripts/make_digits.py

Writes src/residuum/data/digits/digits.npz: `images`, uint8 (1797, 8, 8), 0 is paper and 255 full ink, and `labels`,
uint8 (1797,). The source counts inked pixels of 4x4 cells, 0 to 16; these counts are scaled to 0 to 255. The file's
bytes depend on nothing but the data, so that running this twice gives the same file.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).parents[1] / "src" / "residuum" / "data" / "digits" / "digits.npz"


def main() -> None:
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    with zipfile.ZipFile(TARGET, "w") as archive:
        for name, array in (("images", images), ("labels", labels)):
            data = io.BytesIO()
            np.save(data, array)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1998, 7, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data.getvalue(), compresslevel=9)
    print(f"{TARGET}: {images.shape} images, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
