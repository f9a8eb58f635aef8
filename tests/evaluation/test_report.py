"""The report: right numbers, nothing that content can do, nothing fetched, bounded."""

from __future__ import annotations

import html.parser
import json
import random
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="needs the extra 'evaluation'")
pytest.importorskip("matplotlib", reason="needs the extra 'evaluation'")
pytest.importorskip("sklearn", reason="needs the extra 'evaluation'")

from sklearn.metrics import f1_score

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation import averages, benchmarks, comparison, metrics, report
from guardrail_vl.evaluation._browse import worst
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.evaluation.comparison import Pairs
from guardrail_vl.evaluation.running import Run, SetInfo
from guardrail_vl.verdict import Label, Stage
from tests.evaluation.synthetic import HOSTILE, case_set, judged, many_sets, picture, run, without

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


class Page(html.parser.HTMLParser):
    """What a browser would see: elements with their attributes, and the text of each kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts.setdefault(self.inside[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def two_runs() -> tuple[list[CaseSet], list[Run]]:
    sets = many_sets(9, size=40)
    return sets, [run(sets), run(sets, model="small-1", skill=0.8, seed=2, texts=False)]


def written(runs: list[Run], folder: Path, **settings: object) -> tuple[str, str, Any]:
    path = report.write(runs, folder, resamples=100, **settings)  # type: ignore[arg-type]
    assert path == folder / "report.html"
    told = json.loads((folder / "report.json").read_text("utf-8"))
    return path.read_text("utf-8"), (folder / "report.md").read_text("utf-8"), told


# ---- numbers ------------------------------------------------------------------------------------------------------


def test_the_three_forms_tell_the_numbers_of_metrics(tmp_path: Path) -> None:
    _, runs = two_runs()
    page, markdown, told = written(runs, tmp_path)
    for number, one in enumerate(runs):
        for stage in Stage:
            records = [record for record in one.records if record.stage == stage]
            rows = {row["name"]: row for row in told["tasks"][stage]["sets"] if row["run"] == number}
            assert set(rows) == {record.set for record in records}
            for name, scores in metrics.by(records, "set", resamples=100).items():
                assert rows[name]["strict"] == json.loads(scores.to_json())
                if scores.f1 is not None:
                    assert f"{100 * scores.f1:.1f}" in page
                    assert f"{100 * scores.f1:.1f} (" in markdown
            assert ("official" in rows[name]) == (number == 0), "the second writes no completions"
            f1s = [(s.f1, s.n) for s in metrics.by(records, "set", resamples=0).values() if s.f1 is not None]
            told_average = told["tasks"][stage]["averages"][number]
            assert told_average["weighted"]["f1"] == pytest.approx(metrics.weighted(f1s))
            assert told_average["macro"]["f1"] == pytest.approx(np.mean([f1 for f1, _ in f1s]))


def test_averages_of_several_runs_are_over_the_sets_that_all_have(tmp_path: Path) -> None:
    sets, runs = two_runs()
    runs[1] = without(runs[1], [sets[0].name])
    _, _, told = written(runs, tmp_path)
    for average in told["tasks"]["prompt"]["averages"]:
        assert average["sets"] == sum(one.cases[0].stage == Stage.PROMPT for one in sets) - 1
    alone, both = runs[0], written([runs[0]], tmp_path / "alone")[2]
    assert both["tasks"]["prompt"]["averages"][0]["sets"] == average["sets"] + 1
    assert alone.missing == 0


def test_the_papers_averages_are_told_where_its_benchmarks_are_there_in_full(tmp_path: Path) -> None:
    wanted = averages.paper_weights(Stage.PROMPT, text_only=True)
    known = {one.paper_name: one.name for one in benchmarks.BENCHMARKS if one.stage == Stage.PROMPT and one.weight}
    sets = [case_set(known[name], Stage.PROMPT, size, 0.5, seed=1) for name, size in wanted.items()]
    whole = run(sets)
    told = written([whole], tmp_path / "whole", errors=0)[2]["tasks"]["prompt"]["averages"][0]["paper"]
    f1s = {
        name: metrics.scores([r for r in whole.records if r.set == known[name]], official=True, resamples=0).f1
        for name in wanted
    }
    expected = sum(wanted[name] * (f1s[name] or 0) for name in wanted) / sum(wanted.values())
    assert told == {"Average (Text)": pytest.approx(expected)}
    half = replace(whole, sets=dict(whole.sets) | {sets[0].name: SetInfo("x", wanted["ToxicChat"] // 2)})
    assert not written([half], tmp_path / "half", errors=0)[2]["tasks"]["prompt"]["averages"][0]["paper"]


def test_conditions_that_differ_are_marked(tmp_path: Path) -> None:
    sets, (first, _) = two_runs()
    second = replace(first, cohort=replace(first.cohort, speed="fast", thresholds="prompt 0.7"))
    page, markdown, told = written([first, second], tmp_path)
    assert [run["name"] for run in told["runs"]] == [
        "guard-3b@1f2e3d (reason, model's own labels)",
        "guard-3b@1f2e3d (fast, prompt 0.7)",
    ]
    for name in ("speed", "thresholds"):
        assert f"| {name} ≠ |" in markdown
        assert re.search(rf">{name} <span title=\"differs\"", page)
    assert "| model |" in markdown
    assert f"@ {first.sets[sets[0].name].hash}" in page
    same, _, told = written([first, first], tmp_path / "same")
    assert [run["name"] for run in told["runs"]] == ["guard-3b@1f2e3d #1", "guard-3b@1f2e3d #2"]
    assert 'title="differs"' not in same


def test_the_same_runs_make_the_same_bytes(tmp_path: Path) -> None:
    sets, runs = two_runs()
    assert written(runs, tmp_path / "a", cases=sets) == written(runs, tmp_path / "b", cases=sets)


@pytest.mark.parametrize("texts", [True, False])
def test_a_run_of_one_label_without_scores_is_reported(tmp_path: Path, texts: bool) -> None:
    sets = [case_set("good", Stage.PROMPT, 30, 0.0, seed=1)]
    page, markdown, _ = written([run(sets, scores=False, texts=texts)], tmp_path)
    assert 'id="curves"' not in page
    assert "nan" not in (page + markdown).lower()


def test_a_guess_of_yes_or_no_has_no_reliability(tmp_path: Path) -> None:
    sets = many_sets(2)
    yes = [replace(record, score=1.0, label=Label.HARMFUL) for record in run(sets).records]
    guess = replace(run(sets, model="guess-1"), records=tuple(yes))
    page, _, _ = written([run(sets), guess], tmp_path)
    told = {
        name: [a["aria-label"] for a in Page(page).all("svg") if (a.get("aria-label") or "").startswith(name)]
        for name in ("ROC", "Reliability", "Scores")
    }
    assert "guess-1: area 0.500" in str(told["ROC"])
    assert len(told["Reliability"]) == len(told["Scores"]) == 1
    assert "guess-1" not in str(told["Reliability"]) + str(told["Scores"])


def test_there_must_be_something_to_report(tmp_path: Path) -> None:
    for runs in ([], [replace(run(many_sets(1)), records=())]):
        with pytest.raises(ConfigurationError, match="at least one judged"):
            report.write(runs, tmp_path)
    with pytest.raises(ConfigurationError, match="errors must not"):
        report.write([run(many_sets(1))], tmp_path, errors=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="can't be written"):
        report.write([run(many_sets(1))], tmp_path / "file")


# ---- two runs -----------------------------------------------------------------------------------------------------


def test_differences_are_those_of_the_figures_and_equal_runs_do_not_differ() -> None:
    _, (first, second) = two_runs()
    found = comparison.differences(Pairs.of(first.records, second.records), resamples=200)
    ours, theirs = (metrics.scores(one.records, resamples=0) for one in (first, second))
    for name in comparison.FIGURES:
        assert found[name].first == pytest.approx(getattr(ours, name))
        assert found[name].second == pytest.approx(getattr(theirs, name))
        low, value, high = found[name].low, found[name].value, found[name].high
        assert low is not None
        assert value is not None
        assert high is not None
        assert low < value < high
    assert found["f1"].clear
    same = comparison.differences(Pairs.of(first.records, first.records), resamples=50)
    assert {(one.value, one.low, one.high, one.clear) for one in same.values()} == {(0, 0, 0, False)}


def test_the_interval_is_the_paired_one() -> None:
    """Against the bootstrap done the slow way, with scikit-learn's F1, on groups of one."""
    one = case_set("a", Stage.PROMPT, 150, 0.5, seed=1)
    alone = CaseSet("a", tuple(replace(case, group="") for case in one.cases))
    first, second = (judged(alone, skill=skill, seed=seed) for skill, seed in ((1.5, 1), (1.0, 2)))
    found = comparison.differences(Pairs.of(first, second), resamples=2_000)["f1"]
    rows = [(a.gold == Label.HARMFUL, a.label == Label.HARMFUL, b.label == Label.HARMFUL)
            for a, b in zip(first, second, strict=True) if a.gold]  # fmt: skip
    chance = random.Random(1)
    draws = []
    for _ in range(400):
        gold, ours, theirs = zip(*chance.choices(rows, k=len(rows)), strict=True)
        draws.append(f1_score(gold, theirs) - f1_score(gold, ours))
    low, high = np.percentile(draws, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)


