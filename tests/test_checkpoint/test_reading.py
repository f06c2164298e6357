import copy
import io
import os
import pickle
import types
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.optim import OneCycleParamScheduler, OptimWrapper
from mmengine.runner import CheckpointLoader, Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mmskd.checkpoint import allow_checkpoint_classes, load_checkpoint_safely, use_safe_loading
from mmskd.checkpoint.reading import checkpoint_classes, load_restricted
from mmskd.checkpoint.safe_numpy import NUMERIC_DTYPES, NumericArray

# What numpy calls to make an array and a number from a pickle
RECONSTRUCT = np.zeros(0).__reduce__()[0]
SCALAR = np.float64(0).__reduce__()[0]

has_allow_list = pytest.mark.skipif(
    not hasattr(torch.serialization, 'add_safe_globals'), reason='torch < 2.4')
both_loaders = pytest.mark.parametrize('load', [load_checkpoint_safely, load_restricted])


class Model(BaseModel):

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, inputs, mode='tensor'):
        out = self.layers(torch.stack(inputs) if isinstance(inputs, list) else inputs)
        return dict(loss=out.pow(2).mean()) if mode == 'loss' else [out]


class Data(Dataset):
    metainfo = dict(
        classes=('a', 'b'), sigmas=np.ones(3, np.float32), colors=np.zeros((2, 3), np.uint8),
        skeleton=np.zeros((0, 3), np.uint8), weight=np.float32(3), flags=np.array([True, False]))

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(inputs=torch.full((2, ), index / 8))


class Metric(BaseMetric):

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=np.float64(0.5), count=np.int64(3))


SCHEDULERS = [
    dict(type='LinearLR', start_factor=.1, by_epoch=False, end=3),
    dict(type='CosineAnnealingLR', T_max=3, convert_to_iter_based=True),
    dict(type='OneCycleLR', eta_max=.1, total_steps=8),
    dict(type='MultiStepLR', milestones=[1, 2]),
    dict(type='PolyLR'),
    dict(type='ReduceOnPlateauLR', monitor='score'),
    dict(type='CosineRestartLR', periods=[2, 2], restart_weights=[1, .5], eta_min=0),
    dict(type='ExponentialLR', gamma=.9),
    dict(type='CosineAnnealingMomentum', T_max=3),
]


def runner(work_dir, epochs, **settings):
    model, data = Model(), Data()
    return Runner(
        model, str(work_dir), experiment_name=f'{work_dir}-{epochs}',
        train_dataloader=DataLoader(data, 4, sampler=DefaultSampler(data)),
        val_dataloader=DataLoader(data, 4), val_evaluator=[Metric()], val_cfg=dict(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), .1, momentum=.9)),
        param_scheduler=SCHEDULERS, custom_hooks=[dict(type='EMAHook')],
        default_hooks=dict(checkpoint=dict(
            type='CheckpointHook', save_best='score', rule='greater')),
        **settings)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The folder of a training with all that mmengine writes into a checkpoint."""
    folder = tmp_path_factory.mktemp('runs') / 'run'
    runner(folder, 1).train()
    return folder


@pytest.fixture
def safe_globals():
    """PyTorch's list without what others put there; put back afterwards."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield torch.serialization
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


@pytest.fixture
def schemes(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())


# ------------------------------------------------------------------ what must be read


@both_loaders
@pytest.mark.parametrize('name', ['epoch_1.pth', 'best_score_epoch_1.pth'])
def test_reads_what_mmengine_writes(load, name, trained):
    checkpoint = load(str(trained / name))
    loss = checkpoint['message_hub']['log_scalars']['train/loss']
    assert isinstance(loss, HistoryBuffer) and loss.mean() > 0
    meta = checkpoint['meta']['dataset_meta']
    for key, value in Data.metainfo.items():
        assert type(meta[key]) is type(value) and np.array_equal(meta[key], value)
    assert set(checkpoint['state_dict']) == set(Model().state_dict())


@has_allow_list
def test_plain_torch_load_reads_it_too(trained, safe_globals):
    allow_checkpoint_classes()
    checkpoint = torch.load(str(trained / 'epoch_1.pth'), weights_only=True)
    loss = checkpoint['message_hub']['log_scalars']['train/loss']
    assert type(loss) is HistoryBuffer and all(type(data) is np.ndarray for data in loss.data)
    loss.update(1.)
    assert loss.current() == 1
    meta = checkpoint['meta']['dataset_meta']
    for key, value in Data.metainfo.items():
        assert isinstance(meta[key], type(value)) and np.array_equal(meta[key], value)


