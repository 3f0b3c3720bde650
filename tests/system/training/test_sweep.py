"""Several runs of one command, one after the other in one process."""

import pytest

from tests.system.smoke import metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_multirun_trains_each_value_in_a_folder_of_its_own(smoke):
    smoke.run(
        "k_${vapo.anchors.num_anchors}",
        "hydra.mode=MULTIRUN",
        "vapo.anchors.num_anchors=0,2",
        "trainer.total_training_steps=1",
        "trainer.save_freq=-1",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
    )
    probes = {k: metrics(smoke.root / f"k_{k}")[1]["vapo/anchors/num_probes"] for k in (0, 2)}
    assert probes[0] == 0 < probes[2]