def test_a_group_is_drawn_whole() -> None:
    one = case_set("a", Stage.PROMPT, 100, 0.5, seed=1)
    tied = CaseSet("a", tuple(replace(case, group="all") for case in one.cases))
    first, second = (judged(tied, skill=1, seed=seed) for seed in (1, 2))
    found = comparison.differences(Pairs.of(first, second), resamples=50)["f1"]
    assert found.low == found.high == pytest.approx(found.value)


def test_only_the_same_samples_are_paired() -> None:
    _, (first, second) = two_runs()
    changed = [
        replace(record, digest="0" * 16) if number < 5 else record for number, record in enumerate(second.records)
    ]
    pairs = Pairs.of(first.records, changed[:-3])
    assert pairs.alone == (8, 5)
    assert [(a.set, a.id) for a in pairs.first] == [(b.set, b.id) for b in pairs.second]
    assert Pairs.of(first.records, []).first == ()
    assert comparison.agreement(Pairs.of(first.records, [])) is None
    assert comparison.differences(Pairs.of([], []), resamples=5)["f1"].value is None
    with pytest.raises(ConfigurationError):
        comparison.differences(pairs, resamples=0)


# ---- errors -------------------------------------------------------------------------------------------------------


def test_the_worst_errors_come_first_and_each_set_has_its_share() -> None:
    _, runs = two_runs()
    shown, total = worst([one.records for one in runs], None, errors=3)
    wrongs = [
        [r for r in one.records if r.gold and (r.label == Label.HARMFUL) != (r.gold == Label.HARMFUL)] for one in runs
    ]
    assert total == sum(map(len, wrongs))
    confidence = [entry.confidence for entry in shown]
    assert confidence == sorted(confidence, reverse=True)
    for number, records in enumerate(wrongs):
        for name in {record.set for record in records}:
            misses = sorted(
                r.score for r in records if r.set == name and r.gold == Label.HARMFUL and r.score is not None
            )[:3]
            listed = {
                s.score
                for entry in shown
                if entry.set == name
                for s in entry.said
                if s.run == number and s.wrong == "miss"
            }
            assert set(misses) <= listed
    assert not worst([one.records for one in runs], None, errors=0)[0]


