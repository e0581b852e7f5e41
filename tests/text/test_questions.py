import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from recurra.config import UserError
from recurra.text.questions import EMPTY_QUESTIONS, MOVED, Answer, Question, read_questions

needs_data = pytest.mark.skipif("RECURRA_DATA" not in os.environ, reason="RECURRA_DATA is not set")

CONTEXT = "Ada saw Bob. Bob saw Cy."
STORY = """\
1 Mary went home.
2 Where is Mary? \thome\t1
3 John has milk.
4 What has John? \tmilk,bread\t3 1
1 Ann ran.
2 Who ran?\tAnn\t1
"""


def squad(*answers: object, **entry: object) -> str:
    question = {"id": "q1", "question": "Who?", "answers": list(answers)} | entry
    question = {key: value for key, value in question.items() if value is not ...}
    return json.dumps({"version": "2", "data": [{"paragraphs": [{"context": CONTEXT, "qas": [question]}]}]}, indent=1)


def at(start: object, text: object = "Ada") -> dict[str, object]:
    return {"text": text, "answer_start": start}


def questions(path: Path, content: str, **options) -> list[Question]:
    path.write_bytes(content.encode())
    return list(read_questions(path, **options))


class TestSquad:
    def test_answers(self, tmp_path):
        found = questions(tmp_path / "t.json", "\n" + squad(at(0), at(21, "Cy")))
        assert found == [Question("q1", "Who?", CONTEXT, (Answer("Ada", 0), Answer("Cy", 21)))]

    def test_impossible_ones_have_none(self, tmp_path):
        content = squad(is_impossible=True, plausible_answers=[at(0)])
        assert questions(tmp_path / "t", content)[0].answers == ()
        assert questions(tmp_path / "t", squad(at(0), is_impossible=False))[0].answers == (Answer("Ada", 0),)
        assert questions(tmp_path / "t", squad(at(0), is_impossible=True))[0].answers == ()

    def test_an_answer_at_the_wrong_place_is_moved(self, tmp_path):
        tally: Counter[str] = Counter()
        found = questions(tmp_path / "t", squad(at(5), at(-24), at(0)), tally=tally)
        assert found[0].answers == (Answer("Ada", 0),) * 3
        assert tally == {MOVED: 2}

    def test_answers_need_not_be_known(self, tmp_path):
        assert questions(tmp_path / "t", squad(answers=...), labelled=False)[0].answers == ()
        with pytest.raises(UserError, match="question 'q1': no key 'answers'; there are 'id', 'question'"):
            questions(tmp_path / "t", squad(answers=...))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (squad(at(0, "Dee")), r"question 'q1', answers\[0\]: the answer 'Dee' is not in the context"),
            (squad(at(0, "Bob")), r"'Bob' is not at character 0 of the context, but in several places"),
            (squad(at(0, "aa")).replace(CONTEXT, "baaa"), "in several places"),
            (squad(at(0), at("0")), r"answers\[1\]: expected 'answer_start' to be a whole number, got '0'"),
            (squad(at(0, "")), "the answer is empty"),
            (squad(at(0, 5)), "expected 'text' to be text, got '5'"),
            (squad(question=["Who?"]), "expected 'question' to be text"),
            (squad(answers={"text": ["a"]}), "expected 'answers' to be a list"),
            (squad(is_impossible="no"), "expected 'is_impossible' to be true or false"),
            ('{"data": [{"paragraphs": 1}]}', r"t, data\[0\]: expected 'paragraphs' to be a list, got '1'"),
            ('{"data": ["x"]}', r"data\[0\]: expected a JSON object, got 'x'"),
            ('{"date": []}', r"t: expected SQuAD's JSON, an object with 'data': no key 'data'; there are 'date'"),
            ("\n[1,2]", r"t: expected SQuAD's JSON, an object with 'data': got \[1, 2\]"),
            ('{"data": []}', r"t: there is no question in it"),
            ('{"data": [}\n', r"t, column 11: not valid JSON.*; expected SQuAD's JSON"),
            (
                squad(at(0)).replace("Who?", "\\ud83d?"),
                r"t, line 11, column 21: not valid JSON: \\ud83d is half a char",
            ),
        ],
    )
    def test_mistakes(self, tmp_path, content, message):
        with pytest.raises(UserError, match=message):
            questions(tmp_path / "t", content)

    @pytest.mark.parametrize("content", ["[1,2]", '"x"', "Mary went home.", STORY])
    def test_a_json_file_is_no_story(self, tmp_path, content):
        with pytest.raises(UserError, match=r"t\.json.*expected SQuAD's JSON"):
            questions(tmp_path / "t.json", content)

    def test_ids_differ(self, tmp_path):
        for name in "ab":
            (tmp_path / name).write_text(squad(at(0)))
        with pytest.raises(UserError, match=r"/b: two questions have the id 'q1', one of them in \S*/a; answers"):
            list(read_questions([tmp_path / "a", tmp_path / "b"]))
        line = json.dumps({"id": "q1", "question": "Who?", "context": CONTEXT, "answers": []})
        with pytest.raises(UserError, match=r"t\.jsonl: two questions have the id 'q1'; answers"):
            questions(tmp_path / "t.jsonl", f"{line}\n{line}\n")

    @pytest.mark.parametrize("asked", ["", " \n"])
    def test_empty_ones_are_skipped_and_counted(self, tmp_path, asked):
        tally: Counter[str] = Counter()
        lines = [{"question": one, "context": CONTEXT, "answers": []} for one in (asked, "Who?")]
        content = "\n".join(map(json.dumps, lines))
        assert [one.question for one in questions(tmp_path / "t.jsonl", content, tally=tally)] == ["Who?"]
        assert tally == {EMPTY_QUESTIONS: 1}
        found = questions(tmp_path / "t.jsonl", content, labelled=False, tally=tally)
        assert [one.question for one in found] == [asked, "Who?"]  # an answer for each
        assert tally == {EMPTY_QUESTIONS: 1}
        with pytest.raises(UserError, match="there is no question in it"):
            questions(tmp_path / "t", squad(at(0), question=asked))


