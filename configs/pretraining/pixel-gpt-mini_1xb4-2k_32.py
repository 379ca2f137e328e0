_base_ = '_base_/pixel_gpt.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# 2400 steps of a small model, on a CPU. The paper learns which colours are similar
# from 13,000 times as many images; here fixed features tell it.
model = dict(
    _delete_=True,
    type='PixelGPT',
    size=dict(depth=8, embed_dims=144, num_heads=3),
    colour_features=True,
    image_size=_base_.size)
train_dataloader = dict(batch_size=4, num_workers=1)
test_dataloader = dict(num_workers=0)
test_evaluator = dict(images=9600)

iterations, warmup = 2400, 100
auto_scale_lr = dict(base_batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_iters=iterations)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=warmup),
    dict(
        type='CosineAnnealingLR',
        T_max=iterations - warmup,
        by_epoch=False,
        begin=warmup,
        end=iterations)
]
default_hooks = dict(checkpoint=dict(interval=200))
custom_hooks = [
    dict(type='FitPaletteHook'),
    dict(type='ReconstructionHook', interval=600),
    dict(type='ReseedHook')
]
