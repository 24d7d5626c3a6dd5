"""What one run says of its student."""

from __future__ import annotations

import pytest
from run_of_made_up_numbers import RESULTS

from kdzoo.report.results import parse_results
from kdzoo.report.verdict import Verdict, verdict


def judge(**changes) -> Verdict:
    return verdict(parse_results({**RESULTS, **changes}))


def paired(gained, lost):
    return {"both": 9000 - gained, "student_only": gained, "control_only": lost, "neither": 1000 - lost}


def test_a_student_that_the_algorithm_chose_is_not_called_the_same_network():
    judged = judge(same_network=False)
    assert (
        "1.41 points more than the recipe's student, another network, trained alone under the same" in judged.sentence
    )
    assert judged.facts[0] == ("+1.41", "points against the recipe's student, another network, trained alone")


def test_an_upper_bound_is_not_there_to_be_beaten():
    lower = {**RESULTS["student"], "top1_percent": RESULTS["control"]["top1_percent"] - 40}
    judged = judge(student=lower, upper_bound="on all tasks at once")
    assert (judged.tone, judged.headline) == ("unknown", "Held against an upper bound")
    assert judged.sentence == (
        "The distilled student reaches 47.61 % on 10,000 test samples; the control, the same network trained on all "
        "tasks at once, is an upper bound and reaches 87.61 %."
    )
    assert judged.facts[0] == ("-40.00", "points against the same network trained on all tasks at once")


def test_one_run_speaks_of_that_run_alone():
    judged = judge()
    assert (judged.tone, judged.headline) == ("good", "In this run the distilled student is better")
    assert judged.sentence == (
        "The distilled student reaches 89.02 % on 10,000 test samples, 1.41 points more than the same network trained "
        "alone under the same budget; 95 % interval of the difference +0.85 to +1.97 points."
    )
    assert judged.facts == (
        ("+1.41", "points against the same network trained alone"),
        ("95.1 %", "of the teacher's accuracy"),
        ("22.2\N{MULTIPLICATION SIGN}", "fewer parameters"),
        ("62.4\N{MULTIPLICATION SIGN}", "smaller file (onnx int8)"),
        ("16.7\N{MULTIPLICATION SIGN}", "faster at batch 1"),
    )
    assert judged.caveat == (
        "The interval covers the choice of test samples alone. Another seed gives other numbers, and one run cannot "
        "say how far apart they are: whether this algorithm helps here, only several seeds can show."
    )


@pytest.mark.parametrize(
    ("gained", "lost", "tone", "headline"),
    [
        (50, 40, "even", "In this run no difference can be shown"),
        (40, 50, "even", "In this run no difference can be shown"),
        (0, 0, "even", "In this run no difference can be shown"),
        (300, 500, "bad", "In this run the distilled student is worse"),
    ],
)
def test_an_interval_round_zero_shows_nothing_and_one_below_zero_a_loss(gained, lost, tone, headline):
    judged = judge(paired=paired(gained, lost))
    assert (judged.tone, judged.headline) == (tone, headline)


def test_a_loss_is_said_to_be_one():
    worse = {**RESULTS["student"], "top1_percent": 86.0}
    judged = judge(student=worse, paired=paired(300, 461))
    assert judged.facts[0][0] == "-1.61"
    assert "1.61 points less than the same network trained alone" in judged.sentence


@pytest.mark.parametrize(("reached", "guessing"), [(10.55, True), (10.65, False)])
def test_a_student_no_better_than_guessing_has_learnt_nothing(reached, guessing):
    # of 10,000 samples a tenth are of the most common class: two standard errors are 0.6 points
    student = {**RESULTS["student"], "top1_percent": reached}
    judged = judge(student=student, data={**RESULTS["data"], "most_common_class_percent": 10.0})
    assert (judged.headline == "The student does not do better than guessing") is guessing
    if guessing:
        assert judged.tone == "bad"
        assert judged.sentence == (
            "The distilled student reaches 10.55 % on 10,000 test samples; naming the most common class each time "
            "would reach 10.00 %."
        )


def test_without_a_control_there_is_no_verdict():
    judged = judge(control=None, paired=None)
    assert (judged.tone, judged.headline) == ("unknown", "No control, no verdict")
    assert judged.sentence == (
        "The distilled student reaches 89.02 % on 10,000 test samples. "
        "The run has no control, so it cannot say whether distillation helped."
    )


def test_without_paired_counts_there_is_a_difference_but_no_interval():
    judged = judge(paired=None)
    assert (judged.tone, judged.headline) == ("unknown", "A difference without an interval")
    assert "interval of" not in judged.sentence


def test_a_student_larger_and_slower_than_its_teacher_is_said_to_be_so():
    slow = {**RESULTS["student"], "params_m": 3.461428, "latency_ms": {"p50": 19.74, "p95": 20.0}}
    facts = judge(student=slow, exports=[]).facts
    assert ("2.0\N{MULTIPLICATION SIGN}", "more parameters") in facts
    assert ("2.0\N{MULTIPLICATION SIGN}", "slower at batch 1") in facts


