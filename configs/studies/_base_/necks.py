# The necks that studies on real images compare, for both libraries.
study = dict(
    baseline='fpn',
    rows=dict(
        fpn=dict(),
        pafpn=dict(model=dict(neck=dict(type='mmdet.PAFPN'))),
        bup=dict(model=dict(neck=dict(type='BottomUpPyramid'))),
        light=dict(model=dict(neck=dict(type='FPT', preset='light'))),
        default=dict(model=dict(neck=dict(type='FPT'))),
        full=dict(model=dict(neck=dict(type='FPT', preset='full'))),
        paper=dict(model=dict(neck=dict(type='FPT', preset='paper')))))
