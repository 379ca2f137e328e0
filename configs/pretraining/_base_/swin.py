# Without the norms of maps that pre-training does not use, and without drop path.
swin_t = dict(type='mmdet.SwinTransformer', drop_path_rate=0.)
swin_b = dict(
    type='mmdet.SwinTransformer',
    embed_dims=128,
    depths=(2, 2, 18, 2),
    num_heads=(4, 8, 16, 32),
    drop_path_rate=0.)
# What a CPU trains.
swin_mini = dict(
    type='mmdet.SwinTransformer',
    embed_dims=32,
    depths=(2, 2, 2, 2),
    num_heads=(2, 4, 8, 16),
    drop_path_rate=0.)
