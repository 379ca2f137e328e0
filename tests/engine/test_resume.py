"""Damaged checkpoints are found, and the newest complete one is used."""

import os
import re
import shutil
import warnings

import pytest
import torch

from fpt_plugin.engine.resume import (
    check_checkpoint,
    check_pretrained,
    newest_checkpoint,
)


def save(path, step=0, time='20260101_000000', **options):
    content = dict(meta=dict(time=time, iter=step),
                   state_dict=dict(weight=torch.arange(5000.)))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


def run_of(folder, *epochs, named=None):
    """Write a work folder with one checkpoint per epoch and day."""
    for epoch in epochs:
        save(folder / f'epoch_{epoch}.pth', epoch, f'202601{epoch:02}_000000')
    (folder / 'last_checkpoint').write_text(
        str(named or folder / f'epoch_{epochs[-1]}.pth'))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 255
    path.write_bytes(content)


FORMATS = pytest.mark.parametrize('options', [
    {}, dict(_use_new_zipfile_serialization=False)], ids=['zip', 'old format'])


@FORMATS
@pytest.mark.parametrize('share', [0, 0.001, 0.5, 0.99, 1])
def test_truncated_files(share, options, tmp_path):
    path = save(tmp_path / 'a.pth', **options)
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * share)])
    if share == 1:
        check_checkpoint(path)
        torch.save(dict(thing=re.compile('a')), path, **options)  # unsafe, complete
        check_checkpoint(path)
    else:
        with pytest.raises(ValueError, match=re.escape(str(path))):
            check_checkpoint(path)


