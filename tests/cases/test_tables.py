"""Tables and lists as people's programs write them: the rows that came in from users."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vlprompt.cli._shared import names_setting, parse
from vlprompt.data import DatasetSplits, load_split, resolve_templates
from vlprompt.data.templates import read_descriptions
from vlprompt.errors import VlpromptError

Write = Callable[..., DatasetSplits]


@pytest.fixture
def read(tmp_path: Path) -> Write:
    """Return a function that reads a table, given as text or bytes, beside eight images of cats and dogs."""
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for i in range(4):
            Image.new("RGB", (4, 4)).save(tmp_path / kind / f"{i}.png")

    def write(text: str | bytes, root: Path | None = None) -> DatasetSplits:
        (tmp_path / "table.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_split(f"csv:{tmp_path / 'table.csv'}", root)

    return write


def rows(form: str = "{path},{name}", header: str = "path,class", end: str = "\n") -> str:
    lines = [form.format(path=f"{k}/{i}.png", name=k, label="cd".index(k[0])) for k in ("cat", "dog") for i in range(4)]
    return end.join([header, *lines]) + end


def facts(splits: DatasetSplits) -> tuple:
    items = [item for part in (splits.train, splits.val, splits.test) for item in part]
    return splits.class_names, sorted((item.path, item.label) for item in items)


EXPECTED = ("cat", "dog"), [(f"{k}/{i}.png", label) for label, k in enumerate(("cat", "dog")) for i in range(4)]


@pytest.mark.parametrize(
    "text",
    [
        rows(header="path,label"),
        rows(header="filename,Class"),
        rows(header="File Name,LABEL"),
        rows(header="image-path,category"),
        rows("{path};{name}", "path;class"),
        rows("{path}\t{name}", "path\tclass"),
        rows("{path}|{name}", "path|class"),
        "sep=;\n" + rows("{path};{name}", "path;class"),
        rows("{name},{path},{label}", "class_name,file_name,class_id"),
        rows("{path},{name},{label}", "path,label,class"),  # the two the other way round
        rows("{path},{label},{name}", "path,label,class", end="\r\n").encode("utf-8-sig"),
        rows("{path},{name}", end="\r\n").encode("utf-16"),
        rows("{path},{name}", end="\r"),
        rows('  ./{path} , "{name}"', "path , class"),
        "\n\n" + rows(end="\n\n") + " , \n",
        rows("{path},{name},,", "path,class,split,domain"),
        rows('{path},{name},"a, b"', "path,class,remark"),
        rows('{path},{name},"two\nlines"', "path,class,remark"),
        rows("{path},{name},{path}", "path,class,target"),
        rows("{path},{name},1.5", "path,class,area"),
        rows("{path},{name}").replace("/", "\\"),
    ],
)
def test_tables_as_programs_write_them_are_read(read: Write, text: str | bytes):
    # case: label_holds_names.csv, other_headers.csv, semicolons.csv
    assert facts(read(text)) == EXPECTED


def test_absolute_paths_below_the_image_folder_are_read(read: Write, tmp_path: Path):
    # case: a CSV with absolute paths below data_root
    assert facts(read(rows(f"{tmp_path}/{{path}},{{name}}"))) == EXPECTED
    link = tmp_path.parent / f"link-to-{tmp_path.name}"
    link.symlink_to(tmp_path)
    assert facts(read(rows(f"{tmp_path}/{{path}},{{name}}"), link)) == EXPECTED
    assert facts(read(rows(f"{link}/{{path}},{{name}}"), tmp_path)) == EXPECTED
    for start in ("/elsewhere", f"{tmp_path}/../elsewhere", "C:\\elsewhere"):
        with pytest.raises(VlpromptError, match=r"line 2 of .* leads out of the image folder"):
            read(rows(f"{start}/{{path}},{{name}}"))
    with pytest.raises(VlpromptError, match=r"is not below .* \(data_root=DIR names the folder that holds the images"):
        read(rows("/elsewhere/{path},{name}"))


def changed(line: int, text: str, whole: str) -> str:
    lines = whole.splitlines()
    lines[line - 1] = text
    return "\n".join(lines)


NUMBERED, BOTH = rows("{path},{label}", "path,label"), rows("{path},{label},{name}", "path,label,class")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed(2, "cat/0.png,,cat", BOTH), "line 2 of .* has no label: give it one"),
        (changed(9, "dog/3.png,nan,dog", BOTH), "line 9 of .* has no label"),
        (changed(9, "dog/3.png,1,", BOTH), "line 9 of .* has no class"),
        (changed(3, "cat/1.png", BOTH), "line 3 of .* has no label"),
        (changed(3, ",0", NUMBERED), "line 3 of .* has no path"),
        ("\n\n" + changed(3, ",0", NUMBERED), "line 5 of .* has no path"),
        (rows("{path},", "path,label"), "no line of the table .* has a label or class"),
    ],
)
def test_missing_values_are_refused_with_their_line(read: Write, text: str, message: str):
    # case: first_label_missing.csv
    with pytest.raises(VlpromptError, match=message):
        read(text)


@pytest.mark.parametrize("label", ["²", "-1", "1.0", "1e3", "٣", "0x1", "inf", "1_0", "dog", "9" * 5000])
def test_labels_that_are_no_labels_are_refused_with_their_line(read: Write, label: str):
    # case: label ²
    with pytest.raises(
        VlpromptError, match=r"line 9 of .* has the label '.{1,40}': labels are 0, 1, 2, \.\.\."
    ) as told:
        read(changed(9, f"dog/3.png,{label}", NUMBERED))
    assert len(str(told.value)) < 300


def test_gaps_and_huge_labels_are_refused_at_once(read: Write, tmp_path: Path):
    # case: huge_label.csv
    with pytest.raises(VlpromptError, match=r"missing: 2, and the largest is 100000000$"):
        read(changed(9, "dog/3.png,100000000", NUMBERED))
    split = {"train": [["cat/0.png", 0, "cat"], ["dog/0.png", 10**15, "dog"]], "val": [], "test": []}
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(VlpromptError, match="without gaps; missing: 1, 2, 3, 4, 5"):
        load_split(f"json:{tmp_path / 'split.json'}")
    with pytest.raises(VlpromptError, match="without gaps; missing: 0"):
        read(NUMBERED.replace(",1", ",2").replace(",0", ",1"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rows(header="cat/9.png,cat"), "first line of the table .* has values and not the names of the columns"),
        (rows(header="a,b"), "has the columns a, b: it needs path, and label or class"),
        (rows("{path},{path},{name}", "image,file,class"), "columns image and file .* may both be the path"),
        ("path,class\n", "has no rows below the names"),
        (changed(3, "cat/1.png,cat,dog", rows()), r"line 3 of .* has more values than there are columns: quote .* ','"),
        (changed(3, 'cat/1.png,"cat', rows()), r"line \d of .*(quotes|cannot be read)"),
        (changed(3, "cat/1.png,747", rows(header="path,label")), "line 3 of .* the label '747'.* must be called class"),
        (rows("{path},caf\xe9").encode("latin-1"), "line 2 of .* is not UTF-8: save the file as UTF-8"),
        (rows().encode("utf-16-le"), "its encoding is not marked: save it as UTF-8"),
    ],
)
def test_what_cannot_be_read_says_what_to_change(read: Write, text: str | bytes, message: str):
    # case: refused without a way out
    with pytest.raises(VlpromptError, match=message):
        read(text)


# Lists


def test_class_names_of_a_file_are_read_without_their_mark(tmp_path: Path):
    # case: names_with_bom.txt
    for encoding in ("utf-8-sig", "utf-16", "utf-8"):
        (tmp_path / "names.txt").write_text("cat\r\ndog\r\n owl \r\n\r\n", encoding)
        assert names_setting(str(tmp_path / "names.txt"), "classes") == ["cat", "dog", "owl"]
    (tmp_path / "names.txt").write_bytes(b"cat\ncaf\xe9\n")
    with pytest.raises(VlpromptError, match=r"line 2 of .*names\.txt is not UTF-8"):
        names_setting(str(tmp_path / "names.txt"), "classes")


@pytest.mark.parametrize(("text", "line"), [("cat\n\ndog\n", 2), ("\ncat\ndog\n", 1), ("cat\ndog\n \t\nowl", 3)])
def test_empty_line_among_class_names_is_refused(tmp_path: Path, text: str, line: int):
    # case: names_with_empty_line.txt
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(VlpromptError, match=rf"line {line} of .*names\.txt is empty"):
        names_setting(str(tmp_path / "names.txt"), "classes")


def test_lists_in_json_and_yaml_files_stay_as_they_are_written(tmp_path: Path):
    # case: classes stay the text that was written
    names = ["747", "1e3", "0x1F", "12:30", "007", "1_000", "2001-01-01"]
    (tmp_path / "names.json").write_text("\ufeff[" + ", ".join(f'"{name}"' for name in names) + ", 747, 1e3]")
    assert names_setting(str(tmp_path / "names.json"), "classes") == [*names, "747", "1e3"]
    (tmp_path / "names.yaml").write_text("\n".join(f"- {name}" for name in [*names, "yes", "null", "~"]))
    assert names_setting(str(tmp_path / "names.yaml"), "classes") == [*names, "yes", "null", "~"]
    for text in ('{"a": 1}', '["cat", null]', '["cat", ["dog"]]', "["):
        (tmp_path / "names.json").write_text(text)
        with pytest.raises(VlpromptError, match=r"names\.json"):
            names_setting(str(tmp_path / "names.json"), "classes")


def test_other_lists_of_a_user_are_read_without_their_mark(tmp_path: Path):
    # case: names_with_bom.txt, its siblings
    splits = DatasetSplits("toy", ("cat", "dog"), (), (), (), open_image=lambda item: Image.new("RGB", (1, 1)))
    (tmp_path / "templates.txt").write_text("a {}.\n\nthe {}.\n", "utf-8-sig")
    assert resolve_templates(str(tmp_path / "templates.txt"), splits) == ("a {}.", "the {}.")
    (tmp_path / "templates.json").write_text('["a {}."]', "utf-16")
    assert resolve_templates(str(tmp_path / "templates.json"), splits) == ("a {}.",)
    (tmp_path / "descriptions.json").write_text(json.dumps({"cat": ["It purrs."]}), "utf-8-sig")
    assert read_descriptions(tmp_path / "descriptions.json", ["cat"]) == [["It purrs."]]
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (4, 4)).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos/classnames.txt").write_text("cat tabby\n\ndog poodle\n", "utf-8-sig")
    assert load_split(f"folder:{tmp_path / 'photos'}").class_names == ("tabby", "poodle")


@pytest.mark.parametrize("key", ["classes", "class_names"])
def test_class_names_on_a_command_line_stay_as_they_are_written(key: str):
    # case: classes [747, 1e3, 0x1F, 12:30, 007]
    written = [
        "747",
        "1e3",
        "0x1F",
        "12:30",
        "007",
        "1_000",
        "2001-01-01",
        "true",
        "yes",
        "null",
        "~",
        "New York",
        ".5",
    ]
    settings = parse([f"{key}=[{', '.join(written)}]", "top=3"], texts=[key]).settings
    assert names_setting(settings[key], key) == written
    assert settings["top"] == 3
    assert names_setting(parse([f"{key}=[\"a, b\",'it''s']"], texts=[key]).settings[key], key) == ["a, b", "it's"]
    for wrong in ("[cat,,dog]", "[cat,[dog]]", "[cat,{a: b}]", "{a: b}", "", "[cat"):
        with pytest.raises(VlpromptError):
            names_setting(parse([f"{key}={wrong}"], texts=[key]).settings[key], key)
