# Without norms of unused maps, and without drop path.
swin_t = dict(type='mmdet.SwinTransformer', drop_path_rate=0.)
swin_b = dict(
    type='mmdet.SwinTransformer',
    embed_dims=128,
    depths=(2, 2, 18, 2),
    num_heads=(4, 8, 16, 32),
    drop_path_rate=0.)
# Small enough for a CPU.
swin_mini = dict(
    type='mmdet.SwinTransformer',
    embed_dims=32,
    depths=(2, 2, 2, 2),
    num_heads=(2, 4, 8, 16),
    drop_path_rate=0.)
