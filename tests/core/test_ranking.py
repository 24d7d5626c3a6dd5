"""From what a study measured to its ranking and its sentences."""

from __future__ import annotations

import pytest
from study_of_made_up_numbers import arm, many_arms, study

from kdzoo.errors import ReportError
from kdzoo.study.arm_costs import on_front
from kdzoo.study.ranking import ranked

CLEAR = [1.4, 1.5, 1.6, 1.5, 1.4]
PLAIN = [0.5, 0.6, 0.4, 0.5, 0.6]
WIDE = [3.5, -2.0, 4.0, -1.5, 3.4]


def rows(content):
    return {row["label"]: row for row in content["ranking"]}


def outcomes(content, which="over_baseline"):
    return {row["label"]: row[which] and row[which]["outcome"] for row in content["ranking"]}


def judged(*arms, **given):
    """Headline, sentences and tone of a study with one group."""
    verdict = ranked(study(*arms, **given))["verdict"]
    assert len(verdict["groups"]) == 1
    assert verdict["headline"] == verdict["groups"][0]["headline"]
    return verdict["headline"], " ".join(verdict["groups"][0]["sentences"]), verdict["tone"]


# --- ranking ----------------------------------------------------------------------------------


def test_arms_are_ranked_by_mean_and_compared_with_control_and_baseline():
    content = ranked(study(arm("kd", PLAIN), arm("dkd", CLEAR), arm("at", [0.6, 0.5, 0.5, 0.4, 0.5])))
    assert [(row["label"], row["rank"]) for row in content["ranking"]] == [("dkd", 1), ("kd", 2), ("at", 3)]
    dkd = rows(content)["dkd"]
    assert dkd["mean"] == pytest.approx(91.48)
    assert dkd["over_control"]["mean"] == pytest.approx(1.48)
    assert dkd["over_baseline"]["mean"] == pytest.approx(0.96)
    assert dkd["over_baseline"]["p_holm"] == pytest.approx(2 * dkd["over_baseline"]["p"])  # the smallest of two
    assert outcomes(content) == {"dkd": "better", "kd": None, "at": "not decided"}
    assert content["families"] == {"over_control": 3, "over_baseline": 2}


def test_equal_means_share_a_rank():
    content = ranked(study(arm("kd", [1.0, 2.0]), arm("at", [2.0, 1.0]), arm("sp", [0.0, 0.1])))
    assert [row["rank"] for row in content["ranking"]] == [1, 1, 3]


def test_an_interval_that_excludes_zero_for_itself_alone_decides_nothing_among_many():
    alone = [1.0, 0.2, 0.9, 0.3, 0.6]
    content = ranked(study(arm("kd", [0.0, 0.0, 0.1, 0.0, 0.0]), arm("dkd", alone)))
    assert outcomes(content)["dkd"] == "better"
    others = [arm(f"a{i}", [0.1 * ((i + k) % 3) for k in range(5)]) for i in range(6)]
    content = ranked(study(arm("kd", [0.0, 0.0, 0.1, 0.0, 0.0]), arm("dkd", alone), *others))
    assert rows(content)["dkd"]["over_baseline"]["low"] > 0
    assert outcomes(content)["dkd"] == "not decided"
    sentences = " ".join(content["verdict"]["groups"][0]["sentences"])
    assert "Its own interval leaves 0 out, but not after the correction for 7 comparisons." in sentences


def test_only_seeds_that_both_arms_have_are_compared_and_failed_runs_are_counted():
    content = ranked(study(arm("kd", {0: 0.5, 1: None, 2: 0.7}), arm("dkd", {0: 1.0, 1: 1.0, 2: None})))
    dkd = rows(content)["dkd"]
    assert dkd["seeds"] == 2
    assert dkd["over_baseline"]["seeds"] == 1
    assert dkd["over_baseline"]["outcome"] == "one seed"
    sentences = content["verdict"]["groups"][0]["sentences"]
    assert sentences[-1] == (
        "2 of 6 runs have no result (dkd seed 2 and kd seed 1); each difference is over the seeds that both sides have."
    )


def test_equal_differences_in_every_seed_give_no_interval_and_decide_nothing():
    content = ranked(study(arm("kd", [1.0, 2.0, 3.0]), arm("dkd", [1.5, 2.5, 3.5])))
    found = rows(content)["dkd"]["over_baseline"]
    assert (found["low"], found["p"], found["p_holm"], found["outcome"]) == (None, None, None, "not decided")
    assert content["families"]["over_baseline"] == 0


