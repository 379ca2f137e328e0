_base_ = '../quickstart/sem-fpn_mobilenet-v2_fpt_nuclei.py'

load_from = 'checkpoints/restoration_sem-fpn_mobilenet-v2_fpt.pth'
