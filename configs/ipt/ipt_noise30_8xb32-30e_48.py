_base_ = '_base_/finetune.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(tasks='noise30')
train_dataloader = dict(collate_fn=dict(tasks='noise30'))
dataset = _base_.val_dataloader.dataset.datasets[0]
dataset.pipeline[1].tasks = 'noise30'
val_dataloader = dict(dataset=dict(datasets=[dataset]))
test_dataloader = val_dataloader
