"""The script that counts the statements."""

import statements
from exempt import EXEMPT
from statements import Coverage


def test_a_test_carries_what_its_docstring_names(tmp_path):
    file = tmp_path / "test_x.py"
    file.write_text(
        '"""[MQTT-1.1.1-1]"""\n# [MQTT-1.1.1-2]\n'
        'def test_x():\n    """[MQTT-1.1.1-3] [MQTT311-1.1.1-4]\n\n    [MQTT311-3-8.3-4]"""\n'
        'def helper():\n    """[MQTT-1.1.1-5]"""\n'
        'class TestY:\n    def test_y(self):\n        """[MQTT311-3.1.2.7]"""\n        return "[MQTT-1.1.1-6]"\n'
    )
    assert list(statements.tags_of_tests(file)) == [
        ("MQTT-1.1.1-3", "test_x.py::test_x"),
        ("MQTT311-1.1.1-4", "test_x.py::test_x"),
        ("MQTT311-3-8.3-4", "test_x.py::test_x"),
        ("MQTT311-3.1.2.7", "test_x.py::test_y"),
    ]


def test_a_source_carries_what_its_lines_name(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("a = 1  # [MQTT-1.1.1-1] [MQTT311-1.1.1-2]\n\nb = 2  # MQTT-1.1.1-3\n")
    assert list(statements.tags_of_source(file)) == [("MQTT-1.1.1-1", "x.py:1"), ("MQTT311-1.1.1-2", "x.py:1")]


def test_a_sentence_ends_at_its_label_and_begins_behind_the_one_before():
    excerpt = "One MUST [MQTT-1.1.1-1]. Two MUST [MQTT-1.1.1-2]. Three."
    assert statements.sentence(excerpt, "MQTT-1.1.1-1") == "One MUST"
    assert statements.sentence(excerpt, "MQTT-1.1.1-2") == "Two MUST"
    assert statements.sentence(excerpt, "MQTT-1.1.1-3") == excerpt
    assert statements.sentence("[MQTT-1.1.1-4].", "MQTT-1.1.1-4") == "(the list in section 1.1.1)"


def test_sections_are_told_from_every_form_of_tag():
    tags = ["MQTT-3.14.2-1", "MQTT311-3-8.3-4", "MQTT311-3.1.2.7", "MQTT-4.2-1"]
    assert [statements.section_of(tag) for tag in tags] == ["3.14", "3.8", "3.1", "4.2"]


def test_errors():
    coverage = Coverage(
        {"MQTT-1.1.1-1": "", "MQTT-1.1.1-2": "", "MQTT-1.1.1-3": ""},
        {"MQTT-1.1.1-2": "why", "MQTT-1.1.1-3": "why", "MQTT-1.1.1-8": "why"},
        tests={"MQTT-1.1.1-1": ["a"], "MQTT-1.1.1-2": ["b"], "MQTT-1.1.1-9": ["c"]},
        lines={"MQTT-1.1.1-3": ["d"], "MQTT311-1.1.1-1": ["e"]},
    )
    assert coverage.binding() == ["MQTT-1.1.1-1"]
    assert list(coverage.errors()) == [
        "MQTT-1.1.1-9 is no statement, but in a test: c",
        "MQTT311-1.1.1-1 is no statement, but in a source: e",
        "MQTT-1.1.1-2 is exempt, but tested: b",
        "MQTT-1.1.1-8 is no statement, but exempt",
    ]


def test_every_exemption_has_a_reason():
    assert all(reason.strip() for reason in EXEMPT.values())
