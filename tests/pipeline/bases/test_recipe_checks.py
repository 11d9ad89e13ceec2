"""What a concept of recipe `offset` learns in addition is refused where it cannot act, before anything is trained."""

import pytest

from perfusion_ops.base.folder import BaseError, describe
from perfusion_ops.config import SamplingConfig, TrainingConfig
from perfusion_ops.mini import base_folder
from pipeline.bases.recipes import check_settings, train_check
from pipeline.contract.errors import Code, RowError

BASE = describe(base_folder())
VIDEO, PICTURE = SamplingConfig(task="video"), SamplingConfig()


def test_videos_have_no_photos():
    asked = TrainingConfig(recipe="offset", references=2)
    with pytest.raises(BaseError, match=r"train\.references 2 does not work with videos: set it to 0"):
        check_settings(asked, VIDEO, BASE, BASE)
    check_settings(asked, PICTURE, BASE, BASE)
    check_settings(TrainingConfig(recipe="offset", conv_rank=2), VIDEO, BASE, BASE)
    check_settings(TrainingConfig(references=2), VIDEO, BASE, BASE)  # recipe paper has none


def test_a_train_cell_that_asks_for_them_is_a_bad_row():
    check = train_check(TrainingConfig(recipe="offset"), VIDEO, BASE, BASE)
    check('{"steps": 3, "conv_rank": 1}')
    with pytest.raises(RowError, match=r"train\.references 1 does not work with videos") as caught:
        check('{"references": 1}')
    assert caught.value.code == Code.BAD_TRAIN_OVERRIDE
