from __future__ import annotations

from guardrail_vl.cli.probe import examine, parse_extras
from guardrail_vl.engines import choose


def test_extras_are_read_from_the_package_itself() -> None:
    assert parse_extras(
        [
            "httpx<1,>=0.27",
            "onnxruntime>=1.20; extra == 'embedded'",
            'torch>=2.6; extra == "local"',
            "torch>=2.6; extra == 'all'",
            "torch>=2.6 ; python_version < '3.14' and extra == 'train'",
            "guardrail-vl[embedded,local]; extra == 'all'",
        ]
    ) == {"onnxruntime": ("embedded",), "torch": ("local", "train")}


def test_the_engines_named_are_the_ones_that_would_be_chosen() -> None:
    probe = examine()
    assert [(c.call, c.engine, c.why) for c in probe.choices] == [
        ("Guard()", choose(None).kind, choose(None).why),
        ('Guard("some/model")', choose("some/model").kind, choose("some/model").why),
    ]
    assert probe.cores >= 1
    # It says that it works exactly if both canaries were judged as they should be.
    assert probe.works == (len(probe.trial.canaries) == 2 and all(c.passed for c in probe.trial.canaries))
    assert probe.works or probe.trial.problem or any(not c.passed for c in probe.trial.canaries)