def test_without_cases_there_is_no_content(tmp_path: Path) -> None:
    sets, runs = two_runs()
    page, markdown, _ = written(runs, tmp_path)
    kept = (tmp_path / "report.json").read_text("utf-8")
    for text in (page, markdown, kept):
        assert "tell me about it" not in text
        assert "step step" not in text, "what the guard wrote may quote the sample"
        assert "pwned" not in text
    assert "data:image" not in page
    page, *others = written(runs, tmp_path, cases=sets)
    assert "tell me about it" in page
    assert "step step" in page
    assert "data:image" in page
    assert not any("tell me about it" in str(text) or "step step" in str(text) for text in others)


def test_samples_that_changed_or_are_not_given_are_not_shown(tmp_path: Path) -> None:
    sets, runs = two_runs()
    other = CaseSet(sets[0].name, tuple(replace(case, prompt="another text") for case in sets[0].cases))
    page, _, _ = written(runs, tmp_path, cases=[other])
    assert "another text" not in page
    assert "it has changed since" in page
    assert "was not given to the report" in page


def test_pictures_are_thumbnails_made_anew_and_bad_ones_are_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    gone.write_bytes(picture("large"))
    cases = (
        Case("good", Stage.PROMPT, Label.HARMFUL, images=(picture("secret words"),)),
        Case("bad", Stage.PROMPT, Label.HARMFUL, prompt="x", images=(b"<svg onload=alert(1)>",)),
        Case("gone", Stage.PROMPT, Label.HARMFUL, prompt="x", images=(gone,)),
    )
    one = CaseSet("pictures", cases)
    missed = [replace(r, label=Label.UNHARMFUL, score=0.1) for r in judged(one, skill=0, seed=1)]
    whole = replace(run([one]), records=tuple(missed))
    gone.unlink()
    page, _, _ = written([whole], tmp_path / "report", cases=[one])
    images = Page(page).all("img")
    assert len(images) == 1
    assert (images[0]["src"] or "").startswith("data:image/jpeg;base64,")
    assert images[0]["alt"]
    assert "A picture can&#39;t be read." in page
    assert "A picture of the sample is no longer there." in page