def with_teacher(top1_percent: float) -> Verdict:
    return judge(teacher={**RESULTS["teacher"], "top1_percent": top1_percent})


def test_a_teacher_that_is_worse_than_the_control_is_the_headline():
    judged = with_teacher(47.25)
    assert (judged.tone, judged.headline) == ("bad", "The teacher is worse than the control")
    assert judged.sentence.startswith(
        "The teacher itself reaches 47.25 %, the control 87.61 %. The distilled student reaches 89.02 %"
    )


def test_a_teacher_within_chance_of_the_control_is_no_better():
    # two standard errors of the difference are 0.93 points here
    judged = with_teacher(87.0)
    assert (judged.tone, judged.headline) == ("even", "The teacher is no better than the control")
    assert judged.sentence.startswith("The teacher itself reaches 87.00 %, the control 87.61 %. The distilled student")
    assert with_teacher(86.6).headline == "The teacher is worse than the control"
    assert with_teacher(88.0).headline == "In this run the distilled student is better"
    assert "itself" not in with_teacher(88.0).sentence


def test_a_teacher_far_below_what_its_file_states_is_the_headline():
    def stating(percent: float, **changes) -> Verdict:
        facts = {"name": "teacher", "imported": "best.pth", "stated_top1_percent": percent, "stated_by": "best.pth"}
        return judge(stages=[facts], **changes)

    # the teacher reaches 93.57 %; 3 points and two standard errors of 97.2 %, 0.33 points, are too much
    judged = stating(97.2)
    assert (judged.tone, judged.headline) == ("bad", "The teacher is far below what its file states")
    assert judged.sentence.startswith(
        "The teacher reaches 93.57 %, far below the 97.20 % that best.pth states. Look at its preprocessing, at the "
        "order of the classes, and at which weights of the file are used. The distilled student reaches 89.02 %"
    )
    assert stating(96.8).headline == "In this run the distilled student is better"
    without = stating(97.2, control=None, paired=None)
    assert without.headline == "The teacher is far below what its file states"


def test_no_student_reaches_more_than_all_of_its_teacher():
    assert ("+41.77", "points against the teacher") in with_teacher(47.25).facts
    assert ("+89.02", "points against the teacher") in with_teacher(0.0).facts
    assert ("100.0 %", "of the teacher's accuracy") in with_teacher(89.02).facts


def test_the_best_of_several_teachers_counts():
    weak = {**RESULTS["teacher"], "top1_percent": 20.0}
    assert judge(teachers=[weak, RESULTS["teacher"]]).headline == "In this run the distilled student is better"


def test_a_rejected_file_is_no_smaller_file():
    assert ("62.4\N{MULTIPLICATION SIGN}", "smaller file (onnx int8)") in judge().facts
    rejected = {**RESULTS["exports"][1], "rejected": ["it is another network"]}
    assert ("22.3\N{MULTIPLICATION SIGN}", "smaller file (onnx)") in judge(
        exports=[RESULTS["exports"][0], rejected]
    ).facts


def test_the_verdict_says_that_the_control_had_few_labels():
    few = {**RESULTS["data"], "labelled": 100}
    assert (
        "points more than the same network trained alone under the same budget on 100 labels;"
        in judge(data=few).sentence
    )


def test_the_verdict_says_what_the_student_learned_from_besides_labels():
    others = {**RESULTS["data"], "labelled": 100, "train": 45_000}
    judged = judge(data=others, data_handed="any")
    assert judged.sentence.endswith(" points. The student also learned from 44,900 samples without a label.")


def without_labels(entry):
    return {**entry, "top1_percent": None, "ece": None, "agreement_percent": entry.get("agreement_percent") or 100.0}


def test_without_labels_the_verdict_is_agreement_and_says_so():
    student = {**without_labels(RESULTS["student"]), "agreement_percent": 93.1}
    unknown = {"most_common_class_percent": None, "labelled": 0, "test_samples": 500}
    given = {"student": student, "teacher": without_labels(RESULTS["teacher"]), "control": None, "paired": None}
    judged = judge(**given, data={**RESULTS["data"], **unknown}, exports=[])
    assert (judged.tone, judged.headline) == ("unknown", "Agreement with the teacher, not accuracy")
    assert judged.sentence == (
        "The distilled student chooses the teacher's class on 93.10 % of 500 test samples. None of them has a label, "
        "so the run cannot say how often either of the two is right."
    )
    assert judged.facts[0] == ("93.10 %", "agreement with the teacher")
    assert not any("accuracy" in what for _, what in judged.facts)


def test_without_labels_to_train_on_there_is_no_control():
    judged = judge(control=None, paired=None, data={**RESULTS["data"], "labelled": 0})
    assert judged.sentence.endswith(
        "No training sample has a label, so there is no control: labels alone would teach nothing."
    )
