_base_ = '_base_/finetune.py'
custom_imports = dict(imports=['fpt_plugin'], allow_failed_imports=False)

model = dict(tasks='sr2')
train_dataloader = dict(collate_fn=dict(tasks='sr2'))
dataset = _base_.val_dataloader.dataset.datasets[0]
dataset.pipeline[1].tasks = 'sr2'
val_dataloader = dict(dataset=dict(datasets=[dataset]))
test_dataloader = val_dataloader