@has_allow_list
def test_arrays_of_plain_torch_load_are_numpys_for_others(safe_globals):
    allow_checkpoint_classes()
    file = io.BytesIO()
    torch.save(np.arange(3.), file)
    file.seek(0)
    array = torch.load(file, weights_only=True)
    assert type(array.sum()) is np.float64 and type(array + 1) is np.ndarray
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert b'mmskd' not in pickle.dumps(array, protocol)
    with pytest.raises(ValueError, match='read-only'):
        array[0] = 5
    copied = copy.deepcopy(array)
    copied[0] = 5
    assert copied.tolist() == [5, 1, 2] and array.tolist() == [0, 1, 2]


@both_loaders
def test_reads_arrays_of_all_numbers(load, tmp_path):
    arrays = [np.arange(6).reshape(2, 3).astype(code) for code in NUMERIC_DTYPES]
    arrays += [arrays[-1].T, np.array(1.5, np.float32), np.zeros((0, 3)), np.ones(5000),
               np.arange(3, dtype='>i4')]
    content = dict(arrays=arrays, pair=(arrays[0], [arrays[1]]), numbers=[
        array.dtype.type(1) for array in arrays])
    content.update(itself=[content['arrays']], dtype=np.dtype('f4'))
    torch.save(content, tmp_path / 'c.pth')
    loaded = load(str(tmp_path / 'c.pth'))
    for ours, theirs in zip(loaded['arrays'], arrays):
        assert type(ours) is np.ndarray and ours.flags.writeable
        assert ours.dtype == theirs.dtype.newbyteorder('=') and np.array_equal(ours, theirs)
        assert ours.flags.f_contiguous == theirs.flags.f_contiguous
    for ours, theirs in zip(loaded['numbers'], content['numbers']):
        assert type(ours) is type(theirs) and ours == theirs
    assert loaded['pair'][0] is loaded['arrays'][0], 'what was one array stays one'
    assert loaded['pair'][1][0] is loaded['arrays'][1]
    assert loaded['itself'][0] is loaded['arrays']
    assert isinstance(loaded['dtype'], np.dtype) and loaded['dtype'] == np.dtype('f4')


@both_loaders
def test_reads_the_names_of_either_numpy(load, tmp_path):
    """A checkpoint of numpy 2 under numpy 1, and the other way round."""
    file = tmp_path / 'c.pth'
    torch.save(dict(array=np.arange(3.), number=np.float64(2)), file,
               _use_new_zipfile_serialization=False)
    ours = RECONSTRUCT.__module__.encode()
    other = {b'numpy.core.multiarray': b'numpy._core.multiarray'}.get(
        ours, b'numpy.core.multiarray')
    content = file.read_bytes()
    assert ours in content
    file.write_bytes(content.replace(ours, other))
    loaded = load(str(file))
    assert np.array_equal(loaded['array'], np.arange(3.)) and loaded['number'] == 2


@both_loaders
def test_map_location_and_tensor_kinds(load, tmp_path):
    tensors = dict(
        half=torch.ones(2, dtype=torch.bfloat16), flag=torch.tensor(True),
        parameter=nn.Parameter(torch.ones(1)), sparse=torch.eye(2).to_sparse(),
        view=torch.arange(6).view(2, 3).t(), size=torch.Size([1, 2]), ordered=OrderedDict(a=1))
    torch.save(tensors, tmp_path / 'c.pth')
    loaded = load(str(tmp_path / 'c.pth'), 'meta')
    assert loaded['half'].device.type == 'meta' and loaded['half'].dtype is torch.bfloat16
    loaded = load(str(tmp_path / 'c.pth'))
    for key in ('half', 'flag', 'parameter', 'view'):
        assert torch.equal(loaded[key], tensors[key])
    assert torch.equal(loaded['sparse'].to_dense(), torch.eye(2))
    assert loaded['size'] == torch.Size([1, 2]) and loaded['ordered'] == OrderedDict(a=1)


@has_allow_list
def test_allow_list_is_additive_and_grows_once(safe_globals):
    other = type('Other', (), {})
    safe_globals.add_safe_globals([other])
    for _ in range(2):
        allow_checkpoint_classes()
    allowed = safe_globals.get_safe_globals()
    assert len(allowed) == len(set(allowed)) and set(allowed) == {other, *checkpoint_classes()}