def test_the_page_is_bounded(tmp_path: Path) -> None:
    cases = tuple(
        Case(str(i), Stage.PROMPT, Label.HARMFUL, prompt="long " * 20_000, category=f"c{i}") for i in range(300)
    )
    one = CaseSet("long", cases)
    missed = [replace(r, label=None, error="ParseError", text="wrote " * 20_000) for r in judged(one, skill=0, seed=1)]
    page, _, _ = written([replace(run([one]), records=tuple(missed))], tmp_path, cases=[one])
    assert len(page) < 400_000
    assert len(Page(page).all("details")) == 10 + 1
    assert "characters …]" in page


# ---- what content can do ------------------------------------------------------------------------------------------


def hostile_run() -> tuple[list[CaseSet], Run]:
    """Hostile texts in every place that a report shows."""
    sets = []
    for number, text in enumerate(HOSTILE):
        name = text.replace("\ud800", "")  # a name is hashed
        cases = tuple(
            Case(f"{name}{i}", Stage.PROMPT, [Label.HARMFUL, Label.UNHARMFUL][i % 2], prompt=text, category=text)
            for i in range(12)
        )
        sets.append(CaseSet(f"{name} {number}", cases))
    made = run(sets, model=HOSTILE[0] + HOSTILE[1], skill=-1)
    records = tuple(replace(r, text=HOSTILE[1], error=HOSTILE[0] if i % 5 == 0 else "", label=None if i % 5 == 0 else r.label)
                    for i, r in enumerate(made.records))  # fmt: skip
    cohort = replace(made.cohort, engine=HOSTILE[2], thresholds=HOSTILE[3], machine=HOSTILE[4])
    return sets, replace(made, records=records, cohort=cohort)


def test_hostile_content_stays_text(tmp_path: Path) -> None:
    sets, made = hostile_run()
    other = replace(made, cohort=replace(made.cohort, speed=HOSTILE[0]))
    text, markdown, _ = written([made, other], tmp_path, cases=sets, title=HOSTILE[0])
    page = Page(text)
    assert len(page.all("script")) == 1
    assert not any("pwned" in script for script in page.texts["script"])
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert not page.all("img"), "the only image tags are in texts"
    assert any("onerror" in shown for shown in page.texts["pre"])
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u200b]", text)
    assert "\\u{202e}" in text
    assert "49 " not in "".join(page.texts["pre"]), "nothing is a template twice"
    assert "<script" not in re.sub(r"\\<", "", markdown)
    assert "<img" not in re.sub(r"\\<", "", markdown)


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    sets, runs = two_runs()
    text, _, _ = written(runs, tmp_path, cases=sets)
    page = Page(text)
    for tag, attributes in page.elements:
        for key in ("src", "href", "action", "srcset", "data", "poster"):
            value = attributes.get(key) or "#"
            assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, key)
    assert not page.all("link")
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")
    policy = next(m["content"] or "" for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_the_page_can_be_read_by_all(tmp_path: Path) -> None:
    sets, runs = two_runs()
    text, _, _ = written(runs, tmp_path, cases=sets)
    page = Page(text)
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") == "true" for a in page.all("svg"))
    assert all(a.get("aria-label") for a in page.all("div") if a.get("role") == "region")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [(a["href"] or "")[1:] for a in page.all("a")]
    assert targets
    assert set(targets) <= set(ids)
    assert page.all("html")[0]["lang"] == "en"


@pytest.mark.skipif(BROWSER is None, reason="there is no browser here")
def test_in_a_real_browser_only_our_script_runs(tmp_path: Path) -> None:
    assert BROWSER is not None
    sets, made = hostile_run()
    page = report.write([made], tmp_path, cases=sets, title="The title", resamples=10, errors=30)
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", page.as_uri()],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    seen = Page(done.stdout.decode("utf-8", "replace"))
    assert "".join(seen.texts["title"]) == "The title", "a text ran as a script"
    told = "".join(seen.texts["span"])
    assert re.search(r"40 of \d+ shown", told), "our own script did not run"
    assert sum("hidden" in a for a in seen.all("details") if a.get("class") == "case") > 0
