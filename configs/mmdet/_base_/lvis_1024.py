"""LVIS v1, 1,203 classes, boxes and masks, large-scale jittering to squares of 1024.

Data: <MASKCLIP_BENCH_DATA>/lvis_v1/annotations, and COCO's images in <MASKCLIP_BENCH_DATA>/lvis_v1/
{train2017,val2017} (links will do). Oversampling of rare classes at 1e-3: mmdet's lvis_v1_instance.py.
Different from it: the pipeline, which is ViTDet's.
"""

_base_ = "coco_1024.py"

data_root = "{{$MASKCLIP_BENCH_DATA:workspace/data}}/lvis_v1/"
_pipelines = {{_base_.train_pipeline}}
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="ClassBalancedDataset",
        oversample_thr=1e-3,
        dataset=dict(
            type="LVISV1Dataset",
            data_root=data_root,
            ann_file="annotations/lvis_v1_train.json",
            data_prefix=dict(img=""),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=_pipelines,
        ),
    )
)
val_dataloader = dict(
    dataset=dict(
        type="LVISV1Dataset",
        data_root=data_root,
        ann_file="annotations/lvis_v1_val.json",
        data_prefix=dict(img=""),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True,
    type="LVISMetric",
    ann_file=data_root + "annotations/lvis_v1_val.json",
    metric=["bbox", "segm"],
)
test_evaluator = val_evaluator
