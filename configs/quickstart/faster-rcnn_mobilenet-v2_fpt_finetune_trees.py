_base_ = 'faster-rcnn_mobilenet-v2_fpt_trees.py'

# Start from the plain detector of `bash tools/quickstart.sh --neck fpn` with exactly
# its predictions, and train its weights at a low learning rate. FPT's new parameters
# learn at the full rate.
load_from = 'work_dirs/quickstart-fpn/epoch_10.pth'

new = dict(lr_mult=5.)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(
        custom_keys=dict(
            self_transformers=new,
            grounding_transformers=new,
            rendering_transformers=new,
            fusions=new)))
max_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=30),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        begin=0,
        T_max=max_epochs,
        end=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
