"""CSV and Parquet files as tables: what a column holds, and what is wrong with a file, in one line."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from softmaxloss.data.columns import convert_text, convert_typed
from softmaxloss.data.files import DataError
from softmaxloss.data.tables import read_table


@pytest.fixture
def csv(tmp_path):
    """Write a CSV file and read it as a table."""

    def write(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(path)

    return write


@pytest.fixture
def parquet(tmp_path):
    def write(columns):
        path = tmp_path / "t.parquet"
        pa.parquet.write_table(pa.table(columns), path)
        return read_table(path)

    return write


def values(table, name, kind=None):
    """Give a column's kind and values, None for a missing one."""
    column = table.column(name, kind)
    missing = column.missing
    return column.kind, [None if lost else value for value, lost in zip(column.values.tolist(), missing, strict=True)]


# What a CSV column holds


@pytest.mark.parametrize(
    ("fields", "kind", "expected"),
    [
        (["1", "2.5", "-3e2", "+4", ".5", "6."], "numbers", [1, 2.5, -300, 4, 0.5, 6]),
        (["1", "", "NA", "nan", " 2 "], "numbers", [1, None, None, None, 2]),
        (["", "None", "N/A"], "numbers", [None, None, None]),
        (["007", "1_000"], None, None),
        (["true", "False", "", "TRUE"], "booleans", [True, False, None, True]),
        (["cat", " dog ", "", "null", "NaN!"], "text", ["cat", "dog", None, None, "NaN!"]),
        (["0x10", "ten", "1,5"], "text", ["0x10", "ten", "1,5"]),
        (["2020-13", "2020-01-01 or so"], "text", ["2020-13", "2020-01-01 or so"]),
    ],
)
def test_a_column_is_what_all_its_fields_are(csv, fields, kind, expected):
    table = csv("a,b\n" + "".join(f'"{field}",\n' for field in fields))
    if kind is None:
        with pytest.raises(DataError, match="mixes numbers and text"):
            table.column("a")
    else:
        assert values(table, "a") == (kind, expected)


def test_a_kind_that_is_asked_for(csv):
    table = csv("code,flag,word\n007,true,x\n1e3,false,y\n,,z\n")

    assert values(table, "code", "text") == ("text", ["007", "1e3", None])
    assert values(table, "flag", "numbers") == ("numbers", [1, 0, None])
    assert values(table, "flag", "text") == ("text", ["true", "false", None])
    with pytest.raises(DataError, match=r"'word' must hold numbers, but line 2 holds 'x'$"):
        table.column("word", "numbers")


def test_text_that_is_a_whole_number_has_one_spelling(csv, parquet):
    """A column of 1 and 2 becomes one of 1.0 and 2.0 where a value is missing."""
    whole = csv("zip,b\n1,x\n-12,x\n,x\n2.5,x\n1.00,x\n")
    floats = csv("zip,b\n1.0,x\n-12.0,x\n,x\n2.5,x\n1.00,x\n")
    assert values(whole, "zip", "text") == values(floats, "zip", "text")
    assert values(floats, "zip", "text") == ("text", ["1", "-12", None, "2.5", "1.00"])
    assert values(csv("zip;b\n1,0;x\n10,0;x\n2.0;x\n"), "zip", "text")[1] == ["1", "10", "2"]
    assert values(csv('zip,b\n"1,0",x\n'), "zip", "text")[1] == ["1,0"]
    table = parquet({"float": [1.0, None, 2.5], "text": ["1.0", None, "v1.0"]})
    assert values(table, "float", "text")[1] == ["1", None, "2.5"]
    assert values(table, "text")[1] == ["1", None, "v1.0"]


def test_words_for_missing_values_may_be_labels(csv, parquet):
    table = csv("y,b\nNA,1\n None,2\n,3\nx,4\n")

    assert values(table, "y") == ("text", [None, None, None, "x"])
    column = table.column("y", "text", label=True)
    assert column.values.tolist()[:2] == ["NA", "None"]
    assert column.missing.tolist() == [False, False, True, False]
    assert [table.missing_word("y", row) for row in range(4)] == ["NA", "None", "", ""]
    assert parquet({"y": [None, "NA"]}).missing_word("y", 1) == ""


@pytest.mark.parametrize(
    ("fields", "line", "odd"),
    [
        (["1", "2", "abc", "x"], 4, "abc"),
        (["1", "", "?"], 4, "?"),
        (["x", "y", "7", "8", "z"], 4, "7"),
        (["1", "2", "true"], 4, "true"),
        (["1"] * 5000 + ["one"], 5002, "one"),
    ],
)
def test_mixed_columns_name_the_first_odd_field_and_the_way_out(csv, fields, line, odd):
    table = csv("id,the size\n" + "".join(f"0,{field}\n" for field in fields))
    with pytest.raises(DataError) as caught:
        table.column("the size")

    assert f"column 'the size' mixes numbers and text: line {line} holds '{odd}'" in str(caught.value)
    assert str(caught.value).endswith("--categorical 'the size'")