class TestJsonLines:
    def test_a_question_a_line(self, tmp_path):
        lines = [{"id": 7, "question": "Who?", "context": CONTEXT, "answers": [at(0)]}]
        lines.append({"question": "Whom?", "context": CONTEXT, "answers": []})
        found = questions(tmp_path / "t.jsonl", "\n".join(map(json.dumps, lines)))
        assert found == [
            Question("7", "Who?", CONTEXT, (Answer("Ada", 0),)),
            Question(f"{tmp_path}/t.jsonl:2", "Whom?", CONTEXT),
        ]

    def test_without_answers(self, tmp_path):
        line = json.dumps({"question": "Who?", "context": CONTEXT})
        assert questions(tmp_path / "t.jsonl", line, labelled=False)[0].answers == ()
        with pytest.raises(UserError, match="line 1: no key 'answers' for the answers"):
            questions(tmp_path / "t.jsonl", line)

    def test_mistakes_name_the_line(self, tmp_path):
        line = json.dumps({"question": "Who?", "context": CONTEXT, "answers": [at(0, "Dee")]})
        with pytest.raises(
            UserError, match=r"t\.jsonl, line 1, question '\S*t\.jsonl:1', answers\[0\]: .* not in the context"
        ):
            questions(tmp_path / "t.jsonl", line)


class TestStories:
    def test_the_context_is_the_story_so_far(self, tmp_path):
        (tmp_path / "qa.txt.gz").write_bytes(gzip.compress(STORY.encode()))
        home, milk, ann = read_questions(tmp_path / "qa.txt.gz")
        name = str(tmp_path / "qa.txt.gz")
        assert home == Question(
            f"{name}:2", "Where is Mary?", "Mary went home.", (Answer("home", None),), (0,), "qa.txt.gz:1"
        )
        assert milk.context == "Mary went home.\nJohn has milk."
        assert milk.answers == (Answer("milk,bread", None),)
        assert milk.supports == (1, 0)  # the story's third line is the second sentence
        assert (ann.context, ann.id) == ("Ann ran.", f"{name}:6")
        assert (milk.story, ann.story) == (home.story, "qa.txt.gz:5")

    def test_stories_of_one_name_in_two_folders(self, tmp_path):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "t").write_text(STORY)
        found = list(read_questions([tmp_path / "a" / "t", tmp_path / "b" / "t"]))
        assert [one.id for one in found[:4:3]] == [f"{tmp_path}/a/t:2", f"{tmp_path}/b/t:2"]

    def test_without_answers(self, tmp_path):
        (found,) = questions(tmp_path / "t", "1 Mary went home.\n2 Where is Mary? \n", labelled=False)
        assert found == Question(f"{tmp_path}/t:2", "Where is Mary?", "Mary went home.", story="t:1")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                "Mary went home.\n",
                "line 1: expected a story's line, such as `1 Mary went home.`, got 'Mary went home.'",
            ),
            ("1 a.\n3 b.\n", "line 2: expected line 2 of the story, or 1 for the next one, got 3"),
            ("1 Where?\thome\t1\n", "line 1: a question before the first line of its story"),
            ("1 a.\n2 b?\t\t1\n", "line 2: the question has no answer"),
            ("1 a.\n2 b?\tc\t5\n", "line 2: expected the numbers of story lines before it, got '5'"),
            ("1 a.\n2 b?\tc\tx\n", "line 2: expected the numbers of story lines before it, got 'x'"),
            ("1 a.\n2 b.\n", "there is no question in it"),
        ],
    )
    def test_mistakes(self, tmp_path, content, message):
        with pytest.raises(UserError, match=message):
            questions(tmp_path / "t", content)


def test_format_is_one_of_three(tmp_path):
    with pytest.raises(UserError, match="out of squad, jsonl, babi, got 'json'"):
        questions(tmp_path / "t", "{}", format="json")


@needs_data
def test_real_files():
    folder = Path(os.environ["RECURRA_DATA"])
    if not (folder / "xquad-en").exists() or not (folder / "babi").exists():
        pytest.skip("xquad-en and babi are not there")
    tally: Counter[str] = Counter()
    spans = list(read_questions(folder / "xquad-en" / "xquad.en.json", tally=tally))
    assert len(spans) == 1190
    assert all(one.context[start:].startswith(text) for one in spans for text, start in one.answers)
    assert not tally
    stories = list(read_questions(folder / "babi" / "qa1_single-supporting-fact_test.txt"))
    assert len(stories) == 1000
    # the sentence that supports an answer ends in it
    assert all(one.context.split("\n")[one.supports[0]].endswith(f" {one.answers[0].text}.") for one in stories)
