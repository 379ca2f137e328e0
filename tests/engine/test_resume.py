"""Which checkpoint a training goes on from."""

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


def save(path, step=0, clock='20260101_000000', old_format=False):
    content = dict(meta=dict(time=clock, iter=step),
                   state_dict=dict(weight=torch.arange(5000.)))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    return path


def run_of(folder, *epochs, named=None):
    """A work folder: a checkpoint an epoch, one a day."""
    for epoch in epochs:
        save(folder / f'epoch_{epoch}.pth', epoch, f'202601{epoch:02}_000000')
    (folder / 'last_checkpoint').write_text(
        str(named or folder / f'epoch_{epochs[-1]}.pth'))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


# ------------------------------------------------------------------- check


@pytest.mark.parametrize('old_format', [False, True])
def test_whole(old_format, tmp_path):
    check_checkpoint(save(tmp_path / 'a.pth', old_format=old_format))


def test_what_is_not_safe_to_load_may_be_whole(tmp_path):
    for old_format in (False, True):
        torch.save(dict(thing=re.compile('a')), tmp_path / 'a.pth',
                   _use_new_zipfile_serialization=not old_format)
        check_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize('share', [0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize('old_format', [False, True])
def test_cut_short(share, old_format, tmp_path):
    path = save(tmp_path / 'a.pth', old_format=old_format)
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * share)])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        check_checkpoint(path)


def test_other_bytes(tmp_path):
    path = save(tmp_path / 'a.pth')
    flip(path)
    # Nobody else would notice.
    torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match=re.escape(f'{path} is damaged')):
        check_checkpoint(path)


def test_bytes_anywhere(tmp_path):
    """What passes is read as it was saved."""
    path = save(tmp_path / 'a.pth')
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), len(content) // 150):
        changed = bytearray(content)
        changed[place] ^= 255
        path.write_bytes(changed)
        try:
            check_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            loaded = torch.load(path, weights_only=True)['state_dict']
            assert torch.equal(loaded['weight'], torch.arange(5000.))
    assert refused > 100


def test_no_checkpoint(tmp_path):
    (tmp_path / 'a.pth').write_text('<html>404</html>')
    with pytest.raises(ValueError, match='a.pth is not a checkpoint'):
        check_checkpoint(tmp_path / 'a.pth')
    with pytest.raises(FileNotFoundError, match='b.pth'):
        check_checkpoint(tmp_path / 'b.pth')


def test_what_is_mmengines_to_find(tmp_path):
    check_checkpoint('https://somewhere/a.pth')
    check_checkpoint(tmp_path)  # DeepSpeed's


def test_what_modules_begin_with(tmp_path):
    path = save(tmp_path / 'a.pth')
    begins = dict(type='Pretrained', checkpoint=str(path))
    model = dict(neck=None, parts=[dict(type='A', init_cfg=begins)], checkpoint='x')
    check_pretrained(model)
    cut(path)
    with pytest.raises(ValueError, match='a.pth was cut short'):
        check_pretrained(model)
    for name in ('torchvision://resnet50', str(tmp_path / 'missing.pth')):
        check_pretrained(dict(init_cfg=dict(begins, checkpoint=name)))


# ------------------------------------------------------------------ newest