def test_changed_bytes(tmp_path):
    """If a file passes, its content is the saved one."""
    path = save(tmp_path / 'a.pth')
    size = path.stat().st_size
    rejected = 0
    for place in [size // 2, *range(0, size, size // 150)]:
        flip(path, place)
        try:
            check_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error)
            rejected += 1
        else:
            loaded = torch.load(path, weights_only=True)['state_dict']
            assert torch.equal(loaded['weight'], torch.arange(5000.))
        flip(path, place)
    assert rejected > 100
    flip(path, size // 2)
    torch.load(path, weights_only=True)  # torch does not notice it
    with pytest.raises(ValueError, match=re.escape(f'{path} is damaged')):
        check_checkpoint(path)


def test_no_checkpoint(tmp_path):
    (tmp_path / 'a.pth').write_text('<html>404</html>')
    with pytest.raises(ValueError, match='a.pth is not a checkpoint'):
        check_checkpoint(tmp_path / 'a.pth')
    with pytest.raises(FileNotFoundError, match='b.pth'):
        check_checkpoint(tmp_path / 'b.pth')
    check_checkpoint('https://somewhere/a.pth')  # mmengine downloads it
    check_checkpoint(tmp_path)  # DeepSpeed's


def test_pretrained_weights_of_modules(tmp_path):
    path = save(tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = dict(neck=None, parts=[dict(type='A', init_cfg=init_cfg)], checkpoint='x')
    check_pretrained(model)
    cut(path)
    with pytest.raises(ValueError, match='a.pth was cut short'):
        check_pretrained(model)
    for name in ('torchvision://resnet50', str(tmp_path / 'missing.pth')):
        check_pretrained(dict(init_cfg=dict(init_cfg, checkpoint=name)))


@pytest.fixture(autouse=True)
def _strict():
    """An unexpected warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def newest(*args):
    found = newest_checkpoint(*args)
    return found and os.path.basename(found)


def test_nothing_was_saved(tmp_path):
    assert newest(tmp_path / 'missing') is None
    # The best one has no optimizer; the other one is not the hook's.
    save(tmp_path / 'best_acc_epoch_3.pth')
    save(tmp_path / 'epoch_3-01234567.pth')
    assert newest(tmp_path) is None


def test_last_checkpoint_counts_unless_a_later_one_was_saved(tmp_path):
    run_of(tmp_path, 1, 2, 10, named=tmp_path / 'epoch_2.pth')
    assert newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_2.pth')
    os.remove(tmp_path / 'epoch_10.pth')
    save(tmp_path / 'epoch_3.pth', 3, '20260103_000000')
    later = os.stat(tmp_path / 'last_checkpoint').st_mtime + 1
    for epoch in (1, 3):  # 1 was copied
        os.utime(tmp_path / f'epoch_{epoch}.pth', (later, later))
    assert newest(tmp_path) == 'epoch_3.pth'
    # An empty or missing file.
    (tmp_path / 'last_checkpoint').write_text('')
    assert newest(tmp_path) == 'epoch_3.pth'
    os.remove(tmp_path / 'last_checkpoint')
    assert newest(tmp_path) == 'epoch_3.pth'


@pytest.mark.parametrize('damage', [cut, flip, os.remove])
def test_damaged_files_are_skipped_with_a_warning(damage, tmp_path):
    run_of(tmp_path, 9, 10, 11)
    damage(tmp_path / 'epoch_11.pth')
    cut(tmp_path / 'epoch_10.pth')
    with pytest.warns(UserWarning) as caught:
        assert newest(tmp_path) == 'epoch_9.pth'
    text = '\n'.join(str(w.message) for w in caught)
    assert 'epoch_11.pth' in text and 'epoch_10.pth' in text
    assert (tmp_path / 'epoch_10.pth').exists()


def test_checkpoints_of_an_older_training_in_the_folder(tmp_path):
    """The time in the checkpoint counts, not the epoch."""
    run_of(tmp_path, 1, 2, 3)
    save(tmp_path / 'epoch_12.pth', 12, '20250101_000000')
    os.remove(tmp_path / 'epoch_3.pth')
    with pytest.warns(UserWarning, match='epoch_3.pth, which is not there'):
        assert newest(tmp_path) == 'epoch_2.pth'


@pytest.mark.parametrize('pointer', [True, False])
def test_without_a_complete_checkpoint(pointer, tmp_path):
    """An error, unless the run was killed while it wrote the first one."""
    run_of(tmp_path, 1)
    cut(tmp_path / 'epoch_1.pth')
    with pytest.warns(UserWarning, match='epoch_1.pth was cut short'):
        if pointer:
            with pytest.raises(ValueError, match='last_checkpoint names'):
                newest(tmp_path)
        else:
            os.remove(tmp_path / 'last_checkpoint')
            assert newest(tmp_path) is None


def test_a_run_that_was_moved_or_is_seen_from_another_folder(tmp_path, monkeypatch):
    run_of(tmp_path / 'a', 1, 2)
    shutil.move(tmp_path / 'a', tmp_path / 'b')
    assert newest_checkpoint(tmp_path / 'b') == str(tmp_path / 'b/epoch_2.pth')
    (tmp_path / 'b/last_checkpoint').write_text('b/epoch_1.pth')
    for folder in (tmp_path, tmp_path / 'b'):
        monkeypatch.chdir(folder)
        found = newest_checkpoint(os.path.relpath(tmp_path / 'b'))
        assert os.path.samefile(found, tmp_path / 'b/epoch_1.pth')


def test_folder_and_file_names_of_the_hook(tmp_path):
    hook = dict(out_dir=str(tmp_path / 'out'), filename_tmpl='mine-{}.pt')
    folder = tmp_path / 'out' / 'run'  # as mmengine joins them
    for step in (1, 2):
        save(folder / f'mine-{step}.pt', step, f'2026010{step}_000000')
    save(folder / 'epoch_7.pth', 7, '20260107_000000')
    (tmp_path / 'run').mkdir()
    assert newest(tmp_path / 'run', hook) == 'mine-2.pt'
    (tmp_path / 'run/last_checkpoint').write_text(str(folder / 'mine-2.pt'))
    cut(folder / 'mine-2.pt')
    with pytest.warns(UserWarning, match='mine-2.pt was cut short'):
        assert newest(tmp_path / 'run', hook) == 'mine-1.pt'


@pytest.mark.parametrize('template', [
    'epoch_{:03d}.pth', '{}.pth', 'iter_{0:>8}.pth', 'r50_{:06}_2.pth',
    'step-{:,}.pth', 'a+b[1]_{}.pth', 'epoch_{0}_{0:04d}.pth', 'latest.pth',
    '{{x}}_{}.pth', 'step_{:_}', 'epoch_{}/model.pth'])
def test_names_of_any_template(template, tmp_path):
    hook = dict(filename_tmpl=template)
    for day, step in enumerate((8, 90, 1000, 12000), 1):
        save(tmp_path / template.format(step), step, f'2026010{day}_000000')
    for other in ('epoch_7-01234567.pth', 'best_acc_epoch_007.pth', 'epoch_x.pth'):
        save(tmp_path / other, 10**6, '20270101_000000')
    last = tmp_path / template.format(12000)
    assert newest_checkpoint(tmp_path, hook) == str(last)
    if '{}' in template or ':' in template:
        cut(last)
        with pytest.warns(UserWarning, match='was cut short'):
            found = newest_checkpoint(tmp_path, hook)
        assert found == str(tmp_path / template.format(1000))


def test_several_hooks(tmp_path):
    save(tmp_path / 'epoch_001.pth', 100, '20260101_000000')
    save(tmp_path / 'iter_150.pth', 150, '20260102_000000')
    named, plain = dict(filename_tmpl='epoch_{:03d}.pth'), dict(by_epoch=False)
    assert newest(tmp_path, named) == 'epoch_001.pth'
    assert newest(tmp_path, named, plain) == 'iter_150.pth'


def test_other_storage_and_folders(tmp_path):
    """Of folders only the one in last_checkpoint is known to be complete."""
    for epoch in (1, 2):
        (tmp_path / f'epoch_{epoch}.pth').mkdir()
    assert newest(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    assert newest(tmp_path) == 'epoch_1.pth'
    (tmp_path / 'last_checkpoint').write_text('s3://bucket/epoch_3.pth')
    assert newest_checkpoint(tmp_path) == 's3://bucket/epoch_3.pth'
