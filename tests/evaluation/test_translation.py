import pytest
import sacrebleu

from evaluation.translation import signatures, translation

SAID = ["the cat sat on the mat", "hello there", "a b c d e"]
REFERENCES = ["the cat sat on a mat", "hello there", "a b d c e"]


def test_scores_are_those_of_sacrebleu():
    values = translation(SAID, REFERENCES)
    assert values["bleu"] == pytest.approx(sacrebleu.corpus_bleu(SAID, [REFERENCES]).score)
    assert values["chrf"] == pytest.approx(sacrebleu.corpus_chrf(SAID, [REFERENCES]).score)
    assert values["exact_match"] == pytest.approx(1 / 3)


def test_chinese_targets_are_cut_into_their_characters():
    said, references = ["我喜欢猫和狗"], ["我喜欢狗和猫"]
    expected = sacrebleu.corpus_bleu(said, [references], tokenize="zh").score
    assert translation(said, references, chinese=True)["bleu"] == pytest.approx(expected)
    assert "tok:zh" in signatures(chinese=True)["bleu_signature"]
    assert "tok:13a" in signatures()["bleu_signature"] and "version" in signatures()["chrf_signature"]


def test_nothing_said_is_worth_nothing():
    assert translation(["", "", ""], REFERENCES) == {"bleu": 0, "chrf": 0, "exact_match": 0}
