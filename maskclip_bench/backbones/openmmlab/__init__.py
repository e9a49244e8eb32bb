"""mmseg and mmdet on the encoders of the benchmark; the only package that imports OpenMMLab.

One line in a config is the whole hook:

    custom_imports = dict(
        imports=['maskclip_bench.backbones.openmmlab'], allow_failed_imports=False)

It puts the stand-in for mmcv's compiled operators in place (unless they exist), replaces the
loaders of mmengine that unpickle (`safe_loading`), lets mmcv read images by our rules
(`image_reading`), and registers, in mmengine's root registries, where mmseg and mmdet both look:

| registry | names |
| --- | --- |
| MODELS | `MaskCLIPViT`, `MaskCLIPPyramid` |
| MODELS | `SimpleFeaturePyramid`, `DeconvolutionPyramid`, `NormalizedTaps`, `LN2d` |
| OPTIM_WRAPPER_CONSTRUCTORS | `BackboneLayerDecay` |
| OPTIM_WRAPPERS | `BFloat16OptimWrapper` |
| DATASETS | `ADE20KLayout`, `COCOLayout`, `SegmentationSamples` |
| METRICS | `SegmentationOutcomes`, `DetectionOutcomes` |
| HOOKS | `RunReport`, `Pictures` |
| LOOPS | `AsideValLoop`, `BFloat16TestLoop`, `BFloat16ValLoop` |
"""

from __future__ import annotations

from maskclip_bench.errors import MissingDependencyError
from maskclip_bench.extras import install_command

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        "Segmentation and detection need OpenMMLab, which is not installed: "
        f"{install_command('openmmlab')}"
    ) from error

from maskclip_bench.backbones.openmmlab import (
    image_reading,
    lvis_numpy,
    mmcv_kernels,
    safe_loading,
)

mmcv_kernels.install()
safe_loading.install()
image_reading.install()
lvis_numpy.install()

from maskclip_bench.backbones.openmmlab import (  # noqa: E402
    datasets,
    evaluation,
    hooks,
    layer_decay,
    loops,
    necks,
    pictures,
    pyramid,
    vit,
)

__all__ = [
    "datasets",
    "evaluation",
    "hooks",
    "image_reading",
    "layer_decay",
    "loops",
    "lvis_numpy",
    "mmcv_kernels",
    "necks",
    "pictures",
    "pyramid",
    "safe_loading",
    "vit",
]