@has_allow_list
def test_allow_list_has_no_type_of_numpy(safe_globals):
    allow_checkpoint_classes()
    from torch._weights_only_unpickler import _get_allowed_globals
    listed = [*safe_globals.get_safe_globals(), *_get_allowed_globals().values()]
    for entry in listed:
        assert entry is not np.ndarray and entry is not RECONSTRUCT and entry is not SCALAR
        assert not (isinstance(entry, type) and issubclass(entry, (np.dtype, np.generic)))


NUMPYS_OWN = [np.ndarray, np.dtype, RECONSTRUCT, type(np.dtype('f8')), type(np.dtype('i8'))]


@has_allow_list
def test_numpys_own_types_are_set_aside_for_a_while(safe_globals, tmp_path, monkeypatch):
    """MMEngine's forks list them for their own loading, and users of MMEngine do."""
    def load(*args, plain_load=torch.load, **kwargs):
        meanwhile.extend(safe_globals.get_safe_globals())
        return plain_load(*args, **kwargs)

    meanwhile, others = [], [*NUMPYS_OWN, SCALAR, HistoryBuffer, getattr]
    monkeypatch.setattr(torch, 'load', load)
    safe_globals.add_safe_globals(others)
    path = str(tmp_path / 'c.pth')
    torch.save(dict(buffer=HistoryBuffer([1., 2.], [1, 1])), path)
    assert load_checkpoint_safely(path)['buffer'].mean() == 1.5
    torch.save(Calls(np.ndarray, (1, ), 'f8', b'A' * 8), path)
    with pytest.raises(pickle.UnpicklingError, match='numpy.ndarray with a layout'):
        load_checkpoint_safely(path)
    assert meanwhile and not set(others).intersection(meanwhile)
    assert set(safe_globals.get_safe_globals()) == set(others)


@has_allow_list
def test_numpys_own_types_stay_in_use_for_plain_torch_load(safe_globals, tmp_path):
    path = str(tmp_path / 'c.pth')
    safe_globals.add_safe_globals(NUMPYS_OWN)
    allow_checkpoint_classes()
    torch.save(dict(buffer=HistoryBuffer([1., 2.], [1, 1])), path)
    assert torch.load(path, weights_only=True)['buffer'].mean() == 1.5
    torch.save(np.float64(1), path)
    with pytest.raises(pickle.UnpicklingError, match=r'Unsupported global.*multiarray.scalar'):
        torch.load(path, weights_only=True)


@has_allow_list
def test_classes_that_others_listed_are_read(safe_globals, tmp_path):
    torch.save(Path('x'), tmp_path / 'c.pth')
    safe_globals.add_safe_globals([type(Path('x'))])
    assert load_checkpoint_safely(str(tmp_path / 'c.pth')) == Path('x')


# ------------------------------------------------------------------ what must be refused

MARK = 'mark_of_a_crafted_checkpoint'


class Calls:
    """Pickles as a call, and as what a pickle may do with the result of one."""

    def __init__(self, function, *args, state=None, again=None, items=()):
        self.call = function, args, state, None, iter(items)
        self.again = again

    def __reduce__(self):
        return self.call


class Pickler(pickle._Pickler):
    """Fills objects with ``state`` and then with ``again``."""

    def save_reduce(self, *args, obj=None, **kwargs):
        super().save_reduce(*args, obj=obj, **kwargs)
        if getattr(obj, 'again', None) is not None:
            self.save(obj.again)
            self.write(pickle.BUILD)


def save(content, path, zipped):
    crafted_pickle = types.SimpleNamespace(
        __name__='crafted_pickle', Pickler=Pickler,
        dump=lambda content, file, protocol: Pickler(file, protocol).dump(content))
    torch.save(content, path, crafted_pickle, _use_new_zipfile_serialization=zipped)


def with_statistics(**methods):
    """A HistoryBuffer whose state brings its own statistics, as ``__setstate__`` takes them."""
    buffer = HistoryBuffer([1], [1])

    class Crafted:

        def __reduce__(self):
            return HistoryBuffer, (), dict(max_length=1, statistics_methods=methods)

    return dict(buffer=buffer, crafted=Crafted())


ADDRESS = b'A' * 8
F8 = np.dtype('f8')
PLAIN = 3, '<', None, None, None, -1, -1
MEMORY = np.arange(2.)