def test_lines_are_those_of_an_editor(csv):
    # A header and fields over two lines, and a blank line, which is no row.
    table = csv('"the\nname",b\n"x\ny",1\n\n"z\r\nw",2\nv,odd\n')

    assert table.rows == 3
    assert [table.where(row) for row in range(3)] == ["line 3", "line 6", "line 8"]


@pytest.mark.parametrize(
    "days",
    [["2024-01-31", "2024-02-01"], ["31.1.2024", ""], ["1/31/2024 10:30", "2/1/2024 11:00"]],
)
def test_dates_are_refused_by_name(csv, days):
    table = csv("day,b\n" + "".join(f"{day},1\n" for day in days))
    with pytest.raises(DataError, match=r"column 'day' holds dates; .* --drop day$"):
        table.column("day")

    assert table.column("day", "text").kind == "text"


# What a CSV file looks like


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_delimiters_line_ends_and_byte_order_marks(csv, delimiter, end, mark):
    lines = ['"a,b;c"', "年龄"], ['"x, ""y"""', "1"], ["'z'", "2"]
    table = csv(mark + "".join(delimiter.join(line) + end for line in lines))

    assert table.names == ["a,b;c", "年龄"]
    assert values(table, "a,b;c") == ("text", ['x, "y"', "'z'"])
    assert values(table, "年龄") == ("numbers", [1, 2])


def test_with_semicolons_the_decimal_mark_may_be_a_comma(csv):
    table = csv("a;b;c\n1,5;x,y;1.5\n-2,25e1;z;2\n")

    assert values(table, "a") == ("numbers", [1.5, -22.5])
    assert values(table, "b") == ("text", ["x,y", "z"])
    assert values(table, "c") == ("numbers", [1.5, 2])


def test_one_column_and_blanks_around_names(csv):
    assert csv("label\n1\n2\n").names == ["label"]
    assert csv("a , b\n1,2\n").names == ["a", "b"]


def test_a_column_without_a_name_is_left_out(csv):
    table = csv(",a\n0,5\n1,6\n")

    assert (table.names, table.unnamed) == (["a"], 1)
    assert values(table, "a") == ("numbers", [5, 6])


def test_a_row_of_many_columns(csv):
    names = [f"c{index}" for index in range(20_000)]
    table = csv(",".join(names) + "\n" + ",".join(["0.123456789012345"] * len(names)) + "\n")

    assert table.names == names


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "the file is empty"),
        ("\n\n", "the first line is to name the columns"),
        ("a,b\n", "has columns but no rows"),
        ("a,b\n1,2\n3\n4,5\n", "line 3 has 1 field, the header has 2"),
        ("a,b\n1,2\n\n3,4,5\n", "line 4 has 3 fields, the header has 2"),
        ('a,b\n1,2\n3,"4\n5,6\n', "a quoted field after line 2 is broken"),
        (b"PK\x03\x04\x00\x00", "is not text .a zero byte at 4"),
        (b"\x89PNG\r\n\x1a\n", "is not text in UTF-8 .byte 0x89 at 0"),
        ("年龄,b\n1,2\n".encode("gbk"), "is not text in UTF-8"),
        (b"a,b\n1,caf\xc3", "is not text in UTF-8 .byte 0xc3 at 9"),
        (b"a,b\n" + b"1,2\n" * 300_000 + b"1,\xff\n", "is not text in UTF-8 .byte 0xff at 1200006"),
        ("a,b\n1,2\n".encode("utf-16"), "is not text"),
        ("a,b,a\n1,2,3\n", "more than one column is named 'a'"),
        ("a, a\n1,2\n", "more than one column is named 'a'"),
        ("5.1,3.5,0\n4.9,3.0,1\n", "the first line holds numbers .'5.1', '3.5', '0'."),
        ("1\n2\n", "the first line holds numbers"),
    ],
)
def test_a_file_that_is_no_table(csv, content, problem):
    with pytest.raises(DataError, match=rf"t\.csv: {problem}") as caught:
        csv(content)

    assert "\n" not in str(caught.value)


def test_numbers_may_be_names_of_columns(csv):
    assert csv("0,1,2\n1.5,2.5,3.5\n").names == ["0", "1", "2"]


def test_a_column_that_is_not_there(csv):
    table = csv("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no column 'y' \(--target\); the columns are 'a', 'b'$"):
        table.require(["a", "y"], "--target")
    with pytest.raises(DataError, match="no columns 'x', 'y' "):
        table.require(["x", "y"], "why")


# Parquet


