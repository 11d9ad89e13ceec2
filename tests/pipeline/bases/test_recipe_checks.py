"""What a concept of recipe `offset` learns in addition is refused where it cannot act, before anything is trained."""

import pytest

from perfusion_ops.base.folder import BaseError, describe
from perfusion_ops.config import SamplingConfig, TrainingConfig
from perfusion_ops.mini import base_folder
from pipeline.bases.recipes import check_settings, train_check
from pipeline.contract.errors import Code, RowError

BASE = describe(base_folder())
VIDEO, PICTURE = SamplingConfig(task="video"), SamplingConfig()


@pytest.mark.parametrize("name", ["references", "conv_rank"])
def test_videos_have_neither_photos_nor_edits_of_convolutions(name):
    asked = TrainingConfig(recipe="offset", **{name: 2})
    with pytest.raises(BaseError, match=f"train.{name} 2 does not work with videos: set it to 0"):
        check_settings(asked, VIDEO, BASE, BASE)
    check_settings(asked, PICTURE, BASE, BASE)
    check_settings(TrainingConfig(recipe="offset"), VIDEO, BASE, BASE)
    check_settings(TrainingConfig(**{name: 2}), VIDEO, BASE, BASE)  # recipe paper has neither


@pytest.mark.parametrize("name", ["references", "conv_rank"])
def test_a_train_cell_that_asks_for_them_is_a_bad_row(name):
    check = train_check(TrainingConfig(recipe="offset"), VIDEO, BASE, BASE)
    check('{"steps": 3}')
    with pytest.raises(RowError, match=f"train.{name} 1 does not work with videos") as caught:
        check(f'{{"{name}": 1}}')
    assert caught.value.code == Code.BAD_TRAIN_OVERRIDE
