_base_ = 'ipt-mini_1xb8-1k_48.py'

# One task from random weights, to compare with the model of all tasks.
find_unused_parameters = False
model = dict(tasks='noise50')
train_dataloader = dict(collate_fn=dict(tasks='noise50'))
dataset = _base_.val_dataloader.dataset.datasets[0]
dataset.pipeline[1].tasks = 'noise50'
val_dataloader = dict(dataset=dict(datasets=[dataset]))
test_dataloader = val_dataloader
