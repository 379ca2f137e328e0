# mmseg's FCN over UFP. The four maps have the same size, and the head
# concatenates them.
fcn_ufp = dict(
    neck=dict(
        type='UFP',
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        num_outs=4,
        norm_cfg=dict(type='SyncBN', requires_grad=True)),
    decode_head=dict(
        in_channels=[256] * 4,
        in_index=[0, 1, 2, 3],
        input_transform='resize_concat'),
    auxiliary_head=dict(in_channels=256))

# The paper's FPT, except for the scale of the scores: all keys, full width, and
# the Grounding Transformer in a window.
fcn_ufp_fpt = dict(
    fcn_ufp,
    neck=dict(
        fcn_ufp['neck'],
        type='FPT',
        preset='paper',
        pyramid=dict(type='UFP'),
        grounding_transformer=dict(type='LocalGroundingTransformer', window=5),
        drop_block=dict(type='mmdet.DropBlock', drop_prob=0.1, block_size=3)))