@pytest.fixture(autouse=True)
def _strict():
    """A warning that no test asks for is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def name(path):
    return os.path.basename(path)


def test_nothing_was_saved(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / 'missing') is None
    # The best one has no optimizer; others are not this hook's.
    save(tmp_path / 'best_acc_epoch_3.pth')
    save(tmp_path / 'epoch_3-01234567.pth')
    assert newest_checkpoint(tmp_path) is None


def test_what_is_named_counts(tmp_path):
    run_of(tmp_path, 1, 2, 10, named=tmp_path / 'epoch_2.pth')
    assert newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_2.pth')


def test_finished_after_it_was_named(tmp_path):
    run_of(tmp_path, 1, 2)
    save(tmp_path / 'epoch_3.pth', 3, '20260103_000000')
    later = os.stat(tmp_path / 'last_checkpoint').st_mtime + 1
    for epoch in (1, 3):  # 1 was copied
        os.utime(tmp_path / f'epoch_{epoch}.pth', (later, later))
    assert name(newest_checkpoint(tmp_path)) == 'epoch_3.pth'


@pytest.mark.parametrize('damage', [cut, flip, os.remove])
def test_damaged_ones_are_named_and_left_out(damage, tmp_path):
    run_of(tmp_path, 9, 10, 11)
    damage(tmp_path / 'epoch_11.pth')
    cut(tmp_path / 'epoch_10.pth')
    with pytest.warns(UserWarning) as caught:
        assert name(newest_checkpoint(tmp_path)) == 'epoch_9.pth'
    said = '\n'.join(str(w.message) for w in caught)
    assert 'epoch_11.pth' in said and 'epoch_10.pth' in said
    assert (tmp_path / 'epoch_10.pth').exists()


def test_by_their_own_account(tmp_path):
    """Of an older training in the same folder more epochs are left."""
    run_of(tmp_path, 1, 2, 3)
    save(tmp_path / 'epoch_12.pth', 12, '20250101_000000')
    os.remove(tmp_path / 'epoch_3.pth')
    with pytest.warns(UserWarning, match='epoch_3.pth, which is not there'):
        assert name(newest_checkpoint(tmp_path)) == 'epoch_2.pth'


def test_nothing_whole_is_no_new_beginning(tmp_path):
    run_of(tmp_path, 1)
    cut(tmp_path / 'epoch_1.pth')
    with pytest.warns(UserWarning, match='epoch_1.pth was cut short'), \
            pytest.raises(ValueError, match='last_checkpoint tells of'):
        newest_checkpoint(tmp_path)


def test_died_in_the_first_one(tmp_path):
    cut(save(tmp_path / 'epoch_1.pth'))
    with pytest.warns(UserWarning, match='epoch_1.pth was cut short'):
        assert newest_checkpoint(tmp_path) is None


def test_an_empty_pointer(tmp_path):
    run_of(tmp_path, 1, 2)
    (tmp_path / 'last_checkpoint').write_text('')
    assert name(newest_checkpoint(tmp_path)) == 'epoch_2.pth'
    os.remove(tmp_path / 'last_checkpoint')
    assert name(newest_checkpoint(tmp_path)) == 'epoch_2.pth'


def test_a_run_that_was_moved(tmp_path):
    run_of(tmp_path / 'a', 1, 2)
    shutil.move(tmp_path / 'a', tmp_path / 'b')
    assert newest_checkpoint(tmp_path / 'b') == str(tmp_path / 'b/epoch_2.pth')


def test_seen_from_another_folder(tmp_path, monkeypatch):
    run_of(tmp_path / 'run', 1, 2, named='run/epoch_1.pth')
    for folder in (tmp_path, tmp_path / 'run'):
        monkeypatch.chdir(folder)
        found = newest_checkpoint(os.path.relpath(tmp_path / 'run'))
        assert os.path.samefile(found, tmp_path / 'run/epoch_1.pth')


def test_the_hooks_folder_and_names(tmp_path):
    hook = dict(out_dir=str(tmp_path / 'out'), filename_tmpl='mine-{}.pt')
    folder = tmp_path / 'out' / 'run'  # as mmengine joins them
    for step in (1, 2):
        save(folder / f'mine-{step}.pt', step, f'2026010{step}_000000')
    save(folder / 'epoch_7.pth', 7, '20260107_000000')
    (tmp_path / 'run').mkdir()
    assert name(newest_checkpoint(tmp_path / 'run', hook)) == 'mine-2.pt'
    (tmp_path / 'run/last_checkpoint').write_text(str(folder / 'mine-2.pt'))
    cut(folder / 'mine-2.pt')
    with pytest.warns(UserWarning, match='mine-2.pt was cut short'):
        assert name(newest_checkpoint(tmp_path / 'run', hook)) == 'mine-1.pt'


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
    found = newest_checkpoint(tmp_path, hook)
    assert found == str(tmp_path / template.format(12000))
    if '{}' in template or ':' in template:
        cut(tmp_path / template.format(12000))
        with pytest.warns(UserWarning, match='was cut short'):
            found = newest_checkpoint(tmp_path, hook)
        assert found == str(tmp_path / template.format(1000))


def test_of_several_hooks(tmp_path):
    save(tmp_path / 'epoch_001.pth', 100, '20260101_000000')
    save(tmp_path / 'iter_150.pth', 150, '20260102_000000')
    named, plain = dict(filename_tmpl='epoch_{:03d}.pth'), dict(by_epoch=False)
    assert name(newest_checkpoint(tmp_path, named)) == 'epoch_001.pth'
    assert name(newest_checkpoint(tmp_path, named, plain)) == 'iter_150.pth'


def test_other_storage_is_mmengines(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('s3://bucket/epoch_3.pth')
    assert newest_checkpoint(tmp_path) == 's3://bucket/epoch_3.pth'


def test_of_folders_the_named_one_alone(tmp_path):
    """Several frameworks write folders; a killed one is there as well."""
    for epoch in (1, 2):
        (tmp_path / f'epoch_{epoch}.pth').mkdir()
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    assert name(newest_checkpoint(tmp_path)) == 'epoch_1.pth'
