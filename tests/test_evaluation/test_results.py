"""Results files: what the stock tools write is read, and nothing in a file is run."""
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.evaluator import DumpResults

from mmskd.evaluation.results import load_results

SAMPLE = dict(
    img_id=3, img_path='a.jpg', ori_shape=(4, 5), flags=[True, None], rle=b'\x00\xff',
    number=np.float32(1.5), count=np.int64(7), array=np.arange(6, dtype=np.float32).reshape(2, 3),
    mask=np.array([True, False]), swapped=np.arange(3, dtype='>i4'), pair=(np.ones(1), 2),
    columns=np.asfortranarray(np.arange(6.).reshape(2, 3)),
    empty=np.zeros((0, 4), np.float32), nothing=b'',
    pred_instances=dict(
        bboxes=torch.rand(3, 4), labels=torch.arange(3), part=torch.arange(10.)[3:7:2],
        half=torch.ones(2, dtype=torch.float16), flag=torch.tensor([True]), none=torch.zeros(0, 4)))


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, np.ndarray):
        # numpy itself reads swapped bytes into native ones
        assert a.dtype == b.dtype.newbyteorder('=') and np.array_equal(a, b)
    elif isinstance(a, tuple):
        assert_equal(dict(enumerate(a)), dict(enumerate(b)))
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        np.testing.assert_array_equal(a, b)


def test_reads_what_mmengine_writes(tmp_path):
    path = str(tmp_path / 'results.pkl')
    dump = DumpResults(path)
    dump.process(None, [SAMPLE, SAMPLE])
    dump.evaluate(2)
    first, second = load_results(path)
    assert_equal(first, SAMPLE)
    assert_equal(second, SAMPLE)


@pytest.mark.parametrize('old, new', [(b'numpy.core.', b'numpy._core.'),
                                      (b'numpy._core.', b'numpy.core.')])
def test_reads_the_names_of_either_numpy(old, new, tmp_path):
    data = pickle.dumps([dict(array=np.arange(3.), number=np.float64(2))], protocol=2)
    path = tmp_path / 'results.pkl'
    path.write_bytes(data.replace(old, new))
    assert load_results(str(path))[0]['array'].tolist() == [0, 1, 2]


class Touch:
    """Runs a command when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}', )


class InStorage:
    """The same, hidden in what torch unpickles for a tensor's storage."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import io
        buffer = io.BytesIO()
        torch.save(Touch(self.path), buffer, _use_new_zipfile_serialization=False)
        return torch.storage._load_from_bytes, (buffer.getvalue(), )


class Eval(Touch):

    def __reduce__(self):
        return eval, (f'open({str(self.path)!r}, "w").close()', )


@pytest.mark.parametrize('evil', [Touch, InStorage, Eval])
@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_runs_nothing(evil, protocol, tmp_path):
    path, trace = tmp_path / 'evil.pkl', tmp_path / 'evil_was_here'
    path.write_bytes(pickle.dumps([dict(pred_instances=evil(trace))], protocol=protocol))
    with pytest.raises((pickle.UnpicklingError, ValueError), match='evil.pkl'):
        load_results(str(path))
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), 'the file does run code where it may'


class Call:

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


class Layout:
    """A dtype of plain numbers whose flags say that they are pointers to objects."""

    def __reduce__(self):
        return np.dtype, ('f8', False, True), (3, '<', None, None, None, -1, -1, 63)


ARRAY = np.zeros(1).__reduce__()[0]
ADDRESS = b'A' * 8


@pytest.mark.parametrize('evil', [
    Call(np.ndarray, (1, ), 'O', ADDRESS),
    Call(np.dtype, 'O'),
    Layout(),
    Call(ARRAY, np.ndarray, (0, ), b'b', state=(1, (1, ), Layout(), False, ADDRESS)),
    Call(ARRAY, np.ndarray, (0, ), b'b', state=(1, (9, ), np.dtype('f8'), False, ADDRESS)),
    Call(OrderedDict, state=dict(__array_interface__=np.zeros(1).__array_interface__)),
])
def test_numbers_are_not_taken_for_addresses(evil, tmp_path):
    """numpy itself builds arrays of objects at addresses that a pickle names."""
    path = tmp_path / 'evil.pkl'
    path.write_bytes(pickle.dumps([dict(pred_instances=evil)], protocol=2))
    with pytest.raises((pickle.UnpicklingError, ValueError), match='evil.pkl'):
        load_results(str(path))


def test_programs_are_refused(tmp_path):
    import io
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
    path = tmp_path / 'evil.pkl'
    path.write_bytes(pickle.dumps(
        [Call(torch.storage._load_from_bytes, buffer.getvalue())], protocol=2))
    with pytest.raises(pickle.UnpicklingError, match='evil.pkl was not loaded: .*torch.jit'):
        load_results(str(path))


def test_a_refusal_names_file_and_class(tmp_path):
    path = tmp_path / 'evil.pkl'
    path.write_bytes(pickle.dumps([dict(a=Touch('x'))], protocol=2))
    with pytest.raises(pickle.UnpicklingError, match=r'evil.pkl was not loaded: .*posix.system'):
        load_results(str(path))


def test_what_is_no_results_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='no results file nowhere.pkl'):
        load_results('nowhere.pkl')
    path = tmp_path / 'broken.pkl'
    path.write_bytes(pickle.dumps([SAMPLE], protocol=2)[:200])
    with pytest.raises(ValueError, match='broken.pkl cannot be read'):
        load_results(str(path))
    path.write_bytes(pickle.dumps(dict(metrics=1)))
    with pytest.raises(ValueError, match='does not hold a list of predictions'):
        load_results(str(path))
