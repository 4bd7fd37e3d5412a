"""The default images: photographs that ship inside the scikit-image wheel.

Nothing is downloaded. Origins and licences are those that scikit-image states in the docstrings
of ``skimage.data``. No photograph is in both the training and the test set.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from ..base.errors import UserError
from .files import ImageSet

NAME = "embedded"
TRAIN_SET = "Embedded-train"
TEST_SET = "Embedded"

#: File in ``skimage/data``: what it shows, origin, terms. Not used: ``moon`` and ``retina``, too
#: smooth to learn from; drawings, text and synthetic images, which are no photographs.
TRAIN = {
    "astronaut.png": "Eileen Collins, NASA Great Images; public domain",
    "coins.png": "Greek coins from Pompeii, Brooklyn Museum (grey); no known restrictions",
    "grass.png": "grass by linolafett, DeviantArt (grey); CC0",
    "gravel.png": "gravel, CC0Textures Gravel04 (grey); CC0",
    "hubble_deep_field.jpg": "Hubble eXtreme Deep Field, NASA / HubbleSite; public domain",
    "ihc.png": "stained colonic glands under the microscope, CMMI; no known restrictions",
    "motorcycle_left.png": "Middlebury stereo benchmark 2014 (Scharstein et al., GCPR 2014)",
    "motorcycle_right.png": "the other view of the same scene",
    "rocket.jpg": "DSCOVR launch on Falcon 9, SpaceX Photos; public domain",
}
TEST = {
    "brick.png": "brick wall, CC0Textures Bricks25 (grey); CC0",
    "camera.png": "cameraman by Lav Varshney (grey); CC0",
    "chelsea.png": "Chelsea the cat by Stefan van der Walt; CC0",
    "coffee.png": "coffee cup by Rachel Michetti, Pikolo Espresso Bar; CC0",
}


def embedded_set(name: str, files: dict[str, str]) -> ImageSet:
    """The set of these files of the wheel.

    Raises:
        UserError: this scikit-image does not ship one of them.
    """
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    paths = tuple(folder / file for file in files)
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"scikit-image {version('scikit-image')} does not ship {path.name}: "
                "install scikit-image 0.22 or later, or give a folder of images with --data"
            )
    return ImageSet(name, paths)
