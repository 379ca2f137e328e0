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
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=max_epochs, end=max_epochs)
