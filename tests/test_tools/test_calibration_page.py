"""The tables of docs/calibration.md say what the files in results/ say."""


def test_the_page_is_of_the_results(load_tool, monkeypatch, tmp_path):
    tool = load_tool('analysis/calibration_page')
    kept = tool.ROOT / 'docs/calibration.md'
    page = tmp_path / 'page.md'
    page.write_text(kept.read_text(encoding='utf-8'), encoding='utf-8')
    for name in ('reference', 'study'):
        tool.fill(page, name, 'replaced\n')
    assert page.read_text(encoding='utf-8').count('replaced') == 2
    monkeypatch.setattr('sys.argv', ['calibration_page.py', '--page', str(page)])
    tool.main()
    assert page.read_text(encoding='utf-8') == kept.read_text(encoding='utf-8')


def test_names_are_what_differs(load_tool):
    tool = load_tool('analysis/calibration_page')
    assert tool.short_names(['bccd/baseline/0', 'bccd/pskd/0']) == ['baseline', 'pskd']
    assert tool.short_names(['bccd/baseline/0', 'bccd/baseline/1', 'bccd/pskd/0']) == [
        'baseline/0', 'baseline/1', 'pskd/0']
    assert tool.short_names(['one.py']) == ['one.py']
    assert tool.short_names(['one.py', 'a/b.py']) == ['one.py', 'a/b.py']
