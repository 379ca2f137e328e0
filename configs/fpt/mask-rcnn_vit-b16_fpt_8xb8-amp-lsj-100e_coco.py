_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_8xb8-amp-lsj-200e_coco.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

# As ViTDet: a pyramid over a plain ViT without a top-down path, images of 1024x1024,
# large scale jitter, AdamW; but every layer attends to the whole image. Convert the
# weights with mmseg's tools/model_converters/vit2mmseg.py.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg.VisionTransformer',
        img_size=(1024, 1024),
        patch_bias=True,
        out_indices=(2, 5, 8, 11),
        norm_cfg=dict(type='LN', eps=1e-6),
        drop_path_rate=0.1,
        # attention weights take 0.8 GB per layer and image
        with_cp=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='pretrain/vit_base_patch16_224.pth')),
    neck=dict(
        _delete_=True,
        type='FPT',
        in_channels=[768] * 4,
        out_channels=256,
        num_outs=5,
        num_levels=4,
        pyramid=[
            dict(
                type='mmseg.Feature2Pyramid',
                embed_dim=768,
                norm_cfg=dict(type='GN', num_groups=32)),
            dict(
                type='BottomUpPyramid',
                in_channels=[768] * 4,
                out_channels=256,
                num_outs=5,
                norm_cfg=dict(type='GN', num_groups=32))
        ]))

# 25 times 4 epochs. Images are tested at the training size.
train_dataloader = dict(dataset=dict(times=4))
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(1024, 1024), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor'))
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='AdamW',
        lr=0.0001,
        betas=(0.9, 0.999),
        weight_decay=0.1),
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        custom_keys={
            'pos_embed': dict(decay_mult=0.),
            'cls_token': dict(decay_mult=0.)
        }))