def array(shape, dtype, data=ADDRESS, **then):
    """An array as numpy pickles it, with anything for its parts."""
    return Calls(RECONSTRUCT, np.ndarray, (0, ), b'b', state=(1, shape, dtype, False, data), **then)


def at_address():
    """An object that tells numpy to read its numbers somewhere in memory."""
    points = OrderedDict()
    points.__array_interface__ = {
        key: MEMORY.__array_interface__[key] for key in ('data', 'shape', 'typestr', 'version')}
    assert np.array_equal(np.array(points), MEMORY)
    return points


# name: what is in the file, what the error names
CRAFTED_NUMPY = {
    'buffer of objects': (lambda: Calls(np.ndarray, (1, ), 'O', ADDRESS), 'ndarray with a layout'),
    'buffer of numbers': (lambda: Calls(np.ndarray, (1, ), F8, ADDRESS), 'ndarray with a layout'),
    'buffer of our own class': (lambda: Calls(NumericArray, (1, ), F8, ADDRESS),
                                'ndarray with a layout'),
    'flags': (lambda: Calls(np.dtype, 'f8', state=(*PLAIN, 63)), 'numpy.dtype with (3,'),
    'flags in an array': (lambda: array((1, ), Calls(np.dtype, 'f8', state=(*PLAIN, 63))),
                          'numpy.dtype with (3,'),
    'size': (lambda: Calls(np.dtype, 'f8', state=(3, '<', None, None, None, 64, -1, 0)),
             'numpy.dtype with (3,'),
    'objects': (lambda: Calls(np.dtype, 'O'), "numpy.dtype with 'O'"),
    'fields': (lambda: Calls(np.dtype, 'f8,f8'), "numpy.dtype with 'f8,f8'"),
    'fields in a number': (lambda: Calls(np.dtype, ('i4', dict(a=('i2', 0)))),
                           "numpy.dtype with ('i4'"),
    'strings': (lambda: np.array(['a']), "numpy.dtype with 'U1'"),
    'array of no dtype': (lambda: array((1, ), 'O'), 'anything but numbers'),
    'array of a list': (lambda: array((1, ), F8, [1.]), 'anything but numbers'),
    'too few bytes': (lambda: array((9, ), F8), 'shape (9,) with 8 bytes'),
    'too many bytes': (lambda: array((0, ), F8), 'shape (0,) with 8 bytes'),
    'negative shape': (lambda: array((-1, -1), F8), 'shape (-1, -1)'),
    'overflowing shape': (lambda: array((2**32, 2**32), F8, b''), 'with 0 bytes'),
    'short number': (lambda: Calls(SCALAR, F8, b'A'), 'with 1 bytes'),
    'long number': (lambda: Calls(SCALAR, F8, 2 * ADDRESS), 'with 16 bytes'),
    'array that is filled twice': (
        lambda: array((1, ), F8, again=(1, (1, ), F8, False, ADDRESS)), 'filled twice'),
    'numbers at an address': (
        lambda: Calls(RECONSTRUCT, np.ndarray, (0, ), b'b', items=[((), at_address())]),
        'read-only'),
    'history at an address': (
        lambda: Calls(HistoryBuffer, state=dict(
            _log_history=at_address(), _count_history=MEMORY, max_length=9)),
        'HistoryBuffer of anything but numbers'),
    'history of an address': (lambda: Calls(HistoryBuffer, [at_address()], [1]),
                              'HistoryBuffer that is called'),
    'history that is filled twice': (
        lambda: Calls(HistoryBuffer, state=dict(
            _log_history=MEMORY, _count_history=MEMORY, max_length=9),
            again=dict(__array_interface__={})), 'HistoryBuffer'),
    'function that is filled': (
        lambda: Calls(getattr, HistoryBuffer, 'mean', state=(None, dict(__defaults__=(1, )))),
        'function'),
    'scheduler': (lambda: Calls(OneCycleParamScheduler), 'OneCycleParamScheduler'),
}

