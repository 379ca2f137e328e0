# 30 epochs with one task, starting from the model of all tasks.
_base_ = 'ipt.py'

load_from = 'work_dirs/ipt_8xb32-200e_48/epoch_200.pth'
find_unused_parameters = False
optim_wrapper = dict(optimizer=dict(lr=2e-5))
epochs = 30
train_cfg = dict(max_epochs=epochs, val_interval=10)
param_scheduler = []