def test_an_upper_bound_is_no_competitor():
    bounded = [arm(label, [-2.0, -2.5, -2.2], upper_bound=True) for label in ("lwf", "icarl")]
    content = ranked(study(*bounded, baseline=None))
    assert outcomes(content, "over_control") == {"lwf": "upper bound", "icarl": "upper bound"}
    found = rows(content)["lwf"]["over_control"]
    assert found["low"] < found["mean"] < found["high"]
    assert (found["p"], found["p_holm"], content["families"]["over_control"]) == (None, None, 0)
    mixed = ranked(study(arm("kd", PLAIN), arm("dkd", CLEAR), *bounded))
    assert [group["title"] for group in mixed["groups"]] == [
        "held against an equal control",
        "held against an upper bound",
    ]
    assert rows(mixed)["lwf"]["over_baseline"] is None


def test_each_student_has_a_ranking_and_a_baseline_of_its_own():
    arms = [
        arm(f"{name}-{student}", [gain, gain + 0.1, gain + 0.3], student=student)
        for student in ("resnet8", "resnet10t")
        for name, gain in (("kd", 0.5), ("dkd", 0.9))
    ]
    content = ranked(study(*arms, baseline="kd-resnet8"))
    assert content["groups"] == [
        {"title": "student resnet8", "baseline": "kd-resnet8"},
        {"title": "student resnet10t", "baseline": "kd-resnet10t"},
    ]
    assert [(row["group"], row["rank"]) for row in content["ranking"]] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert content["verdict"]["headline"] == "0 of 2 groups have a clear winner"


def test_another_teacher_or_option_is_another_arm_of_the_same_group():
    arms = [
        arm(f"kd-{teacher}-{temperature}", [1.0, 1.1],
            settings={"models.teacher.name": teacher, "algorithm.options.temperature": temperature})
        for teacher in ("resnet20", "resnet56")
        for temperature in (2, 4)
    ]  # fmt: skip
    content = ranked(study(*arms, baseline="kd-resnet20-2"))
    assert content["groups"] == [{"title": "", "baseline": "kd-resnet20-2"}]


def test_the_baseline_of_another_student_is_the_arm_that_is_taught_alike():
    arms = [
        arm(f"{teaching}-{student}", [1.0, 1.1], student=student, teaching=teaching)
        for student in ("resnet8", "vit")
        for teaching in ("kd", "kd-8")
    ]
    content = ranked(study(*arms, baseline="kd-8-resnet8"))
    assert [group["baseline"] for group in content["groups"]] == ["kd-8-resnet8", "kd-8-vit"]


def test_students_with_one_arm_each_are_ranked_together():
    arms = [arm(f"kd-{student}", [1.0, 1.2], student=student) for student in ("resnet8", "resnet10t", "vit")]
    content = ranked(study(*arms, baseline=None))
    assert content["groups"] == [{"title": "", "baseline": None}]


def test_other_data_and_other_settings_are_ranked_apart():
    arms = [
        arm(f"{name}-{data}-{epochs}", [1.0, 1.2], data=data, settings={"train.epochs": epochs})
        for data in ("digits", "cifar10")
        for epochs in (10, 20)
        for name in ("kd", "dkd")
    ]
    content = ranked(study(*arms, baseline="kd-digits-10"))
    assert [group["title"] for group in content["groups"]] == [
        "data digits, train.epochs 10",
        "data digits, train.epochs 20",
        "data cifar10, train.epochs 10",
        "data cifar10, train.epochs 20",
    ]
    assert [group["baseline"] for group in content["groups"]][2] == "kd-cifar10-10"
    assert len(content["fronts"]) == 4  # of two data sets, by latency and by size


def test_size_and_latency_are_of_the_file_that_most_arms_have():
    lacking = arm("at", [1.0, 1.1])
    for one in lacking["runs"]:
        one["files"] = [file for file in one["files"] if file["label"] == "onnx int8"]
    row = rows(ranked(study(arm("kd", PLAIN), lacking)))["kd"]
    assert (row["file"], row["size_mib"]) == ("onnx int8", pytest.approx(0.10))
    assert row["training_pmacs"] == pytest.approx(0.12)


def test_the_front_is_what_no_other_beats_in_both():
    #          dominated, on it, equal to it, cheapest, dearer and no better
    points = [(90.0, 2.0), (91.0, 2.0), (91.0, 2.0), (80.0, 1.0), (91.0, 3.0)]
    assert on_front(points) == [False, True, True, True, False]