CRAFTED = {
    'system': (lambda: Calls(os.system, f'touch {MARK}'), f'{os.system.__module__}.system'),
    'eval': (lambda: Calls(eval, f'open("{MARK}", "w")'), 'eval'),
    'globals of a method': (lambda: Calls(getattr, HistoryBuffer.mean, '__globals__'),
                            "getattr of '__globals__'"),
    'private method': (lambda: Calls(getattr, HistoryBuffer, '__init__'),
                       "getattr of '__init__'"),
    'getattr of a tensor': (lambda: Calls(getattr, torch.ones(1), 'tofile'), 'getattr'),
    'statistics': (lambda: with_statistics(mean=os.system), f'{os.system.__module__}.system'),
    'objects in an array': (lambda: np.array([object()]), "numpy.dtype with 'O8'"),
    'fields in an array': (lambda: np.zeros(1, [('a', 'f8')]), "numpy.dtype with 'V8'"),
    'module': (lambda: nn.Linear(1, 1), 'torch.nn.modules.linear.Linear'),
    'path': (lambda: Path('x'), 'pathlib.'),
    'import': (lambda: Calls(__import__, 'antigravity'), '__import__'),
    **CRAFTED_NUMPY,
}


@both_loaders
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('name', CRAFTED)
def test_refuses(load, zipped, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, named = CRAFTED[name]
    if name == 'numbers at an address' and load is load_checkpoint_safely and hasattr(
            torch._weights_only_unpickler.Unpickler, '_check_set_item_target'):
        named = 'Can only SETITEM'  # before it gets that far
    save(dict(state_dict=dict(), x=content()), 'c.pth', zipped)
    statistics = dict(HistoryBuffer._statistics_methods)
    with pytest.raises((pickle.UnpicklingError, RuntimeError, ValueError)) as error:
        load('c.pth')
    if name != 'getattr of a tensor':
        assert named in str(error.value)
    assert not Path(MARK).exists()
    assert HistoryBuffer._statistics_methods == statistics


def test_error_names_file_and_class(tmp_path):
    torch.save(dict(x=nn.Linear(1, 1)), tmp_path / 'odd name.pth')
    with pytest.raises(pickle.UnpicklingError) as error:
        load_checkpoint_safely(str(tmp_path / 'odd name.pth'))
    assert 'odd name.pth was not loaded: it asks for torch.nn.modules.linear.Linear,' in str(
        error.value)
    assert 'weights_only' not in str(error.value), 'no advice to load it unsafely'


@both_loaders
def test_refuses_a_program(load, tmp_path):
    torch.jit.script(nn.Linear(1, 1)).save(str(tmp_path / 'c.pth'))
    with warnings.catch_warnings(), pytest.raises((pickle.UnpicklingError, RuntimeError)):
        warnings.simplefilter('ignore')
        load(str(tmp_path / 'c.pth'))


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        load_checkpoint_safely(str(tmp_path / 'nowhere.pth'))
    for content in (b'', b'text\n' * 9, b'PK\x03\x04'):
        (tmp_path / 'broken.pth').write_bytes(content)
        with pytest.raises((RuntimeError, pickle.UnpicklingError), match='broken.pth'):
            load_checkpoint_safely(str(tmp_path / 'broken.pth'))


def test_drops_the_config_that_resume_would_execute(tmp_path):
    path = str(tmp_path / 'c.pth')
    torch.save(dict(meta=dict(config=f'open("{MARK}", "w")', cfg='kept', epoch=1)), path)
    with pytest.warns(UserWarning, match=r"c.pth: meta\['config'\] is ignored"):
        assert load_checkpoint_safely(path)['meta'] == dict(cfg='kept', epoch=1)


# ------------------------------------------------------------------ in a Runner


def test_runner_resumes_by_it(trained, schemes):
    use_safe_loading()
    run = runner(trained, 2, resume=True)
    run.train()
    assert run.epoch == 2
    assert run.message_hub.get_scalar('train/loss').data[0].size == 4, 'two epochs of two'


def test_runner_refuses_a_crafted_file(trained, schemes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_safe_loading()
    torch.save(dict(state_dict=Calls(os.system, f'touch {MARK}')), 'c.pth')
    with pytest.raises(pickle.UnpicklingError, match='c.pth'):
        runner(tmp_path / 'run', 1, load_from='c.pth').train()
    assert not Path(MARK).exists()


def test_runner_does_not_execute_a_config(trained, schemes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_safe_loading()
    checkpoint = load_checkpoint_safely(str(trained / 'epoch_1.pth'))
    checkpoint['meta']['config'] = f'x = 1\nopen("{MARK}", "w")'
    torch.save(checkpoint, 'c.pth')
    with pytest.warns(UserWarning, match='is ignored'):
        runner(tmp_path / 'run', 2, resume=True, load_from='c.pth').train()
    assert not Path(MARK).exists()