def test_parquet_columns_are_what_their_types_say(parquet):
    table = parquet(
        {
            "int": pa.array([1, None, 3], pa.int8()),
            "half": pa.array(np.array([0.5, 1, 2], np.float16)),
            "decimal": pa.array([Decimal("1.25"), Decimal(2), None]),
            "null": pa.nulls(3),
            "bool": [True, None, False],
            "text": ["1", None, ""],
            "numeric text": pa.array(["1.5", None, "2"], pa.large_string()),
            "true text": pa.array(["True", None, "false"], pa.large_string()),
            "view": pa.array(["a", None, "c"], pa.string_view()),
            "large": pa.array(["a", "b", "c"], pa.large_string()),
            "coded": pa.array(["x", "y", "x"]).dictionary_encode(),
            "codes": pa.array([5, 7, 5]).dictionary_encode(),
            "big": [2**60, 2**60 + 1, 0],
        }
    )

    assert values(table, "int") == ("numbers", [1, None, 3])
    assert values(table, "half") == ("numbers", [0.5, 1, 2])
    assert values(table, "decimal") == ("numbers", [1.25, 2, None])
    assert values(table, "null") == ("numbers", [None] * 3)
    assert values(table, "bool") == ("booleans", [True, None, False])
    assert values(table, "bool", "numbers") == ("numbers", [1, None, 0])
    assert values(table, "text") == ("text", ["1", None, ""])
    assert values(table, "view") == ("text", ["a", None, "c"])
    assert values(table, "large") == ("text", ["a", "b", "c"])
    assert values(table, "coded") == ("text", ["x", "y", "x"])
    assert values(table, "codes") == ("numbers", [5, 7, 5])
    assert values(table, "int", "text") == ("text", ["1", None, "3"])
    assert values(table, "big") == ("numbers", [2.0**60, 2.0**60, 0])
    assert values(table, "numeric text", "numbers") == ("numbers", [1.5, None, 2])
    assert values(table, "true text", "numbers") == ("numbers", [1, None, 0])
    with pytest.raises(DataError, match="column 'large' must hold numbers, but row 1 holds 'a'"):
        table.column("large", "numbers")
    assert table.where(0) == "row 1"


def test_parquet_types_that_are_no_cells(parquet):
    table = parquet(
        {
            "when": pa.array([0, 1], pa.timestamp("us")),
            "day": pa.array([0, 1], pa.date32()),
            "daytext": ["2024-01-01", "2024-01-02"],
            "list": [[1], [2]],
        }
    )
    for name in ("when", "day", "daytext"):
        with pytest.raises(DataError, match=rf"column '{name}' holds dates; .* --drop {name}"):
            table.column(name)
    with pytest.raises(DataError, match=r"column 'list' holds values of type list<.*--drop list"):
        table.column("list")
    with pytest.raises(DataError, match="'list' holds values of type list"):
        table.column("list", "text")


def test_a_label_is_not_to_be_dropped(parquet):
    table = parquet({"day": pa.array([0, 1], pa.date32()), "list": [[1], [2]], "a b": ["2024-01-01", "2024-01-02"]})
    for name, advice in (
        ("day", "dates; take each date as a class with --categorical day"),
        ("a b", "dates; take each date as a class with --categorical 'a b'"),
        ("list", "list<.*>, neither numbers nor text"),
    ):
        with pytest.raises(DataError, match=rf"holds .*{advice}$"):
            table.column(name, label=True)
    with pytest.raises(DataError, match=r"column 'day' must hold numbers, but holds dates$"):
        table.column("day", "numbers")


def test_a_pandas_index_without_a_name_is_left_out(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"a": [1, 2]}, index=[5, 6]).to_parquet(path)

    assert read_table(path).names == ["a"]


def test_a_cut_or_foreign_parquet_file(tmp_path):
    whole, path = tmp_path / "whole.parquet", tmp_path / "t.parquet"
    pd.DataFrame({"a": range(1000)}).to_parquet(whole)
    content = whole.read_bytes()
    for part in (content[: len(content) // 2], b"PAR1" + content[2000:], b"text"):
        path.write_bytes(part)
        with pytest.raises(DataError, match="is not a Parquet file, or is cut off") as caught:
            read_table(path).column("a")
        assert "\n" not in str(caught.value)


def test_a_parquet_file_with_one_name_twice(tmp_path):
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(pa.table([[1], [2]], names=["a", "a"]), path)
    with pytest.raises(DataError, match="more than one column is named 'a'"):
        read_table(path)


# Columns


def test_text_may_be_in_chunks_and_of_any_size():
    chunks = pa.chunked_array([["1", "2"], [], [None, "x"]])
    with pytest.raises(ValueError, match="mixes numbers") as caught:
        convert_text(chunks, None)

    assert caught.value.row == 3
    assert convert_typed(chunks, "text").values.tolist()[:2] == ["1", "2"]
