"""Data sets for training, out of the results of segment.py: COCO, YOLO, labelme, DAVIS, PASCAL VOC.

python segment.py photos/ "dog. cat." --out animals --save coco yolo       # as the inputs finish
python -m minisam_glue.datasets animals --to labelme                       # afterwards
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .annotations import Annotation, Categories, Picture, Pixels, Result
    from .dataset import DataSet, DataSets
    from .formats import FORMATS, Format

__all__ = ["FORMATS", "Annotation", "Categories", "DataSet", "DataSets", "Format", "Picture", "Pixels", "Result"]
PLACES = {
    **dict.fromkeys(("Annotation", "Categories", "Picture", "Pixels", "Result"), ".annotations"),
    **dict.fromkeys(("DataSet", "DataSets"), ".dataset"),
    **dict.fromkeys(("FORMATS", "Format"), ".formats"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, as those of minisam_glue are."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PLACES[name], __name__), name)
