"""Data sets for training, out of the results of segment.py: COCO, YOLO, labelme, DAVIS, PASCAL VOC.

python segment.py photos/ "dog. cat." --out animals --save coco yolo       # as the inputs finish
python -m minisam_glue.datasets animals --to labelme                       # afterwards
"""

from .annotations import Annotation, Categories, Picture, Pixels, Result
from .dataset import DataSet, DataSets
from .formats import FORMATS, Format

__all__ = ["FORMATS", "Annotation", "Categories", "DataSet", "DataSets", "Format", "Picture", "Pixels", "Result"]
