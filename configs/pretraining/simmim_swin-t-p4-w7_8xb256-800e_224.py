_base_ = 'greenmim_swin-t-p4-w7_8xb256-800e_224.py'

model = dict(type='SimMIM')
