"""tools/fill_pages.py: the tables of README and documentation are those of the results."""
import re

import pytest

FILLED = '<!-- table: reliability -->\n{}<!-- table: end -->\n'


@pytest.fixture
def page(tmp_path):
    return tmp_path / 'page.md'


def test_all_pages_are_filled(run_tool, capsys):
    with pytest.raises(SystemExit) as ending:
        run_tool('fill_pages', '--check')
    assert ending.value.code == 0, capsys.readouterr().out


def test_each_kind_of_table_is_made_anew(load_tool):
    """What is committed equals what is made, of every kind that there is."""
    tool, asked = load_tool('fill_pages'), set()
    for file in (tool.ROOT / 'README.md', *(tool.ROOT / 'docs').glob('*.md')):
        kept = file.read_text(encoding='utf-8')
        asked |= {match['asked'].split()[0] for match in tool.PLACE.finditer(kept)}
        emptied = tool.PLACE.sub(r'\1\4', kept)
        assert emptied.count('\n| ') < kept.count('\n| ') or '<!-- table: ' not in kept
        assert tool.filled(emptied) == kept, file
    assert asked | {'study'} == tool.TABLES.keys()  # of which "studies" is made


def test_check_names_the_page_and_changes_nothing(run_tool, page, capsys):
    text = f'before\n{FILLED.format("old")}after\n'
    page.write_text(text, encoding='utf-8')
    for options, code, said in ((['--check'], 1, 'is not what the results say'),
                                ([], 0, 'filled'), (['--check'], 0, None)):
        before = page.read_text(encoding='utf-8')
        with pytest.raises(SystemExit) as ending:
            run_tool('fill_pages', page, *options)
        assert ending.value.code == code
        assert capsys.readouterr().out == (f'{page}: {said}\n' if said else '')
        assert ('--check' in options) == (page.read_text(encoding='utf-8') == before)
    assert re.fullmatch(r'before\n<!-- table: reliability -->\n(\| .*\n)+\nOn: .*\n'
                        r'<!-- table: end -->\nafter\n', before)


@pytest.mark.parametrize('marks, message', [
    ('<!-- table: nothing -->\n<!-- table: end -->', 'there is no table nothing, only study, '),
    ('<!-- table: step_cost none -->\n<!-- table: end -->', 'No such file .*results/none.json'),
    ('<!-- table: study none a b -->\n<!-- table: end -->', 'there is no file .*studies/none.json'),
    ('<!-- table: study -->\n<!-- table: end -->', 'cannot make the table study: TypeError'),
    ('<!-- table: cost step_cost x -->\n<!-- table: end -->', "the table cost step_cost x: .*'x'"),
    ('<!-- table: step_cost coverage -->\n<!-- table: end -->', 'cannot make the table step_cost '),
    ('<!-- table: reliability -->\n' + FILLED.format(''), 'after it'),
    (FILLED.format('') + '<!-- table: end -->', 'after it'),
    ('<!-- table: reliability --><!-- table: end -->', 'a line of its own'),
])
def test_what_cannot_be_filled_is_refused(refusal, page, marks, message):
    page.write_text(marks, encoding='utf-8')
    assert re.search(f'page.md: .*{message}', refusal('fill_pages', page))
    assert page.read_text(encoding='utf-8') == marks


def test_a_page_that_is_not_there(refusal):
    assert 'nowhere.md' in refusal('fill_pages', 'nowhere.md')


def test_names_are_what_differs(load_tool):
    load_tool('fill_pages')  # which knows where the tables find what they are made with
    tool = load_tool('analysis/calibration_tables')
    assert tool.short_names(['bccd/baseline/0', 'bccd/pskd/0']) == ['baseline', 'pskd']
    assert tool.short_names(['bccd/baseline/0', 'bccd/baseline/1', 'bccd/pskd/0']) == [
        'baseline/0', 'baseline/1', 'pskd/0']
    assert tool.short_names(['one.py']) == ['one.py']
    assert tool.short_names(['one.py', 'a/b.py']) == ['one.py', 'a/b.py']
