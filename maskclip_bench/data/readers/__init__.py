"""Evaluation data sets, read in their own layouts: images with labels, captions, masks or boxes.

| kind | layout below `root` | gives |
| --- | --- | --- |
| image_folder | `{split}/{class}/**/*.jpg`, a class list beside it | labels |
| torchvision | what torchvision's class of that name expects (never downloaded) | labels |
| webdataset | CLIP-benchmark's `{split}/*.tar`: `key.jpg` with `key.cls` or `key.txt` | either |
| karpathy | one JSON of splits and sentences (Flickr30K, COCO), a folder of images | captions |
| ade20k | `images/{split}/*.jpg`, `annotations/{split}/*.png` | masks |
| coco_instances | `{split}/*.jpg`, `annotations/instances_{split}.json` | boxes |
| voc | VOCdevkit: `JPEGImages`, `ImageSets/Main/{class}_{split}.txt` | several labels an image |
| cub | CUB-200-2011: `images`, and lists of images, labels and splits | labels |
| objectnet | ObjectNet: `objectnet-1.0/images`, `mappings`; the border is cut off | labels |
| winoground | Winoground: `examples.jsonl`, `images` | two captions for two images |
| sugar_crepe | SugarCrepe: lists in `data`, COCO's `val2017` | a right and a wrong caption |
| table | CSV, TSV, JSON lines or Parquet that names images, or holds them | either |
| huggingface | any data set of the Hugging Face hub, or a folder in that format | either |

One file a kind: its declaration (`reader:` in `tasks/*.yaml`) and how it opens a split. Another
package adds a kind through the entry-point group `maskclip_bench.readers`, whose value is a
subclass of `ReaderDeclaration`. Nothing is downloaded, and no image is decoded before it is asked
for.
"""

from __future__ import annotations

from maskclip_bench.data.dataset import Dataset, FileImages, IndexedImages, TarImages
from maskclip_bench.data.readers.base import (
    READERS,
    ReaderDeclaration,
    forget,
    missing_files,
    open_dataset,
    root_of,
)

__all__ = [
    "READERS",
    "Dataset",
    "FileImages",
    "IndexedImages",
    "ReaderDeclaration",
    "TarImages",
    "forget",
    "missing_files",
    "open_dataset",
    "root_of",
]
