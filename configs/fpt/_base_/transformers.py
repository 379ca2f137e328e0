# Backbones that mmseg has no configs for with Semantic FPN or on Cityscapes, and
# their training settings in mmseg and mmdet.

# From mmseg's UPerNet on ADE20K.
swin_t = dict(
    type='SwinTransformer',
    drop_path_rate=0.3,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/'
        'pretrain/swin/swin_tiny_patch4_window7_224_20220317-1cdeb081.pth'))
swin_optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='AdamW',
        lr=0.00006,
        betas=(0.9, 0.999),
        weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys={
            'absolute_pos_embed': dict(decay_mult=0.),
            'relative_position_bias_table': dict(decay_mult=0.),
            'norm': dict(decay_mult=0.)
        }))

# From mmdet's RetinaNet. mmseg has no PVT, so mmdet must be installed too.
pvtv2_b0 = dict(
    type='mmdet.PyramidVisionTransformerV2',
    embed_dims=32,
    num_layers=[2, 2, 2, 2],
    init_cfg=dict(checkpoint='https://github.com/whai362/PVT/'
                  'releases/download/v2/pvt_v2_b0.pth'))
pvtv2_b2 = dict(
    type='mmdet.PyramidVisionTransformerV2',
    embed_dims=64,
    num_layers=[3, 4, 6, 3],
    init_cfg=dict(checkpoint='https://github.com/whai362/PVT/'
                  'releases/download/v2/pvt_v2_b2.pth'))
pvt_optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type='AdamW', lr=0.0001, weight_decay=0.0001))

# The schedule of mmseg's Swin and ViT; each config sets ``end`` to its steps.
warmup = dict(
    type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500)
decay = dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, by_epoch=False)