def test_what_is_not_as_a_study_measures_it_is_named():
    broken = study(arm("kd", PLAIN))
    broken["arms"][0]["runs"][1]["status"] = "done"
    with pytest.raises(ReportError, match=r"study: arms\.0\.runs\.1\.status: .* got 'done'; it is not as a study"):
        ranked(broken)


# --- sentences --------------------------------------------------------------------------------


def test_a_clear_winner_is_to_be_taken_with_its_cost_and_what_stays_open():
    headline, text, tone = judged(arm("kd", PLAIN), arm("dkd", CLEAR, cost=2.0), arm("at", [1.3, 1.4, 1.4, 1.2, 1.3]))
    assert (headline, tone) == ("Take dkd", "good")
    assert text.startswith("dkd reaches 91.48 ± 0.08 % over 5 seeds; against kd on the same seeds that is +0.96 points")
    assert "p < 0.001 after Holm for 2 comparisons)" in text
    assert "at is better than kd too. Which of these 2 is best is not decided" in text
    assert "dkd is better than its control: +1.48 points" in text
    assert "a training step takes 24.0 ms, 2.00 times that of kd" in text
    assert "teacher and search included, takes 150 TMAC, 1.25 times that of kd" in text
    assert "Its file (onnx): 317 KiB, 0.210 ms at p50, 91.48 %." in text


def test_a_gain_that_is_not_decided_is_never_called_better():
    headline, text, tone = judged(arm("kd", PLAIN), arm("dkd", WIDE))
    assert (headline, tone) == ("Not decided: no arm is shown to be better than kd", "even")
    assert text.startswith("dkd has the highest mean, 91.48 ± 2.96 %")
    assert "dkd against its control is not decided: +1.48 points" in text
    assert "better" not in text
    assert "Take" not in headline + text


def test_a_higher_mean_that_is_not_decided_does_not_win_over_a_decided_one():
    headline, text, _ = judged(arm("kd", PLAIN), arm("dkd", CLEAR), arm("at", [gain + 0.2 for gain in WIDE]))
    assert headline == "Take dkd"
    assert "at has a higher mean, 91.68 ± 2.96 %" in text
    assert "but its difference to kd is not decided" in text


def test_one_seed_decides_nothing():
    headline, text, tone = judged(arm("kd", [0.5]), arm("dkd", [5.0]))
    assert (headline, tone) == ("One seed decides nothing", "unknown")
    assert text.startswith(
        "dkd has the highest mean, 95.00 % over 1 seed, +4.50 points against kd. Another seed gives other numbers: "
        "repeat the study with `seeds: 5`."
    )
    assert "better" not in text


def test_where_every_arm_is_worse_the_baseline_is_to_be_taken():
    headline, text, tone = judged(arm("kd", CLEAR), arm("dkd", PLAIN), arm("at", [0.1, 0.2, 0.1, 0.3, 0.2]))
    assert (headline, tone) == ("Take kd", "good")
    assert "every arm that was compared with it is worse" in text


def test_the_best_arm_may_be_worse_than_no_teacher_at_all():
    worse = [-1.0, -1.1, -0.9, -1.0, -1.1]
    headline, text, tone = judged(arm("kd", [gain - 1.0 for gain in worse]), arm("dkd", [*worse[1:], -1.3]))
    assert (headline, tone) == ("dkd is better than kd, and worse than its control", "bad")
    assert "dkd is worse than its control, the same student without a teacher" in text
    assert "Worse than its control: kd." in text


@pytest.mark.parametrize(
    ("gains", "headline", "tone"),
    [
        (CLEAR, "kd is better than its control", "good"),
        (WIDE, "Not decided: kd against its control", "even"),
        ([-gain for gain in CLEAR], "kd is worse than its control", "bad"),
        ([1.0], "One seed decides nothing", "unknown"),
        ([None, None], "No run finished", "bad"),
    ],
)
def test_a_single_arm_is_held_against_its_control(gains, headline, tone):
    found, text, told = judged(arm("kd", gains))
    assert (found, told) == (headline, tone)
    assert text.startswith("None of 2 runs has a result. The first error: DivergedError" if None in gains else "kd ")


def test_without_control_and_baseline_nothing_is_compared():
    headline, text, _ = judged(arm("kd", PLAIN, control=None), arm("dkd", CLEAR, control=None), baseline=None)
    assert headline == "Nothing to compare with"
    assert "so the study cannot say what is better" in text


def test_many_arms_are_listed_by_name_up_to_a_number():
    sentences = ranked(many_arms(40))["verdict"]["groups"][0]["sentences"]
    (undecided,) = [sentence for sentence in sentences if sentence.startswith("Not decided against")]
    assert " more." in undecided
    assert len(undecided) < 250
