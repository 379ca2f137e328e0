# What mmseg's FCN becomes on UFP. The four maps have one size, and the head
# takes them concatenated.
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

# The paper's FPT over it, but for the scale of the scores: every key, full
# width, and the grounding transformer within a window.
fcn_ufp_fpt = dict(
    fcn_ufp,
    neck=dict(
        fcn_ufp['neck'],
        type='FPT',
        preset='paper',
        pyramid=dict(type='UFP'),
        grounding_transformer=dict(type='LocalGroundingTransformer', window=5),
        drop_block=dict(type='mmdet.DropBlock', drop_prob=0.1, block_size=3)))
